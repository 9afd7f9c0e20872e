"""Ports of the node that stay reachable whatever policy a host endpoint has (felix/rules/static.go). Pure.

Beyond Felix, IPv6 neighbour and router discovery and multicast listeners are among them: a policy that denies
everything would otherwise end all IPv6, failsafe ports included, when the neighbour entries lapse (RFC 4890 §4.4.1).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from calipy.felix.config import FailsafePort, FelixConfig
from calipy.felix.render import syntax
from calipy.felix.render.host import FAILSAFE_IN, FAILSAFE_OUT, PolicyTable
from calipy.felix.render.rule import Chain, Rule
from calipy.net import Family

_DISCOVERY: Final = (130, 131, 132, 133, 134, 135, 136, 143)


def failsafe_chains(table: PolicyTable, family: Family, config: FelixConfig) -> tuple[Chain, Chain]:
    """``cali-failsafe-in`` and ``cali-failsafe-out``.

    In the raw table answers to failsafe traffic of the other direction are among them, or untracked policy could keep
    half of a connection from being tracked. They are accepted there only as far as that table goes.
    """
    inbound, outbound = config.failsafe_inbound, config.failsafe_outbound
    into = [*_discovery(family), *_rules(inbound, family, "source", "destination")]
    out = [*_discovery(family), *_rules(outbound, family, "destination", "destination")]
    if table == "raw":
        into += _rules(outbound, family, "source", "source")
        out += _rules(inbound, family, "destination", "source")
    return Chain(FAILSAFE_IN, tuple(into)), Chain(FAILSAFE_OUT, tuple(out))


def _rules(ports: Iterable[FailsafePort], family: Family, net_side: str, port_side: str) -> Iterator[Rule]:
    for entry in ports:
        net = ipaddress.ip_network(entry.net) if entry.net else None
        if net is None or net.version == family:
            match = syntax.joined(
                f"-p {entry.protocol}",
                f"-m multiport --{port_side}-ports {entry.port}",
                f"--{net_side} {net}" if net else "",
            )
            yield Rule(match, syntax.ACCEPT)


def _discovery(family: Family) -> Iterator[Rule]:
    if family == 6:
        for kind in _DISCOVERY:
            yield Rule(f"-p 58 -m icmp6 --icmpv6-type {kind}", syntax.ACCEPT)
