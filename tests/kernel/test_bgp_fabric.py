"""Towards the fabric: filters and communities as a BIRD there sees them, ECMP, ways to peers, blackholes alone."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from calipy.datastore.resources import (
    AddCommunity,
    BGPFilterRule,
    BGPFilterSpec,
    Community,
    FilterOperation,
    PrefixAdvertisement,
    PrependASPath,
)
from tests.kernel.test_bgp_mesh import tor
from tests.support.bgp import BgpLab, eventually, eventually_is

pytestmark = pytest.mark.kernel


def test_filters_and_communities_reach_the_fabric(bgp_lab: BgpLab) -> None:
    """What filters reject stays home, what they change is changed, prefixAdvertisements are attached; live."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.configuration(
        communities=(Community(name="pods", value="64512:7"),),
        prefix_advertisements=(PrefixAdvertisement(cidr="10.244.0.0/16", communities=("pods", "64512:1:2")),),
    )
    operations = (
        FilterOperation(add_community=AddCommunity(value="64512:99")),
        FilterOperation(prepend_as_path=PrependASPath(prefix=(65001,))),
    )
    secret = BGPFilterRule(action="Reject", cidr="10.244.2.0/24", match_operator="In")
    marked = BGPFilterRule(action="Accept", cidr="10.244.1.0/24", match_operator="In", operations=operations)
    no_default = BGPFilterRule(action="Reject", cidr="198.51.100.0/24", match_operator="Equal")
    bgp_lab.apply("BGPFilter", "f", BGPFilterSpec(export_v4=(secret, marked), import_v4=(no_default,)))
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500, filters=("f",))
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("10.244.2.0/26", "n1")
    bgp_lab.block("10.244.3.0/26", "n1")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    here = tor({"n1": n1.address}, export="where source = RTS_STATIC", static="route 198.51.100.0/24 blackhole;")
    bird = bgp_lab.bird(bgp_lab.fabric, here.replace("local as 64500", "local 10.77.1.254 as 64500"))
    eventually("marked block", lambda: "65001" in bird.ask("show route all 10.244.1.0/26", check=False))
    shown = bird.ask("show route all 10.244.1.0/26")
    assert "BGP.as_path: 64512 65001" in shown
    assert "BGP.community: (64512,7) (64512,99)" in shown
    assert "BGP.large_community: (64512, 1, 2)" in shown
    eventually("plain block", lambda: "BGP.as_path: 64512\n" in bird.ask("show route all 10.244.3.0/26", check=False))
    assert "10.244.2.0/26" not in bird.routes()
    eventually_is("import", {"192.0.2.0/24": ("10.77.1.254",)}, n1.gateways)
    bgp_lab.apply("BGPFilter", "f", BGPFilterSpec())
    eventually("open", lambda: "10.244.2.0/26" in bird.routes() and "65001" not in bird.routes())
    eventually("import open", lambda: "198.51.100.0/24" in n1.gateways())
    assert n1.peers()["10.77.1.254"]["flaps"] == 0


def test_a_preference_from_another_as_counts_for_nothing(bgp_lab: BgpLab) -> None:
    """A router of another AS that says LOCAL_PREF does not draw traffic away from the one with the shorter path."""
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    only = "if source != RTS_STATIC then reject;"
    insistent = f"filter {{ {only} bgp_local_pref = 4000000000; bgp_path.prepend(64500); accept; }}"
    for name, address, told in (
        ("near", "10.77.1.252", "where source = RTS_STATIC"),
        ("far", "10.77.1.253", insistent),
    ):
        bgp_lab.peer(name, peer_ip=address, as_number=64500)
        host = bgp_lab.namespace(name, f"{address}/24")
        there = tor({"n1": n1.address}, export=told).replace("local as 64500;", f"local {address} as 64500;")
        bgp_lab.bird(host, there.replace("multihop 2;", "multihop 2; allow bgp_local_pref on;"), label=name)
    eventually("both sessions", lambda: n1.up("10.77.1.252", "10.77.1.253"), timeout=45)
    eventually("two paths", lambda: all(n1.peers()[f"10.77.1.{last}"]["paths"] for last in (252, 253)))
    eventually_is("the shorter way", {"192.0.2.0/24": ("10.77.1.252",)}, n1.gateways)


def test_two_ways_out_are_used_together(bgp_lab: BgpLab) -> None:
    """A prefix that two fabric routers announce alike is one multipath route; when one goes, the other stays."""
    bgp_lab.peer("tor-a", peer_ip="10.77.1.101", as_number=64500)
    bgp_lab.peer("tor-b", peer_ip="10.77.1.102", as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    birds = []
    for last in (101, 102):
        host = bgp_lab.namespace(f"tor{last}", f"10.77.1.{last}/24")
        here = tor({"n1": n1.address}, export="where source = RTS_STATIC").replace("10.77.9.1", f"10.77.1.{last}")
        birds.append(bgp_lab.bird(host, here, f"tor{last}"))
    eventually_is("both", {"192.0.2.0/24": ("10.77.1.101", "10.77.1.102")}, n1.gateways)
    birds[0].ask("disable n1")
    eventually_is("one", {"192.0.2.0/24": ("10.77.1.102",)}, n1.gateways)
    birds[0].ask("enable n1")
    eventually_is("both again", {"192.0.2.0/24": ("10.77.1.101", "10.77.1.102")}, n1.gateways)


def test_no_source_address_and_a_way_to_the_peer(bgp_lab: BgpLab) -> None:
    """reachableBy is a host route to the peer; sourceAddress None then takes the address the kernel uses that way."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.fabric.links.add_address("lo", ip_interface("10.88.0.1/32"))
    bgp_lab.peer("tor", peer_ip="10.88.0.1", as_number=64500, source_address="None", reachable_by="10.77.1.254")
    n1 = bgp_lab.node("n1", "10.77.1.1/24", start=False)
    n1.ns.run("ip", "route", "del", "default")
    n1.start()
    bird = bgp_lab.bird(bgp_lab.fabric, tor({"n1": n1.address}).replace("local as 64500", "local 10.88.0.1 as 64500"))
    eventually("session", lambda: n1.up("10.88.0.1"))
    assert n1.gateways() == {"10.88.0.1/32": ("10.77.1.254",)}
    eventually("the fabric has the block", lambda: "10.244.1.0/26" in bird.routes())


def test_own_blocks_are_blackholes(bgp_lab: BgpLab) -> None:
    """bgpd writes the blackholes of its blocks, as BIRD does beside Felix; not where Felix does; gone with it."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    eventually_is("blackhole", {"10.244.1.0/26"}, n1.blackholes)
    bgp_lab.configuration(program_cluster_routes="EnabledIPIPOnly")
    eventually_is("left to Felix", set(), n1.blackholes)
    bgp_lab.configuration(program_cluster_routes="EnabledNoEncapOnly")
    eventually_is("blackhole again", {"10.244.1.0/26"}, n1.blackholes)
    bgp_lab.unblock("10.244.1.0/26", "n1")
    eventually_is("gone", set(), n1.blackholes)


def test_an_as_number_for_one_session_between_nodes(bgp_lab: BgpLab) -> None:
    """With localASNumber both ends of a BGPPeer between nodes agree on who speaks as what, and routes pass."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.configuration(node_to_node_mesh_enabled=False)
    bgp_lab.peer("odd", node="n1", peer_selector="has(far)", local_as_number=65099)
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("10.244.2.0/26", "n2")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    n2 = bgp_lab.node("n2", "10.77.1.2/24", labels={"far": ""})
    eventually("session", lambda: n1.up(n2.address) and n2.up(n1.address))
    eventually_is("n1's routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    eventually_is("n2's routes", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    assert n2.peers()[n1.address]["as_number"] == 65099
