"""Values of a walk: the packet with all that the node knows of it, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from calipy.errors import CalipyError
from calipy.felix.render.rule import Origin, Rule
from calipy.net import IPAddress
from calipy.policy.values import ICMP

Conntrack: TypeAlias = Literal["new", "established", "related", "invalid", "untracked"]
Verdict: TypeAlias = Literal["accept", "drop", "reject"]

PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132, "udplite": 136}
"""Names that rules and packets may use for protocols → numbers."""

PORT_PROTOCOLS: Final = frozenset({6, 17, 132, 136})
"""Protocols whose packets have ports."""


class WalkError(CalipyError):
    """A rule that the model does not know, or that the kernel would refuse. Never guessed at."""


class Before(NamedTuple):
    """Where a packet was addressed to before destination NAT changed it.

    Attributes:
        destination_port: 0 for protocols without ports.
        out_interface: for packets of the node itself: by which it would have left; filter OUTPUT still sees this one.
    """

    destination: IPAddress
    destination_port: int = 0
    out_interface: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet at a node, and what the node's kernel knows of it.

    Attributes:
        source, destination: addresses of one family; after destination NAT, if there is any.
        protocol: lower-case name or number.
        source_port, destination_port: 0 for protocols without ports.
        icmp: type and code, for ICMP and ICMPv6.
        in_interface: by which it came in; "" if the node itself sends it.
        out_interface: by which it leaves; "" if the node itself receives it.
        conntrack: its state, unless a rule keeps it from being tracked.
        dnat: its connection is subject to destination NAT.
        before: where it was addressed to before NAT, as raw, mangle PREROUTING and nat see it; None: to
            ``destination``.
        mark: with which it comes in.
        spoofed: the reverse path of its source does not lead to ``in_interface``.
        own: addresses of the node by interface.
        groups: link groups of the node's interfaces; 0 for those that are not named.
        within_limits: what rate limits of rules say of it.
    """

    source: IPAddress
    destination: IPAddress
    protocol: str | int
    source_port: int = 0
    destination_port: int = 0
    icmp: ICMP | None = None
    in_interface: str = ""
    out_interface: str = ""
    conntrack: Conntrack = "new"
    dnat: bool = False
    before: Before | None = None
    mark: int = 0
    spoofed: bool = False
    own: Mapping[str, Collection[IPAddress]] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    within_limits: bool = True


class Step(NamedTuple):
    """A rule that the packet met and that matched it.

    Attributes:
        table, hook: where in the kernel, e.g. ``filter`` and ``FORWARD``.
        chain: which holds the rule: one of ours, or the kernel's own of the name of ``hook``.
        position: place of the rule in the chain, from 0; in the kernel's own, among ours.
        rule: itself; ``rule.origin`` says what it is there for.
    """

    table: str
    hook: str
    chain: str
    position: int
    rule: Rule

    @property
    def origin(self) -> Origin:
        """What the rule is there for."""
        return self.rule.origin


@dataclass(frozen=True, slots=True)
class Walk:
    """What became of a packet.

    Attributes:
        verdict: of the node.
        steps: rules that matched, in order; if the packet was not accepted the last one decided.
        mark: with which it leaves.
        tracked: connection tracking knows it.
        dscp: code point that rules gave it, None: it keeps its own.
    """

    verdict: Verdict
    steps: tuple[Step, ...]
    mark: int
    tracked: bool
    dscp: int | None = None

    @property
    def accepted(self) -> bool:
        """Whether the packet gets through."""
        return self.verdict == "accept"
