"""Dispatch chains: from an interface's name to its endpoint chain, as a prefix tree (felix/rules/dispatch.go). Pure.

Felix's tree has two levels. With a thousand pods on a node its second level is a hundred rules long, so a bin that
holds more than sixteen names is split again; up to that size the chains are the same as Felix's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final

from calipy.felix.render import syntax
from calipy.felix.render.names import MAX_CHAIN
from calipy.felix.render.rule import Chain, Rule

_MAX_LEAF: Final = 16


def dispatch_chains(
    root: str,
    interfaces: Iterable[str],
    *,
    match: Callable[[str], str],
    target: Callable[[str], str],
    end: tuple[Rule, ...],
) -> Iterator[Chain]:
    """Root first, then its children.

    Args:
        root: name of the root chain; children add ``-`` and the characters that lead to them.
        interfaces: names, in any order.
        match: ``syntax.from_interface`` or ``syntax.to_interface``.
        target: interface → the chain it goes to.
        end: last rules of every chain: what happens to an interface that is not known.
    """
    names = sorted(set(interfaces))
    yield from _level(root, "", names, _shared(names[0], names[-1]) if names else 0, match, target, end)


def _level(
    root: str,
    path: str,
    names: list[str],
    depth: int,
    match: Callable[[str], str],
    target: Callable[[str], str],
    end: tuple[Rule, ...],
) -> Iterator[Chain]:
    """The chain for ``names``, which agree in their first ``depth`` characters."""
    rules: list[Rule] = []
    children: list[tuple[str, list[str]]] = []
    for key, group in groupby(names, key=lambda name: name[: depth + 1]):
        members = list(group)
        child_path = path + key[depth:]
        if len(members) == 1:
            rules.append(Rule(match(members[0]), syntax.goto(target(members[0]))))
            continue
        if key == members[0]:  # an interface whose name is the start of the others' would hide behind their pattern
            rules.append(Rule(match(key), syntax.goto(target(key))))
            members = members[1:]
        children.append((child_path, members))
        rules.append(Rule(match(f"{key}+"), syntax.goto(f"{root}-{child_path}")))
    yield Chain(f"{root}-{path}" if path else root, (*rules, *end))
    for child_path, members in children:
        deepest = len(root) + 2 + len(child_path) > MAX_CHAIN
        if len(members) <= _MAX_LEAF or deepest:
            leaf = tuple(Rule(match(name), syntax.goto(target(name))) for name in members)
            yield Chain(f"{root}-{child_path}", (*leaf, *end))
        else:
            yield from _level(root, child_path, members, depth + 1, match, target, end)


def _shared(first: str, last: str) -> int:
    """Length of the common beginning; of sorted names, that of the first and the last is that of all."""
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
