"""Normalised policies: effective selectors, defaults, parsed values, and clear errors."""

from __future__ import annotations

import math
from typing import Any

import pytest

from calipy.errors import InvalidInputError
from calipy.policy import model
from calipy.policy.order import arrange
from calipy.policy.values import ICMP, PortRange, host_address, port, protocol, set_members
from tests.support.objects import global_policy, make, network_policy

NAMESPACE = 'projectcalico.org/namespace == "shop"'
WITH_ACCOUNT = "has(projectcalico.org/serviceaccount)"
ACCOUNT = "projectcalico.org/serviceaccount"


def _policy(found: tuple[Any, Any]) -> model.Policy:
    policy = model.policy(*found)
    assert policy is not None
    return policy


def _rule(spec: dict[str, Any], *, namespaced: bool = True) -> model.Rule:
    found = network_policy("p", ingress=[spec]) if namespaced else global_policy("p", ingress=[spec])
    return model.policy_rules(*found).inbound[0]


@pytest.mark.parametrize(
    ("found", "selector"),
    [
        (network_policy("p"), NAMESPACE),
        (network_policy("p", selector="a == 'b' || c == 'd'"), f'((a == "b" || c == "d") && {NAMESPACE})'),
        (network_policy("p", serviceAccountSelector="x == 'y'"), f'({NAMESPACE} && pcsa.x == "y")'),
        (
            network_policy("p", serviceAccountSelector="all()"),
            f"({NAMESPACE} && {WITH_ACCOUNT})",
        ),
        (global_policy("p"), "all()"),
        (global_policy("p", selector="all()"), "all()"),
        (global_policy("p", namespaceSelector="all()"), "has(projectcalico.org/namespace)"),
        (global_policy("p", namespaceSelector="team == 'a'"), 'pcns.team == "a"'),
        (
            global_policy("p", selector="all()", namespaceSelector="team == 'a'"),
            '(has(projectcalico.org/namespace) && pcns.team == "a")',
        ),
        (
            global_policy("p", selector="k == 'all()'", namespaceSelector="all()"),
            '(k == "all()" && has(projectcalico.org/namespace))',
        ),
    ],
)
def test_effective_selector_of_a_policy(found: tuple[Any, Any], selector: str) -> None:
    """Selector, namespace, namespace selector and service-account selector combine as Calico combines them."""
    assert _policy(found).selector.canonical == selector


@pytest.mark.parametrize(
    ("entity", "selector"),
    [
        ({}, None),
        ({"nets": ["10.0.0.0/8"]}, None),
        ({"selector": "a == 'b'"}, f'({NAMESPACE} && a == "b")'),
        ({"notSelector": "a == 'b'"}, NAMESPACE),
        ({"namespaceSelector": "all()"}, "has(projectcalico.org/namespace)"),
        ({"namespaceSelector": "global()"}, "!has(projectcalico.org/namespace)"),
        ({"namespaceSelector": "t == 'x'", "selector": "a == 'b'"}, '(pcns.t == "x" && a == "b")'),
        (
            {"serviceAccounts": {"names": ["b", "a"]}},
            f'({NAMESPACE} && {ACCOUNT} in {{"a", "b"}})',
        ),
        ({"serviceAccounts": {"selector": "r == 'x'"}}, f'({NAMESPACE} && pcsa.r == "x")'),
        (
            {"serviceAccounts": {"names": ["a"], "selector": "r == 'x'"}, "selector": "k == 'v'"},
            f'({NAMESPACE} && ((pcsa.r == "x" && projectcalico.org/serviceaccount in {{"a"}}) && k == "v"))',
        ),
    ],
)
def test_effective_selector_of_a_rule(entity: dict[str, Any], selector: str | None) -> None:
    """A rule of a namespaced policy means its own namespace as soon as it selects anything."""
    found = _rule({"action": "Allow", "source": entity}).source.selector
    assert (found.canonical if found else None) == selector


def test_not_selector_is_not_namespaced() -> None:
    """The negative match of a rule covers endpoints of all namespaces."""
    found = _rule({"action": "Allow", "source": {"notSelector": "a == 'b'"}}).source
    assert found.not_selector is not None
    assert found.not_selector.canonical == 'a == "b"'


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, (True, False)),
        ({"ingress": [{"action": "Allow"}]}, (True, False)),
        ({"egress": [{"action": "Allow"}]}, (False, True)),
        ({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}, (True, True)),
        ({"types": ["Ingress"], "egress": [{"action": "Allow"}]}, (True, False)),
        ({"types": ["Egress"]}, (False, True)),
    ],
)
def test_types_default(spec: dict[str, Any], types: tuple[bool, bool]) -> None:
    """Absent types depend on which lists of rules exist; given ones count as they are."""
    policy = _policy(network_policy("p", **spec))
    assert (policy.ingress, policy.egress) == types


def test_defaults_of_order_and_tier() -> None:
    """No order is last, no tier is ``default``; a tier without order counts as 1,000,000 and denies."""
    policy = _policy(network_policy("p"))
    assert (policy.order, policy.tier) == (math.inf, "default")
    assert model.tier("t", make("Tier", "t", {})[1]) == model.Tier("t", 1_000_000.0, "Deny")


def test_rule_values() -> None:
    """Ports split into ranges and names, protocols get one spelling, CIDRs are masked."""
    rule = _rule({
        "action": "Deny",
        "ipVersion": 4,
        "protocol": 6,
        "destination": {"ports": [80, "90:99", "http"], "notPorts": ["dns", 53], "nets": ["10.1.2.3/8"]},
        "source": {"notNets": ["192.0.2.1"]},
        "metadata": {"annotations": {"b": "2", "a": "1"}},
    })  # fmt: skip
    assert (rule.action, rule.ip_version, rule.protocol) == ("deny", 4, "tcp")
    assert (rule.destination.ports, rule.destination.named_ports) == ((PortRange(80, 80), PortRange(90, 99)), ("http",))
    assert (rule.destination.not_ports, rule.destination.not_named_ports) == ((PortRange(53, 53),), ("dns",))
    assert (rule.destination.nets, rule.source.not_nets) == (("10.0.0.0/8",), ("192.0.2.1/32",))
    assert rule.annotations == ("a=1", "b=2")
    icmp = _rule({"action": "Pass", "protocol": "ICMP", "icmp": {"type": 8}, "notICMP": {"type": 3, "code": 1}})
    assert (icmp.action, icmp.icmp, icmp.not_icmp) == ("pass", ICMP(8, None), ICMP(3, 1))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"action": "Maybe"}, "spec.ingress[0].action"),
        ({"action": "Allow", "source": {"selector": "a ="}}, "spec.ingress[0].source.selector"),
        ({"action": "Allow", "source": {"notSelector": "a ="}}, "spec.ingress[0].source.notSelector"),
        ({"action": "Allow", "source": {"namespaceSelector": "a ="}}, "spec.ingress[0].source.namespaceSelector"),
        ({"action": "Allow", "source": {"nets": ["10.0.0.0/33"]}}, "spec.ingress[0].source.nets[0]"),
        ({"action": "Allow", "protocol": "TCP", "source": {"ports": ["9:1"]}}, "spec.ingress[0].source.ports[0]"),
        ({"action": "Allow", "source": {"ports": [80]}}, "spec.ingress[0].source.ports"),
        ({"action": "Allow", "protocol": "ICMP", "source": {"ports": ["http"]}}, "spec.ingress[0].source.ports"),
        ({"action": "Allow", "protocol": "TTP"}, "spec.ingress[0].protocol"),
        ({"action": "Allow", "protocol": "TCP", "icmp": {"type": 8}}, "spec.ingress[0].icmp"),
        ({"action": "Allow", "protocol": "ICMP", "icmp": {"code": 8}}, "spec.ingress[0].icmp"),
        ({"action": "Allow", "protocol": "ICMP", "icmp": {"type": 255}}, "spec.ingress[0].icmp"),
    ],
)
def test_bad_rules_name_their_field(spec: dict[str, Any], field: str) -> None:
    """A rule that cannot be used says which field is wrong, with the value."""
    with pytest.raises(InvalidInputError) as caught:
        _rule(spec)
    assert caught.value.field == field


def test_bad_policy_selector_names_its_field() -> None:
    """So does the head of a policy."""
    with pytest.raises(InvalidInputError) as caught:
        model.policy(*global_policy("p", namespaceSelector="a ="))
    assert caught.value.field == "spec.namespaceSelector"


def test_staged_kubernetes_policy_is_converted() -> None:
    """A staged Kubernetes policy gets the selector and rules that the real one would get."""
    spec = {
        "podSelector": {"matchLabels": {"a": "b"}},
        "ingress": [{"ports": [{"port": 80}]}],
        "policyTypes": ["Ingress"],
    }
    found = make("StagedKubernetesNetworkPolicy", "k", spec, namespace="shop")
    policy = _policy(found)
    assert policy.staged
    assert policy.order == 1000.0
    assert 'a == "b"' in policy.selector.canonical
    [converted] = model.policy_rules(*found).inbound
    assert converted.destination.ports == (PortRange(80, 80),)


def test_arrange() -> None:
    """Tiers by order, existing ones first; policies by order, then by the text name/namespace/kind."""
    tiers = {"t": model.Tier("t", 5.0), **model.BUILT_IN_TIERS}
    policies = [
        _policy(global_policy("b", order=1)),
        _policy(network_policy("a")),
        _policy(global_policy("a")),
        _policy(global_policy("a-b")),
        _policy(global_policy("x", tier="t")),
        _policy(global_policy("n", tier="nowhere", order=0)),
    ]
    found = [
        (tier.name, tier.exists, [(p.id.name, p.id.kind) for p in members])
        for tier, members in arrange(policies, tiers)
    ]
    gnp, np = "GlobalNetworkPolicy", "NetworkPolicy"
    assert found == [
        ("t", True, [("x", gnp)]),
        ("default", True, [("b", gnp), ("a-b", gnp), ("a", gnp), ("a", np)]),
        ("nowhere", False, [("n", gnp)]),
    ]


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("10.0.0.1", ("10.0.0.1",)),
        ("10.0.0.1/32", ("10.0.0.1",)),
        ("10.1.2.3/8", ("10.0.0.0/8",)),
        ("0.0.0.0/0", ("0.0.0.0/1", "128.0.0.0/1")),
        ("::/0", ("::/1", "8000::/1")),
        ("FD00::1", ("fd00::1",)),
    ],
)
def test_set_members(text: str, members: tuple[str, ...]) -> None:
    """Members are canonical; the catch-all, which the kernel's sets cannot hold, is two halves."""
    assert set_members(text) == members


@pytest.mark.parametrize("text", ["10.65.1.20/32", "10.65.1.20", "fd00:0::1/128", "FD00::1"])
def test_host_address(text: str) -> None:
    """The bare canonical address of a single-address CIDR."""
    assert host_address(text) in {"10.65.1.20", "fd00::1"}


@pytest.mark.parametrize("text", ["10.65.1.0/24", "10.65.1.256/32", "10.65.01.2/32", "1.2.3/32", "", "x"])
def test_host_address_refuses(text: str) -> None:
    """What is not one address is refused, whatever it looks like."""
    with pytest.raises(ValueError):
        host_address(text)


def test_protocol_and_port_spellings() -> None:
    """One value has one spelling inside, however it was written."""
    assert {protocol(value, "f") for value in ("TCP", "tcp", 6, "6")} == {"tcp"}
    assert protocol(47, "f") == 47
    assert protocol(None, "f") is None
    assert port("80", "f") == port(80, "f") == PortRange(80, 80)
    assert port("80:80", "f") == PortRange(80, 80)
    assert port("http", "f") == "http"
