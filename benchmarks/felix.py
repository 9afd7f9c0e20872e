"""Felix, from a write in etcd to the kernel, against the bare kernel and etcd tools in the same run.

A real etcd, the agent as a process of its own, a network namespace with the pods' interfaces; the bare tools do the
same work in a twin namespace, in turns with ours, so that both meet the same noise. What the agent has done is seen in
the kernel, never asked of the agent, so that another one (``--program PATH``: the real calico-felix) can be put in its
place.

Rows: ``a`` cold start with 200 local pods, ``b`` a policy's port, ``c`` a remote pod's label, ``d`` one more pod and 30
at once with 1,500, ``e`` cold start with 1,500, ``f`` idle. Exits 1 if a row passes its limit.

    ./run bench felix [--rows abc] [--rounds 100] [--program PATH] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from ipaddress import ip_interface
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _cluster as data
from _felix import AgentProcess, Kernel, Twin, compile_agent, until

from calipy.cli.render import table
from calipy.datastore import codec, keys
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.store import Delete, Put
from calipy.felix.render.names import chain_name, set_name, workload_chain
from calipy.kernel import netns
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable
from calipy.policy import selector as selectors
from tests.support.etcd import EtcdServer

LIMITS = {
    "a": {"ratio": 2.8, "MiB": 150},
    "b": {"ratio": 2.0, "p99 ratio": 4.0},
    "c": {"ratio": 4.2, "p99 ms": 25},
    "d": {"ratio": 2.5},
    "d30": {"p50 ms": 500},
    "e": {"ratio": 2.5},
    "f": {"% of a core": 0.6},
}
COLUMNS = ("", "what", "p50 ms", "p99", "max", "bare", "ratio", "CPU ms", "MiB", "over")
MANY = 1500
FEW = 200
BURST = 30
SPARE = 200
"""Interfaces for pods that come during the run."""
IDLE_SECONDS = 30


@dataclass
class Row:
    """One line of the table; times in milliseconds."""

    row: str
    what: str
    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    cpu: float = 0.0
    mib: float = 0.0
    idle: float | None = None

    def figures(self) -> dict[str, float]:
        """What the limits are about."""
        if self.idle is not None:
            return {"% of a core": self.idle, "MiB": self.mib}
        found = {"p50 ms": _percentile(self.ours, 50), "p99 ms": _percentile(self.ours, 99), "max ms": max(self.ours)}
        if self.bare:
            bare = _percentile(self.bare, 50)
            found |= {"bare ms": bare, "ratio": found["p50 ms"] / bare, "p99 ratio": found["p99 ms"] / bare}
        return found | {"CPU ms": self.cpu, "MiB": self.mib}

    def broken(self) -> list[str]:
        """Limits that it passes."""
        figures = self.figures()
        return [f"{name} > {limit}" for name, limit in LIMITS.get(self.row, {}).items() if figures[name] > limit]


def _percentile(values: list[float], percent: int) -> float:
    """Nearest rank; the median of an even number lies between two."""
    if percent == 50:
        return statistics.median(values)
    return sorted(values)[max(-(-len(values) * percent // 100) - 1, 0)]


class Bench:
    """A node with ``local`` pods in a cluster of 10,000."""

    def __init__(self, url: str, program: str, directory: Path, *, interfaces: bool) -> None:
        self.store = EtcdStore([url])
        self.url = url
        self.interfaces = interfaces
        self._program = program
        self._directory = directory
        self.kernel = Kernel()
        self.agent: AgentProcess | None = None
        self.twin: Twin | None = None
        self.local: list[int] = []
        self._nowhere = netns.create_unnamed()

    async def load(self, local: int) -> None:
        """Put the cluster into etcd, and the local pods' interfaces into the namespace."""
        operations = [Put(keys.path(key), codec.encode(value)) for key, value in data.cluster(local=local)]
        for start in range(0, len(operations), 100):
            await self.store.txn([], operations[start : start + 100])
        known = set(self.local)
        self.local = [number for number in range(data.ENDPOINTS) if data.node_of(number, local) == data.HOST]
        if self.interfaces:
            with NetlinkSocket() as netlink_socket:
                links = Links(netlink_socket)
                for number in (*self.local, *(range(data.ENDPOINTS, data.ENDPOINTS + SPARE) if not known else ())):
                    if number not in known:
                        name = data.interface(number)
                        links.create_veth(VethEnd(name), VethEnd(name, self._nowhere))
                        links.set_up(name)
                with NetlinkSocket(netns_fd=self._nowhere) as far:
                    peers = Links(far)
                    for link in peers.list_links():
                        peers.set_up(link.name)

    def programmed(self, numbers: Iterable[int]) -> Callable[[], bool]:
        """Whether these pods are in force; cheap as long as nothing is written."""
        names = {data.interface(number) for number in numbers}
        chains = {workload_chain(name, "ingress") for name in names}
        seen = -1
        ruled = False

        def check() -> bool:
            nonlocal seen, ruled
            if not ruled:
                generation = self.kernel.generation()
                if generation == seen:
                    return False
                seen = generation
                ruled = chains <= self.kernel.chains()
            return ruled and (not self.interfaces or self.kernel.routed(names))

        return check

    def start(self) -> float:
        """Start the agent on an empty kernel; milliseconds until the last local pod is programmed."""
        self.clear()
        started = time.perf_counter()
        self.agent = AgentProcess(self._program, self.url, self._directory)
        until(self.programmed(self.local), pause=0.002)
        return (time.perf_counter() - started) * 1000

    def clear(self) -> None:
        """No agent, no rules, no sets, no routes to pods."""
        if self.agent is not None:
            self.agent.end()
            self.agent = None
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        subprocess.run(["ipset", "destroy"], check=True)
        with NetlinkSocket() as netlink_socket:
            routes = RouteTable(netlink_socket)
            routes.apply(delete=[r for r in routes.dump() if any(h.interface.startswith("cali") for h in r.next_hops)])

    def make_twin(self) -> None:
        if self.twin is not None:
            self.twin.close()
        self.twin = Twin()
        self.twin.fill()

    def bare_cold_start(self) -> float:
        started = time.perf_counter()
        subprocess.run(
            ["etcdctl", "--endpoints", self.url, "get", "--prefix", "/calico/"],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        read = (time.perf_counter() - started) * 1000
        twin = Twin()
        try:
            return read + twin.fill()
        finally:
            twin.close()

    def close(self) -> None:
        self.clear()
        if self.twin is not None:
            self.twin.close()
        os.close(self._nowhere)

    async def put(self, *objects: data.Object) -> None:
        await asyncio.gather(
            *(self.store.txn([], [Put(keys.path(key), codec.encode(value))]) for key, value in objects)
        )

    async def delete(self, *objects: data.Object) -> None:
        for start in range(0, len(objects), 100):
            await self.store.txn([], [Delete(keys.path(key)) for key, _ in objects[start : start + 100]])


async def cold_start(bench: Bench, row: str, local: int, rounds: int) -> Row:
    found = Row(row, f"cold start, {local} local pods")
    for _ in range(rounds):
        found.ours.append(bench.start())
        assert bench.agent is not None
        found.cpu = bench.agent.cpu() * 1000
        found.mib = bench.agent.peak()
        bench.agent.settle()
        found.bare.append(bench.bare_cold_start())
    assert bench.agent is not None
    found.mib = max(found.mib, bench.agent.peak())
    bench.make_twin()
    return found


async def policy_port(bench: Bench, rounds: int) -> Row:
    """A policy that applies to a local pod gets another port."""
    row = Row("b", "a policy's port changed")
    pod = bench.local[7]
    number = next(
        n
        for n in range(data.GLOBAL, data.POLICIES)
        if n % data.NAMESPACES == pod % data.NAMESPACES
        and n // data.NAMESPACES % data.APPS == pod // data.NAMESPACES % data.APPS
    )
    chain = chain_name("cali-pi-", f"np/ns-{number % data.NAMESPACES}/policy-{number}")
    before = bench.agent.cpu()
    for round_ in range(rounds):
        old = bench.kernel.rules(chain)
        started = time.perf_counter()
        await bench.put(data.policy(number, port=9000 + round_))
        until(lambda old=old: bench.kernel.rules(chain) != old)
        row.ours.append((time.perf_counter() - started) * 1000)
        row.bare.append(bench.twin.replace_chain(chain, round_))
    return _finished(row, bench, before, rounds)


async def remote_label(bench: Bench, rounds: int) -> Row:
    """A remote pod gets a label that a set of a policy selects, and loses it again."""
    row = Row("c", "a remote pod's label changed")
    role = f"r{data.GLOBAL}"
    name = _set_of(f"role == '{role}'")
    remote = [n for n in range(3, data.ENDPOINTS) if n not in set(bench.local) and n % data.ROLES == data.GLOBAL + 100]
    before = bench.agent.cpu()
    for round_ in range(rounds):
        number = remote[round_ // 2 % len(remote)]
        node = data.node_of(number, len(bench.local))
        changed = {} if round_ % 2 else {"role": role}
        old = bench.kernel.members(name)
        started = time.perf_counter()
        await bench.put(data.endpoint(number, node, **changed))
        until(lambda old=old: bench.kernel.members(name) != old)
        row.ours.append((time.perf_counter() - started) * 1000)
        row.bare.append(bench.twin.add_member(name, round_))
    return _finished(row, bench, before, rounds)


async def more_pods(bench: Bench, rounds: int) -> list[Row]:
    """Local pods come, one by one, and many at once."""
    row = Row("d", f"one more pod, {len(bench.local)} local")
    numbers = range(data.ENDPOINTS, data.ENDPOINTS + SPARE)
    before = bench.agent.cpu()
    for number in numbers[:rounds]:
        started = time.perf_counter()
        await bench.put(data.endpoint(number, data.HOST))
        until(bench.programmed([number]))
        row.ours.append((time.perf_counter() - started) * 1000)
        row.bare.append(bench.twin.add_pod(bench.local[0], f"bare{number}"))
    _finished(row, bench, before, rounds)
    burst = Row("d30", f"{BURST} more pods at once")
    for start in range(rounds, SPARE - BURST, BURST):
        several = numbers[start : start + BURST]
        before = bench.agent.cpu()
        started = time.perf_counter()
        await bench.put(*(data.endpoint(number, data.HOST) for number in several))
        until(bench.programmed(several))
        burst.ours.append((time.perf_counter() - started) * 1000)
        _finished(burst, bench, before, 1)
        bench.agent.settle()
    await bench.delete(*(data.endpoint(number, data.HOST) for number in numbers))
    return [row, burst]


async def idle(bench: Bench) -> Row:
    """Nothing happens."""
    bench.agent.settle()
    await asyncio.sleep(10)
    before = bench.agent.cpu()
    await asyncio.sleep(IDLE_SECONDS)
    used = (bench.agent.cpu() - before) / IDLE_SECONDS * 100
    return Row("f", f"idle, {len(bench.local)} local pods", idle=used, mib=bench.agent.resident())


def _finished(row: Row, bench: Bench, before: float, rounds: int) -> Row:
    row.cpu = (bench.agent.cpu() - before) / rounds * 1000
    row.mib = bench.agent.resident()
    return row


def _set_of(selector: str) -> str:
    return set_name(4, selectors.parse(selector).unique_id("s"))


def show(row: Row) -> list[str]:
    figures = row.figures()
    if row.idle is not None:
        cells = ["", "", "", "", f"{row.idle:.2f} %"]
    else:
        cells = [f"{figures['p50 ms']:.1f}", f"{figures['p99 ms']:.1f}", f"{figures['max ms']:.1f}"]
        cells += [f"{figures['bare ms']:.1f}" if row.bare else "", f"{figures['ratio']:.2f}" if row.bare else ""]
    cpu = "" if row.idle is not None else f"{row.cpu:.1f}"
    return [row.row[0], row.what, *cells, cpu, f"{row.mib:.0f}", "; ".join(row.broken())]


async def measure(arguments: argparse.Namespace, url: str, directory: Path) -> list[Row]:
    bench = Bench(url, arguments.program, directory, interfaces=not arguments.no_interfaces)
    rows: list[Row] = []
    rounds = arguments.rounds
    compile_agent(directory)

    def add(*found: Row) -> None:
        rows.extend(found)
        for row in found:
            print(" ".join(cell for cell in show(row)), file=sys.stderr, flush=True)

    try:
        if set("abcf") & set(arguments.rows):
            await bench.load(FEW)
            add(await cold_start(bench, "a", FEW, arguments.starts))
            if "f" in arguments.rows:
                add(await idle(bench))
            if "b" in arguments.rows:
                add(await policy_port(bench, rounds))
            if "c" in arguments.rows:
                add(await remote_label(bench, rounds * 3))
        if set("de") & set(arguments.rows):
            bench.clear()
            await bench.load(MANY)
            add(await cold_start(bench, "e", MANY, arguments.starts))
            if "d" in arguments.rows:
                add(*await more_pods(bench, min(rounds, 50)))
    finally:
        bench.close()
        await bench.store.close()
    return rows


@contextlib.contextmanager
def uplink() -> Iterator[None]:
    """The node's own interface and address, to nowhere."""
    nowhere = netns.create_unnamed()
    with NetlinkSocket() as netlink_socket:
        links = Links(netlink_socket)
        links.set_up("lo")
        links.create_veth(VethEnd("eth0"), VethEnd("eth0", nowhere))
        with NetlinkSocket(netns_fd=nowhere) as far:
            Links(far).set_up("eth0")
        links.set_up("eth0")
        links.add_address("eth0", ip_interface("172.16.0.1/24"))
    subprocess.run(["ip", "route", "add", "default", "via", "172.16.0.2"], check=True)
    try:
        yield
    finally:
        os.close(nowhere)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="abcdef", help="letters of the rows wanted")
    parser.add_argument("--rounds", type=int, default=100, help="of rows b and d; c has three times as many")
    parser.add_argument("--starts", type=int, default=3, help="of rows a and e")
    parser.add_argument("--program", default="", help="another agent in place of ours, such as the real calico-felix")
    parser.add_argument("--no-interfaces", action="store_true", help="endpoints without interfaces: policy only")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if os.environ.get("CALIPY_BENCH_INSIDE") != "1":
        os.environ["CALIPY_BENCH_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as directory, uplink(), EtcdServer() as server:
        try:
            rows = asyncio.run(measure(arguments, server.url, Path(directory)))
        except BaseException:
            print((Path(directory) / "agent.log").read_text()[-3000:], file=sys.stderr)
            raise
    print(
        table(["", "what", "p50 ms", "p99", "max", "bare", "ratio", "CPU ms", "MiB", "over"], [show(r) for r in rows])
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) | row.figures() for row in rows], indent=2))
    sys.exit(1 if any(row.broken() for row in rows) else 0)


if __name__ == "__main__":
    main()
