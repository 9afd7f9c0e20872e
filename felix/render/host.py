"""Chains of the host endpoints: policy on the node's own interfaces (felix/rules/{endpoints,dispatch}.go). Pure.

Policy on a host has four places, each a list of tiers of its own:

| list | table, chains | what is accepted |
|---|---|---|
| untracked | raw ``th fh`` | is not tracked, and passes all later places |
| pre-DNAT | mangle PREROUTING ``fh`` | passes all later places |
| normal | filter INPUT, OUTPUT ``th fh``; mangle POSTROUTING ``th`` for what was redirected by DNAT | passes |
| forward | filter FORWARD ``thfw fhfw`` | goes on to the policy of pods |

A packet walks through raw and mangle PREROUTING only for interfaces that have policy there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from calipy.felix.messages import ActivePolicy, HostEndpoint, PolicyID, TierInfo
from calipy.felix.render import syntax
from calipy.felix.render.dispatch import Dispatch
from calipy.felix.render.endpoint import conntrack_rules, profile_rules, tier_rules
from calipy.felix.render.names import ANY_INTERFACE, Direction, host_chain
from calipy.felix.render.policy import PolicyContext
from calipy.felix.render.rule import Chain, Origin, Rule

FROM_HOST: Final = "cali-from-host-endpoint"
TO_HOST: Final = "cali-to-host-endpoint"
FROM_HOST_FORWARD: Final = "cali-from-hep-forward"
TO_HOST_FORWARD: Final = "cali-to-hep-forward"
FAILSAFE_IN: Final = "cali-failsafe-in"
FAILSAFE_OUT: Final = "cali-failsafe-out"

PolicyTable = Literal["raw", "mangle", "filter"]
POLICY_TABLES: Final[tuple[PolicyTable, ...]] = ("raw", "mangle", "filter")
"""Tables in which policy can stand."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """Where host endpoints are, as the dataplane found out, and what is known of policies.

    Attributes:
        interfaces: name, or ``ANY_INTERFACE`` for those that are not listed → the host endpoint that governs it.
        policies: all known ones.
    """

    interfaces: Mapping[str, HostEndpoint]
    policies: Mapping[PolicyID, ActivePolicy]


def host_chains(table: PolicyTable, context: PolicyContext, plan: HostPlan) -> tuple[Chain, ...]:
    """All chains of host endpoints in a table: dispatch, endpoints, groups. Linear in the interfaces' policies."""
    builder = {"raw": _raw, "mangle": _mangle, "filter": _filter}[table]
    return tuple(builder(_Builder(context, plan)))


def _filter(build: _Builder) -> Iterator[Chain]:
    interfaces = build.plan.interfaces
    allow = build.context.config.filter_allow_action
    for interface, endpoint in interfaces.items():
        for direction in _DIRECTIONS:
            yield build.normal(interface, endpoint, direction, allow)
            yield build.forward(interface, endpoint, direction, allow)
    yield from _dispatch(FROM_HOST, "ingress", interfaces)
    yield from _dispatch(TO_HOST, "egress", interfaces)
    yield from _dispatch(FROM_HOST_FORWARD, "ingress", interfaces, forward=True)
    yield from _dispatch(TO_HOST_FORWARD, "egress", interfaces, forward=True)
    yield from build.groups.values()


def _mangle(build: _Builder) -> Iterator[Chain]:
    interfaces = build.plan.interfaces
    early = {interface: endpoint for interface, endpoint in interfaces.items() if endpoint.pre_dnat}
    for interface, endpoint in early.items():
        yield build.pre_dnat(interface, endpoint)
    for interface, endpoint in interfaces.items():
        # RETURN: others use this table to change packets, and want to see those that pass, too.
        yield build.normal(interface, endpoint, "egress", "RETURN")
    yield from _dispatch(FROM_HOST, "ingress", early)
    pods = tuple(
        Rule(
            syntax.to_interface(f"{prefix}+"),
            syntax.RETURN,
            ("Skip egress WHEP policy for traffic to local workload",),
        )
        for prefix in build.context.config.interface_prefixes
    )
    yield from _dispatch(TO_HOST, "egress", interfaces, spared=pods)
    yield from build.groups.values()


def _raw(build: _Builder) -> Iterator[Chain]:
    # Not for all interfaces at once: those of pods would be among them.
    untracked = {
        interface: endpoint
        for interface, endpoint in build.plan.interfaces.items()
        if endpoint.untracked and interface != ANY_INTERFACE
    }
    for interface, endpoint in untracked.items():
        for direction in _DIRECTIONS:
            yield build.untracked(interface, endpoint, direction)
    yield from _dispatch(FROM_HOST, "ingress", untracked)
    yield from _dispatch(TO_HOST, "egress", untracked)
    yield from build.groups.values()


_DIRECTIONS: Final[tuple[Direction, Direction]] = ("egress", "ingress")


def _dispatch(
    root: str,
    direction: Direction,
    interfaces: Mapping[str, HostEndpoint],
    *,
    forward: bool = False,
    spared: tuple[Rule, ...] = (),
) -> list[Chain]:
    """From the name of an interface to its chain; ``spared`` are exceptions from that of all interfaces."""
    end: tuple[Rule, ...] = ()
    if ANY_INTERFACE in interfaces:
        end = (*spared, Rule("", syntax.goto(host_chain(ANY_INTERFACE, direction, forward=forward))))
    match: Callable[[str], str] = syntax.from_interface if direction == "ingress" else syntax.to_interface
    tree = Dispatch(root, match=match, target=lambda name: host_chain(name, direction, forward=forward), end=end)
    chains, _ = tree.update(set(interfaces) - {ANY_INTERFACE}, set())
    return chains


class _Builder:
    """Makes the chains of one table and gathers the groups that they jump to."""

    def __init__(self, context: PolicyContext, plan: HostPlan) -> None:
        self.context = context
        self.plan = plan
        self.groups: dict[str, Chain] = {}

    def normal(self, interface: str, endpoint: HostEndpoint, direction: Direction, allow: str) -> Chain:
        """What begins or ends here: policy, then profiles, then nothing else passes."""
        origin = _origin(endpoint, direction)
        return Chain(
            host_chain(interface, direction),
            (
                *conntrack_rules(self.context, allow, origin),
                *self._start(direction, origin),
                *self._tiers(endpoint.tiers, direction),
                *profile_rules(self.context, endpoint.profiles, origin),
            ),
        )

    def forward(self, interface: str, endpoint: HostEndpoint, direction: Direction, allow: str) -> Chain:
        """What passes through. Without any policy for it, everything may."""
        origin = _origin(endpoint, direction)
        marks = self.context.marks
        rules = [
            *conntrack_rules(self.context, allow, origin),
            Rule("", syntax.clear_mark(marks.accept | marks.pass_), (), origin),
            *self._tiers(endpoint.forward, direction),
        ]
        if not endpoint.forward:
            rules += (
                Rule("", syntax.set_mark(marks.accept), ("Allow forwarded traffic by default",), origin),
                Rule("", syntax.RETURN, ("Return for accepted forward traffic",), origin),
            )
        return Chain(host_chain(interface, direction, forward=True), tuple(rules))

    def pre_dnat(self, interface: str, endpoint: HostEndpoint) -> Chain:
        """What comes in, with the destination that it was sent to. What no policy decides goes on."""
        origin = _origin(endpoint, "ingress")
        return Chain(
            host_chain(interface, "ingress"),
            (
                *conntrack_rules(self.context, self.context.config.mangle_allow_action, origin),
                *self._start("ingress", origin),
                *self._tiers(endpoint.pre_dnat, "ingress", decides=False),
            ),
        )

    def untracked(self, interface: str, endpoint: HostEndpoint, direction: Direction) -> Chain:
        """Every packet by itself, before connections are known. What no policy decides goes on."""
        return Chain(
            host_chain(interface, direction),
            (
                *self._start(direction, _origin(endpoint, direction)),
                *self._tiers(endpoint.untracked, direction, decides=False, notrack=True),
            ),
        )

    def _start(self, direction: Direction, origin: Origin) -> Iterator[Rule]:
        marks = self.context.marks
        yield Rule("", syntax.jump(FAILSAFE_IN if direction == "ingress" else FAILSAFE_OUT), (), origin)
        yield Rule("", syntax.clear_mark(marks.accept | marks.pass_), (), origin)

    def _tiers(
        self, tiers: tuple[TierInfo, ...], direction: Direction, *, decides: bool = True, notrack: bool = False
    ) -> Iterator[Rule]:
        for tier in tiers:
            yield from tier_rules(
                self.context, tier, direction, self.plan.policies, self.groups, decides=decides, notrack=notrack
            )


def _origin(endpoint: HostEndpoint, direction: Direction) -> Origin:
    return Origin("endpoint", endpoint.name, direction)
