"""What an agent sets of its node's own parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from calipy.kernel import sysctl
from tests.support.felix import until
from tests.support.fv import Lab, Node
from tests.support.matrix import PATIENCE
from tests.support.objects import make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
ACCOUNTING = "net.netfilter.nf_conntrack_acct"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node."""
    with Lab() as lab:
        yield lab.settled()


def value(node: Node, key: str) -> str:
    found: str = node.ns.call(sysctl.read, key)
    return found


def test_a_node_forwards_and_counts(lab: Lab) -> None:
    """Forwarding is on in both families, connections are counted; and on again when somebody turns them off."""
    [node] = lab.nodes
    for key in (*FORWARDING, ACCOUNTING):
        assert value(node, key) == "1"
        node.ns.call(sysctl.write, key, 0)
    for key in (*FORWARDING, ACCOUNTING):
        until(lambda key=key: value(node, key) == "1", timeout=PATIENCE)


def test_forwarding_can_be_left_alone(lab: Lab) -> None:
    """With IPForwarding Disabled it stays as it is; the rest is looked after as ever."""
    [node] = lab.nodes
    lab.apply(make("FelixConfiguration", "default", {"ipForwarding": "Disabled"}))
    for key in (*FORWARDING, ACCOUNTING):
        node.ns.call(sysctl.write, key, 0)
    until(lambda: value(node, ACCOUNTING) == "1", timeout=PATIENCE)
    assert [value(node, key) for key in FORWARDING] == ["0", "0"]
