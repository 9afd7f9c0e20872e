"""A small routed network with real etcd, bgpd, ExaBGP and BIRD processes in namespaces, for the tests of BGP.

fabric: a router with subnet A (bridge, 10.77.1.254/24, fd77:1::fe/64), subnet B (10.77.2.254/24) and etcd.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from calipy import api_client
from calipy.bgp.exabgp.process import Paths, start_time
from calipy.datastore import codec, keys
from calipy.datastore.ipam import AllocationAttribute, Block, BlockAffinity
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, IPPoolSpec, NodeBGPSpec, NodeSpec
from calipy.errors import CalipyError
from calipy.net import PROTO_BGP, Prefix, Route
from tests.support import owned
from tests.support.netns import Namespace, connect

ROOT = Path(__file__).resolve().parents[2]
ETCD = "http://10.77.1.254:2379"
T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T], timeout: float = 45.0) -> T:
    """The first true result of ``probe``; fails with what was wanted and the last result."""
    give_up = time.monotonic() + timeout
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {timeout:.0f} s: {what}; last: {result!r}")
        time.sleep(0.05)


def eventually_is(what: str, expected: T, get: Callable[[], T], timeout: float = 45.0) -> None:
    """``get`` gives the expected value in the end; fails with what it gave last."""
    give_up = time.monotonic() + timeout
    while (found := get()) != expected:
        if time.monotonic() > give_up:
            raise AssertionError(f"{what}, after {timeout:.0f} s: expected {expected!r}, found {found!r}")
        time.sleep(0.05)


class Program:
    """A program in a namespace, killed with the test process; its output in a file."""

    def __init__(self, namespace: Namespace, argv: Sequence[str], log: Path, **environ: str) -> None:
        command = ["nsenter", f"--net={namespace.path}", "setpriv", "--pdeathsig", "KILL", "--", *argv]
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env={**os.environ, **environ}
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(15)


class BgpNode:
    """A node that runs bgpd."""

    def __init__(self, lab: BgpLab, name: str, namespace: Namespace, address: str) -> None:
        self.lab = lab
        self.name = name
        self.ns = namespace
        self.address = address
        self.directory = lab.directory / name
        self.directory.mkdir(exist_ok=True)
        self.bgpd: Program | None = None

    def start(self, **environ: str) -> None:
        """Start bgpd."""
        argv = [sys.executable, "-m", "tests.support.bgpd_process", self.name, str(self.directory)]
        self.bgpd = Program(self.ns, argv, self.directory / "bgpd.log", ETCD_ENDPOINTS=ETCD, **environ)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill bgpd; ExaBGP lives on."""
        assert self.bgpd
        self.bgpd.kill(number)

    def status(self) -> dict[str, Any]:
        """What bgpd says, {} while it does not answer."""
        try:
            return dict(api_client.call(self.directory / "bgpd.sock", "status", timeout=5))
        except CalipyError:
            return {}

    def exabgp(self) -> int:
        """ExaBGP's process id, 0 if it does not run."""
        try:
            record = json.loads(Paths(self.directory / "exabgp").pid.read_text())
        except FileNotFoundError:
            return 0
        return int(record["pid"]) if start_time(record["pid"]) == record["start_time"] else 0

    def peers(self) -> dict[str, dict[str, Any]]:
        """Sessions by peer address."""
        return {peer["address"]: peer for peer in self.status().get("peers", [])}

    def up(self, *addresses: str) -> bool:
        """Whether the sessions with these peers are up."""
        peers = self.peers()
        return all(peers.get(address, {}).get("state") == "up" for address in addresses)

    def routes(self) -> dict[str, Route]:
        """The kernel's routes to others that BGP wrote, by destination."""
        return {str(route.dst): route for route in self._written() if route.kind != "blackhole"}

    def blackholes(self) -> set[str]:
        """Its blackholes of own blocks."""
        return {str(route.dst) for route in self._written() if route.kind == "blackhole"}

    def _written(self) -> list[Route]:
        return self.ns.routes.dump(protocol=PROTO_BGP)

    def gateways(self) -> dict[str, tuple[str, ...]]:
        """Gateways of those routes."""
        return {dst: tuple(sorted(str(hop.gateway) for hop in route.next_hops)) for dst, route in self.routes().items()}

    def told(self) -> str:
        """The end of bgpd's log, for messages."""
        return (self.directory / "bgpd.log").read_text()[-3000:]

    def close(self) -> None:
        if self.bgpd:
            self.bgpd.kill()
        if pid := self.exabgp():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class BgpLab:
    """The network, its datastore and its nodes."""

    def __init__(self, make_netns: Callable[..., Namespace]) -> None:
        self.make_netns = make_netns
        self.directory = owned.directory("bgp")
        self.nodes: list[BgpNode] = []
        self.programs: list[Program] = []
        self.fabric = make_netns("fabric")
        self.fabric.links.create_bridge("br0")
        self.fabric.address("br0", "10.77.1.254/24")
        self.fabric.address("br0", "fd77:1::fe/64")
        self.fabric.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self._etcd()

    def _etcd(self) -> None:
        peer = "http://127.0.0.1:2380"
        self.run(
            self.fabric,
            "etcd", "--name", "test", "--data-dir", str(self.directory / "etcd"),
            "--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", ETCD,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"test={peer}",
            "--unsafe-no-fsync", "--log-level", "error", "--logger", "zap",
            label="etcd",
        )  # fmt: skip
        eventually("etcd answers", lambda: self._etcdctl("get", "x") is not None)

    def _etcdctl(self, *arguments: str, stdin: bytes = b"") -> str | None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "http"))}
        done = subprocess.run(
            ["nsenter", f"--net={self.fabric.path}", "etcdctl", "--endpoints", "http://127.0.0.1:2379", *arguments],
            input=stdin, capture_output=True, timeout=20, check=False, env={**environ, "ETCDCTL_API": "3"},
        )  # fmt: skip
        return done.stdout.decode() if done.returncode == 0 else None

    def run(self, namespace: Namespace, *argv: str, label: str) -> Program:
        """Start a program that ends with the lab."""
        self.programs.append(Program(namespace, argv, self.directory / f"{label}.log"))
        return self.programs[-1]

    # Datastore

    def put(self, key: keys.Key, value: codec.Value) -> None:
        """Write a typed value."""
        assert self._etcdctl("put", keys.path(key), stdin=codec.encode(value)) is not None

    def garble(self, key: keys.Key) -> None:
        """Write what nobody can read."""
        assert self._etcdctl("put", keys.path(key), stdin=b'{"spec": 7') is not None

    def stored(self, key: keys.Key) -> str:
        """The value of a key as etcd has it, "" if it does not exist."""
        return self._etcdctl("get", "--print-value-only", keys.path(key)) or ""

    def apply(self, kind: str, name: str, spec: Any, labels: Mapping[str, str] | None = None) -> None:
        """Write a resource."""
        self.put(keys.ResourceKey(kind, name), codec.new(kind, name, spec, labels=dict(labels or {})))

    def delete(self, key: keys.Key) -> None:
        """Remove a key."""
        assert self._etcdctl("del", keys.path(key)) is not None

    def pool(self, cidr: str, name: str = "pool", **fields: Any) -> None:
        """An IP pool."""
        size = 122 if ":" in cidr else 26
        self.apply("IPPool", name, IPPoolSpec(cidr=cidr, block_size=size, **fields))

    def block(self, cidr: str, host: str, used: Mapping[int, str] | None = None, state: str = "confirmed") -> None:
        """A block of ``host``; ``used`` maps ordinals to the nodes that use them."""
        used = used or {}
        size = ipaddress.ip_network(cidr).num_addresses
        users = sorted(set(used.values()))
        block = Block(
            cidr=cidr,
            affinity=f"host:{host}",
            allocations=tuple(users.index(used[i]) if i in used else None for i in range(size)),
            unallocated=tuple(i for i in range(size) if i not in used),
            attributes=tuple(AllocationAttribute(handle_id=f"h-{user}", secondary={"node": user}) for user in users),
        )
        self.put(keys.BlockKey(cidr), block)
        self.put(keys.BlockAffinityKey(host, cidr), BlockAffinity(state=state))

    def unblock(self, cidr: str, host: str) -> None:
        """Remove a block and its affinity."""
        self.delete(keys.BlockAffinityKey(host, cidr))
        self.delete(keys.BlockKey(cidr))

    def report(self, name: str, *, alive: bool) -> None:
        """What Felix of a node has left in the datastore; the lease of a dead one has run out."""
        text = b'{"time":"2026-08-01T10:00:00Z","uptime":12.5,"first_update":false}'
        for last in (False, True) if alive else (True,):
            key = keys.path(keys.FelixStatusKey(name, last_reported=last))
            assert self._etcdctl("put", key, stdin=text) is not None

    def peer(self, name: str, **fields: Any) -> None:
        """A BGPPeer."""
        self.apply("BGPPeer", name, BGPPeerSpec(**fields))

    def configuration(self, name: str = "default", **fields: Any) -> None:
        """A BGPConfiguration."""
        self.apply("BGPConfiguration", name, BGPConfigurationSpec(**fields))

    # Nodes

    def namespace(self, name: str, *addresses: str, subnet: str = "a") -> Namespace:
        """A host on subnet A (a port of the bridge) or B (a link of its own to the fabric)."""
        host = self.make_netns(name)
        port = f"p-{name}"
        connect(self.fabric, host, names=(port, "eth0"))
        if subnet == "a":
            self.fabric.links.set_master(port, "br0")
            gateways = ("10.77.1.254", "fd77:1::fe")
        else:
            self.fabric.address(port, "10.77.2.254/24")
            self.fabric.address(port, "fd77:2::fe/64")
            gateways = ("10.77.2.254", "fd77:2::fe")
        for address in addresses:
            host.address("eth0", address)
        for gateway in gateways:
            if any((":" in address) == (":" in gateway) for address in addresses):
                host.run("ip", "route", "add", "default", "via", gateway)
        host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        return host

    def node(
        self,
        name: str,
        address: str,
        *,
        address6: str = "",
        subnet: str = "a",
        start: bool = True,
        labels: Mapping[str, str] | None = None,
        **bgp: Any,
    ) -> BgpNode:
        """A node with its Node resource, and bgpd running."""
        host = self.namespace(name, *(one for one in (address, address6) if one), subnet=subnet)
        spec = NodeBGPSpec(ipv4_address=address, ipv6_address=address6, **bgp)
        self.apply("Node", name, NodeSpec(bgp=spec), labels)
        node = BgpNode(self, name, host, address.partition("/")[0])
        self.nodes.append(node)
        if start:
            node.start()
        return node

    def bird(self, namespace: Namespace, configuration: str, label: str = "bird") -> Bird:
        """BIRD with a configuration, in a namespace."""
        return Bird(self, namespace, configuration, label)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        for program in reversed(self.programs):
            program.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Bird:
    """A BIRD daemon."""

    def __init__(self, lab: BgpLab, namespace: Namespace, configuration: str, label: str) -> None:
        self.ns = namespace
        self._lab = lab
        self._label = label
        self._file = lab.directory / f"{label}.conf"
        self._control = lab.directory / f"{label}.ctl"
        self._file.write_text(configuration)
        self.program = self.start()

    def start(self, *flags: str) -> Program:
        """Start it (again)."""
        argv = ["bird", "-f", "-c", str(self._file), "-s", str(self._control), *flags]
        self.program = self._lab.run(self.ns, *argv, label=self._label)
        eventually("bird answers", lambda: "ready" in self.ask("show status", check=False))
        return self.program

    def write(self, configuration: str) -> None:
        """Other configuration, for the next start."""
        self._file.write_text(configuration)

    def configure(self, configuration: str) -> None:
        """Other configuration, taken up at once."""
        self.write(configuration)
        self.ask("configure")

    def ask(self, command: str, *, check: bool = True) -> str:
        """birdc's answer."""
        argv = ["birdc", "-s", str(self._control), *command.split()]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def routes(self) -> str:
        """All of its routes with attributes."""
        return self.ask("show route all", check=False)


class Pinger:
    """Counts lost packets of a steady ping from one namespace to an address."""

    def __init__(self, source: Namespace, target: str, log: Path, interval: float = 0.01) -> None:
        self._log = log
        self._program = Program(source, ["ping", "-n", "-i", str(interval), "-W", "1", target], log)

    def stop(self) -> tuple[int, int]:
        """End it; packets sent and lost."""
        time.sleep(0.2)
        self._program.process.send_signal(signal.SIGINT)
        self._program.process.wait(10)
        text = self._log.read_text()
        line = next(one for one in text.splitlines() if "packets transmitted" in one)
        sent, received = int(line.split()[0]), int(line.split()[3])
        return sent, sent - received


@contextlib.contextmanager
def network() -> Iterator[BgpLab]:
    """An empty BGP lab with namespaces of its own, for what lives longer than a test."""
    with contextlib.ExitStack() as stack:

        def make(label: str = "ns") -> Namespace:
            namespace = Namespace(label)
            stack.callback(namespace.close)
            return namespace

        yield stack.enter_context(contextlib.closing(BgpLab(make)))


@pytest.fixture
def bgp_lab(make_netns: Callable[..., Namespace]) -> Iterator[BgpLab]:
    """An empty BGP lab."""
    lab = BgpLab(make_netns)
    try:
        yield lab
    finally:
        lab.close()


def prefix(text: str) -> Prefix:
    """A prefix, from its text."""
    return ipaddress.ip_network(text)
