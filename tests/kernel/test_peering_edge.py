"""The node's addresses towards pods that are its BGP peers, in a real kernel."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.dataplane.peering import PeeringAddresses
from calipy.felix.messages import EndpointID, LocalBGPPeer, WorkloadEndpoint
from calipy.kernel.links import Link, LinkAddress
from calipy.kernel.monitor import AddressEvent, LinkEvent
from tests.support.netns import Namespace, connect

pytestmark = [pytest.mark.kernel]

BOTH = ("169.254.0.179", "fd12::179")


class Node:
    """A node with two pods' interfaces, and the edge in it."""

    def __init__(self, make_netns: Callable[..., Namespace]) -> None:
        self.ns = make_netns("node")
        for number in (1, 2):
            connect(self.ns, make_netns(f"pod{number}"), names=(f"cali{number}", "eth0"))
        self.edge: PeeringAddresses = self.ns.call(PeeringAddresses, FelixConfig())

    def restart(self) -> None:
        """A new agent."""
        self.edge.close()
        self.edge = self.ns.call(PeeringAddresses, FelixConfig())

    def want(self, number: int, *addresses: str, peer: bool = True, nets: tuple[str, ...] = ("10.0.0.1/32",)) -> None:
        """The pod's endpoint has a peer with these addresses."""
        found = LocalBGPPeer("red", addresses) if peer else None
        identity = EndpointID("k8s", f"ns1/pod{number}", "eth0")
        endpoint = WorkloadEndpoint(identity, f"cali{number}", "", nets, (), (), bgp_peer=found)
        self.edge.set_endpoint(f"cali{number}", endpoint)

    def addresses(self, number: int) -> set[str]:
        """Addresses of the interface, without what the kernel has given it by itself."""
        found = self.ns.links.list_addresses(interface=f"cali{number}")
        return {str(one.address) for one in found if not (one.address.version == 6 and one.address.is_link_local)}


@pytest.fixture
def node(make_netns: Callable[..., Namespace]) -> Iterator[Node]:
    made = Node(make_netns)
    yield made
    made.edge.close()


def test_addresses_come_change_and_go(node: Node) -> None:
    """On peers' interfaces only, on several at once, without routes in the main table; nothing else is touched."""
    node.ns.links.add_address("cali2", ipaddress.ip_interface("10.9.9.9/24"))
    node.want(1, *BOTH)
    node.want(2, *BOTH)
    assert node.edge.write() == []
    assert node.addresses(1) == {"169.254.0.179/32", "fd12::179/128"}
    assert node.addresses(2) == {"169.254.0.179/32", "fd12::179/128", "10.9.9.9/24"}
    assert "scope link" in node.ns.run("ip", "address", "show", "dev", "cali1", "to", "169.254.0.179")
    assert [str(route.dst) for route in node.ns.routes.dump(family=6) if not route.dst.is_link_local] == []
    node.want(1, "169.254.0.180")
    node.edge.write()
    assert node.addresses(1) == {"169.254.0.180/32"}
    node.want(1, peer=False)
    node.edge.set_endpoint("cali2", None)
    node.edge.write()
    assert (node.addresses(1), node.addresses(2)) == (set(), {"10.9.9.9/24"})
    assert node.edge.problems == {}


def test_a_new_agent_knows_what_an_earlier_one_left(node: Node) -> None:
    """What is wanted stays, what is not goes, from interfaces without endpoint as well."""
    node.want(1, *BOTH)
    node.want(2, *BOTH)
    node.edge.write()
    node.restart()
    node.want(1, "169.254.0.179")
    assert node.edge.write() == []
    assert (node.addresses(1), node.addresses(2)) == ({"169.254.0.179/32"}, set())


def test_what_others_do_is_put_right_and_told(node: Node) -> None:
    """An address taken away, one added, a link that was down: events say so, and it is drift; our own work is none."""
    node.want(1, *BOTH)
    node.edge.write()
    index = node.ns.netlink.index_of("cali1")
    ours = LinkAddress("cali1", index, ipaddress.ip_interface("169.254.0.179/32"), 253)
    assert not node.edge.on_event(AddressEvent(ours, gone=False))
    node.ns.run("ip", "address", "del", "169.254.0.179/32", "dev", "cali1")
    assert node.edge.on_event(AddressEvent(ours, gone=True))
    [drift] = node.edge.write()
    assert (drift.name, drift.expected, drift.found) == (
        "cali1", "169.254.0.179/32, fd12::179/128", "fd12::179/128",
    )  # fmt: skip
    node.ns.run("ip", "address", "add", "169.254.7.7/32", "dev", "cali2", "scope", "link")
    foreign = LinkAddress("cali2", 0, ipaddress.ip_interface("169.254.7.7/32"), 253)
    assert node.edge.on_event(AddressEvent(foreign, gone=False))
    node.edge.write()
    assert node.addresses(2) == set()
    node.ns.links.set_down("cali1")
    link = Link(index, "cali1", up=True, running=True)
    node.edge.on_event(LinkEvent(Link(index, "cali1"), gone=False))
    node.ns.links.set_up("cali1")
    assert node.addresses(1) == {"169.254.0.179/32"}
    assert node.edge.on_event(LinkEvent(link, gone=False))
    assert node.edge.write() == []
    assert node.addresses(1) == {"169.254.0.179/32", "fd12::179/128"}
    assert not node.edge.on_event(LinkEvent(link, gone=False))


def test_an_interface_that_does_not_exist_waits(node: Node) -> None:
    """No error; when it comes up the address is there."""
    node.want(3, "169.254.0.179")
    assert node.edge.write() == []
    assert node.edge.problems == {}
    connect(node.ns, node.ns, names=("cali3", "peer3"))
    assert node.edge.on_event(LinkEvent(Link(9, "cali3", up=True, running=True), gone=False))
    node.edge.write()
    assert node.addresses(3) == {"169.254.0.179/32"}


def test_a_pod_without_an_address_to_speak_to_is_warned_of(node: Node) -> None:
    """By family, with field and remedy; no more when it is there."""
    nets = ("10.0.0.1/32", "fd65::1/128")
    node.want(1, nets=nets)
    [warning] = node.edge.warnings
    for word in ("BGPPeer(red)", "ns1/pod1", "localWorkloadPeeringIPV4", "localWorkloadPeeringIPV6"):
        assert word in warning
    node.want(1, "169.254.0.179", nets=nets)
    [warning] = node.edge.warnings
    assert "IPV6" in warning
    assert "IPV4" not in warning
    node.want(1, *BOTH, nets=nets)
    assert node.edge.warnings == []
