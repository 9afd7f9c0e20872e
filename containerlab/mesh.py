"""The demonstration mesh in hand: what `./run demo` and the lab tests do with ``mesh.clab.yml``.

Everything goes through what a user would type inside the nodes (``calipy …``, ``ip route``, ``tcpdump``); the answers
come back as values, so that the demo can print them and a test can compare them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calipy.containerlab.driver import Lab
from calipy.errors import CalipyError
from calipy.kernel.process import Completed

TOPOLOGY = Path(__file__).with_name("mesh.clab.yml")
POLICY = Path(__file__).parent / "policies" / "web.yaml"

NODES = ("n1", "n2", "n3")
ROUTER = "r1"
NAMESPACE = "demo"
PORT = 8080
POLL_SECONDS = 0.1
PROBE = "calipy.containerlab.probe"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the demonstration; ``address`` is known once it was added."""

    name: str
    node: str
    app: str
    address: str = ""


PODS = (
    Pod("web", "n1", "web"),
    Pod("cron", "n1", "cron"),
    Pod("client", "n2", "client"),
    Pod("db", "n2", "db"),
    Pod("cache", "n3", "cache"),
    Pod("batch", "n3", "batch"),
)

HOPS = {("n1", "n1"): 1, ("n1", "n2"): 2, ("n1", "n3"): 3, ("n2", "n3"): 3, ("n2", "n2"): 1, ("n3", "n3"): 1}
"""Routers between two pods, by their nodes: the node itself, both nodes, or both nodes and r1."""

Matrix = dict[str, dict[str, dict[str, Any]]]


class NotSoError(CalipyError):
    """Something that must be true of the mesh is not."""


def hops(a: Pod, b: Pod) -> int:
    """How many times a packet's TTL falls between two pods."""
    return HOPS.get((a.node, b.node)) or HOPS[b.node, a.node]


class Mesh:
    """A deployed mesh. Methods block; they may be called from several threads."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pods: dict[str, Pod] = {}
        self._pool = ThreadPoolExecutor(max_workers=12, thread_name_prefix="mesh")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # What a user types

    def run(self, node: str, *argv: str, timeout: float = 60.0) -> Completed:
        """Run a program inside a node; its result whatever the exit code."""
        return self.lab.exec(node, list(argv), timeout=timeout)

    def must(self, node: str, *argv: str, timeout: float = 60.0) -> str:
        """Run a program that has to succeed; its standard output."""
        done = self.run(node, *argv, timeout=timeout)
        if done.returncode != 0:
            raise NotSoError(
                f"{node}: {' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout.strip()

    def json(self, node: str, *argv: str, timeout: float = 60.0) -> Any:
        """The same for a program that prints JSON."""
        return json.loads(self.must(node, *argv, timeout=timeout))

    def everywhere(self, work: Callable[[str], Any], places: Iterable[str] = NODES) -> dict[str, Any]:
        """Do something for several nodes (or pods) at the same time; the results by name."""
        futures: dict[str, Future[Any]] = {place: self._pool.submit(work, place) for place in places}
        return {place: future.result() for place, future in futures.items()}

    # Nodes

    def readiness(self, node: str) -> tuple[bool, str]:
        """The node's readiness endpoint: ready or not, and the table it shows."""
        done = self.run(node, "calipy", "node", "health", timeout=15.0)
        return done.returncode == 0, done.stdout.strip() or done.stderr.strip()

    def peers(self, node: str) -> list[dict[str, Any]]:
        """BGP peers as ``calipy node status -o json`` tells them; empty while bgpd does not answer."""
        done = self.run(node, "calipy", "node", "status", "-o", "json", timeout=15.0)
        return list(json.loads(done.stdout.strip())["bgp"]["peers"]) if done.returncode == 0 else []

    def unready(self) -> dict[str, str]:
        """Nodes that are not ready or not Established with every peer, each with the reason."""

        def reason(node: str) -> str:
            ready, table = self.readiness(node)
            if not ready:
                return table.strip() or "not ready"
            peers = self.peers(node)
            down = [p["address"] for p in peers if p["info"] != "Established"]
            if down:
                return f"no session with {', '.join(down)}"
            mesh = [p for p in peers if p["type"] == "node-to-node mesh"]
            if len(mesh) != len(NODES) - 1:
                return f"peers with {len(mesh)} of {len(NODES) - 1} nodes"
            return "" if len(peers) == len(NODES) else "does not peer with the router yet"

        return {node: why for node, why in self.everywhere(reason).items() if why}

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until every node is ready and Established with every other node and the router."""
        wait_until(lambda: not self.unready(), timeout, lambda: f"nodes are not ready: {self.unready()}")

    def routes(self, node: str) -> list[dict[str, Any]]:
        """The node's main table as ``ip -json -details route`` prints it."""
        return list(self.json(node, "ip", "-json", "-details", "route", "show"))

    # Pods

    def add_pod(self, pod: Pod) -> Pod:
        """``calipy workload add`` on the pod's node; the pod with its address, serving on PORT."""
        added = self.json(
            pod.node, "calipy", "workload", "add", pod.name, "--namespace", NAMESPACE,
            "--label", f"app={pod.app}", "-o", "json",
        )  # fmt: skip
        made = Pod(pod.name, pod.node, pod.app, added["addresses"][0].split("/")[0])
        self.pods[pod.name] = made
        self.in_pod(made, "python3", "-m", PROBE, "serve", "--port", str(PORT), "--background")
        return made

    def add_pods(self, pods: Sequence[Pod] = PODS) -> None:
        """Add several pods at the same time."""
        by_name = {pod.name: pod for pod in pods}
        self.everywhere(lambda name: self.add_pod(by_name[name]), by_name)

    def delete_pod(self, name: str) -> Pod:
        pod = self.pods.pop(name)
        self.must(pod.node, "calipy", "workload", "del", name, "--namespace", NAMESPACE)
        return pod

    def in_pod(self, pod: Pod, *argv: str, timeout: float = 60.0) -> str:
        """Run a program inside a pod; its standard output. Raises NotSoError when it fails."""
        return self.must(
            pod.node, "calipy", "workload", "exec", pod.name, "--namespace", NAMESPACE, "--", *argv, timeout=timeout
        )

    def probe(self, pod: Pod, command: str, *argv: str, timeout: float = 60.0) -> dict[str, Any]:
        """One command of ``probe.py`` inside a pod; the last JSON object it prints."""
        lines = self.in_pod(pod, "python3", "-m", PROBE, command, *argv, timeout=timeout).splitlines()
        result: dict[str, Any] = json.loads(lines[-1])
        return result

    def matrix(self, timeout: float = 1.0) -> Matrix:
        """Every pod to every other by ICMP, TCP and UDP: source name → destination name → result of the probe."""

        def row(name: str) -> dict[str, dict[str, Any]]:
            others = {p.address: p.name for p in self.pods.values() if p.name != name}
            found = self.probe(
                self.pods[name], "check", "--port", str(PORT), "--timeout", str(timeout), "--to", *others
            )
            return {others[address]: result for address, result in found.items()}

        return self.everywhere(row, list(self.pods))

    def check(self, source: Pod, target: Pod, timeout: float = 1.0) -> dict[str, Any]:
        """One cell of the matrix."""
        found = self.probe(source, "check", "--to", target.address, "--port", str(PORT), "--timeout", str(timeout))
        cell: dict[str, Any] = found[target.address]
        return cell

    def stream(self, source: Pod, target: Pod, seconds: float, rate: float = 100.0) -> Future[dict[str, Any]]:
        """Start a stream of ``rate`` datagrams a second; the counts when it is over."""
        return self._pool.submit(
            self.probe, source, "stream", "--to", target.address, "--port", str(PORT),
            "--rate", str(rate), "--seconds", str(seconds), timeout=seconds + 30.0,
        )  # fmt: skip

    def hold(self, source: Pod, target: Pod, seconds: float) -> Future[dict[str, Any]]:
        """Hold a TCP connection open and talk on it."""
        return self._pool.submit(
            self.probe, source, "hold", "--to", target.address, "--port", str(PORT), "--seconds", str(seconds),
            timeout=seconds + 30.0,
        )  # fmt: skip

    # Faults

    def kill_daemon(self, node: str, name: str) -> int:
        """SIGKILL a node's ``agent`` or ``bgpd``; the pid that was killed."""
        pid = int(self.json(node, "calipy", "node", "status", "-o", "json")[name]["pid"])
        self.must(node, "kill", "-9", str(pid))
        return pid

    def daemon_pid(self, node: str, name: str) -> int:
        """The pid of a daemon that answers, or 0."""
        done = self.run(node, "calipy", "node", "status", "-o", "json", timeout=15.0)
        return int((json.loads(done.stdout.strip()).get(name) or {}).get("pid") or 0) if done.returncode == 0 else 0


def wait_until(
    condition: Callable[[], bool], timeout: float, complaint: Callable[[], str], *, poll: float = POLL_SECONDS
) -> float:
    """Poll until ``condition`` holds; the seconds it took. Raises NotSoError with ``complaint()`` after ``timeout``."""
    start = time.monotonic()
    pause = threading.Event()
    while True:
        try:
            if condition():
                return time.monotonic() - start
        except (CalipyError, KeyError, ValueError):
            if time.monotonic() - start > timeout:
                raise
        if time.monotonic() - start > timeout:
            raise NotSoError(f"after {timeout:.0f} s: {complaint()}")
        pause.wait(poll)


def wrong_cells(matrix: Matrix, pods: dict[str, Pod], allowed: Callable[[Pod, Pod, str], bool]) -> list[str]:
    """Cells that are not as ``allowed(source, destination, protocol)`` says, NAT, and wrong hop counts (pure)."""
    wrong = []
    for source, row in matrix.items():
        for destination, cell in row.items():
            a, b = pods[source], pods[destination]
            for protocol in ("icmp", "tcp", "udp"):
                if cell[protocol] != allowed(a, b, protocol):
                    word = "reached" if cell[protocol] else "did not reach"
                    wrong.append(f"{source} {word} {destination} by {protocol}")
            if (cell["tcp"] or cell["udp"]) and cell["peer"] != a.address:
                wrong.append(f"{destination} saw {source} as {cell['peer']}, not as {a.address}")
            if cell["udp"] and cell["ttl"] != 64 - hops(a, b):
                wrong.append(f"{source} to {destination}: TTL {cell['ttl']}, expected {64 - hops(a, b)}")
    return wrong
