"""Marks of traffic that leaves the cluster: code points that endpoints ask for (felix/rules/dscp.go). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from calipy.felix.render import syntax
from calipy.felix.render.names import set_name
from calipy.felix.render.nat import ALL_POOLS
from calipy.felix.render.rule import Chain, Rule
from calipy.net import Family

EGRESS_DSCP: Final = "cali-egress-dscp"
MARKED_SOURCES: Final = "dscp-src-net"
THIS_HOST: Final = "this-host"


class Source(NamedTuple):
    """An address, bare, and the code point of what it sends."""

    address: str
    value: int


def chain(sources: Iterable[Source]) -> Chain:
    """``cali-egress-dscp``: a rule for each source.

    Felix has one for all addresses of an endpoint, out of which iptables makes as many: the same for pods, which have
    one address of a family.
    """
    return Chain(
        EGRESS_DSCP,
        tuple(
            Rule(f"--source {source.address}", f"--jump DSCP --set-dscp {source.value}")
            for source in sorted(set(sources))
        ),
    )


def leaving(family: Family) -> Rule:
    """What sources of ``chain`` send to where it is neither a pod nor this node."""
    match = syntax.joined(
        syntax.in_set(set_name(family, MARKED_SOURCES), "src"),
        syntax.not_in_set(set_name(family, ALL_POOLS), "dst"),
        syntax.not_in_set(set_name(family, THIS_HOST), "dst"),
    )
    return Rule(match, syntax.jump(EGRESS_DSCP), ("set dscp for traffic leaving cluster.",))
