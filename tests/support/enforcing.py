"""Judges packets by what the graph said, as a perfect dataplane would: no chains, only messages and set members."""

from __future__ import annotations

import ipaddress
from typing import Literal

from calipy.felix.messages import ICMP, Match, PortRange, Rule, WorkloadEndpoint
from calipy.policy.judge import Packet
from tests.support.enforced import Enforced

Direction = Literal["ingress", "egress"]


def endpoint_of(state: Enforced, address: str) -> WorkloadEndpoint | None:
    """The local endpoint that has an address."""
    return next((e for e in state.endpoints.values() if any(net.split("/")[0] == address for net in e.nets)), None)


def allows(state: Enforced, endpoint: WorkloadEndpoint, direction: Direction, packet: Packet) -> bool:
    """Whether a new packet passes an endpoint's tiers and profiles."""
    for tier in endpoint.tiers:
        policies = tier.ingress if direction == "ingress" else tier.egress
        if not policies:
            continue
        decision = _first(state, [state.policies[ident] for ident in policies], direction, packet)
        if decision is None:
            decision = tier.default_action.lower()
        if decision != "pass":
            return decision == "allow"
    for name in endpoint.profiles:
        decision = _first(state, [state.profiles[name]], direction, packet)
        if decision in {"allow", "deny"}:
            return decision == "allow"
    return False


def _first(state: Enforced, owners: list, direction: Direction, packet: Packet) -> str | None:
    for owner in owners:
        for rule in owner.inbound if direction == "ingress" else owner.outbound:
            if rule.action != "log" and _rule_matches(state, rule, packet):
                return rule.action
    return None


def _rule_matches(state: Enforced, rule: Rule, packet: Packet) -> bool:
    return (
        rule.ip_version in {None, packet.source.version}
        and rule.protocol in {None, packet.protocol}
        and (rule.not_protocol is None or rule.not_protocol != packet.protocol)
        and (rule.icmp is None or _icmp(rule.icmp, packet))
        and (rule.not_icmp is None or not _icmp(rule.not_icmp, packet))
        and _side(state, rule.src, str(packet.source), packet.source_port, packet)
        and _side(state, rule.dst, str(packet.destination), packet.destination_port, packet)
    )


def _icmp(wanted: ICMP, packet: Packet) -> bool:
    return packet.icmp is not None and wanted in {packet.icmp, ICMP(packet.icmp.type, None)}


def _side(state: Enforced, match: Match, address: str, port: int, packet: Packet) -> bool:
    version = packet.source.version
    for nets, wanted in ((match.nets, True), (match.not_nets, False)):
        own = tuple(net for net in nets if ipaddress.ip_network(net).version == version)
        if nets and (not own or _in_nets(address, own) != wanted):
            return False
    if not all(_in_set(state, ident, address) for ident in match.ip_sets):
        return False
    if any(_in_set(state, ident, address) for ident in match.not_ip_sets):
        return False
    member = f"{address},{packet.protocol}:{port}"
    if not all(member in state.ip_sets[ident][1] for ident in match.services):
        return False
    if (match.ports or match.named_ports) and not _port(state, match.ports, match.named_ports, member, port):
        return False
    return not _port(state, match.not_ports, match.not_named_ports, member, port)


def _port(state: Enforced, ranges: tuple[PortRange, ...], sets: tuple[str, ...], member: str, port: int) -> bool:
    return any(r.first <= port <= r.last for r in ranges) or any(member in state.ip_sets[ident][1] for ident in sets)


def _in_set(state: Enforced, ident: str, address: str) -> bool:
    kind, members = state.ip_sets[ident]
    assert kind == "net"
    return address in members or _in_nets(address, tuple(m for m in members if "/" in m))


def _in_nets(address: str, nets: tuple[str, ...]) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in network for net in nets if (network := ipaddress.ip_network(net)).version == found.version)
