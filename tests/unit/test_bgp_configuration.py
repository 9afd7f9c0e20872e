"""Every field of BGPConfiguration: what it does in ``default``, and whether ``node.<name>`` may say something else."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import msgspec
import pytest

from calipy.bgp.fib import Programming
from calipy.bgp.peering_model import WorkloadPeer
from calipy.bgp.view import View
from calipy.datastore import codec, keys
from calipy.datastore.ipam import BlockAffinity
from calipy.datastore.resources import (
    BGPConfigurationSpec,
    BGPPassword,
    BGPPeerSpec,
    CIDRBlock,
    Community,
    IPPoolSpec,
    NodeBGPSpec,
    NodeSpec,
    PrefixAdvertisement,
)
from calipy.datastore.resources import SecretKeySelector as Secret
from calipy.net import NextHop, Route

POD = WorkloadPeer("pods", (ip_address("10.244.1.5"), ip_address("fd00:244::5")))
BASE: dict[str, Any] = {
    "service_load_balancer_ips": (CIDRBlock(cidr="10.98.0.0/16"),),
    "communities": (Community(name="c", value="1:1"),),
    "prefix_advertisements": (PrefixAdvertisement(cidr="10.244.0.0/16", communities=("c",)),),
    "local_workload_peering_ipv4": "169.254.0.179",
}
OWN = "10.244.1.0/26"


def view(default: Mapping[str, Any] | None = None, **by_name: Mapping[str, Any]) -> View:
    """n1 in a cluster with n2, a peer, pools, a block, a pod that is a peer, and these configurations."""
    made = View("n1")
    configurations: dict[str, Mapping[str, Any]] = {"default": {**BASE, **(default or {})}}
    configurations |= {f"node.{name}": spec for name, spec in by_name.items()}
    for name, fields in configurations.items():
        value = codec.new("BGPConfiguration", name, BGPConfigurationSpec(**fields))
        made.on_update(keys.ResourceKey("BGPConfiguration", name), value)
    for name, number in (("n1", 1), ("n2", 2)):
        bgp = NodeBGPSpec(ipv4_address=f"10.0.0.{number}/24")
        made.on_update(keys.ResourceKey("Node", name), codec.new("Node", name, NodeSpec(bgp=bgp)))
    pods = BGPPeerSpec(local_workload_selector="all()", as_number=65401)
    made.on_update(keys.ResourceKey("BGPPeer", "pods"), codec.new("BGPPeer", "pods", pods))
    pools = {"flat": IPPoolSpec(cidr="10.244.0.0/16"), "six": IPPoolSpec(cidr="fd00:244::/64")}
    for name, pool in pools.items():
        made.on_update(keys.ResourceKey("IPPool", name), codec.new("IPPool", name, pool))
    for cidr in (OWN, "fd00:244::/122"):
        made.on_update(keys.BlockAffinityKey("n1", cidr), BlockAffinity(state="confirmed"))
    made.set_workloads((POD,))
    return made


class Effect(NamedTuple):
    """All that follows from the configurations."""

    peering: Any
    originated: Any
    services: Any
    programming: Any
    listen: Any
    log_level: str


def effect(made: View) -> Effect:
    """What a view says now."""
    return Effect(
        made.peering(),
        made.originated(),
        made.service_ranges(),
        made.programming(),
        made.listen_addresses(),
        made.log_level(),
    )


class Field(NamedTuple):
    """A field, two values of it that mean something else than ``BASE``, and whether it counts for one node alone."""

    name: str
    value: Any
    other: Any
    per_node: bool = False
    of_peers: bool = False  # what another node's object says counts here: the port to dial


SECRETS = [BGPPassword(secret_key_ref=Secret(name="s", key=key)) for key in "ab"]
FIELDS = [
    Field("log_severity_screen", "Debug", "Error", per_node=True),
    Field("node_to_node_mesh_enabled", False, False),
    Field("as_number", 65000, 65001),
    Field("service_load_balancer_ips", (CIDRBlock(cidr="10.1.0.0/16"),), ()),
    Field("service_external_ips", (CIDRBlock(cidr="10.2.0.0/16"),), (CIDRBlock(cidr="10.3.0.0/16"),)),
    Field("service_cluster_ips", (CIDRBlock(cidr="10.4.0.0/16"),), (CIDRBlock(cidr="10.5.0.0/16"),)),
    Field("service_load_balancer_aggregation", "Disabled", "Disabled"),
    Field("communities", (Community(name="c", value="1:2"),), (Community(name="c", value="1:3"),)),
    Field(
        "prefix_advertisements",
        (PrefixAdvertisement(cidr="10.244.0.0/16", communities=("2:2",)),),
        (PrefixAdvertisement(cidr="10.244.0.0/16", communities=("3:3",)),),
        per_node=True,
    ),
    Field("listen_port", 1790, 2790, per_node=True, of_peers=True),
    Field("node_mesh_password", *SECRETS),
    Field("node_mesh_max_restart_time", "30s", "40s"),
    Field("bind_mode", "NodeIP", "NodeIP"),
    Field("ignored_interfaces", ("docker*",), ("br*",)),
    Field("local_workload_peering_ipv4", "169.254.0.1", "169.254.0.2"),
    Field("local_workload_peering_ipv6", "fd12::1", "fd12::2"),
    Field("program_cluster_routes", "Disabled", "EnabledIPIPOnly"),
    Field("ipv4_normal_route_priority", 500, 600),
    Field("ipv6_normal_route_priority", 500, 600),
]


def test_every_field_is_here() -> None:
    """Nothing is left out, so that a new field of Calico's cannot be overlooked."""
    known = {one.name for one in msgspec.structs.fields(BGPConfigurationSpec)} - {"unknown"}
    assert {one.name for one in FIELDS} == known


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_field_counts_where_calico_has_it_count(field: Field) -> None:
    """In ``default`` always; in this node's object, before ``default``, where a node may differ; in others' never."""
    plain = effect(view())
    in_default = effect(view({field.name: field.value}))
    assert in_default != plain
    alone = effect(view(n1={field.name: field.value}))
    assert (alone != plain) == field.per_node
    if field.per_node and not field.of_peers:
        assert alone == in_default
    before = effect(view({field.name: field.other}, n1={field.name: field.value}))
    beneath = effect(view({field.name: field.other}))
    assert (before != beneath) == field.per_node
    assert (effect(view(n2={field.name: field.value})) != plain) == field.of_peers


def test_names_of_communities_are_those_of_the_same_object() -> None:
    """A node's own advertisements use its own names; the cluster's are not changed by them."""
    name = (Community(name="c", value="7:7"),)
    own = (PrefixAdvertisement(cidr="10.244.0.0/16", communities=("c",)),)
    assert effect(view(n1={"communities": name})) == effect(view())
    both = view(n1={"communities": name, "prefix_advertisements": own})
    assert both.originated() == view({"communities": name}).originated()
    lacking = view(n1={"prefix_advertisements": own})
    assert lacking.originated().communities == type(lacking.originated().communities)()
    assert "'c'" in lacking.problems["BGPConfiguration communities"]


def test_local_preference_and_metric_belong_together() -> None:
    """They add up to 2147483647, for each family by itself: the receiver's kernel metric follows from it in Calico."""
    made = view({"ipv4_normal_route_priority": 500})
    sessions = made.peering().sessions
    told = made.originated().exports(sessions[ip_address("10.0.0.2")], ip_address("10.0.0.1"))
    assert told[ip_network(OWN)].local_preference == 2147483647 - 500
    assert made.programming().metric == {4: 500, 6: 1024}


def test_ignored_interfaces_lead_to_no_next_hop() -> None:
    """The subnet of such an interface does not count, by pattern; routes by way of a router there do."""
    programming = Programming(ignored=("docker*", "br0"))

    def route(interface: str, protocol: int = 2, gateway: str = "") -> Route:
        hop = NextHop(ip_address(gateway) if gateway else None, interface)
        return Route(ip_network("10.9.0.0/24"), "unicast", (hop,), protocol)

    assert programming.ignores(route("docker0"))
    assert programming.ignores(route("br0"))
    assert not programming.ignores(route("br01"))
    assert not programming.ignores(route("docker0", protocol=4, gateway="10.9.9.9"))
    assert not Programming().ignores(route("docker0"))


def test_the_families_that_are_listened_to() -> None:
    """Those of the node's addresses, and of the addresses for workloads; with NodeIP the node's alone."""
    assert [str(one) for one in view().listen_addresses()] == ["0.0.0.0"]
    assert [str(one) for one in view({"local_workload_peering_ipv6": "fd12::1"}).listen_addresses()] == [
        "0.0.0.0",
        "::",
    ]
    assert [str(one) for one in view({"bind_mode": "NodeIP"}).listen_addresses()] == ["10.0.0.1"]
