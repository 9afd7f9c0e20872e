"""Adj-RIB-In of every peer and the Loc-RIB. Pure: time is an argument, changes are taken out, nothing is sent.

Also the helper's side of graceful restart (RFC 4724 4.2): the speaker only reports sessions going down and up, so
keeping a restarting peer's paths, and letting go of them in time, is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from calipy.bgp.decision import Best, decide
from calipy.bgp.path import Attributes, Path, Peer, intern
from calipy.net import Family, IPAddress, Prefix

MAX_PREFIXES: Final = 50_000
"""Default limit of paths per peer; beyond it a peer's new paths are not taken up."""
EOR_WAIT: Final = 120.0
"""Seconds after a session is back at which stale paths go, even if the peer never sends End-of-RIB."""

PathKey: TypeAlias = tuple[Prefix, str]
ImportPolicy: TypeAlias = Callable[[Peer, Prefix, Attributes], tuple[str, Attributes]]
"""Why a path is refused, in words for people, or "" to take it; and its attributes after filters."""


@dataclass(frozen=True, slots=True)
class Change:
    """The best path (or multipath set) of a prefix changed; None means none."""

    prefix: Prefix
    old: Best | None
    new: Best | None


@dataclass(slots=True)
class _Table:
    """What one peer told us, as keys into the candidates."""

    peer: Peer
    up: bool = False
    limit: int = MAX_PREFIXES
    keys: set[PathKey] = field(default_factory=set)
    stale: set[PathKey] = field(default_factory=set)
    stale_until: float | None = None
    refreshing: bool = False
    over_limit: set[PathKey] = field(default_factory=set)
    end_of_rib: set[Family] = field(default_factory=set)


class Rib:
    """All paths, and the best of them for each prefix.

    Args:
        import_policy: asked once for each path received; ``set_policy`` changes it.
    """

    def __init__(self, import_policy: ImportPolicy) -> None:
        self._import_policy = import_policy
        self._tables: dict[IPAddress, _Table] = {}
        self._candidates: dict[Prefix, dict[tuple[IPAddress, str], Path]] = {}
        self._best: dict[Prefix, Best] = {}
        self._dirty: set[Prefix] = set()
        self._metrics: dict[IPAddress, int | None] = {}
        self._next_hops: dict[IPAddress, int] = {}

    # Sessions

    def peer_up(
        self,
        peer: Peer,
        now: float,
        *,
        preserved: Iterable[Family] = (4, 6),
        wait: float = EOR_WAIT,
        limit: int = MAX_PREFIXES,
    ) -> None:
        """A session is established. Stale paths stay until its End-of-RIB, at most ``wait`` seconds.

        Args:
            peer: the far end, as its OPEN describes it.
            now: monotonic seconds.
            wait: seconds to wait for End-of-RIB.
            preserved: families for which the peer says that it kept forwarding (the F bit); stale paths of
                others go at once.
            limit: most paths taken from this peer.
        """
        table = self._tables.setdefault(peer.address, _Table(peer))
        if table.peer != peer:
            # Another router ID or AS is another router: what the old one said is not refreshed by this session.
            self._drop(table, table.keys)
        table.peer, table.up, table.limit = peer, True, limit
        table.over_limit.clear()
        table.end_of_rib.clear()
        table.refreshing = False
        kept = set(preserved)
        self._drop(table, {key for key in table.stale if key[0].version not in kept})
        table.stale_until = now + wait if table.stale else None

    def peer_down(self, address: IPAddress, now: float, *, retain: float = 0.0) -> None:
        """A session is lost. Its paths go, or stay as stale for ``retain`` seconds (the peer's restart time)."""
        table = self._tables.get(address)
        if table is None or not (table.up or table.keys):
            return
        if not table.up and retain:
            return  # a failed attempt to come back changes nothing; the timer runs on
        table.up = False
        table.over_limit.clear()
        table.end_of_rib.clear()
        if retain <= 0:
            self._drop(table, table.keys)
            return
        # Lost again before the last restart was over: what is still stale has had its time (RFC 4724 4.2). Not so what
        # was only asked for again.
        if not table.refreshing:
            self._drop(table, table.stale)
        table.refreshing = False
        self._mark_stale(table)
        table.stale_until = now + retain if table.stale else None

    def begin_refresh(self, address: IPAddress, now: float, *, wait: float = EOR_WAIT) -> None:
        """Everything from this peer is about to be told again: what is not, goes at ``end_of_rib``, or with time."""
        if (table := self._tables.get(address)) is not None:
            self._mark_stale(table)
            table.refreshing = True
            table.over_limit.clear()
            table.stale_until = now + wait if table.stale else None

    def end_of_rib(self, address: IPAddress, family: Family) -> None:
        """The peer has told all it has of a family: stale paths of that family go."""
        if (table := self._tables.get(address)) is None:
            return
        table.end_of_rib.add(family)
        table.refreshing = False
        self._drop(table, {key for key in table.stale if key[0].version == family})
        if not table.stale:
            table.stale_until = None

    def remove_peer(self, address: IPAddress) -> None:
        """The session is no longer wanted: forget the peer and its paths."""
        if (table := self._tables.get(address)) is not None:
            self._drop(table, table.keys)
            del self._tables[address]

    def expire(self, now: float) -> None:
        """Let go of stale paths whose time is over."""
        for table in self._tables.values():
            if table.stale_until is not None and table.stale_until <= now:
                self._drop(table, table.stale)
                table.stale_until = None

    def prolong(self, until: float) -> None:
        """Nobody can tell anything now: stale paths stay until then at least. O(peers)."""
        for table in self._tables.values():
            if table.stale_until is not None:
                table.stale_until = max(table.stale_until, until)

    def next_deadline(self) -> float | None:
        """When ``expire`` will next have something to do."""
        return min(
            (table.stale_until for table in self._tables.values() if table.stale_until is not None), default=None
        )

    # Routes

    def announce(self, address: IPAddress, prefix: Prefix, attributes: Attributes, path_id: str = "") -> bool:
        """A path from an established peer; replaces the peer's earlier path of that prefix and ID. O(1).

        Returns:
            False if the path was not taken because the peer is unknown or at its limit.
        """
        table = self._tables.get(address)
        if table is None:
            return False
        key = (prefix, path_id)
        # What is stale after a restart may never be told again; what is only being read again will be.
        counted = len(table.keys) - (0 if table.refreshing else len(table.stale))
        if (key not in table.keys or (key in table.stale and not table.refreshing)) and counted >= table.limit:
            table.over_limit.add(key)
            return False
        table.over_limit.discard(key)
        table.keys.add(key)
        table.stale.discard(key)
        self._put(self._judged(Path(prefix, table.peer, intern(attributes), path_id)))
        return True

    def withdraw(self, address: IPAddress, prefix: Prefix, path_id: str = "") -> None:
        """The peer takes a path back; one it never told of is no error. O(1)."""
        if (table := self._tables.get(address)) is not None:
            table.over_limit.discard((prefix, path_id))
            self._drop(table, {(prefix, path_id)} & table.keys)

    def set_policy(self, import_policy: ImportPolicy) -> None:
        """Judge every path again, by another import policy. O(paths)."""
        self._import_policy = import_policy
        for candidates in list(self._candidates.values()):
            for path in list(candidates.values()):
                self._put(self._judged(path))

    def judge_again(self, import_policy: ImportPolicy, prefixes: Iterable[Prefix]) -> None:
        """Another import policy, which judges no other prefixes than these differently. O(their paths)."""
        self._import_policy = import_policy
        for prefix in prefixes:
            for path in list(self._candidates.get(prefix, {}).values()):
                self._put(self._judged(path))

    # Next hops

    def next_hops(self) -> set[IPAddress]:
        """Every next hop that some path uses: what the owner must resolve."""
        return set(self._next_hops)

    def set_metrics(self, metrics: Mapping[IPAddress, int | None]) -> None:
        """Tell what next hops cost to reach; None = unreachable. Unknown ones count as unreachable.

        O(changed prefixes), and O(all prefixes) only if a next hop known before has changed.
        """
        moved = {hop for hop in self._metrics if self._metrics[hop] != metrics.get(hop, self._metrics[hop])}
        known = {**self._metrics, **metrics}
        self._metrics = {hop: metric for hop, metric in known.items() if hop in self._next_hops}
        if moved:
            for prefix, candidates in self._candidates.items():
                if any(path.attributes.next_hop in moved for path in candidates.values()):
                    self._dirty.add(prefix)

    # Results

    def take_changes(self) -> list[Change]:
        """Decide every prefix touched since the last call; those whose result differs, in no order.

        O(touched prefixes x their paths). Prefixes with a next hop that ``set_metrics`` never told of stay
        touched.
        """
        changes: list[Change] = []
        undecided: set[Prefix] = set()
        for prefix in self._dirty:
            old = self._best.get(prefix)
            paths = self._candidates.get(prefix, {}).values()
            if any(path.attributes.next_hop not in self._metrics for path in paths):
                undecided.add(prefix)
            new = decide(paths, self._metrics.get)
            if new is None:
                self._best.pop(prefix, None)
            else:
                self._best[prefix] = new
            if (old and (old.path, old.multipath)) != (new and (new.path, new.multipath)):
                changes.append(Change(prefix, old, new))
        self._dirty = undecided
        return changes

    def best(self, prefix: Prefix) -> Best | None:
        """The Loc-RIB entry of a prefix, as of the last ``take_changes``."""
        return self._best.get(prefix)

    def loc_rib(self) -> Mapping[Prefix, Best]:
        """The whole Loc-RIB, live; do not keep or change it."""
        return self._best

    def prefixes(self) -> set[Prefix]:
        """Every prefix that some peer has told of."""
        return set(self._candidates)

    def paths(self, prefix: Prefix) -> list[Path]:
        """Every path to a prefix, refused ones too, by peer address."""
        found = self._candidates.get(prefix, {}).values()
        return sorted(found, key=lambda path: (path.peer.address.version, int(path.peer.address), path.path_id))

    def adj_rib_in(self, address: IPAddress) -> Iterator[Path]:
        """Every path of one peer."""
        if (table := self._tables.get(address)) is not None:
            for prefix, path_id in table.keys:
                yield self._candidates[prefix][address, path_id]

    def counts(self, address: IPAddress) -> tuple[int, int, int]:
        """Paths, stale paths, and paths refused by the limit, of one peer."""
        table = self._tables.get(address)
        return (len(table.keys), len(table.stale), len(table.over_limit)) if table else (0, 0, 0)

    def with_room(self) -> set[IPAddress]:
        """Established peers of which paths were refused at their limit, and could be taken by now. O(peers)."""
        return {
            address
            for address, table in self._tables.items()
            if table.up and table.over_limit and not table.refreshing and len(table.keys) < table.limit
        }

    def flooding(self) -> set[IPAddress]:
        """Peers that tell more than twice what they may. O(peers)."""
        return {address for address, table in self._tables.items() if len(table.over_limit) > table.limit}

    def has_end_of_rib(self, address: IPAddress, family: Family) -> bool:
        """Whether the peer's present session has sent End-of-RIB of a family."""
        table = self._tables.get(address)
        return table is not None and family in table.end_of_rib

    def size(self) -> tuple[int, int]:
        """Number of paths, and of prefixes with a best path."""
        return sum(len(table.keys) for table in self._tables.values()), len(self._best)

    # The one place that changes the candidates

    def _judged(self, path: Path) -> Path:
        received = path.received or path.attributes
        rejected, attributes = self._import_policy(path.peer, path.prefix, received)
        apart = None if attributes == received else received
        return replace(path, attributes=attributes, received=apart, rejected=rejected)

    def _put(self, path: Path) -> None:
        candidates = self._candidates.setdefault(path.prefix, {})
        key = (path.peer.address, path.path_id)
        old = candidates.get(key)
        if old == path:
            return
        candidates[key] = path
        if old is not None:
            self._release(old)
        hop = path.attributes.next_hop
        self._next_hops[hop] = self._next_hops.get(hop, 0) + 1
        self._dirty.add(path.prefix)

    def _drop(self, table: _Table, keys: set[PathKey]) -> None:
        address = table.peer.address
        for key in list(keys):
            prefix, path_id = key
            candidates = self._candidates[prefix]
            self._release(candidates.pop((address, path_id)))
            if not candidates:
                del self._candidates[prefix]
            self._dirty.add(prefix)
            table.keys.discard(key)
            table.stale.discard(key)

    def _release(self, path: Path) -> None:
        hop = path.attributes.next_hop
        self._next_hops[hop] -= 1
        if not self._next_hops[hop]:
            del self._next_hops[hop]

    def _mark_stale(self, table: _Table) -> None:
        for prefix, path_id in table.keys - table.stale:
            self._put(replace(self._candidates[prefix][table.peer.address, path_id], stale=True))
        table.stale = set(table.keys)
