"""Half an hour of trouble, compressed: at quiet points the kernel holds what the Loc-RIB says, and packets flow."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from calipy import api_client
from calipy.errors import CalipyError
from tests.kernel.test_bgp_limits import relay_of
from tests.kernel.test_bgp_mesh import tor
from tests.support.bgp import BgpLab, BgpNode, Pinger, eventually, eventually_is

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

TROUBLES = 180
"""One in ten seconds of thirty minutes."""
NODES = 4
STEADY = ("n1", "n2")
"""Between these, packets flow all the time: their links stay up and nobody deletes their routes."""


TOR = "10.77.1.254"


class Soak:
    """Four nodes and a top-of-rack switch under graceful restart, what each should know, and ways to disturb them."""

    def __init__(self, lab: BgpLab, chance: random.Random) -> None:
        self._lab = lab
        self._chance = chance
        self._numbers = iter(range(10, 1000))
        lab.pool("10.244.0.0/14")
        self.blocks: dict[str, str] = {}
        for number in range(1, NODES + 1):
            self._claim(f"10.244.{number}.0/26", f"n{number}")
        self.nodes = {f"n{number}": lab.node(f"n{number}", f"10.77.1.{number}/24") for number in range(1, NODES + 1)}
        self._change_peer(30)
        self._tor = lab.bird(lab.fabric, tor({name: node.address for name, node in self.nodes.items()}))
        self.troubles: tuple[Callable[[], str], ...] = (
            self.claim, self.claim, self.release, self.release, self.kill_bgpd, self.kill_exabgp, self.kill_both,
            self.kill_relay, self.flap, self.lose_a_route, self.lose_all_routes, self.change_peer,
        )  # fmt: skip

    def _claim(self, cidr: str, owner: str) -> None:
        self._lab.block(cidr, owner)
        self.blocks[cidr] = owner

    def claim(self) -> str:
        """A node claims a block."""
        number = next(self._numbers)
        owner = self._chance.choice(list(self.nodes))
        self._claim(f"10.245.{number >> 2}.{(number & 3) << 6}/26", owner)
        return f"{owner} claims {number}"

    def release(self) -> str:
        """A node gives a block up; the first ones stay."""
        extra = [cidr for cidr in self.blocks if cidr.startswith("10.245.")]
        if not extra:
            return "nothing to release"
        cidr = self._chance.choice(extra)
        self._lab.unblock(cidr, owner := self.blocks.pop(cidr))
        return f"{owner} releases {cidr}"

    def _any(self, *, steady: bool) -> BgpNode:
        return self.nodes[self._chance.choice([name for name in self.nodes if steady or name not in STEADY])]

    def kill_bgpd(self) -> str:
        """bgpd dies and is started again."""
        node = self._any(steady=True)
        node.kill()
        node.start()
        return f"bgpd of {node.name} killed"

    def kill_exabgp(self) -> str:
        """The speaker dies; bgpd starts another."""
        node = self._any(steady=True)
        if pid := node.exabgp():
            os.kill(pid, signal.SIGKILL)
        return f"ExaBGP of {node.name} killed"

    def kill_both(self) -> str:
        """All of a node's BGP dies at once."""
        node = self._any(steady=True)
        node.kill()
        if pid := node.exabgp():
            os.kill(pid, signal.SIGKILL)
        node.start()
        return f"bgpd and ExaBGP of {node.name} killed"

    def kill_relay(self) -> str:
        """What ExaBGP says is lost, until it has started another relay."""
        node = self._any(steady=True)
        with contextlib.suppress(OSError):
            if pid := relay_of(node):
                os.kill(pid, signal.SIGKILL)
        return f"relay of {node.name} killed"

    def flap(self) -> str:
        """A link goes down, the kernel drops its routes, and it comes back."""
        node = self._any(steady=False)
        node.ns.run("ip", "link", "set", "eth0", "down")
        node.ns.run("ip", "link", "set", "eth0", "up")
        node.ns.run("ip", "route", "replace", "default", "via", "10.77.1.254")
        return f"link of {node.name} flaps"

    def lose_a_route(self) -> str:
        """Somebody deletes a route of ours."""
        node = self._any(steady=False)
        routes = list(node.routes().values())
        if routes:
            node.ns.routes.apply(delete=[self._chance.choice(routes)])
        return f"{node.name} loses a route"

    def lose_all_routes(self) -> str:
        """Somebody flushes all of them."""
        node = self._any(steady=False)
        node.ns.routes.apply(delete=list(node.routes().values()))
        return f"{node.name} loses all routes"

    def _change_peer(self, keepalive: int) -> None:
        self._lab.peer("tor", peer_ip=TOR, as_number=64500, keepalive_time=f"{keepalive}s")

    def change_peer(self) -> str:
        """The BGPPeer of the top-of-rack switch changes: its sessions are made anew."""
        keepalive = self._chance.randint(20, 60)
        self._change_peer(keepalive)
        return f"keepalive time {keepalive}"

    # What should be

    def expected(self, name: str) -> dict[str, tuple[str, ...]]:
        """The kernel's BGP routes of a node."""
        return {cidr: (self.nodes[owner].address,) for cidr, owner in self.blocks.items() if owner != name}

    def loc_rib(self, node: BgpNode) -> dict[str, tuple[str, ...]]:
        """Its own opinion."""
        try:
            routes: list[dict[str, Any]] = api_client.call(node.directory / "bgpd.sock", "routes", timeout=5)
        except CalipyError:
            return {}
        best = {
            one["prefix"]: [path["next_hop"] for path in one["paths"] if path["best"]] for one in routes if one["paths"]
        }
        return {prefix: tuple(hops) for prefix, hops in best.items() if hops}

    def at_the_tor(self) -> dict[str, str]:
        """The top-of-rack switch's routes, stale ones among them: prefix → next hop."""
        shown = self._tor.ask("show route where source = RTS_BGP")
        return dict(re.findall(r"^(\S+/\d+) .*\n\s+via (\S+) on", shown, re.MULTILINE))

    def quiet(self, after: str) -> None:
        """Every kernel and every Loc-RIB end as they should be."""
        there = {cidr: self.nodes[owner].address for cidr, owner in self.blocks.items()}
        eventually_is(f"the ToR after {after}", there, self.at_the_tor, timeout=90)
        for name, node in self.nodes.items():
            eventually_is(f"{name}'s kernel after {after}", self.expected(name), node.gateways, timeout=90)
            eventually_is(f"{name}'s Loc-RIB after {after}", self.expected(name), lambda n=node: self.loc_rib(n), 90)


def test_half_an_hour_of_trouble(bgp_lab: BgpLab) -> None:
    """Blocks come and go, daemons are killed, links flap, routes vanish: quiet points are right, no packet is lost."""
    seed = int(os.environ.get("BGP_SOAK_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")  # shown if it fails
    chance = random.Random(seed)
    soak = Soak(bgp_lab, chance)
    n1, n2 = soak.nodes["n1"], soak.nodes["n2"]
    n2.ns.run("ip", "addr", "add", "10.244.2.1/32", "dev", "lo")
    soak.quiet("start")
    eventually("all sessions", lambda: all(len(node.peers()) == NODES for node in soak.nodes.values()))
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping")
    done = 0
    while done < TROUBLES:
        story = [chance.choice(soak.troubles)() for _ in range(chance.randint(1, 3))]
        done += len(story)
        soak.quiet(", ".join(story))
    sent, lost = ping.stop()
    assert (sent > 1000, lost) == (True, 0)
