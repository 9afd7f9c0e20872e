"""One deployment's way through the stages, for the nodes that are new. Edge, in the supervisor's event loop.

Per node: wait-for, startup-delay → create (the node and its main process) → create-links → configure → plain ``exec`` →
healthy, exit where somebody waits for them. Nodes go in parallel, as far as they do not wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from calipy.containerlab import stages
from calipy.containerlab.agent import Agent, Output, Report
from calipy.containerlab.cabling import Cabling, RunningLink
from calipy.containerlab.model import Link, Node, Stage, StageName, Topology
from calipy.containerlab.running import RunningNode
from calipy.containerlab.wiring import End

_HEAD_START = 0.1
_BRIDGE_DELAY = 0.3
"""Seconds between the start of a main process and the first link or bridge beside it. Containerlab takes about as
long, and entrypoints rely on it: they look at what is there, or make it themselves."""


class Site(Protocol):
    """What a build needs of its lab."""

    nodes: dict[str, RunningNode]
    cabling: Cabling

    async def create_node(self, node: Node, interfaces: int) -> RunningNode:
        """Create a node and start its main process; only lo and eth0 exist then."""

    async def host_agent(self) -> Agent:
        """What runs commands on the lab's host."""


class Build:
    """Builds nodes and links.

    Attributes:
        failed: how many commands of ``exec`` and stages have failed so far.
    """

    def __init__(
        self,
        site: Site,
        topology: Topology,
        links: Iterable[Link],
        report: Report,
        *,
        cwd: str,
        caller: Mapping[str, str],
        parked: Mapping[str, list[tuple[RunningLink, End]]],
    ) -> None:
        """Nothing happens yet.

        Args:
            site: the lab.
            topology: what is wanted.
            links: those to build.
            report: told about commands.
            cwd: where host commands run.
            caller: their environment.
            parked: interfaces that new nodes take over from their predecessors.
        """
        self.failed = 0
        self._site = site
        self._topology = topology
        self._links = tuple(links)
        self._pending = list(self._links)
        self._report = report
        self._cwd = cwd
        self._caller = caller
        self._parked = parked
        self._done: dict[tuple[str, StageName], asyncio.Event] = {}
        self._created: dict[str, asyncio.Event] = {}

    async def run(self, names: Iterable[str]) -> None:
        """Build the nodes of these names and all links.

        Raises:
            CalipyError: the first failure; what was built by then is left.
        """
        nodes = [self._topology.nodes[name] for name in names]
        for node in nodes:
            self._created[node.name] = asyncio.Event()
            self._done |= {(node.name, stage): asyncio.Event() for stage in stages.NAMES}
        for node in nodes:
            if not node.is_container and not node.inside:
                if node.kind == "bridge":
                    self._site.cabling.create_bridge(node)
                self._created[node.name].set()
        tasks = [asyncio.ensure_future(self._node(node)) for node in nodes]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        await self._connect(self._pending)

    async def _node(self, node: Node) -> None:
        if node.kind == "bridge":
            await self._bridge(node)
        elif node.kind == "host":
            for argv in node.execs:
                await self._exec(node, argv)
        else:
            await self._container(node)

    async def _bridge(self, node: Node) -> None:
        if node.inside:
            await self._arrived(node.inside)
            await asyncio.sleep(_BRIDGE_DELAY)
            self._site.cabling.create_bridge(node)
            self._created[node.name].set()

    async def _container(self, node: Node) -> None:
        if node.network_mode == "container":
            await self._wait(node.network_node, "create")
        await self._enter(node, "create")
        await asyncio.sleep(node.startup_delay)
        interfaces = sum(end.node == node.name for link in self._links for end in link.endpoints)
        running = await self._site.create_node(node, interfaces)
        if node.name in self._parked and running.namespace is not None:
            self._site.cabling.unpark(self._parked[node.name], running.namespace)
        if node.argv or node.entrypoint:
            await asyncio.sleep(_HEAD_START)
        self._created[node.name].set()
        await self._leave(node, "create")
        await self._enter(node, "create-links")
        links = [link for link in self._pending if any(end.node == node.name for end in link.endpoints)]
        for other in sorted({end.node for link in links for end in link.endpoints}):
            if self._comes_at_once(other):
                await self._arrived(other)
        await self._connect([link for link in links if link in self._pending])
        for bridge in self._topology.nodes.values():
            if bridge.inside == node.name:
                await self._arrived(bridge.name)
        await self._leave(node, "create-links")
        await self._enter(node, "configure")
        await self._leave(node, "configure")
        for argv in node.execs:
            await self._exec(node, argv)
        if self._awaited(node, "healthy"):
            await running.until("running", health="healthy")
            await self._enter(node, "healthy")
            await self._leave(node, "healthy")
        if self._awaited(node, "exit"):
            await running.until("exited")
            await self._enter(node, "exit")
            await self._leave(node, "exit")

    # --- stages

    def _awaited(self, node: Node, stage: StageName) -> bool:
        definitions = [stage_ for other in self._topology.nodes.values() for stage_ in other.stages.values()]
        waits = [wait for definition in definitions for wait in definition.wait_for]
        return stage in node.stages or any(wait.node == node.name and wait.stage == stage for wait in waits)

    async def _enter(self, node: Node, stage: StageName) -> None:
        definition = node.stages.get(stage, Stage())
        for wait in definition.wait_for:
            await self._wait(wait.node, wait.stage)
        await self._commands(node, definition, "on-enter")

    async def _leave(self, node: Node, stage: StageName) -> None:
        await self._commands(node, node.stages.get(stage, Stage()), "on-exit")
        self._done[node.name, stage].set()

    async def _wait(self, name: str, stage: StageName) -> None:
        if event := self._done.get((name, stage)):
            await event.wait()

    async def _arrived(self, name: str) -> None:
        if event := self._created.get(name):
            await event.wait()

    def _is_there(self, name: str) -> bool:
        event = self._created.get(name)
        return event is None or event.is_set()

    def _comes_at_once(self, name: str) -> bool:
        """Whether a node is created without waiting for anybody, so that its links can wait for it."""
        node = self._topology.nodes.get(name)
        if node is None or name not in self._created:
            return True
        if node.kind == "bridge":
            return not node.inside or self._comes_at_once(node.inside)
        if node.network_mode == "container" and not self._comes_at_once(node.network_node):
            return False
        return not node.startup_delay and not node.stages.get("create", Stage()).wait_for

    # --- commands

    async def _commands(self, node: Node, stage: Stage, phase: str) -> None:
        for command in stage.commands:
            if command.phase == phase:
                await self._exec(node, command.argv, on_host=command.target == "host")

    async def _exec(self, node: Node, argv: tuple[str, ...], *, on_host: bool = False) -> None:
        if on_host or node.kind == "host":
            agent = await self._site.host_agent()
            await self._show(node, await agent.run(argv, self._caller, cwd=self._cwd))
            return
        running = self._site.nodes[node.name]
        assert running.agent is not None
        await self._show(node, await running.agent.run(argv, running.env))

    async def _show(self, node: Node, output: Output) -> None:
        text = f"node {node.name}: {' '.join(output.argv)}"
        said = "".join(f"\n{part.rstrip()}" for part in (output.stdout, output.stderr) if part.strip())
        if output.returncode:
            self.failed += 1
            await self._report("error", f"{text}: exit {output.returncode}{said}")
        else:
            await self._report("info", f"{text}{said}")

    # --- links

    async def _connect(self, links: Iterable[Link]) -> None:
        """Build links as far as their nodes are there, and complete those that waited for one."""
        self._site.cabling.complete(self._is_there)
        for link in list(links):
            self._pending.remove(link)
            if not self._site.cabling.build(link, self._is_there):
                await self._report("warning", f"{link.a}: this kernel has no {link.type} driver, a veth stands in")
