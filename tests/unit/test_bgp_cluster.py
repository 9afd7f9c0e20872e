"""Cluster routes from the datastore: the same routes as BGP would bring, and a change-over without a gap."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calipy.bgp.advertise import Pools
from calipy.bgp.cluster import DATASTORE, MESH_LINGERS, ClusterRoutes, ClusterTable
from calipy.bgp.importing import ImportPolicy
from calipy.bgp.path import NORMAL_LOCAL_PREFERENCE, Attributes, Peer
from calipy.bgp.peering import Session
from calipy.bgp.reflect import Reflector
from calipy.bgp.rib import EOR_WAIT, Rib
from calipy.bgp.view import View
from calipy.datastore import codec, keys
from calipy.datastore.ipam import AllocationAttribute, Block, BlockAffinity
from calipy.datastore.resources import BGPConfigurationSpec, IPPoolSpec, NodeBGPSpec, NodeSpec
from calipy.errors import InvalidInputError
from calipy.net import Prefix
from calipy.node.settings import NodeSettings

BLOCKS = ("10.244.0.0/26", "10.244.0.64/26", "fd00:10::/122")
NODES = ("n1", "n2", "n3")
N2 = ip_address("10.0.0.2")


def net(text: str) -> Prefix:
    """A prefix."""
    return ip_network(text)


def block(cidr: str, owner: str | None, used: dict[int, str]) -> Block:
    """A block; ``used`` maps ordinals to the nodes that use them."""
    users = sorted(set(used.values()))
    return Block(
        cidr=cidr,
        affinity=owner and f"host:{owner}",
        allocations=tuple(users.index(used[i]) if i in used else None for i in range(64)),
        attributes=tuple(AllocationAttribute(handle_id="h", secondary={"node": user}) for user in users),
    )


def node(name: str, *, there: bool = True) -> tuple[keys.Key, Any]:
    """A node with addresses of both families, or its removal."""
    number = name[1:]
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"10.0.0.{number}/24", ipv6_address=f"fd00::{number}/64"))
    return keys.ResourceKey("Node", name), codec.new("Node", name, spec) if there else None


def view(hostname: str) -> View:
    """A node's view with two pools and nothing else."""
    made = View(hostname)
    for name, cidr, size in (("v4", "10.244.0.0/16", 26), ("v6", "fd00:10::/48", 122)):
        made.on_update(
            keys.ResourceKey("IPPool", name), codec.new("IPPool", name, IPPoolSpec(cidr=cidr, block_size=size))
        )
    return made


def routes(table: ClusterTable) -> dict[Prefix, Attributes]:
    """Everything that the table holds, after all changes."""
    table.take()
    return dict(table.routes())


def add(taken: dict[Prefix, Attributes], changes: Mapping[Prefix, Attributes | None]) -> None:
    """Put changes into what was taken before."""
    for dst, attributes in changes.items():
        if attributes is None:
            taken.pop(dst, None)
        else:
            taken[dst] = attributes


_owner = st.sampled_from((None, *NODES))
_used = st.dictionaries(st.integers(0, 63), st.sampled_from(NODES), max_size=3)
_event = st.one_of(
    st.builds(
        lambda cidr, owner, used: (keys.BlockKey(cidr), block(cidr, owner, used)),
        st.sampled_from(BLOCKS),
        _owner,
        _used,
    ),
    st.builds(lambda cidr: (keys.BlockKey(cidr), None), st.sampled_from(BLOCKS)),
    st.builds(
        lambda host, cidr, state: (keys.BlockAffinityKey(host, cidr), BlockAffinity(state=state) if state else None),
        st.sampled_from(NODES),
        st.sampled_from(BLOCKS),
        st.sampled_from(("confirmed", "confirmed", "pending", "pendingDeletion", "")),
    ),
    st.builds(lambda name, there: node(name, there=there), st.sampled_from(NODES), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_event, max_size=25), st.data())
def test_the_same_routes_as_by_bgp(events: list[tuple[keys.Key, Any]], data: st.DataObject) -> None:
    """For any history: the routes are what the other nodes would announce, and the differences add up to them."""
    views = {name: view(name) for name in NODES}
    table = views["n1"].cluster
    taken: dict[Prefix, Attributes] = {}
    for key, value in (*[node(name) for name in NODES], *events):
        for one in views.values():
            one.on_update(key, value)
        if data.draw(st.booleans()):
            add(taken, table.take())
    announced: dict[Prefix, set[str]] = {}
    for name in ("n2", "n3"):
        own = views[name].node
        if own is not None:
            for prefix in views[name].originated().prefixes():
                announced.setdefault(prefix, set()).add(str(own.address(4 if prefix.version == 4 else 6)))
    add(taken, table.take())
    found = routes(table)
    assert taken == found
    claims = [block for one in views.values() for block in one.own_blocks()]
    contested = {block for block in claims if claims.count(block) > 1}  # no block says whose it is: a fault in IPAM
    refused = views["n1"].own_prefixes() | contested  # on import, whoever tells of them
    assert found.keys() - refused == announced.keys() - refused
    assert all(str(found[dst].next_hop) in announced[dst] for dst in found.keys() - refused)


def test_an_event_that_changes_no_route_is_no_change() -> None:
    """A pod of another node in that node's own block marks nothing to tell the RIB."""
    made = view("n1")
    for key, value in (node("n2"), (keys.BlockAffinityKey("n2", BLOCKS[0]), BlockAffinity())):
        made.on_update(key, value)
    made.on_update(keys.BlockKey(BLOCKS[0]), block(BLOCKS[0], "n2", {}))
    assert set(made.cluster.take()) == {net(BLOCKS[0])}
    made.on_update(keys.BlockKey(BLOCKS[0]), block(BLOCKS[0], "n2", {1: "n2"}))
    assert made.cluster.take() == {}
    made.on_update(keys.BlockKey(BLOCKS[0]), block(BLOCKS[0], "n2", {1: "n2", 2: "n3"}))
    made.on_update(*node("n3"))
    assert set(made.cluster.take()) == {net("10.244.0.2/32")}


def policy(peer: Peer, prefix: Prefix, attributes: Attributes) -> tuple[str, Attributes]:
    """Everything in 10.244.0.0/16 is believed."""
    return (
        "" if peer != DATASTORE else ImportPolicy(pools=Pools((net("10.244.0.0/16"),)))(peer, prefix, attributes)[0]
    ), attributes


def started() -> tuple[Rib, ClusterTable, ClusterRoutes]:
    """A RIB and a table in which n2 owns the first block."""
    rib, made = Rib(policy), view("n1")
    for key, value in (node("n2"), (keys.BlockAffinityKey("n2", BLOCKS[0]), BlockAffinity())):
        made.on_update(key, value)
    rib.set_metrics({N2: 0})
    return rib, made.cluster, ClusterRoutes(made.cluster, rib)


def best(rib: Rib, prefix: str = BLOCKS[0]) -> tuple[str, bool] | None:
    """Next hop of the best path, and whether it is stale."""
    rib.set_metrics(dict.fromkeys(rib.next_hops(), 0))
    rib.take_changes()
    found = rib.best(net(prefix))
    return (str(found.path.attributes.next_hop), found.path.stale) if found else None


def test_by_bgp_nothing_comes_from_the_datastore() -> None:
    """The default leaves the RIB to BGP, and the mesh as it is."""
    rib, _, cluster = started()
    cluster.choose("bgp", 0.0)
    cluster.feed()
    assert (best(rib), cluster.mesh(), cluster.retaining) == (None, True, False)


def test_a_start_with_the_datastore_has_no_mesh() -> None:
    """A node that starts this way never asks for the mesh; one that changes keeps it for a while."""
    rib, _, cluster = started()
    assert cluster.choose("datastore", 0.0)
    assert (best(rib), cluster.mesh()) == (("10.0.0.2", False), False)
    _, _, changing = started()
    changing.choose("bgp", 0.0)
    assert changing.choose("datastore", 5.0)
    assert changing.mesh()
    assert changing.next_deadline() == 5.0 + MESH_LINGERS
    assert not changing.choose("datastore", 6.0)
    assert changing.choose("datastore", 5.0 + MESH_LINGERS)
    assert not changing.mesh()


def test_the_mesh_goes_by_the_cluster_not_by_the_node() -> None:
    """A node that reads the datastore among others that do not keeps its sessions with them, and vice versa."""
    rib, _, cluster = started()
    assert cluster.choose("bgp", 0.0, "bgp")
    assert cluster.choose("datastore", 1.0, "bgp")
    assert (best(rib), cluster.mesh(), cluster.next_deadline()) == (("10.0.0.2", False), True, None)
    assert not cluster.choose("datastore", 100.0, "bgp")
    assert cluster.mesh()
    assert cluster.choose("datastore", 101.0, "datastore")
    assert cluster.mesh()
    assert cluster.choose("datastore", 101.0 + MESH_LINGERS, "datastore")
    assert not cluster.mesh()
    assert cluster.choose("bgp", 200.0, "datastore")
    assert not cluster.mesh()
    assert cluster.choose("bgp", 201.0, "bgp")
    assert cluster.mesh()


def test_back_to_bgp_a_route_stays_until_bgp_has_it() -> None:
    """Its path is stale, gives way to BGP's, goes when the datastore takes it back, and at the latest in time."""
    rib, table, cluster = started()
    cluster.choose("datastore", 0.0)
    cluster.choose("bgp", 10.0)
    assert (best(rib), cluster.retaining) == (("10.0.0.2", True), True)
    peer = Peer(N2, 64512, 64512, IPv4Address(2))
    rib.peer_up(peer, 11.0)
    rib.announce(N2, net(BLOCKS[0]), Attributes(N2, local_preference=NORMAL_LOCAL_PREFERENCE))
    assert best(rib) == ("10.0.0.2", False)
    rib.withdraw(N2, net(BLOCKS[0]))
    assert best(rib) == ("10.0.0.2", True)
    table.on_affinity("n3", net(BLOCKS[1]), confirmed=True)
    table.on_affinity("n2", net(BLOCKS[0]), confirmed=False)
    cluster.feed()
    assert (best(rib), best(rib, BLOCKS[1])) == (None, None), "what is new is left to BGP"
    assert not cluster.release(12.0, told=False)
    assert cluster.release(10.0 + EOR_WAIT, told=False)
    assert not cluster.retaining


def test_only_pools_and_nothing_of_ones_own() -> None:
    """Blocks of no pool are not routed, nor prefixes that are this node's own."""
    judge = ImportPolicy(pools=Pools((net("10.244.0.0/16"),)), own_prefixes=frozenset({net(BLOCKS[0])}))
    attributes = Attributes(N2)
    assert judge(DATASTORE, net(BLOCKS[1]), attributes)[0] == ""
    assert judge(DATASTORE, net(BLOCKS[0]), attributes)[0] == "own prefix"
    assert judge(DATASTORE, net("172.16.0.0/26"), attributes)[0] == "in no IP pool"


def test_a_reflector_passes_them_on_as_a_clients() -> None:
    """With the owner as originator, so that it knows its own; a node that is no reflector passes nothing on."""
    rib, _, cluster = started()
    cluster.choose("datastore", 0.0)
    best(rib)
    client = Session(ip_address("10.0.0.3"), "global", 64512, 64512, IPv4Address(1), ip_address("10.0.0.1"))
    here = ip_address("10.0.0.1")
    told = Reflector(IPv4Address(9), lambda _: True).exports(rib.loc_rib(), client, here)[net(BLOCKS[0])]
    assert (str(told.next_hop), str(told.originator_id), told.cluster_list) == (
        "10.0.0.2",
        "10.0.0.2",
        (IPv4Address(9),),
    )
    assert Reflector(None, lambda _: True).exports(rib.loc_rib(), client, here) == {}


def annotated(value: str) -> codec.Value:
    """A BGPConfiguration with the annotation."""
    return codec.new(
        "BGPConfiguration", "default", BGPConfigurationSpec(), annotations={"calipy.io/clusterRoutes": value}
    )


def test_the_node_decides_before_the_cluster() -> None:
    """The node's own setting, else the annotation, else BGP; a word nobody knows is a problem, and changes nothing."""
    made, key = view("n1"), keys.ResourceKey("BGPConfiguration", "default")
    assert made.cluster_routes() == "bgp"
    made.on_update(key, annotated("datastore"))
    assert (made.cluster_routes(), made.cluster_routes("bgp")) == ("datastore", "bgp")
    made.on_update(key, annotated("etcd"))
    assert made.cluster_routes() == "datastore"
    assert "'etcd'" in made.problems["clusterRoutes"]
    made.on_update(key, None)
    assert made.cluster_routes() == "bgp"
    assert "clusterRoutes" not in made.problems


def test_the_variable_is_checked() -> None:
    """A value that is neither bgp nor datastore ends the start with its name."""
    assert (
        NodeSettings.from_environment({"NODENAME": "n1", "CALIPY_CLUSTER_ROUTES": "datastore"}).cluster_routes
        == "datastore"
    )
    with pytest.raises(InvalidInputError, match="CALIPY_CLUSTER_ROUTES"):
        NodeSettings.from_environment({"NODENAME": "n1", "CALIPY_CLUSTER_ROUTES": "etcd"})


def test_a_block_that_several_nodes_claim_is_named() -> None:
    """Both may announce it: prefix, nodes, whose it is by the block, and the remedy; until one of them gives it up."""
    made = view("n3")
    key = keys.BlockKey(BLOCKS[0])
    for name in ("n1", "n2"):
        assert made.cluster.contested() == {}
        made.on_update(keys.BlockAffinityKey(name, BLOCKS[0]), BlockAffinity(state="confirmed"))
    made.on_update(keys.BlockAffinityKey("n3", BLOCKS[0]), BlockAffinity(state="pending"))
    (name, problem), *others = made.cluster.contested().items()
    assert (name, others) == (f"block {BLOCKS[0]}", [])
    assert "nodes n1, n2 have" in problem
    assert "no block says whose it is" in problem
    assert "calipy ipam check" in problem
    made.on_update(key, block(BLOCKS[0], "n2", {}))
    assert "it is n2's by the block itself" in made.cluster.contested()[name]
    made.on_update(keys.BlockAffinityKey("n1", BLOCKS[0]), None)
    assert made.cluster.contested() == {}
