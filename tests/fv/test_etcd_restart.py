"""The datastore goes away and comes back: the kernel keeps its state, the agent waits quietly, then follows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.felix import until
from tests.support.fv import Lab, Node
from tests.support.matrix import PATIENCE
from tests.support.objects import Object, global_policy

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

SHUT = global_policy("shut", selector="all()", types=["Ingress"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node with a pod, and a machine outside."""
    with Lab() as lab:
        lab.external()
        lab.pod("web")
        yield lab.settled()


def cpu_seconds(node: Node) -> float:
    """What the agent has used so far."""
    fields = Path(f"/proc/{node.agent.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stays_quiet(node: Node, seconds: float) -> bool:
    """Whether the agent uses less than half a core for so long."""
    before, began = cpu_seconds(node), time.monotonic()
    time.sleep(seconds)
    return cpu_seconds(node) - before < (time.monotonic() - began) / 2


def follows(lab: Lab, change: Object) -> None:
    """A policy that is written now takes effect."""
    [web], [world] = lab.pods, lab.externals
    lab.apply(change)
    lab.expect({(world, web): "!tcp/80"})


def test_a_datastore_that_ends_and_starts_again(lab: Lab) -> None:
    """Pods keep what they had, the agent says that it is cut off and does not spin; then policy follows again."""
    [node], [web], [world] = lab.nodes, lab.pods, lab.externals
    until(lambda: node.agent.status()["ready"], timeout=PATIENCE)
    lab.sync()
    rules = node.rules()
    lab.etcd.stop()
    try:
        until(lambda: node.felix()["datastore"] == "disconnected", timeout=PATIENCE)
        assert not node.agent.status()["ready"]
        assert stays_quiet(node, 2.0)
        lab.expect({(world, web): "tcp/80"})
        assert node.rules() == rules
    finally:
        lab.etcd.start()
    follows(lab, SHUT)
    until(lambda: node.agent.status()["ready"], timeout=PATIENCE)


def test_a_black_hole_is_noticed(lab: Lab) -> None:
    """Packets to the datastore vanish without an answer: what happened meanwhile takes effect once the path is whole,
    deletions that the datastore itself has forgotten by then, too.
    """
    [node], [web], [world] = lab.nodes, lab.pods, lab.externals
    follows(lab, SHUT)
    hole = ("INPUT", "-p", "tcp", "--sport", "2379", "-j", "DROP")
    lab.iptables(node, "-A", *hole)
    try:
        lab.delete(SHUT, wait=False)
        lab.apply(global_policy("open", selector="all()", types=["Egress"]), wait=False)
        revision = lab.datastore.store("put", "/fv/marker", b"")
        etcdctl = ("env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={lab.etcd.url}")
        world.ns.run(*etcdctl, "compact", str(revision))
        until(lambda: node.felix()["datastore"] == "disconnected", timeout=3 * PATIENCE)
        assert stays_quiet(node, 1.0)
        lab.expect({(world, web): "!tcp/80"})
    finally:
        lab.iptables(node, "-D", *hole)
    lab.expect({(world, web): "tcp/80", (web, world): "!tcp/80"}, within=120)
