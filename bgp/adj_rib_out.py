"""Adj-RIB-Out: what each peer should be told against what it has been told, and the commands in between. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from calipy.bgp.exabgp import commands
from calipy.bgp.path import Attributes
from calipy.net import IPAddress, Prefix


@dataclass(slots=True)
class Batch:
    """Commands of one kind, to be sent together, and what peers have been told once all are acknowledged."""

    lines: list[str]
    told: list[tuple[IPAddress, Prefix, Attributes | None]] = field(default_factory=list)


class AdjRibOut:
    """What ExaBGP holds to send, per peer; ExaBGP keeps it over reconnects, so that it is told once."""

    def __init__(self) -> None:
        self._told: dict[IPAddress, dict[Prefix, Attributes]] = {}

    def reset(self, told: Iterable[tuple[IPAddress, Prefix, Attributes]] = ()) -> None:
        """Start from what ExaBGP says that it holds; nothing, after it was started."""
        self._told = {}
        for peer, prefix, attributes in told:
            self._told.setdefault(peer, {})[prefix] = attributes

    def forget(self, peer: IPAddress) -> None:
        """The neighbour was removed or changed in ExaBGP's configuration: what it was told is gone."""
        self._told.pop(peer, None)

    def plan(self, wanted: Mapping[IPAddress, Mapping[Prefix, Attributes]]) -> list[Batch]:
        """What to send so that each peer in ``wanted`` is told exactly that; announcements come first.

        Peers that need the same are told by one command. O(peers x prefixes).
        """
        announce: dict[tuple[Prefix, Attributes], list[IPAddress]] = defaultdict(list)
        withdraw: dict[tuple[Prefix, Attributes], list[IPAddress]] = defaultdict(list)
        for peer, routes in wanted.items():
            told = self._told.get(peer, {})
            for prefix, attributes in routes.items():
                if told.get(prefix) != attributes:
                    announce[prefix, attributes].append(peer)
            for prefix in told.keys() - routes.keys():
                withdraw[prefix, told[prefix]].append(peer)
        everyone = frozenset(wanted) | frozenset(self._told)
        batches: list[Batch] = []
        for (attributes, audience), prefixes in _by_audience(announce):
            lines = commands.announce(attributes, prefixes, _selector(audience, everyone))
            batches.append(Batch(list(lines), [(peer, prefix, attributes) for peer in audience for prefix in prefixes]))
        for (attributes, audience), prefixes in _by_audience(withdraw):
            lines = commands.withdraw(attributes, prefixes, _selector(audience, everyone))
            batches.append(Batch(list(lines), [(peer, prefix, None) for peer in audience for prefix in prefixes]))
        return batches

    def confirm(self, batch: Batch) -> None:
        """All of the batch has been taken up by ExaBGP."""
        for peer, prefix, attributes in batch.told:
            if attributes is None:
                self._told.get(peer, {}).pop(prefix, None)
            else:
                self._told.setdefault(peer, {})[prefix] = attributes

    def told(self, peer: IPAddress) -> Mapping[Prefix, Attributes]:
        """What a peer has been told."""
        return self._told.get(peer, {})


def _by_audience(
    routes: Mapping[tuple[Prefix, Attributes], Iterable[IPAddress]],
) -> Iterator[tuple[tuple[Attributes, frozenset[IPAddress]], list[Prefix]]]:
    """What can share a command: the same attributes for the same peers."""
    found: dict[tuple[Attributes, frozenset[IPAddress]], list[Prefix]] = defaultdict(list)
    for (prefix, attributes), peers in routes.items():
        found[attributes, frozenset(peers)].append(prefix)
    for key, prefixes in found.items():
        yield key, _sorted(prefixes)


def _selector(audience: frozenset[IPAddress], everyone: frozenset[IPAddress]) -> list[IPAddress] | None:
    return None if audience == everyone else sorted(audience, key=lambda peer: (peer.version, int(peer)))


def _sorted(prefixes: Iterable[Prefix]) -> list[Prefix]:
    return sorted(prefixes, key=lambda one: (one.version, int(one.network_address), one.prefixlen))
