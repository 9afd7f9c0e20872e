"""Which local workloads are to have a BGP session with their node, as the graph sees it."""

from __future__ import annotations

from typing import Any

import pytest

from calipy.datastore.keys import ResourceKey
from calipy.felix.graph.graph import Graph
from calipy.felix.messages import Changes, LocalBGPPeer
from tests.support.objects import Object, gone, make, namespace_profile, pod

RED = pod("red", "10.65.1.2", color="red")
BLUE = pod("blue", "10.65.1.3", color="blue")
FAR = pod("far", "10.65.2.2", node="n2", color="red")
ADDRESSES = ("169.254.0.179", "fd12::1")


def peer(name: str, selector: str = "color == 'red'", **spec: Any) -> Object:
    """A BGPPeer that selects workloads."""
    return make("BGPPeer", name, {"localWorkloadSelector": selector, "asNumber": 65401, **spec})


def configuration(name: str = "default", **spec: Any) -> Object:
    """A BGPConfiguration; ``default`` with both addresses."""
    addresses = {f"localWorkloadPeeringIPV{family}": one for family, one in zip((4, 6), ADDRESSES, strict=True)}
    return make("BGPConfiguration", name, {**(addresses if name == "default" else {}), **spec})


def node(**labels: str) -> Object:
    """This node."""
    return make("Node", "n1", {}, labels=labels)


class Watched:
    """A graph, and what it has said of the endpoints' peers."""

    def __init__(self, *objects: Object) -> None:
        self.graph = Graph("n1")
        self.peers: dict[str, LocalBGPPeer | None] = {}
        self.graph.on_in_sync()
        self.step(*objects)

    def step(self, *objects: Object) -> Changes:
        """Apply objects; what was said."""
        for key, value in objects:
            self.graph.on_update(key, value)
        changes = self.graph.flush()
        for identity, endpoint in changes.endpoints.items():
            name = identity.workload.partition("/")[2]
            if endpoint is None:
                del self.peers[name]
            else:
                self.peers[name] = endpoint.bgp_peer
        return changes


def test_selected_local_workloads_get_the_addresses() -> None:
    """Those of this node that the selector picks, and no others; the port is 179 unless somebody says more."""
    watched = Watched(RED, BLUE, FAR, peer("p"), configuration(), node())
    assert watched.peers == {"red": LocalBGPPeer("p", ADDRESSES, 179), "blue": None}
    assert not watched.step(configuration(asNumber=64999)).endpoints
    watched.step(configuration(listenPort=1790, localWorkloadPeeringIPV6=""))
    assert watched.peers["red"] == LocalBGPPeer("p", ADDRESSES[:1], 1790)
    watched.step(configuration("node.n1", listenPort=2790), configuration("node.n2", listenPort=3790))
    assert watched.peers["red"] == LocalBGPPeer("p", ADDRESSES[:1], 2790)
    watched.step(gone(configuration()), gone(configuration("node.n1")))
    assert watched.peers["red"] == LocalBGPPeer("p", (), 179)


def test_of_several_peers_the_first_by_name() -> None:
    """Whatever the order in which they come; when it goes, the next one."""
    watched = Watched(RED, peer("b"), peer("a"), peer("c"))
    assert watched.peers["red"] == LocalBGPPeer("a")
    assert not watched.step(gone(peer("b"))).endpoints
    watched.step(gone(peer("a")))
    assert watched.peers["red"] == LocalBGPPeer("c")
    watched.step(make("BGPPeer", "c", {"peerIP": "192.0.2.1", "asNumber": 1}))
    assert watched.peers["red"] is None


def test_labels_of_pod_namespace_and_node_count() -> None:
    """A change of the pod's own labels, of its namespace's, of the node's: each is followed."""
    shop = namespace_profile("shop", team="blue")
    watched = Watched(RED, shop, peer("p", "pcns.team == 'blue'", nodeSelector="rack == 'a'"), node(rack="b"))
    assert watched.peers["red"] is None
    watched.step(node(rack="a"))
    assert watched.peers["red"] == LocalBGPPeer("p")
    watched.step(namespace_profile("shop", team="green"))
    assert watched.peers["red"] is None
    watched.step(peer("p", node="n1"))
    assert watched.peers["red"] == LocalBGPPeer("p")
    watched.step(pod("red", "10.65.1.2", color="green"))
    assert watched.peers["red"] is None
    watched.step(RED, peer("p", node="n2"))
    assert watched.peers["red"] is None
    watched.step(peer("p"))
    assert not watched.step(gone(node())).endpoints
    watched.step(gone(RED))
    assert watched.peers == {}


def test_own_labels_count_before_inherited_ones() -> None:
    """And those of the profile named first before others'; a profile that goes takes its labels along."""
    one, two = (
        make("Profile", name, {"labelsToApply": {"color": color}}) for name, color in (("a", "red"), ("b", "blue"))
    )
    plain = pod("plain", "10.65.1.5", profiles=("a", "b"))
    own = pod("own", "10.65.1.6", profiles=("a", "b"), color="green")
    watched = Watched(plain, own, one, two, peer("r"), peer("b", "color == 'blue'"), peer("g", "color == 'green'"))
    assert {name: found and found.name for name, found in watched.peers.items()} == {"plain": "r", "own": "g"}
    watched.step(gone(one))
    assert watched.peers["plain"] == LocalBGPPeer("b")
    watched.step(gone(two))
    assert watched.peers["plain"] is None
    watched.step(one)
    assert watched.peers["plain"] == LocalBGPPeer("r")


@pytest.mark.parametrize("spec", [{"localWorkloadSelector": "color =="}, {"nodeSelector": "rack =="}])
def test_a_bad_selector_selects_nobody_and_is_said(spec: dict[str, Any]) -> None:
    """The BGPPeer is treated as absent; mended, it counts."""
    key, _ = peer("p")
    watched = Watched(RED, node(rack="a"), peer("p", **spec) if "nodeSelector" in spec else peer("p", "color =="))
    assert watched.peers["red"] is None
    assert isinstance(key, ResourceKey)
    assert next(iter(spec)) in watched.graph.problems[key]
    watched.step(node(rack="b"), peer("p"))
    assert watched.peers["red"] == LocalBGPPeer("p")
    assert watched.graph.problems == {}


def test_a_bad_address_counts_as_missing_and_is_said() -> None:
    """The other family's address stays."""
    bad = configuration(localWorkloadPeeringIPV4="fd00::1")
    watched = Watched(RED, peer("p"), bad)
    assert watched.peers["red"] == LocalBGPPeer("p", ("fd12::1",))
    assert "localWorkloadPeeringIPV4" in watched.graph.problems[bad[0]]
    watched.step(configuration())
    assert watched.peers["red"] == LocalBGPPeer("p", ADDRESSES)
    assert watched.graph.problems == {}
