"""Theme ``forward_drop``: a node that forwards nothing by itself still forwards what policy accepted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.matrix import both_ways
from tests.support.netns import Namespace, connect

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two pods on a node, and a machine outside."""
    with Lab() as lab:
        lab.external()
        for name in ("one", "two"):
            lab.pod(name)
        yield lab.settled()


def test_forward_policy_drop(lab: Lab) -> None:
    """FORWARD's policy DROP holds for interfaces that are not Calico's; pods' traffic is accepted explicitly."""
    one, two = lab.pods
    (node,), (world,) = lab.nodes, lab.externals
    behind = Namespace("behind")
    lab.defer(behind.close)
    connect(node.ns, behind, ("172.21.0.1/24", "172.21.0.2/24"), names=("eth1", "eth0"))
    lab.defer(node.ns.links.delete_link, "eth1")
    behind.run("ip", "route", "add", "default", "via", "172.21.0.1")
    world.ns.run("ip", "route", "add", "172.21.0.0/24", "via", node.ip)
    lab.defer(world.ns.run, "ip", "route", "del", "172.21.0.0/24")
    lab.defer(world.ns.run, "ip", "neigh", "flush", "all")
    pods = {**both_ways(one, two, "tcp46/80 ping46"), **both_ways(one, world, "tcp46/80 ping46")}
    lab.expect({**pods, (world, "172.21.0.2"): "ping"})
    for family in (4, 6):
        lab.iptables(node, "-P", "FORWARD", "DROP", family=family)
        lab.defer(lab.iptables, node, "-P", "FORWARD", "ACCEPT", family=family)
    lab.expect({**pods, (world, "172.21.0.2"): "!ping"})
