"""Cluster routes from the datastore instead of BGP, and the change between the two under a ping."""

from __future__ import annotations

import pytest

from calipy import api_client
from calipy.datastore import codec, keys
from calipy.datastore.resources import BGPConfigurationSpec
from tests.kernel.test_bgp_mesh import tor
from tests.support.bgp import BgpLab, BgpNode, Pinger, eventually, eventually_is

pytestmark = pytest.mark.kernel


def cluster_routes(lab: BgpLab, mode: str) -> None:
    """Choose for the cluster."""
    annotations = {"calipy.io/clusterRoutes": mode}
    spec = BGPConfigurationSpec()
    lab.put(
        keys.ResourceKey("BGPConfiguration", "default"),
        codec.new("BGPConfiguration", "default", spec, annotations=annotations),
    )


def test_changing_over_loses_no_packet(bgp_lab: BgpLab) -> None:
    """From BGP to the datastore and back: same routes, no packet lost; the mesh goes and returns, the fabric stays."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1", used={9: "n2"})
    bgp_lab.block("10.244.2.0/26", "n2")
    bgp_lab.block("10.244.3.0/26", "n3")
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    n3 = bgp_lab.node("n3", "10.77.2.3/24", subnet="b")
    nodes = {node.name: node.address for node in (n1, n2, n3)}
    bird = bgp_lab.bird(bgp_lab.fabric, tor(nodes).replace("local as", "local 10.77.1.254 as"))
    n2.ns.run("ip", "addr", "add", "10.244.2.1/32", "dev", "lo")
    n2.ns.run("ip", "addr", "add", "10.244.1.9/32", "dev", "lo")
    wanted = {"10.244.2.0/26": (n2.address,), "10.244.1.9/32": (n2.address,), "10.244.3.0/26": ("10.77.1.254",)}
    eventually_is("by BGP", wanted, n1.gateways)
    eventually("n2 has n1's block", lambda: "10.244.1.0/26" in n2.gateways())
    eventually("the fabric", lambda: all(node.up("10.77.1.254") for node in (n1, n2, n3)))
    pings = [Pinger(n1.ns, target, bgp_lab.directory / f"ping{target}") for target in ("10.244.2.1", "10.244.1.9")]
    cluster_routes(bgp_lab, "datastore")
    eventually_is("no mesh", {"10.77.1.254"}, lambda: set(n1.peers()))
    eventually_is("nor at n3", {"10.77.1.254"}, lambda: set(n3.peers()))
    assert n1.gateways() == wanted
    assert n1.status()["cluster_routes"] == "datastore"
    # Changes of the datastore are routes at once, without any session.
    bgp_lab.block("10.244.4.0/26", "n2")
    eventually_is("a new block", wanted | {"10.244.4.0/26": (n2.address,)}, n1.gateways)
    bgp_lab.block("10.244.4.0/26", "n2", state="pending")
    eventually_is("its claim is lost", wanted, n1.gateways)
    eventually("ExaBGP has let go of the mesh", lambda: all("exabgp reloaded" in node.told() for node in (n1, n2, n3)))
    cluster_routes(bgp_lab, "bgp")
    # Who dials before the other end knows it is refused, and tries again ever more slowly.
    eventually("mesh", lambda: n1.up(n2.address, n3.address) and n2.up(n3.address), timeout=90)
    assert n1.gateways() == wanted
    bgp_lab.unblock("10.244.3.0/26", "n3")
    del wanted["10.244.3.0/26"]
    eventually_is("BGP alone decides again", wanted, n1.gateways)
    assert [ping.stop()[1] for ping in pings] == [0, 0]
    assert n1.peers()["10.77.1.254"]["flaps"] == 0
    assert "10.244.1.0/26" in bird.routes()


def test_a_peer_that_is_wanted_again_at_once(bgp_lab: BgpLab) -> None:
    """Removed and put back before ExaBGP was told: the session never went down, and is known to be up."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.2.0/26", "n2")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    eventually_is("route", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    bgp_lab.configuration(node_to_node_mesh_enabled=False)
    bgp_lab.configuration(node_to_node_mesh_enabled=True)
    eventually("up again", lambda: n1.up(n2.address) and n2.up(n1.address))
    eventually_is("route again", {"10.244.2.0/26": (n2.address,)}, n1.gateways)


def test_a_node_started_with_the_datastore_needs_no_session(bgp_lab: BgpLab) -> None:
    """Routes of both families without a single session; a node's removal takes its routes along."""
    cluster_routes(bgp_lab, "datastore")
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.pool("10.98.0.0/16", "overlay", vxlan_mode="Always")
    bgp_lab.pool("fd00:10::/48", "pool6")
    for cidr in ("10.244.2.0/26", "10.98.2.0/26", "fd00:10:0:2::/122"):
        bgp_lab.block(cidr, "n2")
    n1 = bgp_lab.node("n1", "10.77.1.1/24", address6="fd77:1::1/64")
    bgp_lab.node("n2", "10.77.1.2/24", address6="fd77:1::2/64", start=False)
    wanted = {"10.244.2.0/26": ("10.77.1.2",), "fd00:10:0:2::/122": ("fd77:1::2",)}
    eventually_is("routes", wanted, n1.gateways)
    eventually("ready", lambda: n1.status()["ready"])
    assert n1.peers() == {}
    bgp_lab.delete(keys.ResourceKey("Node", "n2"))
    eventually_is("gone with the node", {}, n1.gateways)


def test_one_node_by_its_environment(bgp_lab: BgpLab) -> None:
    """Restarted with the other way, one node reads the datastore and then BGP again; sessions and packets are kept."""
    bgp_lab.pool("10.244.0.0/16")
    for number in (1, 2, 3):
        bgp_lab.block(f"10.244.{number}.0/26", f"n{number}")
    nodes = [bgp_lab.node(f"n{number}", f"10.77.1.{number}/24") for number in (1, 2, 3)]
    for number, node in enumerate(nodes, 1):
        node.ns.run("ip", "addr", "add", f"10.244.{number}.1/32", "dev", "lo")
    n1, n2, n3 = nodes
    wanted = {
        node.name: {f"10.244.{number}.0/26": (other.address,) for number, other in enumerate(nodes, 1) if other != node}
        for node in nodes
    }
    for node in nodes:
        eventually_is(f"{node.name} by BGP", wanted[node.name], node.gateways)
    ways = ((n1, "10.244.2.1"), (n1, "10.244.3.1"), (n2, "10.244.1.1"), (n3, "10.244.1.1"), (n3, "10.244.2.1"))
    pings = [Pinger(node.ns, to, bgp_lab.directory / f"ping-{node.name}-{to}") for node, to in ways]

    def by_datastore(node: BgpNode) -> bool:
        told = api_client.call(node.directory / "bgpd.sock", "routes", timeout=5)
        return {path["peer"] for one in told for path in one["paths"] if path["best"]} == {"datastore"}

    for mode in ("datastore", "bgp"):
        n1.kill()
        n1.start(CALIPY_CLUSTER_ROUTES=mode)
        eventually(f"n1 has {mode}", lambda mode=mode: n1.status().get("cluster_routes") == mode)
        eventually(f"best paths by {mode}", lambda mode=mode: by_datastore(n1) == (mode == "datastore"))
        eventually("sessions", lambda: n1.up(n2.address, n3.address) and n2.up(n1.address) and n3.up(n1.address))
        # What changes at n1 is news to the others, and the other way round.
        bgp_lab.block("10.244.4.0/26", "n1")
        bgp_lab.block("10.244.5.0/26", "n2")
        eventually("n2 hears of n1", lambda: n2.gateways().get("10.244.4.0/26") == (n1.address,))
        eventually("n1 hears of n2", lambda: n1.gateways().get("10.244.5.0/26") == (n2.address,))
        bgp_lab.unblock("10.244.4.0/26", "n1")
        bgp_lab.unblock("10.244.5.0/26", "n2")
        for node in nodes:
            eventually_is(f"{node.name} with {mode} at n1", wanted[node.name], node.gateways)
        assert not by_datastore(n2), "the others stay as they are"
    assert [peer["flaps"] for node in nodes for peer in node.peers().values()] == [0] * 6
    assert [ping.stop()[1] for ping in pings] == [0] * len(pings)
