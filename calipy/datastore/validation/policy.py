"""Policies, profiles, tiers, network sets."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from msgspec.structs import replace

from calipy.datastore import goscalars
from calipy.datastore.defaults import BUILT_IN_TIERS
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.kinds.policy import KubernetesPort
from calipy.datastore.kinds.rules import EntityRule, Rule
from calipy.datastore.validation import schema
from calipy.datastore.validation.fields import fail, network, port_name, selects, selects_without_global, subdomain
from calipy.datastore.validation.metadata import check_label, check_qualified_name

PROTOCOLS: Final = ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")
_WITH_PORTS: Final = frozenset({"TCP", "UDP", "SCTP", 6, 17, 132})
_ICMP: Final = frozenset({"ICMP", 1})
_ICMP6: Final = frozenset({"ICMPv6", 58})
_PATH: Final = re.compile(r"/[^ ?#]*", re.DOTALL)
Direction = Literal["ingress", "egress"]


def check_policy(resource: Resource[Any, Any]) -> None:
    """All four policies in Calico's own format."""
    spec = resource.spec
    is_global = resource.kind in {"GlobalNetworkPolicy", "StagedGlobalNetworkPolicy"}
    if getattr(spec, "staged_action", "") == "Delete":
        rest = replace(spec, staged_action="", tier="", types=())
        if rest != type(spec)(unknown=spec.unknown):
            fail("a staged deletion has nothing but its tier", "spec.stagedAction", "Delete", "remove the other fields")
    for name in ("selector", "serviceAccountSelector", "namespaceSelector"):
        attribute = re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), name)
        if getattr(spec, attribute, ""):
            selects_without_global(getattr(spec, attribute), f"spec.{name}")
    if is_global:
        _check_host_policy(spec)
    for index, rule in enumerate(spec.ingress):
        check_rule(rule, f"spec.ingress[{index}]", "ingress", need_namespace=is_global)
    for index, rule in enumerate(spec.egress):
        check_rule(rule, f"spec.egress[{index}]", "egress", need_namespace=is_global)


def _check_host_policy(spec: Any) -> None:
    if spec.do_not_track and spec.pre_dnat:
        fail("cannot be combined with preDNAT", "spec.doNotTrack", value=True)
    for field, is_set in (("doNotTrack", spec.do_not_track), ("preDNAT", spec.pre_dnat)):
        if is_set and not spec.apply_on_forward:
            fail("needs applyOnForward", f"spec.{field}", value=True, remedy="set applyOnForward: true")
    if spec.pre_dnat and (spec.egress or "Egress" in spec.types):
        fail("goes with ingress only", "spec.preDNAT", value=True, remedy="remove egress rules and the type Egress")


def check_profile(resource: Resource[Any, Any]) -> None:
    """Rules and labels. Calico has no schema of profiles: what only a schema checks (actions …) may be anything."""
    spec = resource.spec
    for direction, rules in (("ingress", spec.ingress), ("egress", spec.egress)):
        for index, rule in enumerate(rules):
            _check_values(rule, f"spec.{direction}[{index}]")
    for name, value in spec.labels_to_apply.items():
        check_label(name, value, f"spec.labelsToApply[{name}]")


def check_tier(resource: Resource[Any, Any]) -> None:
    """The built-in tiers keep their order and action."""
    fixed = BUILT_IN_TIERS.get(resource.metadata.name)
    if fixed is None:
        return
    if resource.spec.order != fixed.order:
        fail(f"the order of this tier is {fixed.order:.0f}", "spec.order", resource.spec.order)
    if resource.spec.default_action != fixed.default_action:
        fail(f"the action of this tier is {fixed.default_action}", "spec.defaultAction", resource.spec.default_action)


def check_network_set(resource: Resource[Any, Any]) -> None:
    """Addresses and CIDRs, host bits or not."""
    for index, net in enumerate(resource.spec.nets):
        if net:
            network(net, f"spec.nets[{index}]", strict=False, bare=True)


def check_staged_kubernetes(resource: Resource[Any, Any]) -> None:
    """A staged deletion has nothing else; Kubernetes checks its own format, but for what Calico cannot convert."""
    spec = resource.spec
    for direction, rules in (("ingress", spec.ingress), ("egress", spec.egress)):
        for index, rule in enumerate(rules):
            for position, port in enumerate(rule.ports):
                _check_kubernetes_port(port, f"spec.{direction}[{index}].ports[{position}]")
    if spec.staged_action == "Delete" and replace(spec, staged_action="") != type(spec)(unknown=spec.unknown):
        fail("a staged deletion has nothing else", "spec.stagedAction", "Delete", "remove the other fields")


def _check_kubernetes_port(port: KubernetesPort, path: str) -> None:
    if port.port is not None:
        goscalars.port(f"{port.port}" if port.end_port is None else f"{port.port}:{port.end_port}", f"{path}.port")


def check_rule(rule: Rule, path: str, direction: str, *, need_namespace: bool) -> None:
    """One rule.

    Args:
        rule: the rule.
        path: where it stands.
        direction: ``ingress`` or ``egress``: services may only be on the far side.
        need_namespace: a rule outside any namespace has to give that of a service.
    """
    _check_values(rule, path)
    _check_icmp(rule, path)
    far = "source" if direction == "ingress" else "destination"
    for side, entity in (("source", rule.source), ("destination", rule.destination)):
        if entity.selector:
            selects_without_global(entity.selector, f"{path}.{side}.selector")
        if entity.services is not None:
            _check_services(entity, f"{path}.{side}", allowed=side == far, need_namespace=need_namespace)
    if rule.http is not None:
        if rule.protocol not in {None, "TCP", 6}:
            fail("needs protocol TCP, or none", f"{path}.http", rule.protocol)
        if rule.action != "Allow":
            fail("goes with action Allow only", f"{path}.http", rule.action)
        if direction == "egress":
            fail("may stand in ingress rules only", f"{path}.http", list(rule.http.methods))


def _check_values(rule: Rule, path: str) -> None:
    """What holds for every rule, also those of profiles."""
    for field, protocol in ((f"{path}.protocol", rule.protocol), (f"{path}.notProtocol", rule.not_protocol)):
        if protocol is not None and protocol not in PROTOCOLS and not (isinstance(protocol, int) and protocol > 0):
            fail(f"must be one of {', '.join(PROTOCOLS)}, or a number 1-255", field, protocol)
    for field, icmp in ((f"{path}.icmp", rule.icmp), (f"{path}.notICMP", rule.not_icmp)):
        if icmp is not None:
            schema.check(icmp, field)
    _check_families(rule, path)
    for side, entity in (("source", rule.source), ("destination", rule.destination)):
        _check_ports(rule, entity, f"{path}.{side}")
        _check_selectors(entity, f"{path}.{side}")
        if entity.services is not None:
            for field, name in (("name", entity.services.name), ("namespace", entity.services.namespace)):
                if name:
                    subdomain(name, f"{path}.{side}.services.{field}")
    for index, item in enumerate(rule.http.paths if rule.http is not None else ()):
        where = f"{path}.http.paths[{index}]"
        if bool(item.exact) == bool(item.prefix):
            fail("must have exactly one of exact and prefix", where, item.exact)
        if not _PATH.fullmatch(item.exact or item.prefix):
            fail("must be a path that begins with '/', without blanks, '?' and '#'", where, item.exact or item.prefix)
    for name in rule.metadata.annotations if rule.metadata is not None else ():
        check_qualified_name(name.lower(), f"{path}.metadata.annotations[{name}]")


def _check_icmp(rule: Rule, path: str) -> None:
    if rule.icmp is not None and rule.protocol not in _ICMP | _ICMP6:
        fail("needs protocol ICMP or ICMPv6", f"{path}.icmp", rule.protocol)
    for field, icmp in ((f"{path}.icmp", rule.icmp), (f"{path}.notICMP", rule.not_icmp)):
        if icmp is not None and icmp.code is not None and icmp.type is None:
            fail("needs a type", f"{field}.code", icmp.code)
    for protocol in (rule.protocol, rule.not_protocol):
        required = 4 if protocol in _ICMP else 6 if protocol in _ICMP6 else None
        if rule.ip_version and required and rule.ip_version != required:
            fail(f"protocol {protocol} is of IPv{required}", f"{path}.ipVersion", rule.ip_version)


def _check_families(rule: Rule, path: str) -> None:
    version = rule.ip_version
    for side, entity in (("source", rule.source), ("destination", rule.destination)):
        for name, nets in (("nets", entity.nets), ("notNets", entity.not_nets)):
            for index, net in enumerate(nets):
                field = f"{path}.{side}.{name}[{index}]"
                found = network(net, field)
                if version is not None and found.version != version:
                    fail(
                        f"is not of IPv{version} like the rest of the rule",
                        field,
                        net,
                        "write one rule for each family",
                    )
                version = found.version
                if name == "notNets" and found.prefixlen == 0:
                    fail("excludes all addresses", field, net)


def _check_ports(rule: Rule, entity: EntityRule, path: str) -> None:
    for name, ports in (("ports", entity.ports), ("notPorts", entity.not_ports)):
        for index, port in enumerate(ports):
            field = f"{path}.{name}[{index}]"
            if isinstance(port, int):
                if port == 0:
                    fail("must be in 1..65535", field, port)
            elif ":" in port:
                if port.startswith("0:"):
                    fail("must be in 1..65535", field, port)
            else:
                port_name(port, field)
        # The endpoint gives a named port its protocol.
        needed = rule.protocol is not None or any(isinstance(port, int) or ":" in port for port in ports)
        if ports and needed and rule.protocol not in _WITH_PORTS:
            fail("need a protocol that has ports: TCP, UDP or SCTP", f"{path}.{name}", list(ports))


def _check_selectors(entity: EntityRule, path: str) -> None:
    if entity.selector:
        selects(entity.selector, f"{path}.selector")
    if entity.not_selector:
        selects(entity.not_selector, f"{path}.notSelector")
    if entity.namespace_selector:
        selects_without_global(entity.namespace_selector, f"{path}.namespaceSelector", alone=True)
    if entity.service_accounts is not None and entity.service_accounts.selector:
        selects(entity.service_accounts.selector, f"{path}.serviceAccounts.selector")


def _check_services(entity: EntityRule, path: str, *, allowed: bool, need_namespace: bool) -> None:
    service = entity.services
    assert service is not None
    if not allowed:
        fail(
            "may stand in the source of ingress and the destination of egress rules only",
            f"{path}.services",
            service.name,
        )
    with_it = replace(entity, services=None, **({"ports": (), "not_ports": ()} if path.endswith("source") else {}))
    if with_it != EntityRule(unknown=entity.unknown):
        fail("cannot be combined with other matches", f"{path}.services", service.name)
    if not service.name:
        fail("must be given", f"{path}.services.name", service.name)
    if need_namespace and not service.namespace:
        fail("must be given outside of namespaces", f"{path}.services.namespace", service.namespace)
