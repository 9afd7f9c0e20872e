"""Ip sets: many that come and go, and what others do to them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.felix import until
from tests.support.fv import Lab, Node
from tests.support.matrix import PATIENCE
from tests.support.objects import Object, global_policy, make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

MANY = 200


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node with two pods and a machine outside; sets are read anew every two seconds."""
    with Lab(FELIX_IPSETSREFRESHINTERVAL="2") as lab:
        lab.external()
        lab.pod("web")
        lab.pod("friend", friend="yes")
        yield lab.settled()


def policy() -> Object:
    """Pods are reached by friends only."""
    friends = {"action": "Allow", "source": {"selector": "friend == 'yes'"}}
    return global_policy("friends", selector="all()", types=["Ingress"], ingress=[friends])


def sets(node: Node) -> dict[str, set[str]]:
    """Members of the node's sets of selectors."""
    found: dict[str, set[str]] = {}
    for line in node.ns.run("ipset", "save").splitlines():
        if match := re.match(r"create (cali[46]0s\S+)", line):
            found[match[1]] = set()
        elif (match := re.match(r"add (cali[46]0s\S+) (\S+)", line)) and match[1] in found:
            found[match[1]].add(match[2])
    return found


def test_many_sets_that_flap_settle(lab: Lab) -> None:
    """However often their selectors come and go: in the end the kernel has exactly what is asked for."""
    [node] = lab.nodes
    before = sets(node)

    def selecting(number: int) -> Object:
        sources = [{"action": "Allow", "source": {"selector": f"set == '{number}-{n}'"}} for n in range(20)]
        return global_policy(f"many-{number}", selector="all()", types=["Ingress"], ingress=sources)

    flapping = [selecting(number) for number in range(MANY // 20)]
    for _ in range(3):
        lab.apply(*flapping, wait=False)
        lab.delete(*flapping, wait=False)
    lab.apply(*flapping)
    assert len(sets(node)) == len(before) + 2 * MANY
    lab.delete(*flapping)
    until(lambda: sets(node) == before, timeout=PATIENCE)


def test_members_that_others_add_or_remove(lab: Lab) -> None:
    """A stranger is gone, and a flushed or destroyed set is filled again, by the next reading at the latest."""
    [node], [web, friend], [world] = lab.nodes, lab.pods, lab.externals
    lab.apply(policy())
    allowed = {(friend, web): "tcp46/80", (world, web): "!tcp46/80"}
    lab.expect(allowed)
    right = sets(node)
    [four] = [name for name in right if name.startswith("cali40")]
    for damage in (("add", four, world.ip), ("flush", four), ("del", four, friend.ip)):
        node.ns.run("ipset", *damage)
        until(lambda: sets(node) == right, timeout=PATIENCE)
        lab.expect(allowed)
    assert any(four in line for line in node.felix()["drift"])


def test_sets_of_others_are_left_alone(lab: Lab) -> None:
    """A set that is not ours stays as it is; one with a name like ours that nobody asks for goes."""
    [node] = lab.nodes
    node.ns.run("ipset", "create", "KUBE-CLUSTER-IP", "hash:ip")
    node.ns.run("ipset", "add", "KUBE-CLUSTER-IP", "10.96.0.1")
    node.ns.run("ipset", "create", "cali40s:left-behind", "hash:net")
    until(lambda: "cali40s:left-behind" not in sets(node), timeout=PATIENCE)
    assert "add KUBE-CLUSTER-IP 10.96.0.1" in node.ns.run("ipset", "save")
    node.ns.run("ipset", "destroy", "KUBE-CLUSTER-IP")


def test_network_sets_feed_them(lab: Lab) -> None:
    """The same set holds pods and networks, and follows both."""
    [web, friend], [world] = lab.pods, lab.externals
    lab.apply(policy())
    networks = make("GlobalNetworkSet", "outside", {"nets": [f"{world.ip}/32"]}, labels={"friend": "yes"})
    lab.apply(networks)
    lab.expect({(world, web): "tcp/80 !tcp6/80", (friend, web): "tcp46/80"})
    lab.delete(networks)
    lab.expect({(world, web): "!tcp46/80"})
