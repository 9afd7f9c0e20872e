"""The label index against the plain definition: evaluate every selector for every item after every change."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from calipy.felix.graph.labels import LabelIndex
from calipy.policy.selector import parse

NAMES, VALUES, PARENTS = ("a", "b", "c"), ("1", "2"), ("p", "q")
SELECTORS = (
    "all()", "a == '1'", "a == '1' && b == '2'", "b in {'1', '2'}", "has(a) && !has(b)", "!has(c)", "a != '1'",
    "c == '1' || c == '2'", "a in {}", "has(c)", "b starts with '1'", "a == '1' && a == '2'",
)  # fmt: skip

label_maps = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES))
changes = st.one_of(
    st.tuples(st.just("item"), st.integers(0, 3), label_maps, st.lists(st.sampled_from(PARENTS), unique=True)),
    st.tuples(st.just("no item"), st.integers(0, 3)),
    st.tuples(st.just("parent"), st.sampled_from(PARENTS), label_maps),
    st.tuples(st.just("watch"), st.sampled_from(SELECTORS)),
    st.tuples(st.just("no watch"), st.sampled_from(SELECTORS)),
)


class _Model:
    """All items and selectors, and the matches that the index has announced."""

    def __init__(self) -> None:
        self.items: dict[int, tuple[int, dict[str, str], tuple[str, ...]]] = {}
        self.parents: dict[str, dict[str, str]] = {}
        self.watches: set[str] = set()
        self.announced: dict[tuple[str, int], int] = {}
        self.version = 0
        self.index: LabelIndex[tuple[int, int], str] = LabelIndex(self._started, self._stopped, self._changed)

    def _started(self, watch: str, item: tuple[int, int]) -> None:
        assert (watch, item[0]) not in self.announced, "began twice"
        self.announced[watch, item[0]] = item[1]

    def _stopped(self, watch: str, item: tuple[int, int]) -> None:
        assert self.announced.pop((watch, item[0])) == item[1], "ended with another value"

    def _changed(self, watch: str, old: tuple[int, int], new: tuple[int, int]) -> None:
        assert self.announced[watch, old[0]] == old[1], "changed from another value"
        self.announced[watch, new[0]] = new[1]

    def step(self, change: tuple[Any, ...]) -> None:
        match change:
            case ("item", ident, labels, parents):
                self.version += 1
                self.items[ident] = (self.version, labels, tuple(parents))
                self.index.set_item(ident, (ident, self.version), labels, tuple(parents))
            case ("no item", ident):
                self.items.pop(ident, None)
                self.index.remove_item(ident)
            case ("parent", name, labels):
                self.parents[name] = labels
                self.index.set_parent(name, labels)
            case ("watch", text) if text not in self.watches:
                self.watches.add(text)
                self.index.add_watch(text, text, parse(text))
            case ("no watch", text) if text in self.watches:
                self.watches.remove(text)
                self.index.remove_watch(text)

    def expected(self) -> dict[tuple[str, int], int]:
        found = {}
        for ident, (version, labels, parents) in self.items.items():
            effective: dict[str, str] = {}
            for inherited in (labels, *(self.parents.get(name, {}) for name in parents)):
                for label, value in inherited.items():
                    effective.setdefault(label, value)
            found |= {(text, ident): version for text in self.watches if parse(text).matches(effective)}
        return found


@settings(max_examples=300, deadline=None)
@given(st.lists(changes, max_size=25))
def test_matches_are_what_the_definition_says(steps: list[tuple[Any, ...]]) -> None:
    """After any history, each announced match is due and each due match announced, with the latest value, once."""
    model = _Model()
    for step in steps:
        model.step(step)
        assert model.announced == model.expected()
        for ident in model.items:
            assert set(model.index.matches_of_item(ident)) == {w for w, i in model.announced if i == ident}
        for text in model.watches:
            assert {item[0] for item in model.index.matches_of_watch(text)} == {
                i for w, i in model.announced if w == text
            }


@given(st.lists(changes, max_size=25))
def test_nothing_is_left_behind(steps: list[tuple[Any, ...]]) -> None:
    """When everything is removed the index is as empty as at first: no leak in a long life."""
    model = _Model()
    for step in steps:
        model.step(step)
    for ident in range(4):
        model.step(("no item", ident))
    for name in PARENTS:
        model.step(("parent", name, {}))
    for text in SELECTORS:
        model.step(("no watch", text))
    assert model.announced == {}
    empty = _Model().index
    for name in ("_items", "_parents", "_watches", "_item_postings", "_parent_postings", "_filings", "_unfiled"):
        assert getattr(model.index, name) == getattr(empty, name), name
