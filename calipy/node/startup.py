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

from calipy import log
from calipy.datastore.client import Client
from calipy.datastore.resources import Resource, from_document, to_document
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
API_VERSION = "projectcalico.org/v3"


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


async def start(client: Client, settings: NodeSettings, host: Host, *, lib_dir: Path = LIB_DIR) -> Resource | None:
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


async def ensure_node(client: Client, settings: NodeSettings, host: Host) -> Resource | None:
    """Create or update the Node resource; keeps labels, tunnel addresses and whatever else others wrote there."""
    if not settings.networking:
        return await client.get("Node", settings.name)
    for attempt in range(UPDATE_TRIES):
        stored = await client.get("Node", settings.name)
        current = to_document(stored) if stored else _document("Node", settings.name, {})
        try:
            wanted = node_document(current, settings, host)
            if wanted["spec"].get("bgp") != current["spec"].get("bgp"):
                await _refuse_conflicts(client, settings, wanted)
        except AddressError:
            if stored is not None and "autodetect" in (settings.ip, settings.ip6):
                await _clear_addresses(client, settings, stored)
            raise
        if stored is not None and wanted == current:
            return stored
        try:
            resource = from_document(wanted)
            return await (client.create(resource) if stored is None else client.update(resource))
        except ConflictError:
            if attempt == UPDATE_TRIES - 1:
                raise
    raise AssertionError


def node_document(current: dict[str, Any], settings: NodeSettings, host: Host) -> dict[str, Any]:
    """The Node as it ought to be, from what is stored and what the host is now (pure).

    Raises:
        AddressError: nothing detected and nothing stored.
    """
    spec = dict(current["spec"])
    bgp = dict(spec.get("bgp") or {})
    for family, choice, name in ((4, settings.ip, "ipv4Address"), (6, settings.ip6, "ipv6Address")):
        address = _address(family, choice, bgp.get(name, ""), settings, host)
        bgp.pop(name, None)
        if address:
            bgp[name] = address
    if not bgp.get("ipv4Address") and not bgp.get("ipv6Address"):
        raise AddressError(
            "this node has no address that BGP could use",
            remedy="set IP or IP6 to an address or to 'autodetect', or CALICO_NETWORKING_BACKEND=none",
        )
    if settings.as_number is not None:
        bgp["asNumber"] = settings.as_number
    spec["bgp"] = bgp
    if settings.node_ref:
        spec["orchRefs"] = [{"nodeName": settings.node_ref, "orchestrator": "k8s"}]
    families: list[Family] = []
    if settings.ip not in ("", "none"):
        families.append(4)
    if settings.ip6 not in ("", "none"):
        families.append(6)
    interfaces = [
        {"name": name, **({"addresses": list(addresses)} if addresses else {})}
        for name, addresses in recorded_interfaces(host.interfaces, families)
    ]
    spec.pop("interfaces", None)
    if families and interfaces:
        spec["interfaces"] = interfaces
    return {**current, "spec": spec}


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


async def _refuse_conflicts(client: Client, settings: NodeSettings, wanted: dict[str, Any]) -> None:
    """Two nodes with one address would tear each other's sessions down. Raises AddressError."""
    if not settings.check_address_conflicts:
        return
    own = {_bare(a) for a in (wanted["spec"]["bgp"].get(k) for k in ("ipv4Address", "ipv6Address")) if a}
    for other in await client.list("Node"):
        if other.metadata.name == settings.name:
            continue
        bgp = to_document(other)["spec"].get("bgp") or {}
        for address in (bgp.get("ipv4Address"), bgp.get("ipv6Address")):
            if address and _bare(address) in own:
                raise AddressError(
                    f"address {_bare(address)} belongs to node {other.metadata.name!r} already",
                    remedy="give this node another address, or delete the other Node if it is gone for good",
                )


def _bare(address: str) -> str:
    return str(ipaddress.ip_interface(address).ip)


async def _clear_addresses(client: Client, settings: NodeSettings, stored: Resource) -> None:
    """A detected address that is no longer ours must not keep others from using it (calico/node does the same)."""
    document = to_document(stored)
    bgp = dict(document["spec"].get("bgp") or {})
    for choice, name in ((settings.ip, "ipv4Address"), (settings.ip6, "ipv6Address")):
        if choice == "autodetect":
            bgp.pop(name, None)
    spec = {**document["spec"], "bgp": bgp}
    if not bgp:
        del spec["bgp"]
    if spec != document["spec"]:
        await client.update(from_document({**document, "spec": spec}))


async def ensure_pools(client: Client, settings: NodeSettings, host: Host) -> None:
    """A default pool for each family that has no pool at all."""
    if settings.no_default_pools:
        return
    present = {6 if ":" in pool.spec.cidr else 4 for pool in await client.list("IPPool")}
    if 4 not in present and settings.pool4.cidr is not None:
        cidr = settings.pool4.cidr or default_pool(host.interfaces)
        await _create(client, _pool_document("default-ipv4-ippool", cidr, settings.pool4))
    if 6 not in present and settings.pool6.cidr is not None and host.ipv6 and settings.ipv6_support:
        cidr = settings.pool6.cidr or random_ula()
        await _create(client, _pool_document("default-ipv6-ippool", cidr, settings.pool6))


def random_ula() -> str:
    """A /48 of RFC 4193: fd, then 40 random bits."""
    return str(ipaddress.IPv6Network((bytes([0xFD]) + secrets.token_bytes(5) + bytes(10), 48)))


def _pool_document(name: str, cidr: str, pool: PoolSettings) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "cidr": cidr,
        "blockSize": pool.block_size,
        "ipipMode": pool.ipip_mode,
        "vxlanMode": pool.vxlan_mode,
        "natOutgoing": pool.nat_outgoing,
        "disableBGPExport": pool.disable_bgp_export,
    }
    if pool.node_selector:
        spec["nodeSelector"] = pool.node_selector
    return _document("IPPool", name, spec)


async def ensure_defaults(client: Client, settings: NodeSettings) -> None:
    """ClusterInformation, Felix's, BGP's and IPAM's default objects."""
    await client.ensure_initialised(cluster_type=settings.cluster_type)
    felix = await client.get("FelixConfiguration", "default")
    if felix is None:
        spec = {"reportingInterval": "0s", "logSeverityScreen": "Info"}
        await _create(client, _document("FelixConfiguration", "default", spec))
    else:
        document = to_document(felix)
        spec = {"reportingInterval": "0s", "logSeverityScreen": "Info", **document["spec"]}
        if spec != document["spec"]:
            await client.update(from_document({**document, "spec": spec}))
    own = f"node.{settings.name}"
    if await client.get("FelixConfiguration", own) is None:
        await _create(client, _document("FelixConfiguration", own, {"defaultEndpointToHostAction": "Return"}))
    if await client.get("BGPConfiguration", "default") is None:
        await _create(client, _document("BGPConfiguration", "default", {}))
    if await client.get("IPAMConfiguration", "default") is None:
        spec_ipam = {"strictAffinity": False, "autoAllocateBlocks": True, "kubeVirtVMAddressPersistence": "Enabled"}
        await _create(client, _document("IPAMConfiguration", "default", spec_ipam))


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


async def _create(client: Client, document: dict[str, Any]) -> None:
    """Create; another node that was quicker is as good."""
    try:
        await client.create(from_document(document))
    except AlreadyExistsError:
        logger.info("exists already", kind=document["kind"], name=document["metadata"]["name"])


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
