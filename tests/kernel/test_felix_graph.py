"""From objects of the datastore through the real calculation graph to packets."""

from __future__ import annotations

from typing import Any

import pytest

from calipy.felix.messages import EndpointID
from tests.support.felix import FelixProcess, Node, Pod, pings, reaches, until
from tests.support.objects import Object, global_policy, gone, make, namespace_profile, network_policy
from tests.support.objects import pod as pod_object

pytestmark = [pytest.mark.kernel]

READY = make("ClusterInformation", "default", {"datastoreReady": True})
POOL = make("IPPool", "pool", {"cidr": "10.65.0.0/16", "natOutgoing": True, "blockSize": 26})
TIER = make("Tier", "default", {"order": 1000000})


def of(pod: Pod, **labels: str) -> Object:
    """The pod's object: its endpoint is called after its interface."""
    return pod_object(
        pod.interface, pod.address, pod.address6, node="node1", namespace="shop", interface=pod.interface, **labels
    )


def wait(felix: FelixProcess, *pods: Pod) -> None:
    for pod in pods:
        assert felix.ask("wait", (EndpointID("k8s", f"shop/{pod.interface}", "eth0"), 10.0)), felix.status()


def rule(action: str, **fields: Any) -> dict[str, Any]:
    return {"action": action, **fields}


def test_labels_decide_who_may_talk(node: Node) -> None:
    """A policy selects by label; relabelling a client lets it in and out; deleting the policy opens again."""
    server, client = node.pod(), node.pod()
    felix = node.felix(graph=True)
    from_friends = rule("Allow", protocol="TCP", source={"selector": "role == 'friend'"}, destination={"ports": [80]})
    policy = network_policy("web", selector="app == 'web'", types=["Ingress"], ingress=[from_friends])
    felix.events(READY, TIER, POOL, namespace_profile("shop"), of(server, app="web"), of(client), policy)
    wait(felix, server, client)
    assert not reaches(client.ns, server.address, 80)
    assert pings(server.ns, client.address)
    felix.events(of(client, role="friend"))
    until(lambda: reaches(client.ns, server.address, 80))
    assert not reaches(client.ns, server.address, 81)
    assert reaches(client.ns, server.address6, 80)
    felix.events(of(client))
    until(lambda: not reaches(client.ns, server.address, 80))
    felix.events(gone(policy))
    until(lambda: reaches(client.ns, server.address, 81))


def test_global_deny_and_an_endpoint_that_goes(node: Node) -> None:
    """A global deny by order wins; a deleted endpoint leaves no chain, route or member behind."""
    server, client = node.pod(), node.pod()
    felix = node.felix(graph=True)
    deny = global_policy(
        "deny-from-clients",
        order=1,
        selector="app == 'web'",
        types=["Ingress"],
        ingress=[rule("Deny", source={"selector": "app == 'client'"}), rule("Allow")],
    )
    allow = global_policy("allow", order=2, selector="all()", types=["Ingress"], ingress=[rule("Allow")])
    felix.events(
        READY, TIER, POOL, namespace_profile("shop"), of(server, app="web"), of(client, app="client"), deny, allow
    )
    wait(felix, server, client)
    assert not pings(client.ns, server.address)
    assert pings(server.ns, client.address)
    assert pings(node.world, server.address)
    felix.events(gone(of(server)))
    until(lambda: server.interface not in node.rules())
    until(lambda: server.address not in node.ns.run("ip", "route"))
    assert "deny-from-clients" not in node.rules()
    assert not pings(node.world, server.address)


def test_nothing_is_written_while_the_cluster_says_not_ready(node: Node) -> None:
    """datastoreReady false: the default drop stays, no endpoint gets through, until the flag turns."""
    one, two = node.pod(), node.pod()
    felix = node.felix(graph=True)
    not_ready = make("ClusterInformation", "default", {"datastoreReady": False})
    felix.events(not_ready, TIER, POOL, namespace_profile("shop"), of(one), of(two))
    until(lambda: "ClusterInformation" in " ".join(felix.status().reasons))
    assert not felix.status().ready
    assert one.interface not in node.rules()
    felix.events(READY)
    wait(felix, one, two)
    assert pings(one.ns, two.address)


def test_configuration_from_the_datastore_is_applied_live(node: Node) -> None:
    """FelixConfiguration changes rules in place: the action for pods that talk to their node, the backend even."""
    one, two = node.pod(), node.pod()
    felix = node.felix(graph=True)
    felix.events(READY, TIER, POOL, namespace_profile("shop"), of(one), of(two))
    wait(felix, one, two)
    assert not pings(one.ns, "172.16.0.1")
    felix.events(make("FelixConfiguration", "default", {"defaultEndpointToHostAction": "Accept"}))
    until(lambda: pings(one.ns, "172.16.0.1"))
    felix.events(make("FelixConfiguration", "default", {"iptablesBackend": "Legacy"}))
    until(lambda: "cali-FORWARD" in node.rules("legacy") and "cali-" not in node.rules("nft"))
    assert felix.status().backend == "legacy"
    assert pings(one.ns, two.address)
