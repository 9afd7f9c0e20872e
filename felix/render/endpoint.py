"""Chains of one workload endpoint, and of the policy groups they share (felix/rules/endpoints.go). Pure.

The parts that chains of host endpoints are made of too stand here as functions of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Final, NamedTuple

from calipy.felix.messages import ActivePolicy, PolicyID, TierInfo, WorkloadEndpoint
from calipy.felix.render import syntax
from calipy.felix.render.names import Direction, group_chain, policy_chain, profile_chain, workload_chain
from calipy.felix.render.policy import PolicyContext
from calipy.felix.render.rule import Chain, Origin, Rule

_GROUP_RUN: Final = 5


class EndpointChains(NamedTuple):
    """Chains of an endpoint: traffic to it, traffic from it, and groups that several endpoints may share."""

    to_workload: Chain
    from_workload: Chain
    groups: tuple[Chain, ...]


def workload_chains(
    context: PolicyContext, endpoint: WorkloadEndpoint, policies: Mapping[PolicyID, ActivePolicy]
) -> EndpointChains:
    """``cali-tw-<if>`` and ``cali-fw-<if>``. A policy that is not in ``policies`` is jumped to all the same: the table
    layer puts a chain that drops in its place.
    """
    groups: dict[str, Chain] = {}
    chains = [
        Chain(
            workload_chain(endpoint.interface, direction),
            tuple(_workload_rules(context, endpoint, direction, policies, groups)),
        )
        for direction in _DIRECTIONS
    ]
    return EndpointChains(chains[0], chains[1], tuple(groups.values()))


_DIRECTIONS: Final[tuple[Direction, Direction]] = ("ingress", "egress")


def _workload_rules(
    context: PolicyContext,
    endpoint: WorkloadEndpoint,
    direction: Direction,
    policies: Mapping[PolicyID, ActivePolicy],
    groups: dict[str, Chain],
) -> Iterator[Rule]:
    marks, config = context.marks, context.config
    origin = Origin("endpoint", endpoint.id, direction)
    deny, drop = f"--jump {config.filter_deny_action}", config.filter_deny_action.capitalize()
    if not endpoint.admin_up:
        yield Rule("", deny, ("Endpoint admin disabled",), origin)
        return
    yield from conntrack_rules(context, config.filter_allow_action, origin)
    yield Rule("", syntax.clear_mark(marks.accept | marks.pass_), (), origin)
    if direction == "egress":
        if not config.allow_vxlan_from_workloads:
            match = f"-p 17 -m multiport --destination-ports {config.vxlan_port}"
            yield Rule(match, deny, (f"{drop} VXLAN encapped packets originating in workloads",), origin)
        if not config.allow_ipip_from_workloads:
            yield Rule("-p 4", deny, (f"{drop} IPinIP encapped packets originating in workloads",), origin)
    for tier in endpoint.tiers:
        yield from tier_rules(context, tier, direction, policies, groups)
    yield from profile_rules(context, endpoint.profiles, origin)


def conntrack_rules(context: PolicyContext, allow: str, origin: Origin) -> Iterator[Rule]:
    """Policy judges the first packet of a connection; what belongs to one passes, what belongs to none does not."""
    config = context.config
    if allow != "ACCEPT":
        yield Rule(syntax.ESTABLISHED, syntax.set_mark(context.marks.accept), (), origin)
    yield Rule(syntax.ESTABLISHED, f"--jump {allow}", (), origin)
    if not config.disable_conntrack_invalid_check:
        yield Rule(syntax.INVALID, f"--jump {config.filter_deny_action}", (), origin)


def profile_rules(context: PolicyContext, profiles: tuple[str, ...], origin: Origin) -> Iterator[Rule]:
    """The end of a chain: profiles in order, then nothing else passes."""
    for profile in profiles:
        profile_origin = Origin("profile", profile, origin.direction)
        chain = profile_chain(profile, "ingress" if origin.direction == "ingress" else "egress")
        yield Rule("", syntax.jump(chain), (), profile_origin)
        returned = syntax.mark_set(context.marks.accept)
        yield Rule(returned, syntax.RETURN, ("Return if profile accepted",), profile_origin)
    deny = context.config.filter_deny_action
    yield Rule("", f"--jump {deny}", (f"{deny.capitalize()} if no profiles matched",), origin)


def tier_rules(
    context: PolicyContext,
    tier: TierInfo,
    direction: Direction,
    policies: Mapping[PolicyID, ActivePolicy],
    groups: dict[str, Chain],
    *,
    decides: bool = True,
    notrack: bool = False,
) -> Iterator[Rule]:
    """One tier's policies; nothing if none of them is enforced in the direction.

    Args:
        context: where the chain stands.
        tier: which.
        direction: as policy sees it.
        policies: known ones.
        groups: gets the group chains that are jumped to.
        decides: whether what no policy of a tier decides is denied at its end, if that is the tier's default.
        notrack: whether what is accepted leaves connection tracking.
    """
    marks = context.marks
    origin = Origin("tier", tier.name, direction)
    enforced = [
        policy for policy in (tier.ingress if direction == "ingress" else tier.egress) if not _staged(policy, policies)
    ]
    if not enforced:
        return
    yield Rule("", syntax.clear_mark(marks.pass_), (f"Start of tier {tier.name}",), origin)
    for chain, group_origin in _targets(context, enforced, direction, policies, groups):
        yield Rule(syntax.mark_clear(marks.pass_), syntax.jump(chain), (), group_origin)
        if notrack:
            yield Rule(syntax.mark_set(marks.accept), syntax.NOTRACK, (), group_origin)
        yield Rule(syntax.mark_set(marks.accept), syntax.RETURN, ("Return if policy accepted",), group_origin)
    if decides and tier.default_action == "Deny":
        deny = context.config.filter_deny_action
        comment = f"End of tier {tier.name}. {deny.capitalize()} if no policies passed packet"
        yield Rule(syntax.mark_clear(marks.pass_), f"--jump {deny}", (comment,), origin)


def _staged(policy: PolicyID, policies: Mapping[PolicyID, ActivePolicy]) -> bool:
    known = policies.get(policy)
    return known is not None and known.staged


def _targets(
    context: PolicyContext,
    enforced: list[PolicyID],
    direction: Direction,
    policies: Mapping[PolicyID, ActivePolicy],
    groups: dict[str, Chain],
) -> Iterator[tuple[str, Origin]]:
    """Chains to jump to: one a policy, or one a run of policies with the same selector."""

    def selector(policy: PolicyID) -> str | PolicyID:
        known = policies.get(policy)
        return known.selector if known and known.selector else policy

    for key, run in groupby(enforced, key=selector):
        members = tuple(run)
        if len(members) == 1 or not isinstance(key, str):
            for policy in members:
                yield policy_chain(policy, direction), Origin("policy", policy, direction)
            continue
        name = group_chain(key, direction, members)
        if name not in groups:
            groups[name] = Chain(name, tuple(_group_rules(context, members, direction)))
        yield name, Origin("tier", "", direction)


def _group_rules(context: PolicyContext, members: tuple[PolicyID, ...], direction: Direction) -> Iterator[Rule]:
    """Jumps to the members; a verdict ends the group, checked at each jump and, for long groups, at every fifth."""
    verdict = context.marks.accept | context.marks.pass_
    for position, policy in enumerate(members):
        origin = Origin("policy", policy, direction)
        first_of_run = position % _GROUP_RUN == 0
        if first_of_run and position:
            yield Rule(syntax.mark_not_clear(verdict), syntax.RETURN, ("Return on verdict",), origin)
        match = "" if first_of_run else syntax.mark_clear(verdict)
        yield Rule(match, syntax.jump(policy_chain(policy, direction)), (), origin)
