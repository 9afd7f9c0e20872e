"""Which selectors match which labelled things, kept up to date as either changes.

Items (endpoints, network sets) have own labels and inherit those of their parents (profiles); an own label beats an
inherited one, an earlier parent a later one. A watch is a selector somebody cares about. Two indices keep the cost of a
change proportional to what it can affect:

* *filing*: a watch is filed under the label restriction that the fewest items meet, so a changed item is evaluated only
  against the watches filed under its labels;
* *postings*: label → value → holders (items and parents), so a new watch is evaluated only for the items that meet its
  rarest restriction. Inheritance is an edge here, never a copy.

Source of the design: Calico ``felix/labelindex``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from calipy.felix.graph.statistics import IndexStatistics
from calipy.policy.selector import Selector

ItemT = TypeVar("ItemT")
WatchT = TypeVar("WatchT")

_NONE: Final[Mapping[str, str]] = {}


class _Parent(Generic[ItemT, WatchT]):
    """A profile as far as labels go; it may be named before, or without, existing."""

    __slots__ = ("children", "labels", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.labels: Mapping[str, str] = _NONE
        self.children: set[_Item[ItemT, WatchT]] = set()


class _Item(Generic[ItemT, WatchT]):
    __slots__ = ("effective", "labels", "matched", "parents", "value")

    def __init__(self, value: ItemT, labels: Mapping[str, str], parents: tuple[_Parent[ItemT, WatchT], ...]) -> None:
        self.value = value
        self.labels = labels
        self.parents = parents
        self.matched: set[_Watch[ItemT, WatchT]] = set()
        self.effective: Mapping[str, str] | None = None

    def effective_labels(self) -> Mapping[str, str]:
        if self.effective is None:
            if not any(parent.labels for parent in self.parents):
                self.effective = self.labels
            else:
                merged: dict[str, str] = {}
                for parent in reversed(self.parents):
                    merged.update(parent.labels)
                merged.update(self.labels)
                self.effective = merged
        return self.effective


class _Watch(Generic[ItemT, WatchT]):
    __slots__ = ("filed", "items", "selector", "value")

    def __init__(self, value: WatchT, selector: Selector) -> None:
        self.value = value
        self.selector = selector
        self.items: set[_Item[ItemT, WatchT]] = set()
        self.filed: tuple[tuple[str, str | None], ...] = ()  # label and value it is filed under; None = any value


class _Filing(Generic[ItemT, WatchT]):
    """Watches filed under one label: by a value they ask for, or under ``present`` when any value will do."""

    __slots__ = ("by_value", "present")

    def __init__(self) -> None:
        self.present: set[_Watch[ItemT, WatchT]] = set()
        self.by_value: dict[str, set[_Watch[ItemT, WatchT]]] = {}

    def shelf(self, value: str | None) -> set[_Watch[ItemT, WatchT]]:
        """The watches for one value (made when missing), or for any."""
        return self.present if value is None else self.by_value.setdefault(value, set())


class LabelIndex(Generic[ItemT, WatchT]):
    """Items, parents and watches by id, and callbacks for every match that begins, goes on with a new value, or ends.

    Callbacks run inside the call that causes them; for one item, beginnings come before endings. They may not call back
    into the index.

    Args:
        started: a watch begins to match an item.
        stopped: it no longer does; gets the item's value as it was while it matched.
        changed: it matched and still does, and the item's value was replaced: watch, old value, new value.
    """

    def __init__(
        self,
        started: Callable[[WatchT, ItemT], None],
        stopped: Callable[[WatchT, ItemT], None],
        changed: Callable[[WatchT, ItemT, ItemT], None],
    ) -> None:
        self._started, self._stopped, self._changed = started, stopped, changed
        self._items: dict[Hashable, _Item[ItemT, WatchT]] = {}
        self._parents: dict[str, _Parent[ItemT, WatchT]] = {}
        self._watches: dict[Hashable, _Watch[ItemT, WatchT]] = {}
        self._item_postings: dict[str, dict[str, set[_Item[ItemT, WatchT]]]] = {}
        self._parent_postings: dict[str, dict[str, set[_Parent[ItemT, WatchT]]]] = {}
        self._filings: dict[str, _Filing[ItemT, WatchT]] = {}
        self._unfiled: set[_Watch[ItemT, WatchT]] = set()
        self._statistics = IndexStatistics()

    @property
    def idents(self) -> Iterable[Hashable]:
        """Identities of the items."""
        return self._items.keys()

    def statistics(self) -> IndexStatistics:
        """Size and work so far."""
        found = self._statistics
        found.items, found.watches, found.unfiled = len(self._items), len(self._watches), len(self._unfiled)
        return found

    def set_item(self, ident: Hashable, value: ItemT, labels: Mapping[str, str], parents: tuple[str, ...]) -> None:
        """Add or replace an item. O(its labels + watches filed under them).

        Args:
            ident: its identity.
            value: what callbacks get; must be replaced, not changed in place.
            labels: own labels; not copied, nobody may change them.
            parents: names, in order of precedence; they need not exist.
        """
        old = self._items.get(ident)
        if old is not None and old.labels == labels and tuple(p.name for p in old.parents) == parents:
            previous, old.value = old.value, value
            for watch in old.matched:
                self._changed(watch.value, previous, value)
            return
        item = _Item(value, labels, tuple(self._parent(name) for name in parents))
        self._items[ident] = item
        for parent in item.parents:
            parent.children.add(item)
        _post(self._item_postings, item, labels)
        item.matched = matched = self._matching(item)
        before = old.matched if old is not None else set()
        for watch in matched:
            watch.items.add(item)
            if old is not None and watch in before:
                self._changed(watch.value, old.value, value)
            else:
                self._started(watch.value, value)
        if old is not None:
            self._unlink(old)
            for watch in before - matched:
                self._stopped(watch.value, old.value)

    def remove_item(self, ident: Hashable) -> None:
        """Remove an item; one that is not there is none removed. O(its labels + its matches)."""
        item = self._items.pop(ident, None)
        if item is None:
            return
        self._unlink(item)
        for watch in item.matched:
            self._stopped(watch.value, item.value)

    def set_parent(self, name: str, labels: Mapping[str, str]) -> None:
        """Set the labels a parent hands down, empty when it is gone. O(children x watches filed under their labels)."""
        parent = self._parent(name)
        if parent.labels != labels:
            _unpost(self._parent_postings, parent, parent.labels)
            parent.labels = labels
            _post(self._parent_postings, parent, labels)
            for item in parent.children:
                self._rescan(item)
        self._forget(parent)

    def add_watch(self, ident: Hashable, value: WatchT, selector: Selector) -> None:
        """Begin to watch a selector, under an id that is not in use. O(items that meet its rarest restriction)."""
        watch: _Watch[ItemT, WatchT] = _Watch(value, selector)
        self._watches[ident] = watch
        evaluated = 0
        for item in self._file(watch):
            if watch not in item.matched:
                evaluated += 1
                if selector.matches(item.effective_labels()):
                    item.matched.add(watch)
                    watch.items.add(item)
                    self._started(value, item.value)
        self._statistics.evaluated += evaluated
        self._statistics.matched += len(watch.items)

    def remove_watch(self, ident: Hashable) -> None:
        """Forget a watch, with a ``stopped`` for everything it matched; O(its matches)."""
        watch = self._watches.pop(ident)
        self._unfile(watch)
        for item in watch.items:
            item.matched.discard(watch)
            self._stopped(watch.value, item.value)

    def matches_of_watch(self, ident: Hashable) -> Iterator[ItemT]:
        """Values of the items that a watch matches now."""
        return (item.value for item in self._watches[ident].items)

    def matches_of_item(self, ident: Hashable) -> Iterator[WatchT]:
        """Values of the watches that match an item now."""
        return (watch.value for watch in self._items[ident].matched)

    def _parent(self, name: str) -> _Parent[ItemT, WatchT]:
        parent = self._parents.get(name)
        if parent is None:
            parent = self._parents[name] = _Parent(name)
        return parent

    def _forget(self, parent: _Parent[ItemT, WatchT]) -> None:
        """Drop a parent that hands nothing down and is named by nobody."""
        if not parent.labels and not parent.children:
            del self._parents[parent.name]

    def _unlink(self, item: _Item[ItemT, WatchT]) -> None:
        for parent in item.parents:
            parent.children.discard(item)
            self._forget(parent)
        for watch in item.matched:
            watch.items.discard(item)
        _unpost(self._item_postings, item, item.labels)

    def _rescan(self, item: _Item[ItemT, WatchT]) -> None:
        """Bring an item's matches in line after its inherited labels changed."""
        item.effective = None
        matched = self._matching(item)
        before, item.matched = item.matched, matched
        for watch in matched - before:
            watch.items.add(item)
            self._started(watch.value, item.value)
        for watch in before - matched:
            watch.items.discard(item)
            self._stopped(watch.value, item.value)

    def _matching(self, item: _Item[ItemT, WatchT]) -> set[_Watch[ItemT, WatchT]]:
        labels = item.effective_labels()
        candidates = list(self._candidates(item))
        matched = [watch for watch in candidates if watch.selector.matches(labels)]
        self._statistics.evaluated += len(candidates)
        self._statistics.matched += len(matched)
        return set(matched)

    def _candidates(self, item: _Item[ItemT, WatchT]) -> Iterator[_Watch[ItemT, WatchT]]:
        """Every watch that could match; one may come more than once."""
        filings = self._filings
        for label, value in item.effective_labels().items():
            filing = filings.get(label)
            if filing is not None:
                yield from filing.present
                yield from filing.by_value.get(value, ())
        yield from self._unfiled

    def _file(self, watch: _Watch[ItemT, WatchT]) -> Iterable[_Item[ItemT, WatchT]]:
        """File a watch under its rarest restriction, and tell which items meet that; an item may come twice."""
        best: tuple[int, int] | None = None
        choice: tuple[str, tuple[str, ...] | None] = ("", None)
        for label, restriction in watch.selector.restrictions.items():
            if restriction.one_of is None and not restriction.must_be_present:
                continue
            score = (self._count_holders(label, restriction.one_of), self._count_filed(label, restriction.one_of))
            if best is None or score < best:
                best, choice = score, (label, restriction.one_of)
        if best is None:
            self._unfiled.add(watch)
            self._count_strategy("endpoint-full-scan")
            return self._items.values()
        label, values = choice
        way = "label-name" if values is None else "single-value" if len(values) == 1 else "multi-value"
        inherited = label not in self._item_postings and label in self._parent_postings
        self._count_strategy(f"{'parent' if inherited else 'endpoint'}-{way}")
        watch.filed = ((label, None),) if values is None else tuple((label, value) for value in values)
        for _, value in watch.filed:
            self._filings.setdefault(label, _Filing()).shelf(value).add(watch)
        return self._narrowed(self._holders(label, values), label, watch.selector)

    def _count_strategy(self, name: str) -> None:
        strategies = self._statistics.strategies
        strategies[name] = strategies.get(name, 0) + 1

    def _narrowed(
        self, items: Iterable[_Item[ItemT, WatchT]], label: str, selector: Selector
    ) -> Iterable[_Item[ItemT, WatchT]]:
        """Those of ``items``, which meet the restriction of ``label``, that have the values other labels must have.

        Set intersection is several times cheaper than evaluating; it is right only where nobody inherits the value.
        """
        for other, restriction in selector.restrictions.items():
            if other == label or restriction.one_of is None or len(restriction.one_of) != 1:
                continue
            [value] = restriction.one_of
            if value not in self._parent_postings.get(other, {}):
                items = self._item_postings.get(other, {}).get(value, set()).intersection(items)
        return items

    def _unfile(self, watch: _Watch[ItemT, WatchT]) -> None:
        self._unfiled.discard(watch)
        for label, value in watch.filed:
            filing = self._filings[label]
            shelf = filing.shelf(value)
            shelf.discard(watch)
            if not shelf and value is not None:
                del filing.by_value[value]
            if not filing.present and not filing.by_value:
                del self._filings[label]

    def _count_filed(self, label: str, values: tuple[str, ...] | None) -> int:
        filing = self._filings.get(label)
        if filing is None:
            return 0
        return len(filing.present) if values is None else sum(len(filing.by_value.get(value, ())) for value in values)

    def _count_holders(self, label: str, values: tuple[str, ...] | None) -> int:
        items, parents = self._item_postings.get(label, {}), self._parent_postings.get(label, {})
        wanted = items.keys() | parents.keys() if values is None else values
        return sum(
            len(items.get(value, ())) + sum(len(parent.children) for parent in parents.get(value, ()))
            for value in wanted
        )

    def _holders(self, label: str, values: tuple[str, ...] | None) -> Iterator[_Item[ItemT, WatchT]]:
        items, parents = self._item_postings.get(label, {}), self._parent_postings.get(label, {})
        for value in items.keys() | parents.keys() if values is None else values:
            yield from items.get(value, ())
            for parent in parents.get(value, ()):
                yield from parent.children


_Holder = TypeVar("_Holder")


def _post(postings: dict[str, dict[str, set[_Holder]]], holder: _Holder, labels: Mapping[str, str]) -> None:
    for label, value in labels.items():
        by_value = postings.get(label)
        if by_value is None:
            by_value = postings[label] = {}
        holders = by_value.get(value)
        if holders is None:
            by_value[value] = {holder}
        else:
            holders.add(holder)


def _unpost(postings: dict[str, dict[str, set[_Holder]]], holder: _Holder, labels: Mapping[str, str]) -> None:
    for label, value in labels.items():
        by_value = postings[label]
        holders = by_value[value]
        holders.discard(holder)
        if not holders:
            del by_value[value]
            if not by_value:
                del postings[label]
