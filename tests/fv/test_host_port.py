"""Theme ``host_port``: ports of a node, its own and such as lead to a pod, under host endpoints and pre-DNAT policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fv import Lab, Node
from tests.support.matrix import Matrix, Site
from tests.support.objects import Object, global_policy, make, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

INTERFACES = pytest.mark.parametrize("interface", ["eth0", "*"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A pod that serves, one that asks, and a machine outside; the node lets pods in."""
    with Lab() as lab:
        lab.external()
        lab.pod("server", app="server")
        lab.pod("client")
        lab.apply(make("FelixConfiguration", "default", {"defaultEndpointToHostAction": "Accept"}), wait=False)
        yield lab.settled()


def web(action: str, *ports: int | str) -> dict[str, Any]:
    """A rule for TCP to some ports."""
    return rule(action, protocol="TCP", destination={"ports": list(ports)})


def early(*rules: dict[str, Any]) -> Object:
    """The pre-DNAT policy of the node's endpoints."""
    spec = {"selector": "has(host-endpoint)", "types": ["Ingress"], "preDNAT": True, "applyOnForward": True}
    return global_policy("early", ingress=list(rules), **spec)


def forward(*rules: dict[str, Any]) -> Object:
    """Their policy for what is forwarded."""
    spec = {"selector": "has(host-endpoint)", "types": ["Ingress"], "applyOnForward": True}
    return global_policy("forward", ingress=list(rules), **spec)


def publish(lab: Lab, *ports: int) -> None:
    """Ports of the node that lead to the server's port 80."""
    (node,), server = lab.nodes, lab.pods[0]
    lab.listen(server, "tcp46/80")
    for port in ports:
        for address in (node.ip, node.ip6):
            lab.translate(node, address, port, server, 80, local=True)


def asked(source: Site, node: Node, text: str) -> Matrix:
    """An expectation of published ports, by both addresses of the node; nobody listens at them there."""
    return {(source, node.ip): text, (source, node.ip6): text.replace("tcp/", "tcp6/")}


@INTERFACES
def test_ports_that_lead_to_a_pod(lab: Lab, interface: str) -> None:
    """A host endpoint alone leaves them open; pre-DNAT policy decides by the node's port, for pods only if it is ``*``.

    The node itself reaches them in any case, and so does everybody the pod by its own address and port.
    """
    (node,), (server, client), (world,) = lab.nodes, lab.pods, lab.externals
    publish(lab, 8055, 8056)

    def expect(outside: str, inside: str) -> None:
        lab.expect(asked(world, node, outside) | asked(client, node, inside) | asked(node, node, "tcp/8055,8056"))

    expect("tcp/8055,8056", "tcp/8055,8056")
    lab.apply(lab.host_endpoint(interface=interface))
    lab.expect({(world, node): "!tcp46/80"})
    expect("tcp/8055,8056", "tcp/8055,8056")
    shut = "!tcp/8055 tcp/8056"
    lab.apply(early(web("Deny", 8055)))
    expect(shut, shut if interface == "*" else "tcp/8055,8056")
    lab.expect({(world, server): "tcp46/80", (client, server): "tcp46/80"})
    lab.apply(early(web("Allow", 8055), web("Deny", "8050:8059")))
    hole = "tcp/8055 !tcp/8056"
    expect(hole, hole if interface == "*" else "tcp/8055,8056")
    lab.apply(early(web("Deny", 80)))
    expect("tcp/8055,8056", "tcp/8055,8056")


@INTERFACES
def test_later_policy_sees_the_pods_port(lab: Lab, interface: str) -> None:
    """Policy for what is forwarded, and the pod's own, go by the port behind the translation."""
    (node,), (server, _), (world,) = lab.nodes, lab.pods, lab.externals
    publish(lab, 8055)
    lab.apply(lab.host_endpoint(interface=interface, profiles=["kns.fv"]), forward(web("Deny", 8055), rule("Allow")))
    lab.expect(asked(world, node, "tcp/8055"))
    lab.apply(forward(web("Deny", 80), rule("Allow")))
    lab.expect(asked(world, node, "!tcp/8055"))
    lab.apply(early(web("Allow", 8055)))
    lab.expect(asked(world, node, "tcp/8055") | {(world, server): "!tcp46/80"})
    lab.apply(global_policy("pods", selector="app == 'server'", types=["Ingress"], ingress=[web("Allow", 8055)]))
    lab.expect(asked(world, node, "!tcp/8055"))
    lab.apply(global_policy("pods", selector="app == 'server'", types=["Ingress"], ingress=[web("Allow", 80)]))
    lab.expect(asked(world, node, "tcp/8055"))


@INTERFACES
def test_ports_of_the_node_itself(lab: Lab, interface: str) -> None:
    """Shut by an endpoint without policy, opened by pre-DNAT policy alone, and shut by it whatever else allows them.

    Pods are judged by pre-DNAT policy of ``*`` only; the node's other ports stay as they were.
    """
    (node,), (_, client), (world,) = lab.nodes, lab.pods, lab.externals
    lab.expect({(world, node): "tcp46/9091,9092", (client, node): "tcp46/9091,9092"})
    lab.apply(lab.host_endpoint(interface=interface))
    lab.expect({(world, node): "!tcp46/9091 !tcp46/9092", (client, node): "tcp46/9091,9092"})
    lab.apply(early(web("Allow", 9091)))
    lab.expect({(world, node): "tcp46/9091 !tcp46/9092", (client, node): "tcp46/9091,9092"})
    lab.apply(lab.host_endpoint(interface=interface, profiles=["kns.fv"]), early(web("Deny", 9091)))
    inside = "!tcp46/9091 tcp46/9092" if interface == "*" else "tcp46/9091,9092"
    lab.expect({(world, node): "!tcp46/9091 tcp46/9092", (client, node): inside})
