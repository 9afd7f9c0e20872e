"""Whole networks of nodes, simulated: mesh and reflectors end in the same tables, failures leave no ghosts."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from calipy.bgp import plan
from calipy.datastore import codec
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, NodeBGPSpec, NodeSpec
from tests.support.bgp_network import Network, mesh, reflected


@given(st.integers(3, 8), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_reflectors_give_the_same_tables_as_a_mesh(size: int, reflectors: int, chance: random.Random) -> None:
    """Whatever the order of speaking, every node reaches every block at its owner; so does a mesh of the same nodes."""
    behind, direct = Network(reflected(size + reflectors, reflectors)), Network(mesh(size + reflectors))
    behind.converge(chance)
    direct.converge(chance)
    for name in direct.ribs:
        assert behind.table(name) == direct.table(name)
        assert len(direct.table(name)) == size + reflectors - 1


@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_failures_leave_no_ghosts(chance: random.Random) -> None:
    """Of two reflectors one may fail, and any client: what is left reaches what is left, and nothing else."""
    network = Network(reflected(9, 2))
    network.converge(chance)
    network.fail([chance.choice(["n0", "n1"]), chance.choice(["n5", "n6", "n7"])])
    network.converge(chance)
    left = {network.blocks[name] for name in network.ribs}
    for name in network.ribs:
        assert set(network.table(name)) == left - {network.blocks[name]}


def resources(chance: random.Random) -> dict[plan.ResourceKey, Any]:
    """A small cluster with racks, reflectors here and there, and peerings between them at random."""
    found: dict[plan.ResourceKey, Any] = {}
    for i in range(chance.randint(3, 8)):
        reflects = chance.random() < 0.4
        labels = {"rack": chance.choice("ab")} | ({"rr": "yes"} if reflects else {})
        bgp = NodeBGPSpec(
            ipv4_address=f"10.1.0.{i + 1}/16",
            route_reflector_cluster_id=f"244.0.0.{chance.randint(1, 2)}" if reflects else "",
        )
        found["Node", f"n{i}"] = codec.new("Node", f"n{i}", NodeSpec(bgp=bgp), labels=labels)
    selectors = ["all()", "has(rr)", "rack == 'a'", "rack == 'b'", "has(rr) && rack == 'a'", "!has(rr)"]
    for i in range(chance.randint(0, 4)):
        spec = BGPPeerSpec(node_selector=chance.choice(selectors), peer_selector=chance.choice(selectors))
        found["BGPPeer", f"p{i}"] = codec.new("BGPPeer", f"p{i}", spec)
    configuration = BGPConfigurationSpec(node_to_node_mesh_enabled=chance.random() < 0.2)
    found["BGPConfiguration", "default"] = codec.new("BGPConfiguration", "default", configuration)
    return found


@given(st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_islands_are_those_of_the_network(chance: random.Random) -> None:
    """``bgp plan`` calls nodes one island if and only if, in the network of these resources, all hear of each other."""
    found = resources(chance)
    network = Network(plan.inputs(found)[0])
    network.converge(chance)
    for group in plan.graph(found).islands[4]:
        for name in group:
            heard = set(network.table(name))
            assert {network.blocks[other] for other in group - {name}} <= heard
    groups = plan.graph(found).islands[4]
    if len(groups) > 1:
        everybody = set(network.blocks.values())
        assert any(set(network.table(name)) | {network.blocks[name]} != everybody for name in network.ribs)
