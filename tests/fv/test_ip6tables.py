"""Theme ``ip6tables``: IPv6 needs ICMPv6 between neighbours, whatever policy says about ICMPv6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from calipy.net import HOST_LINK_LOCAL
from tests.support.fv import Lab, Pod
from tests.support.objects import global_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two pods on one node and one on another."""
    with Lab(nodes=2) as lab:
        here, there = lab.nodes
        for name, node in (("one", here), ("two", here), ("far", there)):
            lab.pod(name, node)
        yield lab.settled()


def forget_neighbours(lab: Lab, *pods: Pod) -> None:
    """Nobody knows a neighbour any more, not even those that were written down for good."""
    for site in (*lab.nodes, *pods):
        for line in site.ns.run("ip", "-6", "neigh", "show", "nud", "all").splitlines():
            address, _, device, *_ = line.split()
            if " lladdr " in line:
                site.ns.run("ip", "-6", "neigh", "del", address, "dev", device)


@pytest.mark.parametrize("direction", ["Ingress", "Egress"])
def test_pods_are_reached_with_icmpv6_denied(lab: Lab, direction: str) -> None:
    """Pings are denied and connections open, again after all neighbour entries are gone."""
    one, two, far = lab.pods
    rules = [rule("Deny", protocol="ICMPv6"), rule("Allow")]
    lab.apply(global_policy("no-icmp", selector="all()", types=[direction], **{direction.lower(): rules}))
    matrix = dict.fromkeys(((one, two), (one, far), (far, two)), "tcp46/80 udp6/80 ping !ping6")
    lab.expect(matrix)
    forget_neighbours(lab, *lab.pods)
    lab.expect(matrix)


def test_everything_denied_still_lets_neighbours_meet(lab: Lab) -> None:
    """With all egress denied a pod resolves its gateway and is resolved: what is allowed later works at once."""
    one, two, _ = lab.pods
    shut = global_policy("shut", selector="all()", types=["Egress"], egress=[rule("Deny")])
    lab.apply(shut)
    lab.expect({(one, two): "!tcp6/80 !ping6"})
    forget_neighbours(lab, *lab.pods)
    lab.expect({(lab.nodes[0], one): "tcp6/80 ping6", (one, two): "!tcp6/80"})
    assert "lladdr" in one.ns.run("ip", "-6", "neigh", "show", HOST_LINK_LOCAL, "dev", "eth0")
    lab.delete(shut)
    lab.expect({(one, two): "tcp6/80 ping6"})
