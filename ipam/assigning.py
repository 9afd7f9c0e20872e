"""Handing out addresses: which block next, and one guarded write per block.

The order is Calico's: the owner's blocks, then a new block, then a block somebody else left empty, then (unless
affinity is strict) an address borrowed from somebody else's block. Where Calico writes affinity ``pending``, block,
affinity ``confirmed``, handle and block again, one transaction does it all, guarded with everything the decision was
taken from. If it does not get through, the decision is taken again from what is there now.

Source: libcalico-go/lib/ipam/ipam.go (autoAssign, AssignIP).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from calipy.datastore.ipam import CONFIRMED, AllocationAttribute, Block, BlockAffinity, network_of
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, IPAMConfigKey, Key, ResourceKey
from calipy.ipam import affinity, handle
from calipy.ipam import block as blocks
from calipy.ipam import pools as poolmath
from calipy.ipam.errors import (
    BlockLimitError,
    IPAMError,
    NoBlockError,
    UnknownNodeError,
)
from calipy.ipam.pools import Pool
from calipy.ipam.releasing import release_affinity
from calipy.ipam.request import FamilyAssignment, Request
from calipy.ipam.session import Attempts, Session
from calipy.net import Family

BUILT_IN_BLOCK_LIMIT = 20
"""Blocks per host and family where neither the settings nor the request say anything."""


@dataclass(frozen=True, slots=True)
class Own:
    """Use a block of ours, or make or adopt one."""

    cidr: str
    pool: Pool


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Take over an empty block of another owner."""

    cidr: str
    pool: Pool


@dataclass(frozen=True, slots=True)
class Borrow:
    """Take addresses from a block that is not ours."""

    cidr: str
    pool: Pool


Step: TypeAlias = Own | Reclaim | Borrow
Outcome: TypeAlias = Literal["done", "useless", "lost"]


async def assign_family(session: Session, request: Request, family: Family, result: FamilyAssignment) -> None:
    """Fill ``result`` with addresses of one family, as many as can be had.

    Raises:
        UnknownNodeError, NoPoolError, UnknownPoolError, WrongUseError, BadSelectorError: no pool can be chosen.
        BlockLimitError, NoBlockError: the host may not have another block; ``result`` holds what was got before.
        TooManyConflictsError: too many other writers.
    """
    attempts = Attempts(f"assigning IPv{family} addresses on {session.environment.owner}")
    useless: set[str] = set()
    tidied = False
    while result.missing > 0:
        try:
            await session.need_selection(family)
            chosen = select_pools(session, request, family)
            if not tidied:
                await _give_up_unselected(session, family, chosen)
                tidied = True
            step = await next_step(session, request, family, chosen, useless)
        except IPAMError:
            if not session.is_live:
                raise
            session.read_afresh()
            useless.clear()
            continue
        if step is None:
            if session.is_live:
                session.read_afresh()
                useless.clear()
                continue
            result.messages.append(_shortage(session, result, chosen))
            return
        outcome = await _take(session, request, step, result)
        if outcome == "useless":
            useless.add(step.cidr)
        elif outcome == "lost":
            await attempts.lost()


def select_pools(session: Session, request: Request, family: Family) -> list[Pool]:
    """The pools that may serve the request, in order. Pure but for what the session has read."""
    labels: Mapping[str, str] | None = None
    if session.environment.affinity_type == "host":
        labels = session.node_labels()
        if labels is None:
            raise UnknownNodeError(session.environment.owner)
    return poolmath.select(
        session.view.pools,
        node=session.environment.owner,
        family=family,
        use=request.use,
        node_labels=labels,
        namespace_labels=request.namespace_labels,
        namespace=request.namespace,
        requested=request.pools.get(family, ()),
    )


async def _give_up_unselected(session: Session, family: Family, chosen: Sequence[Pool]) -> None:
    """Release the owner's empty blocks in pools that select its node no more."""
    view = session.view
    labels = session.node_labels()
    if labels is None:
        return
    for cidr in view.affinities(family):
        network = network_of(cidr)
        if view.is_full(cidr) or poolmath.enclosing(chosen, network) is not None:
            continue
        pool = poolmath.enclosing(view.pools, network)
        if pool is None or pool.selects_node(labels):
            continue
        await session.need(BlockKey(cidr))
        block = view.block(cidr)
        if block is not None and not collected(session, block).empty:
            continue
        try:
            await release_affinity(session, session.environment.affinity_key(cidr), must_be_empty=True)
        except IPAMError:
            continue  # used again, or somebody else's by now: not ours to give up


async def next_step(
    session: Session, request: Request, family: Family, chosen: Sequence[Pool], useless: set[str]
) -> Step | None:
    """The block to turn to next, or None when there is none left."""
    for cidr in session.view.affinities(family):
        if cidr in useless or _known_to_be_full(session, cidr):
            continue
        pool = poolmath.enclosing(chosen, network_of(cidr))
        if pool is not None and not session.view.reservations.cover(network_of(cidr)):
            return Own(cidr, pool)
    names = [str(pool) for pool in chosen]
    limit = block_limit(session.config.max_blocks_per_host, request.max_blocks)
    owned = sum(1 for cidr in session.view.affinities(family) if poolmath.enclosing(chosen, network_of(cidr)))
    if owned >= limit:
        raise BlockLimitError(session.environment.owner, family, limit, owned, names)
    if not session.config.auto_allocate_blocks:
        raise NoBlockError(session.environment.owner, family, names)
    await session.need_blocks(family)
    starts = {pool: session.environment.start(session.environment.owner, pool) for pool in chosen if pool.block_count}
    for pool, start in starts.items():
        cidr_or_none = _unclaimed(session, pool, start, useless)
        if cidr_or_none is not None:
            return Own(cidr_or_none, pool)
    for pool, start in starts.items():
        for cidr, block in _existing(session, pool, start):
            if cidr not in useless and poolmath.reclaimable(
                block, session.environment.owner_text, age_seconds=_claim_age(session, block)
            ):
                return Reclaim(cidr, pool)
    if not session.config.strict_affinity:
        for pool, start in starts.items():
            for cidr, block in _existing(session, pool, start):
                if cidr not in useless and blocks.usable(
                    collected(session, block), session.view.reservations.ordinals(block.network)
                ):
                    return Borrow(cidr, pool)
    return None


def _known_to_be_full(session: Session, cidr: str) -> bool:
    """A block of ours, in order, without anything to get from it: not worth a look. O(1)."""
    if not session.view.is_full(cidr):
        return False
    block, claim = session.view.block(cidr), session.view.affinity(cidr)
    return (
        block is not None
        and block.affinity == session.environment.owner_text
        and claim is not None
        and claim.state == CONFIRMED
    )


def block_limit(configured: int, requested: int) -> int:
    """The smaller of the two caps, where 0 (or less) means unset; 20 if both are."""
    caps = [cap for cap in (configured, requested) if cap > 0]
    return min(caps) if caps else BUILT_IN_BLOCK_LIMIT


def _unclaimed(session: Session, pool: Pool, start: int, useless: set[str]) -> str | None:
    """The first block nobody has made yet, or that is ours (without the affinity that should go with it)."""
    existing = session.view.blocks(pool.family)
    for cidr in poolmath.candidates(pool, start):
        if cidr in useless:
            continue
        network = network_of(cidr)
        if cidr not in existing:
            if not session.view.reservations.cover(network):
                return cidr
            continue
        block = existing[cidr]
        if block is None or block.affinity != session.environment.owner_text:
            continue
        if blocks.usable(collected(session, block), session.view.reservations.ordinals(network)):
            return cidr
    return None


def _existing(session: Session, pool: Pool, start: int) -> list[tuple[str, Block]]:
    """The pool's blocks in the order of the search from ``start``. O(blocks log blocks), never O(pool)."""
    step = pool.network.max_prefixlen - pool.block_size
    found = []
    for cidr, block in session.view.blocks(pool.family).items():
        if block is None:
            continue
        network = block.network
        if network.prefixlen == pool.block_size and network.network_address in pool.network:
            index = int(network.network_address) - int(pool.network.network_address) >> step
            found.append(((index - start) % pool.block_count, cidr, block))
    return [(cidr, block) for _, cidr, block in sorted(found, key=lambda item: item[0])]


def _claim_age(session: Session, block: Block) -> float | None:
    if block.affinity_claim_time is None:
        return None
    try:
        claimed = datetime.datetime.fromisoformat(block.affinity_claim_time)
        return (session.environment.now() - claimed).total_seconds()
    except (ValueError, TypeError):
        return None


def _shortage(session: Session, result: FamilyAssignment, chosen: Sequence[Pool]) -> str:
    got = f"got {len(result.addresses)} of {result.requested} addresses"
    reserved = sorted({name for pool in chosen for name in session.view.reservations.names(pool.network)})
    where = ", ".join(str(pool) for pool in chosen)
    where += f" (some are reserved by {', '.join(reserved)})" if reserved else ""
    if session.config.strict_affinity:
        return f"{got}: no more free blocks in {where}, and strict affinity forbids to borrow from other hosts' blocks"
    return f"{got}: no more free addresses in {where}"


def collected(session: Session, block: Block) -> Block:
    """The block with what has cooled down back in its free list."""
    return blocks.collect(block, now=session.environment.now(), cooldown=session.cooldown)


def fence(session: Session, pool: Pool) -> list[Key]:
    """What a decision about a pool rests on besides the block: no address is assigned from settings gone by."""
    keys: list[Key] = [IPAMConfigKey(), ResourceKey("IPPool", pool.name)]
    if session.environment.affinity_type == "host":
        keys.append(ResourceKey("Node", session.environment.owner))
    return keys


async def _take(session: Session, request: Request, step: Step, result: FamilyAssignment) -> Outcome:
    """Take what a block yields, in one write."""
    block_key = BlockKey(step.cidr)
    needed: list[Key] = [block_key]
    if request.handle_id is not None:
        if session.is_live:
            session.assume_absent(HandleKey(request.handle_id))
        needed.append(HandleKey(request.handle_id))
    if isinstance(step, Own):
        needed.append(session.environment.affinity_key(step.cidr))
    await session.need(*needed)
    prepared = await prepare(session, step)
    if isinstance(prepared, str):
        return prepared
    base, changes = prepared
    owner = AllocationAttribute(handle_id=request.handle_id, secondary=dict(request.attributes) or None)
    reserved = session.view.reservations.ordinals(network_of(step.cidr))
    after, ordinals = blocks.assign(base, result.missing, owner, reserved=reserved)
    if not ordinals:
        return "useless"
    changes = {**changes, block_key: after, **raise_handle(session, request.handle_id, step.cidr, len(ordinals))}
    guards = [*fence(session, step.pool)]
    if isinstance(step, Own):
        guards.append(session.environment.affinity_key(step.cidr))
    if not await session.commit(changes, guards=guards, recognisable=request.unique):
        return "lost"
    result.addresses.extend(str(after.address(ordinal)) for ordinal in ordinals)
    result.blocks.extend(step.cidr for _ in ordinals)
    return "done"


async def prepare(session: Session, step: Step) -> tuple[Block, dict[Key, Any]] | Outcome:
    """The block to take from, and what else the same write has to change."""
    environment = session.environment
    known = session.known(BlockKey(step.cidr))
    block: Block | None = known.value
    if block is None and known.revision:
        return "useless"  # exists, but cannot be decoded
    if isinstance(step, Borrow):
        return (collected(session, block), {}) if block is not None else "useless"
    own = environment.affinity_key(step.cidr)
    if isinstance(step, Reclaim):
        if block is None or not poolmath.reclaimable(
            block, environment.owner_text, age_seconds=_claim_age(session, block)
        ):
            return "lost"
        theirs = owner_key(block)
        await session.need(theirs, own)
        removed: dict[Key, Any] = {theirs: None} if session.known(theirs).revision else {}
        return fresh(session, step.cidr), {**removed, own: BlockAffinity()}
    relation = affinity.relation_of(block, environment.owner_text)
    action = affinity.CLAIM[affinity.state_of(_state(session, own)), relation]
    if action == "create":
        return fresh(session, step.cidr), {own: BlockAffinity()}
    if action == "stale":
        return "useless" if await session.commit({own: None}, guards=[BlockKey(step.cidr)]) else "lost"
    if action == "conflict" or block is None:
        return "useless"
    if action == "adopt":
        return collected(session, blocks.rewrite(block)), {own: BlockAffinity()}
    return collected(session, block), {}


def _state(session: Session, key: BlockAffinityKey) -> BlockAffinity | None:
    known = session.known(key)
    if known.value is None and known.revision:
        return BlockAffinity(state="pending")  # cannot be decoded: as good as not confirmed
    value: BlockAffinity | None = known.value
    return value


def owner_key(block: Block) -> BlockAffinityKey:
    """The key of the claim that belongs to a block with an owner."""
    kind, _, name = (block.affinity or "").partition(":")
    return BlockAffinityKey(name, block.cidr, kind)


def fresh(session: Session, cidr: str) -> Block:
    environment = session.environment
    return blocks.new_block(
        cidr, environment.owner_text, now=environment.now(), sequence_number=environment.nanoseconds()
    )


def raise_handle(session: Session, handle_id: str | None, cidr: str, count: int) -> dict[Key, Any]:
    if handle_id is None:
        return {}
    key = HandleKey(handle_id)
    return {key: handle.increment(session.known(key).value, cidr, count)}
