"""A node with pods in network namespaces, and the real Felix in it, driven by ``Changes`` that the test writes."""

from __future__ import annotations

import base64
import ipaddress
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from calipy.felix.daemon import FelixStatus
from calipy.felix.messages import (
    ActivePolicy,
    ActiveProfile,
    Changes,
    ClusterRoute,
    EndpointID,
    IPSet,
    Match,
    PolicyID,
    PortRange,
    Rule,
    TierInfo,
    WorkloadEndpoint,
)
from calipy.kernel import netns as kernel_netns
from calipy.kernel import sysctl
from calipy.net import HOST_LINK_LOCAL, HOST_MAC, POD_GATEWAY
from tests.support.netns import Namespace, connect
from tests.support.objects import Object

BACKENDS = pytest.mark.parametrize("backend", ["nft", "legacy"])
ALLOW_ALL = ActiveProfile("open", (Rule("allow"),), (Rule("allow"),))


def until(condition: Callable[[], Any], *, timeout: float = 30.0) -> Any:
    """The first true value of ``condition``; fails when the time is up."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never true: {condition}"
        time.sleep(0.02)
    return value


class Pod:
    """A namespace with ``eth0`` set up as Calico's CNI plugin does, its host end in the node."""

    def __init__(
        self, node: Namespace, namespace: Namespace, number: int, interface: str, address: str = "", address6: str = ""
    ) -> None:
        self.ns = namespace
        self.interface = interface
        self.address = address or f"10.65.0.{number}"
        self.address6 = address6 or f"fd65::{number:x}"
        self.mac = f"02:00:00:00:00:{number:02x}"
        self.id = EndpointID("k8s", f"ns1/pod{number}", "eth0")
        connect(node, namespace, names=(interface, "eth0"))
        node.links.set_mac(interface, HOST_MAC)
        namespace.links.set_mac("eth0", self.mac)
        namespace.address("eth0", f"{self.address}/32")
        namespace.links.add_address("eth0", ipaddress.ip_interface(f"{self.address6}/128"), dad=False)
        namespace.run("ip", "route", "add", POD_GATEWAY, "dev", "eth0", "scope", "link")
        namespace.run("ip", "route", "add", "default", "via", POD_GATEWAY, "dev", "eth0")
        namespace.run("ip", "-6", "route", "add", "default", "via", HOST_LINK_LOCAL, "dev", "eth0")
        namespace.run(
            "ip", "-6", "neigh", "add", HOST_LINK_LOCAL, "lladdr", HOST_MAC, "dev", "eth0", "nud", "permanent"
        )
        namespace.call(_no_redirects)

    def endpoint(
        self, tiers: tuple[TierInfo, ...] = (), profiles: tuple[str, ...] = ("open",), **changed: Any
    ) -> WorkloadEndpoint:
        """Its workload endpoint."""
        nets = (f"{self.address}/32", f"{self.address6}/128")
        values = {"mac": self.mac, "nets": nets, "tiers": tiers, "profiles": profiles, **changed}
        return WorkloadEndpoint(self.id, self.interface, **values)


def _no_redirects() -> None:
    Path("/proc/sys/net/ipv4/conf/all/accept_redirects").write_text("0", "ascii")


class FelixServer:
    """Forks Felix processes inside a namespace (see ``felix_child``)."""

    def __init__(self, node: Namespace, environment: Mapping[str, str]) -> None:
        mine, theirs = socket.socketpair()
        self._requests = mine
        child = Path(__file__).with_name("felix_child.py")
        argv = ["ip", "netns", "exec", node.path.name, sys.executable, str(child)]
        with theirs:
            self._process = subprocess.Popen(argv, stdin=theirs, env={**os.environ, **environment})

    def fork(self) -> socket.socket:
        """The line to a new process."""
        mine, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._requests, [b"f"], [theirs.fileno()])
        return mine

    def close(self) -> None:
        self._requests.close()
        self._process.wait(10)


class FelixProcess:
    """A process that runs Felix inside a namespace; it ends at the latest with ours.

    Attributes:
        pid: its number.
    """

    def __init__(
        self,
        server: FelixServer,
        config: dict[str, str],
        *,
        graph: bool = False,
        hostname: str = "node1",
        mtu_file: Path | None = None,
    ) -> None:
        self._socket = server.fork()
        self._line = self._socket.makefile("rwb")
        self.pid: int = self._answer()
        self._request((config, graph, hostname, mtu_file))

    def ask(self, command: str, argument: Any = None) -> Any:
        """One request, one answer."""
        self._request((command, argument))
        return self._answer()

    def _request(self, request: Any) -> None:
        self._line.write(base64.b64encode(pickle.dumps(request)) + b"\n")
        self._line.flush()

    def _answer(self) -> Any:
        answer = self._line.readline()
        assert answer, "Felix has ended"
        return pickle.loads(base64.b64decode(answer))

    def send(self, **changes: Any) -> None:
        """Changes, as one flush of the graph."""
        self.ask("changes", Changes(**{"in_sync": True, **changes}))

    def events(self, *objects: Object, revision: int = 1) -> None:
        """Objects of the datastore at a revision, and that this is all for now."""
        self.ask("events", (revision, objects))

    def status(self) -> FelixStatus:
        """Felix's own view."""
        status: FelixStatus = self.ask("status")
        return status

    def settle(self) -> FelixStatus:
        """Wait until everything sent so far has been applied without errors."""
        before = self.status().applied_at
        return until(lambda: (s := self.status()).ready and s.applied_at != before and s)

    def wait(self, *pods: Pod, timeout: float = 30.0) -> None:
        """Wait until the pods' endpoints are programmed."""
        for pod in pods:
            assert self.ask("wait", (pod.id, timeout)), (pod.interface, self.status())

    def kill(self) -> None:
        """SIGKILL, and wait."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """End of input: Felix ends as with SIGTERM."""
        self._socket.shutdown(socket.SHUT_WR)
        self._end()

    def close(self) -> None:
        """Kill it, unless it has ended."""
        if not self._line.closed:
            self.kill()

    def _end(self) -> None:
        while self._line.read(1 << 16):  # nobody else holds the other end
            pass
        self._line.close()
        self._socket.close()


class Node:
    """A node: a namespace with an uplink to a "world" namespace."""

    def __init__(self, make_netns: Callable[..., Namespace]) -> None:
        self._make = make_netns
        self.ns = make_netns("node")
        self.world = make_netns("world")
        self.ns.call(Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text, "0", "ascii")
        connect(self.ns, self.world, ("172.16.0.1/24", "172.16.0.2/24"), ("fd16::1/64", "fd16::2/64"))
        self.ns.run("ip", "route", "add", "default", "via", "172.16.0.2")
        self.ns.run("ip", "-6", "route", "add", "default", "via", "fd16::2")
        self.world.run("ip", "route", "add", "10.65.0.0/16", "via", "172.16.0.1")
        self.world.run("ip", "-6", "route", "add", "fd65::/64", "via", "fd16::1")
        self.pods: list[Pod] = []
        self._processes: list[FelixProcess] = []
        self._server: FelixServer | None = None

    def pod(self, interface: str = "") -> Pod:
        """One more pod."""
        number = len(self.pods) + 2
        pod = Pod(self.ns, self._make(f"pod{number}"), number, interface or f"cali{number:07x}")
        self.pods.append(pod)
        return pod

    def felix(
        self, *, graph: bool = False, environment: Mapping[str, str] | None = None, **config: str
    ) -> FelixProcess:
        """Start Felix with these parameters; with ``graph`` it takes ``events``, without it ``send``.

        Variables of the environment are of the first start, and stay.
        """
        self._server = self._server or FelixServer(self.ns, environment or {})
        self._processes.append(FelixProcess(self._server, config, graph=graph))
        return self._processes[-1]

    def rules(self, backend: str = "nft", table: str = "filter", family: int = 4) -> str:
        """``iptables-save`` of one table."""
        return self.ns.run(f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-save", "-t", table)

    def close(self) -> None:
        for process in self._processes:
            process.close()
        if self._server is not None:
            self._server.close()


@pytest.fixture
def node(make_netns: Callable[..., Namespace]) -> Iterator[Node]:
    """A node without pods."""
    made = Node(make_netns)
    yield made
    made.close()


def policy(name: str, inbound: Iterable[Rule] = (), outbound: Iterable[Rule] = (), **values: Any) -> ActivePolicy:
    """A global policy in the default tier."""
    identity = PolicyID("GlobalNetworkPolicy", "", name)
    return ActivePolicy(identity, "default", tuple(inbound), tuple(outbound), **values)


def tier(
    *policies: ActivePolicy, name: str = "default", action: str = "Deny", ingress: bool = True, egress: bool = False
) -> TierInfo:
    """A tier in which all the policies apply to the given directions."""
    ids = tuple(item.id for item in policies)
    return TierInfo(name, action, ids if ingress else (), ids if egress else ())  # type: ignore[arg-type]


def programmed(node: Node, felix: FelixProcess, count: int = 2) -> list[Pod]:
    """Pods of which the first accepts TCP 80 from a set with all others, and nothing else."""
    pods = [node.pod() for _ in range(count)]
    send(felix, pods)
    felix.wait(*pods)
    return pods


def send(felix: FelixProcess, pods: list[Pod], *strangers: Pod) -> None:
    """What ``programmed`` is about; of the others, UDP gets to the first pod, too. Strangers get nothing to it."""
    from_others = Match(ip_sets=("s:x",))
    http = Match(ports=(PortRange(80, 80),))
    udp = Rule("allow", protocol="udp", src=from_others)
    web = policy("web", [Rule("allow", protocol="tcp", src=from_others, dst=http), udp])
    own = [ipaddress.ip_network(block) for block in ("10.65.0.0/26", "10.65.9.9/32")]
    felix.send(
        ip_sets={"s:x": IPSet("s:x", "net", frozenset(pod.address for pod in pods[1:]))},
        profiles={"open": ALLOW_ALL},
        policies={web.id: web},
        routes=dict.fromkeys(own, ClusterRoute("vxlan", "n1", local=True)),
        endpoints={pod.id: pod.endpoint((tier(web),) if pod is pods[0] else ()) for pod in (*pods, *strangers)},
    )


def ghost(number: int, *tiers: TierInfo) -> WorkloadEndpoint:
    """An endpoint whose interface is not there."""
    identity = EndpointID("k8s", f"ns1/ghost{number}", "eth0")
    return WorkloadEndpoint(identity, f"calighost{number}", "", (f"10.65.1.{number}/32",), tiers, ("open",))


def listed(saved: str) -> list[str]:
    """Rules and chains of ``iptables-save``, without counters and times; the order of chains says nothing."""
    return sorted(line.partition(" [")[0] for line in saved.splitlines() if line.startswith(("-A", ":")))


def sysctl_of(key: str, value: str | None = None) -> str:
    """A sysctl of the present namespace, after it has been set to ``value`` if there is one."""
    if value is not None:
        sysctl.write(key, value)
    return sysctl.read(key)


def proxy_arp(node: Node, pod: Pod) -> None:
    """Answer for a pod's gateway, as Felix has the kernel do."""
    node.ns.call(sysctl_of, f"net/ipv4/conf/{pod.interface}/proxy_arp", "1")
    node.ns.call(sysctl_of, f"net/ipv4/neigh/{pod.interface}/proxy_delay", "0")


def reaches(source: Namespace, address: str, port: int, *, source_address: str = "", timeout: float = 0.6) -> bool:
    """Whether a TCP connection opens from inside a namespace; being refused counts, the answer came back."""

    def connect_once() -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            if source_address:
                sock.bind((source_address, 0))
            try:
                sock.connect((address, port))
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
            return True

    result: bool = kernel_netns.run_in(source.fd, connect_once)
    return result


def pings(source: Namespace, address: str) -> bool:
    """Whether one of two pings from inside a namespace is answered."""
    done = kernel_netns.run_in(
        source.fd,
        subprocess.run,
        ["ping", "-n", "-c", "2", "-i", "0.1", "-W", "0.5", address],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
