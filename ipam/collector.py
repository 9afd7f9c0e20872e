"""Finding addresses and blocks that nobody uses any more, with patience. The tracker is pure; ``collect`` acts.

An address leaks when a pod goes without its removal being heard: a node lost, a runtime reset, a process killed between
address and endpoint. It looks the same as the address of a pod that is just being set up, so nothing is released before
a grace period, nothing that was handed out anew meanwhile, and of one owner all addresses or none.

Source: kube-controllers/pkg/controllers/node/{ipam,ipam_allocation}.go; a workload endpoint stands for the pod.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from calipy.datastore.keys import BlockAffinityKey, HandleKey, parse, path
from calipy.datastore.store import Store
from calipy.errors import CalipyError, ConflictError, NotFoundError
from calipy.ipam import snapshot as pictures
from calipy.ipam.audit import Allocated, audit, users_of
from calipy.ipam.request import ReleaseRequest
from calipy.ipam.snapshot import Snapshot

if TYPE_CHECKING:
    from calipy.ipam.allocator import Allocator

GRACE = datetime.timedelta(minutes=15)
"""Calico's default ``leakGracePeriod``."""

MAX_RELEASES = 10_000
"""Addresses that one pass releases at most."""

TUNNELS = frozenset({
    "ipipTunnelAddress", "vxlanTunnelAddress", "vxlanV6TunnelAddress", "wireguardTunnelAddress",
    "wireguardV6TunnelAddress",
})  # fmt: skip

Verdict: TypeAlias = Literal["valid", "candidate", "leaked", "never"]
_Slot: TypeAlias = tuple[str, str, int | None]
"""Address, handle and sequence number: the same only as long as nobody else got the address."""


@dataclass(slots=True)
class Decision:
    """What a pass may do.

    Attributes:
        leaks: handle → its addresses, all of them, guarded with handle and sequence number.
        handles: handles that count addresses and have none, at the revision at which that was seen.
        blocks: empty blocks to give up.
        gone: nodes without a Node object and without addresses, whose blocks can go.
    """

    leaks: dict[str, list[ReleaseRequest]] = field(default_factory=dict)
    handles: list[tuple[str, int]] = field(default_factory=list)
    blocks: list[BlockAffinityKey] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


class LeakTracker:
    """Remembers what looked unused, and since when. Pure: pictures and times in, decisions out.

    Args:
        grace: how long something must look unused; 0 = only mark, never release.
        scope: only addresses and blocks of this node (and of nodes that are gone); None = of all.
    """

    def __init__(self, grace: datetime.timedelta = GRACE, *, scope: str | None = None) -> None:
        self._grace = grace
        self._scope = scope
        self._since: dict[_Slot, datetime.datetime] = {}
        self._empty: dict[str, datetime.datetime] = {}
        self._idle: dict[tuple[str, int], datetime.datetime] = {}

    @property
    def candidates(self) -> int:
        """Addresses that look leaked, and wait for the end of the grace period."""
        return len(self._since)

    def observe(self, picture: Snapshot, *, now: datetime.datetime) -> Decision:
        """Take in a whole picture and say what may be released now. O(allocated addresses + blocks).

        Nothing is released from a picture in which an endpoint or node could not be read: it may be the user.
        """
        decision = Decision()
        if any(_names_a_user(place) for place in picture.undecodable):
            return decision
        nodes = {node.metadata.name for node in picture.nodes}
        checked = audit(picture, now=now)
        found = checked.allocated
        verdicts = {id(entry): self._verdict(entry, nodes, now) for entry in found}
        self._settle_tunnels(found, verdicts, nodes)
        self._forget({_slot(entry) for entry in found if verdicts[id(entry)] == "candidate"})
        self._collect_leaks(found, verdicts, decision)
        self._collect_handles(picture, checked.leaked_handles, decision, now)
        self._collect_blocks(picture, nodes, decision, now)
        return decision

    def _verdict(self, entry: Allocated, nodes: set[str], now: datetime.datetime) -> Verdict:
        attribute = entry.attribute
        if attribute is None or entry.cooling or entry.reserved_for_host or attribute.handle_id is None:
            return "never"
        if entry.users:
            return "valid"
        if attribute.attributes.get("type") in TUNNELS:
            return "valid"  # judged by its node, see below
        if "pod" not in attribute.attributes or attribute.node is None:
            return "never"  # whose it is nobody can tell
        if attribute.node not in nodes:
            return "leaked"
        if self._scope is not None and attribute.node != self._scope:
            return "never"
        first = self._since.setdefault(_slot(entry), now)
        return "leaked" if self._grace and now - first >= self._grace else "candidate"

    def _settle_tunnels(self, found: list[Allocated], verdicts: dict[int, Verdict], nodes: set[str]) -> None:
        """The tunnel addresses of a node go when the node is gone, and nothing else of it is left in use."""
        alive = {
            entry.attribute.node
            for entry in found
            if entry.attribute is not None and verdicts[id(entry)] == "valid" and not _is_tunnel(entry)
        }
        for entry in found:
            if _is_tunnel(entry) and not entry.users and entry.attribute is not None:
                node = entry.attribute.node
                if node is not None and node not in nodes and node not in alive:
                    verdicts[id(entry)] = "leaked"

    def _forget(self, candidates: set[_Slot]) -> None:
        """Whatever is valid again, gone, or handed out anew begins from the start."""
        self._since = {slot: since for slot, since in self._since.items() if slot in candidates}

    def _collect_leaks(self, found: list[Allocated], verdicts: dict[int, Verdict], decision: Decision) -> None:
        by_handle: dict[str, list[Allocated]] = defaultdict(list)
        for entry in found:
            if entry.attribute is not None and entry.attribute.handle_id is not None:
                by_handle[entry.attribute.handle_id].append(entry)
        count = 0
        for handle_id, entries in sorted(by_handle.items()):
            if count >= MAX_RELEASES or any(verdicts[id(entry)] != "leaked" for entry in entries):
                continue
            count += len(entries)
            decision.leaks[handle_id] = [
                ReleaseRequest(entry.address, handle_id, entry.block.sequence_number_for_allocation.get(entry.ordinal))
                for entry in entries
            ]

    def _collect_handles(
        self, picture: Snapshot, leaked: Iterable[str], decision: Decision, now: datetime.datetime
    ) -> None:
        """A handle is raised before its block is written, so one without an address is a leak only if it stays so."""
        if picture.undecodable:
            return  # its address may be in what cannot be read
        slots = [(handle_id, picture.revisions[HandleKey(handle_id)]) for handle_id in leaked]
        self._idle = {slot: self._idle.get(slot, now) for slot in slots}
        decision.handles = [slot for slot in slots if self._grace and now - self._idle[slot] >= self._grace]

    def _collect_blocks(self, picture: Snapshot, nodes: set[str], decision: Decision, now: datetime.datetime) -> None:
        owned: dict[str, list[str]] = defaultdict(list)
        empty: dict[str, datetime.datetime] = {}
        busy: set[str] = set()
        for block in picture.blocks.values():
            host = block.host() if block.affinity is not None else None
            busy |= {attribute.node for _, attribute in block.assignments() if attribute.node is not None}
            if host is None:
                continue
            owned[host].append(block.cidr)
            if block.empty:
                empty[block.cidr] = self._empty.get(block.cidr, now)
            elif host not in nodes:
                busy.add(host)
        self._empty = empty
        for host, cidrs in sorted(owned.items()):
            if host not in nodes:
                if host not in busy:
                    decision.gone.append(host)
                continue
            if self._scope is not None and host != self._scope:
                continue
            spare = [c for c in cidrs if c in empty and self._grace and now - empty[c] >= self._grace]
            # The last block stays: the next pod would only claim it again.
            keep = 1 if len(spare) == len(cidrs) else 0
            decision.blocks += [BlockAffinityKey(host, cidr) for cidr in spare[keep:]]


def _slot(entry: Allocated) -> _Slot:
    handle_id = entry.attribute.handle_id if entry.attribute is not None else None
    return entry.address, handle_id or "", entry.block.sequence_number_for_allocation.get(entry.ordinal)


def _is_tunnel(entry: Allocated) -> bool:
    return entry.attribute is not None and entry.attribute.attributes.get("type") in TUNNELS


def _names_a_user(place: str) -> bool:
    return getattr(parse(place), "kind", "") in {"WorkloadEndpoint", "Node"}


@dataclass(slots=True)
class Collected:
    """What a pass did: what was released and given up, and what failed (and is tried again next time)."""

    released: list[str] = field(default_factory=list)
    handles: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


async def collect(
    store: Store, allocator: Allocator, tracker: LeakTracker, *, now: Callable[[], datetime.datetime]
) -> Collected:
    """One pass: look, decide, look again at the users, release; then free what has cooled down, and idle blocks.

    Run it no more often than every half grace period. Several nodes may run it at once: every release is guarded.
    """
    decision = tracker.observe(await pictures.read(store, pictures.EVERYTHING), now=now())
    done = Collected()
    if decision.leaks:
        used, sure = await _users(store)
        for requests in decision.leaks.values() if sure else ():
            if any(request.address in used for request in requests):
                continue
            try:
                result = await allocator.release_ips(requests)
                done.released += [r.address for r in requests if r.address not in result.unallocated]
            except CalipyError as error:
                done.failed.append(str(error))
    for handle_id, revision in decision.handles:
        try:
            await store.delete(path(HandleKey(handle_id)), revision=revision)
            done.handles.append(handle_id)
        except (ConflictError, NotFoundError):
            continue  # in use again, or deleted by another collector
        except CalipyError as error:
            done.failed.append(str(error))
    try:
        await allocator.free_cooled()
    except CalipyError as error:
        done.failed.append(str(error))
    for key in decision.blocks:
        await _try(done, key.cidr, allocator.release_affinity(key.cidr, host=key.host, must_be_empty=True))
    for host in decision.gone:
        await _try(done, host, allocator.release_host_affinities(host, must_be_empty=True))
    return done


async def _try(done: Collected, what: str, call: Awaitable[None]) -> None:
    try:
        await call
        done.blocks.append(what)
    except CalipyError as error:
        done.failed.append(f"{what}: {error}")


async def _users(store: Store) -> tuple[Iterable[str], bool]:
    """Addresses in use now, and whether every possible user could be read."""
    picture = await pictures.read(store, pictures.USERS)
    return users_of(picture), not any(_names_a_user(place) for place in picture.undecodable)
