"""Which routes a node should have for its pods and blocks, and in which order they change."""

from __future__ import annotations

import ipaddress

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.messages import EndpointID, WorkloadEndpoint
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


def test_blocks_are_blackholes_unless_they_are_one_address() -> None:
    """Protocol 80; a /32 block is the pod's own route."""
    desired = routing(block_routes=True)
    desired.set_block("10.0.0.0/26", present=True)
    desired.set_block("10.0.1.1/32", present=True)
    block = desired.desired(ipaddress.ip_network("10.0.0.0/26"))
    assert block is not None
    assert (block.kind, block.protocol) == ("blackhole", 80)
    assert desired.desired(ipaddress.ip_network("10.0.1.1/32")) is None
    desired.set_block("10.0.0.0/26", present=False)
    assert desired.desired(ipaddress.ip_network("10.0.0.0/26")) is None


@pytest.mark.parametrize(
    ("mode", "ours"), [("", 0), ("EnabledIPIPOnly", 0), ("Disabled", 0), ("Enabled", 1), ("EnabledNoEncapOnly", 1)]
)
def test_blackholes_of_blocks_are_bgps_unless_configured(mode: str, ours: int) -> None:
    """As Felix does, the agent leaves pools without encapsulation to bgpd or BIRD: a block has one blackhole."""
    desired = Routing(FelixConfig.from_parameters({"ProgramClusterRoutes": mode}))
    desired.set_block("10.0.0.0/26", present=True)
    assert len(list(desired.destinations())) == ours


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
