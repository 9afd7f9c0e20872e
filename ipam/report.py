"""How full pools and blocks are, and who borrows from whom. Pure.

Source: libcalico-go/lib/ipam (GetUtilization), calicoctl/commands/ipam/show.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from calipy.datastore.ipam import AllocationAttribute, Block
from calipy.ipam import pools as poolmath
from calipy.ipam.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class BlockUsage:
    """One block. Reserved addresses may be in use as well; ``available`` is the figure to trust.

    Attributes:
        total: its addresses.
        in_use: those that are not in the free list, cooling ones included.
        reserved: those that an IPReservation covers.
        available: those that can be handed out now.
        owner: as in ``Block.affinity``, None for nobody.
    """

    cidr: str
    total: int
    in_use: int
    reserved: int
    available: int
    owner: str | None = None


@dataclass(slots=True)
class PoolUsage:
    """One pool and its blocks; figures as in ``BlockUsage``, over the whole pool whether it has blocks there or not."""

    name: str
    cidr: str
    total: int
    in_use: int = 0
    reserved: int = 0
    available: int = 0
    blocks: list[BlockUsage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """All pools in order of name, and the blocks that lie in none of them."""

    pools: tuple[PoolUsage, ...]
    orphaned: PoolUsage


@dataclass(frozen=True, slots=True)
class Borrowed:
    """An address used by a node that does not own its block.

    Attributes:
        node: who uses it, as its attributes say.
        block: its block.
        owner: node that owns the block, "" for nobody.
        kind: ``pod``, or the type of a tunnel address.
        user: ``namespace/pod``, or the handle.
    """

    address: str
    node: str
    block: str
    owner: str
    kind: str
    user: str


def usage(snapshot: Snapshot) -> Usage:
    """How full everything is. O(blocks × pools)."""
    found = {
        pool.name: PoolUsage(
            pool.name,
            str(pool.network),
            pool.network.num_addresses,
            reserved=snapshot.reservations.count(pool.network),
        )
        for pool in snapshot.pools
    }
    orphaned = PoolUsage("", "", 0)
    busy_and_reserved: dict[str, int] = dict.fromkeys(found, 0)
    for block in snapshot.blocks.values():
        pool = poolmath.enclosing(snapshot.pools, block.network)
        reserved = snapshot.reservations.ordinals(block.network)
        free = set(block.unallocated)
        entry = BlockUsage(
            cidr=block.cidr,
            total=block.size,
            in_use=block.size - len(free),
            reserved=len(reserved),
            available=len(free - reserved),
            owner=block.affinity,
        )
        of = found[pool.name] if pool is not None else orphaned
        of.blocks.append(entry)
        of.in_use += entry.in_use
        if pool is None:
            of.total += entry.total
            of.reserved += entry.reserved
            of.available += entry.available
        else:
            busy_and_reserved[pool.name] += len(reserved - free)
    for name, pool_usage in found.items():
        unusable = pool_usage.in_use + pool_usage.reserved - busy_and_reserved[name]
        pool_usage.available = pool_usage.total - unusable
    return Usage(tuple(found.values()), orphaned)


def borrowed(snapshot: Snapshot) -> Iterator[Borrowed]:
    """Addresses whose attribute ``node`` differs from the owner of their block, in order of block and address."""
    for block in snapshot.blocks.values():
        for address, attribute in block.assignments():
            if attribute.node is not None and attribute.node != block.host():
                yield Borrowed(
                    str(address), attribute.node, block.cidr, block.host() or "", kind_of(attribute), user_of(attribute)
                )


def kind_of(attribute: AllocationAttribute) -> str:
    """``pod``, or the type its owner gave it (``ipipTunnelAddress``, …), or ``other``."""
    return "pod" if "pod" in attribute.attributes else attribute.attributes.get("type", "other")


def user_of(attribute: AllocationAttribute) -> str:
    """``namespace/pod``, or the handle."""
    attributes = attribute.attributes
    if "pod" in attributes:
        return f"{attributes['namespace']}/{attributes['pod']}" if "namespace" in attributes else attributes["pod"]
    return attribute.handle_id or ""


def holder(snapshot: Snapshot, address: str) -> tuple[Block, AllocationAttribute] | None:
    """The block and owner of an address; None if nobody holds it."""
    wanted = ipaddress.ip_address(address)
    for block in snapshot.blocks.values():
        if wanted in block.network:
            attribute = block.attribute(block.ordinal(wanted))
            if attribute is not None and not attribute.cooling:
                return block, attribute
    return None
