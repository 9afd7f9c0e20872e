"""Theme ``ep_to_host_action``: what becomes of packets from pods to their node once egress policy allows them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.objects import global_policy, make, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A pod on its node."""
    with Lab() as lab:
        lab.pod("pod", app="pod")
        yield lab.settled()


def input_policy(lab: Lab, verdict: str) -> None:
    """The node's own INPUT policy; its way to the datastore stays open."""
    for family in (4, 6):
        lab.rule(lab.nodes[0], "INPUT", "-i", "eth0", "-j", "ACCEPT", family=family)
        lab.iptables(lab.nodes[0], "-P", "INPUT", verdict, family=family)
        lab.defer(lab.iptables, lab.nodes[0], "-P", "INPUT", "ACCEPT", family=family)


@pytest.mark.parametrize("verdict", ["ACCEPT", "DROP"])
@pytest.mark.parametrize("action", ["Accept", "Return", "Drop"])
def test_action_and_input_policy(lab: Lab, action: str, verdict: str) -> None:
    """Accept passes whatever INPUT says, Return leaves it to INPUT, Drop never passes; egress policy comes before."""
    (pod,), (node,) = lab.pods, lab.nodes
    input_policy(lab, verdict)
    lab.apply(make("FelixConfiguration", "node.n1", {"defaultEndpointToHostAction": action}))
    sign = "" if action == "Accept" or (action, verdict) == ("Return", "ACCEPT") else "!"
    lab.expect({(pod, node): f"{sign}tcp46/80 {sign}udp46/80 {sign}ping46"})
    lab.apply(global_policy("shut", selector="app == 'pod'", types=["Egress"]))
    lab.expect({(pod, node): "!tcp46/80 !ping46"})


def test_host_endpoints(lab: Lab) -> None:
    """A named endpoint does not see pods; pre-DNAT policy of ``*`` may drop what they send, and overrides nothing."""
    (pod,), (node,) = lab.pods, lab.nodes
    lab.apply(make("FelixConfiguration", "node.n1", {"defaultEndpointToHostAction": "Accept"}))
    lab.apply(lab.host_endpoint(interface="eth0"))
    lab.expect({(pod, node): "tcp46/80"})
    lab.apply(lab.host_endpoint())
    early = {"selector": "has(host-endpoint)", "types": ["Ingress"], "preDNAT": True, "applyOnForward": True}
    web = {"protocol": "TCP", "destination": {"ports": [80]}}
    lab.apply(global_policy("early", ingress=[rule("Deny", **web)], **early))
    lab.expect({(pod, node): "!tcp46/80 tcp46/81"})
    lab.apply(make("FelixConfiguration", "node.n1", {"defaultEndpointToHostAction": "Drop"}))
    lab.apply(global_policy("early", ingress=[rule("Allow", **web)], **early))
    lab.expect({(pod, node): "!tcp46/80 !tcp46/81"})
