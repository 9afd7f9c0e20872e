"""Normalised policies: v3 resources with defaults filled in, selectors combined, ports and protocols parsed.

What Felix's graph and the evaluator both start from. Everything is frozen. A resource that cannot be normalised raises
``InvalidInputError``; callers treat it as absent, as Calico does, and report it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from calipy.datastore.keys import ResourceKey
from calipy.datastore.resources import (
    EntityRule,
    GlobalNetworkPolicySpec,
    ICMPFields,
    NetworkPolicySpec,
    ProfileSpec,
    Resource,
    StagedGlobalNetworkPolicySpec,
    StagedKubernetesNetworkPolicySpec,
    StagedNetworkPolicySpec,
    TierSpec,
)
from calipy.datastore.resources import Rule as RuleSpec
from calipy.errors import InvalidInputError
from calipy.policy.effective import entity_selector, parse_field, policy_selector
from calipy.policy.kubernetes import convert_network_policy
from calipy.policy.selector import Selector
from calipy.policy.values import ICMP, PORT_PROTOCOLS, Action, PolicyID, PortRange, cidr, port, protocol

POLICY_KINDS: Final = frozenset({
    "NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy",
    "StagedKubernetesNetworkPolicy",
})  # fmt: skip

DEFAULT_TIER: Final = "default"
DEFAULT_TIER_ORDER: Final = 1_000_000.0
DEFAULT_ALLOW_PROFILE: Final = "projectcalico-default-allow"
"""Allows everything; never stored."""

_ACTIONS: Final[dict[str, Action]] = {
    "allow": "allow",
    "deny": "deny",
    "pass": "pass",
    "next-tier": "pass",
    "log": "log",
}


@dataclass(frozen=True, slots=True)
class Entity:
    """One side of a rule. Empty matches everybody; everything that is given must hold.

    Attributes:
        selector: the side's address belongs to an endpoint or network set that matches; None = no condition.
        not_selector: it belongs to none that matches.
        nets, not_nets: canonical CIDRs; in one of them, in none of them.
        ports, named_ports: the port is in one of either. Without a protocol in the rule, a named port is whatever
            protocol its endpoint gave it.
        not_ports, not_named_ports: the port is in none of either.
        service: namespace and name of a service whose endpoints are meant.
    """

    selector: Selector | None = None
    not_selector: Selector | None = None
    nets: tuple[str, ...] = ()
    not_nets: tuple[str, ...] = ()
    ports: tuple[PortRange, ...] = ()
    named_ports: tuple[str, ...] = ()
    not_ports: tuple[PortRange, ...] = ()
    not_named_ports: tuple[str, ...] = ()
    service: tuple[str, str] | None = None


ANYBODY: Final = Entity()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``protocol``: lower-case name or number.

    Attributes:
        application_layer: asks for HTTP properties, which nobody here can check; such a rule matches nothing.
    """

    action: Action
    ip_version: Literal[4, 6] | None = None
    protocol: str | int | None = None
    not_protocol: str | int | None = None
    icmp: ICMP | None = None
    not_icmp: ICMP | None = None
    source: Entity = ANYBODY
    destination: Entity = ANYBODY
    application_layer: bool = False
    annotations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy without its rules: enough to sort it and to find the endpoints it applies to.

    Attributes:
        order: lower first; ``math.inf`` when not given.
        ingress, egress: the directions it has a say in, by ``types`` or Calico's defaulting of it.
        staged: kept and shown, never enforced.
        always_active: wanted on every node, matching endpoint or not (a performance hint).
    """

    id: PolicyID
    tier: str
    order: float
    selector: Selector
    ingress: bool
    egress: bool
    staged: bool = False
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    always_active: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of a policy or profile, in order, per direction as endpoints see it."""

    inbound: tuple[Rule, ...] = ()
    outbound: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier. ``exists`` is False for one that policies name and nobody created: it sorts last and denies."""

    name: str
    order: float = DEFAULT_TIER_ORDER
    default_action: Literal["Deny", "Pass"] = "Deny"
    exists: bool = True


BUILT_IN_TIERS: Final = {
    "kube-admin": Tier("kube-admin", 1_000.0, "Pass"),
    DEFAULT_TIER: Tier(DEFAULT_TIER),
    "kube-baseline": Tier("kube-baseline", 10_000_000.0, "Pass"),
}
"""Tiers that are there whether stored or not."""

ALLOW_ALL: Final = Rules((Rule("allow"),), (Rule("allow"),))
DENY_ALL: Final = Rules((Rule("deny"),), (Rule("deny"),))


def tier(name: str, resource: Resource[TierSpec, Any]) -> Tier:
    """Normalise the Tier of a name; an absent order is 1,000,000, an unknown default action is Deny (fails closed)."""
    spec = resource.spec
    order = DEFAULT_TIER_ORDER if spec.order is None else float(spec.order)
    return Tier(name, order, "Pass" if spec.default_action == "Pass" else "Deny")


def policy(key: ResourceKey, resource: Resource[Any, Any]) -> Policy | None:
    """Normalise the head of any policy kind. O(size of its selectors), parsed once per text.

    Args:
        key: where it is stored; its name and namespace count, whatever the metadata say.
        resource: a policy resource.

    Returns:
        None for a staged object that stages no rules (``stagedAction`` ``Delete`` or ``Ignore``).

    Raises:
        InvalidInputError: a selector does not parse, or the kind is no policy.
    """
    resource, action = _as_calico(key, resource)
    spec = resource.spec
    if action in {"Delete", "Ignore"}:
        return None
    ident = PolicyID(key.kind, key.namespace, key.name)
    if isinstance(spec, NetworkPolicySpec | StagedNetworkPolicySpec):
        applies_to = policy_selector(
            spec.selector, namespace=key.namespace, service_account_selector=spec.service_account_selector
        )
        track = (False, False, False)
    elif isinstance(spec, GlobalNetworkPolicySpec | StagedGlobalNetworkPolicySpec):
        applies_to = policy_selector(
            spec.selector,
            namespace_selector=spec.namespace_selector,
            service_account_selector=spec.service_account_selector,
        )
        track = (spec.do_not_track, spec.pre_dnat, spec.apply_on_forward)
    else:
        raise InvalidInputError("not a policy", field="kind", value=key.kind)
    types = effective_types(spec.types, has_ingress=bool(spec.ingress), has_egress=bool(spec.egress))
    return Policy(
        ident,
        spec.tier or DEFAULT_TIER,
        math.inf if spec.order is None else float(spec.order),
        applies_to,
        "Ingress" in types,
        "Egress" in types,
        key.kind.startswith("Staged"),
        *track,
        "AssumeNeededOnEveryNode" in spec.performance_hints,
    )


def policy_rules(key: ResourceKey, resource: Resource[Any, Any]) -> Rules:
    """Normalise the rules of any policy kind; both lists as written, whatever ``types`` says.

    Raises:
        InvalidInputError: a rule is not valid; names the field.
    """
    resource, _ = _as_calico(key, resource)
    return _rules(resource.spec.ingress, resource.spec.egress, key.namespace)


def profile_rules(resource: Resource[ProfileSpec, Any]) -> Rules:
    """Normalise the rules of a profile.

    Raises:
        InvalidInputError: a rule is not valid; names the field.
    """
    return _rules(resource.spec.ingress, resource.spec.egress, "")


def effective_types(types: tuple[str, ...], *, has_ingress: bool, has_egress: bool) -> tuple[str, ...]:
    """``types`` of a policy, or Calico's default for it: Ingress unless there are only egress rules, Egress if any."""
    if types:
        return types
    if has_egress:
        return ("Ingress", "Egress") if has_ingress else ("Egress",)
    return ("Ingress",)


def _as_calico(key: ResourceKey, resource: Resource[Any, Any]) -> tuple[Resource[Any, Any], str]:
    """The resource with rules in Calico's form, and its staged action ("" for what is not staged)."""
    if key.kind != "StagedKubernetesNetworkPolicy":
        return resource, getattr(resource.spec, "staged_action", "")
    spec: StagedKubernetesNetworkPolicySpec = resource.spec
    document = {
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": msgspec.to_builtins(spec),
    }
    converted = convert_network_policy(document)
    staged = StagedNetworkPolicySpec(
        tier=converted.spec.tier,
        order=converted.spec.order,
        ingress=converted.spec.ingress,
        egress=converted.spec.egress,
        selector=converted.spec.selector,
        types=converted.spec.types,
    )
    return msgspec.structs.replace(resource, spec=staged), spec.staged_action


def _rules(ingress: tuple[RuleSpec, ...], egress: tuple[RuleSpec, ...], namespace: str) -> Rules:
    return Rules(
        tuple(_rule(rule, namespace, f"spec.ingress[{i}]") for i, rule in enumerate(ingress)),
        tuple(_rule(rule, namespace, f"spec.egress[{i}]") for i, rule in enumerate(egress)),
    )


def _rule(rule: RuleSpec, namespace: str, field: str) -> Rule:
    action = _ACTIONS.get(rule.action.lower())
    if action is None:
        raise InvalidInputError(
            "not an action", field=f"{field}.action", value=rule.action, remedy="Allow, Deny, Log or Pass"
        )
    if rule.ip_version not in {None, 4, 6}:
        raise InvalidInputError("not an IP version", field=f"{field}.ipVersion", value=rule.ip_version, remedy="4 or 6")
    proto = protocol(rule.protocol, f"{field}.protocol")
    source = _entity(rule.source, namespace, f"{field}.source")
    destination = _entity(rule.destination, namespace, f"{field}.destination")
    for side, entity in (("source", source), ("destination", destination)):
        numbers, names = entity.ports or entity.not_ports, entity.named_ports or entity.not_named_ports
        if (numbers and proto not in PORT_PROTOCOLS) or (names and proto not in {None, *PORT_PROTOCOLS}):
            raise InvalidInputError(
                "ports need a protocol that has them",
                field=f"{field}.{side}.ports",
                value=rule.protocol,
                remedy="set protocol to TCP, UDP or SCTP",
            )
    icmp, not_icmp = _icmp(rule.icmp, proto, f"{field}.icmp"), _icmp(rule.not_icmp, proto, f"{field}.notICMP")
    annotations = rule.metadata.annotations if rule.metadata else {}
    return Rule(
        action,
        4 if rule.ip_version == 4 else 6 if rule.ip_version == 6 else None,
        proto,
        protocol(rule.not_protocol, f"{field}.notProtocol"),
        icmp,
        not_icmp,
        source,
        destination,
        rule.http is not None,
        tuple(f"{key}={value}" for key, value in sorted(annotations.items())),
    )


def _icmp(fields: ICMPFields | None, proto: int | str | None, field: str) -> ICMP | None:
    if fields is None or (fields.type is None and fields.code is None):
        return None
    if fields.type is None:
        raise InvalidInputError("a code needs a type", field=field, value=fields.code, remedy="set type too")
    if proto not in {"icmp", "icmpv6"}:
        raise InvalidInputError(
            "ICMP types need an ICMP protocol", field=field, value=fields.type, remedy="set protocol to ICMP or ICMPv6"
        )
    if not 0 <= fields.type <= 254 or not 0 <= (fields.code or 0) <= 255:
        raise InvalidInputError(
            "out of range", field=field, value=(fields.type, fields.code), remedy="type 0-254, code 0-255"
        )
    return ICMP(fields.type, fields.code)


def _entity(entity: EntityRule, namespace: str, field: str) -> Entity:
    if entity == _NOBODY_IN_PARTICULAR:
        return ANYBODY
    ports = [port(value, f"{field}.ports[{i}]") for i, value in enumerate(entity.ports)]
    not_ports = [port(value, f"{field}.notPorts[{i}]") for i, value in enumerate(entity.not_ports)]
    service = entity.services
    return Entity(
        entity_selector(entity, namespace, field),
        parse_field(entity.not_selector, f"{field}.notSelector") if entity.not_selector else None,
        _cidrs(entity.nets, f"{field}.nets"),
        _cidrs(entity.not_nets, f"{field}.notNets"),
        tuple(p for p in ports if isinstance(p, PortRange)),
        tuple(p for p in ports if isinstance(p, str)),
        tuple(p for p in not_ports if isinstance(p, PortRange)),
        tuple(p for p in not_ports if isinstance(p, str)),
        None if service is None else (service.namespace or namespace, service.name),
    )


_NOBODY_IN_PARTICULAR: Final = EntityRule()


def _cidrs(texts: tuple[str, ...], field: str) -> tuple[str, ...]:
    found = []
    for i, text in enumerate(texts):
        try:
            found.append(cidr(text))
        except ValueError:
            raise InvalidInputError(
                "not a CIDR", field=f"{field}[{i}]", value=text, remedy="for example 10.0.0.0/8 or fd00::/64"
            ) from None
    return tuple(found)
