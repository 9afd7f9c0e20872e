"""Which destinations in the pools lead where, and which tunnels and VTEPs there are, by what the datastore says."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from calipy.felix.graph.graph import Graph
from calipy.felix.graph.tunnels import vtep_mac
from calipy.felix.messages import VTEP, ClusterRoute, Encapsulation
from tests.support.enforced import enforce
from tests.support.objects import Object, block, gone, make


def node(name: str, address: str = "", tunnel: str = "", **spec: Any) -> Object:
    bgp = {"ipv4Address": address} if address else {}
    return make("Node", name, {"bgp": bgp, **({"ipv4VXLANTunnelAddr": tunnel} if tunnel else {}), **spec})


def pool(cidr: str = "10.65.0.0/16", name: str = "p", **spec: Any) -> Object:
    return make("IPPool", name, {"cidr": cidr, **spec})


HERE = node("n1", "172.20.0.11/24", "10.65.1.0")
NEAR = node("n2", "172.20.0.12/24", "10.65.2.0")
FAR = node("n3", "172.21.0.13/24", "10.65.3.0")
BLOCKS = [block(f"10.65.{number}.0/26", f"n{number}") for number in (1, 2, 3)]
VXLAN, CROSS = pool(vxlanMode="Always"), pool(vxlanMode="CrossSubnet")


def routes(*objects: Object) -> dict[str, ClusterRoute]:
    return {str(dst): route for dst, route in enforce(objects).routes.items()}


def test_blocks_lead_to_their_nodes() -> None:
    """Every block has one destination; this node's own is local."""
    assert routes(VXLAN, HERE, NEAR, FAR, *BLOCKS) == {
        "10.65.1.0/26": ClusterRoute("vxlan", "n1", local=True),
        "10.65.2.0/26": ClusterRoute("vxlan", "n2", "172.20.0.12"),
        "10.65.3.0/26": ClusterRoute("vxlan", "n3", "172.21.0.13"),
    }


@pytest.mark.parametrize("modes", [{"vxlanMode": "CrossSubnet"}, {"ipipMode": "CrossSubnet"}])
def test_cross_subnet_tells_who_is_near(modes: dict[str, str]) -> None:
    """With CrossSubnet a node in this node's subnet is reached without encapsulation, one behind a router is not."""
    found = routes(pool(**modes), HERE, NEAR, FAR, *BLOCKS)
    assert [found[f"10.65.{number}.0/26"].same_subnet for number in (2, 3)] == [True, False]
    assert not any(route.same_subnet for route in routes(pool(**modes), NEAR, FAR, *BLOCKS).values())


def test_borrowed_addresses_lead_to_who_uses_them() -> None:
    """An address out of another node's block has a destination of its own; one that this node uses has none."""
    lends = block("10.65.2.0/26", "n2", _5="n3", _6="n1", _7="n2")
    assert routes(VXLAN, HERE, NEAR, FAR, BLOCKS[2], lends) == {
        "10.65.2.0/26": ClusterRoute("vxlan", "n2", "172.20.0.12"),
        "10.65.3.0/26": ClusterRoute("vxlan", "n3", "172.21.0.13"),
        "10.65.2.5/32": ClusterRoute("vxlan", "n3", "172.21.0.13", borrowed=True),
    }


def test_a_tunnel_address_outside_of_its_nodes_blocks() -> None:
    """It has a destination of its own, straight into the device, whether it is borrowed or a block of one address."""
    borrowed = node("n2", "172.20.0.12/24", "10.65.1.9")
    assert routes(VXLAN, HERE, borrowed, BLOCKS[0])["10.65.1.9/32"] == ClusterRoute(
        "vxlan", "n2", "172.20.0.12", borrowed=True, tunnel=True
    )
    single = node("n2", "172.20.0.12/24", "10.65.9.9")
    assert routes(VXLAN, HERE, single, block("10.65.9.9/32", "n2", _0="n2"))["10.65.9.9/32"] == ClusterRoute(
        "vxlan", "n2", "172.20.0.12", tunnel=True
    )
    assert set(routes(VXLAN, HERE, NEAR, BLOCKS[1])) == {"10.65.2.0/26"}


def test_single_address_blocks() -> None:
    """A block of one address leads to its node; this node's own is the pod's route and no destination."""
    singles = block("10.65.8.8/32", "n1"), block("10.65.9.9/32", "n2")
    assert set(routes(VXLAN, HERE, NEAR, BLOCKS[1], *singles)) == {"10.65.2.0/26", "10.65.9.9/32"}


def test_a_nodes_own_address_is_no_workloads() -> None:
    """A node whose address lies in a pool is not led into the tunnel that ends at it."""
    inside = node("n3", "10.65.2.5/24")
    assert set(routes(VXLAN, HERE, NEAR, inside, block("10.65.2.0/26", "n2", _5="n3"))) == {"10.65.2.0/26"}


def test_several_claims_on_an_address() -> None:
    """Of two nodes with one tunnel address the first by name has it, as everywhere in the cluster."""
    found = routes(VXLAN, HERE, *(node(name, "172.21.0.13/24", "10.65.1.9") for name in ("n3", "n2", "n4")))
    assert found["10.65.1.9/32"].node == "n2"


@pytest.mark.parametrize(
    ("modes", "configuration", "ours"),
    [
        ({}, "", False),
        ({}, "EnabledIPIPOnly", False),
        ({}, "Disabled", False),
        ({}, "Enabled", True),
        ({}, "EnabledNoEncapOnly", True),
        ({"ipipMode": "Always"}, "", True),
        ({"ipipMode": "Always"}, "Enabled", True),
        ({"ipipMode": "Always"}, "EnabledNoEncapOnly", False),
        ({"ipipMode": "Always"}, "Disabled", False),
        ({"vxlanMode": "Always"}, "Disabled", True),
        ({"vxlanMode": "CrossSubnet"}, "EnabledNoEncapOnly", True),
    ],
)
def test_whose_routes_they_are(modes: dict[str, str], configuration: str, *, ours: bool) -> None:
    """Routes and blackholes of VXLAN pools are Felix's always, the others as programClusterRoutes says."""
    given = [make("FelixConfiguration", "default", {"programClusterRoutes": configuration})] if configuration else []
    assert bool(routes(pool(**modes), HERE, NEAR, *BLOCKS[:2], *given)) == ours


@pytest.mark.parametrize(
    ("pools", "felix", "bgp", "told"),
    [
        ([{}], "", "", []),
        ([{"vxlanMode": "Always"}], "Enabled", "Enabled", []),
        ([{}], "Enabled", "", ["both", "without encapsulation"]),
        ([{}], "", "Disabled", ["nobody", "without encapsulation"]),
        ([{"ipipMode": "Always"}], "", "Enabled", ["both", "IPIP"]),
        ([{"ipipMode": "Always"}], "Disabled", "", ["nobody", "IPIP"]),
        ([{"ipipMode": "Always"}], "Disabled", "EnabledIPIPOnly", []),
        ([{}], "Enabled", "Disabled", []),
        ([{"allowedUses": ["LoadBalancer"]}], "Enabled", "Enabled", []),
    ],
)
def test_both_or_nobody_is_warned_of(pools: list[dict[str, Any]], felix: str, bgp: str, told: list[str]) -> None:
    """Twice the routes is a fight, none a hole; only kinds of pools that there are count."""
    graph = Graph("n1")
    for number, spec in enumerate(pools):
        graph.on_update(*pool(f"10.{number}.0.0/16", f"p{number}", **spec))
    for kind, text in (("FelixConfiguration", felix), ("BGPConfiguration", bgp)):
        graph.on_update(*make(kind, "default", {"programClusterRoutes": text} if text else {}))
    graph.on_in_sync()
    graph.flush()
    assert len(graph.warnings) == bool(told)
    assert all(word in graph.warnings[0] for word in told)


def test_without_encapsulation_only_neighbours_have_routes() -> None:
    """A router between nodes knows nothing of pods, so nothing is said of who is behind one."""
    given = make("FelixConfiguration", "default", {"programClusterRoutes": "Enabled"})
    found = routes(pool(), HERE, NEAR, FAR, *BLOCKS, given)
    assert [found[f"10.65.{number}.0/26"].same_subnet for number in (2, 3)] == [True, False]


def test_the_innermost_pool_decides() -> None:
    """Pools inside pools, and blocks that lie in none."""
    inner = pool("10.65.2.0/24", "inner", ipipMode="Always")
    found = routes(VXLAN, inner, HERE, NEAR, *BLOCKS[:2], block("10.99.0.0/26", "n2"))
    assert {dst: route.encapsulation for dst, route in found.items()} == {
        "10.65.1.0/26": "vxlan",
        "10.65.2.0/26": "ipip",
    }


def test_which_tunnels_are_needed() -> None:
    """By the pools, by family; FelixConfiguration overrides IPIP and VXLAN of IPv4."""
    assert enforce([pool()]).encapsulation == Encapsulation()
    assert enforce([CROSS]).encapsulation == Encapsulation(vxlan=True)
    assert enforce([pool("fd65::/112", vxlanMode="Always")]).encapsulation == Encapsulation(vxlan6=True)
    assert enforce([pool(ipipMode="Always")]).encapsulation == Encapsulation(ipip=True)
    four_only = make("FelixConfiguration", "default", {"ipv6Support": False})
    assert enforce([pool("fd65::/112", vxlanMode="Always"), four_only]).encapsulation == Encapsulation()
    override = make("FelixConfiguration", "default", {"ipipEnabled": True, "vxlanEnabled": False})
    assert enforce([VXLAN, override]).encapsulation == Encapsulation(ipip=True)
    assert routes(VXLAN, override, HERE, NEAR, *BLOCKS[:2]) == {}


def test_vteps() -> None:
    """Node and tunnel address of each node that has both; the MAC from the Node, or from its name as Felix makes it."""
    given = node("n3", "172.21.0.13/24", "10.65.3.0", vxlanTunnelMACAddr="66:0A:0b:0c:0d:0e")
    assert enforce([VXLAN, HERE, NEAR, given, node("n4", "172.20.0.14/24"), node("n5", "", "10.65.5.0")]).vteps == {
        ("n1", 4): VTEP("66:40:b3:ea:b6:3f", "10.65.1.0", "172.20.0.11", local=True),
        ("n2", 4): VTEP("66:40:24:34:76:fc", "10.65.2.0", "172.20.0.12"),
        ("n3", 4): VTEP("66:0a:0b:0c:0d:0e", "10.65.3.0", "172.21.0.13"),
    }
    assert enforce([pool(), HERE, NEAR]).vteps == {}
    assert vtep_mac("n2", 6) == "66:f4:09:ca:1b:0c"  # what Felix gave it


def test_an_event_costs_what_it_changes() -> None:
    """A pod's address taken from a block says nothing; one more block says one destination, whatever else there is."""
    graph = Graph("n1")
    for key, value in (VXLAN, HERE, *(node(f"n{n}", f"172.20.1.{n}/24") for n in range(2, 100))):
        graph.on_update(key, value)
    for n in range(2, 100):
        graph.on_update(*block(f"10.65.{n}.0/26", f"n{n}"))
    graph.on_in_sync()
    assert len(graph.flush().routes) == 98
    graph.on_update(*block("10.65.5.0/26", "n5", _7="n5"))
    assert not graph.flush()
    graph.on_update(*block("10.65.200.0/26", "n7"))
    assert set(graph.flush().routes) == {ipaddress.ip_network("10.65.200.0/26")}
    graph.on_update(*gone(block("10.65.200.0/26", "n7")))
    assert graph.flush().routes == {ipaddress.ip_network("10.65.200.0/26"): None}
