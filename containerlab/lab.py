"""A lab that runs: from a topology to nodes and links, from there to another topology, and to nothing. Edge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from calipy.containerlab import (
    embedded,
    environment,
    images,
    inside,
    inventories,
    management,
    precheck,
    registry,
    resolver,
    wiring,
)
from calipy.containerlab.agent import END_SECONDS, Agent, Report
from calipy.containerlab.build import Build
from calipy.containerlab.cabling import Cabling
from calipy.containerlab.errors import LabError
from calipy.containerlab.images import Profile
from calipy.containerlab.management import Addresses
from calipy.containerlab.model import Node, Topology
from calipy.containerlab.plan import Plan, plan
from calipy.containerlab.registry import Entry
from calipy.containerlab.running import RunningNode
from calipy.containerlab.wiring import Namespace
from calipy.errors import CalipyError


class Lab:
    """One lab. Deploy, destroy, stop and start come one at a time: the supervisor sees to it.

    Attributes:
        topology: what was deployed last, None while nothing is.
        nodes: those that exist, by name.
    """

    def __init__(self, name: str, entry: Entry, host: Namespace, machine: Namespace) -> None:
        """An empty lab.

        Args:
            name: of the lab.
            entry: its place in the registry, locked.
            host: the namespace that counts as the host's.
            machine: the machine's own one; the same where the lab was told to use it.
        """
        self.name = name
        self.entry = entry
        self.topology: Topology | None = None
        self.nodes: dict[str, RunningNode] = {}
        self.cabling = Cabling(host, machine, self._namespace_of)
        self._host = host
        self._machine = machine
        self._profiles: dict[str, Profile] = {}
        self._addresses: dict[str, Addresses] = {}
        self._owner = ""
        self._git: dict[str, str] = {}
        self._made_directory = False
        self._host_agent: Agent | None = None
        self._etcd_endpoint = ""
        self._resolver: asyncio.DatagramTransport | None = None
        self._directory_fd = -1
        self._ending = False

    @property
    def on_machine(self) -> bool:
        """Whether its host is the machine itself."""
        return self._host is self._machine

    # --- deploy

    async def deploy(
        self,
        topology: Topology,
        report: Report,
        *,
        owner: str,
        cwd: str,
        caller: Mapping[str, str],
        git: Mapping[str, str],
        create_bridges: bool = False,
    ) -> tuple[Plan | None, int]:
        """Build the lab, or bring one that runs to what ``topology`` says.

        Args:
            topology: what is wanted.
            report: told about progress.
            owner: for labels and outputs.
            cwd: of the caller, where host commands run.
            caller: the caller's environment, for host commands.
            git: labels of the work tree.
            create_bridges: make bridges of ``kind: bridge`` nodes that the machine does not have.

        Returns:
            The plan (None for a first deploy) and how many ``exec`` commands failed.

        Raises:
            CalipyError: something could not be built. A first deploy is undone, a changed lab stays as far as it got.
        """
        first = self.topology is None
        self._owner, self._git = owner, dict(git)
        try:
            for warning in topology.warnings:
                await report("warning", warning)
            work = self.preview(topology)
            await self._prepare(topology, work, report, create_bridges=create_bridges)
            parked = await self._take_away(topology, work)
            build = Build(self, topology, work.added_links, report, cwd=cwd, caller=caller, parked=parked)
            await build.run([*work.added, *work.recreated])
            inventories.write(topology, self._view(topology, known=first or not work.is_empty))
        except BaseException:
            if first:
                made = self._made_directory
                await self.destroy()
                if made:
                    inventories.remove_directory(topology.lab_directory)
            raise
        return (None if first else work), build.failed

    def preview(self, topology: Topology) -> Plan:
        """What a deploy of ``topology`` would do."""
        old = self.topology.nodes.values() if self.topology else ()
        plain = {node.name: node for node in old if not node.is_container}  # they exist, though they have no process
        exited = frozenset(name for name, running in self.nodes.items() if running.state == "exited")
        existing = {name: running.node for name, running in self.nodes.items()} | plain
        return plan(existing, exited, [link.link for link in self.cabling.links], topology)

    async def _prepare(self, topology: Topology, work: Plan, report: Report, *, create_bridges: bool) -> None:
        """Everything up to the first node: checks, addresses, lab directory, management network, etcd."""
        profiles = {node.name: images.profile(node) for node in topology.nodes.values() if node.is_container}
        with registry.exclusive():
            own = {end.name for link in self.cabling.links for end in link.ends if end.namespace is self._host}
            precheck.check(
                topology,
                work,
                self.entry,
                host=self._host,
                machine=self._machine,
                own=own,
                create_bridges=create_bridges,
            )
            addresses = self._assign_addresses(topology)
            self.topology, self._profiles, self._addresses = topology, profiles, addresses
            self.cabling.nodes = topology.nodes
            self.cabling.bridge = management.bridge_name(topology.management)
            self._record(topology)
            if topology.uses_management:
                wiring.create_bridge(self._host, self.cabling.bridge, topology.management)
        for notice in dict.fromkeys(profile.notice for profile in profiles.values() if profile.notice):
            await report("info", notice)
        self._made_directory |= inventories.prepare(topology)
        if self._directory_fd >= 0:
            os.close(self._directory_fd)  # the directory may be another one since
        self._directory_fd = os.open(topology.lab_directory, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        await self._resolve_names(topology)
        if embedded.needed(topology, profiles) and not self._etcd_endpoint:
            if reason := embedded.obstacle(topology, profiles):
                await report("warning", f"calipy nodes have no ETCD_ENDPOINTS, and there is {reason}")
            else:
                self._etcd_endpoint, line = await embedded.start(topology, await self.host_agent())
                await report("info", line)

    def _assign_addresses(self, topology: Topology) -> dict[str, Addresses]:
        network = topology.management.network
        others = registry.addresses_of_others(self.entry, network) if self.on_machine else frozenset()
        taken = {name: running.addresses for name, running in self.nodes.items()}
        return management.assign(topology.management, topology.nodes.values(), taken, others=others)

    async def _resolve_names(self, topology: Topology) -> None:
        """Answer the nodes' questions for each other's names, at the gateway."""
        gateway = topology.management.ipv4_gateway
        if self._resolver is None and topology.uses_management and gateway:
            # Another lab's, on a bridge that both use in the machine's own namespace, leaves no room for a second one.
            with contextlib.suppress(OSError):
                self._resolver = await resolver.serve(gateway, self._names)

    def _names(self) -> resolver.Names:
        return resolver.names((running.node, running.addresses) for running in self.nodes.values())

    async def _take_away(self, topology: Topology, work: Plan) -> dict[str, Any]:
        """What is obsolete goes; nodes to be created anew leave their interfaces behind. Returns these, by node."""
        for name in work.deleted:
            await self._remove_node(name)
        for endpoint in work.deleted_endpoints:
            self.cabling.remove_endpoint(endpoint)
        parked = {}
        for name in work.recreated:
            if running := self.nodes.pop(name, None):
                if running.owns_namespace and running.namespace is not None:
                    parked[name] = self.cabling.park(running.namespace)
                await self._end(running)
        for name in work.started:
            await self.nodes[name].start(topology.management)
        return parked

    def _record(self, topology: Topology) -> None:
        """Write down what exists, or will, outside of the lab's own namespaces."""
        nodes = self.nodes.values()
        self.entry.record(
            {
                "lab": self.name,
                "file": topology.file,
                "lab_directory": topology.lab_directory,
                "names": [node.long_name for node in topology.nodes.values() if node.is_container],
                "netns": {running.node.long_name: running.netns_target for running in nodes if running.netns_target},
                "network": topology.management.network,
                "addresses": [a for held in self._addresses.values() for a in (held.ipv4, held.ipv6) if a],
                "bridge": self.cabling.bridge if self.on_machine and topology.uses_management else "",
                "host_netns": self.on_machine,
            }
        )

    async def host_agent(self) -> Agent:
        """What runs commands on the lab's host: the machine's files, the lab's network, a PID namespace of its own."""
        if self._host_agent is None or self._host_agent.gone.done():
            self._host_agent = await Agent.start("host", None, log_directory=self._directory_fd)
        return self._host_agent

    # --- nodes

    def node(self, name: str) -> RunningNode:
        """A node that exists. Raises LabError."""
        if name not in self.nodes:
            raise LabError(f"lab {self.name} has no node {name}")
        return self.nodes[name]

    def _namespace_of(self, name: str) -> Namespace:
        namespace = self.node(name).namespace
        if namespace is None:
            raise LabError(f"node {name} is gone")
        return namespace

    async def create_node(self, node: Node, interfaces: int) -> RunningNode:
        """Create a node and start its main process; only lo and eth0 exist then.

        Args:
            node: what is wanted.
            interfaces: how many data links it is going to get.

        Raises:
            LabError: it cannot be built, or its main process does not start.
        """
        topology, profile = self.deployed, self._profiles[node.name]
        addresses = self._addresses.get(node.name, Addresses())
        labels = self._labels(topology, node)
        env = environment.variables(topology, node, profile, labels, interfaces)
        if profile.role == "node" and self._etcd_endpoint:
            env.setdefault("ETCD_ENDPOINTS", self._etcd_endpoint)
        running = self.nodes[node.name] = RunningNode(node, profile, addresses, labels, env)
        other = self.nodes[node.network_node] if node.network_mode == "container" else None
        with contextlib.ExitStack() as stack:
            uts_fd = None
            if other is not None and other.agent is not None:
                uts_fd = os.open(f"/proc/{other.agent.pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, uts_fd)
            agent = running.agent = await Agent.start(
                node.name,
                inside.spec(topology, running, other),
                log_directory=self._directory_fd,
                network_fd=other.namespace.fd if other and other.namespace else None,
                uts_fd=uts_fd,
                on_main=running.on_main,
            )
        if other is not None:
            running.namespace = other.namespace
        elif node.network_mode == "host":
            running.namespace = self._host
        else:
            running.namespace = Namespace.of_process(agent.pid)
            running.owns_namespace = True
            running.namespace.links.set_up("lo")
            if node.attached:
                running.port = f"veth{secrets.token_hex(5)}"
                pair = (addresses.ipv4, addresses.ipv6)
                bridge = self.cabling.bridge
                wiring.attach(self._host, running.namespace, bridge, running.port, topology.management, pair)
        running.netns_target = f"/proc/{agent.pid}/ns/net"
        self._record(topology)
        registry.link_netns(node.long_name, running.netns_target)
        await running.start_main()
        return running

    @property
    def deployed(self) -> Topology:
        """The topology. Raises LabError while nothing is deployed."""
        if self.topology is None:
            raise LabError(f"lab {self.name} is not deployed")
        return self.topology

    def _labels(self, topology: Topology, node: Node) -> dict[str, str]:
        return environment.labels(topology, node, owner=self._owner, bridge=self.cabling.bridge, git=self._git)

    async def _remove_node(self, name: str, report: Report | None = None, timeout: float = END_SECONDS) -> None:
        old = self.deployed.nodes.get(name)
        if old is not None and old.kind == "bridge":
            self.cabling.remove_bridge(old)
        if running := self.nodes.get(name):
            self.cabling.remove_of(name)
            await self._end(running, report, timeout)
            self.nodes.pop(name, None)

    async def _end(self, running: RunningNode, report: Report | None = None, timeout: float = END_SECONDS) -> None:
        if running.netns_target:
            registry.unlink_netns(running.node.long_name, running.netns_target)
        if running.port and not self._ending:
            with contextlib.suppress(CalipyError):
                self._host.links.delete_link(running.port)
        await running.end(report, timeout)

    # --- destroy

    async def destroy_nodes(
        self, names: Iterable[str], report: Report | None = None, timeout: float = END_SECONDS
    ) -> None:
        """Take a part of the lab away; as ``destroy``."""
        for name in names:
            await self._remove_node(name, report, timeout)
            self._addresses.pop(name, None)
        self._record(self.deployed)

    async def destroy(self, report: Report | None = None, timeout: float = END_SECONDS) -> None:
        """Take the lab away: afterwards nothing of it exists but its directory.

        Args:
            report: told about nodes that something keeps from ending.
            timeout: how many seconds they get.

        Raises:
            LabError: nodes that have not ended; they stay in the lab, which can be destroyed again.
        """
        # A namespace of the lab's own goes with all its interfaces; deleting them one by one costs 10 ms each.
        self._ending = not self.on_machine
        if self.on_machine:
            self.cabling.remove_from_host()
        ending = (self._end_one(running, report, timeout) for running in tuple(self.nodes.values()))
        try:
            held = [reason for reason in await asyncio.gather(*ending) if reason]
        finally:
            self._ending = False
        if held:
            raise LabError("; ".join(held), remedy=f"then calipy lab destroy --name {self.name}")
        if self._host_agent is not None:
            await self._host_agent.close(report, timeout)
        if self._resolver is not None:
            self._resolver.close()
        if self.on_machine and self.cabling.bridge:
            registry.remove_bridge(self.cabling.bridge, self.entry)
        self.cabling.close()
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
        self._host_agent, self._resolver, self._directory_fd = None, None, -1
        self._etcd_endpoint = ""
        self.topology = None

    async def _end_one(self, running: RunningNode, report: Report | None, timeout: float) -> str:
        """End a node and forget it. Returns what keeps it, or ""; a node that is kept stays known."""
        try:
            await self._end(running, report, timeout)
        except LabError as error:
            return str(error.args[0])
        del self.nodes[running.node.name]
        return ""

    # --- views

    def containers(self) -> list[dict[str, Any]]:
        """What ``inspect`` shows, by name."""
        return [running.container(self.deployed, self._owner) for _, running in sorted(self.nodes.items())]

    def interfaces(self) -> list[dict[str, Any]]:
        """What ``inspect interfaces`` shows: the interfaces of all nodes that run."""
        return [
            {"name": running.node.long_name, "interfaces": running.interfaces()}
            for _, running in sorted(self.nodes.items())
            if running.alive and running.namespace is not None
        ]

    def _view(self, topology: Topology, *, known: bool) -> inventories.View:
        """What the files of the lab directory are made from.

        Args:
            topology: what was deployed.
            known: whether management addresses are filled in; containerlab leaves them out in a deploy without changes.
        """
        links = self.cabling.links
        parents = {link.b.interface for link in topology.links if link.type == "macvlan" and link.b}
        return inventories.View(
            bridge=self.cabling.bridge if topology.uses_management else "",
            addresses={name: running.addresses for name, running in self.nodes.items()} if known else {},
            labels={
                node.name: self.nodes[node.name].labels if node.name in self.nodes else self._labels(topology, node)
                for node in topology.nodes.values()
            },
            macs={str(end.endpoint): end.mac for link in links for end in link.ends},
            parents={name: found.mac for name in parents if (found := self._host.links.get_link(name))},
            parked=frozenset(end for link in links for end in link.parked),
        )
