"""Theme ``pre_dnat``: node ports judged by the port that was asked for, before it is translated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.objects import global_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module", params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A pod behind node ports 8080 and 8081, and a machine outside."""
    with Lab(backend=request.param) as lab:
        lab.external()
        lab.pod("pod", app="pod")
        yield lab.settled()


@pytest.mark.parametrize("interface", ["eth0", "*"])
def test_node_ports(lab: Lab, interface: str) -> None:
    """A deny shuts node ports and a pin-hole opens one by its own number, not by the pod's; the pod stays reachable."""
    (pod,), (node,), (world,) = lab.pods, lab.nodes, lab.externals
    for port in (8080, 8081):
        lab.translate(node, node.ip, port, pod, 80)
        lab.translate(node, node.ip6, port, pod, 80)
    lab.listen(pod, "tcp46/80")
    reached = {(world, node.ip): "{0}tcp/8080 {1}tcp/8081", (world, node.ip6): "{0}tcp6/8080 {1}tcp6/8081"}

    def expect(first: str, second: str) -> None:
        lab.expect({pair: text.format(first, second) for pair, text in reached.items()})

    expect("", "")
    before = len(node.rules("mangle"))
    lab.apply(lab.host_endpoint(interface=interface, profiles=["kns.fv"]))
    spec = {"selector": "has(host-endpoint)", "types": ["Ingress"], "preDNAT": True, "applyOnForward": True}
    ports = {"protocol": "TCP", "destination": {"ports": ["8080:8089"]}}
    lab.apply(global_policy("deny", order=20, ingress=[rule("Deny", **ports)], **spec))
    assert len(node.rules("mangle")) > before
    expect("!", "!")
    lab.expect({(world, pod): "tcp46/80"})
    for port, sign in ((80, "!"), (8081, "")):
        hole = {"protocol": "TCP", "destination": {"ports": [port]}}
        lab.apply(global_policy("hole", order=10, ingress=[rule("Allow", **hole)], **spec))
        expect("!", sign)
    lab.delete(global_policy("deny"), global_policy("hole"))
    expect("", "")
