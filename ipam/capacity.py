"""How long the pools will last: blocks and addresses left, and who is the first to get no block. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from calipy.ipam import pools as poolmath
from calipy.ipam.assigning import block_limit
from calipy.ipam.snapshot import Snapshot

_COUNTED = 1 << 20
"""Blocks of a pool that are looked at one by one for reservations; of larger pools the free ones are computed."""


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """One node in one pool.

    Attributes:
        blocks: its blocks in the pool.
        free: addresses it can hand out from them without claiming another.
        left: blocks it may still claim: the pool's, up to its limit.
    """

    node: str
    blocks: int
    free: int
    left: int


@dataclass(frozen=True, slots=True)
class PoolCapacity:
    """One pool.

    Attributes:
        blocks: how many it is cut into.
        unclaimed: blocks nobody has made yet, wholly reserved ones left out.
        free: addresses that can still be handed out by anybody, in blocks and outside.
        nodes: nodes that the pool selects, the one that fails first in front.
        verdict: in words, what happens next.
    """

    name: str
    cidr: str
    blocks: int
    unclaimed: int
    free: int
    nodes: tuple[NodeCapacity, ...]
    verdict: str


def capacity(snapshot: Snapshot, *, max_blocks_per_host: int) -> list[PoolCapacity]:
    """Every pool, in order of name. O(pools × (blocks + nodes)).

    Args:
        snapshot: with nodes.
        max_blocks_per_host: the setting; 0 means the built-in cap.
    """
    limit = block_limit(max_blocks_per_host, 0)
    return [_of_pool(snapshot, pool, limit) for pool in snapshot.pools]


def _of_pool(snapshot: Snapshot, pool: poolmath.Pool, limit: int) -> PoolCapacity:
    mine = [block for block in snapshot.blocks.values() if poolmath.enclosing([pool], block.network) is not None]
    reserved_blocks = _reserved_blocks(snapshot, pool, {block.cidr for block in mine})
    unclaimed = max(0, pool.block_count - sum(_size_in_blocks(pool, block.network) for block in mine) - reserved_blocks)
    if pool.unusable:
        unclaimed = 0
    owned: dict[str, list[int]] = {}
    in_blocks = 0
    for block in mine:
        free = len(set(block.unallocated) - snapshot.reservations.ordinals(block.network))
        in_blocks += free
        owner = block.host()
        if owner is not None:
            owned.setdefault(owner, []).append(free)
    names = [node.metadata.name for node in snapshot.nodes if pool.selects_node(node.metadata.labels)]
    nodes = sorted(
        (
            NodeCapacity(name, len(have), sum(have), max(0, min(unclaimed, limit - len(have))))
            for name, have in ((name, owned.get(name, [])) for name in names)
        ),
        key=lambda node: (node.left, node.free, node.node),
    )
    outside = snapshot.reservations.count(pool.network) - sum(
        len(snapshot.reservations.ordinals(block.network)) for block in mine
    )
    free = in_blocks + max(0, pool.network.num_addresses - sum(block.size for block in mine) - outside)
    return PoolCapacity(
        pool.name,
        str(pool.network),
        pool.block_count,
        unclaimed,
        0 if pool.unusable else free,
        tuple(nodes),
        _verdict(pool, nodes, unclaimed, limit),
    )


def _size_in_blocks(pool: poolmath.Pool, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> int:
    """Blocks of another size, left by an earlier pool, keep several of this pool's from being made."""
    return max(1, 1 << max(0, pool.block_size - network.prefixlen))


def _reserved_blocks(snapshot: Snapshot, pool: poolmath.Pool, made: set[str]) -> int:
    if pool.block_count > _COUNTED or not snapshot.reservations.count(pool.network):
        return 0
    return sum(
        1
        for cidr in poolmath.candidates(pool, 0)
        if cidr not in made and snapshot.reservations.cover(ipaddress.ip_network(cidr))
    )


def _verdict(pool: poolmath.Pool, nodes: list[NodeCapacity], unclaimed: int, limit: int) -> str:
    if pool.unusable:
        return f"gives nothing new: it {pool.unusable}"
    if not nodes:
        return "selects no node"
    first = nodes[0]
    if first.left == 0 and first.free == 0:
        return f"node {first.node} gets no address any more ({'block limit' if unclaimed else 'no block left'})"
    if first.left == 0:
        why = f"it has its {limit} blocks" if unclaimed else "no block is left"
        return f"node {first.node} is the next to fail, after {first.free} more addresses: {why}"
    if unclaimed < len(nodes):
        return f"{unclaimed} blocks are left for {len(nodes)} nodes: not every node can get another"
    return f"every node can still get {min(node.left for node in nodes)} blocks, if no other takes them"
