"""Which routes a node should have for its pods and blocks, and in which order they change."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from calipy.felix.config import FelixConfig
from calipy.felix.messages import VTEP, ClusterRoute, EndpointID, WorkloadEndpoint
from calipy.felix.ownership import owns_route
from calipy.felix.routing import GRACE, Routing
from calipy.kernel.routes import matches
from calipy.net import NextHop, Prefix, Route

NET = ipaddress.ip_network("10.0.0.5/32")


def endpoint(interface: str, *nets: str, admin_up: bool = True) -> WorkloadEndpoint:
    return WorkloadEndpoint(EndpointID("k8s", interface, "eth0"), interface, "", nets, (), (), admin_up)


def routing(**config: object) -> Routing:
    return Routing(FelixConfig(**config))  # type: ignore[arg-type]


def route(interface: str, metric: int = 1024, protocol: int = 3, net: Prefix = NET) -> Route:
    return Route(net, next_hops=(NextHop(interface=interface),), protocol=protocol, metric=metric, scope="link")


def test_a_pod_has_one_route_while_its_interface_is_up() -> None:
    """Scope link, protocol 3, metric 1024, in both families; none before the link is up or when it is disabled."""
    desired = routing()
    desired.set_endpoint(endpoint("cali1", "10.0.0.5/32", "fd00::5/128"))
    assert desired.desired(NET) is None
    desired.set_link("cali1", 7, 0)
    assert desired.desired(NET) == route("cali1")
    assert desired.desired(ipaddress.ip_network("fd00::5/128")) is not None
    desired.set_endpoint(endpoint("cali1", "10.0.0.5/32", admin_up=False))
    assert desired.desired(NET) is None


def test_conflicting_addresses_go_to_the_newest_interface() -> None:
    """The highest index wins and fails over when it goes down or away."""
    desired = routing()
    for name, index in (("cali1", 7), ("cali2", 9), ("cali3", 8)):
        desired.set_link(name, index, 0)
        desired.set_endpoint(endpoint(name, "10.0.0.5/32"))
    assert desired.desired(NET) == route("cali2")
    desired.set_link("cali2", None, 0)
    assert desired.desired(NET) == route("cali3")
    desired.remove_endpoint("cali3")
    assert desired.desired(NET) == route("cali1")


def test_the_cni_plugins_route_goes_after_ours_is_there() -> None:
    """Metric 0 and 1024 are different keys: first add, then delete, and the connections stay."""
    desired = routing()
    desired.set_link("cali1", 7, 0)
    desired.set_endpoint(endpoint("cali1", "10.0.0.5/32"))
    plan = desired.plan({NET: (route("cali1", metric=0),)}, matches)
    assert plan.replace == [route("cali1")]
    assert plan.delete_last == [route("cali1", metric=0)]
    assert not plan.delete_first
    assert not plan.forget


def test_a_moved_address_is_cut_off_forgotten_and_then_routed() -> None:
    """Nothing may follow the old route while the kernel forgets its connections."""
    desired = routing()
    desired.set_link("cali2", 8, 0)
    desired.set_endpoint(endpoint("cali2", "10.0.0.5/32"))
    plan = desired.plan({NET: (route("cali1"),)}, matches)
    assert plan.delete_first == [route("cali1")]
    assert plan.forget == [NET.network_address]
    assert plan.replace == [route("cali2")]


def test_routes_of_a_new_interface_have_grace() -> None:
    """The CNI plugin's route stays for ten seconds while the endpoint is not known, then it goes."""
    desired = routing()
    desired.set_link("cali1", 7, 100.0)
    desired.dirty.add(NET)
    assert not desired.plan({NET: (route("cali1", metric=0),)}, matches)
    assert desired.next_deadline() == 100.0 + GRACE
    assert not desired.expire(100.0 + GRACE - 1)
    assert desired.expire(100.0 + GRACE) == {"cali1"}
    assert desired.plan({NET: (route("cali1", metric=0),)}, matches).delete_first
    assert desired.next_deadline() is None


def test_a_removed_endpoint_has_no_grace() -> None:
    """Its routes go at once, though the interface is still there."""
    desired = routing()
    desired.set_link("cali1", 7, 0)
    desired.set_endpoint(endpoint("cali1", "10.0.0.5/32"))
    desired.remove_endpoint("cali1")
    assert desired.plan({NET: (route("cali1"),)}, matches).delete_first == [route("cali1")]


def test_a_cluster_route_needs_its_interface() -> None:
    """A route into a tunnel or over a link waits until that is up; a blackhole waits for nothing."""
    desired, block = routing(), ipaddress.ip_network("10.0.0.0/26")
    desired.set_cluster_route(block, ClusterRoute("ipip", "n2", "172.20.0.12"))
    assert desired.desired(block) is None
    desired.dirty.clear()
    desired.set_link("tunl0", 9, 0)
    assert desired.dirty == {block}
    found = desired.desired(block)
    assert found is not None
    assert found.next_hops == (NextHop(ipaddress.ip_address("172.20.0.12"), "tunl0", onlink=True),)
    assert desired.next_deadline() is None  # no grace: it is no pod's interface
    desired.set_cluster_route(block, ClusterRoute("ipip", "n1", local=True))
    desired.set_link("tunl0", None, 0)
    found = desired.desired(block)
    assert found is not None
    assert (found.kind, found.protocol, found.metric) == ("blackhole", 80, 0)


def test_a_local_endpoint_beats_the_cluster() -> None:
    """An address that a pod here claims leads to no other node, even while its interface is down."""
    desired = routing()
    desired.set_link("tunl0", 9, 0)
    desired.set_cluster_route(NET, ClusterRoute("ipip", "n2", "172.20.0.12", borrowed=True))
    desired.set_endpoint(endpoint("cali1", "10.0.0.5/32"))
    assert desired.desired(NET) is None
    desired.set_link("cali1", 7, 0)
    assert desired.desired(NET) == route("cali1")
    desired.remove_endpoint("cali1")
    assert desired.desired(NET) is not None


def test_a_cluster_route_is_replaced_in_place() -> None:
    """A change of next hop is one write: no moment at which the destination follows a wider route or a blackhole."""
    desired, block = routing(), ipaddress.ip_network("10.0.0.0/26")
    old = Route(block, next_hops=(NextHop(ipaddress.ip_address("172.20.0.12"), "eth0", onlink=True),))
    other_metric = replace(old, metric=1024)
    desired.set_link("tunl0", 9, 0)
    desired.set_cluster_route(block, ClusterRoute("ipip", "n2", "172.20.0.12"))
    plan = desired.plan({block: (old, other_metric)}, matches)
    assert (plan.delete_first, plan.delete_last, plan.forget) == ([], [other_metric], [])
    assert [found.next_hops[0].interface for found in plan.replace] == ["tunl0"]


def test_an_ipv6_route_is_replaced_in_place_too() -> None:
    """The kernel shows metric 0 as 1024: the one that replaces must not be taken for another, and deleted."""
    desired, block = routing(), ipaddress.ip_network("fd65::/122")
    near = ClusterRoute("none", "n2", "fd20::12", same_subnet=True)
    desired.set_nics({6: "eth1"})
    desired.set_link("eth1", 9, 0)
    desired.set_cluster_route(block, near)
    old = Route(block, next_hops=(NextHop(ipaddress.ip_address("fd20::12"), "eth0", onlink=True),), metric=1024)
    plan = desired.plan({block: (old,)}, matches)
    assert (plan.delete_first, plan.delete_last, len(plan.replace)) == ([], [], 1)


def test_an_ipv6_route_that_hides_the_gateway_goes_first() -> None:
    """The kernel refuses a gateway that the block's own old route leads to by another interface."""
    desired, block = routing(), ipaddress.ip_network("fd65::200/122")
    desired.set_link("vxlan-v6.calico", 9, 0)
    desired.set_vtep(("n2", 6), VTEP("66:00:00:00:00:02", "fd65::200", "fd20::12"))
    desired.set_cluster_route(block, ClusterRoute("vxlan", "n2", "fd20::12"))
    near = Route(block, next_hops=(NextHop(ipaddress.ip_address("fd20::12"), "eth0", onlink=True),), metric=1024)
    plan = desired.plan({block: (near,)}, matches)
    assert (plan.delete_first, plan.forget, len(plan.replace)) == ([near], [], 1)
    desired.dirty.add(block)
    reject = Route(block, "blackhole", metric=1024)
    assert not desired.plan({block: (reject,)}, matches).delete_first


def test_connections_are_forgotten_only_where_a_pod_was() -> None:
    """An address that moves between other nodes keeps its connections; one that leaves a pod here does not."""
    desired = routing()
    desired.dirty.add(NET)
    far = Route(NET, next_hops=(NextHop(ipaddress.ip_address("172.20.0.12"), "eth0", onlink=True),))
    assert not desired.plan({NET: (far,)}, matches).forget
    desired.dirty.add(NET)
    assert desired.plan({NET: (route("cali1"),)}, matches).forget == [NET.network_address]


def test_route_sync_can_be_switched_off() -> None:
    """RouteSyncDisabled: no route is ever written."""
    desired = routing(route_sync_disabled=True)
    desired.set_link("cali1", 7, 0)
    desired.set_endpoint(endpoint("cali1", "10.0.0.5/32"))
    assert not desired.plan({}, matches)


def test_which_routes_are_ours() -> None:
    """Protocol 80 always, anything on a pod's interface if external routes are to go; nothing else, ever."""

    def ours(item: Route, *, remove_external: bool = True) -> bool:
        return owns_route(item, ("cali",), protocol=3, remove_external=remove_external)

    assert ours(route("eth0", protocol=80))
    assert ours(route("cali1", protocol=4))
    assert not ours(route("cali1", protocol=4), remove_external=False)
    assert ours(route("cali1", protocol=3), remove_external=False)
    assert not ours(route("eth0"))
    assert not ours(route("cali1", net=ipaddress.ip_network("fe80::/64")))
    assert not ours(route("cali1", net=ipaddress.ip_network("ff00::/8")))


def test_what_pods_announce_is_not_ours() -> None:
    """bgpd's routes never; BIRD's on interfaces of pods that are BGP peers, and on no others."""

    def ours(item: Route, *peers: str) -> bool:
        return owns_route(item, ("cali",), protocol=3, remove_external=True, peers=peers)

    assert not ours(route("cali1", protocol=82))
    assert not ours(route("vxlan.calico", protocol=82))
    assert not ours(route("cali1", protocol=12), "cali1")
    assert ours(route("cali1", protocol=12), "cali2")
    assert ours(route("cali1", protocol=4), "cali1")


def test_routes_into_tunnels_are_ours() -> None:
    """Whatever leads into a VXLAN device but the kernel's own; BIRD's into tunl0 where IPIP routes are the agent's."""

    def ours(item: Route, *, ipip: bool = True) -> bool:
        return owns_route(item, ("cali",), protocol=3, remove_external=True, ipip=ipip)

    assert ours(route("vxlan.calico", protocol=3))
    assert not ours(route("vxlan.calico", protocol=2))
    assert not ours(route("vxlan-v6.calico", protocol=3, net=ipaddress.ip_network("fe80::/64")))
    assert ours(route("tunl0", protocol=12))
    assert not ours(route("tunl0", protocol=12), ipip=False)
    assert not ours(route("tunl0", protocol=3))
    assert not ours(route("eth0", protocol=12))
