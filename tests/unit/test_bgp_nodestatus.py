"""CalicoNodeStatus: what a report holds for each class, and when one is due."""

from __future__ import annotations

import datetime
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from msgspec.structs import replace as changed

from calipy.bgp.nodestatus import Facts, NodeStatusResource, Schedule, report
from calipy.bgp.path import Attributes, Peer
from calipy.bgp.peering import Session
from calipy.bgp.rib import Rib
from calipy.bgp.sessions import SessionState
from calipy.datastore import codec
from calipy.datastore.kinds.cluster import CalicoNodeStatusSpec, CalicoNodeStatusStatus
from calipy.net import NextHop, Prefix, Route

N1, N2, TOR, N6 = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("10.0.0.254"), ip_address("fd00::2")
THEN = datetime.datetime(2026, 8, 1, 10, 0, 0, tzinfo=datetime.UTC)
BLOCK: Prefix = ip_network("10.244.2.0/26")


def facts() -> Facts:
    """Two IPv4 sessions up, one IPv6 session down; a block both peers tell of; an own block; a connected subnet."""
    rib = Rib(lambda peer, prefix, attributes: ("refused" if prefix.prefixlen == 8 else "", attributes))
    for address, remote_as in ((N2, 64512), (TOR, 65001)):
        rib.peer_up(Peer(address, remote_as, 64512, IPv4Address(2)), 0.0)
        preference = 200 if remote_as == 64512 else None
        rib.announce(address, BLOCK, Attributes(address, local_preference=preference))
    rib.announce(TOR, ip_network("10.0.0.0/8"), Attributes(TOR))
    rib.set_metrics({N2: 0, TOR: 0})
    rib.take_changes()
    mesh = Session(N2, "node-to-node mesh", 64512, 64512, IPv4Address(1), N1)
    fabric = Session(TOR, "global", 65001, 64512, IPv4Address(1), N1)
    specific = replace(mesh, peer=N6, type="node specific")
    return Facts(
        version="v",
        router_id=IPv4Address("10.0.0.1"),
        started=THEN,
        reconfigured=THEN,
        ready={4: True, 6: False},
        sessions={
            N2: SessionState(mesh, THEN, up=True),
            TOR: SessionState(fabric, THEN, up=True),
            N6: SessionState(specific, THEN),
        },
        rib=rib,
        kernel=(
            Route(BLOCK, "unicast", (NextHop(N2, "eth0"),), 82, 1024),
            Route(ip_network("10.244.1.0/26"), "blackhole", (), 82, 1024),
            Route(ip_network("10.0.0.0/24"), "unicast", (NextHop(None, "eth0"),), 2, scope="link"),
            Route(ip_network("0.0.0.0/0"), "unicast", (NextHop(TOR, "eth0"),), 3),
        ),
    )


def test_only_the_classes_asked_for() -> None:
    """Everything else stays empty; the time is always there."""
    status = report(("BGP",), facts(), THEN)
    empty = CalicoNodeStatusStatus()
    assert (status.last_updated, status.agent, status.routes) == ("2026-08-01T10:00:00Z", empty.agent, empty.routes)


def test_the_agent() -> None:
    """Ready with its identity, or not ready with nothing else."""
    agent = report(("Agent",), facts(), THEN).agent
    assert (agent.bird_v4.state, agent.bird_v4.router_id, agent.bird_v6.state) == ("Ready", "10.0.0.1", "NotReady")
    assert agent.bird_v4.last_boot_time == "2026-08-01T10:00:00Z"


def test_sessions() -> None:
    """Counted and listed by family, with Calico's types and states."""
    bgp = report(("BGP",), facts(), THEN).bgp
    assert (bgp.number_established_v4, bgp.number_not_established_v4) == (2, 0)
    assert (bgp.number_established_v6, bgp.number_not_established_v6) == (0, 1)
    shown = [(one.peer_ip, one.type, one.state) for one in (*bgp.peers_v4, *bgp.peers_v6)]
    assert shown == [
        ("10.0.0.2", "NodeMesh", "Established"),
        ("10.0.0.254", "GlobalPeer", "Established"),
        ("fd00::2", "NodePeer", "Active"),
    ]


def test_sessions_with_workloads_are_left_out() -> None:
    """They have no type there, as in Calico, and do not count."""
    given = facts()
    mesh = given.sessions[N2].session
    pod = replace(mesh, peer=ip_address("10.244.1.5"), type="local workload")
    more = replace(given, sessions={**given.sessions, pod.peer: SessionState(pod, THEN, up=True)})
    assert report(("BGP",), more, THEN) == report(("BGP",), given, THEN)


def test_routes() -> None:
    """Chosen paths and the kernel's own routes are FIB, others RIB; refused paths are not shown."""
    shown = [
        (one.type, one.destination, one.gateway, one.interface, one.learned_from.source_type, one.learned_from.peer_ip)
        for one in report(("Routes",), facts(), THEN).routes.routes_v4
    ]
    assert shown == [
        ("FIB", "10.244.2.0/26", "10.0.0.2", "eth0", "NodeMesh", "10.0.0.2"),
        ("RIB", "10.244.2.0/26", "10.0.0.254", "", "BGPPeer", "10.0.0.254"),
        ("FIB", "0.0.0.0/0", "10.0.0.254", "eth0", "Kernel", ""),
        ("FIB", "10.0.0.0/24", "N/A", "eth0", "Direct", ""),
        ("FIB", "10.244.1.0/26", "N/A", "blackhole", "Static", ""),
    ]


def asking(period: int = 10, **spec: Any) -> NodeStatusResource:
    """An object that asks n1."""
    wanted = CalicoNodeStatusSpec(**{"node": "n1", "classes": ("BGP",), "update_period_seconds": period} | spec)
    return codec.new("CalicoNodeStatus", "s", wanted)


def told(resource: NodeStatusResource) -> NodeStatusResource:
    """The same, with a report."""
    return changed(resource, status=CalicoNodeStatusStatus(last_updated="2026-08-01T10:00:00Z"))


def test_every_period() -> None:
    """Due at once, then after each period; our own writing changes nothing; another spec is due at once."""
    schedule = Schedule("n1")
    assert schedule.on_update("s", asking(), 0.0)
    assert [one.name for one in schedule.take(0.0)] == ["s"]
    assert (schedule.take(9.0), schedule.next_due()) == ([], 10.0)
    assert not schedule.on_update("s", told(asking()), 1.0)
    assert [one.status is not None for one in schedule.take(10.0)] == [True], "with the newest revision"
    assert schedule.on_update("s", asking(classes=("Routes",)), 11.0)
    assert len(schedule.take(11.0)) == 1
    schedule.again("s", 12.0)
    assert len(schedule.take(12.0)) == 1


def test_zero_is_no_refresh() -> None:
    """One report for an object that has none; never again, also not after a restart."""
    schedule = Schedule("n1")
    schedule.on_update("s", asking(0), 0.0)
    assert (len(schedule.take(0.0)), schedule.next_due()) == (1, None)
    restarted = Schedule("n1")
    assert not restarted.on_update("s", told(asking(0)), 0.0)
    assert restarted.next_due() is None


def test_others_are_not_our_business() -> None:
    """Objects of other nodes, and objects that are gone, are never due."""
    schedule = Schedule("n2")
    assert not schedule.on_update("s", asking(), 0.0)
    assert schedule.on_update("s", asking(node="n2"), 0.0)
    assert not schedule.on_update("s", None, 1.0)
    schedule.again("s", 2.0)
    assert schedule.take(9.0) == []
