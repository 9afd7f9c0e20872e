"""Tunnel addresses: where an enabled pool with an encapsulation selects this node, the node needs one address of it.

Mirrors calico/node's ``allocate-tunnel-addrs``: the address is assigned for use ``Tunnel`` under a handle of its own,
then written into the Node; with no such pool it is given back and the field cleared.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from calipy import log
from calipy.datastore.client import Client
from calipy.datastore.ipam import AllocationAttribute
from calipy.datastore.resources import IPPoolSpec, NodeBGPSpec, NodeSpec, Resource
from calipy.errors import CalipyError, NotFoundError
from calipy.ipam.allocator import Allocator
from calipy.ipam.errors import HandleNotFoundError, IPAMError, NotAllocatedError
from calipy.net import Family
from calipy.policy import selector

logger = log.get("tunnels")


@dataclass(frozen=True, slots=True)
class TunnelKind:
    """One kind of tunnel: its encapsulation, handle prefix, ``type`` attribute, and the family of its address."""

    encapsulation: str
    handle: str
    type: str
    family: Family


IPIP: Final = TunnelKind("ipip", "ipip-tunnel-addr", "ipipTunnelAddress", 4)
VXLAN_V4: Final = TunnelKind("vxlan", "vxlan-tunnel-addr", "vxlanTunnelAddress", 4)
VXLAN_V6: Final = TunnelKind("vxlan", "vxlan-v6-tunnel-addr", "vxlanV6TunnelAddress", 6)
KINDS: Final = (IPIP, VXLAN_V4, VXLAN_V6)


async def ensure(client: Client, allocator: Allocator, node_name: str) -> None:
    """Bring this node's tunnel addresses in line with its pools; writes nothing where all is well.

    Raises:
        NotFoundError: there is no Node resource yet.
        IPAMError: a pool has no address left.
    """
    node = await client.get("Node", node_name)
    if node is None:
        raise NotFoundError(f"no Node {node_name!r}", remedy="start the node first")
    pools = await client.list("IPPool")
    spec = node.spec
    fresh: list[str] = []
    for kind in KINDS:
        usable = usable_pools(pools, kind, node.metadata.labels)
        address = await _settle(allocator, node_name, kind, usable, stored(spec, kind), fresh)
        spec = with_address(spec, kind, address)
    if spec == node.spec:
        return
    try:
        await client.update(replace(node, spec=spec))
    except CalipyError:
        await allocator.release_ips(fresh)
        raise


def usable_pools(pools: Iterable[Resource[IPPoolSpec, Any]], kind: TunnelKind, labels: Mapping[str, str]) -> list[str]:
    """CIDRs of the enabled pools with this encapsulation that select the node and may be used for tunnels (pure)."""
    result = []
    for pool in pools:
        spec = pool.spec
        mode = spec.ipip_mode if kind.encapsulation == "ipip" else spec.vxlan_mode
        if (
            not spec.disabled
            and mode not in ("", "Never")
            and (":" in spec.cidr) == (kind.family == 6)
            and (not spec.allowed_uses or "Tunnel" in spec.allowed_uses)
            and selector.parse(spec.node_selector).matches(labels)
        ):
            result.append(spec.cidr)
    return result


def stored(spec: NodeSpec, kind: TunnelKind) -> str:
    """The address of this kind that the Node names, or "" (pure)."""
    if kind is IPIP:
        return spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp else ""
    return spec.ipv4_vxlan_tunnel_addr if kind is VXLAN_V4 else spec.ipv6_vxlan_tunnel_addr


def with_address(spec: NodeSpec, kind: TunnelKind, address: str) -> NodeSpec:
    """The Node's spec with another address of this kind, "" for none (pure)."""
    if kind is IPIP:
        if spec.bgp is None and not address:
            return spec
        bgp = replace(spec.bgp or NodeBGPSpec(), ipv4_ipip_tunnel_addr=address)
        return replace(spec, bgp=bgp if bgp != NodeBGPSpec() else None)
    if kind is VXLAN_V4:
        return replace(spec, ipv4_vxlan_tunnel_addr=address)
    return replace(spec, ipv6_vxlan_tunnel_addr=address)


async def _settle(
    allocator: Allocator, node: str, kind: TunnelKind, usable: Sequence[str], address: str, fresh: list[str]
) -> str:
    """The address to use, which may be the one there is; a new one is added to ``fresh``."""
    handle = f"{kind.handle}-{node}"
    if not usable:
        if address:
            await _release(allocator, handle)
        return ""
    if address:
        owner = await _owner(allocator, address)
        said = (owner.secondary if owner else None) or {}
        ours = said.get("type") == kind.type and said.get("node") == node
        inside = any(ipaddress.ip_address(address) in ipaddress.ip_network(cidr) for cidr in usable)
        if ours and inside:
            return address
        if ours or owner is None:  # never what somebody else holds
            await _release(allocator, handle)
    assigned = await allocator.auto_assign(
        num4=1 if kind.family == 4 else 0,
        num6=1 if kind.family == 6 else 0,
        handle_id=handle,
        attributes={"node": node, "type": kind.type},
        pools4=usable if kind.family == 4 else None,
        pools6=usable if kind.family == 6 else None,
        intended_use="Tunnel",
    )
    addresses = assigned.ipv4 if kind.family == 4 else assigned.ipv6
    if not addresses:
        raise IPAMError(f"no address left for the node's {kind.type}: {'; '.join(assigned.messages)}")
    fresh.append(addresses[0].split("/")[0])
    logger.info("tunnel address assigned", type=kind.type, address=fresh[-1])
    return fresh[-1]


async def _owner(allocator: Allocator, address: str) -> AllocationAttribute | None:
    try:
        return await allocator.attributes(address)
    except NotAllocatedError:
        return None


async def _release(allocator: Allocator, handle: str) -> None:
    try:
        await allocator.release_by_handle(handle)
    except HandleNotFoundError:
        logger.debug("nothing to release", handle=handle)
