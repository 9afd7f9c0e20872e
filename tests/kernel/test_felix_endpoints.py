"""What the kernel holds for a pod: its routes and neighbours, its own addresses only, nothing before it is known."""

from __future__ import annotations

import ipaddress
import socket
import threading

import pytest

from calipy.net import PROTO_FELIX, PROTO_WORKLOAD
from tests.support.felix import (
    BACKENDS,
    Node,
    Pod,
    pings,
    programmed,
    proxy_arp,
    send,
    until,
)

pytestmark = [pytest.mark.kernel]


def test_unknown_workload_interface_drops(node: Node) -> None:
    """A pod whose endpoint is not known has no connectivity, though its route exists; with the endpoint it has."""
    felix = node.felix()
    _server, client = programmed(node, felix)
    unknown = node.pod()
    node.ns.run("ip", "route", "add", f"{unknown.address}/32", "dev", unknown.interface)
    proxy_arp(node, unknown)
    assert not pings(unknown.ns, client.address)
    assert not pings(client.ns, unknown.address)
    felix.send(endpoints={unknown.id: unknown.endpoint()})
    felix.wait(unknown)
    assert pings(unknown.ns, client.address)
    assert pings(client.ns, unknown.address)


@BACKENDS
def test_spoofed_source_is_dropped(node: Node, backend: str) -> None:
    """A pod that uses another pod's address, or one of the world's, does not get its packet through."""
    felix = node.felix(IptablesBackend=backend)
    server, client, thief = programmed(node, felix, 3)
    del server
    seen = _Listener(client, 9)
    thief.ns.links.add_address("eth0", _interface("10.65.0.99/32"))
    thief.ns.links.add_address("eth0", _interface("172.16.0.2/32"))
    for source, arrives in ((thief.address, True), ("10.65.0.99", False), ("172.16.0.2", False)):
        seen.clear()
        thief.ns.call(_send, source, client.address, 9)
        if arrives:
            until(lambda source=source: source in seen.sources)
        else:
            thief.ns.call(_send, thief.address, client.address, 9)
            until(lambda: thief.address in seen.sources)
            assert source not in seen.sources
    seen.close()


def test_address_that_moves_takes_no_connection_along(node: Node) -> None:
    """An address that goes to another pod: its route follows, and the kernel forgets the connections of the old one."""
    felix = node.felix()
    server, client = programmed(node, felix)
    assert pings(server.ns, client.address)
    assert server.address in node.ns.run("conntrack", "-L", "--orig-src", server.address)
    heir = node.pod()
    moved = heir.endpoint(nets=(f"{server.address}/32",), mac="")
    felix.send(endpoints={server.id: None, heir.id: moved})
    felix.wait(heir)
    assert f"{server.address} dev {heir.interface}" in node.ns.run("ip", "route")
    assert server.address not in node.ns.run("conntrack", "-L", "--orig-src", server.address)


def test_routes_and_blackholes_look_like_calicos(node: Node) -> None:
    """Pod routes: scope link, protocol 3, metric 1024, replacing the CNI plugin's; blocks: blackhole, but no /32."""
    felix = node.felix(ProgramClusterRoutes="Enabled")
    pod = node.pod()
    node.ns.run("ip", "route", "add", f"{pod.address}/32", "dev", pod.interface)
    send(felix, [pod])
    felix.wait(pod)
    routes = {str(r.dst): r for r in node.ns.routes.dump() if r.protocol in {PROTO_WORKLOAD, PROTO_FELIX}}
    mine = [r for r in node.ns.routes.dump() if str(r.dst) == f"{pod.address}/32"]
    assert [(r.scope, r.protocol, r.metric) for r in mine] == [("link", PROTO_WORKLOAD, 1024)]
    assert routes[f"{pod.address6}/128"].metric == 1024
    assert routes["10.65.0.0/26"].kind == "blackhole"
    assert "10.65.9.9/32" not in routes
    neighbours = node.ns.run("ip", "neigh", "show", "dev", pod.interface)
    assert f"{pod.address} lladdr {pod.mac} PERMANENT" in neighbours
    felix.send(routes={ipaddress.ip_network("10.65.0.0/26"): None})
    felix.settle()
    assert "blackhole" not in node.ns.run("ip", "route")


class _Listener:
    """Collects the source addresses of UDP packets to a pod's port."""

    def __init__(self, pod: Pod, port: int) -> None:
        self.sources: set[str] = set()
        self._socket = pod.ns.call(_udp_socket, pod.address, port)
        self._thread = threading.Thread(target=self._listen)
        self._stop = False
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop:
            try:
                self.sources.add(self._socket.recvfrom(100)[1][0])
            except TimeoutError:
                continue

    def clear(self) -> None:
        self.sources.clear()

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._socket.close()


def _udp_socket(address: str, port: int):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(0.1)
    sock.bind((address, port))
    return sock


def _send(source: str, destination: str, port: int) -> None:
    with _udp_socket(source, 0) as sock:
        sock.sendto(b"x", (destination, port))


def _interface(text: str):
    return ipaddress.ip_interface(text)
