"""Dispatch chains: from an interface's name to its endpoint chain, as a prefix tree (felix/rules/dispatch.go). Pure.

Felix's tree has two levels. With a thousand pods on a node its second level is a hundred rules long, so a bin that
holds more than sixteen names is split again; up to that size the chains are the same as Felix's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Final

from calipy.felix.render import syntax
from calipy.felix.render.names import MAX_CHAIN
from calipy.felix.render.rule import Chain, Rule

_MAX_LEAF: Final = 16


class Dispatch:
    """One dispatch tree. A change renders the root and the branch that the interface is on, not the other branches."""

    def __init__(
        self, root: str, *, match: Callable[[str], str], target: Callable[[str], str], end: tuple[Rule, ...]
    ) -> None:
        """An empty tree.

        Args:
            root: name of the root chain; children add ``-`` and the characters that lead to them.
            match: ``syntax.from_interface`` or ``syntax.to_interface``.
            target: interface → the chain it goes to.
            end: last rules of every chain: what happens to an interface that is not known.
        """
        self._root = root
        self._match = match
        self._target = target
        self._end = end
        self._names: set[str] = set()
        self._shared = 0
        self._branches: defaultdict[str, set[str]] = defaultdict(set)
        self._chains: dict[str, dict[str, Chain]] = {}

    def update(self, added: set[str], removed: set[str]) -> tuple[list[Chain], set[str]]:
        """Take interfaces in and out.

        Returns:
            Chains that are new or changed, root included, and names of chains that are gone.
        """
        self._names |= added
        self._names -= removed
        shared = _shared(min(self._names), max(self._names)) if self._names else 0
        old: dict[str, Chain] = {}
        if shared != self._shared or not self._chains:
            touched = {name[: shared + 1] for name in self._names}
            for chains in self._chains.values():
                old |= chains
            self._chains.clear()
            self._branches.clear()
            self._shared = shared
            for name in self._names:
                self._branches[name[: shared + 1]].add(name)
        else:
            touched = {name[: shared + 1] for name in added | removed}
            for key in touched:
                old |= self._chains.pop(key, {})
            for name in added:
                self._branches[name[: shared + 1]].add(name)
            for name in removed:
                self._branches[name[: shared + 1]].discard(name)
        new: dict[str, Chain] = {}
        for key in touched:
            members = sorted(self._branches[key])
            if members:
                self._chains[key] = {chain.name: chain for chain in self._branch(key, members)}
                new |= self._chains[key]
            else:
                del self._branches[key]
        rules: list[Rule] = []
        for key in sorted(self._branches):
            rules += self._entries(key, sorted(self._branches[key]))
        new[self._root] = Chain(self._root, (*rules, *self._end))
        return [chain for chain in new.values() if chain != old.get(chain.name)], old.keys() - new.keys()

    def _entries(self, key: str, members: list[str]) -> Iterator[Rule]:
        """Rules that lead from a chain to the interfaces that begin with ``key``."""
        if members[0] == key:  # a whole name would hide behind the pattern of the names that it begins
            yield Rule(self._match(key), syntax.goto(self._target(key)))
            members = members[1:]
        if len(members) == 1:
            yield Rule(self._match(members[0]), syntax.goto(self._target(members[0])))
        elif members:
            yield Rule(self._match(f"{key}+"), syntax.goto(self._child(key)))

    def _branch(self, key: str, members: list[str]) -> Iterator[Chain]:
        """The chains behind the entries of ``key``."""
        members = [name for name in members if name != key]
        if len(members) < 2:
            return
        name = self._child(key)
        if len(members) <= _MAX_LEAF or len(name) == MAX_CHAIN:
            rules = [Rule(self._match(member), syntax.goto(self._target(member))) for member in members]
            yield Chain(name, (*rules, *self._end))
            return
        rules = []
        for deeper, group in groupby(members, key=lambda member: member[: len(key) + 1]):
            below = list(group)
            rules += self._entries(deeper, below)
            yield from self._branch(deeper, below)
        yield Chain(name, (*rules, *self._end))

    def _child(self, key: str) -> str:
        return f"{self._root}-{key[self._shared :]}"


def _shared(first: str, last: str) -> int:
    """Length of the common beginning; of sorted names, that of the first and the last is that of all."""
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
