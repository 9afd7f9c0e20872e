"""Felix ends and starts again, at any moment, on any kernel: nothing opens, nothing is lost, nothing is rewritten."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from calipy.felix.messages import IPSet, Match, Rule
from tests.support.felix import (
    ALLOW_ALL,
    BACKENDS,
    Node,
    ghost,
    listed,
    pings,
    policy,
    programmed,
    proxy_arp,
    reaches,
    send,
    sysctl_of,
    tier,
    until,
)
from tests.support.probes import Probes

pytestmark = [pytest.mark.kernel]


@BACKENDS
def test_restart_writes_nothing_and_loses_nothing(node: Node, backend: str) -> None:
    """Killed and started again, Felix finds everything in place: no rule is written anew, no set or route, no gap."""
    felix = node.felix(IptablesBackend=backend)
    server, client = programmed(node, felix)
    rules, sets, routes = node.rules(backend), node.ns.run("ipset", "save"), node.ns.run("ip", "route")
    felix.kill()
    assert reaches(client.ns, server.address, 80)
    assert not reaches(client.ns, server.address, 81)
    handles = _handles(node)
    felix = node.felix(IptablesBackend=backend)
    until(lambda: felix.status().backend)
    assert reaches(client.ns, server.address, 80)
    send(felix, [server, client])
    felix.settle()
    assert _handles(node) == handles
    assert listed(node.rules(backend)) == listed(rules)
    assert sorted(node.ns.run("ipset", "save").splitlines()) == sorted(sets.splitlines())
    assert node.ns.run("ip", "route") == routes
    assert not felix.status().drift


def test_an_orderly_end_leaves_everything_in_force(node: Node) -> None:
    """Stopped as with SIGTERM: rules, sets, routes and connectivity stay."""
    felix = node.felix()
    server, client = programmed(node, felix)
    rules, routes = listed(node.rules()), node.ns.run("ip", "route")
    felix.stop()
    assert listed(node.rules()) == rules
    assert node.ns.run("ip", "route") == routes
    assert reaches(client.ns, server.address, 80)
    assert not reaches(client.ns, server.address, 81)


def test_restart_removes_what_went_meanwhile_only_when_in_sync(node: Node) -> None:
    """Chains, sets and routes of a pod that was deleted during the absence go, after the first snapshot."""
    felix = node.felix()
    server, client, gone = programmed(node, felix, 3)
    felix.kill()
    felix = node.felix()
    until(lambda: felix.status().backend)
    assert gone.interface in node.rules()
    assert gone.address in node.ns.run("ip", "route")
    felix.send(profiles={"open": ALLOW_ALL}, endpoints={server.id: server.endpoint(), client.id: client.endpoint()})
    felix.settle()
    assert gone.interface not in node.rules()
    assert "cali-pi-gnp/web" not in node.rules()
    until(lambda: "cali40s:x" not in node.ns.run("ipset", "list", "-n"))
    assert reaches(client.ns, server.address, 81)
    # The interface is still there, and may be about to get an endpoint: its route has ten seconds of grace.
    until(lambda: gone.address not in node.ns.run("ip", "route"))


@BACKENDS
def test_start_on_an_empty_kernel_drops_first(node: Node, backend: str) -> None:
    """Before anything is known of the datastore, pods that are already wired up reach nothing and nobody."""
    one, two = node.pod(), node.pod()
    for pod in (one, two):
        node.ns.run("ip", "route", "add", f"{pod.address}/32", "dev", pod.interface)
        proxy_arp(node, pod)
    node.ns.call(_forward)
    assert pings(one.ns, two.address)
    felix = node.felix(IptablesBackend=backend)
    until(lambda: felix.status().backend)
    assert not pings(one.ns, two.address)
    assert not pings(node.world, one.address)
    assert pings(node.world, "172.16.0.1")


@pytest.mark.parametrize(("backend", "rounds"), [("nft", 100), ("legacy", 30)])
def test_killed_at_any_moment_it_neither_opens_nor_loses(node: Node, backend: str, rounds: int) -> None:
    """SIGKILL, time after time, in the middle of starts and applies, packets flowing all the while: of
    established and of new connections that are allowed none is lost, of others none gets through, and in the end
    exactly what is wanted is there.
    """
    felix = node.felix(IptablesBackend=backend)
    server, client, stranger = (node.pod() for _ in range(3))
    wanted = [server, client]
    send(felix, wanted, stranger)
    felix.wait(server, client, stranger)
    generator = random.Random(backend)
    with (
        Probes(client.ns, client.address, server.ns, server.address, port=9000, held=True) as held,
        Probes(client.ns, client.address, server.ns, server.address, port=9001) as allowed,
        Probes(stranger.ns, stranger.address, server.ns, server.address, port=9002) as forbidden,
    ):
        allowed.more(50)
        for round_ in range(rounds):
            felix.kill()
            felix = node.felix(IptablesBackend=backend)
            send(felix, wanted, stranger)
            felix.send(**_upheaval(round_))
            time.sleep(generator.uniform(0, 0.25))
        felix.kill()
        felix = node.felix(IptablesBackend=backend)
        send(felix, wanted, stranger)
        felix.settle()
        allowed.more(50)
    assert not held.lost, f"{len(held.lost)} of {held.sent}"
    assert not allowed.lost, f"{len(allowed.lost)} of {allowed.sent}"
    assert not forbidden.arrived, f"{len(forbidden.arrived)} of {forbidden.sent}"
    assert forbidden.sent > rounds
    assert "cali-pi-gnp/extra" not in node.rules(backend)
    until(lambda: "cali40s:4" not in node.ns.run("ipset", "list", "-n"))


def _upheaval(round_: int) -> dict[str, Any]:
    """Another policy with another set, and thirty more endpoints under it."""
    extra = policy(f"extra{round_}", [Rule("deny", src=Match(ip_sets=(f"s:{round_}",)))] * 20)
    ghosts = [ghost(number, tier(extra)) for number in range(30)]
    return {
        "ip_sets": {f"s:{round_}": IPSet(f"s:{round_}", "net", frozenset({"192.0.2.1"}))},
        "policies": {extra.id: extra},
        "endpoints": {item.id: item for item in ghosts},
    }


def test_chains_left_in_the_other_backend_are_swept(node: Node) -> None:
    """After a change from legacy to nft our chains of before do not go on judging packets; foreign ones stay."""
    felix = node.felix(IptablesBackend="legacy")
    server, client = programmed(node, felix)
    node.ns.run("iptables-legacy", "-A", "FORWARD", "-d", "192.0.2.1", "-j", "DROP")
    felix.stop()
    felix = node.felix(IptablesBackend="nft")
    send(felix, [server, client])
    felix.wait(server, client)
    until(lambda: "cali-" not in node.rules("legacy"))
    assert "192.0.2.1" in node.rules("legacy")
    assert reaches(client.ns, server.address, 80)


def _handles(node: Node) -> str:
    """All rules of nf_tables with the kernel's numbers for them, which are new whenever a rule is written."""
    return node.ns.run("nft", "--stateless", "--handle", "list", "ruleset")


def _forward() -> None:
    sysctl_of("net.ipv4.ip_forward", "1")
