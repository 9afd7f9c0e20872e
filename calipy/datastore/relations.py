"""Checks that need other objects: tiers of policies, filters of peers, pools that overlap.

etcd does not enforce them, and two writers at once can break them, as with Calico's own objects. Each costs one listing
of the kind it looks at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Protocol

from calipy.datastore.keys import (
    AFFINITIES,
    BlockAffinityKey,
    BlockKey,
    ResourceKey,
    affinity_prefix,
    blocks_prefix,
    parse,
    path,
)
from calipy.datastore.kinds.endpoints import NodeSpec
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.kinds.pools import IPPoolSpec
from calipy.datastore.policynames import NAMED_POLICIES
from calipy.datastore.store import Store
from calipy.errors import InvalidInputError, NotFoundError


class Objects(Protocol):
    """Where the other objects are read."""

    @property
    def store(self) -> Store:
        """The keys themselves."""

    async def get(self, kind: str, name: str, namespace: str = "", /) -> Resource[Any, Any] | None:
        """An object, None if there is none."""

    async def list(self, kind: str, namespace: str = "", /) -> Iterable[Resource[Any, Any]]:
        """All objects of a kind."""


async def check_create(objects: Objects, resource: Resource[Any, Any]) -> None:
    """What must hold before an object is made. Raises ``InvalidInputError`` or ``NotFoundError``."""
    await check_tier(objects, resource)
    if resource.kind == "BGPPeer":
        await _check_filters(objects, resource)
    elif resource.kind == "IPPool":
        await _check_overlap(objects, resource)
        await _check_blocks(objects, resource.spec)


async def check_update(objects: Objects, resource: Resource[Any, Any]) -> None:
    """What must hold before an object is changed. Raises ``InvalidInputError``."""
    if resource.kind == "BGPPeer":
        await _check_filters(objects, resource)
    elif resource.kind == "IPPool":
        existing = await objects.get("IPPool", resource.metadata.name)
        if existing is not None:
            _check_pool_change(existing.spec, resource.spec)


async def check_tier(objects: Objects, resource: Resource[Any, Any]) -> None:
    """The tier of a policy exists when the policy is created or applied. Raises ``NotFoundError``."""
    if resource.kind in NAMED_POLICIES:
        key = path(ResourceKey("Tier", resource.spec.tier)) if "/" not in resource.spec.tier else ""
        if not key or await objects.store.get(key) is None:
            raise NotFoundError(f"tier {resource.spec.tier!r} does not exist", key=key, remedy="create the tier first")


async def _check_filters(objects: Objects, peer: Resource[Any, Any]) -> None:
    for index, name in enumerate(peer.spec.filters):
        if await objects.store.get(path(ResourceKey("BGPFilter", name))) is None:
            raise InvalidInputError(
                "no such BGPFilter", field=f"spec.filters[{index}]", value=name, remedy="create the filter first"
            )


async def _check_overlap(objects: Objects, pool: Resource[Any, Any]) -> None:
    cidr = ipaddress.ip_network(pool.spec.cidr)
    for other in await objects.list("IPPool"):
        try:
            taken = ipaddress.ip_network(other.spec.cidr, strict=False)
        except ValueError:
            continue
        if other.metadata.name != pool.metadata.name and taken.version == cidr.version and taken.overlaps(cidr):
            raise InvalidInputError(
                f"overlaps IPPool({other.metadata.name}), {other.spec.cidr}", field="spec.cidr", value=pool.spec.cidr
            )


async def _check_blocks(objects: Objects, spec: IPPoolSpec) -> None:
    cidr = ipaddress.ip_network(spec.cidr)
    for found in (await objects.store.list(blocks_prefix(cidr.version))).items:
        key = parse(found.key)
        if not isinstance(key, BlockKey):
            continue
        block = ipaddress.ip_network(key.cidr)
        if block.overlaps(cidr) and block.prefixlen != spec.block_size:
            raise InvalidInputError(
                f"the block {block} inside is of another size",
                field="spec.blockSize",
                value=spec.block_size,
                remedy=f"set blockSize: {block.prefixlen}, or free the addresses of the block",
            )


def _check_pool_change(old: IPPoolSpec, new: IPPoolSpec) -> None:
    if ipaddress.ip_network(old.cidr, strict=False) != ipaddress.ip_network(new.cidr):
        raise InvalidInputError(f"cannot be changed from {old.cidr}", field="spec.cidr", value=new.cidr)
    if old.block_size != new.block_size:
        raise InvalidInputError(
            f"cannot be changed from {old.block_size}", field="spec.blockSize", value=new.block_size
        )
    if "LoadBalancer" in old.allowed_uses and set(new.allowed_uses) != set(old.allowed_uses):
        raise InvalidInputError(
            "cannot be changed from LoadBalancer", field="spec.allowedUses", value=list(new.allowed_uses)
        )


async def refuse_used_tier(objects: Objects, name: str) -> None:
    """A tier goes only when no policy is in it. Raises ``InvalidInputError``."""
    for kind in sorted(NAMED_POLICIES):
        for policy in await objects.list(kind):
            if policy.spec.tier == name:
                raise InvalidInputError(
                    f"still holds {policy.key}",
                    field="Tier.metadata.name",
                    value=name,
                    remedy="delete its policies first",
                )


def addresses_of_node(node: Resource[Any, Any] | None, endpoints: Iterable[Resource[Any, Any]]) -> list[str]:
    """Addresses that go with a node: those of its endpoints and, if it is there, of its tunnels."""
    found = [text.partition("/")[0] for endpoint in endpoints for text in endpoint.spec.ip_networks]
    if node is None:
        return found
    spec: NodeSpec = node.spec
    tunnels = [spec.ipv4_vxlan_tunnel_addr, spec.ipv6_vxlan_tunnel_addr]
    if spec.bgp is not None:
        tunnels.append(spec.bgp.ipv4_ipip_tunnel_addr)
    if spec.wireguard is not None:
        tunnels += [spec.wireguard.interface_ipv4_address, spec.wireguard.interface_ipv6_address]
    return found + [text for text in tunnels if text]


async def refuse_claimed_pool(objects: Objects, pool: Resource[Any, Any]) -> None:
    """Without IPAM at hand a pool goes only if no host has a claim in it. Raises ``InvalidInputError``."""
    cidr = ipaddress.ip_network(pool.spec.cidr, strict=False)
    for found in (await objects.store.list(AFFINITIES)).items:
        key = parse(found.key)
        if isinstance(key, BlockAffinityKey) and ipaddress.ip_network(key.cidr).overlaps(cidr):
            raise InvalidInputError(
                f"host {key.host} has a claim on {key.cidr}", field="IPPool.metadata.name", value=pool.metadata.name
            )


async def refuse_claiming_host(objects: Objects, host: str) -> None:
    """Without IPAM at hand a node goes only if it has no claims. Raises ``InvalidInputError``."""
    if (await objects.store.list(affinity_prefix(host))).items:
        raise InvalidInputError("has claims on address blocks", field="Node.metadata.name", value=host)
