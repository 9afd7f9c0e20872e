"""What wears a speaker down: deaths in a row, a bgpd that stops, peers that do not exist. All is right afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from tests.kernel.test_bgp_limits import relay_of
from tests.kernel.test_bgp_mesh import tor
from tests.kernel.test_bgp_restart import pair
from tests.support.bgp import BgpLab, Pinger, eventually, eventually_is

pytestmark = pytest.mark.kernel

TOR = "10.77.1.254"
HOLD = 9
"""Seconds; the least that BGP knows, 3, is too little for a machine that runs other tests."""


def fabric(nodes: dict[str, str], static: str = "") -> str:
    """A top-of-rack switch with routes of its own, on subnet A."""
    there = tor(nodes, export="where source = RTS_STATIC", static=static)
    return there.replace("local as 64500;", f"local {TOR} as 64500;")


def test_relays_that_die_one_after_the_other(bgp_lab: BgpLab) -> None:
    """Seven deaths within ExaBGP's minute may end it, too: started again, it has all routes, and no packet was lost."""
    n1, n2 = pair(bgp_lab)
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping", interval=0.05)
    killed: set[int] = set()
    exabgp = n1.exabgp()
    began = time.monotonic()

    def kill_another() -> bool:
        with contextlib.suppress(OSError):
            relay = relay_of(n1)
            if relay and relay not in killed:
                os.kill(relay, signal.SIGKILL)
                killed.add(relay)
        return len(killed) >= 7

    eventually("seven deaths", kill_another, timeout=60)
    print(f"seven deaths in {time.monotonic() - began:.1f} s")  # shown if it fails
    bgp_lab.block("10.244.3.0/26", "n2")
    bgp_lab.block("10.244.4.0/26", "n1")
    mine = {"10.244.2.0/26": (n2.address,), "10.244.3.0/26": (n2.address,)}
    eventually_is("n1's routes", mine, n1.gateways, timeout=90)
    eventually_is("n2's", {f"10.244.{i}.0/26": (n1.address,) for i in (1, 4)}, n2.gateways, timeout=90)
    eventually("sessions", lambda: n1.up(n2.address) and n1.status()["ready"], timeout=60)
    print("ExaBGP", "survived" if n1.exabgp() == exabgp else "was started again")
    assert ping.stop()[1] == 0


def test_a_bgpd_that_stops_for_longer_than_the_hold_time(bgp_lab: BgpLab) -> None:
    """ExaBGP and the relay go on without it: no session is lost, and what was told meanwhile is there afterwards."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.peer("tor", peer_ip=TOR, as_number=64500, keepalive_time=f"{HOLD // 3}s")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")

    def routes(first: int, last: int) -> str:
        return "\n".join(f"route 20.{i >> 8}.{i & 255}.0/24 blackhole;" for i in range(first, last))

    nodes = {"n1": n1.address}
    bird = bgp_lab.bird(bgp_lab.fabric, fabric(nodes, routes(0, 1000)))
    eventually("all routes", lambda: len(n1.gateways()) == 1001)
    assert n1.bgpd
    os.kill(n1.bgpd.pid, signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        for number in range(1, 90):  # more than any pipe holds
            bird.configure(fabric(nodes, routes(700 * number, 700 * number + 1000)))
            if time.monotonic() - stopped > HOLD + 2:
                break
            time.sleep(0.2)  # the peer's own pace
    finally:
        os.kill(n1.bgpd.pid, signal.SIGCONT)
    wanted = {f"20.{i >> 8}.{i & 255}.0/24" for i in range(700 * number, 700 * number + 1000)} | {"192.0.2.0/24"}
    eventually_is("what was told last", wanted, lambda: set(n1.gateways()))
    assert (n1.up(TOR), n1.peers()[TOR]["flaps"]) == (True, 0)
    assert "10.244.1.0/26" in bird.routes()


def test_twenty_peers_that_do_not_exist(bgp_lab: BgpLab) -> None:
    """Dialing the dead holds nobody up: a session of the living comes up, and routes flow both ways."""
    for number in range(20):
        # Half of them refuse (the fabric's own addresses), half do not answer.
        host = f"10.77.1.{100 + number}"
        if number % 2:
            bgp_lab.fabric.address("br0", f"{host}/24")
        bgp_lab.peer(f"dead{number}", peer_ip=host, as_number=64500)
    n1, n2 = pair(bgp_lab)
    eventually("all are wanted", lambda: len(n1.peers()) == 21)
    bgp_lab.peer("tor", peer_ip=TOR, as_number=64500)
    bird = bgp_lab.bird(bgp_lab.fabric, fabric({"n1": n1.address, "n2": n2.address}))
    eventually("the living", lambda: n1.up(TOR, n2.address) and n2.up(TOR, n1.address))
    eventually("its route", lambda: "192.0.2.0/24" in n1.gateways() and "192.0.2.0/24" in n2.gateways())
    bgp_lab.block("10.244.3.0/26", "n2")
    eventually("a new block", lambda: "10.244.3.0/26" in n1.gateways() and "10.244.3.0/26" in bird.routes())
    assert n1.peers()[n2.address]["flaps"] == 0
