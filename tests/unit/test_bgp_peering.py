"""Which sessions a node has: mesh, reflectors, BGPPeers, reverse peerings, and which end dials."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.bgp.peering import NodeInfo, Peering, PeeringInputs, parse_peer_ip, plan, router_id
from calipy.datastore.resources import BGPConfigurationSpec, BGPPassword, BGPPeerSpec, NodeBGPSpec, NodeSpec
from calipy.datastore.resources import SecretKeySelector as Secret
from calipy.errors import InvalidInputError


def node(
    name: str, address: str = "", address6: str = "", labels: dict[str, str] | None = None, **bgp: Any
) -> NodeInfo:
    """A node with addresses."""
    spec = NodeBGPSpec(ipv4_address=address, ipv6_address=address6, **bgp)
    return NodeInfo(name, labels or {}, NodeSpec(bgp=spec))


def inputs(*nodes: NodeInfo, peers: dict[str, BGPPeerSpec] | None = None, **fields: Any) -> PeeringInputs:
    """Inputs from nodes, BGPPeers and the default BGPConfiguration's fields."""
    named = {one.name: one for one in nodes}
    own = fields.pop("node_configurations", {})
    return PeeringInputs(named, peers or {}, BGPConfigurationSpec(**fields), own)


def peers_of(peering: Peering) -> dict[str, str]:
    """Peer addresses and types."""
    return {str(peer): session.type for peer, session in peering.sessions.items()}


N1 = node("n1", "10.0.0.1/24", "fd00::1/64", {"rack": "a"})
N2 = node("n2", "10.0.0.2/24", labels={"rack": "b"})
N10 = node("n10", "10.0.0.10/24", "fd00::10/64", {"rack": "b"})
RR = node("rr", "10.0.0.5/24", labels={"rr": "yes"}, route_reflector_cluster_id="244.0.0.1")


def test_mesh_is_everybody_but_reflectors_per_family() -> None:
    """A session for each family that both ends have; reflectors neither build nor join the mesh."""
    found = peers_of(plan("n1", inputs(N1, N2, N10, RR)))
    assert found == dict.fromkeys(("10.0.0.2", "10.0.0.10", "fd00::10"), "node-to-node mesh")
    assert peers_of(plan("rr", inputs(N1, N2, N10, RR))) == {}
    assert peers_of(plan("n1", inputs(N1, N2, N10, node_to_node_mesh_enabled=False))) == {}


def test_exactly_one_end_dials_and_it_is_calicos() -> None:
    """The end whose peer has the greater address, compared as text like Calico does, is passive."""
    all_nodes = inputs(N1, N2, N10)
    for one, other in (("n1", "n2"), ("n1", "n10"), ("n2", "n10")):
        here = plan(one, all_nodes).sessions[all_nodes.nodes[other].address(4) or ip_address(0)]
        there = plan(other, all_nodes).sessions[all_nodes.nodes[one].address(4) or ip_address(0)]
        assert here.passive != there.passive
        assert here.passive == (str(here.peer) > str(here.local))
    # As text "10.0.0.2" is greater than "10.0.0.10", as numbers it is not.
    assert plan("n10", all_nodes).sessions[ip_address("10.0.0.2")].passive


def test_as_numbers_and_ports() -> None:
    """AS: the node's own, else the cluster's, else 64512; the port to dial is the peer's own, in the same way."""
    own = node("n3", "10.0.0.3/24", as_number=65003)
    given_ = inputs(N1, N2, own, as_number=65000, listen_port=1790, node_configurations={
        "n2": BGPConfigurationSpec(listen_port=2790)
    })  # fmt: skip
    found = plan("n1", given_)
    assert (found.local_as, found.port) == (65000, 1790)
    to_n2, to_n3 = found.sessions[ip_address("10.0.0.2")], found.sessions[ip_address("10.0.0.3")]
    assert (to_n2.peer_as, to_n2.local_as, to_n2.port, to_n2.external) == (65000, 65000, 2790, False)
    assert (to_n3.peer_as, to_n3.port, to_n3.external) == (65003, 1790, True)
    assert plan("n1", inputs(N1, N2)).sessions[ip_address("10.0.0.2")].peer_as == 64512
    assert plan("n2", given_).port == 2790


def test_global_and_node_specific_peers() -> None:
    """A BGPPeer without node and nodeSelector is global; the others only reach the nodes they name or select."""
    peers = {
        "tor": BGPPeerSpec(peer_ip="192.0.2.1:1179", as_number=64500),
        "mine": BGPPeerSpec(node="n1", peer_ip="192.0.2.2", as_number=64501, local_as_number=65099),
        "rack-b": BGPPeerSpec(node_selector="rack == 'b'", peer_ip="192.0.2.3", as_number=64502),
    }
    given_ = inputs(N1, N2, peers=peers, node_to_node_mesh_enabled=False)
    assert peers_of(plan("n1", given_)) == {"192.0.2.1": "global", "192.0.2.2": "node specific"}
    assert peers_of(plan("n2", given_)) == {"192.0.2.1": "global", "192.0.2.3": "node specific"}
    tor = plan("n1", given_).sessions[ip_address("192.0.2.1")]
    assert (tor.port, tor.peer_as, tor.passive, tor.external) == (1179, 64500, False, True)
    assert plan("n1", given_).sessions[ip_address("192.0.2.2")].local_as == 65099


def test_reflector_recipe_is_answered_from_the_other_end() -> None:
    """nodeSelector all(), peerSelector has(rr): clients dial or listen as they should, reflectors get the reverse."""
    peers = {"rr": BGPPeerSpec(node_selector="all()", peer_selector="has(rr)")}
    second = node("rr2", "10.0.0.6/24", labels={"rr": "yes"}, route_reflector_cluster_id="244.0.0.1")
    third = node("rr3", "10.0.0.7/24", labels={"rr": "yes"}, route_reflector_cluster_id="244.0.0.3")
    given_ = inputs(N1, N2, RR, second, third, peers=peers, node_to_node_mesh_enabled=False)
    assert set(peers_of(plan("n1", given_))) == {"10.0.0.5", "10.0.0.6", "10.0.0.7"}
    found = plan("rr", given_)
    assert set(peers_of(found)) == {"10.0.0.1", "10.0.0.2", "10.0.0.6", "10.0.0.7"}
    clients = {str(peer) for peer, session in found.sessions.items() if session.client}
    assert clients == {"10.0.0.1", "10.0.0.2", "10.0.0.7"}, "same cluster ID: no client"
    assert not any(session.client for session in plan("n1", given_).sessions.values())
    manual = {"rr": BGPPeerSpec(node_selector="rack == 'a'", peer_selector="has(rr)", reverse_peering="Manual")}
    assert peers_of(plan("rr", inputs(N1, RR, peers=manual, node_to_node_mesh_enabled=False))) == {}


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        (BGPPeerSpec(node="n1", peer_selector="rack == 'b'", local_as_number=65099), (65099, 64512)),
        (BGPPeerSpec(node="n1", peer_ip="10.0.0.2", as_number=64512, local_as_number=65099), (65099, 64512)),
        (BGPPeerSpec(node_selector="all()", peer_selector="all()", local_as_number=65099), (65099, 65099)),
        (BGPPeerSpec(node="n1", peer_selector="rack == 'b'"), (64512, 64512)),
    ],
)
def test_both_ends_agree_on_the_as_numbers(spec: BGPPeerSpec, numbers: tuple[int, int]) -> None:
    """localASNumber is what the end that the BGPPeer names speaks as, and what the other end expects."""
    given_ = inputs(N1, N2, peers={"p": spec}, node_to_node_mesh_enabled=False)
    here = plan("n1", given_).sessions[ip_address("10.0.0.2")]
    back = plan("n2", given_).sessions[ip_address("10.0.0.1")]
    assert (here.local_as, here.peer_as) == numbers
    assert (back.peer_as, back.local_as) == numbers


def test_precedence() -> None:
    """Global over node specific over the mesh, for one peer address."""
    both = {
        "a-node": BGPPeerSpec(node="n1", peer_ip="10.0.0.2", as_number=64512),
        "b-global": BGPPeerSpec(peer_ip="10.0.0.2", as_number=64512),
    }
    found = plan("n1", inputs(N1, N2, peers=both)).sessions[ip_address("10.0.0.2")]
    assert (found.type, found.source) == ("global", "BGPPeer(b-global)")
    found = plan("n1", inputs(N1, N2, peers={"a-node": both["a-node"]})).sessions[ip_address("10.0.0.2")]
    assert found.type == "node specific"
    back = plan("n2", inputs(N1, N2, peers={"a-node": both["a-node"]})).sessions[ip_address("10.0.0.1")]
    assert (back.type, back.passive != found.passive) == ("node specific", True)


def test_options_of_a_session() -> None:
    """Durations, password, source address, TTL security, AS loops, next hop, filters, the way to the peer."""
    spec = BGPPeerSpec(
        peer_ip="192.0.2.1",
        as_number=64500,
        keepalive_time="20s",
        max_restart_time="5m0s",
        password=BGPPassword(secret_key_ref=Secret(name="bgp", key="tor")),
        source_address="None",
        ttl_security=2,
        num_allowed_local_as_numbers=1,
        keep_original_next_hop=True,
        filters=("f1", "f2"),
        reachable_by="10.0.0.254",
    )
    found = plan("n1", inputs(N1, peers={"tor": spec})).sessions[ip_address("192.0.2.1")]
    assert (found.hold_time, found.restart_time, found.password) == (60, 300, ("bgp", "tor"))
    assert (found.local, found.ttl_security, found.allowed_local_as) == (None, 2, 1)
    assert (found.next_hop, found.filters, str(found.reachable_by)) == ("keep", ("f1", "f2"), "10.0.0.254")


def test_two_peers_of_one_address_and_other_numbers() -> None:
    """One of them is had, and it is said which; as long as both say the same there is nothing to say."""
    peers = {name: BGPPeerSpec(peer_ip="192.0.2.1", as_number=number) for name, number in (("a", 64500), ("b", 64999))}
    found = plan("n1", inputs(N1, peers=peers))
    assert found.sessions[ip_address("192.0.2.1")].peer_as == 64500
    assert found.problems == {"BGPPeer(b)": "peer 192.0.2.1 AS 64999 is shadowed by BGPPeer(a)"}
    assert plan("n1", inputs(N1, peers={"a": peers["a"], "b": peers["a"]})).problems == {}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (BGPPeerSpec(peer_ip="192.0.2.1"), "asNumber"),
        (BGPPeerSpec(peer_ip="nonsense", as_number=1), "nonsense"),
        (BGPPeerSpec(peer_ip="224.0.0.1", as_number=1), "224.0.0.1"),
        (BGPPeerSpec(as_number=1), "peerSelector"),
        (BGPPeerSpec(peer_ip="2001:db8::1", as_number=1), "IPv6"),
        (BGPPeerSpec(node_selector="rack ==", peer_ip="192.0.2.1", as_number=1), "rack"),
        (BGPPeerSpec(local_workload_selector="all()", as_number=1), "localWorkloadPeeringIPV4"),
        (BGPPeerSpec(peer_ip="192.0.2.1", as_number=1, reachable_by="x"), "x"),
    ],
)
def test_a_peer_that_cannot_be_is_a_problem_and_no_other_suffers(spec: BGPPeerSpec, words: str) -> None:
    """The problem names the resource and the value; every other session is as without it."""
    good = BGPPeerSpec(peer_ip="192.0.2.9", as_number=64500)
    found = plan("n2", inputs(N1, N2, peers={"bad": spec, "good": good}))
    assert peers_of(found) == {"10.0.0.1": "node-to-node mesh", "192.0.2.9": "global"}
    assert words in found.problems["BGPPeer(bad)"]


def test_a_node_without_bgp_has_no_sessions_and_says_why() -> None:
    """No Node, or no spec.bgp: nothing is guessed."""
    assert "does not exist" in plan("x", inputs(N1)).problems["Node(x)"]
    bare = NodeInfo("x", {}, NodeSpec())
    assert "spec.bgp" in plan("x", inputs(N1, bare)).problems["Node(x)"]


def test_router_id() -> None:
    """The IPv4 address, what is asked for, or a stable hash that other speakers accept."""
    assert router_id(N1) == IPv4Address("10.0.0.1")
    assert router_id(N1, "1.2.3.4") == IPv4Address("1.2.3.4")
    only6 = node("n6", "", "fd00::6/64")
    assert router_id(only6) == router_id(only6, "hash")
    with pytest.raises(InvalidInputError, match="CALICO_ROUTER_ID"):
        router_id(N1, "x")


@given(st.text(max_size=30))
def test_hashed_router_ids_are_unicast(name: str) -> None:
    """Any name hashes to 1.0.0.0 … 223.255.255.255."""
    assert 1 <= router_id(node(name, ""), "hash").packed[0] <= 223


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", ("10.0.0.1", None)),
        ("10.0.0.1:180", ("10.0.0.1", 180)),
        ("fd00::1", ("fd00::1", None)),
        ("[fd00::1]:180", ("fd00::1", 180)),
        ("[fd00::1]", ("fd00::1", None)),
    ],
)
def test_peer_ip(text: str, expected: tuple[str, int | None]) -> None:
    """All four spellings."""
    address, port = parse_peer_ip(text)
    assert (str(address), port) == expected


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", "[fd00::1", "[fd00::1]180", "::1:x"]
)
def test_peer_ip_refused(text: str) -> None:
    """Anything else is an error."""
    with pytest.raises(ValueError):
        parse_peer_ip(text)


@given(st.sets(st.integers(1, 254), min_size=2, max_size=8), st.booleans())
def test_the_mesh_is_symmetric(numbers: set[int], reflector: bool) -> None:
    """A has a session with B exactly when B has one with A, with matching ends."""
    nodes = [node(f"n{i}", f"10.0.0.{i}/24", f"fd00::{i}/64") for i in sorted(numbers)]
    given_ = inputs(*nodes, *([RR] if reflector and 5 not in numbers else []))
    every = {name: plan(name, given_).sessions for name in given_.nodes}
    for sessions in every.values():
        for session in sessions.values():
            assert session.local is not None
            back = every[session.node][session.local]
            assert (back.peer, back.local) == (session.local, session.peer)
            assert back.passive != session.passive
            assert (back.peer_as, back.local_as) == (session.local_as, session.peer_as)
