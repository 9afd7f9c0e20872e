"""Network-policy cases with packets: real namespaces, real agents, every cell of every state, held flows.

The agents run once for all cases; a case only changes the datastore, step by step. After each state the agents are
asked whether the kernel has it; then every cell is probed at once. A denied cell that is answered from then on is a
hole and fails at once; an allowed one gets some seconds before it fails, and is noted if it needed them.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from calipy.conformance import etcd
from calipy.conformance.bench import Bench
from calipy.conformance.netpol_agents import Agent, NotInSyncError
from calipy.conformance.netpol_case import Case, Cluster, State, parse_probe
from calipy.conformance.netpol_lab import HUB_ADDRESS, Lab
from calipy.conformance.netpol_verdicts import snapshot_of, verdict_of
from calipy.conformance.netpol_writer import Writer, objects
from calipy.conformance.probe_agent import DEADLINE, Answer, Flow, ProbeAgent, Request, unsupported
from calipy.datastore.etcd import EtcdStore
from calipy.kernel import netns
from calipy.policy.snapshot import Snapshot

Cell = tuple[str, str, str, str]
"""Probe, source, destination and ``A`` or ``D``."""

PROGRAMS: Final = ("iptables-nft-restore", "ip6tables-nft-restore", "ipset", "conntrack", "nsenter", "setpriv", "etcd")
"""What the machines and their agents call."""

_WATCH_DEADLINE: Final = 0.05
_STUCK_CASES: Final = 3
_RETRY_PAUSES: Final = (0.2, 0.6, 1.2)
_ETCD_URL: Final = f"http://{HUB_ADDRESS}:2379"
"""Calico's port: nodes may always talk to it, whatever the policies of their own interfaces say."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A cell that differs from its table, and how."""

    state: State
    probe: str
    source: str
    destination: str
    want: str
    how: str


@dataclass(slots=True)
class Findings:
    """What a case brought to light.

    Attributes:
        problems: what went wrong beside cells.
        notes: what was not wrong but is worth a look.
        left_out: what could not be probed.
    """

    wrong: list[Wrong] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@asynccontextmanager
async def running(backend: str) -> AsyncIterator[PacketRunner]:
    """A runner with its etcd; everything it starts ends with it. The process must have entered the hub.

    Args:
        backend: iptables backend of the agents: ``nft``, ``legacy``, "" for their own choice.
    """
    with tempfile.TemporaryDirectory(prefix="calipy-netpol-") as directory, etcd.running(_ETCD_URL) as url:
        store = EtcdStore([url])
        bench = Bench(store)
        await bench.open()
        runner = PacketRunner(bench, Path(directory), backend)
        try:
            await runner.begin()
            yield runner
        finally:
            runner.close()
            await bench.close()
            await store.close()


class PacketRunner:
    """Runs cases one after another on the same machines."""

    def __init__(self, bench: Bench, directory: Path, backend: str) -> None:
        self._lab = Lab()
        self._writer = Writer(bench)
        self._probes = ProbeAgent()
        self._agents: dict[str, Agent] = {}
        self._flows: dict[str, Flow] = {}
        self._stuck = 0
        self._directory = directory
        self._backend = backend
        self._hub_fd = netns.open_fd("/proc/thread-self/ns/net")

    async def begin(self) -> None:
        """See what the datastore begins with."""
        await self._writer.begin()

    def close(self) -> None:
        """End the agents and let go of the machines."""
        for agent in self._agents.values():
            agent.stop()
        self._lab.close()
        os.close(self._hub_fd)

    async def check(self, case: Case) -> Findings:
        """Run one case.

        Raises:
            CalipyError: it cannot be run: something in it is refused, or an agent does not follow.
        """
        findings = Findings()
        if self._stuck >= _STUCK_CASES:
            raise NotInSyncError(f"not run: agents did not follow in the last {_STUCK_CASES} cases")
        states = list(case.states())
        for flow in case.document.get("flows") or ():
            if parse_probe(flow["probe"]).protocol not in {"tcp", "udp"}:
                findings.left_out.append(f"a held flow of {flow['probe']}")
        try:
            await self._in_thread(self._prepare, states)
            await self._in_thread(self._listen, states)
            for number, state in enumerate(states):
                closed = closed_throughout(states[number - 1], state) if number else []
                await self._bring(state, closed, findings)
                probes = [parse_probe(probe) for probe in state.tables]
                if any(probe.source_port for probe in probes):
                    await self._in_thread(self._listen, states)
                    await asyncio.to_thread(self._lab.forget_connections, state.cluster.nodes, probes)
                await self._check_flows(case, number, state, findings)
                await self._check_cells(state, findings)
                await self._open_flows(case, number, state, findings)
            self._stuck = 0
        except NotInSyncError:
            self._stuck += 1
            raise
        finally:
            await self._in_thread(self._clear)
            findings.notes += self._writer.notes
            self._writer.notes.clear()
        return findings

    def _prepare(self, states: Sequence[State]) -> None:
        """Stations for everything that the case has at any time."""
        for state in states:
            for cluster in state.changes:
                self._lab.prepare(cluster)

    def _listen(self, states: Sequence[State]) -> None:
        """A listener on every port that the case probes, on every endpoint; afresh if there are some."""
        self._probes.close_listeners()
        probes = {parse_probe(probe) for state in states for probe in state.tables}
        ports = {(probe.family, probe.protocol, probe.port) for probe in probes}
        sites = [state.cluster.site(endpoint) for state in states for endpoint in state.endpoints]
        places = {(self._lab.station(site).netns_fd, address) for site in sites for address in site.addresses.values()}
        for netns_fd, address in sorted(places, key=str):
            for family, protocol, port in ports:
                if address.version == family:
                    self._probes.listen(netns_fd, address, protocol, port)

    def _clear(self) -> None:
        for flow in self._flows.values():
            self._probes.release(flow)
        self._flows.clear()
        self._probes.close_listeners()

    async def _bring(self, state: State, closed: Sequence[Cell], findings: Findings) -> None:
        """Write the state's changes, one after another, and wait until all agents have them in the kernel.

        Cells that are ``closed`` all the while are probed without a pause. That they let nothing through goes beyond
        what the cases ask for, so it is only noted.
        """
        for node in state.cluster.nodes:
            if node not in self._agents:
                fd = self._lab.machine(node).netns_fd
                self._agents[node] = Agent(node, fd, self._directory, _ETCD_URL, self._backend)
        bringing = asyncio.create_task(self._change(state))
        leaks: set[str] = set()
        while closed and not bringing.done():
            answers = await self._probe(state, closed, _WATCH_DEADLINE)
            leaks.update(_place(state, cell) for cell, answer in zip(closed, answers, strict=True) if answer.answered)
        await bringing
        findings.notes += [f"{place} was answered while the change was being made" for place in sorted(leaks)]

    async def _change(self, state: State) -> None:
        revision = 0
        for cluster in state.changes:
            interfaces = {
                address: self._lab.station(site).interface
                for site in cluster.pods().values()
                for address in site.addresses.values()
            }
            revision = max(revision, await self._writer.write(objects(cluster, interfaces)))
        await asyncio.gather(
            *(agent.in_sync(revision, _endpoints(state.cluster, name)) for name, agent in self._agents.items())
        )

    async def _check_cells(self, state: State, findings: Findings) -> None:
        unusable = {probe: why for probe in state.tables if (why := unsupported(parse_probe(probe)))}
        findings.left_out += [f"{probe}: {why}" for probe, why in unusable.items()]
        cells = [cell for cell in state.cells() if cell[0] not in unusable]
        answers = await self._probe(state, cells)
        holes = []
        silent = []
        for cell, answer in zip(cells, answers, strict=True):
            if answer.answered and cell[3] == "D":
                holes.append(cell)
            elif not answer.answered and cell[3] == "A":
                silent.append(cell)
            elif answer.refused and cell[3] == "D":
                findings.notes.append(f"{_place(state, cell)} is refused, not dropped: is there a listener?")
        if holes:
            later = await self._probe(state, holes)
            for cell, answer in zip(holes, later, strict=True):
                how = "answered, and again" if answer.answered else "answered at first"
                findings.wrong.append(Wrong(state, *cell, how))
        for pause in _RETRY_PAUSES:
            if not silent:
                return
            await asyncio.sleep(pause)
            answers = await self._probe(state, silent)
            late = [cell for cell, answer in zip(silent, answers, strict=True) if answer.answered]
            findings.notes += [f"{_place(state, cell)} was answered only after {pause} s" for cell in late]
            silent = [cell for cell in silent if cell not in late]
        findings.wrong += [Wrong(state, *cell, "no answer") for cell in silent]

    async def _probe(self, state: State, cells: Sequence[Cell], deadline: float = DEADLINE) -> list[Answer]:
        requests = [self._request(state.cluster, probe, source, destination) for probe, source, destination, _ in cells]
        answers: list[Answer] = await self._in_thread(self._probes.probe, requests, deadline)
        return answers

    def _request(self, cluster: Cluster, text: str, source: str, destination: str) -> Request:
        probe = parse_probe(text)
        site = cluster.site(source)
        to = cluster.addresses(destination)[probe.family]
        return Request(self._lab.station(site).netns_fd, site.addresses[probe.family], to, probe)

    async def _open_flows(self, case: Case, number: int, state: State, findings: Findings) -> None:
        for flow in case.document.get("flows") or ():
            probe = parse_probe(flow["probe"])
            if flow.get("opened", 0) != number or probe.protocol not in {"tcp", "udp"}:
                continue
            request = self._request(state.cluster, flow["probe"], flow["from"], flow["to"])
            held = await self._in_thread(self._probes.hold, request)
            if held is None:
                findings.problems.append(f"{state.name}: flow {flow['id']} cannot be opened")
            else:
                self._flows[flow["id"]] = held

    async def _check_flows(self, case: Case, number: int, state: State, findings: Findings) -> None:
        for flow in case.document.get("flows") or ():
            held = self._flows.get(flow["id"])
            if held is None or number not in flow["alive"]:
                continue
            if not await self._in_thread(self._probes.alive, held):
                findings.problems.append(f"{state.name}: flow {flow['id']} is dead")

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        """In a thread that may step through namespaces, as it ends afterwards."""
        return await asyncio.to_thread(netns.run_in, self._hub_fd, function, *arguments)


def _endpoints(cluster: Cluster, node: str) -> list[str]:
    return [f"{name}/eth0" for name, site in cluster.pods().items() if site.machine == node]


def closed_throughout(before: State, after: State) -> list[Cell]:
    """Cells that are denied before, after and at every moment in between, each time at the same place (pure).

    Where one node opens and another one closes, packets may slip through whatever the two do: they know nothing of each
    other. None where a namespace goes: in which order its objects do, nobody prescribes.
    """
    stages = (before.cluster, *after.changes)
    if any(len(stage.namespaces) < len(earlier.namespaces) for earlier, stage in pairwise(stages)):
        return []
    denied = {cell for cell in before.cells() if cell[3] == "D" and parse_probe(cell[0]).source_port is None}
    cells = [cell for cell in after.cells() if cell in denied and not unsupported(parse_probe(cell[0]))]
    snapshots = [(snapshot_of(stage), stage) for stage in stages]
    return [
        cell for cell in cells if _stays(cell, stages) and len({_denied_at(cell, *pair) for pair in snapshots}) == 1
    ]


def _denied_at(cell: Cell, snapshot: Snapshot, cluster: Cluster) -> tuple[str, ...]:
    """Node, endpoint, layer and direction that deny; nothing if the evaluator sees nobody who does."""
    verdict = verdict_of(snapshot, cluster, *cell[:3])
    step = verdict.reason
    return () if verdict.allowed or step is None else (step.node, step.endpoint, step.layer, step.direction)


def _stays(cell: Cell, stages: Sequence[Cluster]) -> bool:
    """Whether both ends are there all the time, at one address."""
    _, source, destination, _ = cell
    with suppress(KeyError):
        sites = {(str(stage.site(source)), str(stage.site(destination))) for stage in stages}
        return len(sites) == 1
    return False


def _place(state: State, cell: Cell) -> str:
    return f"{state.name}: {cell[0]} {cell[1]} -> {cell[2]}"
