"""What a node writes into the datastore when it starts: itself, and the objects that real Calico clients expect.

The order is calico/node's: the Node with its detected addresses, default pools, ClusterInformation, FelixConfiguration
(``default``, then ``node.<name>``), BGPConfiguration, IPAMConfiguration. Each step looks first and writes only what is
missing or changed, so that a second start writes nothing; objects that exist already are somebody's decision and stay.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from calipy import log
from calipy.datastore.client import Client
from calipy.datastore.codec import new
from calipy.datastore.resources import (
    FelixConfigurationSpec,
    IPAMConfigurationSpec,
    IPPoolSpec,
    NodeBGPSpec,
    NodeInterface,
    NodeSpec,
    OrchRef,
    Resource,
)
from calipy.errors import AlreadyExistsError, CalipyError, ConflictError
from calipy.net import Family
from calipy.node.autodetect import (
    Detection,
    HostInterface,
    default_pool,
    detect,
    local_prefix,
    recorded_interfaces,
)
from calipy.node.settings import LIB_DIR, NodeSettings, PoolSettings

logger = log.get("startup")

UPDATE_TRIES = 5


class AddressError(CalipyError):
    """The node's own address could not be settled: none found, or another node has it."""


@dataclass(frozen=True, slots=True)
class Host:
    """What start-up needs to know of the machine, read by the caller.

    Attributes:
        source_towards: local address the kernel would use towards a host or address, or None (``can-reach``).
        ipv6: the kernel has IPv6.
    """

    interfaces: Sequence[HostInterface]
    source_towards: Callable[[str, Family], str | None]
    ipv6: bool = True


async def start(
    client: Client, settings: NodeSettings, host: Host, *, lib_dir: Path = LIB_DIR
) -> Resource[Any, Any] | None:
    """Write what this node needs, then ``nodename``, whose existence lets the CNI plugin work.

    Returns the Node resource, or None where the node has no networking of ours. May be repeated at any time.

    Raises:
        AddressError: no address, or one that another node has; nothing was written for this node.
        DatastoreError: the datastore did not answer.
    """
    node = await ensure_node(client, settings, host)
    await ensure_pools(client, settings, host)
    await ensure_defaults(client, settings)
    write_nodename(settings.name, lib_dir)
    return node


async def ensure_node(client: Client, settings: NodeSettings, host: Host) -> Resource[Any, Any] | None:
    """Create or update the Node resource; keeps labels, tunnel addresses and whatever else others wrote there."""
    if not settings.networking:
        return await client.get("Node", settings.name)
    for attempt in range(UPDATE_TRIES):
        stored = await client.get("Node", settings.name)
        node = stored or new("Node", settings.name)
        try:
            wanted = replace(node, spec=node_spec(node.spec, settings, host))
            if wanted.spec.bgp != node.spec.bgp:
                await _refuse_conflicts(client, settings, wanted.spec)
        except AddressError:
            if stored is not None:
                await _clear_addresses(client, settings, stored)
            raise
        if wanted == stored:
            return stored
        try:
            return await (client.create(wanted) if stored is None else client.update(wanted))
        except ConflictError:
            if attempt == UPDATE_TRIES - 1:
                raise
    raise AssertionError


def node_spec(current: NodeSpec, settings: NodeSettings, host: Host) -> NodeSpec:
    """The Node's spec as it ought to be, from what is stored and what the host is now (pure).

    Raises:
        AddressError: nothing detected and nothing stored.
    """
    bgp = current.bgp or NodeBGPSpec()
    bgp = replace(
        bgp,
        ipv4_address=_address(4, settings.ip, bgp.ipv4_address, settings, host),
        ipv6_address=_address(6, settings.ip6, bgp.ipv6_address, settings, host),
        as_number=bgp.as_number if settings.as_number is None else settings.as_number,
    )
    if not bgp.ipv4_address and not bgp.ipv6_address:
        raise AddressError(
            "this node has no address that BGP could use",
            remedy="set IP or IP6 to an address or to 'autodetect', or CALICO_NETWORKING_BACKEND=none",
        )
    choices: tuple[tuple[Family, str], ...] = ((4, settings.ip), (6, settings.ip6))
    families = [family for family, choice in choices if choice not in ("", "none")]
    interfaces = recorded_interfaces(host.interfaces, families) if families else []
    reference = (OrchRef(node_name=settings.node_ref, orchestrator="k8s"),)
    return replace(
        current,
        bgp=bgp,
        orch_refs=reference if settings.node_ref else current.orch_refs,
        interfaces=tuple(NodeInterface(name=name, addresses=addresses) for name, addresses in interfaces),
    )


def _address(family: Family, choice: str, stored: str, settings: NodeSettings, host: Host) -> str:
    if choice == "none" or (choice == "" and (stored or family == 6)):
        return stored
    if choice not in ("", "autodetect"):
        return local_prefix(choice, host.interfaces) if family == 4 else _with_length(choice)
    method = settings.ip_method if family == 4 else settings.ip6_method
    found: Detection = detect(method, family, host.interfaces, source_towards=host.source_towards)
    if found.address is not None:
        logger.info("address detected", family=family, how=found.reason)
        return str(found.address)
    if stored:
        logger.warning("no address detected, keeping the stored one", family=family, stored=stored, why=found.reason)
        return stored
    variable = "IP_AUTODETECTION_METHOD" if family == 4 else "IP6_AUTODETECTION_METHOD"
    raise AddressError(
        f"no IPv{family} address detected by {method!r}: {found.reason}",
        remedy=f"choose another {variable}, or set {'IP' if family == 4 else 'IP6'} to the address",
    )


def _with_length(address: str) -> str:
    return str(ipaddress.ip_interface(address))


async def _refuse_conflicts(client: Client, settings: NodeSettings, wanted: NodeSpec) -> None:
    """Two nodes with one address would tear each other's sessions down. Raises AddressError."""
    if not settings.check_address_conflicts:
        return
    own = _addresses(wanted)
    for other in await client.list("Node"):
        for address in _addresses(other.spec) & own if other.name != settings.name else ():
            raise AddressError(
                f"address {address} belongs to node {other.name!r} already",
                remedy="give this node another address, or delete the other Node if it is gone for good",
            )


def _addresses(spec: NodeSpec) -> set[str]:
    given = (spec.bgp.ipv4_address, spec.bgp.ipv6_address) if spec.bgp else ()
    return {str(ipaddress.ip_interface(address).ip) for address in given if address}


async def _clear_addresses(client: Client, settings: NodeSettings, stored: Resource[Any, Any]) -> None:
    """A detected address that is no longer ours must not keep others from using it (calico/node does the same)."""
    if stored.spec.bgp is None:
        return
    bgp = replace(
        stored.spec.bgp,
        ipv4_address="" if settings.ip == "autodetect" else stored.spec.bgp.ipv4_address,
        ipv6_address="" if settings.ip6 == "autodetect" else stored.spec.bgp.ipv6_address,
    )
    if bgp != stored.spec.bgp:
        spec = replace(stored.spec, bgp=None if bgp == NodeBGPSpec() else bgp)
        await client.update(replace(stored, spec=spec))


async def ensure_pools(client: Client, settings: NodeSettings, host: Host) -> None:
    """A default pool for each family that has no pool at all."""
    if settings.no_default_pools:
        return
    present = {6 if ":" in pool.spec.cidr else 4 for pool in await client.list("IPPool")}
    if 4 not in present and settings.pool4.cidr is not None:
        cidr = settings.pool4.cidr or default_pool(host.interfaces)
        await _create(client, new("IPPool", "default-ipv4-ippool", pool_spec(cidr, settings.pool4)))
    if 6 not in present and settings.pool6.cidr is not None and host.ipv6 and settings.ipv6_support:
        cidr = settings.pool6.cidr or random_ula()
        await _create(client, new("IPPool", "default-ipv6-ippool", pool_spec(cidr, settings.pool6)))


def random_ula() -> str:
    """A /48 of RFC 4193: fd, then 40 random bits."""
    return str(ipaddress.IPv6Network((bytes([0xFD]) + secrets.token_bytes(5) + bytes(10), 48)))


def pool_spec(cidr: str, pool: PoolSettings) -> IPPoolSpec:
    """The spec of a default pool (pure)."""
    return IPPoolSpec(
        cidr=cidr,
        block_size=pool.block_size,
        ipip_mode=pool.ipip_mode,
        vxlan_mode=pool.vxlan_mode,
        nat_outgoing=pool.nat_outgoing,
        disable_bgp_export=pool.disable_bgp_export,
        node_selector=pool.node_selector,
    )


async def ensure_defaults(client: Client, settings: NodeSettings) -> None:
    """ClusterInformation, Felix's, BGP's and IPAM's default objects."""
    await client.ensure_initialised(cluster_type=settings.cluster_type)
    felix = await client.get("FelixConfiguration", "default")
    if felix is None:
        spec = FelixConfigurationSpec(reporting_interval="0s", log_severity_screen="Info")
        await _create(client, new("FelixConfiguration", "default", spec))
    else:
        spec = replace(
            felix.spec,
            reporting_interval="0s" if felix.spec.reporting_interval is None else felix.spec.reporting_interval,
            log_severity_screen=felix.spec.log_severity_screen or "Info",
        )
        if spec != felix.spec:
            await client.update(replace(felix, spec=spec))
    own = f"node.{settings.name}"
    if await client.get("FelixConfiguration", own) is None:
        spec = FelixConfigurationSpec(default_endpoint_to_host_action="Return")
        await _create(client, new("FelixConfiguration", own, spec))
    if await client.get("BGPConfiguration", "default") is None:
        await _create(client, new("BGPConfiguration", "default"))
    if await client.get("IPAMConfiguration", "default") is None:
        ipam = IPAMConfigurationSpec(auto_allocate_blocks=True, kube_virt_vm_address_persistence="Enabled")
        await _create(client, new("IPAMConfiguration", "default", ipam))


async def _create(client: Client, resource: Resource[Any, Any]) -> None:
    """Create; another node that was quicker is as good."""
    try:
        await client.create(resource)
    except AlreadyExistsError:
        logger.info("exists already", kind=resource.kind, name=resource.name)


def write_nodename(name: str, lib_dir: Path = LIB_DIR) -> None:
    """Write ``<lib_dir>/nodename`` atomically, mode 0644, unless it says so already."""
    path = lib_dir / "nodename"
    try:
        if path.read_text() == name:
            return
    except OSError:
        pass
    lib_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(name)
    temporary.chmod(0o644)
    temporary.replace(path)
