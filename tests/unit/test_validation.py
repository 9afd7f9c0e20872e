"""What is refused on write: a few rules from each group, with the field named."""

from __future__ import annotations

from typing import Any

import pytest

from calipy.datastore import codec, defaults, validation
from calipy.datastore.keys import NAMESPACED
from calipy.datastore.kinds.felix import FelixConfigurationSpec
from calipy.errors import InvalidInputError

ALL: dict[str, Any] = {"interfaceName": "*"}
POD: dict[str, Any] = {
    "orchestrator": "k8s", "node": "n", "pod": "p", "endpoint": "eth0", "interfaceName": "cali1",
}  # fmt: skip
"""The name of this endpoint follows from it."""


def check(kind: str, spec: dict[str, Any], **metadata: Any) -> None:
    """Fill and check a document."""
    namespace = {"namespace": "ns"} if kind in NAMESPACED else {}
    name = {"WorkloadEndpoint": "n-k8s-p-eth0"}.get(kind, "default" if kind.endswith("Configuration") else "one")
    document = {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, **namespace, **metadata},
        "spec": spec,
    }
    validation.check(defaults.fill(codec.read_document(document, kind)))


REFUSED = [
    ("IPPool", {"cidr": "10.0.0.1/24"}, "spec.cidr"),
    ("IPPool", {"cidr": "10.0.0.0/27"}, "spec.cidr"),
    ("IPPool", {"cidr": "10.0.0.0/16", "blockSize": 33}, "spec.blockSize"),
    ("IPPool", {"cidr": "fd00::/64", "ipipMode": "Always"}, "spec.ipipMode"),
    ("IPPool", {"cidr": "10.0.0.0/16", "nodeSelector": "global()"}, "spec.nodeSelector"),
    ("Node", {"bgp": {}}, "spec.bgp"),
    ("Node", {"bgp": {"ipv4Address": "fd00::1/64"}}, "spec.bgp.ipv4Address"),
    (
        "HostEndpoint",
        {"node": "a", "interfaceName": "*", "ports": [{"name": "80", "protocol": "TCP", "port": 1}]},
        "name",
    ),
    ("NetworkPolicy", {"ingress": [{"action": "Allow", "protocol": "TCP", "source": {"ports": ["a--b"]}}]}, "ports"),
    ("StagedKubernetesNetworkPolicy", {"ingress": [{"ports": [{"port": 80, "endPort": 79}]}]}, "port"),
    ("BGPPeer", {"peerIP": "10.0.0.1:0", "asNumber": 1}, "spec.peerIP"),
    ("BGPPeer", {"node": "a", "nodeSelector": "all()"}, "spec.node"),
    ("BGPConfiguration", {"communities": [{"name": "a", "value": "1:2"}]}, "spec.communities"),
    ("BGPFilter", {"importV6": [{"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In"}]}, "cidr"),
    ("GlobalNetworkPolicy", {"ingress": [{"action": "allow"}]}, r"spec.ingress\[0\].action"),
    ("GlobalNetworkPolicy", {"types": ["Ingress", "Ingress"]}, "spec.types"),
    ("GlobalNetworkPolicy", {"preDNAT": True, "applyOnForward": True, "egress": [{"action": "Allow"}]}, "spec.preDNAT"),
    ("NetworkPolicy", {"ingress": [{"action": "Allow", "destination": {"ports": [80]}}]}, "ports"),
    ("NetworkPolicy", {"ingress": [{"action": "Allow", "destination": {"ports": ["web", "80:81"]}}]}, "ports"),
    ("NetworkPolicy", {"ingress": [{"action": "Allow", "protocol": "ICMP", "source": {"ports": ["web"]}}]}, "ports"),
    ("NetworkPolicy", {"ingress": [{"action": "Allow", "source": {"nets": ["10.0.0.0/8", "fd00::/8"]}}]}, "nets"),
    ("HostEndpoint", {"node": "a"}, "spec.interfaceName"),
    ("Tier", {"defaultAction": "Allow"}, "spec.defaultAction"),
    ("FelixConfiguration", {"routeRefreshInterval": "-1s"}, "spec.routeRefreshInterval"),
    ("IPReservation", {"reservedCIDRs": ["10.0.0.1"]}, "spec.reservedCIDRs"),
    ("Node", {"vxlanTunnelMACAddr": "66:0a-0b:0c:0d:0e"}, "spec.vxlanTunnelMACAddr"),
    ("GlobalNetworkSet", {"nets": ["fe80::1%eth0"]}, "spec.nets"),
    ("FelixConfiguration", {"natOutgoingAddress": "::ffff:10.0.0.1"}, "spec.natOutgoingAddress"),
    ("CalicoNodeStatus", {"node": "a", "classes": ["BGP", "BGP"], "updatePeriodSeconds": 1}, "spec.classes"),
    ("KubeControllersConfiguration", {"logSeverityScreen": "debug"}, "spec.logSeverityScreen"),
    ("BGPPeer", {"nodeSelector": f"a == '{'x' * 1018}'"}, "spec.nodeSelector"),
    ("WorkloadEndpoint", {**POD, "containerID": "a.b"}, "spec.containerID"),
    ("WorkloadEndpoint", {**POD, "ports": [{"protocol": "TCP", "port": 1}]}, r"spec.ports\[0\].name"),
    ("GlobalNetworkPolicy", {"selector": "a == 'global()'"}, "spec.selector"),
    ("GlobalNetworkPolicy", {"ingress": [{"action": "Allow", "protocol": "TCP", "icmp": {"type": 8}}]}, "icmp"),
    ("GlobalNetworkPolicy", {"ingress": [{"action": "Allow", "notProtocol": "ICMP", "ipVersion": 6}]}, "ipVersion"),
    ("GlobalNetworkPolicy", {"egress": [{"action": "Allow", "http": {"methods": ["GET"]}}]}, "http"),
    ("GlobalNetworkPolicy", {"ingress": [{"action": "Allow", "http": {"methods": ["GET", "GET"]}}]}, "methods"),
    ("GlobalNetworkPolicy", {"ingress": [{"action": "Allow", "http": {"paths": [{"exact": "x"}]}}]}, "paths"),
    (
        "GlobalNetworkPolicy",
        {"ingress": [{"action": "Allow", "protocol": "TCP", "source": {"ports": list(range(1, 52))}}]},
        "ports",
    ),
]


@pytest.mark.parametrize(("kind", "spec", "field"), REFUSED)
def test_refused(kind: str, spec: dict[str, Any], field: str) -> None:
    """The error names the field."""
    with pytest.raises(InvalidInputError, match=f"{field}.* = "):
        check(kind, spec)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("IPPool", {"cidr": "10.0.0.0/27", "disabled": True}),
        ("Node", {"bgp": {"ipv4Address": "10.0.0.1"}}),
        ("BGPPeer", {"peerIP": "[fd00::1]:180", "asNumber": 65001}),
        ("BGPConfiguration", {"asNumber": 4200000000}),
        ("FelixConfiguration", {"routeRefreshInterval": "1.5s"}),
        ("Profile", {"ingress": [{"action": "allow"}]}),
        (
            "Profile",
            {"ingress": [{"icmp": {"type": 8}, "http": {}, "ipVersion": 5, "source": {"selector": "global()"}}]},
        ),
        ("Node", {"bgp": {"ipv4Address": "::ffff:10.0.0.1"}, "vxlanTunnelMACAddr": "660a0b0c0d0e"}),
        ("Node", {"interfaces": [{"addresses": ["10.0.0.1"]}, {"name": "br_LAN"}]}),
        ("WorkloadEndpoint", {**POD, "interfaceName": "*"}),
        ("StagedNetworkPolicy", {"stagedAction": "Delete", "types": ["Ingress", "Ingress"]}),
        ("BGPConfiguration", {"serviceClusterIPs": [{}]}),
        ("BGPPeer", {"nodeSelector": "global()"}),
        ("WorkloadEndpoint", {**POD, "ports": [{"protocol": "TCP", "port": 1, "hostPort": 1, "hostIP": "10.0.0.0/8"}]}),
        ("GlobalNetworkPolicy", {"ingress": [{"action": "Allow", "protocol": "TCP", "notICMP": {}}]}),
        ("GlobalNetworkPolicy", {"ingress": [{"action": "Allow", "source": {"notSelector": "global()"}}]}),
        (
            "NetworkPolicy",
            {"ingress": [{"action": "Allow", "protocol": "TCP", "source": {"services": {"name": "a"}, "ports": [80]}}]},
        ),
        ("NetworkPolicy", {"egress": [{"action": "Allow", "destination": {"ports": ["web"], "notPorts": ["dns"]}}]}),
        ("GlobalNetworkSet", {"nets": ["10.0.0.1", "10.0.0.1/8", "fd00::1"]}),
    ],
)
def test_accepted(kind: str, spec: dict[str, Any]) -> None:
    """Lenient where Calico is, and where Calico only slips."""
    check(kind, spec)


@pytest.mark.parametrize("name", ["UP", "a.b.c", "a.", "", "a_b", "knp.default.x"])
def test_policy_names(name: str) -> None:
    """A global policy is a label, or two."""
    with pytest.raises(InvalidInputError, match=r"metadata\.name"):
        check("GlobalNetworkPolicy", {}, name=name)


@pytest.mark.parametrize("labels", [{"bad key": "x"}, {"a/b/c": "x"}, {"a": ".x"}, {"a" * 64: "x"}])
def test_labels(labels: dict[str, str]) -> None:
    """Kubernetes label syntax."""
    with pytest.raises(InvalidInputError, match=r"metadata\.labels"):
        check("Node", {}, labels=labels)


@pytest.mark.parametrize(("enabled", "told"), [(True, "Enabled"), (False, "Disabled"), (None, "TCP")])
def test_the_older_field_of_connect_time_balancing_wins(enabled: bool | None, told: str) -> None:
    """It sets what the newer ones say."""
    spec = FelixConfigurationSpec(bpf_connect_time_load_balancing_enabled=enabled)
    filled = defaults.fill(codec.new("FelixConfiguration", "default", spec)).spec
    assert filled.bpf_connect_time_load_balancing == told
    assert filled.bpf_host_networked_nat_without_ctlb == ("Enabled" if enabled is None else "Disabled")


def test_defaults_are_filled_once() -> None:
    """Filling what is filled changes nothing."""
    document = {"kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "FD00:0::/64"}}
    once = defaults.fill(codec.read_document(document, "IPPool"))
    assert (once.spec.cidr, once.spec.block_size, once.spec.node_selector) == ("fd00::/64", 122, "all()")
    assert defaults.fill(once) == once


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, ("Ingress",)),
        ({"egress": [{"action": "Allow"}]}, ("Egress",)),
        ({"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}, ("Ingress", "Egress")),
        ({"ingress": [{"action": "Allow"}]}, ("Ingress",)),
    ],
)
def test_types_follow_from_the_rules(spec: dict[str, Any], types: tuple[str, ...]) -> None:
    """Absent types are those of the rules; an empty policy is for ingress."""
    policy = codec.read_document(
        {"kind": "GlobalNetworkPolicy", "metadata": {"name": "p"}, "spec": spec}, "GlobalNetworkPolicy"
    )
    assert defaults.fill(policy).spec.types == types
