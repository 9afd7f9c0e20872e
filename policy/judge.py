"""Whether a packet gets through one layer of an endpoint's policy, and why.

The rules of evaluation, as Calico states them: tiers in order; inside a tier the first policy that has a say in the
direction and whose rules decide; ``Pass`` goes on to the next tier; packets that no policy of a tier decides meet the
tier's default action; after the last tier the profiles, in order; then deny. A first decision ends it all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from calipy.net import IPAddress
from calipy.policy import model
from calipy.policy.selector import ALL
from calipy.policy.snapshot import Endpoint, Layer, Snapshot
from calipy.policy.values import ICMP, PolicyID, PortRange

Direction: TypeAlias = Literal["ingress", "egress"]
Outcome: TypeAlias = Literal["allow", "deny", "undecided"]


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow, or an answer.

    Attributes:
        protocol: lower-case name, or number.
        source_port, destination_port: 0 for protocols without ports.
        icmp: type and code, for ICMP and ICMPv6.
    """

    source: IPAddress
    destination: IPAddress
    protocol: str | int
    source_port: int = 0
    destination_port: int = 0
    icmp: ICMP | None = None

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.source.version


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was considered on the way.

    Attributes:
        node, endpoint: where; ``endpoint`` is "" for what is no endpoint's.
        layer, direction: which of the endpoint's lists.
        tier, policy, rule: what; ``rule`` counts from 0. Profiles stand in ``policy`` with kind ``Profile``.
        action: what it did: a rule's action, ``end of tier`` with its default, ``no match`` and so on.
    """

    node: str
    endpoint: str
    layer: Layer
    direction: Direction
    action: str
    tier: str = ""
    policy: PolicyID | None = None
    rule: int | None = None


def judge(
    snapshot: Snapshot, endpoint: Endpoint, layer: Layer, direction: Direction, packet: Packet, steps: list[Step]
) -> Outcome:
    """Walk one layer of an endpoint's policy; appends what was considered to ``steps``. O(rules walked).

    Returns:
        The decision. The layers ``untracked`` and ``pre-DNAT`` may leave it open, ``forward`` too after a ``Pass``; in
        ``normal`` the profiles and, at last, deny decide.
    """

    def note(action: str, tier: str = "", policy: PolicyID | None = None, rule: int | None = None) -> None:
        steps.append(Step(endpoint.node, endpoint.name, layer, direction, action, tier, policy, rule))

    ends = layer in {"normal", "forward"}
    for tier, policies in endpoint.layers.get(layer, ()):
        having_a_say = [p for p in policies if (p.ingress if direction == "ingress" else p.egress)]
        if not having_a_say:
            continue
        passed = False
        for policy in having_a_say:
            for index, rule in matching_rules(snapshot, snapshot.rules[policy.id], direction, packet):
                note(rule.action, tier.name, policy.id, index)
                if rule.action == "log":
                    continue
                if rule.action != "pass":
                    return rule.action
                passed = True
                break
            else:
                note("no match", tier.name, policy.id)
            if passed:
                break
        if not passed and ends:
            note(f"end of tier: {tier.default_action}", tier.name)
            if tier.default_action == "Deny":
                return "deny"
    if layer != "normal":
        return "undecided"
    return _judge_profiles(snapshot, endpoint, direction, packet, note)


def _judge_profiles(
    snapshot: Snapshot, endpoint: Endpoint, direction: Direction, packet: Packet, note: Callable[..., None]
) -> Outcome:
    for name in endpoint.profiles:
        ident = PolicyID("Profile", "", name)
        rules = snapshot.profiles.get(name)
        if rules is None:
            note("missing profile: Deny", policy=ident)
            return "deny"
        for index, rule in matching_rules(snapshot, rules, direction, packet):
            note(rule.action, policy=ident, rule=index)
            if rule.action == "pass":
                break
            if rule.action != "log":
                return rule.action
    note("no profile matched: Deny")
    return "deny"


def matching_rules(
    snapshot: Snapshot, rules: model.Rules, direction: Direction, packet: Packet
) -> Iterator[tuple[int, model.Rule]]:
    """The rules of one direction that match a packet, with their places."""
    for index, rule in enumerate(rules.inbound if direction == "ingress" else rules.outbound):
        if rule_matches(snapshot, rule, packet):
            yield index, rule


def rule_matches(snapshot: Snapshot, rule: model.Rule, packet: Packet) -> bool:
    """Whether everything that a rule asks for holds of a packet."""
    if rule.application_layer or rule.ip_version not in {None, packet.family}:
        return False
    if rule.protocol is not None and rule.protocol != packet.protocol:
        return False
    if rule.not_protocol is not None and rule.not_protocol == packet.protocol:
        return False
    if rule.icmp is not None and not _icmp_matches(rule.icmp, packet):
        return False
    if rule.not_icmp is not None and _icmp_matches(rule.not_icmp, packet):
        return False
    return _side_matches(snapshot, rule.source, packet.source, packet.source_port, packet.protocol) and _side_matches(
        snapshot, rule.destination, packet.destination, packet.destination_port, packet.protocol
    )


def _icmp_matches(wanted: ICMP, packet: Packet) -> bool:
    found = packet.icmp
    return found is not None and found.type == wanted.type and wanted.code in {None, found.code}


def _side_matches(snapshot: Snapshot, entity: model.Entity, address: IPAddress, port: int, protocol: str | int) -> bool:
    if entity is model.ANYBODY:
        return True
    if entity.service is not None:  # there are no services in etcd: nobody belongs to one
        return False
    if not _nets_match(entity, address):
        return False
    if entity.selector is not None and not snapshot.matches(address, entity.selector):
        return False
    if entity.not_selector is not None and snapshot.matches(address, entity.not_selector):
        return False
    selector = entity.selector or ALL

    def is_one_of(ranges: tuple[PortRange, ...], names: tuple[str, ...]) -> bool:
        return any(r.first <= port <= r.last for r in ranges) or any(
            snapshot.has_named_port(address, selector, protocol, name, port) for name in names
        )

    if (entity.ports or entity.named_ports) and not is_one_of(entity.ports, entity.named_ports):
        return False
    return not is_one_of(entity.not_ports, entity.not_named_ports)


def _nets_match(entity: model.Entity, address: IPAddress) -> bool:
    """CIDRs of the other family fall out of both lists; a list that empties this way takes the whole rule with it, and
    so does a negated catch-all.
    """
    if not entity.nets and not entity.not_nets:
        return True
    nets = [net for text in entity.nets if (net := ipaddress.ip_network(text)).version == address.version]
    not_nets = [net for text in entity.not_nets if (net := ipaddress.ip_network(text)).version == address.version]
    if (entity.nets and not nets) or (entity.not_nets and not not_nets):
        return False
    if nets and not any(address in net for net in nets):
        return False
    return not any(address in net for net in not_nets)
