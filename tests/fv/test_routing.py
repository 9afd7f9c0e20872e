"""Routes of the cluster that the agent owns: blackholes, borrowing, removal, and who else may write what.

Theme ``routing`` of Calico's felix/fv; what needs a tunnel device is in ``test_vxlan`` and ``test_ipip``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

import pytest

from calipy.net import PROTO_BGP, NextHop, Route
from tests.support.felix import pings, until
from tests.support.netns import Namespace
from tests.support.objects import Object, block, make
from tests.support.tunnels import Cluster, capture, pool, reach, vxlan

pytestmark = [pytest.mark.kernel]

PLAIN = pool(), pool("fd65::/112", "pool6")
ALL_ROUTES = make("FelixConfiguration", "default", {"programClusterRoutes": "Enabled"})


@pytest.fixture
def cluster(make_netns: Callable[..., Namespace]) -> Iterator[Cluster]:
    """Two nodes on one subnet, one behind the router."""
    made = Cluster(make_netns)
    try:
        for name in made.nodes:
            made.pod(name)
        for name in ("n1", "n2"):
            made[name].start()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("pools", "configuration", "ours"),
    [
        (PLAIN, {}, set()),
        (PLAIN, {"programClusterRoutes": "EnabledIPIPOnly"}, set()),
        (PLAIN, {"programClusterRoutes": "EnabledNoEncapOnly"}, {"10.65.1.0/26", "fd65::100/122"}),
        ((pool(ipipMode="CrossSubnet"), PLAIN[1]), {}, {"10.65.1.0/26"}),
        ((pool(ipipMode="CrossSubnet"), PLAIN[1]), {"programClusterRoutes": "Disabled"}, set()),
        (vxlan("Always"), {"programClusterRoutes": "Disabled"}, {"10.65.1.0/26", "fd65::100/122"}),
    ],
    ids=["plain", "plain, IPIP only", "plain, ours", "IPIP", "IPIP, not ours", "VXLAN"],
)
def test_blackholes_are_for_whom_the_routes_are(
    cluster: Cluster, pools: tuple[Object, ...], configuration: dict[str, str], ours: set[str]
) -> None:
    """A block's blackhole comes from who owns its pool's routes, Felix or BGP; and none of both writes the other's."""
    n1 = cluster["n1"]
    settings = [make("FelixConfiguration", "default", configuration)] if configuration else []
    cluster.become([*cluster.objects(*pools), *settings])
    assert {dst for dst in n1.routes() if n1.way(dst) == "blackhole"} == ours


def test_blackholes_come_and_go_with_the_affinity(cluster: Cluster) -> None:
    """What a block has no pod for is dropped here and does not go round by the default route; then it may."""
    n1 = cluster["n1"]
    cluster.become(cluster.objects(*vxlan("CrossSubnet")))
    assert n1.way("10.65.1.0/26") == "blackhole"
    with capture(n1.ns) as seen:
        assert not pings(n1.pod.ns, "10.65.1.44")
    assert not seen[f"{n1.pod.address}>10.65.1.44"]
    single = block("10.65.77.7/32", "n1")
    cluster.become([*cluster.objects(*vxlan("CrossSubnet"), n1=block("10.65.1.0/26", None)), single])
    assert n1.way("10.65.1.0/26") == ""
    assert n1.way("10.65.77.7/32") == ""
    with capture(n1.ns) as seen:
        assert not pings(n1.pod.ns, "10.65.1.44")
    assert seen[f"{n1.pod.address}>10.65.1.44"]
    cluster.become(cluster.objects(*vxlan("CrossSubnet"), n1=block("10.65.1.0/26", "n2")))
    assert n1.way("10.65.1.0/26") == f"{cluster['n2'].address} eth0"
    reach(cluster["n2"].pod.ns, n1.pod.address6)


def test_pools_without_encapsulation(cluster: Cluster) -> None:
    """Owned by the agent, nodes on the subnet are reached directly; one behind the router has no route."""
    n1, n2 = cluster["n1"], cluster["n2"]
    cluster.become([*cluster.objects(*PLAIN), ALL_ROUTES])
    assert n1.way("10.65.2.0/26") == f"{n2.address} eth0"
    assert n1.way("fd65::200/122") == f"{n2.address6} eth0"
    assert n1.way("10.65.3.0/26") == ""
    with capture(n2.ns) as seen:
        reach(n1.pod.ns, n2.pod.address, n2.pod.address6)
    assert seen[f"{n1.pod.address}>{n2.pod.address}"]
    assert not seen["vxlan"]
    cluster.become(cluster.objects(*PLAIN))
    assert not n1.routes()


def test_borrowed_addresses(cluster: Cluster) -> None:
    """A pod that moves with its address to another node is reached there by all; a local pod beats what IPAM says."""
    n1, n2 = cluster["n1"], cluster["n2"]
    pools = (*PLAIN, ALL_ROUTES)
    borrower = cluster.pod("n2", "10.65.1.9")
    cluster.become(cluster.objects(*pools, n1=block("10.65.1.0/26", "n1", _9="n2")))
    assert n1.way("10.65.1.9/32") == f"{n2.address} eth0"
    assert n2.way("10.65.1.9/32") == ""
    reach(n1.pod.ns, borrower.address)
    reach(n1.ns, borrower.address)
    mine = cluster.pod("n1", "10.65.1.9")
    cluster.become(cluster.objects(*pools, n1=block("10.65.1.0/26", "n1", _9="n2")))
    assert n1.way("10.65.1.9/32") == ""
    with capture(mine.ns) as seen:
        reach(n1.pod.ns, mine.address)
    assert seen[f"{n1.pod.address}>{mine.address}"]


def test_a_removed_node_is_dropped(cluster: Cluster) -> None:
    """With a node its routes go, though its blocks are still there; and the routes come back with it."""
    n1 = cluster["n1"]
    whole = dict(cluster.objects(*vxlan("CrossSubnet")))
    cluster.become(whole.items())
    ways = {dst: n1.way(dst) for dst in n1.routes()}
    cluster.become([(key, value) for key, value in whole.items() if getattr(key, "name", "") not in {"n2", "n3"}])
    assert {dst for dst in n1.routes() if n1.way(dst) != "blackhole"} == set()
    assert {route.kind for route in n1.routes().values()} == {"blackhole"}
    cluster.become(whole.items())
    assert {dst: n1.way(dst) for dst in n1.routes()} == ways


def test_stolen_routes_are_taken_back_and_others_left_alone(cluster: Cluster) -> None:
    """What others delete or overwrite of ours returns at once; stray routes of ours go; BIRD's and static ones stay."""
    n1 = cluster["n1"]
    assert n1.felix is not None
    cluster.become(cluster.objects(*vxlan("CrossSubnet")))
    ways = {dst: n1.way(dst) for dst in n1.routes()}
    n1.ns.run("ip", "route", "add", "10.65.44.0/26", "via", "172.31.1.254", "proto", "bird")
    n1.ns.run("ip", "route", "add", "10.65.45.0/26", "via", "172.31.1.254", "proto", str(PROTO_BGP))
    n1.ns.run("ip", "route", "add", "10.99.0.0/16", "via", "172.31.1.254", "proto", "static")
    for dst in ways:
        n1.ns.run("ip", "route", "del", dst, "proto", "80")
    until(lambda: {dst: n1.way(dst) for dst in n1.routes()} == ways)
    n1.ns.run("ip", "route", "replace", "10.65.2.0/26", "via", "172.31.1.254", "proto", "static")
    n1.ns.run("ip", "route", "replace", "unreachable", "10.65.1.0/26", "proto", "static")
    until(lambda: {dst: n1.way(dst) for dst in n1.routes()} == ways)
    n1.ns.run("ip", "route", "add", "10.65.46.0/26", "via", "172.31.1.254", "proto", "80")
    until(lambda: "10.65.46.0/26" not in n1.routes())
    kept = n1.routes(protocol=None)
    assert {"10.65.44.0/26", "10.65.45.0/26", "10.99.0.0/16"} <= kept.keys()
    assert {difference.place for difference in n1.felix.status().drift} >= {"route"}


def test_a_link_that_flaps_has_its_routes_back(cluster: Cluster) -> None:
    """The kernel drops the routes of a link that goes down without a word; they return with it."""
    n1, n2 = cluster["n1"], cluster["n2"]
    cluster.become(cluster.objects(*vxlan("CrossSubnet")))
    n1.ns.links.set_down("eth0")
    until(lambda: n1.way("10.65.2.0/26") == "")
    n1.ns.links.set_up("eth0")
    n1.ns.run("ip", "route", "replace", "default", "via", "172.31.1.254")
    until(lambda: n1.way("10.65.2.0/26") == f"{n2.address} eth0")
    reach(n1.pod.ns, n2.pod.address)


def test_a_restart_changes_nothing(cluster: Cluster) -> None:
    """Killed and started again, Felix finds device and routes and leaves them as they are."""
    n1 = cluster["n1"]
    assert n1.felix is not None
    cluster.become(cluster.objects(*vxlan("CrossSubnet")))
    index, shown = n1.ns.netlink.index_of("vxlan.calico"), n1.ns.run("ip", "route")
    n1.felix.kill()
    n1.start()
    cluster.tell("n1")
    assert n1.ns.run("ip", "route") == shown
    assert n1.ns.netlink.index_of("vxlan.calico") == index


def test_route_sync_can_be_switched_off(cluster: Cluster) -> None:
    """RouteSyncDisabled: devices, but not a single route."""
    n1 = cluster["n1"]
    disabled = make("FelixConfiguration", "default", {"routeSyncDisabled": True})
    cluster.become([*cluster.objects(*vxlan("Always")), disabled])
    assert not n1.routes()
    stray = Route(
        ipaddress.ip_network("10.65.46.0/26"), next_hops=(NextHop(ipaddress.ip_address("172.31.1.254"), "eth0"),)
    )
    assert not n1.ns.routes.apply(add=[stray])
    cluster.become([*cluster.objects(*vxlan("Always")), disabled, make("GlobalNetworkSet", "x", {"nets": []})])
    assert set(n1.routes()) == {"10.65.46.0/26"}
