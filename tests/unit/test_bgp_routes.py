"""What a node announces, what it refuses, and what it writes into the kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.bgp import fib
from calipy.bgp.adj_rib_out import AdjRibOut
from calipy.bgp.advertise import EXCLUDE_LABEL
from calipy.bgp.decision import Best
from calipy.bgp.importing import ImportPolicy
from calipy.bgp.path import NORMAL_LOCAL_PREFERENCE, Attributes, Path, Peer, Segment
from calipy.bgp.peering import Session
from calipy.bgp.rib import Rib
from calipy.bgp.view import View
from calipy.datastore import codec, keys
from calipy.datastore.ipam import AllocationAttribute, Block, BlockAffinity
from calipy.datastore.resources import BGPConfigurationSpec, CIDRBlock, IPPoolSpec, NodeBGPSpec, NodeSpec
from calipy.datastore.resources import Community as NamedCommunity
from calipy.datastore.resources import PrefixAdvertisement as Advertisement
from calipy.errors import UndecodableError
from calipy.kernel import routes
from calipy.net import PROTO_BGP, IPAddress, NextHop, Prefix, Route

HERE, PEER, TOR = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("10.0.0.254")
MESH = Session(PEER, "node-to-node mesh", 64512, 64512, IPv4Address(1), HERE, node="n2")
FABRIC = Session(TOR, "global", 64500, 64512, IPv4Address(1), HERE)


def net(text: str) -> Prefix:
    """A prefix."""
    return ip_network(text)


def block(cidr: str, owner: str | None, used: dict[int, str] | None = None) -> Block:
    """A block; ``used`` maps ordinals to the nodes that use them."""
    users = sorted(set((used or {}).values()))
    return Block(
        cidr=cidr,
        affinity=owner and f"host:{owner}",
        allocations=tuple(users.index((used or {})[i]) if i in (used or {}) else None for i in range(64)),
        attributes=tuple(AllocationAttribute(handle_id="h", secondary={"node": user}) for user in users),
    )


def view(*pools: IPPoolSpec, **configuration: object) -> View:
    """Node n1 with pools (default: 10.244.0.0/16) and a BGPConfiguration."""
    made = View("n1")
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4_address="10.0.0.1/24"))
    made.on_update(keys.ResourceKey("Node", "n1"), codec.new("Node", "n1", spec))
    for number, pool in enumerate(pools or (IPPoolSpec(cidr="10.244.0.0/16"),)):
        made.on_update(keys.ResourceKey("IPPool", f"p{number}"), codec.new("IPPool", f"p{number}", pool))
    settings = codec.new("BGPConfiguration", "default", BGPConfigurationSpec(**configuration))  # type: ignore[arg-type]
    made.on_update(keys.ResourceKey("BGPConfiguration", "default"), settings)
    return made


def claim(made: View, cidr: str, owner: str | None = "n1", state: str = "confirmed", **used: dict[int, str]) -> None:
    """A block, and n1's affinity to it."""
    made.on_update(keys.BlockKey(cidr), block(cidr, owner, used.get("used")))
    made.on_update(keys.BlockAffinityKey("n1", cidr), BlockAffinity(state=state))


def test_only_confirmed_own_blocks_of_exported_pools() -> None:
    """pending, pendingDeletion, another's, hidden pool, no pool: none of these is announced."""
    made = view(IPPoolSpec(cidr="10.244.0.0/16"), IPPoolSpec(cidr="10.99.0.0/16", disable_bgp_export=True))
    claim(made, "10.244.1.0/26")
    claim(made, "10.244.2.0/26", state="pending")
    claim(made, "10.244.3.0/26", state="pendingDeletion")
    claim(made, "10.244.4.0/26", owner="n2")
    claim(made, "10.244.5.0/26", owner=None)
    claim(made, "10.99.1.0/26")
    claim(made, "172.16.0.0/26")
    assert made.originated().prefixes() == {net("10.244.1.0/26")}


def test_a_disabled_pool_still_carries_its_pods() -> None:
    """``disabled`` stops new assignments, not the routes of the old ones."""
    made = view(IPPoolSpec(cidr="10.244.0.0/16", disabled=True))
    claim(made, "10.244.1.0/26")
    assert made.originated().blocks == {net("10.244.1.0/26")}


def test_borrowed_addresses_are_announced_one_by_one() -> None:
    """Addresses this node uses out of others' (or lost) blocks; not those in its own blocks, nor others' addresses."""
    made = view()
    claim(made, "10.244.1.0/26", used={1: "n1", 2: "n2"})
    made.on_update(keys.BlockKey("10.244.2.0/26"), block("10.244.2.0/26", "n2", {5: "n1", 6: "n2"}))
    claim(made, "10.244.3.0/26", owner=None, state="pendingDeletion", used={7: "n1"})
    assert made.originated().borrowed == {net("10.244.2.5/32"), net("10.244.3.7/32")}
    made.on_update(keys.BlockKey("10.244.2.0/26"), block("10.244.2.0/26", "n2", {6: "n2"}))
    assert made.originated().borrowed == {net("10.244.3.7/32")}


def test_somebody_elses_pod_costs_nothing() -> None:
    """Another node's allocation in its own block changes no route of ours."""
    made = view()
    claim(made, "10.244.1.0/26")
    made.on_update(keys.BlockKey("10.244.2.0/26"), block("10.244.2.0/26", "n2"))
    made.routes_changed = made.peering_changed = False
    made.on_update(keys.BlockKey("10.244.2.0/26"), block("10.244.2.0/26", "n2", {6: "n2"}))
    assert not made.routes_changed
    assert not made.peering_changed
    made.on_update(keys.BlockKey("10.244.2.0/26"), block("10.244.2.0/26", "n2", {6: "n2", 7: "n1"}))
    assert made.routes_changed


def test_attributes_inside_and_outside_the_as() -> None:
    """iBGP gets Calico's LOCAL_PREF, eBGP none; communities by prefixAdvertisements, named or literal."""
    made = view(
        communities=(NamedCommunity(name="pods", value="64512:7"),),
        prefix_advertisements=(Advertisement(cidr="10.244.0.0/16", communities=("pods", "64512:1:2")),),
    )
    claim(made, "10.244.1.0/26")
    inner = made.originated().exports(MESH, HERE)[net("10.244.1.0/26")]
    assert inner.local_preference == NORMAL_LOCAL_PREFERENCE == 2147482623
    assert (inner.communities, inner.large_communities) == (((64512, 7),), ((64512, 1, 2),))
    outer = made.originated().exports(FABRIC, HERE)[net("10.244.1.0/26")]
    assert (outer.local_preference, outer.next_hop, outer.as_path) == (None, HERE, ())


def test_a_bad_community_is_a_problem_and_announcing_goes_on() -> None:
    """An undefined name is reported; routes are announced without communities."""
    made = view(prefix_advertisements=(Advertisement(cidr="10.244.0.0/16", communities=("nobody",)),))
    claim(made, "10.244.1.0/26")
    assert made.originated().exports(MESH, HERE)[net("10.244.1.0/26")].communities == ()
    assert "nobody" in made.problems["BGPConfiguration communities"]


def test_what_cannot_be_decoded_leaves_the_last_value_in_force() -> None:
    """A slip in an object is no deletion: it is named, and what was read before holds until it is mended or gone."""
    made = view()
    claim(made, "10.244.1.0/26")
    for key in (keys.ResourceKey("Node", "n1"), keys.ResourceKey("IPPool", "p0"), keys.BlockKey("10.244.1.0/26")):
        made.on_update(key, None, UndecodableError("no JSON", key=keys.path(key)))
    assert made.node is not None
    assert made.originated().blocks == {net("10.244.1.0/26")}
    assert made.unreadable.keys() == {"Node(n1)", "IPPool(p0)", keys.path(keys.BlockKey("10.244.1.0/26"))}
    assert "no JSON" in made.unreadable["Node(n1)"]
    made.on_update(keys.ResourceKey("Node", "n1"), None)
    assert made.node is None
    assert "Node(n1)" not in made.unreadable


def test_service_ranges_are_announced_but_not_programmed() -> None:
    """Ranges wider than an address come from every node and stay out of its own kernel."""
    made = view(
        service_cluster_ips=(CIDRBlock(cidr="10.96.0.0/12"),),
        service_external_ips=(CIDRBlock(cidr="192.0.2.1/32"), CIDRBlock(cidr="198.51.100.0/24")),
    )
    assert made.originated().services == {net("10.96.0.0/12"), net("198.51.100.0/24")}
    assert set(made.programming().refused) >= {net("10.96.0.0/12"), net("198.51.100.0/24")}
    excluded = codec.new("Node", "n1", NodeSpec(), labels={EXCLUDE_LABEL: "true"})
    made.on_update(keys.ResourceKey("Node", "n1"), excluded)
    assert made.originated().services == frozenset()
    assert set(made.programming().refused) >= {net("10.96.0.0/12"), net("198.51.100.0/24")}, "not from others either"


@pytest.mark.parametrize(
    ("pool", "mode", "ours"),
    [
        (IPPoolSpec(cidr="10.244.0.0/16"), None, True),
        (IPPoolSpec(cidr="10.244.0.0/16", ipip_mode="Never", vxlan_mode="Never"), "EnabledNoEncapOnly", True),
        (IPPoolSpec(cidr="10.244.0.0/16", ipip_mode="CrossSubnet"), None, False),
        (IPPoolSpec(cidr="10.244.0.0/16", vxlan_mode="Always"), "Enabled", False),
        (IPPoolSpec(cidr="10.244.0.0/16"), "Disabled", False),
        (IPPoolSpec(cidr="10.244.0.0/16"), "EnabledIPIPOnly", False),
    ],
)
def test_who_programs_a_pool(pool: IPPoolSpec, mode: str | None, ours: bool) -> None:
    """BGP's routes are those of pools without encapsulation; the agent's complement is the rest."""
    assert (net("10.244.0.0/16") not in view(pool, program_cluster_routes=mode).programming().refused) == ours


# Import

POLICY = ImportPolicy(
    sessions={PEER: MESH, TOR: FABRIC},
    router_id=IPv4Address("10.0.0.1"),
    cluster_id=IPv4Address("244.0.0.1"),
    own_addresses=frozenset({HERE}),
    own_prefixes=frozenset({net("10.244.1.0/26"), net("10.244.9.9/32")}),
    own_blocks=frozenset({net("10.244.1.0/26")}),
    pools=view().pools(),
    services=frozenset({net("10.96.0.0/12")}),
)
INNER = Peer(PEER, 64512, 64512, IPv4Address("10.0.0.2"))
OUTER = Peer(TOR, 64500, 64512, IPv4Address("10.0.0.254"))
VIA_TOR = (Segment("sequence", (64500,)),)


@pytest.mark.parametrize(
    ("peer", "prefix", "attributes", "why"),
    [
        (INNER, "10.244.2.0/26", Attributes(PEER), ""),
        (INNER, "10.244.1.5/32", Attributes(PEER), ""),
        (INNER, "10.97.0.0/16", Attributes(PEER), ""),
        (INNER, "192.0.2.0/24", Attributes(PEER), "neither in an IP pool"),
        (INNER, "0.0.0.0/0", Attributes(PEER), "neither in an IP pool"),
        (OUTER, "0.0.0.0/0", Attributes(TOR, as_path=VIA_TOR), ""),
        (OUTER, "192.0.2.0/24", Attributes(TOR, as_path=VIA_TOR), ""),
        (OUTER, "192.0.2.0/24", Attributes(TOR, as_path=(Segment("sequence", (64500, 64512)),)), "own AS 64512"),
        (OUTER, "192.0.2.0/24", Attributes(TOR, as_path=(*VIA_TOR, Segment("set", (1, 64512)))), "own AS 64512"),
        (OUTER, "192.0.2.0/24", Attributes(TOR), "does not begin with the peer's AS"),
        (OUTER, "192.0.2.0/24", Attributes(TOR, as_path=(Segment("sequence", (7,)),)), "does not begin"),
        (INNER, "10.244.1.0/26", Attributes(PEER), "own prefix"),
        (INNER, "10.244.9.9/32", Attributes(PEER), "own prefix"),
        (INNER, "10.244.1.32/27", Attributes(PEER), "part of an own block"),
        (INNER, "10.244.2.32/27", Attributes(PEER), ""),
        (INNER, "10.244.0.0/16", Attributes(PEER), "covers an own block"),
        (INNER, "10.244.0.0/23", Attributes(PEER), "covers an own block"),
        (INNER, "10.244.2.0/25", Attributes(PEER), ""),
        (INNER, "10.244.64.0/24", Attributes(PEER), ""),
        (OUTER, "10.244.0.0/16", Attributes(TOR, as_path=VIA_TOR), ""),
        (OUTER, "10.244.1.32/27", Attributes(TOR, as_path=VIA_TOR), ""),
        (INNER, "10.244.2.0/26", Attributes(HERE), "next hop is this node"),
        (INNER, "10.244.2.0/26", Attributes(ip_address("0.0.0.0")), "cannot be a router"),
        (INNER, "10.244.2.0/26", Attributes(ip_address("224.0.0.5")), "cannot be a router"),
        (INNER, "10.244.2.0/26", Attributes(PEER, originator_id=IPv4Address("10.0.0.1")), "own router ID"),
        (INNER, "10.244.2.0/26", Attributes(PEER, cluster_list=(IPv4Address("244.0.0.1"),)), "own cluster ID"),
        (INNER, "fd00::/122", Attributes(ip_address("fd00::1")), "IPv6 prefix in an IPv4 session"),
        (OUTER, "127.0.0.0/8", Attributes(TOR, as_path=VIA_TOR), "not routable"),
        (OUTER, "224.0.0.0/24", Attributes(TOR, as_path=VIA_TOR), "not routable"),
        (Peer(HERE, 1, 2, IPv4Address(1)), "10.244.2.0/26", Attributes(PEER), "no such session"),
    ],
)
def test_import(peer: Peer, prefix: str, attributes: Attributes, why: str) -> None:
    """What ExaBGP hands over unchecked is refused with its reason; what Calico trusts is taken."""
    said, _ = POLICY(peer, net(prefix), attributes)
    assert said.startswith(why) if not why else why in said
    assert bool(said) == bool(why)


def test_own_blocks_that_come_and_go_judge_what_is_in_them_again() -> None:
    """Of the paths known before a block became ours those inside it are refused then, and no others looked at."""
    asked: list[Prefix] = []

    def counting(peer: Peer, prefix: Prefix, attributes: Attributes) -> tuple[str, Attributes]:
        asked.append(prefix)
        return later(peer, prefix, attributes)

    before = replace(POLICY, own_prefixes=frozenset(), own_blocks=frozenset())
    later = replace(before, own_prefixes=POLICY.own_prefixes, own_blocks=POLICY.own_blocks)
    rib = Rib(before)
    rib.peer_up(INNER, 0)
    for text in ("10.244.0.0/16", "10.244.1.0/26", "10.244.1.32/27", "10.244.1.5/32", "10.244.2.0/26"):
        rib.announce(PEER, net(text), Attributes(PEER))
    prefixes = later.judged_differently(before)
    assert prefixes is not None
    rib.judge_again(counting, prefixes)
    refused = {str(path.prefix): path.rejected for path in rib.adj_rib_in(PEER) if path.rejected}
    assert refused.pop("10.244.0.0/16") == "covers an own block"
    assert refused == {"10.244.1.0/26": "own prefix", "10.244.1.32/27": "part of an own block"}
    assert net("10.244.2.0/26") not in asked
    assert replace(later, router_id=None).judged_differently(before) is None


# FIB


def best(prefix: str, *hops: str, peer: Peer = INNER) -> Best:
    """A Loc-RIB entry with one path for each next hop."""
    found = tuple(Path(net(prefix), peer, Attributes(ip_address(hop))) for hop in hops)
    return Best(found[0], "only path", found, len(found))


def resolver(table: dict[str, Route | None], *hops: str) -> fib.Resolver:
    """A resolver that has looked ``hops`` up in a table of longest matches."""
    made = fib.Resolver(lambda address: table.get(str(address)))
    made.refresh({ip_address(hop) for hop in hops})
    return made


CONNECTED = Route(net("10.0.0.0/24"), "unicast", (NextHop(None, "eth0"),), protocol=2, scope="link")
DEFAULT = Route(net("0.0.0.0/0"), "unicast", (NextHop(TOR, "eth0"),), protocol=3)


def test_next_hops_on_and_off_the_subnet() -> None:
    """On a connected subnet the next hop is the gateway; behind a router, the router is."""
    found = resolver({"10.0.0.2": CONNECTED, "10.9.0.3": DEFAULT}, "10.0.0.2", "10.9.0.3", "10.8.0.1")
    program = fib.Programming()
    near = program.route(best("10.244.2.0/26", "10.0.0.2"), found)
    far = program.route(best("10.244.3.0/26", "10.9.0.3"), found)
    assert near
    assert far
    assert (near.next_hops, near.protocol, near.metric) == ((NextHop(PEER, "eth0"),), PROTO_BGP, 1024)
    assert far.next_hops == (NextHop(TOR, "eth0"),)
    assert program.route(best("10.244.4.0/26", "10.8.0.1"), found) is None


@pytest.mark.parametrize("kind", ["local", "blackhole", "unreachable", "prohibit"])
def test_a_next_hop_that_leads_nowhere(kind: str) -> None:
    """Ourselves, or a route that drops: unreachable."""
    assert fib.resolve(PEER, Route(net("10.0.0.2/32"), kind, (NextHop(None, "lo"),) if kind == "local" else ())) is None


def test_several_next_hops_for_foreign_prefixes_only() -> None:
    """ECMP for what the fabric announces; two owners of one block are a fault, not a balance."""
    found = resolver({"10.0.0.2": CONNECTED, "10.0.0.3": CONNECTED}, "10.0.0.2", "10.0.0.3")
    program = fib.Programming(single=(net("10.244.0.0/16"),))
    foreign = program.route(best("192.0.2.0/24", "10.0.0.2", "10.0.0.3"), found)
    assert foreign
    assert foreign.next_hops == (NextHop(PEER, "eth0"), NextHop(ip_address("10.0.0.3"), "eth0"))
    inside = program.route(best("10.244.2.0/26", "10.0.0.2", "10.0.0.3"), found)
    assert inside
    assert inside.next_hops == (NextHop(PEER, "eth0"),)


def test_own_blocks_and_refused_ranges_stay_out() -> None:
    """Never a route for an own block, nor inside what others program."""
    found = resolver({"10.0.0.2": CONNECTED}, "10.0.0.2")
    program = fib.Programming(own=frozenset({net("10.244.1.0/26")}), refused=(net("10.99.0.0/16"),))
    assert program.route(best("10.244.1.0/26", "10.0.0.2"), found) is None
    assert program.route(best("10.99.3.0/26", "10.0.0.2"), found) is None


def test_routes_of_ours_support_others_only_if_they_are_not_recursive() -> None:
    """A route whose gateway is its BGP next hop may carry others; one resolved through another may not."""
    direct = Route(net("10.9.0.0/24"), "unicast", (NextHop(TOR, "eth0"),), PROTO_BGP)
    assert fib.may_support(direct, best("10.9.0.0/24", str(TOR)))
    assert not fib.may_support(direct, best("10.9.0.0/24", "10.9.0.3"))
    assert not fib.may_support(direct, None)
    assert fib.may_support(DEFAULT, None)
    assert fib.longest_match(ip_address("10.9.0.3"), [DEFAULT, direct, CONNECTED]) == direct


slots = st.dictionaries(
    st.integers(0, 6), st.tuples(st.integers(1, 3), st.sampled_from([512, 1024]), st.booleans()), max_size=7
)


def _routes(found: dict[int, tuple[int, int, bool]]) -> dict[Prefix, Route]:
    return {
        net(f"10.244.{number}.0/26"): Route(
            net(f"10.244.{number}.0/26"),
            "unicast",
            (NextHop(ip_address(f"10.0.0.{hop}"), "eth0"),),
            PROTO_BGP,
            metric,
        )
        for number, (hop, metric, _) in found.items()
    }


@given(slots, slots)
def test_the_difference_applied_gives_what_is_desired(wanted, have) -> None:
    """Applying the difference to the kernel's routes gives the desired ones; applied twice it does nothing."""
    desired, actual = _routes(wanted), _routes(have)
    keep = frozenset(net(f"10.244.{number}.0/26") for number, (*_, kept) in have.items() if kept)
    table = {route.key: route for route in actual.values()}
    todo = fib.difference(desired, actual.values(), routes.matches, keep=keep)
    for route in todo.add:
        assert route.key not in table
    for route in todo.replace:
        assert route.key in table
    table |= {route.key: route for route in (*todo.replace, *todo.add)}
    for route in todo.delete:
        del table[route.key]
    left = keep - desired.keys()
    assert set(table.values()) == {*desired.values(), *(route for dst, route in actual.items() if dst in left)}
    assert fib.difference(desired, table.values(), routes.matches, keep=keep) == fib.Difference()


# Adj-RIB-Out

wishes = st.dictionaries(
    st.sampled_from([PEER, TOR, ip_address("fd00::2")]),
    st.dictionaries(st.integers(0, 5), st.sampled_from([100, 200]), max_size=6),
)


@given(st.lists(st.tuples(wishes, st.booleans(), st.sampled_from(["", "forget", "read back"])), min_size=1, max_size=5))
def test_peers_end_up_told_what_they_should_be(steps) -> None:
    """Whatever was told, forgotten or read back before, after the planned batches each peer has been told exactly what
    is wanted, be it one mapping for all who want the same or one for each."""
    out = AdjRibOut()
    for step, share, event in steps:
        wanted: dict[IPAddress, dict[Prefix, Attributes]] = {
            peer: {
                net(f"10.244.{number}.0/26" if peer.version == 4 else f"fd00:{number}::/122"): Attributes(
                    HERE if peer.version == 4 else ip_address("fd00::1"), local_preference=preference
                )
                for number, preference in told.items()
            }
            for peer, told in step.items()
        }
        if share:
            wanted = {peer: next(one for one in wanted.values() if one == told) for peer, told in wanted.items()}
        if event == "forget":
            out.forget(TOR)
        if event == "read back":
            held = [(peer, *route) for peer in (PEER, TOR) for route in out.told(peer).items()]
            out.reset(held)
        others = {peer: dict(out.told(peer)) for peer in (PEER, TOR) if peer not in wanted}
        for batch in out.plan(wanted):
            assert batch.lines
            out.confirm(batch)
        assert all(out.told(peer) == told for peer, told in others.items())
        assert all(dict(out.told(peer)) == told for peer, told in wanted.items())
        assert out.plan(wanted) == []
        assert out.plan(wanted) == []


class Counted(dict[Prefix, Attributes]):
    """Routes that count how often they were compared."""

    compared = 0

    def items(self) -> Any:
        """Likewise."""
        self.compared += 1
        return super().items()


def test_what_many_peers_are_told_alike_is_worked_out_once() -> None:
    """Also after one of them was forgotten and told again, and after everything was read back."""
    out = AdjRibOut()
    peers = [ip_address(f"10.0.0.{number}") for number in range(1, 51)]

    def tell(number: int) -> int:
        """How often the routes were compared."""
        routes_ = Counted({net(f"10.244.{i}.0/26"): Attributes(HERE) for i in range(number)})
        for batch in out.plan(dict.fromkeys(peers, routes_)):
            out.confirm(batch)
        assert all(out.told(peer) == routes_ for peer in peers)
        return routes_.compared

    assert [tell(3), tell(4)] == [1, 1]
    out.forget(peers[7])
    assert [tell(4), tell(4), tell(5)] == [2, 2, 1]
    out.reset([(peer, *route) for peer in peers for route in list(out.told(peer).items())])
    assert [tell(5), tell(5), tell(6)] == [50, 1, 1]


def test_peers_that_need_the_same_are_told_together() -> None:
    """One command without selector for all; selectors where some need it; announcements before withdrawals."""
    out = AdjRibOut()
    routes_ = {net(f"10.244.{i}.0/26"): Attributes(HERE, local_preference=100) for i in range(3)}
    (batch,) = out.plan({PEER: routes_, TOR: routes_})
    attributes = "origin igp local-preference 100 next-hop 10.0.0.1"
    assert batch.lines == [f"announce attributes {attributes} nlri 10.244.0.0/26 10.244.1.0/26 10.244.2.0/26"]
    out.confirm(batch)
    more = {**routes_, net("10.244.7.0/26"): Attributes(HERE)}
    del more[net("10.244.0.0/26")]
    batches = out.plan({PEER: more, TOR: routes_})
    assert [line for batch in batches for line in batch.lines] == [
        "neighbor 10.0.0.2 announce attributes origin igp next-hop 10.0.0.1 nlri 10.244.7.0/26",
        f"neighbor 10.0.0.2 withdraw attributes {attributes} nlri 10.244.0.0/26",
    ]
