"""What happens inside a block. Pure: a block in, a block out.

Every function that stands for one write of the block raises ``sequence_number`` by one, also when several of them are
joined in one transaction, so that the numbers come out as if they had been written one by one.

Source: libcalico-go/lib/ipam/ipam_block.go.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from calipy.clock import rfc3339
from calipy.datastore.ipam import WINDOWS_RESERVED_HANDLE, AllocationAttribute, Block, block_size
from calipy.ipam.errors import AddressTakenError, ReleaseConflictError


@dataclass(frozen=True, slots=True)
class HostReserved:
    """Ordinals that a Windows host keeps for itself in each of its blocks: the first ``start`` and the last ``end``."""

    start: int = 3
    end: int = 1
    note: str = "windows host rsvd"


@dataclass(frozen=True, slots=True)
class Guard:
    """What must still hold of an address for its release; None = any.

    Attributes:
        handle_id: the handle that owns it.
        sequence_number: the block's number for this allocation (``Block.sequence_number_for_allocation``).
    """

    handle_id: str | None = None
    sequence_number: int | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """Outcome of a release.

    Attributes:
        block: the block afterwards; None when nothing is left that needs it and it should be deleted.
        handles: handle → how many of its addresses were released.
        freed: ordinals that were released, ascending.
        unallocated: ordinals asked for that nobody held.
    """

    block: Block | None
    handles: Mapping[str, int] = field(default_factory=dict)
    freed: tuple[int, ...] = ()
    unallocated: tuple[int, ...] = ()


def new_block(
    cidr: str, affinity: str, *, now: datetime.datetime, sequence_number: int, reserved: HostReserved | None = None
) -> Block:
    """A block nobody uses yet.

    Args:
        cidr: canonical text.
        affinity: ``host:<node>`` or ``virtual:<name>``.
        now: claim time.
        sequence_number: nanoseconds of the clock, so that a block deleted and made again never repeats a number.
        reserved: ordinals to hold back for the host.
    """
    size = block_size(cidr)
    block = Block(
        cidr=cidr,
        affinity=affinity,
        affinity_claim_time=rfc3339(now),
        allocations=(None,) * size,
        unallocated=tuple(range(size)),
        sequence_number=sequence_number,
        nulls=("attributes",),
    )
    if reserved is None:
        return block
    held = {*range(min(reserved.start, size)), *range(max(0, size - reserved.end), size)}
    return replace(
        block,
        allocations=tuple(0 if ordinal in held else None for ordinal in range(size)),
        unallocated=tuple(ordinal for ordinal in range(size) if ordinal not in held),
        attributes=(AllocationAttribute(handle_id=WINDOWS_RESERVED_HANDLE, secondary={"note": reserved.note}),),
        sequence_number_for_allocation=dict.fromkeys(sorted(held), sequence_number),
        nulls=(),
    )


def usable(block: Block, reserved: Container[int] = ()) -> int:
    """How many addresses can be handed out now, without the reserved ordinals."""
    return sum(1 for ordinal in block.unallocated if ordinal not in reserved)


def assign(
    block: Block, count: int, owner: AllocationAttribute, *, reserved: Container[int] = ()
) -> tuple[Block, tuple[int, ...]]:
    """Hand out up to ``count`` addresses, the longest free first.

    Args:
        block: as read, after ``collect``.
        count: how many are wanted.
        owner: handle and attributes.
        reserved: ordinals to pass over; they keep their place in the free list.

    Returns:
        The block and the ordinals handed out, fewer than asked for if the block has no more. Unchanged if none.
    """
    taken = [ordinal for ordinal in block.unallocated if ordinal not in reserved][:count]
    return (_allocate(block, taken, owner), tuple(taken)) if taken else (block, ())


def assign_ordinal(block: Block, ordinal: int, owner: AllocationAttribute) -> Block:
    """Hand out one given address, reserved or not. Raises ``AddressTakenError`` naming who holds it."""
    if block.allocations[ordinal] is not None:
        raise AddressTakenError(str(block.address(ordinal)), block.cidr, block.attribute(ordinal))
    return _allocate(block, (ordinal,), owner)


def _allocate(block: Block, ordinals: Iterable[int], owner: AllocationAttribute) -> Block:
    if not owner.secondary:
        owner = replace(owner, secondary=None)
    attributes = block.attributes
    if owner in attributes:
        index = attributes.index(owner)
    else:
        index = len(attributes)
        attributes = (*attributes, owner)
    allocations = list(block.allocations)
    sequence = dict(block.sequence_number_for_allocation)
    taken = set(ordinals)
    for ordinal in taken:
        allocations[ordinal] = index
        sequence[ordinal] = block.sequence_number
    return replace(
        block,
        allocations=tuple(allocations),
        unallocated=tuple(ordinal for ordinal in block.unallocated if ordinal not in taken),
        attributes=attributes,
        sequence_number=block.sequence_number + 1,
        sequence_number_for_allocation=sequence,
        nulls=(),
    )


def release(
    block: Block, guards: Mapping[int, Guard], *, now: datetime.datetime, cooldown: datetime.timedelta
) -> Released:
    """Take back addresses by ordinal, all or none.

    Args:
        block: as read, after ``collect``.
        guards: ordinal → what must hold of it. The sequence number comes first, as with Calico: whoever gives an old
            one decides on old data, even if the address is free by now. An address that is free or cools down is then
            "unallocated", whatever its handle.
        now: time of the release.
        cooldown: how long the addresses stay unused.

    Raises:
        ReleaseConflictError: a guard does not hold; nothing is released.
    """
    unallocated: list[int] = []
    freed: list[int] = []
    for ordinal, guard in guards.items():
        attribute = block.attribute(ordinal)
        sequence = block.sequence_number_for_allocation.get(ordinal, 0)
        if guard.sequence_number is not None and guard.sequence_number != sequence:
            raise ReleaseConflictError(str(block.address(ordinal)), "sequence number", guard.sequence_number, sequence)
        if attribute is None or attribute.cooling:
            unallocated.append(ordinal)
            continue
        if guard.handle_id is not None and guard.handle_id != attribute.handle_id:
            raise ReleaseConflictError(str(block.address(ordinal)), "handle", guard.handle_id, attribute.handle_id)
        freed.append(ordinal)
    sequence_numbers = {**block.sequence_number_for_allocation, **dict.fromkeys(freed, block.sequence_number)}
    return _release(block, sorted(freed), tuple(unallocated), sequence_numbers, now, cooldown)


def release_handle(block: Block, handle_id: str, *, now: datetime.datetime, cooldown: datetime.timedelta) -> Released:
    """Take back every address of a handle; nothing is freed if it has none here."""
    mine = {index for index, attribute in enumerate(block.attributes) if attribute.handle_id == handle_id}
    freed = [ordinal for ordinal, index in enumerate(block.allocations) if index in mine]
    return _release(block, freed, (), block.sequence_number_for_allocation, now, cooldown)


def _release(
    block: Block,
    freed: list[int],
    unallocated: tuple[int, ...],
    sequence_numbers: Mapping[int, int],
    now: datetime.datetime,
    cooldown: datetime.timedelta,
) -> Released:
    if not freed:
        return Released(block, unallocated=unallocated)
    owners = (block.attribute(ordinal) for ordinal in freed)
    handles = Counter(owner.handle_id for owner in owners if owner is not None and owner.handle_id is not None)
    allocations = list(block.allocations)
    for ordinal in freed:
        allocations[ordinal] = len(block.attributes)
    released = replace(
        block,
        allocations=tuple(allocations),
        attributes=(*block.attributes, AllocationAttribute(released_at=rfc3339(now))),
        sequence_number=block.sequence_number + 1,
        sequence_number_for_allocation=dict(sequence_numbers),
    )
    after = collect(released, now=now, cooldown=cooldown)
    return Released(
        after if after.affinity is not None or not after.empty else None, handles, tuple(freed), unallocated
    )


def collect(block: Block, *, now: datetime.datetime, cooldown: datetime.timedelta) -> Block:
    """Free the addresses that have cooled down, and drop attributes that nobody refers to.

    Done whenever a block is loaded; the result is stored with the next write, so the sequence number stays. Addresses
    go to the tail of the free list in ascending order. Times in the block have a resolution of one second. O(size).
    """
    cold = {
        index
        for index, attribute in enumerate(block.attributes)
        if attribute.released_at is not None and _age(attribute.released_at, now) >= cooldown
    }
    freed = [ordinal for ordinal, index in enumerate(block.allocations) if index in cold]
    if not freed and len({*block.allocations} - {None}) == len(block.attributes):
        return block
    gone = set(freed)
    return compact(
        replace(
            block,
            allocations=tuple(None if ordinal in gone else index for ordinal, index in enumerate(block.allocations)),
            unallocated=(*block.unallocated, *freed),
            sequence_number_for_allocation={
                ordinal: number
                for ordinal, number in block.sequence_number_for_allocation.items()
                if ordinal not in gone
            },
        )
    )


def compact(block: Block) -> Block:
    """The block without attributes that nobody refers to; the others move up.

    An index that points nowhere is left for ``check`` to find: dropping it could free an address in use.
    """
    used = set(block.allocations)
    kept = [index for index in range(len(block.attributes)) if index in used]
    moved: dict[int | None, int | None] = {old: new for new, old in enumerate(kept)}
    return replace(
        block,
        allocations=tuple(moved.get(index, index) for index in block.allocations),
        attributes=tuple(block.attributes[index] for index in kept),
    )


def released_later(attribute: AllocationAttribute, now: datetime.datetime) -> bool:
    """Whether a cooling address claims to be released in the future, or at a time nobody can read."""
    return attribute.released_at is not None and _age(attribute.released_at, now) < datetime.timedelta(0)


def _age(released_at: str, now: datetime.datetime) -> datetime.timedelta:
    try:
        moment = datetime.datetime.fromisoformat(released_at)
    except ValueError:
        return datetime.timedelta.min  # unreadable: cools for ever, and `check` reports it
    if moment.tzinfo is None:
        return datetime.timedelta.min
    return now - moment


def rewrite(block: Block) -> Block:
    """The block unchanged but for its number: a write that fences off whoever read it before."""
    return replace(block, sequence_number=block.sequence_number + 1)


def disown(block: Block) -> Block:
    """The block without an owner; its addresses stay."""
    return replace(
        block,
        affinity=None,
        legacy_host=None,
        affinity_claim_time=None,
        sequence_number=block.sequence_number + 1,
    )


def problems(block: Block, *, now: datetime.datetime) -> list[str]:
    """Every rule of ``ipam check`` that the block breaks, one sentence each; empty for a sound block."""
    found: list[str] = []
    for ordinal, index in enumerate(block.allocations):
        if index is not None and not 0 <= index < len(block.attributes):
            found.append(f"ordinal {ordinal} ({block.address(ordinal)}) points to attribute {index}: there is none")
    referenced = set(block.allocations)
    for index, attribute in enumerate(block.attributes):
        if index not in referenced:
            found.append(f"attribute {index} (handle {attribute.handle_id}) is used by no address")
        if released_later(attribute, now):
            found.append(f"attribute {index} was released at {attribute.released_at}, which lies in the future")
    for ordinal, times in sorted(Counter(block.unallocated).items()):
        if not 0 <= ordinal < block.size:
            found.append(f"free ordinal {ordinal} is outside the block")
        elif block.allocations[ordinal] is not None:
            found.append(f"ordinal {ordinal} ({block.address(ordinal)}) is both free and allocated")
        if times > 1:
            found.append(f"ordinal {ordinal} is in the free list {times} times")
    free = set(block.unallocated)
    for ordinal, index in enumerate(block.allocations):
        if index is None and ordinal not in free:
            found.append(f"ordinal {ordinal} ({block.address(ordinal)}) is neither free nor allocated")
    return found
