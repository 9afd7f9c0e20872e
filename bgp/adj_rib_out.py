"""Adj-RIB-Out: what each peer should be told against what it has been told, and the commands in between. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from calipy.bgp.exabgp import commands
from calipy.bgp.path import Attributes
from calipy.net import IPAddress, Prefix


@dataclass(slots=True)
class Batch:
    """Commands of one kind, to be sent together, and what peers have been told once all are acknowledged.

    Attributes:
        lines: from ``commands``.
        audience: who is told.
        told: attributes by prefix, None for what is withdrawn.
    """

    lines: list[str]
    audience: frozenset[IPAddress]
    told: dict[Prefix, Attributes | None]


@dataclass(slots=True, eq=False)
class _Table:
    """What some peers have been told, the same to each of them."""

    peers: set[IPAddress]
    routes: dict[Prefix, Attributes]


class AdjRibOut:
    """What ExaBGP holds to send, per peer; ExaBGP keeps it over reconnects, so that it is told once.

    Most peers are told the same. They share one table, and a change of it is worked out once.
    """

    def __init__(self) -> None:
        self._told: dict[IPAddress, _Table] = {}

    def reset(self, told: Iterable[tuple[IPAddress, Prefix, Attributes]] = ()) -> None:
        """Start from what ExaBGP says that it holds; nothing, after it was started."""
        self._told = {}
        for peer, prefix, attributes in told:
            self._told.setdefault(peer, _Table({peer}, {})).routes[prefix] = attributes

    def forget(self, peer: IPAddress) -> None:
        """The neighbour was removed or changed in ExaBGP's configuration: what it was told is gone."""
        if (table := self._told.pop(peer, None)) is not None:
            table.peers.remove(peer)

    def plan(self, wanted: Mapping[IPAddress, Mapping[Prefix, Attributes]]) -> list[Batch]:
        """What to send so that each peer in ``wanted`` is told exactly that; announcements come first.

        Peers that need the same are told by one command. O(peers + prefixes) if peers that are to be told the same
        have one and the same mapping and have been told the same before, O(peers x prefixes) at worst.
        """
        groups: dict[tuple[int, int], list[IPAddress]] = defaultdict(list)
        for peer, routes in wanted.items():
            groups[id(self._told.get(peer)), id(routes)].append(peer)
        announce: _Needed = defaultdict(list)
        withdraw: _Needed = defaultdict(list)
        settled: dict[int, _Table] = {}
        for number, peers in enumerate(groups.values()):
            routes, table = wanted[peers[0]], self._told.get(peers[0])
            told = table.routes if table else {}
            missing = [
                (prefix, attributes)
                for prefix, attributes in routes.items()
                if (known := told.get(prefix)) is not attributes and known != attributes
            ]
            surplus = told.keys() - routes.keys() if missing or len(told) != len(routes) else ()
            for route in missing:
                announce[route].append(number)
            for prefix in surplus:
                withdraw[prefix, told[prefix]].append(number)
            if table and not missing and not surplus:
                self._move(peers, settled.setdefault(id(routes), table))
        everyone = frozenset(wanted) | frozenset(self._told)
        members = list(groups.values())
        batches: list[Batch] = []
        for attributes, audience, prefixes in _by_audience(announce, members):
            lines = commands.announce(attributes, prefixes, _selector(audience, everyone))
            batches.append(Batch(list(lines), audience, dict.fromkeys(prefixes, attributes)))
        for attributes, audience, prefixes in _by_audience(withdraw, members):
            lines = commands.withdraw(attributes, prefixes, _selector(audience, everyone))
            batches.append(Batch(list(lines), audience, dict.fromkeys(prefixes)))
        return batches

    def confirm(self, batch: Batch) -> None:
        """All of the batch has been taken up by ExaBGP. O(tables + routes), O(peers) if it is not for all of them."""
        fresh = batch.audience.difference(self._told)
        if fresh:
            self._move(fresh, _Table(set(), {}))
        for table in {id(one): one for one in self._told.values()}.values():
            hearing = table.peers & batch.audience
            if not hearing:
                continue
            changed = table
            if len(hearing) < len(table.peers):
                changed = _Table(set(), dict(table.routes))
                self._move(hearing, changed)
            for prefix, attributes in batch.told.items():
                if attributes is None:
                    changed.routes.pop(prefix, None)
                else:
                    changed.routes[prefix] = attributes

    def told(self, peer: IPAddress) -> Mapping[Prefix, Attributes]:
        """What a peer has been told."""
        table = self._told.get(peer)
        return table.routes if table else {}

    def _move(self, peers: Iterable[IPAddress], table: _Table) -> None:
        """Let peers share a table, which holds what each of them has been told."""
        for peer in peers:
            before = self._told.get(peer)
            if before is table:
                return  # peers come in groups that share one
            if before is not None:
                before.peers.remove(peer)
            self._told[peer] = table
            table.peers.add(peer)


_Needed: TypeAlias = defaultdict[tuple[Prefix, Attributes], list[int]]
"""What is to be said, and the numbers of the groups of peers that it is to be said to."""


def _by_audience(
    needed: _Needed, groups: Sequence[Iterable[IPAddress]]
) -> Iterator[tuple[Attributes, frozenset[IPAddress], list[Prefix]]]:
    """What can share a command: the same attributes for the same peers."""
    found: dict[tuple[Attributes, tuple[int, ...]], list[Prefix]] = defaultdict(list)
    for (prefix, attributes), numbers in needed.items():
        found[attributes, tuple(numbers)].append(prefix)
    audiences: dict[tuple[int, ...], frozenset[IPAddress]] = {}
    for (attributes, which), prefixes in found.items():
        if which not in audiences:
            audiences[which] = frozenset().union(*(groups[number] for number in which))
        yield attributes, audiences[which], _sorted(prefixes)


def _selector(audience: frozenset[IPAddress], everyone: frozenset[IPAddress]) -> list[IPAddress] | None:
    return None if audience == everyone else sorted(audience, key=lambda peer: (peer.version, int(peer)))


def _sorted(prefixes: Iterable[Prefix]) -> list[Prefix]:
    return sorted(prefixes, key=lambda one: (one.version, int(one.network_address), one.prefixlen))
