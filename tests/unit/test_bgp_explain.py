"""Why a prefix is reached or not: each way in which the chain can break is named, with its place."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from calipy.bgp.advertise import Originated
from calipy.bgp.cluster import ClusterTable
from calipy.bgp.decision import Best
from calipy.bgp.explain import Explanation, Facts, Origin, Telling, destination, explain, tellings
from calipy.bgp.exporting import ExportPolicy
from calipy.bgp.fib import Programming, Resolution
from calipy.bgp.path import Attributes, Path, Peer
from calipy.bgp.peering import Session
from calipy.datastore.resources import BGPFilterRule, BGPFilterSpec
from calipy.net import NextHop, Prefix, Route

N1, N2 = ip_address("10.0.0.1"), ip_address("10.0.0.2")
BLOCK: Prefix = ip_network("10.244.2.0/26")
PATH = Path(BLOCK, Peer(N2, 64512, 64512, IPv4Address(2)), Attributes(N2))
WAY = Resolution((NextHop(N2, "eth0"),), 0)
UP = Telling(N2, "n2", up=True, info="Established", wanted=False, told=False, kept_back="")
ROUTE = Route(BLOCK, "unicast", (NextHop(N2, "eth0"),), 82, 1024)
WORKING = Facts(
    asked=BLOCK,
    target=BLOCK,
    hostname="n1",
    from_datastore=False,
    origin=Origin(BLOCK, "n2", confirmed=True),
    originated=Originated(),
    sessions=(UP,),
    paths=(PATH,),
    best=Best(PATH, "only path", (PATH,), 1),
    resolve={N2: WAY}.get,
    programming=Programming(),
    kernel=ROUTE,
    others=ROUTE,
    failure="",
)
SILENT: dict[str, Any] = {"paths": (), "best": None, "kernel": None}


def steps(explanation: Explanation) -> str:
    """Names of the steps, the broken ones in capitals."""
    return " ".join(step.name if step.ok else step.name.upper() for step in explanation.steps)


def test_a_chain_that_holds() -> None:
    """Origin, path, decision and route are all shown."""
    found = explain(WORKING)
    assert (steps(found), found.broken) == ("origin learned best kernel", "")
    assert "via 10.0.0.2 dev eth0" in found.steps[-1].text


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"origin": Origin(BLOCK, "n2"), **SILENT}, "origin: block 10.244.2.0/26 of n2 (affinity not confirmed)"),
        ({"origin": Origin(BLOCK), **SILENT}, "origin: block 10.244.2.0/26 of no node"),
        (
            {"sessions": (replace(UP, up=False, info="Active: refused"),), **SILENT},
            "the session with n2 (10.0.0.2) is not up: Active: refused",
        ),
        ({**SILENT}, "learned: n2 does not announce it"),
        ({"sessions": (), **SILENT}, "learned: this node has no session that carries IPv4"),
        ({"from_datastore": True, **SILENT}, "Node n2 is missing, or has no IPv4 address"),
        (
            {**SILENT, "origin": Origin(), "sessions": (replace(UP, up=False, info="Idle"),)},
            "no peer tells of it; not up: 10.0.0.2 (n2): Idle",
        ),
        ({**SILENT, "paths": (replace(PATH, rejected="own AS"),)}, "learned: every path is refused"),
        ({"best": None, "kernel": None}, "best: no route leads to next hop 10.0.0.2"),
        ({"kernel": None}, "kernel: no route yet"),
        ({"kernel": None, "failure": "EEXIST"}, "kernel: the kernel refuses the route: EEXIST"),
    ],
)
def test_where_it_breaks(changes: dict[str, Any], broken: str) -> None:
    """The first link that does not hold is named with its cause."""
    assert broken in explain(replace(WORKING, **changes)).broken


def test_own_blocks() -> None:
    """Announced and told; not up; kept back; hidden; and with the datastore nobody needs to be told."""
    own = replace(WORKING, hostname="n2", originated=Originated(blocks=frozenset({BLOCK})), **SILENT)
    told = replace(UP, wanted=True, told=True)
    found = explain(replace(own, sessions=(told,)))
    assert (steps(found), found.steps[1].text) == ("origin announced kernel", "to 1 of 1 peers")
    assert explain(replace(own, sessions=(replace(told, up=False),))).broken == "announced: to no peer"
    kept = explain(replace(own, sessions=(replace(UP, kept_back="BGPFilter(f) export rule 0"),)))
    assert kept.steps[1].details == ("10.0.0.2 (n2): kept back: BGPFilter(f) export rule 0",)
    hidden = replace(own, originated=Originated(hidden=frozenset({BLOCK})), sessions=(UP,))
    assert "disableBGPExport" in explain(hidden).broken
    assert explain(replace(own, from_datastore=True, sessions=())).broken == ""


def test_left_to_the_agent() -> None:
    """Overlay pools have no route of BGP, but the agent's; without it their way is broken. Service ranges need none."""
    overlay = replace(WORKING, kernel=None, programming=Programming(refused=(ip_network("10.244.0.0/16"),)))
    found = explain(replace(overlay, others=Route(BLOCK, "unicast", (NextHop(N2, "vxlan.calico"),), 80)))
    assert (found.broken, "dev vxlan.calico: the agent's" in found.steps[-1].text) == ("", True)
    assert "has written no route" in explain(replace(overlay, others=None)).broken
    assert explain(replace(overlay, others=None, origin=Origin())).steps[-1].ok


def test_what_is_not_calipys() -> None:
    """Outside of pools, blocks and service ranges the kernel's own way decides; without one it is unreachable."""
    asked: Prefix = ip_network("8.8.8.8/32")
    default = Route(ip_network("0.0.0.0/0"), "unicast", (NextHop(N2, "eth0"),), 3)
    foreign = replace(WORKING, asked=asked, target=asked, origin=Origin(), pooled=False, others=None, **SILENT)
    found = explain(replace(foreign, around=default))
    assert (steps(found), found.broken, found.target) == ("origin kernel", "", default.dst)
    assert "not calipy's" in found.steps[0].text
    assert found.steps[1].text == "default via 10.0.0.2 dev eth0 proto boot"
    assert "no route" in explain(foreign).broken
    assert not explain(replace(foreign, around=replace(default, kind="unreachable", next_hops=()))).steps[-1].ok
    refused = explain(replace(foreign, around=default, paths=(replace(PATH, rejected="in no pool"),)))
    assert (steps(refused), refused.broken) == ("origin learned kernel", "")
    assert "refused: in no pool" in refused.steps[1].details[0]
    assert "no peer tells of it" in explain(replace(foreign, around=default, pooled=True)).broken
    told = explain(
        replace(foreign, around=default, paths=(PATH,), best=Best(PATH, "only path", (PATH,), 1), kernel=ROUTE)
    )
    assert steps(told) == "origin learned best kernel", "what a peer tells, and bgpd has written, is calipy's"


def test_the_destination_is_the_longest_match_that_should_be() -> None:
    """A borrowed address counts by itself, others by their block, even if only a default route is there."""
    address, default = ip_network("10.244.2.7/32"), ip_network("0.0.0.0/0")
    confirmed = Origin(BLOCK, "n2", confirmed=True, user="n2")
    assert destination(address, confirmed, {default}) == BLOCK
    assert destination(address, replace(confirmed, user="n3"), {default}) == address
    assert destination(address, replace(confirmed, confirmed=False), {default}) == address
    assert destination(address, Origin(), {default}) == default
    assert destination(address, Origin(), set()) == address


def test_the_block_that_covers() -> None:
    """Affinities without a block count as blocks without users."""
    table = ClusterTable("n1")
    assert table.covering(BLOCK) is None
    table.on_affinity("n2", BLOCK, confirmed=True)
    assert table.covering(ip_network("10.244.2.7/32")) == (BLOCK, "n2", True, "")


def test_why_a_peer_is_not_told() -> None:
    """The filter's rule, the pool's setting, iBGP's rule: whichever kept the prefix back."""
    session = Session(N2, "global", 64512, 64512, IPv4Address(1), N1, filters=("f",))
    reject = BGPFilterSpec(export_v4=(BGPFilterRule(action="Reject"),))
    own = ExportPolicy(originated=Originated(blocks=frozenset({BLOCK})), sessions={N2: session}, filters={"f": reject})
    assert own.kept_back(session, BLOCK, {}, N1) == "BGPFilter(f) export rule 0"
    plain = replace(session, filters=())
    hidden = ExportPolicy(originated=Originated(hidden=frozenset({BLOCK})), sessions={N2: plain})
    assert "disableBGPExport" in hidden.kept_back(plain, BLOCK, {}, N1)
    loc_rib = {BLOCK: Best(PATH, "only path", (PATH,), 1)}
    assert "no reflector" in ExportPolicy(sessions={N2: plain}).kept_back(plain, BLOCK, loc_rib, N1)
    assert own.kept_back(session, ip_network("fd00::/122"), {}, N1) == "an IPv4 session"
    assert own.kept_back(session, BLOCK, {}, None) == "no route to the peer"
    found = tellings({N2: ("n2", True, "Established")}, {N2: {}}, lambda _: {}, BLOCK, lambda _: "a reason")
    assert found == (replace(UP, kept_back="a reason"),)
