"""Comparing states of the IPAM keys, for the cases about address management. Pure."""

from __future__ import annotations

import copy
import datetime
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeAlias

from calipy.datastore.ipam import decode_block
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, parse
from calipy.ipam import block as blocks

IPAM = "/calico/ipam/"
JSON: TypeAlias = Any
State: TypeAlias = dict[str, JSON]
"""Path → parsed value."""


def _real_counts(state: State) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path, value in state.items():
        if isinstance(parse(path), BlockKey) and isinstance(value, dict):
            owners = [attribute.get("handle_id") for attribute in value["attributes"] or []]
            for index in value["allocations"]:
                if index is not None and index < len(owners) and owners[index] is not None:
                    counts[owners[index]][value["cidr"]] += 1
    return counts


def canonical(state: State) -> State:
    """The IPAM keys of a state, handles reduced to what is really assigned."""
    real = _real_counts(state)
    found: State = {}
    for path, value in state.items():
        if not path.startswith(IPAM):
            continue
        key = parse(path)
        if isinstance(key, HandleKey):
            counts = {cidr: min(n, real[key.handle_id][cidr]) for cidr, n in value["block"].items()}
            value = {**value, "block": {cidr: n for cidr, n in counts.items() if n}}  # noqa: PLW2901
            if not value["block"]:
                continue
        found[path] = value
    return found


def undercounts(state: State, passed: list[State]) -> Iterator[str]:
    """Handles that count less than is assigned, or more than Calico's ever did in this step."""
    for handle_id, counts in _real_counts(state).items():
        stored = state.get(f"{IPAM}v2/handle/{handle_id}", {"block": {}})["block"]
        for cidr, count in counts.items():
            if stored.get(cidr, 0) < count:
                yield f"handle {handle_id} counts {stored.get(cidr, 0)} in {cidr}, where it has {count}"
    for path, value in state.items():
        if isinstance(parse(path), HandleKey):
            for cidr, count in value["block"].items():
                most = max((s.get(path, {"block": {}})["block"].get(cidr, 0) for s in passed), default=0)
                if count > most:
                    yield f"handle {path} counts {count} in {cidr}, Calico's at most {most}"


def invariants(state: State) -> list[str]:
    """What must hold of every state: one owner per block, handles never under-count, sound blocks."""
    found = list(undercounts(state, [state]))
    confirmed: dict[str, list[str]] = defaultdict(list)
    now = datetime.datetime.now(datetime.UTC)
    for path, value in state.items():
        key = parse(path)
        if isinstance(key, BlockAffinityKey) and value["state"] == "confirmed":
            confirmed[key.cidr].append(f"{key.affinity_type}:{key.host}")
    for path, value in state.items():
        if isinstance(parse(path), BlockKey):
            block = decode_block(json.dumps(value).encode(), key=path)
            found += [f"block {block.cidr}: {problem}" for problem in blocks.problems(block, now=now)]
            if block.affinity is not None and confirmed[block.cidr] != [block.affinity]:
                found.append(f"block {block.cidr} belongs to {block.affinity}, confirmed are {confirmed[block.cidr]}")
    return found


_TOKEN = re.compile(r"<(uid|seq)-(\d+)>(?:\+(\d+))?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Bindings:
    """What the volatile values of a case stand for: ``<seq-1>+2`` is two more than whatever ``<seq-1>`` turned out."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def match(self, expected: JSON, found: JSON) -> bool:
        """Whether a value is the expected one; binds placeholders met for the first time."""
        if isinstance(expected, str) and expected.startswith("<"):
            return self._match_token(expected, found)
        if isinstance(expected, dict):
            return (
                isinstance(found, dict)
                and expected.keys() == found.keys()
                and all(self.match(value, found[name]) for name, value in expected.items())
            )
        if isinstance(expected, list):
            return (
                isinstance(found, list)
                and len(expected) == len(found)
                and all(self.match(a, b) for a, b in zip(expected, found, strict=True))
            )
        return type(expected) is type(found) and bool(expected == found)

    def _match_token(self, expected: str, found: JSON) -> bool:
        if expected == "<time>":
            return isinstance(found, str) and _TIME.fullmatch(found) is not None
        token = _TOKEN.fullmatch(expected)
        if token is None:
            return isinstance(found, str)
        kind, number, more = token.groups()
        if kind == "seq":
            if not isinstance(found, int):
                return False
            found -= int(more or 0)
        return bool(self.values.setdefault(f"{kind}-{number}", found) == found)


def first_difference(expected: JSON, found: JSON, bindings: Bindings, where: str = "") -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted({*expected, *found}):
            place = f"{where} {name}".strip()
            if name not in found:
                return f"{place} is missing, expected {expected[name]}"
            if name not in expected:
                return f"{place} should not be there: {found[name]}"
            if not copy.deepcopy(bindings).match(expected[name], found[name]):
                return first_difference(expected[name], found[name], bindings, place)
    return f"{where} is {found}, expected {expected}"
