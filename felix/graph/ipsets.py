"""Members of every ip set that an active rule refers to, over all endpoints and network sets of the cluster.

Members are counted, since two endpoints can share an address; sets are counted, since many rules share a selector.
Both counts may touch zero and come back between two flushes without a trace. A label change costs the watches filed
under the item's labels; a new set costs the items that meet the rarest restriction of its selector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from calipy.datastore.keys import ResourceKey
from calipy.felix.graph.endpoints import Labelled, Member
from calipy.felix.graph.labels import LabelIndex
from calipy.felix.graph.statistics import IndexStatistics
from calipy.felix.messages import Changes, IPSet, IPSetDelta, SetType
from calipy.policy.selector import Selector


@dataclass(frozen=True, slots=True)
class SetSpec:
    """Which set a rule needs.

    Attributes:
        selector: of its members; None for sets that nothing can be in (services, which etcd does not have).
        protocol, port: of ``ip,port`` sets: the named port; protocol "" takes whichever the endpoint gave it.
    """

    id: str
    type: SetType
    selector: Selector | None
    protocol: str = ""
    port: str = ""

    def members(self, member: Member) -> Iterable[str]:
        """What ``member`` contributes to the set when the selector matches."""
        if self.type == "net":
            return member.nets
        return self._ports(member)

    def _ports(self, member: Member) -> Iterator[str]:
        for named in member.ports:
            if named.name == self.port and self.protocol in {"", named.protocol}:
                for address in member.nets:
                    yield f"{address},{named.protocol}:{named.port}"


class _Set:
    """One set: members with counts, and what changed since it was last sent."""

    __slots__ = ("added", "counts", "references", "removed", "sent", "spec")

    def __init__(self, spec: SetSpec) -> None:
        self.spec = spec
        self.references = 0
        self.sent = False
        self.counts: dict[str, int] = {}
        self.added: set[str] = set()
        self.removed: set[str] = set()

    def add(self, member: str) -> None:
        """Count a contribution."""
        count = self.counts.get(member, 0)
        self.counts[member] = count + 1
        if self.sent and not count:
            if member in self.removed:
                self.removed.remove(member)
            else:
                self.added.add(member)

    def drop(self, member: str) -> None:
        """Take a contribution back."""
        count = self.counts[member]
        if count > 1:
            self.counts[member] = count - 1
            return
        del self.counts[member]
        if self.sent:
            if member in self.added:
                self.added.remove(member)
            else:
                self.removed.add(member)


class IPSets:
    """The sets that are needed, and everything that can be in them."""

    def __init__(self) -> None:
        self._index: LabelIndex[Member, _Set] = LabelIndex(self._started, self._stopped, self._changed)
        self._sets: dict[str, _Set] = {}
        self._dirty: dict[str, _Set] = {}

    def set_item(self, key: ResourceKey, item: Labelled) -> None:
        """Add or replace an endpoint or network set."""
        self._index.set_item(key, item.member, item.labels, item.parents)

    def remove_item(self, key: ResourceKey) -> None:
        """Remove an endpoint or network set."""
        self._index.remove_item(key)

    def set_parent(self, name: str, labels: dict[str, str]) -> None:
        """Set the labels a profile hands down; empty when it is gone."""
        self._index.set_parent(name, labels)

    def statistics(self) -> IndexStatistics:
        """Size and work of the index of all that can be in a set."""
        return self._index.statistics()

    def count(self, kind: str) -> int:
        """How many endpoints or sets of a kind of resource there are. Linear in all of them."""
        return sum(isinstance(key, ResourceKey) and key.kind == kind for key in self._index.idents)

    def acquire(self, specs: Iterable[SetSpec]) -> None:
        """Refer to sets once more each; new ones are filled now."""
        for spec in specs:
            found = self._sets.get(spec.id)
            if found is None:
                found = self._sets[spec.id] = _Set(spec)
                if spec.selector is not None:
                    self._index.add_watch(spec.id, found, spec.selector)
                self._dirty[spec.id] = found
            found.references += 1

    def release(self, specs: Iterable[SetSpec]) -> None:
        """Take references back; a set without any goes with the next flush, unless it is acquired again before."""
        for spec in specs:
            found = self._sets[spec.id]
            found.references -= 1
            if not found.references:
                self._dirty[spec.id] = found

    def flush(self, changes: Changes) -> None:
        """Say what changed since the last flush. O(changed sets and members)."""
        for ident, found in self._dirty.items():
            if not found.references:
                if found.sent:
                    changes.ip_sets[ident] = None
                del self._sets[ident]
                if found.spec.selector is not None:
                    found.sent = False  # it is gone: no more deltas
                    self._index.remove_watch(ident)
            elif not found.sent:
                changes.ip_sets[ident] = IPSet(ident, found.spec.type, frozenset(found.counts))
                found.sent = True
            elif found.added or found.removed:
                changes.ip_sets[ident] = IPSetDelta(ident, frozenset(found.added), frozenset(found.removed))
                found.added.clear()
                found.removed.clear()
        self._dirty.clear()

    def _started(self, found: _Set, member: Member) -> None:
        for text in found.spec.members(member):
            found.add(text)
        if found.sent:
            self._dirty[found.spec.id] = found

    def _stopped(self, found: _Set, member: Member) -> None:
        for text in found.spec.members(member):
            found.drop(text)
        if found.sent:
            self._dirty[found.spec.id] = found

    def _changed(self, found: _Set, old: Member, new: Member) -> None:
        if old != new:
            self._started(found, new)
            self._stopped(found, old)
