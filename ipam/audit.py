"""Whether blocks, handles, affinities and the users of addresses fit together. Pure: a snapshot in, findings out.

Source: calicoctl/commands/ipam/check.go; what Calico does not look at is marked as a further finding.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from calipy.datastore.ipam import CONFIRMED, WINDOWS_RESERVED_HANDLE, AllocationAttribute, Block
from calipy.datastore.keys import BlockAffinityKey, HandleKey
from calipy.ipam import block as blocks
from calipy.ipam import pools as poolmath
from calipy.ipam.errors import describe
from calipy.ipam.snapshot import Snapshot

Kind: TypeAlias = Literal[
    "invalid block",
    "leaked address",
    "used but not allocated",
    "used outside all pools",
    "handle without address",
    "address without handle",
    "handle counts too little",
    "affinity and block disagree",
    "block without affinity",
    "unfinished affinity",
    "block outside all pools",
    "blocks overlap",
    "unreadable object",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: what it is.
        problem: counted as a problem by Calico's check; the others are further findings or harmless.
        text: what it is in words, with its evidence and what it leads to.
        address: the address concerned, or "".
        block: CIDR of the block concerned, or "".
        handle: id of the handle concerned, or "".
        node: name of the node concerned, or "".
    """

    kind: Kind
    text: str
    problem: bool = True
    address: str = ""
    block: str = ""
    handle: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Allocated:
    """One slot that is not free.

    Attributes:
        attribute: None if its index points nowhere.
        users: who uses the address, e.g. ``Workload(shop/gw--1-k8s-p1-eth0)``.
    """

    address: str
    block: Block
    ordinal: int
    attribute: AllocationAttribute | None
    users: tuple[str, ...]

    @property
    def reserved_for_host(self) -> bool:
        """Held back for a Windows host."""
        return self.attribute is not None and self.attribute.handle_id == WINDOWS_RESERVED_HANDLE

    @property
    def cooling(self) -> bool:
        """Released, not to be used again yet."""
        return self.attribute is not None and self.attribute.cooling

    @property
    def of_service(self) -> bool:
        """Held for a Service: its users are not in the datastore, so nobody can tell here that there are none."""
        virtual = (self.block.affinity or "").startswith("virtual:")
        return virtual or (self.attribute is not None and "service" in self.attribute.attributes)

    @property
    def leaked(self) -> bool:
        """May be released: known to be without a user."""
        return not self.users and not self.cooling and not self.reserved_for_host and not self.of_service


@dataclass(slots=True)
class Audit:
    """Outcome of a check.

    Attributes:
        summary: figures, by the names of the collection of conformance cases.
        findings: in order of kind and place.
        allocated: every slot that is not free.
        leaked_handles: ids of handles without an address.
        users: address → who uses it.
    """

    summary: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    allocated: list[Allocated] = field(default_factory=list)
    leaked_handles: list[str] = field(default_factory=list)
    users: dict[str, list[str]] = field(default_factory=dict)


def audit(snapshot: Snapshot, *, now: datetime.datetime) -> Audit:
    """Check everything. O(allocated addresses + handles + endpoints) × pools."""
    result = Audit(users=users_of(snapshot))
    result.allocated = list(_allocated(snapshot, result.users))
    by_address = {entry.address: entry for entry in result.allocated}
    held: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for entry in result.allocated:
        if entry.attribute is not None and entry.attribute.handle_id is not None and not entry.reserved_for_host:
            held[entry.attribute.handle_id][entry.block.cidr] += 1

    invalid = _invalid_blocks(snapshot, result, now)
    leaked = _leaked(result)
    unallocated, outside = _unallocated(snapshot, result, by_address)
    missing = _handles(snapshot, result, held)
    _further(snapshot, result)

    windows = sum(1 for entry in result.allocated if entry.reserved_for_host)
    kinds = [user.partition("(")[0] for names in result.users.values() for user in names]
    result.summary = {
        "blocks": len(snapshot.blocks),
        "allocated": len(result.allocated),
        "invalid_blocks": invalid,
        "pools": sum(pool.active for pool in snapshot.pools),
        "workload_addresses": kinds.count("Workload"),
        "tunnel_addresses": kinds.count("Node"),
        "used": len(result.users) + windows,
        "used_outside_pools": outside,
        "used_unallocated": unallocated,
        "allocated_unused": leaked,
        "handles_without_address": len(result.leaked_handles),
        "missing_handles": missing,
        "problems": invalid + leaked + unallocated + outside + len(result.leaked_handles),
    }
    return result


def users_of(snapshot: Snapshot) -> dict[str, list[str]]:
    """Address → who uses it: workload endpoints, and nodes for their tunnels."""
    users: dict[str, list[str]] = defaultdict(list)
    for endpoint in snapshot.endpoints:
        for network in endpoint.spec.ip_networks:
            address = _address(network)
            if address:
                users[address].append(f"Workload({endpoint.metadata.namespace}/{endpoint.metadata.name})")
    for node in snapshot.nodes:
        for text in tunnel_addresses(node):
            address = _address(text)
            if address:
                users[address].append(f"Node({node.metadata.name})")
    return users


def tunnel_addresses(node: Any) -> Iterator[str]:
    """Every tunnel address of a Node, IPv6 as well."""
    spec = node.spec
    found = [spec.ipv4_vxlan_tunnel_addr, spec.ipv6_vxlan_tunnel_addr]
    if spec.bgp is not None:
        found.append(spec.bgp.ipv4_ipip_tunnel_addr)
    if spec.wireguard is not None:
        found += [spec.wireguard.interface_ipv4_address, spec.wireguard.interface_ipv6_address]
    return (text for text in found if text)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_interface(text).ip)
    except ValueError:
        return ""


def _allocated(snapshot: Snapshot, users: dict[str, list[str]]) -> Iterator[Allocated]:
    for block in snapshot.blocks.values():
        for ordinal, index in enumerate(block.allocations):
            if index is not None:
                address = str(block.address(ordinal))
                yield Allocated(address, block, ordinal, block.attribute(ordinal), tuple(users.get(address, ())))


def _invalid_blocks(snapshot: Snapshot, result: Audit, now: datetime.datetime) -> int:
    invalid = 0
    for block in snapshot.blocks.values():
        problems = blocks.problems(block, now=now)
        invalid += bool(problems)
        result.findings += [
            Finding("invalid block", f"block {block.cidr}: {problem}", block=block.cidr, node=block.host() or "")
            for problem in problems
        ]
    return invalid


def _leaked(result: Audit) -> int:
    leaked = [e for e in result.allocated if not e.users and not e.cooling and not e.reserved_for_host]
    for entry in leaked:
        result.findings.append(
            Finding(
                "leaked address",
                f"{entry.address} (block {entry.block.cidr}, ordinal {entry.ordinal}) is allocated to "
                f"{describe(entry.attribute)}, but no endpoint and no tunnel uses it",
                address=entry.address,
                block=entry.block.cidr,
                handle=(entry.attribute.handle_id if entry.attribute else None) or "",
                node=(entry.attribute.node if entry.attribute else None) or entry.block.host() or "",
            )
        )
    return len(leaked)


def _unallocated(snapshot: Snapshot, result: Audit, allocated: dict[str, Allocated]) -> tuple[int, int]:
    inside = outside = 0
    active = [pool for pool in snapshot.pools if pool.active]
    for address, names in result.users.items():
        known = allocated.get(address)
        if known is not None and not known.cooling:
            continue
        if poolmath.enclosing(active, ipaddress.ip_address(address)) is None:
            outside += 1
            result.findings.append(
                Finding(
                    "used outside all pools",
                    f"{address} is used by {', '.join(names)}, but not allocated, and lies in no pool that is not "
                    "disabled: nobody keeps others from using it",
                    address=address,
                )
            )
        else:
            inside += 1
            result.findings.append(
                Finding(
                    "used but not allocated",
                    f"{address} is used by {', '.join(names)}, but not allocated: it can be given to another pod",
                    address=address,
                )
            )
    return inside, outside


def _handles(snapshot: Snapshot, result: Audit, held: dict[str, dict[str, int]]) -> int:
    for handle_id in sorted(snapshot.handles):
        handle = snapshot.handles[handle_id]
        if handle_id not in held:
            result.leaked_handles.append(handle_id)
            result.findings.append(
                Finding(
                    "handle without address",
                    f"handle {handle_id} counts {sum(handle.blocks.values())} addresses in "
                    f"{', '.join(handle.blocks) or 'no block'}, but has none: its owner is gone, or died on the way",
                    handle=handle_id,
                )
            )
    missing = 0
    for handle_id, counts in sorted(held.items()):
        found = snapshot.handles.get(handle_id)
        if found is None:
            missing += 1
            result.findings.append(
                Finding(
                    "address without handle",
                    f"handle {handle_id} does not exist, but {sum(counts.values())} addresses in "
                    f"{', '.join(counts)} belong to it: a release by handle would miss them",
                    problem=False,
                    handle=handle_id,
                )
            )
            continue
        for cidr, count in counts.items():
            if found.blocks.get(cidr, 0) < count:
                result.findings.append(
                    Finding(
                        "handle counts too little",
                        f"handle {handle_id} counts {found.blocks.get(cidr, 0)} addresses in {cidr}, but has {count}",
                        problem=False,
                        block=cidr,
                        handle=handle_id,
                    )
                )
    return missing


def _further(snapshot: Snapshot, result: Audit) -> None:
    """What Calico's check does not look at."""

    def found(kind: Kind, text: str, cidr: str = "", node: str = "") -> None:
        result.findings.append(Finding(kind, text, problem=False, block=cidr, node=node))

    for key, affinity in snapshot.affinities.items():
        block = snapshot.blocks.get(key.cidr)
        owner = f"{key.affinity_type}:{key.host}"
        if affinity.state != CONFIRMED:
            found(
                "unfinished affinity",
                f"the claim of {owner} on {key.cidr} is {affinity.state}: its host did not finish; not advertised",
                key.cidr,
                key.host,
            )
        elif block is None:
            found(
                "affinity and block disagree",
                f"{owner} has a confirmed claim on {key.cidr}, but the block does not exist",
                key.cidr,
                key.host,
            )
        elif block.affinity != owner:
            found(
                "affinity and block disagree",
                f"{owner} has a confirmed claim on {key.cidr}, but the block belongs to {block.affinity or 'nobody'}",
                key.cidr,
                key.host,
            )
    networks = sorted(
        (block.network for block in snapshot.blocks.values()),
        key=lambda n: (n.version, int(n.network_address), n.prefixlen),
    )
    for block in snapshot.blocks.values():
        kind, _, name = (block.affinity or "").partition(":")
        if block.affinity is not None and BlockAffinityKey(name, block.cidr, kind) not in snapshot.affinities:
            found(
                "block without affinity",
                f"block {block.cidr} belongs to {block.affinity}, who has no claim on it",
                block.cidr,
                name,
            )
        if poolmath.enclosing(snapshot.pools, block.network) is None:
            found(
                "block outside all pools",
                f"block {block.cidr} lies in no pool: its addresses stay with their pods, but get no successor",
                block.cidr,
            )
    for before, after in itertools.pairwise(networks):
        if before.version == after.version and before.overlaps(after):
            found("blocks overlap", f"blocks {before} and {after} overlap: two pods can get one address", str(after))
    for place, error in snapshot.undecodable.items():
        found("unreadable object", f"{place}: {error}")


def report(snapshot: Snapshot, result: Audit) -> dict[str, Any]:
    """The machine-readable report, in the form of ``calicoctl ipam check -o``."""
    spec = snapshot.cluster.spec if snapshot.cluster is not None else None
    allocations: dict[str, list[dict[str, Any]]] = {}
    for entry in result.allocated:
        allocations.setdefault(entry.address, []).append(_report_entry(entry))
    document: dict[str, Any] = {
        "clusterGUID": spec.cluster_guid if spec is not None else "",
        "datastoreLocked": spec is not None and spec.datastore_ready is False,
        "clusterInformationRevision": str(snapshot.cluster.revision) if snapshot.cluster is not None else "",
        "clusterType": spec.cluster_type if spec is not None else "",
        "allocations": allocations,
    }
    if result.leaked_handles:
        document["leakedHandles"] = [
            {"ID": handle_id, "UID": None, "Revision": str(snapshot.revisions[HandleKey(handle_id)])}
            for handle_id in result.leaked_handles
        ]
    return document


def _report_entry(entry: Allocated) -> dict[str, Any]:
    attribute = entry.attribute or AllocationAttribute()
    sequence = entry.block.sequence_number_for_allocation.get(entry.ordinal)
    found: dict[str, Any] = {"ip": entry.address}
    if attribute.handle_id is not None and not entry.reserved_for_host:
        found["handle"] = attribute.handle_id
    if sequence is not None:
        found["sequenceNumber"] = sequence
    found |= {name: attribute.attributes[name] for name in ("pod", "namespace", "type") if name in attribute.attributes}
    found["node"] = attribute.node or entry.block.host() or ""
    found["inUse"] = bool(entry.users)
    if entry.cooling:
        found["coolingDown"] = True
    found["owners"] = list(entry.users) or None
    return found
