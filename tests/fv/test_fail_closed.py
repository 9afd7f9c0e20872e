"""No packet that no state allows gets through while states change: new connections all the time, each one counted.

``friend`` may talk to ``server``, ``foe`` may not, before and after each change; ``left`` and ``right`` have nothing to
do with it. Each test is one of the moments at which an agent that applies changes one by one, or in the wrong order,
leaves a gap.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from calipy.datastore.codec import encode
from calipy.datastore.keys import path
from calipy.datastore.store import Delete, Put
from tests.support.felix import until
from tests.support.fv import Lab, Node, Pod
from tests.support.objects import Object, global_policy, make
from tests.support.probes import Probes

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

ROUNDS = 8


@dataclass
class Streams:
    """What flows during a test."""

    allowed: Probes
    forbidden: Probes
    apart: Probes

    def more(self, count: int) -> None:
        """Wait until each has sent so many more."""
        for stream in (self.allowed, self.forbidden, self.apart):
            stream.more(count)

    def assert_nothing_got_through(self) -> None:
        """Call it after the streams have ended."""
        assert self.forbidden.sent > 100
        assert not self.forbidden.arrived, f"{len(self.forbidden.arrived)} of {self.forbidden.sent}"

    def assert_nothing_was_lost(self) -> None:
        """Likewise; of what has nothing to do with the change."""
        assert self.apart.sent > 100
        assert not self.apart.lost, f"{len(self.apart.lost)} of {self.apart.sent}"


def guard(name: str = "guard", tier: str = "default", port: int = 1) -> Object:
    """The policy that lets the friend in and nobody else; ``port`` makes another version of it."""
    allow = {"action": "Allow", "source": {"selector": "role == 'friend'"}}
    other = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [port]}}
    qualified = name if tier == "default" else f"{tier}.{name}"
    return global_policy(
        qualified, tier=tier, order=5, selector="role == 'server'", types=["Ingress"], ingress=[allow, other]
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A node with two pods that take part and two that do not."""
    with Lab() as lab:
        for name in ("server", "friend", "foe", "left", "right"):
            lab.pod(name, role=name)
        lab.apply(make("Tier", "first", {"order": 10, "defaultAction": "Deny"}), guard())
        yield lab.settled()


@contextlib.contextmanager
def streams(lab: Lab, *more_servers: Pod) -> Iterator[Streams]:
    """Everything flows, and flowed before the change."""
    server, friend, foe, left, right = lab.pods[:5]
    servers = [pod.ns for pod in (server, *more_servers)]
    with (
        Probes(friend.ns, friend.ip, servers, server.ip) as allowed,
        Probes(foe.ns, foe.ip, servers, server.ip, port=9001) as forbidden,
        Probes(left.ns, left.ip, right.ns, right.ip) as apart,
    ):
        found = Streams(allowed, forbidden, apart)
        found.more(50)
        yield found


@contextlib.contextmanager
def together(lab: Lab) -> Iterator[None]:
    """The agent learns at once of all that is written, however long a busy machine takes to write it: between two
    writes it could not know that there is another to come.
    """
    pid = lab.nodes[0].agent.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
    lab.sync()


def test_policy_deleted_and_its_replacement_created(lab: Lab) -> None:
    """Two writes of which the agent learns at once: no gap for the foe, none for the friend."""
    names = itertools.cycle(["guard2", "guard"])
    present = "guard"
    with streams(lab) as flowing:
        for _ in range(ROUNDS):
            new = next(names)
            with together(lab):
                lab.delete(guard(present), wait=False)
                lab.apply(guard(new), wait=False)
            present = new
            flowing.more(20)
    flowing.assert_nothing_got_through()
    flowing.assert_nothing_was_lost()
    assert not flowing.allowed.lost


@pytest.mark.parametrize("way", ["create, then delete", "delete, then create", "one transaction"])
def test_policy_moved_to_another_tier(lab: Lab, way: str) -> None:
    """A policy moves to a tier before or behind its own, and back: no gap for the foe, none for the friend."""
    places = itertools.cycle(["first", "default"])
    present = "default"
    with streams(lab) as flowing:
        for _ in range(ROUNDS):
            tier = next(places)
            old, new = guard(tier=present), guard(tier=tier)
            if way == "create, then delete":
                lab.apply(new, wait=False)
                lab.delete(old)
            elif way == "delete, then create":
                with together(lab):
                    lab.delete(old, wait=False)
                    lab.apply(new, wait=False)
            else:
                stamps = {"uid": str(uuid.uuid4()), "creation_timestamp": "2026-01-01T00:00:00Z"}
                written = replace(new[1], metadata=replace(new[1].metadata, **stamps))
                lab.datastore.store("txn", [], [Delete(path(old[0])), Put(path(new[0]), encode(written))])
                lab.sync()
            present = tier
            flowing.more(20)
    assert present == "default"
    flowing.assert_nothing_got_through()
    flowing.assert_nothing_was_lost()
    assert not flowing.allowed.lost


def test_policy_changed_in_place(lab: Lab) -> None:
    """Rules, sets and order of the policy change: no gap for the foe, none for the friend."""
    with streams(lab) as flowing:
        for number in range(ROUNDS):
            lab.apply(guard(port=100 + number))
            flowing.more(20)
    flowing.assert_nothing_got_through()
    flowing.assert_nothing_was_lost()
    assert not flowing.allowed.lost


def test_endpoint_deleted_and_created_again(lab: Lab) -> None:
    """The server's endpoint goes and comes, its interface stays: the friend may wait, the foe gets nothing."""
    server = lab.pods[0]
    with streams(lab) as flowing:
        for round_ in range(ROUNDS):
            lab.delete(server.object(), wait=bool(round_ % 2))
            lab.apply(server.object())
            flowing.more(20)
        answered = len(flowing.allowed.answered)
        until(lambda: len(flowing.allowed.answered) > answered)
    flowing.assert_nothing_got_through()
    flowing.assert_nothing_was_lost()


def test_pod_replaced_by_one_of_the_same_address(lab: Lab) -> None:
    """The server's pod goes, and another takes over address and labels, with an interface of its own."""
    server = lab.pods[0]
    node = server.node
    heir = lab.pod("heir", endpoint=False, role="server")
    heir.ns.address("eth0", f"{server.ip}/32")
    heir.addresses = dict(server.addresses)
    with streams(lab, heir) as flowing:
        for old, new in [(server, heir), (heir, server)] * (ROUNDS // 2):
            lab.delete(old.object(), wait=False)
            node.ns.links.set_down(old.interface)
            node.ns.links.set_up(new.interface)
            node.ns.run("ip", "route", "replace", f"{server.ip}/32", "dev", new.interface)  # as the CNI plugin does
            flowing.more(20)
            lab.apply(new.object())
            answered = len(flowing.allowed.answered)
            until(lambda answered=answered: len(flowing.allowed.answered) > answered)
            flowing.more(20)
    flowing.assert_nothing_got_through()
    flowing.assert_nothing_was_lost()


def empty(node: Node, *, routes: bool) -> None:
    """End the agent, and take away what it has made; sysctls stay, so that nothing else stops a packet."""
    node.agent.stop()
    node.ns.run("nft", "flush", "ruleset")
    node.ns.run("ipset", "destroy")
    if routes:
        for route in node.ns.routes.dump():
            if any(hop.interface.startswith("cali") for hop in route.next_hops):
                node.ns.routes.apply(delete=[route])


def _forget(lab: Lab, stream: Probes) -> None:
    """Count anew; a connection from while the door was open would let a new one from the same port in."""
    stream.forget(meanwhile=lambda: lab.forget_connections("-p", "udp", "--orig-port-dst", str(stream.port)))


def test_start_after_a_reboot(lab: Lab) -> None:
    """No tables, no routes, pods present: routes come last, so that nothing passes before it is judged."""
    node = lab.nodes[0]
    empty(node, routes=True)
    with streams(lab) as flowing:
        flowing.allowed.forget()
        node.agent.start()
        until(lambda: flowing.allowed.answered)
        lab.sync()
        flowing.more(50)
    flowing.assert_nothing_got_through()


def test_start_with_routes_and_without_tables(lab: Lab) -> None:
    """The agent shuts the door before it reads the datastore, which takes its time; from then on nothing gets in."""
    node = lab.nodes[0]
    empty(node, routes=False)
    with streams(lab) as flowing:
        until(lambda: flowing.forbidden.arrived)  # the door is open indeed
        lab.etcd.pause()
        try:
            node.agent.start()
            until(lambda: any("cali-FORWARD" in rule for rule in node.rules()))
            for stream in (flowing.forbidden, flowing.allowed):
                _forget(lab, stream)
            flowing.more(100)
            assert not flowing.allowed.answered
        finally:
            lab.etcd.resume()
        until(lambda: flowing.allowed.answered)
        lab.sync()
        flowing.more(50)
    flowing.assert_nothing_got_through()


def test_start_with_everything_in_place(lab: Lab) -> None:
    """Killed and started again, the agent neither opens nor shuts anything."""
    node = lab.nodes[0]
    with streams(lab) as flowing:
        node.agent.stop()
        flowing.more(50)
        node.agent.start()
        lab.sync()
        flowing.more(50)
    flowing.assert_nothing_got_through()
    flowing.assert_nothing_was_lost()
    assert not flowing.allowed.lost


def test_damage_while_the_datastore_stands_still(lab: Lab) -> None:
    """etcd is stopped in the middle of everything: rules that somebody flushes come back all the same, and when etcd
    goes on the next change takes effect.
    """
    node = lab.nodes[0]
    with streams(lab) as flowing:
        lab.etcd.pause()
        try:
            node.ns.run(f"iptables-{node.backend}", "-F")
            until(lambda: any("cali-FORWARD" in rule for rule in node.rules()))
            until(lambda: any(rule.startswith("-A cali-pi-gnp/guard") for rule in node.rules()))
            _forget(lab, flowing.forbidden)
            flowing.more(50)
        finally:
            lab.etcd.resume()
        lab.apply(guard(port=7))
        flowing.more(50)
    assert any("--dports 7" in rule for rule in node.rules())
    flowing.assert_nothing_got_through()
    flowing.assert_nothing_was_lost()
    assert not flowing.allowed.lost
