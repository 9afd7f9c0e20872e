"""Sessions with workloads of this node: which there are, with what options, and why there is none."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from calipy.bgp.advertise import Originated
from calipy.bgp.cluster import DATASTORE
from calipy.bgp.exporting import ExportPolicy
from calipy.bgp.path import Attributes, Peer, Segment
from calipy.bgp.peering import Peering, PeeringInputs, Session, plan
from calipy.bgp.peering_model import NodeInfo, WorkloadPeer
from calipy.bgp.rib import Rib
from calipy.bgp.sessions import SessionState
from calipy.bgp.status import Condition, reasons
from calipy.bgp.status_directory import StatusDirectory
from calipy.bgp.view import View
from calipy.bgp.workload_peers import parse_status
from calipy.datastore import codec, keys
from calipy.datastore.resources import BGPConfigurationSpec, BGPPassword, BGPPeerSpec, NodeBGPSpec, NodeSpec
from calipy.datastore.resources import SecretKeySelector as Secret

POD4, POD6 = ip_address("10.244.1.5"), ip_address("fd00:244::5")
HERE4, HERE6 = ip_address("169.254.0.179"), ip_address("fd12:3456::1")
BOTH = {"local_workload_peering_ipv4": str(HERE4), "local_workload_peering_ipv6": str(HERE6)}
RED = BGPPeerSpec(local_workload_selector="color == 'red'", as_number=65401)
POD = WorkloadPeer("red", (POD4, POD6))


def planned(*pods: WorkloadPeer, peers: dict[str, BGPPeerSpec] | None = None, **configuration: Any) -> Peering:
    """The peering of n1 with these workloads; n2 is its mesh."""
    nodes = {
        name: NodeInfo(name, {"rack": name}, NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"10.0.0.{number}/24")))
        for number, name in enumerate(("n1", "n2"), 1)
    }
    inputs = PeeringInputs(nodes, peers or {"red": RED}, BGPConfigurationSpec(**configuration))
    return plan("n1", replace(inputs, workloads=pods))


def with_workloads(peering: Peering) -> dict[str, Session]:
    """The sessions with workloads."""
    return {str(peer): one for peer, one in peering.sessions.items() if one.type == "local workload"}


def test_a_selected_workload_has_a_session_for_each_family() -> None:
    """It dials; this side is the peering address, in the node's AS; the mesh is as without it."""
    found = planned(POD, **BOTH)
    assert found.problems == {}
    assert set(map(str, found.sessions)) == {"10.244.1.5", "fd00:244::5", "10.0.0.2"}
    for peer, local in ((POD4, HERE4), (POD6, HERE6)):
        session = found.sessions[peer]
        assert (session.local, session.passive, session.type) == (local, True, "local workload")
        assert (session.peer_as, session.local_as, session.source) == (65401, 64512, "BGPPeer(red)")


def test_options_of_the_peer_hold_but_for_addresses() -> None:
    """Password, timers, filters, next hops, own AS; neither sourceAddress nor reachableBy."""
    spec = BGPPeerSpec(
        local_workload_selector="all()",
        as_number=65401,
        local_as_number=65002,
        password=BGPPassword(secret_key_ref=Secret(name="bgp", key="pods")),
        keepalive_time="20s",
        max_restart_time="1m0s",
        next_hop_mode="Keep",
        num_allowed_local_as_numbers=1,
        ttl_security=1,
        filters=("f",),
        source_address="None",
        reachable_by="10.0.0.254",
    )
    session = planned(POD, peers={"red": spec}, **BOTH).sessions[POD4]
    assert (session.local, session.reachable_by) == (HERE4, None)
    assert (session.local_as, session.password, session.hold_time, session.restart_time) == (
        65002, ("bgp", "pods"), 60, 60,
    )  # fmt: skip
    assert (session.next_hop, session.allowed_local_as, session.ttl_security, session.filters) == ("keep", 1, 1, ("f",))


def test_only_workloads_of_a_peer_that_is_for_this_node() -> None:
    """Of another BGPPeer, of one for other nodes, or of none that exists: no session."""
    elsewhere = BGPPeerSpec(local_workload_selector="all()", as_number=65401, node="n2")
    pods = (WorkloadPeer("blue", (POD4,)), WorkloadPeer("gone", (POD6,)))
    found = planned(*pods, peers={"red": RED, "blue": elsewhere}, **BOTH)
    assert with_workloads(found) == {}
    here = replace_spec(elsewhere, node="", node_selector="rack == 'n1'")
    assert set(with_workloads(planned(*pods, peers={"blue": here}, **BOTH))) == {"10.244.1.5"}


def replace_spec(spec: BGPPeerSpec, **changes: Any) -> BGPPeerSpec:
    """The spec with other fields."""
    return BGPPeerSpec(**{name: getattr(spec, name) for name in ("local_workload_selector", "as_number")} | changes)


@pytest.mark.parametrize(
    ("configuration", "sessions", "words"),
    [
        ({}, set(), ("localWorkloadPeeringIPV4", "localWorkloadPeeringIPV6", "169.254.0.179")),
        ({"local_workload_peering_ipv4": str(HERE4)}, {"10.244.1.5"}, ("localWorkloadPeeringIPV6",)),
        ({**BOTH, "local_workload_peering_ipv4": "fd00::1"}, {"fd00:244::5"}, ("not an IPv4 address", "fd00::1")),
        ({**BOTH, "local_workload_peering_ipv6": "fe80::179"}, {"10.244.1.5"}, ("fe80::179", "global scope")),
        ({**BOTH, "bind_mode": "NodeIP"}, set(), ("bindMode", "NodeIP", "set it to None")),
    ],
)
def test_without_an_address_to_listen_on(configuration: dict[str, Any], sessions: set[str], words: Any) -> None:
    """The family without one has no session, and the problem names field, value and remedy; the other family has."""
    found = planned(POD, **configuration)
    assert set(with_workloads(found)) == sessions
    for word in words:
        assert word in found.problems["BGPPeer(red)"]


def test_no_address_at_all_is_said_before_the_first_workload() -> None:
    """A cluster without peering addresses hears of it; one that has one of them does not."""
    assert "localWorkloadPeeringIPV4" in planned().problems["BGPPeer(red)"]
    assert planned(local_workload_peering_ipv6=str(HERE6)).problems == {}


def test_status_files() -> None:
    """The first address of each family; without a BGPPeer, nothing; what is no status file is an error."""
    told = {
        "ifaceName": "cali1",
        "ipv4Nets": ["10.244.1.5/32", "10.244.1.6/32"],
        "ipv6Nets": ["fd00:244::5/128"],
        "bgpPeerName": "red",
    }
    assert parse_status(json.dumps(told).encode()) == POD
    del told["ipv6Nets"]
    assert parse_status(json.dumps(told).encode()) == WorkloadPeer("red", (POD4,))
    del told["bgpPeerName"]
    assert parse_status(json.dumps(told).encode()) is None
    for bad in (b"", b"[]", b'{"bgpPeerName": 1}', b'{"bgpPeerName": "x", "ipv4Nets": ["no"]}'):
        with pytest.raises(ValueError):
            parse_status(bad)


# What is passed on

ME = IPv4Address("10.0.0.1")
WORKLOAD = Session(POD4, "local workload", 65401, 64512, ME, HERE4, passive=True)
TWIN = replace(WORKLOAD, peer=ip_address("10.244.1.6"))
MESH = Session(ip_address("10.0.0.2"), "node-to-node mesh", 64512, 64512, ME, ME)
MESH2 = replace(MESH, peer=ip_address("10.0.0.3"))
TOR = Session(ip_address("10.0.0.254"), "global", 64500, 64512, ME, ME)
SESSIONS = {one.peer: one for one in (WORKLOAD, TWIN, MESH, MESH2, TOR)}
POLICY = ExportPolicy(
    originated=Originated(blocks=frozenset({ip_network("10.244.1.0/26")})),
    sessions=SESSIONS,
    passes_on=lambda prefix: prefix.subnet_of(ip_network("10.0.0.0/8")),
)


def told(source: Session | None, prefix: str, policy: ExportPolicy = POLICY) -> dict[str, Attributes]:
    """Who is told of a prefix that one peer (None: the datastore) has told this node, and how."""
    rib = Rib(lambda _peer, _prefix, attributes: ("", attributes))
    peer = DATASTORE
    as_path: tuple[Segment, ...] = ()
    if source is not None:
        peer = Peer(source.peer, source.peer_as, 64512, IPv4Address(7))
        as_path = (Segment("sequence", (source.peer_as,)),) if source.external else ()
    hop = source.peer if source else MESH.peer
    rib.peer_up(peer, 0)
    rib.announce(peer.address, ip_network(prefix), Attributes(hop, as_path=as_path))
    rib.set_metrics({hop: 0})
    rib.take_changes()
    found = policy.exports(rib.loc_rib(), lambda one: one.local)
    return {str(to): routes[ip_network(prefix)] for to, routes in found.items() if ip_network(prefix) in routes}


def test_what_a_workload_announces_inside_the_pools_is_passed_on() -> None:
    """To everybody, as by any border router; not outside of the pools, nor beneath an own block, as pods' addresses."""
    found = told(WORKLOAD, "10.66.1.0/28")
    assert set(found) == {str(peer) for peer in SESSIONS}
    assert (found["10.0.0.2"].next_hop, found["10.0.0.2"].local_preference) == (POD4, 100)
    assert (found["10.0.0.254"].next_hop, found["10.0.0.254"].as_path) == (
        ME, (Segment("sequence", (64512, 65401)),),
    )  # fmt: skip
    assert told(WORKLOAD, "192.0.2.0/24") == {}
    assert told(WORKLOAD, "10.244.1.7/32") == {}
    assert told(WORKLOAD, "10.244.2.7/32")


@pytest.mark.parametrize("source", [MESH, TOR, None])
def test_workloads_hear_what_is_inside_the_pools(source: Session | None) -> None:
    """Of other nodes, of the fabric, of the datastore; nobody else does: the node is no transit."""
    assert set(told(source, "10.244.2.0/26")) == {str(POD4), "10.244.1.6"}
    assert told(source, "10.244.2.0/26")[str(POD4)].next_hop == HERE4
    assert told(source, "192.0.2.0/24") == {}


def test_nothing_is_passed_on_without_workloads() -> None:
    """The same routes, without a session with a workload: each node speaks for itself."""
    policy = replace(POLICY, sessions={one.peer: one for one in (MESH, MESH2, TOR)})
    assert told(MESH, "10.244.2.0/26", policy) == {}
    assert not policy.follows_loc_rib
    assert POLICY.follows_loc_rib


# Files, and what follows from them


def test_the_directory_is_followed(tmp_path: Path) -> None:
    """Files come, change and go; what cannot be read counts as it was; no directory is no workload."""
    directory = StatusDirectory(tmp_path)
    assert directory.read() == ()
    files = tmp_path / "endpoint-status"
    files.mkdir()
    (files / "sub").mkdir()
    text = json.dumps({"bgpPeerName": "red", "ipv4Nets": ["10.244.1.5/32"], "ipv6Nets": ["fd00:244::5/128"]})
    (files / "k8s a eth0").write_text(text)
    (files / "k8s b eth0").write_text('{"ifaceName": "cali2", "ipv4Nets": ["10.244.1.6/32"]}')
    assert directory.read() == (POD,)
    (files / "k8s a eth0").write_text(text[:20])
    assert directory.read() == (POD,)
    (files / "k8s a eth0").write_text(text.replace("red", "blue"))
    assert directory.read() == (replace(POD, bgp_peer="blue"),)
    (files / "k8s a eth0").unlink()
    assert directory.read() == ()
    (files / "k8s a eth0").write_text(text)
    assert directory.read() == (POD,)


def test_the_view_asks_for_workloads_while_a_peer_selects_any() -> None:
    """And has peering looked at when they are others than before."""
    view = View("n1")
    assert not view.asks_for_workloads
    view.on_update(keys.ResourceKey("BGPPeer", "red"), codec.new("BGPPeer", "red", RED))
    assert view.asks_for_workloads
    view.peering_changed = False
    view.set_workloads(())
    assert not view.peering_changed
    view.set_workloads((POD,))
    assert view.peering_changed
    view.on_update(keys.ResourceKey("BGPPeer", "red"), None)
    assert not view.asks_for_workloads


def test_a_node_is_ready_without_its_workloads() -> None:
    """Whether a pod connects is its own affair."""
    now = datetime.datetime.now(datetime.UTC)
    states = {POD4: SessionState(WORKLOAD, now), MESH.peer: SessionState(MESH, now, up=True)}
    assert reasons(Condition(age=1.0, in_sync=True), states) == []
    assert reasons(Condition(age=1000.0, in_sync=True), {POD4: SessionState(WORKLOAD, now)}) == []
    assert reasons(Condition(age=1.0, in_sync=True), {MESH.peer: SessionState(MESH, now)})
