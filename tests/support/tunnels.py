"""Nodes on two subnets with a plain router between them, each with a real Felix, its graph and pods.

    n1 ─┐                               ┌─ n3
        ├─ lan1 172.31.1.254 ─ router ─ lan2 172.31.2.254
    n2 ─┘

The router knows nothing of pods. What the datastore holds is given as a whole: ``Cluster.become``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from calipy.datastore.keys import Key
from calipy.felix.ownership import VXLAN_DEVICES
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.vxlan import VXLANs
from calipy.net import Route
from tests.support.felix import FelixProcess, FelixServer, Pod, pings, until
from tests.support.netns import Namespace
from tests.support.objects import Object, block, make, namespace_profile, pod

CLUSTER = make("ClusterInformation", "default", {"datastoreReady": True})
_ETH_P_ALL = 3
_NUD_PERMANENT = 0x80
LANS = {"n1": 1, "n2": 1, "n3": 2}


class TunnelNode:
    """A node: ``eth0`` on its subnet, a default route to the router."""

    def __init__(self, name: str, namespace: Namespace, lan: int) -> None:
        number = int(name[1:])
        self.name, self.ns = name, namespace
        self.address, self.address6 = f"172.31.{lan}.{number}", f"fd31:{lan}::{number}"
        self.lan = lan
        self.pods: list[Pod] = []
        self.felix: FelixProcess | None = None
        self._server: FelixServer | None = None

    @property
    def pod(self) -> Pod:
        """Its first pod."""
        return self.pods[0]

    def start(self, mtu_file: Path | None = None, **config: str) -> FelixProcess:
        """Start Felix; it knows nothing until ``Cluster.become``."""
        self._server = self._server or FelixServer(self.ns, {})
        self.felix = FelixProcess(self._server, config, graph=True, hostname=self.name, mtu_file=mtu_file)
        return self.felix

    def close(self) -> None:
        """Kill its Felix."""
        if self.felix is not None:
            self.felix.close()
        if self._server is not None:
            self._server.close()

    def object(self, **spec: Any) -> Object:
        """Its Node resource, with tunnel addresses as IPAM gives them: the first of its blocks."""
        number = int(self.name[1:])
        values = {
            "bgp": {
                "ipv4Address": f"{self.address}/24",
                "ipv6Address": f"{self.address6}/64",
                "ipv4IPIPTunnelAddr": f"10.65.{number}.0",
            },
            "ipv4VXLANTunnelAddr": f"10.65.{number}.0",
            "ipv6VXLANTunnelAddr": f"fd65::{number}00",
            **spec,
        }
        return make("Node", self.name, values)

    def routes(self, protocol: int | None = 80) -> dict[str, Route]:
        """Routes of one protocol, by destination."""
        return {str(route.dst): route for route in self.ns.routes.dump(protocol=protocol)}

    def way(self, destination: str) -> str:
        """The cluster route to a destination as ``gateway device``, ``blackhole``, or "" for none."""
        route = self.routes().get(destination)
        if route is None:
            return ""
        if not route.next_hops:
            return route.kind
        (hop,) = route.next_hops
        return f"{hop.gateway or 'direct'} {hop.interface}"


class Cluster:
    """The network and its nodes."""

    def __init__(self, make_netns: Callable[..., Namespace], names: Iterable[str] = LANS) -> None:
        self._make = make_netns
        self._state: dict[Key, Any] = {}
        self._revision = 0
        self.router = make_netns("router")
        self.router.call(_furnish)
        self.router.call(Path("/proc/sys/net/ipv4/ip_forward").write_text, "1", "ascii")
        self.router.call(Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text, "1", "ascii")
        for lan in set(LANS.values()):
            self.router.links.create_bridge(f"lan{lan}")
            self.router.address(f"lan{lan}", f"172.31.{lan}.254/24")
            self.router.address(f"lan{lan}", f"fd31:{lan}::fe/64")
        self.nodes = {name: self._node(name) for name in names}

    def __getitem__(self, name: str) -> TunnelNode:
        return self.nodes[name]

    def connect(self, node: TunnelNode, interface: str, lan: int) -> None:
        """One more interface of a node, up, on a subnet, without addresses."""
        port = f"{node.name}-{interface}"
        with NetlinkSocket() as netlink:
            Links(netlink).create_veth(VethEnd(port, self.router.fd), VethEnd(interface, node.ns.fd))
        self.router.links.set_master(port, f"lan{lan}")
        self.router.links.set_up(port)
        node.ns.links.set_up(interface)

    def pod(self, node: str, address: str = "") -> Pod:
        """One more pod of a node; the address is by default the next of the node's block."""
        owner = self.nodes[node]
        number, count = int(node[1:]), len(owner.pods) + 2
        found = Pod(
            owner.ns,
            self._make(f"pod{number}-{count}"),
            count,
            f"cali{number:04}{count:03}",
            address or f"10.65.{number}.{count}",
            f"fd65::{number}{count:02x}",
        )
        owner.pods.append(found)
        return found

    def objects(self, *pools: Object, **blocks: Object) -> list[Object]:
        """Everything as it should be: nodes, a block for each and family, pods; ``blocks`` replace those of a node."""
        found = [CLUSTER, namespace_profile("shop"), *pools]
        for name, node in self.nodes.items():
            number = int(name[1:])
            found += [node.object(), blocks.get(name) or block(f"10.65.{number}.0/26", name)]
            found.append(block(f"fd65::{number}00/122", name))
            found += [endpoint(name, one) for one in node.pods]
        return found

    def become(self, objects: Iterable[Object], *, to: Iterable[str] = ()) -> None:
        """The datastore holds exactly this from now on; every Felix (or some nodes') is told, and has done it."""
        state = dict(objects)
        changes: list[Object] = [(key, None) for key in self._state.keys() - state.keys()]
        changes += [(key, value) for key, value in state.items() if self._state.get(key) != value]
        self._state = state
        self._revision += 1
        told = [self.nodes[name] for name in to or self.nodes]
        running = [node.felix for node in told if node.felix is not None]
        for felix in running:
            felix.events(*changes, revision=self._revision)
        for felix in running:
            self.wait(felix)

    def tell(self, node: str) -> None:
        """Give a Felix that has been started later everything, and wait until it is done."""
        felix = self.nodes[node].felix
        assert felix is not None
        felix.events(*self._state.items(), revision=self._revision)
        self.wait(felix)

    def wait(self, felix: FelixProcess) -> None:
        """Wait until a Felix has brought the present state into the kernel."""
        until(lambda: (s := felix.status()).ready and s.applied_revision >= self._revision, timeout=30)

    def close(self) -> None:
        """Kill every Felix."""
        for node in self.nodes.values():
            node.close()

    def _node(self, name: str) -> TunnelNode:
        node = TunnelNode(name, self._make(name), LANS[name])
        node.ns.call(_furnish)
        self.connect(node, "eth0", node.lan)
        node.ns.address("eth0", f"{node.address}/24")
        node.ns.address("eth0", f"{node.address6}/64")
        node.ns.run("ip", "route", "add", "default", "via", f"172.31.{node.lan}.254")
        node.ns.run("ip", "-6", "route", "add", "default", "via", f"fd31:{node.lan}::fe")
        return node


@contextlib.contextmanager
def running(make_netns: Callable[..., Namespace], *names: str) -> Iterator[Cluster]:
    """Nodes with a pod and a Felix each."""
    made = Cluster(make_netns, names or LANS)
    try:
        for name in made.nodes:
            made.pod(name)
            made[name].start()
        yield made
    finally:
        made.close()


def reach(source: Namespace, *addresses: str) -> None:
    """All addresses answer, at the latest when neighbours have been found."""
    for address in addresses:
        assert until(lambda address=address: pings(source, address)), address


def entries(node: TunnelNode) -> tuple[dict[str, str], dict[str, str]]:
    """Permanent neighbours of the IPv4 VXLAN device, and its forwarding entries."""
    name = VXLAN_DEVICES[4]
    neighbours = node.ns.links.list_neighbours(interface=name)
    found = {str(entry.address): entry.mac for entry in neighbours if entry.state == _NUD_PERMANENT}
    return found, {entry.mac: str(entry.address) for entry in VXLANs(node.ns.netlink).list_fdb(name)}


def endpoint(node: str, one: Pod) -> Object:
    """A pod's workload endpoint."""
    name = f"{one.interface}-{one.address.replace('.', '-')}"
    return pod(name, one.address, one.address6, node=node, interface=one.interface)


def pool(cidr: str = "10.65.0.0/16", name: str = "pool", **spec: Any) -> Object:
    """An IP pool."""
    return make("IPPool", name, {"cidr": cidr, **spec})


def vxlan(mode: str, **spec: Any) -> tuple[Object, Object]:
    """The pools of both families with VXLAN."""
    return pool(vxlanMode=mode, **spec), pool("fd65::/112", "pool6", vxlanMode=mode)


def _furnish() -> None:
    for setting in ("ipv6/conf/default/accept_dad", "ipv4/conf/all/send_redirects", "ipv4/conf/default/send_redirects"):
        Path(f"/proc/sys/net/{setting}").write_text("0", "ascii")


@contextlib.contextmanager
def capture(namespace: Namespace, interface: str = "eth0") -> Iterator[Counter[str]]:
    """Counts what passes an interface: ``vxlan``, ``vxlan SOURCE``, the same of ``ipip``, ``SOURCE>DESTINATION``."""
    seen: Counter[str] = Counter()
    sniffer: socket.socket = namespace.call(
        socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)
    )
    with sniffer:
        namespace.call(sniffer.bind, (interface, _ETH_P_ALL))
        sniffer.setblocking(False)
        yield seen
        with contextlib.suppress(BlockingIOError):
            while True:
                seen.update(_kinds(*sniffer.recvfrom(2048)[:1]))


def _kinds(packet: bytes) -> Iterator[str]:
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        protocol, payload = packet[9], packet[(packet[0] & 15) * 4 :]
        ends = (packet[12:16], packet[16:20])
    elif version == 6:
        protocol, payload = packet[6], packet[40:]
        ends = (packet[8:24], packet[24:40])
    else:
        return
    source, destination = (str(ipaddress.ip_address(end)) for end in ends)
    if protocol == socket.IPPROTO_UDP and struct.unpack_from("!H", payload, 2)[0] == 4789:
        yield from ("vxlan", f"vxlan {source}")
    elif protocol == socket.IPPROTO_IPIP:
        yield from ("ipip", f"ipip {source}")
    else:
        yield f"{source}>{destination}"
