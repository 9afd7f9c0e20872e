"""Kernel routes that destinations in the cluster turn into."""

from __future__ import annotations

import ipaddress

import pytest

from calipy.felix.cluster_routing import ClusterRouting
from calipy.felix.messages import VTEP, ClusterRoute
from calipy.net import PROTO_FELIX, NextHop, Route

BLOCK, SINGLE = ipaddress.ip_network("10.65.2.0/26"), ipaddress.ip_network("10.65.2.5/32")
BLOCK6 = ipaddress.ip_network("fd65::/122")
VXLAN = ClusterRoute("vxlan", "n2", "172.20.0.12")
NEAR = ClusterRoute("vxlan", "n2", "172.20.0.12", same_subnet=True)
N2 = VTEP("66:00:00:00:00:02", "10.65.2.0", "172.20.0.12")


def via(gateway: str, interface: str) -> tuple[NextHop, ...]:
    return (NextHop(ipaddress.ip_address(gateway), interface, onlink=True),)


def test_into_the_vxlan_device_by_the_nodes_tunnel_address() -> None:
    """Once the node's VTEP is known, and no longer when it is gone; by family."""
    routing = ClusterRouting()
    routing.set_route(BLOCK, VXLAN)
    routing.set_route(BLOCK6, ClusterRoute("vxlan", "n2"))
    assert routing.desired(BLOCK) is None
    assert routing.set_vtep(("n2", 4), N2) == {BLOCK}
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("10.65.2.0", "vxlan.calico"), protocol=PROTO_FELIX)
    routing.set_vtep(("n2", 6), VTEP("66:00:00:00:00:06", "fd65::1", "fd20::12"))
    assert routing.desired(BLOCK6) == Route(BLOCK6, next_hops=via("fd65::1", "vxlan-v6.calico"), metric=1024)
    assert routing.set_vtep(("n2", 4), None) == {BLOCK}
    assert routing.desired(BLOCK) is None


def test_on_the_same_subnet_by_the_node_itself() -> None:
    """Through the interface with this node's address; into the tunnel while that is not known."""
    routing = ClusterRouting()
    routing.set_route(BLOCK, NEAR)
    routing.set_vtep(("n2", 4), N2)
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("10.65.2.0", "vxlan.calico"))
    assert routing.set_nics({4: "eth0"}) == {BLOCK}
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("172.20.0.12", "eth0"))
    assert routing.set_nics({4: "eth0"}) == set()
    assert routing.set_nics({4: "bond0"}) == {BLOCK}
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("172.20.0.12", "bond0"))
    assert routing.leads_through("bond0")
    assert not routing.leads_through("eth0")


def test_a_tunnel_address_is_the_device_itself() -> None:
    """No gateway, link scope: it would be its own."""
    routing = ClusterRouting()
    routing.set_route(SINGLE, ClusterRoute("vxlan", "n2", "172.20.0.12", borrowed=True, tunnel=True))
    assert routing.desired(SINGLE) == Route(SINGLE, next_hops=(NextHop(interface="vxlan.calico"),), scope="link")


def test_ipip_goes_by_the_node_into_the_device() -> None:
    """The gateway is the outer address; on the same subnet the interface replaces the device."""
    routing = ClusterRouting()
    routing.set_route(BLOCK, ClusterRoute("ipip", "n2", "172.20.0.12"))
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("172.20.0.12", "tunl0"))
    routing.set_nics({4: "eth0"})
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("172.20.0.12", "tunl0"))
    routing.set_route(BLOCK, ClusterRoute("ipip", "n2", "172.20.0.12", same_subnet=True))
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("172.20.0.12", "eth0"))
    routing.set_route(BLOCK, ClusterRoute("ipip", "n2"))
    assert routing.desired(BLOCK) is None


def test_without_encapsulation() -> None:
    """A neighbour is its own gateway; behind a router there is no way."""
    routing = ClusterRouting()
    routing.set_nics({4: "eth0"})
    routing.set_route(BLOCK, ClusterRoute("none", "n2", "172.20.0.12", same_subnet=True))
    assert routing.desired(BLOCK) == Route(BLOCK, next_hops=via("172.20.0.12", "eth0"))
    routing.set_route(BLOCK, ClusterRoute("none", "n2", "172.21.0.12"))
    assert routing.desired(BLOCK) is None


@pytest.mark.parametrize("encapsulation", ["vxlan", "ipip", "none"])
def test_own_blocks_are_blackholes(encapsulation: str) -> None:
    """Of metric 0, as Felix's; a block of one address never is: it would stand against the pod's own route."""
    routing = ClusterRouting()
    local = ClusterRoute(encapsulation, "n1", local=True)  # type: ignore[arg-type]
    routing.set_route(BLOCK, local)
    routing.set_route(SINGLE, local)
    assert routing.desired(BLOCK) == Route(BLOCK, "blackhole", protocol=PROTO_FELIX)
    assert routing.desired(SINGLE) is None
    routing.set_route(BLOCK, None)
    assert routing.desired(BLOCK) is None
