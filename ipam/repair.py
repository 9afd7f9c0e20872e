"""Mending what a check found, by guarded steps that can be undone.

``plan`` is pure: it works on a copy of the snapshot and gives steps, each with the reason and the proof it rests on.
``apply`` looks once more before every step that frees an address whether anybody uses it now, writes under the guards
of everything the step was decided from, and notes what was there before. ``undo`` puts that back where nobody has
written since.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from calipy.clock import rfc3339
from calipy.datastore import codec
from calipy.datastore.ipam import (
    CONFIRMED,
    WINDOWS_RESERVED_HANDLE,
    Block,
    BlockAffinity,
    Handle,
)
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, Key, parse, path
from calipy.datastore.store import Compare, Delete, Get, Operation, Put, Store
from calipy.ipam import block as blocks
from calipy.ipam.audit import Audit, audit, users_of
from calipy.ipam.snapshot import USERS, Snapshot, read


@dataclass(frozen=True, slots=True)
class RepairStep:
    """One transaction.

    Attributes:
        text: what is done and why.
        proof: what shows that nobody loses anything.
        changes: key → new value, None to delete it.
        guards: keys that must not have changed since the plan, besides those changed.
        frees: addresses that must still be without a user when the step is done.
    """

    text: str
    proof: str
    changes: Mapping[Key, Any]
    guards: tuple[Key, ...] = ()
    frees: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What became of a plan.

    Attributes:
        done: texts of the steps that were carried out.
        skipped: texts of the others, and why: somebody changed something meanwhile.
        journal: what undoing takes, JSON.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)


def plan(snapshot: Snapshot, *, now: datetime.datetime, cooldown: datetime.timedelta) -> list[RepairStep]:
    """The steps that make a snapshot sound, in order. Pure; O(snapshot).

    Left alone: addresses used but not allocated (their pod has to be made again), addresses of Services (their users
    are not in the datastore), blocks outside all pools (they go with their last address), overlapping blocks and
    unreadable objects (a person has to decide).
    """
    found = audit(snapshot, now=now)
    steps = [step for block in snapshot.blocks.values() if (step := _of_block(block, found, now, cooldown)) is not None]
    mended = {**snapshot.blocks}
    for step in steps:
        for key, value in step.changes.items():
            if isinstance(key, BlockKey):
                if value is None:
                    mended.pop(key.cidr, None)
                else:
                    mended[key.cidr] = value
    steps += _of_handles(snapshot, mended)
    steps += _of_affinities(snapshot, mended)
    return steps


def _of_block(block: Block, found: Audit, now: datetime.datetime, cooldown: datetime.timedelta) -> RepairStep | None:
    """Release what leaked, and make the free list agree with the allocations."""
    here = [entry for entry in found.allocated if entry.block.cidr == block.cidr]
    leaked = {entry.ordinal: entry.address for entry in here if entry.leaked}
    broken = blocks.problems(block, now=now)
    if not leaked and not broken:
        return None
    sound = _rebuilt(block, leaked, now) if broken else block
    guards = {ordinal: blocks.Guard() for ordinal in leaked if sound.allocations[ordinal] is not None}
    released = blocks.release(blocks.collect(sound, now=now, cooldown=cooldown), guards, now=now, cooldown=cooldown)
    after = released.block if released.freed else blocks.rewrite(sound)
    done = [f"release {', '.join(leaked.values())}"] if leaked else []
    done += [f"mend: {problem}" for problem in broken]
    return RepairStep(
        f"block {block.cidr}: {'; '.join(done)}",
        f"no endpoint and no tunnel has any of {', '.join(leaked.values())}" if leaked else "no address changes hands",
        {BlockKey(block.cidr): after},
        frees=tuple(leaked.values()),
    )


def _rebuilt(block: Block, leaked: Mapping[int, str], now: datetime.datetime) -> Block:
    """The free list keeps its order as far as it makes sense; attributes and slots that say nothing are dropped."""
    count = len(block.attributes)
    allocations = tuple(
        None if index is not None and not 0 <= index < count and ordinal in leaked else index
        for ordinal, index in enumerate(block.allocations)
    )
    in_order = dict.fromkeys(o for o in block.unallocated if 0 <= o < block.size and allocations[o] is None)
    lost = [o for o, index in enumerate(allocations) if index is None and o not in in_order]
    attributes = tuple(
        replace(attribute, released_at=rfc3339(now)) if blocks.released_later(attribute, now) else attribute
        for attribute in block.attributes
    )
    rebuilt = replace(block, allocations=allocations, unallocated=(*in_order, *lost), attributes=attributes)
    return blocks.compact(rebuilt)


def _of_handles(snapshot: Snapshot, mended: Mapping[str, Block]) -> list[RepairStep]:
    """Every handle counts exactly what there is."""
    real: dict[str, dict[str, int]] = defaultdict(dict)
    for block in mended.values():
        for _, attribute in block.assignments():
            if attribute.handle_id is not None and attribute.handle_id != WINDOWS_RESERVED_HANDLE:
                counts = real[attribute.handle_id]
                counts[block.cidr] = counts.get(block.cidr, 0) + 1
    steps = []
    for handle_id in sorted({*snapshot.handles, *real}):
        stored = snapshot.handles.get(handle_id)
        counts = real.get(handle_id, {})
        if (stored.blocks if stored is not None else {}) == counts:
            continue
        value = replace(stored or Handle(), blocks=counts) if counts else None
        blocks_read = tuple(BlockKey(cidr) for cidr in sorted({*counts, *(stored.blocks if stored else {})}))
        what = f"count {counts}" if counts else "delete it: it has no address"
        steps.append(
            RepairStep(
                f"handle {handle_id}: {what} (it counts {stored.blocks if stored else 'nothing'})",
                "the blocks it names, and those that name it, are unchanged",
                {HandleKey(handle_id): value},
                guards=blocks_read,
            )
        )
    return steps


def _of_affinities(snapshot: Snapshot, mended: Mapping[str, Block]) -> list[RepairStep]:
    """A claim is confirmed exactly if the block says so; a block with an owner has its claim."""
    steps = []
    for key, value in snapshot.affinities.items():
        block = mended.get(key.cidr)
        owner = f"{key.affinity_type}:{key.host}"
        if block is not None and block.affinity == owner:
            if value.state != CONFIRMED:
                steps.append(
                    RepairStep(
                        f"confirm the claim of {owner} on {key.cidr} (it is {value.state})",
                        "the block belongs to it",
                        {key: replace(value, state=CONFIRMED), BlockKey(key.cidr): blocks.rewrite(block)},
                    )
                )
            continue
        whose = "does not exist" if block is None else f"belongs to {block.affinity or 'nobody'}"
        steps.append(
            RepairStep(
                f"delete the claim of {owner} on {key.cidr}",
                f"the block {whose}",
                {key: None},
                guards=(BlockKey(key.cidr),),
            )
        )
    for block in mended.values():
        kind, _, name = (block.affinity or "").partition(":")
        key = BlockAffinityKey(name, block.cidr, kind)
        if block.affinity is not None and key not in snapshot.affinities:
            steps.append(
                RepairStep(
                    f"make the claim of {block.affinity} on {block.cidr}",
                    "the block belongs to it",
                    {key: BlockAffinity()},
                    guards=(BlockKey(block.cidr),),
                )
            )
    return steps


async def apply(
    store: Store, snapshot: Snapshot, steps: list[RepairStep], *, note: Callable[[dict[str, Any]], None] | None = None
) -> Outcome:
    """Carry out a plan. A step that does not fit any more is skipped; run ``plan`` again for it.

    Args:
        store: the datastore.
        snapshot: what the plan was made from.
        steps: the plan.
        note: called with each entry of the journal *before* its step is written, so that a crash loses none.
    """
    outcome = Outcome()
    revisions: dict[Key, int] = dict(snapshot.revisions)
    for step in steps:
        used = await _users_of(store, step.frees)
        if used:
            outcome.skipped.append((step.text, f"used by now: {', '.join(used)}"))
            continue
        keys = list(dict.fromkeys((*step.changes, *step.guards)))
        before = (await store.txn([], [Get(path(key)) for key in keys])).reads
        compares = [Compare(path(key), revisions.get(key, 0)) for key in keys]
        encoded = {key: codec.encode(value) for key, value in step.changes.items() if value is not None}
        then: list[Operation] = [
            Put(path(key), encoded[key]) if key in encoded else Delete(path(key)) for key in step.changes
        ]
        entry = {
            "text": step.text,
            "before": {
                path(key): kv.value.decode() if kv is not None else None
                for key, kv in zip(keys, before, strict=True)
                if key in step.changes
            },
            "after": {path(key): encoded[key].decode() if key in encoded else None for key in step.changes},
        }
        if note is not None:
            note(entry)
        result = await store.txn(compares, then)
        if not result.succeeded:
            outcome.skipped.append((step.text, "changed by somebody else meanwhile"))
            continue
        for key, value in step.changes.items():
            revisions[key] = result.revision if value is not None else 0
        outcome.done.append(step.text)
        outcome.journal.append(entry)
    return outcome


async def undo(store: Store, journal: list[dict[str, Any]]) -> Outcome:
    """Take back the steps of a journal, the last first; those that somebody has written over since are skipped."""
    outcome = Outcome()
    for entry in reversed(journal):
        keys = list(entry["before"])
        present = dict(zip(keys, (await store.txn([], [Get(key) for key in keys])).reads, strict=True))
        if any((kv.value.decode() if kv is not None else None) != entry["after"][key] for key, kv in present.items()):
            outcome.skipped.append((entry["text"], "not as the step left it"))
            continue
        compares = [Compare(key, kv.mod_revision if kv is not None else 0) for key, kv in present.items()]
        then: list[Operation] = [
            Put(key, text.encode()) if text is not None else Delete(key) for key, text in entry["before"].items()
        ]
        if (await store.txn(compares, then)).succeeded:
            outcome.done.append(entry["text"])
        else:
            outcome.skipped.append((entry["text"], "changed by somebody else meanwhile"))
    return outcome


async def _users_of(store: Store, addresses: tuple[str, ...]) -> list[str]:
    """Who uses any of the addresses now. An object that cannot be read counts as a user: it may be one."""
    if not addresses:
        return []
    picture = await read(store, USERS)
    unreadable = [place for place in picture.undecodable if parse(place) is not None]
    users = users_of(picture)
    return [*unreadable, *(f"{a} by {', '.join(users[a])}" for a in addresses if a in users)]
