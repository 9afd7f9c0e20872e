"""Theme ``donottrack``: policy before connection tracking, on a named interface.

Calico's theme has the same over a bond; kernels without that driver cannot, so the uplink here is a plain interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fv import Lab, Node
from tests.support.objects import Object, global_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module", params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A node with a pod, and a machine outside."""
    with Lab(backend=request.param) as lab:
        lab.external()
        lab.pod("pod")
        yield lab.settled()


Rules = list[dict[str, Any]]


def to_port(port: int) -> Rules:
    """Allow requests to a port."""
    return [rule("Allow", protocol=protocol, destination={"ports": [port]}) for protocol in ("TCP", "UDP")]


def from_port(port: int) -> Rules:
    """Allow answers from a port."""
    return [rule("Allow", protocol=protocol, source={"ports": [port]}) for protocol in ("TCP", "UDP")]


def untracked(ingress: Rules, egress: Rules) -> Object:
    """The do-not-track policy of the node's endpoints."""
    spec = {"selector": "has(host-endpoint)", "types": ["Ingress", "Egress"], "doNotTrack": True}
    return global_policy("fast", applyOnForward=True, ingress=ingress, egress=egress, **spec)


def connections(node: Node, port: int) -> list[str]:
    """Entries of the node's connection tracking that have a port on either side."""
    listed = (node.ns.run("conntrack", "-L", "-f", family) for family in ("ipv4", "ipv6"))
    return [line for text in listed for line in text.splitlines() if f"port={port} " in line]


def test_each_direction_needs_its_own_rule(lab: Lab) -> None:
    """Requests that are allowed one way open nothing until their answers are, too; for a server and for a client."""
    (node,), (world,) = lab.nodes, lab.externals
    shut, served = "!tcp46/8055 !udp46/8055", "tcp46/8055 udp46/8055"
    lab.apply(lab.host_endpoint(interface="eth0"), untracked(to_port(8055), []))
    lab.expect({(world, node): shut, (node, world): shut})
    lab.apply(untracked(to_port(8055), from_port(8055)))
    lab.expect({(world, node): f"{served} !tcp46/8056 !udp46/8056 !ping46", (node, world): shut})
    lab.apply(untracked([], to_port(8055)))
    lab.expect({(world, node): shut, (node, world): shut})
    lab.apply(untracked(from_port(8055), to_port(8055)))
    lab.expect({(world, node): shut, (node, world): f"{served} !tcp46/8056 !udp46/8056"})


def test_an_answer_is_part_of_no_connection(lab: Lab) -> None:
    """That everything is allowed later does not help half a connection: to connection tracking it is invalid."""
    (node,), (world,) = lab.nodes, lab.externals
    lab.apply(lab.host_endpoint(interface="eth0", profiles=["kns.fv"]), untracked(to_port(8055), []))
    lab.expect({(world, node): "!tcp46/8055 tcp46/8056", (node, world): "tcp46/8055"})


def test_untracked_flows_leave_no_trace(lab: Lab) -> None:
    """What the policy allows both ways is not in connection tracking, all else is; without the policy that is, too."""
    (node,), (world,) = lab.nodes, lab.externals
    lab.apply(lab.host_endpoint(interface="eth0", profiles=["kns.fv"]))
    lab.apply(untracked(to_port(8055), from_port(8055)))
    lab.forget_connections("-p", "tcp", "--orig-port-dst", "8055")
    lab.forget_connections("-p", "udp", "--orig-port-dst", "8055")
    flows = {(world, node): "tcp46/8055,8056,22 udp46/8055,8056"}
    lab.expect(flows)
    assert connections(node, 8055) == []
    for port, count in ((8056, 4), (22, 2)):
        found = connections(node, port)
        assert len({(line.split()[0], ":" in line) for line in found}) == count, found
    lab.delete(untracked([], []))
    lab.expect(flows)
    assert connections(node, 8055)


def test_failsafes_outlive_a_deny(lab: Lab) -> None:
    """With everything denied before connection tracking, failsafe ports work both ways, tracked; nothing else does."""
    (node,), (world,) = lab.nodes, lab.externals
    lab.apply(lab.host_endpoint(interface="eth0", profiles=["kns.fv"]))
    lab.apply(untracked([rule("Deny")], [rule("Deny")]))
    lab.expect(
        {
            (world, node): "tcp46/22 !tcp46/80 !udp46/80 !ping46",
            (node, world): "tcp46/179 !tcp46/80 !udp46/80 !ping46",
        }
    )
    assert connections(node, 22)
    assert connections(node, 179)


def test_what_is_only_forwarded(lab: Lab) -> None:
    """A deny for what comes in holds for pods' ports, too; what pods send, and the node to its pods, it never sees."""
    (node,), (pod,), (world,) = lab.nodes, lab.pods, lab.externals
    lab.apply(lab.host_endpoint(interface="eth0", profiles=["kns.fv"]))
    deny = [rule("Deny", protocol="TCP", destination={"ports": [81]})]
    lab.apply(untracked(deny, deny))
    lab.expect(
        {
            (world, pod): "tcp46/80 !tcp46/81",
            (world, node): "tcp46/80 !tcp46/81",
            (node, world): "tcp46/80 !tcp46/81",
            (pod, world): "tcp46/80,81",
            (node, pod): "tcp46/80,81",
        }
    )


def test_all_interfaces_have_none(lab: Lab) -> None:
    """An endpoint of all interfaces has no policy before connection tracking; the agent warns of it."""
    (node,), (world,) = lab.nodes, lab.externals
    lab.apply(lab.host_endpoint(profiles=["kns.fv"]), untracked([rule("Deny")], [rule("Deny")]))
    lab.expect({(world, node): "tcp46/80", (node, world): "tcp46/80"})
    assert "track" in str(node.felix()["warnings"])
