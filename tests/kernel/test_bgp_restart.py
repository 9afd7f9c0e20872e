"""What must not cost a packet: bgpd killed, restarted, upgraded; ExaBGP killed; peers restarting; drift mended."""

from __future__ import annotations

import os
import signal
import time

import pytest

from calipy.bgp.rib import EOR_WAIT
from calipy.net import PROTO_BGP, NextHop, Route
from tests.kernel.test_bgp_mesh import tor
from tests.support.bgp import BgpLab, BgpNode, Pinger, eventually, eventually_is, prefix

pytestmark = pytest.mark.kernel


def pair(lab: BgpLab) -> tuple[BgpNode, BgpNode]:
    """Two nodes that have each other's block, each with a pod address that answers."""
    lab.pool("10.244.0.0/16")
    lab.block("10.244.1.0/26", "n1")
    lab.block("10.244.2.0/26", "n2")
    n1 = lab.node("n1", "10.77.1.1/24")
    n2 = lab.node("n2", "10.77.1.2/24")
    n2.ns.run("ip", "addr", "add", "10.244.2.1/32", "dev", "lo")
    eventually_is("n1's routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    eventually_is("n2's routes", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    return n1, n2


def test_a_killed_bgpd_loses_no_packet_and_its_successor_adopts(bgp_lab: BgpLab) -> None:
    """SIGKILL of bgpd: ExaBGP, sessions and routes stay; the next bgpd learns what happened meanwhile."""
    n1, n2 = pair(bgp_lab)
    exabgp, since = n1.exabgp(), n2.peers()[n1.address]["since"]
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping")
    n1.kill()
    assert n1.gateways() == {"10.244.2.0/26": (n2.address,)}
    # While nobody listens: one block more, one less, at both ends.
    bgp_lab.block("10.244.3.0/26", "n2")
    bgp_lab.block("10.244.4.0/26", "n1")
    eventually("n2 has announced", lambda: n2.status()["ready"])
    time.sleep(0.5)
    assert set(n1.gateways()) == {"10.244.2.0/26"}, "nobody is there to write routes"
    n1.start()
    eventually_is("n1 caught up", {"10.244.2.0/26": (n2.address,), "10.244.3.0/26": (n2.address,)}, n1.gateways)
    eventually_is("n2 caught up", {"10.244.1.0/26": (n1.address,), "10.244.4.0/26": (n1.address,)}, n2.gateways)
    n1.kill()
    bgp_lab.unblock("10.244.3.0/26", "n2")
    bgp_lab.unblock("10.244.4.0/26", "n1")
    time.sleep(0.5)
    n1.start()
    eventually_is("n1 let go", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    eventually_is("n2 let go", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    sent, lost = ping.stop()
    assert (sent > 100, lost) == (True, 0)
    assert n1.exabgp() == exabgp
    assert n1.status()["exabgp_pid"] == exabgp
    assert n2.peers()[n1.address]["since"] == since, "the session must not have moved"
    assert n2.peers()[n1.address]["flaps"] == 0


def test_bgpd_dies_at_any_moment(bgp_lab: BgpLab) -> None:
    """Killed again and again, a little later each time, bgpd ends with the right sessions and routes."""
    n1, n2 = pair(bgp_lab)
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping")
    exabgp = n1.exabgp()
    for step in range(8):
        n1.kill()
        n1.start()
        time.sleep(0.1 * step)
    eventually("ready", lambda: n1.status().get("ready"))
    eventually_is("n1's routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    assert ping.stop()[1] == 0
    assert n1.exabgp() == exabgp
    assert n2.peers()[n1.address]["flaps"] == 0


def test_a_killed_exabgp_is_started_again_and_no_packet_lost(bgp_lab: BgpLab) -> None:
    """ExaBGP's death: routes stay at both ends (graceful restart), a new ExaBGP takes over."""
    n1, n2 = pair(bgp_lab)
    n1.ns.run("ip", "addr", "add", "10.244.1.1/32", "dev", "lo")
    exabgp = n1.exabgp()
    there = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping1")
    back = Pinger(n2.ns, "10.244.1.1", bgp_lab.directory / "ping2")
    os.kill(exabgp, signal.SIGKILL)
    eventually("a new ExaBGP", lambda: n1.exabgp() not in (0, exabgp))
    eventually("session is back", lambda: n1.up(n2.address) and n2.up(n1.address) and n2.peers()[n1.address]["flaps"])
    eventually(
        "nothing stale", lambda: not (n1.peers()[n2.address]["stale_paths"] + n2.peers()[n1.address]["stale_paths"])
    )
    assert n1.gateways() == {"10.244.2.0/26": (n2.address,)}
    assert n2.gateways() == {"10.244.1.0/26": (n1.address,)}
    assert (there.stop()[1], back.stop()[1]) == (0, 0)


def test_both_killed_at_once(bgp_lab: BgpLab) -> None:
    """bgpd and ExaBGP killed together: routes stay until peers have told everything again, then the dead ones go."""
    n1, n2 = pair(bgp_lab)
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping")
    exabgp = n1.exabgp()
    n1.kill()
    os.kill(exabgp, signal.SIGKILL)
    n1.ns.routes.apply(
        add=[Route(prefix("10.244.9.0/26"), "unicast", (NextHop(prefix("10.77.1.2/32")[0]),), PROTO_BGP, 1024)]
    )
    n1.start()
    eventually("session is back", lambda: n1.up(n2.address))
    eventually_is("the route nobody announces went", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    assert ping.stop()[1] == 0


def test_sigterm_leaves_routes_and_sessions(bgp_lab: BgpLab) -> None:
    """SIGTERM is for a restart: exit status 0, ExaBGP runs on, routes stay."""
    n1, n2 = pair(bgp_lab)
    exabgp = n1.exabgp()
    n1.kill(signal.SIGTERM)
    assert n1.bgpd
    assert n1.bgpd.process.returncode == 0
    assert n1.exabgp() == exabgp
    assert n1.gateways() == {"10.244.2.0/26": (n2.address,)}
    assert n2.up(n1.address)


def test_a_peer_is_added_and_removed_without_touching_others(bgp_lab: BgpLab) -> None:
    """A node that joins gets everything; the sessions that were there stay; removed peers are withdrawn from."""
    n1, n2 = pair(bgp_lab)
    n3 = bgp_lab.node("n3", "10.77.1.3/24")
    eventually_is("n3's routes", {"10.244.1.0/26": (n1.address,), "10.244.2.0/26": (n2.address,)}, n3.gateways)
    assert [n1.peers()[n2.address]["flaps"], n2.peers()[n1.address]["flaps"]] == [0, 0]
    bgp_lab.configuration(node_to_node_mesh_enabled=False)
    eventually_is("no sessions, no routes", {}, n3.gateways)
    eventually_is("no peers", {}, n1.peers)
    assert n1.gateways() == {}


def test_deleted_and_foreign_routes(bgp_lab: BgpLab) -> None:
    """A deleted route comes back, one that nobody asked for goes; a place that others hold is not taken."""
    n1, n2 = pair(bgp_lab)
    n1.ns.run("ip", "route", "del", "10.244.2.0/26")
    eventually_is("came back", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    n1.ns.run("ip", "route", "add", "10.244.7.0/26", "via", n2.address, "proto", "82", "metric", "1024")
    eventually_is("ours without reason", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    n1.ns.run("ip", "route", "add", "10.244.8.0/26", "via", n2.address, "proto", "static", "metric", "1024")
    bgp_lab.block("10.244.8.0/26", "n2")
    eventually(
        "refusal is told", lambda: n1.status()["fib"]["failures"] == [{"dst": "10.244.8.0/26", "reason": "EEXIST"}]
    )
    assert "proto static" in n1.ns.run("ip", "route", "show", "10.244.8.0/26")
    n1.ns.run("ip", "route", "del", "10.244.8.0/26")
    eventually("ours once the place is free", lambda: "10.244.8.0/26" in n1.gateways())


def test_an_interface_that_flaps(bgp_lab: BgpLab) -> None:
    """The kernel drops routes of a link that goes down; they are back when it is up, session or not."""
    n1, n2 = pair(bgp_lab)
    n1.ns.run("ip", "link", "set", "eth0", "down")
    assert n1.gateways() == {}
    time.sleep(0.3)
    n1.ns.run("ip", "link", "set", "eth0", "up")
    n1.ns.run("ip", "route", "add", "default", "via", "10.77.1.254")
    eventually_is("back", {"10.244.2.0/26": (n2.address,)}, n1.gateways)


def test_a_restarting_bird_keeps_its_routes_here(bgp_lab: BgpLab) -> None:
    """Helper: a peer that is killed and returns keeps its routes here; shut down by hand, they go at once."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    here = tor({"n1": n1.address}, export="where source = RTS_STATIC", static="route 198.51.100.0/24 blackhole;")
    here = here.replace("local as 64500", "local 10.77.1.254 as 64500")
    bird = bgp_lab.bird(bgp_lab.fabric, here)
    both = {"192.0.2.0/24": ("10.77.1.254",), "198.51.100.0/24": ("10.77.1.254",)}
    eventually_is("routes", both, n1.gateways)
    bird.program.kill()
    eventually("session lost", lambda: not n1.up("10.77.1.254"))
    assert n1.gateways() == both
    assert n1.peers()["10.77.1.254"]["stale_paths"] == 2
    (bgp_lab.directory / "bird.conf").write_text(here.replace("route 198.51.100.0/24 blackhole;", ""))
    bird.start("-R")
    eventually("session back", lambda: n1.up("10.77.1.254"))
    eventually_is("swept at End-of-RIB", {"192.0.2.0/24": ("10.77.1.254",)}, n1.gateways)
    bird.ask("disable n1")
    eventually_is("administrative shutdown", {}, n1.gateways)
    assert "administrative shutdown" in n1.peers()["10.77.1.254"]["cause"]


def test_what_came_and_went_while_a_peer_was_away_is_not_told(bgp_lab: BgpLab) -> None:
    """A block claimed and released while the dialing end is down: on its return it hears of the living ones only."""
    n1, n2 = pair(bgp_lab)
    n2.kill()
    os.kill(n2.exabgp(), signal.SIGKILL)
    eventually("n1 has noticed", lambda: not n1.up(n2.address))
    for number in range(3):
        bgp_lab.block(f"10.244.9.{64 * number}/26", "n1")
        bgp_lab.block("10.244.8.0/26", "n1")
        bgp_lab.unblock(f"10.244.9.{64 * number}/26", "n1")
        bgp_lab.unblock("10.244.8.0/26", "n1")
    bgp_lab.block("10.244.7.0/26", "n1")
    n2.start()
    there = {"10.244.1.0/26": (n1.address,), "10.244.7.0/26": (n1.address,)}
    eventually_is("n2's routes", there, n2.gateways)
    eventually("End-of-RIB", lambda: n2.up(n1.address) and n2.status()["ready"])
    time.sleep(1)  # nothing more must come
    assert n2.gateways() == there


def test_a_restart_does_not_wait_for_a_dead_node(bgp_lab: BgpLab) -> None:
    """Stale routes go when the living have told everything, if the datastore says that the other node is dead."""
    n1, n2 = pair(bgp_lab)
    bgp_lab.block("10.244.3.0/26", "n3")
    n3 = bgp_lab.node("n3", "10.77.1.3/24")
    eventually("n3's route", lambda: "10.244.3.0/26" in n1.gateways())
    for node in (n1, n2, n3):
        bgp_lab.report(node.name, alive=node is not n3)
    n3.close()
    eventually("n3 is missed", lambda: not n1.up(n3.address))
    exabgp = n1.exabgp()
    n1.kill()
    os.kill(exabgp, signal.SIGKILL)
    bgp_lab.unblock("10.244.2.0/26", "n2")
    bgp_lab.block("10.244.4.0/26", "n2")
    n1.start()
    eventually("n2 has told", lambda: "10.244.4.0/26" in n1.gateways(), EOR_WAIT / 2)
    eventually_is("n1's routes", {"10.244.4.0/26": (n2.address,)}, n1.gateways, EOR_WAIT / 2)
    assert not n1.up(n3.address)
