"""The peering graph that a change leads to: sessions added, removed, changed, kept; islands refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calipy.bgp.cluster import ANNOTATION
from calipy.bgp.plan import Link, ResourceKey, graph, plan
from calipy.cli.bgp import command
from calipy.cli.session import Session, open_client
from calipy.datastore import codec
from calipy.datastore.memory import MemoryStore
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, NodeBGPSpec, NodeSpec
from calipy.errors import InvalidInputError

Resources = dict[ResourceKey, Any]


def node(number: int, *, rr: bool = False, six: bool = False, **labels: str) -> Resources:
    """A node, perhaps a reflector."""
    name = f"n{number}"
    spec = NodeBGPSpec(
        ipv4_address=f"10.0.{number >> 8}.{number & 255}/16",
        ipv6_address=f"fd00::{number}/64" if six else "",
        route_reflector_cluster_id="244.0.0.1" if rr else "",
    )
    chosen = labels | ({"rr": "yes"} if rr else {})
    return {("Node", name): codec.new("Node", name, NodeSpec(bgp=spec), labels=chosen)}


def peer(name: str, **fields: Any) -> Resources:
    """A BGPPeer."""
    return {("BGPPeer", name): codec.new("BGPPeer", name, BGPPeerSpec(**fields))}


def configuration(annotations: dict[str, str] | None = None, **fields: Any) -> Resources:
    """The cluster's BGPConfiguration."""
    spec = BGPConfigurationSpec(**fields)
    return {
        ("BGPConfiguration", "default"): codec.new("BGPConfiguration", "default", spec, annotations=annotations or {})
    }


NO_MESH = configuration(node_to_node_mesh_enabled=False)
THREE = node(1) | node(2) | node(3)
TO_REFLECTORS = peer("rr", node_selector="all()", peer_selector="has(rr)")


def islands(resources: Resources, family: int = 4) -> list[list[str]]:
    """Groups of nodes."""
    return [sorted(group) for group in graph(resources).islands[4 if family == 4 else 6]]


def test_a_node_joins_a_mesh() -> None:
    """Its sessions are added, the others kept."""
    found = plan(THREE, THREE | node(4))
    assert found.added == (Link("n1", "n4", 4), Link("n2", "n4", 4), Link("n3", "n4", 4))
    assert (len(found.kept), found.removed, found.changed, found.refusals) == (3, (), (), ())


def test_the_mesh_without_anything_else_is_not_switched_off() -> None:
    """Every node would be an island: refused, with the names."""
    found = plan(THREE, THREE | NO_MESH)
    assert (len(found.removed), found.refusals) == (
        3,
        ("IPv4: 3 groups of nodes would not hear of each other: [n1]; [n2]; [n3]",),
    )


def test_from_mesh_to_reflectors() -> None:
    """With reflectors in place the mesh can go; without the BGPPeer the reflectors are islands."""
    nodes = node(1) | node(2) | node(8, rr=True) | node(9, rr=True)
    with_peer = plan(nodes, nodes | TO_REFLECTORS)
    assert with_peer.refusals == ()
    assert len(with_peer.added) == 5
    done = plan(nodes | TO_REFLECTORS, nodes | TO_REFLECTORS | NO_MESH)
    assert (done.removed, done.refusals) == ((Link("n1", "n2", 4),), ())
    assert islands(nodes | NO_MESH) == [["n1"], ["n2"], ["n8"], ["n9"]]


def test_a_hub_that_is_no_reflector_connects_nobody() -> None:
    """What comes by iBGP is not passed on: the spokes do not hear of each other."""
    hub = peer("a", node="n1", peer_ip="10.0.0.2", as_number=64512) | peer(
        "b", node="n1", peer_ip="10.0.0.3", as_number=64512
    )
    assert islands(THREE | NO_MESH | hub) == [["n1", "n2"], ["n3"]]
    reflecting = node(1, rr=True) | node(2) | node(3)
    assert islands(reflecting | NO_MESH | hub) == [["n1", "n2", "n3"]]


def test_the_fabric_connects_its_peers() -> None:
    """Nodes that peer with routers outside are no islands; one that does not is."""
    racks = node(1, rack="a") | node(2, rack="b") | node(3) | NO_MESH
    tors = peer("a", node_selector="rack == 'a'", peer_ip="10.1.0.1", as_number=65001) | peer(
        "b", node_selector="rack == 'b'", peer_ip="10.2.0.1", as_number=65002
    )
    assert islands(racks | tors) == [["n1", "n2"], ["n3"]]


def test_each_family_by_itself() -> None:
    """Nodes without an address of a family are no islands of it."""
    assert islands(node(1, six=True) | node(2, six=True) | node(3), 6) == [["n1", "n2"]]


def test_cluster_routes_of_the_datastore_need_no_session() -> None:
    """The mesh goes, and nobody is an island."""
    found = plan(THREE, THREE | configuration({ANNOTATION: "datastore"}))
    assert (len(found.removed), found.refusals, found.after.islands) == (3, (), {})
    with pytest.raises(InvalidInputError, match="clusterRoutes"):
        plan(THREE, THREE | configuration({ANNOTATION: "etcd"}))


def test_what_takes_a_session_down_and_what_does_not() -> None:
    """Another AS is another session; a filter is not."""
    tor = {"peer_ip": "10.1.0.1", "as_number": 65001}
    before = THREE | peer("tor", **tor)
    assert plan(before, THREE | peer("tor", **tor, filters=("f",))).changed == ()
    assert len(plan(before, THREE | peer("tor", **{**tor, "as_number": 65002})).changed) == 3


def test_one_sided_sessions() -> None:
    """A session that the other end does not want is shown, and connects nobody."""
    lonely = peer("one", node="n1", peer_ip="10.0.0.2", as_number=64512, reverse_peering="Manual")
    found = graph(THREE | NO_MESH | lonely)
    assert found.one_sided == {Link("n1", "n2", 4)}
    assert len(found.islands[4]) == 3


def test_old_islands_do_not_refuse() -> None:
    """A change that does not touch islands of before is not refused for them."""
    before = THREE | NO_MESH
    assert plan(before, before | peer("tor", node="n1", peer_ip="10.1.0.1", as_number=65001)).refusals == ()


def test_a_mesh_of_two_hundred_is_planned_in_seconds() -> None:
    """19,900 sessions twice; the bound is generous, the cost is that of the mesh."""
    many: Resources = {}
    for number in range(1, 201):
        many |= node(number)
    started = time.process_time()
    assert len(plan(many, many | node(300)).added) == 200
    assert time.process_time() - started < 15


class Given(Session):
    """The session of a test: one store for all commands."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store

    def run(self, work: Any) -> Any:
        import asyncio

        return asyncio.run(work(open_client(self._store)))


def test_the_command(tmp_path: Path) -> None:
    """Reads the datastore, writes nothing, exits with 1 when it refuses; a file without BGP is an error."""
    session = Given(MemoryStore())

    async def fill(client: Any) -> None:
        await client.ensure_initialised()
        for resource in THREE.values():
            await client.create(resource)

    session.run(fill)
    file = tmp_path / "change.yaml"
    file.write_text(
        "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\n"
        "spec: {nodeToNodeMeshEnabled: false}\n"
    )
    done = CliRunner().invoke(command, ["plan", "-f", str(file)], obj=session)
    assert done.exit_code == 1, done.output
    assert "REFUSED: IPv4: 3 groups" in done.output
    assert "0 added, 3 removed, 0 changed, 0 kept" in done.output
    shown = CliRunner().invoke(command, ["plan", "-f", str(file), "-o", "json"], obj=session)
    assert json.loads(shown.output)["islands"] == {"IPv4": [["n1"], ["n2"], ["n3"]]}

    async def read(client: Any) -> Any:
        return await client.get("BGPConfiguration", "default")

    assert session.run(read) is None
    deletion = CliRunner().invoke(command, ["plan", "-f", str(file), "--delete"], obj=session)
    assert (deletion.exit_code, "No session changes." in deletion.output) == (0, True)
    file.write_text("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.0.0.0/16}\n")
    assert isinstance(CliRunner().invoke(command, ["plan", "-f", str(file)], obj=session).exception, InvalidInputError)
