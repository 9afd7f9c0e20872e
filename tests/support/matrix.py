"""Expectations of connectivity as short texts, and their check by real packets.

    {(client, server): "tcp/80,81 !udp/53 !ping46", (world, "172.20.0.11"): "~tcp/8080"}

``tcp/80`` must be answered, ``!tcp/80`` must not be answered nor refused, ``~tcp/80`` must be refused; a number before
the first sign is the address family: ``tcp6``, ``tcp46`` for both, none for IPv4. ``tcp/80+sport=30000`` comes from
that port, ``icmp/13`` is an ICMP request by its type, ``ping`` an echo request of either family.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from calipy.conformance.netpol_case import Probe, parse_probe
from calipy.conformance.probe_agent import DEADLINE, Answer, ProbeAgent, Request
from calipy.kernel import netns as kernel_netns
from calipy.net import IPAddress
from tests.support.netns import Namespace

Wanted = Literal["open", "shut", "refused"]

PATIENCE = 30.0
"""Seconds for a matrix to become true on a busy machine."""

_PAUSE = 0.05
_ROUNDS = 2
_WANTED: Mapping[str, Wanted] = {"": "open", "!": "shut", "~": "refused"}
_WORD = re.compile(r"([!~]?)(tcp|udp|sctp|icmp|ping)(6|46)?(?:/([0-9,/]+))?(\+sport=[0-9]+)?")


@dataclass(eq=False, repr=False)
class Site:
    """A place that sends and answers: a namespace and its address of each family."""

    name: str
    ns: Namespace
    addresses: Mapping[int, IPAddress]

    @property
    def ip(self) -> str:
        """Its IPv4 address."""
        return str(self.addresses[4])

    @property
    def ip6(self) -> str:
        """Its IPv6 address."""
        return str(self.addresses[6])

    def at(self, *addresses: str) -> Site:
        """The same place by other addresses, which it must have in order to answer, but not in order to ask."""
        found = map(ipaddress.ip_address, addresses)
        return Site(f"{self.name} at {', '.join(addresses)}", self.ns, {one.version: one for one in found})

    def __repr__(self) -> str:
        return self.name


Place: TypeAlias = Site | str
"""Where something is sent: a site, or an address that somebody translates or nobody has."""

Matrix: TypeAlias = Mapping[tuple[Site, Place], str]


@dataclass(frozen=True, slots=True)
class Cell:
    """One probe and what must come of it."""

    source: Site
    destination: Place
    probe: Probe
    wanted: Wanted

    @property
    def address(self) -> IPAddress:
        """Of the destination."""
        place = self.destination
        return ipaddress.ip_address(place) if isinstance(place, str) else place.addresses[self.probe.family]

    def __str__(self) -> str:
        icmp, port = self.probe.icmp, self.probe.port
        return f"{self.probe.protocol}/{icmp.type if icmp else port} {self.source} → {self.destination} {self.address}"


def cells(matrix: Matrix) -> list[Cell]:
    """All cells of a matrix; raises ValueError for a text that is none."""
    return [
        Cell(source, destination, probe, wanted)
        for (source, destination), text in matrix.items()
        for probe, wanted in _probes(text)
    ]


def _probes(text: str) -> Iterator[tuple[Probe, Wanted]]:
    for word in text.split():
        found = _WORD.fullmatch(word)
        if found is None:
            raise ValueError(f"not an expectation: {word!r}")
        sign, protocol, families, numbers, source_port = found.groups(default="")
        for family in {"": "4", "46": "46"}.get(families, families):
            kind = {"4": "", "6": "6"}[family]
            if protocol == "ping":
                yield parse_probe({"4": "icmp/8", "6": "icmp6/128"}[family]), _WANTED[sign]
                continue
            for number in numbers.split(","):
                yield parse_probe(f"{protocol}{kind}/{number}{source_port}"), _WANTED[sign]


class Checker:
    """Listeners and probes of one lab. Blocks; for one thread."""

    def __init__(self, home: Namespace) -> None:
        """``home`` is where the threads that step through namespaces begin."""
        self._home = home
        self._agent = ProbeAgent()
        self._listening: set[tuple[int, IPAddress, str, int]] = set()

    def listen(self, site: Site, text: str) -> None:
        """Answer at a site on the ports of an expectation, unless it does already."""
        for probe, _ in _probes(text):
            key = (site.ns.fd, site.addresses[probe.family], probe.protocol, probe.port)
            if probe.icmp is None and key not in self._listening:
                kernel_netns.run_in(self._home.fd, self._agent.listen, *key)
                self._listening.add(key)

    def close(self) -> None:
        """Stop listening."""
        self._agent.close_listeners()
        self._listening.clear()

    def wrong(self, wanted: Sequence[Cell], *, deadline: float = DEADLINE) -> list[str]:
        """Probe every cell once, all at the same time; what differs, in words."""
        requests = [
            Request(cell.source.ns.fd, cell.source.addresses[cell.probe.family], cell.address, cell.probe)
            for cell in wanted
        ]
        answers = kernel_netns.run_in(self._home.fd, self._agent.probe, requests, deadline)
        judged = zip(wanted, map(_came, answers), strict=True)
        return [f"{cell}: {came}, not {cell.wanted}" for cell, came in judged if came != cell.wanted]

    def expect(self, wanted: Sequence[Cell], *, within: float = PATIENCE) -> None:
        """Wait until all cells are as wanted in two rounds on end; AssertionError with those that are not in the end.

        An answer that does not come costs a round a fifth of a second. Destinations that are sites answer on what is
        asked of them.
        """
        for cell in wanted:
            if isinstance(cell.destination, Site) and cell.probe.icmp is None:
                family = "6" if cell.probe.family == 6 else ""
                self.listen(cell.destination, f"{cell.probe.protocol}{family}/{cell.probe.port}")
        end = time.monotonic() + within
        right = 0
        while right < _ROUNDS:
            differing = self.wrong(wanted)
            right = 0 if differing else right + 1
            assert not differing or time.monotonic() < end, "connectivity:\n  " + "\n  ".join(differing)
            if differing:
                time.sleep(_PAUSE)


def _came(answer: Answer) -> Wanted:
    return "open" if answer.answered else "refused" if answer.refused else "shut"


def both_ways(one: Site, other: Site, text: str) -> Matrix:
    """The same expectation in both directions."""
    return {(one, other): text, (other, one): text}
