"""The fast path of known connections: who is on it, and that nobody rides on it who should be cut off."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from calipy.felix.ownership import link_group
from calipy.net import Family
from tests.support.felix import ALLOW_ALL, BACKENDS, FelixProcess, Node, Pod, policy, tier, until
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel]

BOTH: tuple[Family, Family] = (4, 6)
PORT = 5001
WORLD = "172.16.0.2"


class Flow:
    """A UDP flow between two namespaces, held open: once answered, its packets belong to a known connection."""

    def __init__(self, client: Namespace, client_address: str, server: Namespace, server_address: str) -> None:
        self.client = client.call(_bound, client_address)
        self.server = server.call(_bound, server_address)
        self.client.connect((server_address, PORT))
        self.server.connect((client_address, PORT))
        self._count = 0

    def passes(self) -> bool:
        """Whether a packet gets there and its answer back; what comes late from before does not count."""
        self._count += 1
        token = str(self._count).encode()
        return all(_arrives(*way, token) for way in ((self.client, self.server), (self.server, self.client)))

    def stops(self) -> None:
        """Wait until three packets in a row do not get through."""
        until(lambda: not any(self.passes() for _ in range(3)))

    def close(self) -> None:
        self.client.close()
        self.server.close()


def _bound(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(0.3)
    made.bind((address, PORT))
    return made


def _arrives(sender: socket.socket, receiver: socket.socket, token: bytes) -> bool:
    try:
        sender.send(token)
        while receiver.recv(16) != token:
            pass
    except OSError:
        return False
    return True


@pytest.fixture
def flows() -> Iterator[list[Flow]]:
    """Flows to close at the end."""
    made: list[Flow] = []
    yield made
    for flow in made:
        flow.close()


def held(flows: list[Flow], *ends: Any) -> Flow:
    """A flow that has been answered."""
    flows.append(Flow(*ends))
    until(flows[-1].passes)
    return flows[-1]


def group(node: Node, interface: str) -> int | None:
    """Link group of an interface of the node."""
    link = node.ns.links.get_link(interface)
    return link.group if link else None


def two_pods(node: Node, felix: FelixProcess) -> tuple[Pod, Pod]:
    pods = node.pod(), node.pod()
    felix.send(profiles={"open": ALLOW_ALL}, endpoints={pod.id: pod.endpoint() for pod in pods})
    felix.wait(*pods)
    return pods


def hits(node: Node, backend: str, rule: str) -> int:
    """How many packets a rule of IPv4's filter table has met."""
    saved = node.ns.run(f"iptables-{backend}-save", "-c", "-t", "filter")
    line = next(line for line in saved.splitlines() if rule in line)
    return int(line.removeprefix("[").partition(":")[0])


@BACKENDS
def test_known_connections_take_the_short_way(node: Node, flows: list[Flow], backend: str) -> None:
    """Packets in and out of a pod are accepted by the first rule for them; the first of a flow sees its policy."""
    pod, _ = two_pods(node, node.felix(IptablesBackend=backend))
    until(lambda: group(node, pod.interface) == link_group(BOTH))
    flow = held(flows, node.world, WORLD, pod.ns, pod.address)
    for option in ("--src-group", "--dst-group"):
        before = hits(node, backend, option)
        long_way = hits(node, backend, "-j cali-to-wl-dispatch")
        assert flow.passes()
        assert hits(node, backend, option) == before + 1
        assert hits(node, backend, "-j cali-to-wl-dispatch") == long_way


@BACKENDS
def test_only_endpoints_that_are_enabled_are_on_it(node: Node, backend: str) -> None:
    """Not unknown interfaces, not the node's own, not disabled endpoints; per family; and again after a new link."""
    felix = node.felix(IptablesBackend=backend)
    pod, other = two_pods(node, felix)
    unknown = node.pod()
    until(lambda: group(node, pod.interface) == group(node, other.interface) == link_group(BOTH))
    assert group(node, unknown.interface) == group(node, "eth0") == 0
    felix.send(endpoints={other.id: other.endpoint(admin_up=False), unknown.id: unknown.endpoint()})
    until(lambda: group(node, other.interface) == 0 and group(node, unknown.interface) == link_group(BOTH))
    felix.send(endpoints={pod.id: pod.endpoint(nets=(f"{pod.address}/32",)), unknown.id: None})
    until(lambda: group(node, pod.interface) == link_group((4,)) and group(node, unknown.interface) == 0)
    node.ns.links.delete_link(pod.interface)
    node.ns.run("ip", "link", "add", pod.interface, "type", "veth", "peer", "name", "peer0")
    node.ns.links.set_up("peer0")
    node.ns.links.set_up(pod.interface)
    until(lambda: group(node, pod.interface) == link_group((4,)))


@BACKENDS
def test_a_disabled_endpoint_is_cut_off(node: Node, flows: list[Flow], backend: str) -> None:
    """Held flows in and out of the pod stop, and go on when it is enabled again."""
    felix = node.felix(IptablesBackend=backend)
    pod, _ = two_pods(node, felix)
    flow = held(flows, node.world, WORLD, pod.ns, pod.address)
    felix.send(endpoints={pod.id: pod.endpoint(admin_up=False)})
    flow.stops()
    felix.send(endpoints={pod.id: pod.endpoint()})
    until(flow.passes)


def test_a_deleted_endpoint_is_cut_off_and_comes_back_under_its_policy(node: Node, flows: list[Flow]) -> None:
    """Held flows stop with the endpoint. With a new one that denies they stay so, with one that allows they go on."""
    felix = node.felix()
    pod, _ = two_pods(node, felix)
    flow = held(flows, node.world, WORLD, pod.ns, pod.address)
    felix.send(endpoints={pod.id: None})
    flow.stops()
    closed = policy("closed")
    felix.send(policies={closed.id: closed}, endpoints={pod.id: pod.endpoint((tier(closed, egress=True),))})
    felix.wait(pod)
    until(lambda: group(node, pod.interface) == link_group(BOTH))
    assert not any(flow.passes() for _ in range(3))
    felix.send(endpoints={pod.id: pod.endpoint()})
    until(flow.passes)


def test_an_unknown_interface_does_not_ride_on_the_other_end(node: Node, flows: list[Flow]) -> None:
    """Connection and route are there and the receiver has an endpoint: what the sender's lacks decides."""
    felix = node.felix()
    pod, other = two_pods(node, felix)
    flow = held(flows, pod.ns, pod.address, other.ns, other.address)
    node.ns.links.set_groups({node.ns.netlink.index_of(pod.interface): 7})  # somebody's own: we leave it alone
    until(flow.passes)
    felix.send(endpoints={pod.id: pod.endpoint(admin_up=False)})
    flow.stops()
    assert group(node, pod.interface) == 7


def test_revoked_permission_leaves_known_connections(node: Node, flows: list[Flow]) -> None:
    """As in Calico: policy judges the first packet."""
    felix = node.felix()
    pod, _ = two_pods(node, felix)
    flow = held(flows, node.world, WORLD, pod.ns, pod.address)
    closed = policy("closed")
    felix.send(policies={closed.id: closed}, endpoints={pod.id: pod.endpoint((tier(closed, egress=True),))})
    felix.settle()
    assert any(flow.passes() for _ in range(3))


def test_a_group_that_is_wrong_is_put_right(node: Node) -> None:
    """Taken from a pod, or given to an interface without endpoint: noticed by the event, healed."""
    felix = node.felix()
    pod, _ = two_pods(node, felix)
    unknown = node.pod()
    until(lambda: group(node, pod.interface) == link_group(BOTH))
    index = {one: node.ns.netlink.index_of(one) for one in (pod.interface, unknown.interface, "eth0")}
    node.ns.links.set_groups({index[pod.interface]: 0})
    until(lambda: group(node, pod.interface) == link_group(BOTH))
    node.ns.links.set_groups({index[unknown.interface]: link_group(BOTH), index["eth0"]: link_group(BOTH)})
    until(lambda: group(node, unknown.interface) == group(node, "eth0") == 0)


def test_a_restart_takes_the_group_from_what_has_gone(node: Node) -> None:
    """While the agent is away groups stay as its rules do; who has no endpoint afterwards has no group either."""
    felix = node.felix()
    pod, other = two_pods(node, felix)
    until(lambda: group(node, pod.interface) == group(node, other.interface) == link_group(BOTH))
    felix.kill()
    again = node.felix()
    assert group(node, other.interface) == link_group(BOTH)
    again.send(profiles={"open": ALLOW_ALL}, endpoints={pod.id: pod.endpoint()})
    again.wait(pod)
    assert group(node, other.interface) == 0
    assert group(node, pod.interface) == link_group(BOTH)
