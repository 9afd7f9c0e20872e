"""What our rules cost a packet: pod → node → node → pod with ``--local`` pods on each node, against the bare kernel.

The cluster is the one of ``benchmarks/felix.py``, through the real graph and the real ``felix.apply.Dataplane``.

Three paths of four namespaces each stand side by side: one without rules, one where connections are tracked and nothing
else, one whose nodes are programmed. They are measured in turns, in short batches on
one core: veth carries a packet through both nodes within the system call that sends it, so that the time of
``sendmmsg`` is the time of the whole path. A batch that something else interrupts only takes longer, so the shortest of
a round counts; shown are the medians of the rounds.

Only the measured pod of each node has an interface; the others are endpoints whose chains, sets and dispatch rules
exist all the same. A packet meets rules and sets, not other pods' interfaces, so its work is the same.

Needs root. Run: ``.venv/bin/python benchmarks/packets.py [--local 200] [--backend legacy] [--rounds 40]``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import ipaddress
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import _cluster as data
from msgspec.structs import replace as replace_struct

from calipy import log
from calipy.datastore.keys import ResourceKey
from calipy.datastore.resources import EntityRule, GlobalNetworkPolicySpec, ObjectMeta, Resource, Rule
from calipy.felix.apply import Dataplane
from calipy.felix.config import FelixConfig
from calipy.felix.graph.graph import Graph
from calipy.kernel import netns, process
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.net import HOST_MAC, POD_GATEWAY

BATCH: Final = 256
BATCHES: Final = 24
SIZE: Final = 64
TCP_SECONDS: Final = 0.15
NETS: Final = ("10.65.1.0/24", "10.65.2.0/24")
ANSWERED, SILENT, STREAM = 5001, 5002, 5003


class Side:
    """One half of a path: a node and its pod."""

    def __init__(self, number: int, interface: str) -> None:
        self.node, self.pod = netns.create_unnamed(), netns.create_unnamed()
        self.interface = interface
        self.address = f"10.65.{number}.2"
        self.number = number
        with NetlinkSocket() as here:
            Links(here).create_veth(VethEnd(interface, self.node), VethEnd("eth0", self.pod))
        with NetlinkSocket(netns_fd=self.node) as inside:
            links = Links(inside)
            links.set_mac(interface, HOST_MAC)
            links.set_up("lo")
            links.set_up(interface)
        with NetlinkSocket(netns_fd=self.pod) as inside:
            links = Links(inside)
            links.set_up("lo")
            links.add_address("eth0", ipaddress.ip_interface(f"{self.address}/32"))
            links.set_up("eth0")
        self.run(self.pod, "ip", "route", "add", POD_GATEWAY, "dev", "eth0", "scope", "link")
        self.run(self.pod, "ip", "route", "add", "default", "via", POD_GATEWAY, "dev", "eth0")
        self.run(self.pod, "ip", "neigh", "replace", POD_GATEWAY, "lladdr", HOST_MAC, "dev", "eth0", "nud", "permanent")

    @staticmethod
    def run(where: int, *argv: str, stdin: str = "") -> None:
        process.run(argv, netns_fd=where, stdin=stdin).check()

    def join(self, other: Side) -> None:
        """A wire between the nodes, and the routes that BGP would bring."""
        with NetlinkSocket() as here:
            Links(here).create_veth(VethEnd("eth0", self.node), VethEnd("eth0", other.node))
        for one, peer in ((self, other), (other, self)):
            with NetlinkSocket(netns_fd=one.node) as inside:
                links = Links(inside)
                links.add_address("eth0", ipaddress.ip_interface(f"172.16.0.{one.number}/24"))
                links.set_up("eth0")
            self.run(one.node, "ip", "route", "add", NETS[peer.number - 1], "via", f"172.16.0.{peer.number}")
            self.run(one.node, "ip", "route", "replace", f"{one.address}/32", "dev", one.interface)
            netns.run_in(one.node, Path("/proc/sys/net/ipv4/ip_forward").write_text, "1", "ascii")

    def tracked(self) -> None:
        """Connection tracking, which the kernel starts with the first rule that needs it; no packet meets this one."""
        rules = "*filter\n:unused - -\n-A unused -m conntrack --ctstate NEW\nCOMMIT\n"
        self.run(self.node, "iptables-nft-restore", stdin=rules)

    def programmed(self, local: int, backend: str) -> None:
        """What the agent makes of a node with ``local`` pods."""
        argv = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.node}", sys.executable, __file__]
        options = ["--local", str(local), "--backend", backend, "--node", str(self.number)]
        subprocess.run([*argv, *options], check=True)

    def received(self) -> int:
        """Packets that have arrived at the pod's interface."""
        read = netns.run_in(self.pod, Path("/proc/thread-self/net/dev").read_text, "ascii")
        return int(next(line for line in read.splitlines() if "eth0" in line).split(":")[1].split()[1])


class Flow:
    """A connected UDP socket in one pod that sends to the other one, as fast as the system call goes."""

    def __init__(self, left: Side, right: Side, port: int, *, answered: bool) -> None:
        self._target = right
        self.there = netns.run_in(right.pod, _bound, right.address, port)
        self.here = netns.run_in(left.pod, _bound, left.address, port)
        self.here.connect((right.address, port))
        if answered:
            self.here.send(b"?")
            _, sender = self.there.recvfrom(1)
            self.there.sendto(b"!", sender)
            self.here.recv(1)
        self._messages = _messages()

    def round(self) -> float:
        """Shortest time a packet, in microseconds."""
        before = self._target.received()
        shortest = min(self._batch() for _ in range(BATCHES))
        arrived = self._target.received() - before
        assert arrived >= BATCH * BATCHES, f"{arrived} of {BATCH * BATCHES} packets arrived"
        return shortest / BATCH * 1e6

    def _batch(self) -> float:
        started = time.perf_counter()
        sent = _libc.sendmmsg(self.here.fileno(), self._messages, BATCH, 0)
        taken = time.perf_counter() - started
        assert sent == BATCH, f"{sent} packets sent, {os.strerror(ctypes.get_errno())}"
        return taken


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
_payload = ctypes.create_string_buffer(SIZE)
_vector = _Vector(ctypes.cast(_payload, ctypes.c_void_p), SIZE)


def _messages() -> ctypes.Array[_Message]:
    message = _Message(_Header(vectors=ctypes.pointer(_vector), count=1))
    return (_Message * BATCH)(*[message] * BATCH)


def _bound(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
    return made


class Stream:
    """A TCP connection between the pods; a child process drains it."""

    def __init__(self, left: Side, right: Side) -> None:
        server = netns.run_in(right.pod, socket.create_server, (right.address, STREAM))
        self._child = os.fork()
        if not self._child:
            os.sched_setaffinity(0, {0})
            peer, buffer = server.accept()[0], bytearray(1 << 20)
            while peer.recv_into(buffer):
                pass
            os._exit(0)
        self._socket = netns.run_in(left.pod, socket.create_connection, (right.address, STREAM))

    def round(self) -> float:
        """Gbit/s."""
        chunk, sent = bytes(1 << 18), 0
        started = time.perf_counter()
        while time.perf_counter() - started < TCP_SECONDS:
            sent += self._socket.send(chunk)
        return sent * 8 / (time.perf_counter() - started) / 1e9

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        os.waitpid(self._child, 0)


def measured(local: int) -> int:
    """Number of the pod in the middle of the node's dispatch tree."""
    pods = [number for number in range(data.ENDPOINTS) if data.node_of(number, local) == data.HOST]
    return sorted(pods, key=data.interface)[local // 2]


def objects(local: int, side: int) -> Iterator[data.Object]:
    """The cluster, but for the pods that are measured: their addresses, and a policy, the last in their lists, by which
    they may talk to each other.
    """
    here, there = measured(local), data.ENDPOINTS + 1
    for key, value in data.cluster(local=local):
        if key.kind != "WorkloadEndpoint" or value.spec.interface_name != data.interface(here):
            yield key, value
    for number, node, address in ((here, data.HOST, side), (there, "node-1", 3 - side)):
        key, pod = data.endpoint(number, node, talks="yes")
        yield key, replace_struct(pod, spec=replace_struct(pod.spec, ip_networks=(f"10.65.{address}.2/32",)))
    peers = EntityRule(selector="talks == 'yes'")
    spec = GlobalNetworkPolicySpec(
        tier="default",
        order=2000.0,
        selector="talks == 'yes'",
        types=("Ingress", "Egress"),
        ingress=(Rule(action="Allow", source=peers),),
        egress=(Rule(action="Allow", destination=peers),),
    )
    meta = ObjectMeta(name="talk")
    yield ResourceKey("GlobalNetworkPolicy", "talk"), Resource(kind="GlobalNetworkPolicy", metadata=meta, spec=spec)


async def program(local: int, backend: str, number: int) -> None:
    """Program the node in whose namespace this process runs."""
    dataplane = Dataplane(FelixConfig.from_parameters({"IptablesBackend": backend}))
    await dataplane.start()
    graph = Graph(data.HOST, {})
    for key, value in objects(local, number):
        graph.on_update(key, value)
    graph.on_in_sync()
    dataplane.update(graph.flush())
    report = await dataplane.apply()
    assert report.ok, report.errors
    dataplane.close()


@contextlib.contextmanager
def paths(local: int, backend: str) -> Iterator[dict[str, tuple[Side, Side]]]:
    """The three paths."""
    interface = data.interface(measured(local))
    made = {name: (Side(1, interface), Side(2, interface)) for name in ("no rules", "conntrack", "ours")}
    for left, right in made.values():
        left.join(right)
    for side in made["conntrack"]:
        side.tracked()
    for side in made["ours"]:
        side.programmed(local, backend)
    yield made
    for left, right in made.values():
        for fd in (left.node, left.pod, right.node, right.pod):
            os.close(fd)


def measure(local: int, backend: str, rounds: int) -> None:
    with paths(local, backend) as made:
        os.sched_setaffinity(0, {os.cpu_count() - 1 if os.cpu_count() else 0})
        established = {name: Flow(*path, ANSWERED, answered=True) for name, path in made.items()}
        unanswered = {name: Flow(*path, SILENT, answered=False) for name, path in made.items()}
        streams = {name: Stream(*path) for name, path in made.items()}
        print(f"{local} pods a node, {backend}, {SIZE} bytes; medians of {rounds} rounds")
        for title, flows, unit in (
            ("established UDP", established, "us"),
            ("UDP never answered", unanswered, "us"),
            ("TCP", streams, "Gbit/s"),
        ):
            taken = {name: [] for name in flows}  # type: dict[str, list[float]]
            for _ in range(rounds):
                for name, flow in flows.items():
                    taken[name].append(flow.round())
            bare = taken["no rules"]
            for name, values in taken.items():
                pairs = zip(bare, values, strict=True)
                ratio = statistics.median(b / v if unit == "us" else v / b for b, v in pairs)
                print(f"{title:20} {name:10} {statistics.median(values):7.2f} {unit:6} ratio {ratio:5.2f}", flush=True)
        for stream in streams.values():
            stream.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", type=int, default=200)
    parser.add_argument("--backend", choices=["nft", "legacy"], default="nft")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--node", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    log.configure("error")
    if given.node:
        asyncio.run(program(given.local, given.backend, given.node))
    else:
        measure(given.local, given.backend, given.rounds)


if __name__ == "__main__":
    main()
