"""Kubernetes NetworkPolicy, Namespace and ServiceAccount as the Calico objects that stand for them in etcd.

Source: Calico ``libcalico-go/lib/backend/k8s/conversion`` and ``kube-controllers/pkg/converter``. Documents are dicts
as parsed from JSON or YAML. ``admit_network_policy`` plays the API server's part, which checks a policy and fills in
its defaults before a converter sees it; ``convert_network_policy`` alone takes a document as literally as Calico does.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from calipy.datastore.resources import EntityRule, NetworkPolicySpec, NoStatus, ObjectMeta, ProfileSpec, Resource, Rule
from calipy.errors import InvalidInputError
from calipy.policy.effective import NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX

POLICY_PREFIX: Final = "knp.default."
POLICY_ORDER: Final = 1000.0
NAMESPACE_PROFILE: Final = "kns."
SERVICE_ACCOUNT_PROFILE: Final = "ksa."
NAME_LABEL: Final = "projectcalico.org/name"

_IS_KUBERNETES: Final = "projectcalico.org/orchestrator == 'k8s'"
_PORT_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


class ConversionError(InvalidInputError):
    """Some rules of a policy cannot be converted. ``partial`` is the policy without them: what Calico enforces."""

    def __init__(self, errors: Sequence[InvalidInputError], partial: Resource[NetworkPolicySpec, NoStatus]) -> None:
        first = errors[0]
        name = f"{partial.metadata.namespace}/{partial.metadata.name}"
        super().__init__(
            f"{name}: {len(errors)} rule(s) cannot be converted; first: {first.args[0]}",
            remedy=first.remedy,
        )
        self.errors = tuple(errors)
        self.partial = partial


def namespace_profile_name(namespace: str) -> str:
    """``shop`` → ``kns.shop``."""
    return NAMESPACE_PROFILE + namespace


def service_account_profile_name(namespace: str, account: str) -> str:
    """``shop``, ``default`` → ``ksa.shop.default``."""
    return f"{SERVICE_ACCOUNT_PROFILE}{namespace}.{account}"


def parse_namespace_profile(profile: str) -> str | None:
    """The namespace that a profile name stands for, or None."""
    return profile.removeprefix(NAMESPACE_PROFILE) if profile.startswith(NAMESPACE_PROFILE) else None


def parse_service_account_profile(profile: str) -> tuple[str, str] | None:
    """Namespace and service account that a profile name stands for, or None. Account names may hold dots."""
    if not profile.startswith(SERVICE_ACCOUNT_PROFILE):
        return None
    namespace, dot, account = profile.removeprefix(SERVICE_ACCOUNT_PROFILE).partition(".")
    return (namespace, account) if dot else None


def convert_namespace(document: Mapping[str, Any]) -> Resource[ProfileSpec, NoStatus]:
    """A Namespace's profile ``kns.<name>``: allows everything, hands the labels down as ``pcns.…``.

    Raises:
        InvalidInputError: no name, or labels that are not a map of texts.
    """
    name = _text(_metadata(document), "name", "metadata.name")
    labels = _labels(_metadata(document), "metadata.labels")
    applied = {NAMESPACE_PREFIX + key: value for key, value in labels.items()}
    applied[NAMESPACE_PREFIX + NAME_LABEL] = name
    return _profile(namespace_profile_name(name), applied, (Rule(action="Allow"),))


def convert_service_account(document: Mapping[str, Any]) -> Resource[ProfileSpec, NoStatus]:
    """A ServiceAccount's profile ``ksa.<namespace>.<name>``: no rules, hands the labels down as ``pcsa.…``.

    Raises:
        InvalidInputError: no name or namespace, or labels that are not a map of texts.
    """
    metadata = _metadata(document)
    name, namespace = _text(metadata, "name", "metadata.name"), _text(metadata, "namespace", "metadata.namespace")
    applied = {SERVICE_ACCOUNT_PREFIX + key: value for key, value in _labels(metadata, "metadata.labels").items()}
    applied[SERVICE_ACCOUNT_PREFIX + NAME_LABEL] = name
    return _profile(service_account_profile_name(namespace, name), applied, ())


def admit_network_policy(document: Mapping[str, Any]) -> dict[str, Any]:
    """Check a NetworkPolicy as the API server would and fill in its defaults; returns a new document.

    ``policyTypes`` becomes Ingress, plus Egress when there are egress rules; the protocol of a port becomes TCP.

    Raises:
        InvalidInputError: names the field, the value and what would be right.
    """
    admitted: dict[str, Any] = deepcopy(dict(document))
    spec = _map(admitted, "spec", "spec")
    admitted["spec"] = spec
    types = spec.get("policyTypes") or []
    if not isinstance(types, list):
        raise InvalidInputError("not a list", field="spec.policyTypes", value=types, remedy="e.g. [Ingress]")
    for i, kind in enumerate(types):
        if kind not in {"Ingress", "Egress"}:
            raise InvalidInputError(
                "not a policy type", field=f"spec.policyTypes[{i}]", value=kind, remedy="Ingress or Egress"
            )
    if not types:
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(_list(spec, direction, f"spec.{direction}")):
            field = f"spec.{direction}[{i}]"
            for j, peer in enumerate(_list(rule, peers, f"{field}.{peers}")):
                _check_peer(peer, f"{field}.{peers}[{j}]")
            for j, port in enumerate(_list(rule, "ports", f"{field}.ports")):
                if port.get("protocol") is None:
                    port["protocol"] = "TCP"
                _check_port(port, f"{field}.ports[{j}]")
    convert_network_policy(admitted)
    return admitted


def convert_network_policy(document: Mapping[str, Any]) -> Resource[NetworkPolicySpec, NoStatus]:
    """A Kubernetes NetworkPolicy as the NetworkPolicy ``knp.default.<name>`` of order 1000 in the default tier.

    One rule comes out per protocol and peer; ports of a protocol are joined to ranges. As in Calico, absent
    ``policyTypes`` mean Ingress only and a peer whose ``ipBlock`` does not parse is taken as no restriction: pass
    documents that no API server has seen through ``admit_network_policy`` first.

    Raises:
        ConversionError: some rules cannot be converted; its ``partial`` holds the rest.
        InvalidInputError: the document is not a NetworkPolicy.
    """
    metadata, spec = _metadata(document), _map(document, "spec", "spec")
    name, namespace = _text(metadata, "name", "metadata.name"), _text(metadata, "namespace", "metadata.namespace")
    errors: list[InvalidInputError] = []
    rules: dict[str, list[Rule]] = {"ingress": [], "egress": []}
    for direction, converted in rules.items():
        for i, rule in enumerate(_list(spec, direction, f"spec.{direction}")):
            try:
                converted.extend(_convert_rule(rule, direction, f"spec.{direction}[{i}]"))
            except InvalidInputError as error:
                errors.append(error)
    given = spec.get("policyTypes") or ()
    types = tuple(kind for kind in ("Ingress", "Egress") if kind in given) or ("Ingress",)
    policy: Resource[NetworkPolicySpec, NoStatus] = Resource(
        kind="NetworkPolicy",
        metadata=ObjectMeta(name=POLICY_PREFIX + name, namespace=namespace),
        spec=NetworkPolicySpec(
            tier="default",
            order=POLICY_ORDER,
            ingress=tuple(rules["ingress"]),
            egress=tuple(rules["egress"]),
            selector=_pod_selector(spec.get("podSelector"), "spec.podSelector"),
            types=types,
        ),
    )
    if errors:
        raise ConversionError(errors, policy)
    return policy


def _convert_rule(rule: Mapping[str, Any], direction: str, field: str) -> list[Rule]:
    peers_name = "from" if direction == "ingress" else "to"
    peers = [
        _peer(peer, f"{field}.{peers_name}[{i}]")
        for i, peer in enumerate(_list(rule, peers_name, f"{field}.{peers_name}"))
    ] or [EntityRule()]
    rules = []
    for protocol, ports in sorted(_ports_by_protocol(_list(rule, "ports", f"{field}.ports"), field).items()):
        for peer in peers:
            if direction == "ingress":
                source, destination = peer, EntityRule(ports=ports)
            else:
                source, destination = EntityRule(), _with_ports(peer, ports)
            rules.append(Rule(action="Allow", protocol=protocol or None, source=source, destination=destination))
    return rules


def _with_ports(peer: EntityRule, ports: tuple[int | str, ...]) -> EntityRule:
    return EntityRule(
        nets=peer.nets,
        not_nets=peer.not_nets,
        selector=peer.selector,
        namespace_selector=peer.namespace_selector,
        ports=ports,
    )


def _ports_by_protocol(ports: list[Mapping[str, Any]], field: str) -> dict[str, tuple[int | str, ...]]:
    """Ports of each protocol, () = all of its ports; ``{"": ()}`` when any protocol will do."""
    if not ports:
        return {"": ()}
    found: dict[str, list[int | str] | None] = {}
    for i, port in enumerate(ports):
        protocol = port.get("protocol") or "TCP"
        if port.get("port") is None:
            found[protocol] = None
        elif (sofar := found.setdefault(protocol, [])) is not None:
            sofar.append(_port(port, f"{field}.ports[{i}]"))
    return {protocol: _join(values) if values else () for protocol, values in found.items()}


def _port(port: Mapping[str, Any], field: str) -> int | str:
    value, end = port["port"], port.get("endPort")
    text = str(value) if end is None else f"{value}:{end}"
    first, _, last = text.partition(":")
    if first.isdecimal() and (last or first).isdecimal():
        if not int(first) <= int(last or first) <= 65535:
            raise InvalidInputError("not a port range", field=field, value=text, remedy="ascending, at most 65535")
        return int(first) if not last or int(first) == int(last) else f"{int(first)}:{int(last)}"
    if end is not None or not _PORT_NAME.fullmatch(text):
        raise InvalidInputError("not a port", field=field, value=text, remedy="endPort needs a numeric port")
    return text


def _join(ports: list[int | str]) -> tuple[int | str, ...]:
    """Names first, then ranges that cover the numbers; ports as given when there is at most one number."""
    names: list[int | str] = []
    ranges: list[tuple[int, int]] = []
    for port in ports:
        first, _, last = str(port).partition(":")
        if first.isdecimal():
            ranges.append((int(first), int(last or first)))
        else:
            names.append(port)
    if not ranges or (len(ranges) == 1 and ranges[0][0] == ranges[0][1]):
        return tuple(ports)
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return (*names, *(low if low == high else f"{low}:{high}" for low, high in joined))


def _peer(peer: Mapping[str, Any], field: str) -> EntityRule:
    block = peer.get("ipBlock")
    if block is not None:
        return _ip_block(block)
    spaces = peer.get("namespaceSelector")
    return EntityRule(
        selector=_pod_selector(peer.get("podSelector"), f"{field}.podSelector"),
        namespace_selector="" if spaces is None else _label_selector(spaces, f"{field}.namespaceSelector") or "all()",
    )


def _ip_block(block: Mapping[str, Any]) -> EntityRule:
    """As Calico: an unparsable CIDR, which no API server lets through, ends the conversion of the block there."""
    nets: list[str] = []
    for text in (block.get("cidr", ""), *(block.get("except") or ())):
        if "/" not in text or (network := _network(text)) is None:
            break
        nets.append(network)
    return EntityRule(nets=tuple(nets[:1]), not_nets=tuple(nets[1:]))


def _network(text: str) -> str | None:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return None


def _pod_selector(selector: Mapping[str, Any] | None, field: str) -> str:
    terms = _label_selector(selector or {}, field)
    return f"{_IS_KUBERNETES} && {terms}" if terms else _IS_KUBERNETES


def _label_selector(selector: Mapping[str, Any], field: str) -> str:
    """A Kubernetes label selector as a Calico one; "" when it has no terms."""
    labels = _map(selector, "matchLabels", f"{field}.matchLabels")
    terms = [f"{key} == '{value}'" for key, value in sorted(labels.items())]
    for i, requirement in enumerate(_list(selector, "matchExpressions", f"{field}.matchExpressions")):
        key, operator = requirement.get("key", ""), requirement.get("operator", "")
        values = "', '".join(requirement.get("values") or ())
        match operator:
            case "In":
                terms.append(f"{key} in {{ '{values}' }}")
            case "NotIn":
                terms.append(f"{key} not in {{ '{values}' }}")
            case "Exists":
                terms.append(f"has({key})")
            case "DoesNotExist":
                terms.append(f"! has({key})")
            case _:
                raise InvalidInputError(
                    "not an operator",
                    field=f"{field}.matchExpressions[{i}].operator",
                    value=operator,
                    remedy="In, NotIn, Exists or DoesNotExist",
                )
    return " && ".join(terms)


def _check_peer(peer: Mapping[str, Any], field: str) -> None:
    block = peer.get("ipBlock")
    if block is None:
        if peer.get("podSelector") is None and peer.get("namespaceSelector") is None:
            raise InvalidInputError(
                "empty peer", field=field, value=peer, remedy="give podSelector, namespaceSelector or ipBlock"
            )
        return
    if peer.get("podSelector") is not None or peer.get("namespaceSelector") is not None:
        raise InvalidInputError("ipBlock excludes selectors", field=field, value=peer, remedy="use two peers")
    block = _map(peer, "ipBlock", f"{field}.ipBlock")
    outer = _check_cidr(block.get("cidr"), f"{field}.ipBlock.cidr")
    for i, text in enumerate(_texts(block, "except", f"{field}.ipBlock.except")):
        inner = _check_cidr(text, f"{field}.ipBlock.except[{i}]")
        if inner.version != outer.version or inner.prefixlen <= outer.prefixlen or inner.network_address not in outer:
            raise InvalidInputError(
                f"not strictly inside {outer}",
                field=f"{field}.ipBlock.except[{i}]",
                value=text,
                remedy="a part of cidr",
            )


def _check_cidr(text: Any, field: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if isinstance(text, str) and "/" in text:
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError:
            pass
    raise InvalidInputError("not a CIDR", field=field, value=text, remedy="with its length, for example 10.0.0.0/8")


def _check_port(port: Mapping[str, Any], field: str) -> None:
    if port["protocol"] not in {"TCP", "UDP", "SCTP"}:
        raise InvalidInputError(
            "not a protocol of ports", field=f"{field}.protocol", value=port["protocol"], remedy="TCP, UDP or SCTP"
        )
    if port.get("port") is None and port.get("endPort") is not None:
        raise InvalidInputError(
            "endPort needs port", field=f"{field}.endPort", value=port["endPort"], remedy="give port"
        )


def _profile(name: str, labels: dict[str, str], rules: tuple[Rule, ...]) -> Resource[ProfileSpec, NoStatus]:
    return Resource(
        kind="Profile",
        metadata=ObjectMeta(name=name),
        spec=ProfileSpec(ingress=rules, egress=rules, labels_to_apply=labels),
    )


def _metadata(document: Mapping[str, Any]) -> Mapping[str, Any]:
    return _map(document, "metadata", "metadata")


def _labels(metadata: Mapping[str, Any], field: str) -> dict[str, str]:
    labels = _map(metadata, "labels", field)
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInputError("labels map texts to texts", field=f"{field}.{key}", value=value, remedy="quote it")
    return labels


def _text(source: Mapping[str, Any], key: str, field: str) -> str:
    value = source.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidInputError("a name is needed", field=field, value=value, remedy="set it")
    return value


def _map(source: Mapping[str, Any], key: str, field: str) -> dict[str, Any]:
    value = source.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise InvalidInputError("not a map", field=field, value=value, remedy="check the indentation")
    return dict(value or {})


def _list(source: Mapping[str, Any], key: str, field: str) -> list[Any]:
    value = source.get(key)
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
        raise InvalidInputError("not a list of maps", field=field, value=value, remedy="check the dashes")
    return list(value)


def _texts(source: Mapping[str, Any], key: str, field: str) -> list[str]:
    value = source.get(key)
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidInputError("not a list", field=field, value=value, remedy="check the dashes")
    return list(value)
