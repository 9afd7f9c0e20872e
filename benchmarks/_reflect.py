"""A reflector and many clients, each of which announces one /26 and must get all the others': ours, and BIRD.

The clients are bare sockets of this process that speak just enough BGP to cost next to nothing.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Callable

from calipy.datastore.resources import NodeBGPSpec, NodeSpec
from tests.support.bgp import eventually
from tests.support.bgp import network as lab
from tests.support.netns import Namespace

AS = 64512
MARKER = b"\xff" * 16
OPEN, UPDATE, KEEPALIVE = 1, 2, 4
IPV4_UNICAST = b"\0\1\0\1"
BARS = {100: 4.0, 200: 10.0}
PROBES = 20
BIRD = """
router id 10.77.1.2;
protocol device { }
protocol direct { ipv4; }
protocol bgp clients {
  local 10.77.1.2 as 64512; neighbor range 10.77.0.0/16 as 64512; dynamic name "c";
  rr client; rr cluster id 244.0.0.1; passive; graceful restart on;
  ipv4 { import all; export where source = RTS_BGP; };
}
"""


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271 4.1."""
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


class Client:
    """One client's session: its address, and the prefixes it has been told."""

    def __init__(self, namespace: Namespace, address: str, number: int) -> None:
        self.address = ipaddress.ip_address(address).packed
        self.number = number
        self.told: set[bytes] = set()
        self.established = False
        self._namespace = namespace
        self._from = address
        self._buffer = b""
        self.socket: socket.socket | None = None

    def connect(self, server: str) -> bool:
        """Connect and say OPEN; whether somebody listens."""
        made = self._namespace.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        made.bind((self._from, 0))
        try:
            made.connect((server, 179))
        except OSError:
            made.close()
            return False
        capabilities = b"\1\4" + IPV4_UNICAST + b"\x41\4" + struct.pack("!I", AS) + b"\x40\6\0\x78\0\1\1\x80"
        options = bytes([2, len(capabilities)]) + capabilities
        made.sendall(message(OPEN, struct.pack("!BHH", 4, AS, 90) + self.address + bytes([len(options)]) + options))
        self.socket, self._buffer, self.established = made, b"", False
        return True

    def announce(self, prefix: bytes) -> None:
        """Tell a /26."""
        attributes = b"\x40\1\1\0" + b"\x40\2\0" + b"\x40\3\4" + self.address + b"\x40\5\4\0\0\0\x64"
        body = b"\0\0" + struct.pack("!H", len(attributes)) + attributes + b"\x1a" + prefix
        assert self.socket
        self.socket.sendall(message(UPDATE, body))

    def read(self) -> bool:
        """Take what has come; False at the end of the connection."""
        assert self.socket
        try:
            data = self.socket.recv(1 << 18)
        except OSError:
            return False
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= 19:
            length, kind = struct.unpack_from("!HB", self._buffer, at + 16)
            if len(self._buffer) - at < length:
                break
            self._take(kind, self._buffer[at + 19 : at + length])
            at += length
        self._buffer = self._buffer[at:]
        return bool(data)

    def _take(self, kind: int, body: bytes) -> None:
        assert self.socket
        if kind == KEEPALIVE:
            self.socket.sendall(message(KEEPALIVE)) if self.established else None
        if kind == OPEN:
            self.socket.sendall(message(KEEPALIVE))
            self.established = True
            self.announce(block(self.number))
            self.socket.sendall(message(UPDATE, b"\0\0\0\0"))  # End-of-RIB
        if kind == UPDATE:
            withdrawn = struct.unpack_from("!H", body)[0]
            at = 4 + withdrawn + struct.unpack_from("!H", body, 2 + withdrawn)[0]
            while at < len(body):
                octets = (body[at] + 7) // 8
                self.told.add(body[at + 1 : at + 1 + octets].ljust(4, b"\0"))
                at += 1 + octets


def block(number: int) -> bytes:
    """The network of a /26 in 10.244.0.0/16."""
    return bytes([10, 244, number >> 2 & 255, (number & 3) << 6])


class Clients:
    """All of them, in one loop."""

    def __init__(self, namespace: Namespace, server: str, addresses: list[str]) -> None:
        self.all = [Client(namespace, address, number) for number, address in enumerate(addresses)]
        self._server = server
        self._selector = selectors.DefaultSelector()

    def until(self, what: Callable[[], bool], timeout: float = 120) -> float:
        """Seconds until something is so; who is not connected tries every 0.1 s."""
        started = time.perf_counter()
        tried = 0.0
        while not what():
            now = time.perf_counter()
            assert now - started < timeout, "clients did not get everything"
            if now - tried > 0.1:
                for client in [one for one in self.all if one.socket is None]:
                    if not client.connect(self._server):
                        break
                    self._selector.register(client.socket, selectors.EVENT_READ, client)  # type: ignore[arg-type]  # just connected
                tried = now
            for key, _ in self._selector.select(0.05):
                client = key.data
                if not client.read():
                    self._selector.unregister(key.fileobj)
                    client.socket.close()
                    client.socket = None
        return time.perf_counter() - started

    def complete(self) -> bool:
        """Whether everybody has everybody else's block."""
        wanted = len(self.all) - 1
        return all(len(one.told - {block(one.number)}) >= wanted for one in self.all)

    def probe(self, number: int) -> float:
        """Seconds until a new block of the first is known to all others."""
        new = block(number)
        self.all[0].announce(new)
        return self.until(lambda: all(new in one.told for one in self.all[1:]))

    def close(self) -> None:
        """End all sessions."""
        for client in self.all:
            if client.socket:
                client.socket.close()
        self._selector.close()


def reflect(clients: int, resident: Callable[[int], float]) -> None:
    """Cold start, memory and the way of one block, with our node and then with BIRD as reflector."""
    print(f"a reflector with {clients} clients", flush=True)
    with lab() as network:
        network.pool("10.244.0.0/16")
        network.configuration(node_to_node_mesh_enabled=False)
        network.peer("rr", node_selector="all()", peer_selector="has(rr)")
        addresses = [f"10.77.1.{10 + i}" if i < 240 else f"10.77.3.{i - 240}" for i in range(clients)]
        for number, address in enumerate(addresses):
            network.apply("Node", f"p{number}", NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"{address}/16")))
        far = network.namespace("far")
        for address in addresses:
            far.links.add_address("eth0", ipaddress.ip_interface(f"{address}/16"))
        far.links.set_up("eth0")
        node = network.node(
            "rr", "10.77.1.1/16", labels={"rr": "yes"}, start=False, route_reflector_cluster_id="244.0.0.1"
        )
        ours = Clients(far, "10.77.1.1", addresses)
        node.start()
        cold = ours.until(ours.complete)
        assert node.bgpd
        memory = f"ExaBGP {resident(node.exabgp()):.0f} MB, bgpd {resident(node.bgpd.pid):.0f} MB"
        samples = [ours.probe(1000 + i) for i in range(PROBES)]
        ours.close()
        show("calipy", cold, memory, samples)
        if clients in BARS:
            print(f"  {'bar':<8} cold start {BARS[clients]:5.1f} s: {'met' if cold <= BARS[clients] else 'MISSED'}")
        node.close()
        theirs = Clients(far, "10.77.1.2", addresses)
        started = time.perf_counter()
        bird = network.bird(network.namespace("bird", "10.77.1.2/16"), BIRD)
        theirs.until(theirs.complete)
        cold = time.perf_counter() - started
        eventually("BIRD answers", lambda: "ready" in bird.ask("show status", check=False))
        samples = [theirs.probe(1000 + i) for i in range(PROBES)]
        show("BIRD", cold, f"{resident(bird.program.pid):.0f} MB", samples)
        theirs.close()


def show(name: str, cold: float, memory: str, samples: list[float]) -> None:
    """One line."""
    one = statistics.median(samples) * 1e3
    print(f"  {name:<8} cold start {cold:5.1f} s   {memory}   one block to all others {one:6.1f} ms", flush=True)
