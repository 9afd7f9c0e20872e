"""Theme ``apply_on_forward``: policy of host endpoints for what nodes only pass on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.objects import Object, global_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with two and one pods, and a machine outside."""
    with Lab(nodes=2) as lab:
        here, there = lab.nodes
        lab.external()
        for name, node in (("one", here), ("two", here), ("far", there)):
            lab.pod(name, node, app=name)
        yield lab.settled()


def forward(*rules: dict, forward: bool = True) -> Object:
    """The first node's ingress policy."""
    return global_policy(
        "gate", selector="node == 'n1'", types=["Ingress"], applyOnForward=forward, ingress=list(rules)
    )


WEB = {"protocol": "TCP", "destination": {"ports": [80]}}


@pytest.mark.parametrize("interface", ["eth0", "*"])
def test_without_such_policy_forwarded_traffic_passes(lab: Lab, interface: str) -> None:
    """Policy that does not apply on forward is not asked."""
    one, two, far = lab.pods
    (world,) = lab.externals
    lab.apply(lab.host_endpoint(interface=interface), forward(rule("Deny"), forward=False))
    lab.expect({(world, one): "tcp46/80", (far, one): "tcp46/80", (one, two): "tcp46/80", (one, far): "tcp46/80"})


def test_on_one_interface(lab: Lab) -> None:
    """It decides on what comes in there, without failsafes; not on what stays among pods or goes out."""
    one, two, far = lab.pods
    (world,) = lab.externals
    lab.apply(lab.host_endpoint(interface="eth0"), forward(rule("Allow", **WEB)))
    into = "tcp46/80 !tcp46/81 !tcp46/22 !ping46"
    lab.expect({(world, one): into, (far, one): into, (one, two): "tcp46/81", (one, far): "tcp46/81"})


def test_on_all_interfaces(lab: Lab) -> None:
    """A deny blocks pods from each other, on one node and across nodes."""
    one, two, far = lab.pods
    lab.apply(lab.host_endpoint(profiles=["kns.fv"]), forward(rule("Deny", **WEB), rule("Allow")))
    matrix = "!tcp46/80 tcp46/81"
    lab.expect({(far, one): matrix, (one, two): matrix, (one, far): matrix})
