"""Several nodes that restart together wait for each other's tables, but not for ever."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.bgp import BgpLab, Pinger, eventually, eventually_is

pytestmark = pytest.mark.kernel


def test_half_of_the_nodes_restart_at_once(bgp_lab: BgpLab) -> None:
    """bgpd and ExaBGP of 3 of 6 nodes killed at once under traffic: no packet lost, all tables right, nothing stale."""
    bgp_lab.pool("10.244.0.0/16")
    numbers = range(1, 7)
    for number in numbers:
        bgp_lab.block(f"10.244.{number}.0/26", f"n{number}")
    nodes = {number: bgp_lab.node(f"n{number}", f"10.77.1.{number}/24") for number in numbers}
    for number, node in nodes.items():
        node.ns.run("ip", "addr", "add", f"10.244.{number}.1/32", "dev", "lo")
    expected = {
        number: {f"10.244.{other}.0/26": (nodes[other].address,) for other in numbers if other != number}
        for number in numbers
    }
    for number, node in nodes.items():
        eventually_is(f"n{number}'s routes", expected[number], node.gateways, timeout=60)
        eventually("ready", lambda node=node: node.status().get("ready"), timeout=60)
    # Between two that restart, and between one that does and one that does not, each way.
    pairs = [(1, 2), (2, 1), (1, 6), (6, 1)]
    pings = [Pinger(nodes[a].ns, f"10.244.{b}.1", bgp_lab.directory / f"ping-{a}-{b}", interval=0.05) for a, b in pairs]
    restarting = [nodes[1], nodes[2], nodes[3]]
    for node in restarting:
        exabgp = node.exabgp()
        node.kill()
        os.kill(exabgp, signal.SIGKILL)
    for number in numbers:
        assert nodes[number].gateways() == expected[number]
    # What nobody has any more goes with the restart.
    bgp_lab.unblock("10.244.3.0/26", "n3")
    for node in restarting:
        node.start()
    for number, node in nodes.items():
        others = [one.address for one in nodes.values() if one is not node]
        eventually(f"n{number}'s sessions", lambda node=node, others=others: node.up(*others), timeout=60)
        left = {dst: hops for dst, hops in expected[number].items() if dst != "10.244.3.0/26"}
        eventually_is(f"n{number}'s routes", left, node.gateways, timeout=60)
        eventually(
            "nothing stale",
            lambda node=node: (
                not any(peer["stale_paths"] for peer in node.peers().values()) and not node.status()["fib"]["stale"]
            ),
            timeout=60,
        )
    assert [ping.stop()[1] for ping in pings] == [0, 0, 0, 0]
