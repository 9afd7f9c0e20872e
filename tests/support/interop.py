"""What must hold between calipy's nodes and a router of another make, in each place that the router can take.

Two nodes and the router on one subnet, both families, every session with a TCP-MD5 key and graceful restart. One lab
per place; the test modules say which make.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from calipy import api_client
from calipy.datastore.resources import (
    BGPFilterRule,
    BGPFilterSpec,
    BGPPassword,
    Community,
    IPPoolSpec,
    NodeBGPSpec,
    NodeSpec,
    PrefixAdvertisement,
    SecretKeySelector,
)
from tests.support.bgp import BgpLab, BgpNode, Pinger, eventually, eventually_is, network
from tests.support.routers import ROUTERS, Best, Place, Router, need, watch_kernel

FAMILIES = (4, 6)
LONG = 60.0
"""Seconds: routers have timers of their own before they connect and before they end a restart."""

FOREIGN = {4: "198.51.100.0/24", 6: "2001:db8:100::/48"}
OUTSIDE = {4: "192.0.2.0/24", 6: "2001:db8:2::/48"}
OUTSIDE_TOO = {4: "203.0.113.0/24", 6: "2001:db8:3::/48"}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
HIDDEN_POOL = {4: "10.99.0.0/16", 6: "fd99::/48"}
HIDDEN = {4: "10.99.1.0/26", 6: "fd99:0:0:1::/122"}


def block(number: int, family: int) -> str:
    """A block. 1, 3 and 6 are n1's, 2, 4 and 5 n2's, 9 and 10 those of a router in place of a node."""
    return f"10.244.{number}.0/26" if family == 4 else f"fd00:244:0:{number}::/122"


def inside(prefix: str) -> str:
    """An address in a prefix."""
    address = prefix.partition("/")[0]
    return f"{address}1" if ":" in prefix else f"{address.rpartition('.')[0]}.1"


def address(last: int, family: int) -> str:
    """Addresses on the subnet; the router's ends in 200."""
    return f"10.77.1.{last}" if family == 4 else f"fd77:1::{last}"


@dataclass
class Outcome:
    """What a restart did to one family.

    Attributes:
        lost: packets not answered, of ``sent``.
        removed: routes that went away for a moment although nothing had changed about them.
    """

    sent: int = 0
    lost: int = 0
    removed: list[str] = field(default_factory=list)


class Setting:
    """Two nodes and a router in one place."""

    def __init__(self, lab: BgpLab, kind: str, place: Place) -> None:
        self.lab = lab
        self.kind = kind
        self.place: Place = place
        self.gone: set[str] = set()
        self._datastore()
        for name in ("n1", "n2"):
            secret = lab.directory / name / "secrets" / "bgp"
            secret.mkdir(parents=True)
            (secret / "password").write_text("s3cr3t\n")
        self.n1, self.n2 = (lab.node(f"n{i}", f"{address(i, 4)}/24", address6=f"{address(i, 6)}/64") for i in (1, 2))
        if place == "ToR":  # its default route has the place that the router's would take
            for node in (self.n1, self.n2):
                node.ns.run("ip", "-6", "route", "del", "default")
        self.ns = lab.namespace("router", f"{address(200, 4)}/24", f"{address(200, 6)}/64")
        for place_of, prefixes in ((self.n1.ns, self.pods(1)), (self.n2.ns, self.pods(2)), (self.ns, self.behind())):
            for prefix in prefixes:
                place_of.address("lo", f"{inside(prefix)}/{128 if ':' in prefix else 32}")
        self.router: Router = ROUTERS[kind](lab, self.ns, place)
        self.router.start(self.originated())

    def _datastore(self) -> None:
        lab = self.lab
        key = BGPPassword(secret_key_ref=SecretKeySelector(name="bgp", key="password"))
        lab.pool("10.244.0.0/16", "pods4")
        lab.pool("fd00:244::/48", "pods6")
        self.hide()
        lab.configuration(
            node_to_node_mesh_enabled=self.place == "node",
            node_mesh_password=key if self.place == "node" else None,
            communities=(Community(name="pods", value="64512:7"),),
            prefix_advertisements=tuple(
                PrefixAdvertisement(cidr=cidr, communities=("pods", "64512:1:2"))
                for cidr in ("10.244.0.0/16", "fd00:244::/48")
            ),
        )
        for family in FAMILIES:
            for owner, numbers in (("n1", (1, 3, 6)), ("n2", (2, 4, 5))):
                for number in numbers:
                    lab.block(block(number, family), owner)
            lab.block(HIDDEN[family], "n1")
            if self.place != "node":
                lab.peer(
                    f"router-v{family}", peer_ip=address(200, family), as_number=self.remote_as, password=key,
                    filters=("f",),
                )  # fmt: skip
        self.filter()
        if self.place == "node":
            spec = NodeBGPSpec(ipv4_address=f"{address(200, 4)}/24", ipv6_address=f"{address(200, 6)}/64")
            lab.apply("Node", "router", NodeSpec(bgp=spec))

    # What is configured

    @property
    def remote_as(self) -> int:
        """The router's AS."""
        return 65001 if self.place == "ToR" else 64512

    def hide(self, *shown: int) -> None:
        """Keep the hidden pools at home, but for some families."""
        for family in FAMILIES:
            spec = IPPoolSpec(
                cidr=HIDDEN_POOL[family],
                block_size=26 if family == 4 else 122,
                disable_bgp_export=family not in shown,
            )
            self.lab.apply("IPPool", f"hidden{family}", spec)

    def filter(self, *families: int) -> None:
        """BGPFilters that keep one prefix from going out and one from coming in, in these families (default: both)."""
        rules: dict[str, tuple[BGPFilterRule, ...]] = {}
        for family in families or FAMILIES:
            kept = block(3, family)
            unwanted = FOREIGN[family] if self.place == "ToR" else block(5, family)
            for name, cidr in (("export", kept), ("import", unwanted)):
                rules[f"{name}_v{family}"] = (BGPFilterRule(action="Reject", cidr=cidr, match_operator="Equal"),)
        self.lab.apply("BGPFilter", "f", BGPFilterSpec(**rules))

    def originated(self) -> list[str]:
        """What the router announces besides what the manual's sample has it announce."""
        everything: dict[Place, list[str]] = {
            "reflector": [],
            "ToR": [one[family] for family in FAMILIES for one in (OUTSIDE, OUTSIDE_TOO, FOREIGN)],
            "node": [prefix for family in FAMILIES for prefix in (block(10, family), FOREIGN[family])],
        }
        return [one for one in everything[self.place] if one not in self.gone]

    def pods(self, number: int) -> list[str]:
        """Blocks of a node in which a pod answers."""
        return [block(number, family) for family in FAMILIES]

    def behind(self) -> list[str]:
        """Prefixes of the router in which somebody answers."""
        return {"reflector": [], "ToR": list(OUTSIDE.values()), "node": self.pods(9)}[self.place]

    # What should be

    def learned(self, family: int) -> dict[str, tuple[str, ...]]:
        """N1's routes."""
        n2, router = (address(2, family),), (address(200, family),)
        match self.place:
            case "reflector":
                routes = dict.fromkeys((block(2, family), block(4, family)), n2)
            case "ToR":
                routes = dict.fromkeys((EVERYTHING[family], OUTSIDE[family], OUTSIDE_TOO[family]), router)
            case "node":
                routes = dict.fromkeys((block(number, family) for number in (2, 4, 5)), n2)
                routes |= dict.fromkeys((block(number, family) for number in (9, 10)), router)
        return {dst: hops for dst, hops in routes.items() if dst not in self.gone}

    def told(self, family: int) -> Best:
        """The router's best paths."""
        path = "64512" if self.place == "ToR" else ""
        found = {block(number, family): (address(2, family), path) for number in (2, 4, 5)}
        own = (1, 3, 6) if self.place == "node" else (1, 6)
        found |= {block(number, family): (address(1, family), path) for number in own}
        return {dst: best for dst, best in found.items() if dst not in self.gone}

    # What is

    def routes(self, node: BgpNode, family: int) -> dict[str, tuple[str, ...]]:
        """Gateways of a node's routes of one family."""
        return {dst: hops for dst, hops in node.gateways().items() if (":" in dst) == (family == 6)}

    def settled(self) -> None:
        """Both sides have what they should."""
        for family in FAMILIES:
            eventually_is(
                f"n1's IPv{family} routes", self.learned(family), lambda f=family: self.routes(self.n1, f), LONG
            )
            eventually_is("its RIB", self.told(family), lambda f=family: self.router.best(f), LONG)

    def up(self) -> bool:
        """Both nodes' sessions with the router."""
        both = [address(200, family) for family in FAMILIES]
        return self.n1.up(*both) and self.n2.up(*both)

    def down(self) -> bool:
        """None of the nodes' sessions with the router is up."""
        return all(
            node.peers().get(address(200, family), {}).get("state") != "up"
            for node in (self.n1, self.n2)
            for family in FAMILIES
        )

    def communities(self, prefix: str) -> set[str]:
        """Those of n1's best path."""
        answer = api_client.call(self.n1.directory / "bgpd.sock", "routes", {"prefix": prefix}, timeout=5)
        found: list[dict[str, Any]] = answer["routes"] if isinstance(answer, dict) else answer
        return {one for entry in found for path in entry["paths"] if path["best"] for one in path["communities"]}

    # Faults

    def its_restart(self) -> dict[int, Outcome]:
        """The router is killed and started again; one route goes meanwhile."""
        self.settled()
        target = {"reflector": self.pods(2), "ToR": list(OUTSIDE.values()), "node": self.pods(9)}[self.place]
        before = {family: self.learned(family) for family in FAMILIES}
        pings = [Pinger(self.n1.ns, inside(one), self.lab.directory / f"its-ping{one[:2]}", 0.02) for one in target]
        watch = watch_kernel(self.lab, self.n1.ns)
        self.router.kill()
        eventually("sessions lost", self.down)
        for family in FAMILIES:
            assert self.routes(self.n1, family) == before[family], "routes stay while the router restarts"
        lost = {"reflector": self.swept(4), "ToR": list(OUTSIDE_TOO.values()), "node": self.swept(10)}[self.place]
        self.gone |= set(lost)
        if self.place == "reflector":
            for one in lost:
                self.lab.unblock(one, "n2")
        self.router.start(self.originated(), restarting=True)
        eventually("sessions are back", self.up, LONG)
        self.settled()
        return self._outcomes(pings, watch.stop(*(dst for family in FAMILIES for dst in self.learned(family))))

    def our_restart(self) -> dict[int, Outcome]:
        """N1's bgpd and ExaBGP are killed together and started again; one block goes meanwhile."""
        self.settled()
        # GoBGP forwards nothing: there packets come from the other node, which has its routes from GoBGP or from n1.
        source = self.n2.ns if self.place == "reflector" or not self.router.kernel_protocol else self.ns
        if self.place == "ToR" and source is self.n2.ns:
            source = None
        pings = [
            Pinger(source, inside(one), self.lab.directory / f"our-ping{one[:2]}", 0.02)
            for one in (self.pods(1) if source else ())
        ]
        watches = [self.router.watch(), watch_kernel(self.lab, self.n2.ns)]
        exabgp = self.n1.exabgp()
        self.n1.kill()
        os.kill(exabgp, signal.SIGKILL)
        for one in self.swept(6):
            self.lab.unblock(one, "n1")
        self.gone |= set(self.swept(6))
        eventually("ExaBGP has gone", lambda: self.n1.exabgp() == 0)
        self.n1.start()
        eventually("sessions are back", self.up, LONG)
        self.settled()
        staying = [block(number, family) for family in FAMILIES for number in (1, 3)]
        return self._outcomes(pings, [line for watch in watches for line in watch.stop(*staying)])

    def swept(self, number: int) -> list[str]:
        """A block of each family."""
        return [block(number, family) for family in FAMILIES]

    def _outcomes(self, pings: list[Pinger], removed: list[str]) -> dict[int, Outcome]:
        counts = [ping.stop() for ping in pings] or [(0, 0)] * 2
        return {
            family: Outcome(*count, [line for line in removed if ("::" in line) == (family == 6)])
            for family, count in zip(FAMILIES, counts, strict=True)
        }


class Interop:
    """The tests; a subclass says which make of router."""

    __test__ = False
    kind: ClassVar[str]

    @pytest.fixture(scope="class", params=["reflector", "ToR", "node"])
    @classmethod
    def here(cls, request: pytest.FixtureRequest) -> Iterator[Setting]:
        """The router in one of its places, sessions and routes as they should be."""
        need(cls.kind)
        with network() as lab:
            yield Setting(lab, cls.kind, request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def after_its_restart(cls, here: Setting) -> dict[int, Outcome]:
        return here.its_restart()

    @pytest.fixture(scope="class")
    @classmethod
    def after_our_restart(cls, here: Setting) -> dict[int, Outcome]:
        return here.our_restart()

    @pytest.mark.parametrize("family", FAMILIES)
    def test_routes(self, here: Setting, family: int) -> None:
        """RIBs of both sides and the kernels have the same prefixes by the right next hops."""
        eventually_is("n1's routes", here.learned(family), lambda: here.routes(here.n1, family), LONG)
        eventually_is("its RIB", here.told(family), lambda: here.router.best(family), LONG)
        if here.place == "reflector":
            back = {block(number, family): (address(1, family),) for number in (1, 6)}
            back = {dst: hops for dst, hops in back.items() if dst not in here.gone}
            eventually_is("n2's routes", back, lambda: here.routes(here.n2, family), LONG)
        elif here.router.kernel_protocol:
            kernel = {dst: hop for dst, (hop, _) in here.told(family).items()}
            eventually_is("its kernel", kernel, lambda: here.router.kernel(family), LONG)
        peer = here.n1.peers()[address(200, family)]
        assert (peer["as_number"], peer["type"]) == (
            here.remote_as,
            "node-to-node mesh" if here.place == "node" else "global",
        )

    @pytest.mark.parametrize("family", FAMILIES)
    def test_md5(self, here: Setting, family: int) -> None:
        """The session's socket signs its segments with the key, at both ends."""
        here.settled()
        for namespace, peer in ((here.n1.ns, address(200, family)), (here.ns, address(1, family))):
            sockets = namespace.run(
                "ss", "-tnHOie", "state", "established", "dst", f"[{peer}]" if ":" in peer else peer
            )
            assert "s3cr3t" in sockets

    @pytest.mark.parametrize("family", FAMILIES)
    def test_communities(self, here: Setting, family: int) -> None:
        """Plain and large communities of prefixAdvertisements arrive there, and the router's arrive here."""
        ours = {"64512:7", "64512:1:2"}
        eventually_is("at the router", ours, lambda: here.router.communities(block(1, family)), LONG)
        theirs, prefix = {
            "reflector": (ours, block(2, family)),
            "ToR": ({"64500:5", "64500:5:6"}, OUTSIDE[family]),
            "node": ({"64500:5", "64500:5:6"}, block(10, family)),
        }[here.place]
        if prefix not in here.gone:
            eventually_is("at n1", theirs, lambda: here.communities(prefix), LONG)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_filters(self, here: Setting, family: int) -> None:
        """What is filtered stays out both ways, comes when the filter goes, goes when it returns; sessions stay up."""
        here.settled()
        peer = address(200, family)
        flaps = here.n1.peers()[peer]["flaps"]
        if here.place == "node":  # no BGPFilters in a mesh; its own rules instead
            kept, told, learned = HIDDEN[family], dict(here.told(family)), here.learned(family)
            told[kept] = (address(1, family), "")
            assert here.communities(FOREIGN[family]) == set(), "outside of the pools"
            here.hide(family)
        else:
            path = "64512" if here.place == "ToR" else ""
            told = here.told(family) | {block(3, family): (address(1, family), path)}
            unwanted = FOREIGN[family] if here.place == "ToR" else block(5, family)
            hop = address(200 if here.place == "ToR" else 2, family)
            learned = here.learned(family) | {unwanted: (hop,)}
            here.filter(10 - family)
        eventually_is("open outwards", told, lambda: here.router.best(family), LONG)
        eventually_is("open inwards", learned, lambda: here.routes(here.n1, family), LONG)
        if here.place == "node":
            here.hide()
        else:
            here.filter()
        here.settled()
        assert here.n1.peers()[peer]["flaps"] == flaps

    @pytest.mark.parametrize("family", FAMILIES)
    def test_its_restart(self, here: Setting, after_its_restart: dict[int, Outcome], family: int) -> None:
        """The router killed and back: routes stayed and no packet was lost; what it no longer tells is swept."""
        outcome = after_its_restart[family]
        assert (outcome.removed, outcome.lost) == ([], 0)
        assert outcome.sent > 20
        assert here.routes(here.n1, family) == here.learned(family)
        assert here.n1.peers()[address(200, family)]["stale_paths"] == 0

    @pytest.mark.parametrize("family", FAMILIES)
    def test_our_restart(self, here: Setting, after_our_restart: dict[int, Outcome], family: int) -> None:
        """bgpd and ExaBGP killed and back: it kept the routes, no packet was lost; the block that went is swept."""
        outcome = after_our_restart[family]
        assert (outcome.removed, outcome.lost) == ([], 0)
        assert outcome.sent > 20 or (here.place, here.kind) == ("ToR", "GoBGP")
        assert here.router.best(family) == here.told(family)
