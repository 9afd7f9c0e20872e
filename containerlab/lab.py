"""A lab that runs: its nodes, links and management network, and how they come and go. Edge, in one event loop.

``Lab.deploy`` follows containerlab's sequence: each node passes the stages create, create-links, configure (and healthy,
exit where somebody waits), nodes in parallel as their dependencies allow; then the files of the lab directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calipy.containerlab import container, environment, images, inventories, linkspec, management, registry, wiring
from calipy.containerlab.agent import Agent, Output
from calipy.containerlab.errors import LabError
from calipy.containerlab.images import Profile
from calipy.containerlab.management import Addresses
from calipy.containerlab.model import Endpoint, Link, Node, Stage, StageName, Topology
from calipy.containerlab.plan import Plan, plan
from calipy.containerlab.programs import program_directories
from calipy.containerlab.registry import Entry
from calipy.containerlab.wiring import End, Namespace
from calipy.errors import CalipyError, KernelError

Report = Callable[[str, str], Awaitable[None]]
"""Told what happens: level (``info``, ``warning``, ``error``) and text."""

_ETCD_START = 10.0
_HEAD_START = 0.1
_BRIDGE_DELAY = 0.3
"""Seconds between the start of a main process and the first link or bridge beside it. Containerlab takes about as long, and
entrypoints rely on it: they look at what is there, or make it themselves."""


@dataclass(slots=True)
class RunningNode:
    """A node that exists.

    Attributes:
        node: as it was created.
        id: 64 hex digits, as a container has them.
        state: ``created``, ``running``, ``restarting`` or ``exited``.
        health: ``""`` without healthcheck, else ``starting``, ``healthy``, ``unhealthy``.
        namespace: the network namespace; shared where ``owns_namespace`` is false.
        port: name of eth0's other end on the host, or "".
    """

    node: Node
    profile: Profile
    addresses: Addresses
    labels: dict[str, str]
    env: dict[str, str]
    id: str = field(default_factory=lambda: secrets.token_hex(32))
    agent: Agent | None = None
    namespace: Namespace | None = None
    owns_namespace: bool = False
    netns_target: str = ""
    port: str = ""
    state: str = "created"
    exit_code: int = 0
    since: float = field(default_factory=time.time)
    health: str = ""
    watcher: asyncio.Task[None] | None = None
    failure: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        """Whether commands can be run in it."""
        return self.agent is not None and self.state in {"running", "restarting"}


@dataclass(slots=True)
class RunningLink:
    """A link that exists, wholly or (``waiting``) with one end in the holder's namespace."""

    link: Link
    ends: list[End]
    waiting: str = ""
    parked: dict[str, str] = field(default_factory=dict)


class Lab:
    """One lab. All methods belong to the supervisor's event loop; deploy, destroy and the like are serialised by it."""

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
        self.host = host
        self.machine = machine
        self.host_netns = host is machine
        self.create_bridges = False
        self.topology: Topology | None = None
        self.nodes: dict[str, RunningNode] = {}
        self.links: list[RunningLink] = []
        self.owner = ""
        self.git: dict[str, str] = {}
        self.bridge = ""
        self.created_bridges: list[str] = []
        self._created_directory = False
        self._holder: Namespace | None = None
        self._host_agent: Agent | None = None
        self._etcd_endpoint = ""
        self._lab_directory_fd = -1
        self._bridge_nodes: set[str] = set()

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
        self.create_bridges = create_bridges
        try:
            return await self._deploy(topology, report, owner, cwd, caller, git)
        except BaseException:
            if first:
                created = self._created_directory
                await self.destroy()
                if created:
                    inventories.remove_directory(topology.lab_directory)
            raise

    async def _deploy(
        self,
        topology: Topology,
        report: Report,
        owner: str,
        cwd: str,
        caller: Mapping[str, str],
        git: Mapping[str, str],
    ) -> tuple[Plan | None, int]:
        first = self.topology is None
        for warning in topology.warnings:
            await report("warning", warning)
        profiles = {node.name: images.profile(node) for node in topology.nodes.values() if node.is_container}
        for notice in dict.fromkeys(profile.notice for profile in profiles.values() if profile.notice):
            await report("warning" if "etcd is" not in notice else "info", notice)
        work = self.preview(topology)
        self._check(topology, work)
        others = (
            registry.addresses_of_others(self.entry, topology.management.network) if self.host_netns else frozenset()
        )
        taken = {name: running.addresses for name, running in self.nodes.items()}
        addresses = management.assign(topology.management, topology.nodes.values(), taken, others=others)
        self.owner, self.git = owner, dict(git)
        self.bridge = management.bridge_name(topology.management)
        self.topology = topology
        self._record(topology)
        self._created_directory = inventories.prepare(topology) or (self._created_directory and not first)
        if self._lab_directory_fd >= 0:
            os.close(self._lab_directory_fd)  # the directory may be another one since
        self._lab_directory_fd = os.open(topology.lab_directory, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        host_env = {**caller}
        if topology.uses_management and wiring.create_bridge(self.host, self.bridge, topology.management):
            self.created_bridges.append(self.bridge)
        await self._embedded_etcd(topology, profiles, report)

        for name in work.deleted:
            await self._remove_node(name)
        for endpoint in work.deleted_endpoints:
            self._remove_endpoint(endpoint)
        parked = {name: await self._park(name) for name in work.recreated if name in self.nodes}
        for name in work.started:
            await self.start(name)
        fresh = [name for name in (*work.added, *work.recreated)]
        build = _Build(self, topology, work, report, profiles, addresses, cwd, host_env, parked)
        failed = await build.run(fresh)
        inventories.write(topology, self.files_view(known=first or not work.is_empty))
        return (None if first else work), failed

    def preview(self, topology: Topology) -> Plan:
        """What a deploy of ``topology`` would do."""
        return plan(
            {name: running.node for name, running in self.nodes.items()} | self._plain_nodes(self.topology),
            frozenset(name for name, running in self.nodes.items() if running.state == "exited"),
            [link.link for link in self.links],
            topology,
        )

    def _plain_nodes(self, old: Topology | None) -> dict[str, Node]:
        """Bridges and hosts of the topology before: they exist, though they have no process."""
        return {name: node for name, node in old.nodes.items() if not node.is_container} if old else {}

    def _check(self, topology: Topology, work: Plan) -> None:
        """What only the machine can tell, before anything is made.

        Raises:
            LabError: names the element.
        """
        names = {topology.nodes[name].long_name: name for name in work.added if topology.nodes[name].is_container}
        for lab, taken in registry.names_of_others(self.entry).items():
            for long_name in names.keys() & taken:
                raise LabError(
                    f"node {names[long_name]}: the name {long_name} is taken by lab {lab}",
                    remedy=f"destroy it first: calipy lab destroy --name {lab}",
                )
        for node in topology.nodes.values():
            if node.kind == "bridge" and not node.inside and not self._bridge_exists(node.bridge):
                raise LabError(
                    f"node {node.name}: there is no bridge {node.bridge} on the host",
                    remedy=f"ip link add {node.bridge} type bridge, or deploy with --create-bridges",
                )
        for link in work.added_links:
            for end in link.endpoints:
                on_host = linkspec.namespace_of(end.node, topology.nodes) == linkspec.HOST
                mine = any(end.interface == e.name for running in self.links for e in running.ends)
                if on_host and not mine and self.host.links.get_link(end.interface) is not None:
                    raise LabError(f"endpoint {end}: interface {end.interface} exists on the host")
            if link.type == "macvlan" and link.b and self.host.links.get_link(link.b.interface) is None:
                raise LabError(f"link to {link.a}: host-interface {link.b.interface} does not exist on the host")

    def _bridge_exists(self, name: str) -> bool:
        """Whether a ``kind: bridge`` node may be: the machine has such a bridge, or the lab is to make its own."""
        if self.create_bridges:
            return True
        found = self.machine.links.get_link(name)
        return found is not None and found.kind == "bridge"

    def _record(self, topology: Topology) -> None:
        """Write down what will exist outside of the lab's own namespaces."""
        self.entry.record(
            {
                "lab": self.name,
                "file": topology.file,
                "lab_directory": topology.lab_directory,
                "names": [node.long_name for node in topology.nodes.values() if node.is_container],
                "netns": {running.node.long_name: running.netns_target for running in self.nodes.values() if running.netns_target},
                "network": topology.management.network,
                "addresses": [a for running in self.nodes.values() for a in (running.addresses.ipv4, running.addresses.ipv6) if a],
                "bridge": self.bridge if self.host_netns else "",
                "host_netns": self.host_netns,
            }
        )  # fmt: skip

    async def _embedded_etcd(self, topology: Topology, profiles: Mapping[str, Profile], report: Report) -> None:
        """Start an etcd on the lab's host where calipy nodes have no datastore otherwise."""
        needy = [name for name, profile in profiles.items() if profile.role == "node"]
        provided = any(profile.role == "etcd" for profile in profiles.values()) or any(
            "ETCD_ENDPOINTS" in node.env for node in topology.nodes.values()
        )
        if not needy or provided or self._etcd_endpoint:
            return
        gateway = topology.management.ipv4_gateway
        if not topology.uses_management or not gateway or not any(topology.nodes[name].attached for name in needy):
            await report("warning", "calipy nodes have no ETCD_ENDPOINTS, and no management network to reach one by")
            return
        binary = images.find_etcd()
        if binary is None:
            await report(
                "warning", "calipy nodes have no ETCD_ENDPOINTS, and no etcd is installed (apt-get install etcd-server)"
            )
            return
        directory = Path(topology.lab_directory) / "etcd"
        (directory / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        env = {
            **images.etcd_env("lab", gateway),
            "ETCD_DATA_DIR": str(directory / "data"),
            "ETCD_LISTEN_CLIENT_URLS": f"http://{gateway}:{images.ETCD_PORT}",
            "PATH": environment.SYSTEM_PATH,
        }
        agent = await self.host_agent()
        log = os.open(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            server = await agent.spawn([binary], env, [null, log, log])
        finally:
            os.close(log)
            os.close(null)
        deadline = time.monotonic() + _ETCD_START
        while not await _answers(gateway, images.ETCD_PORT):
            if server.ended.done() or time.monotonic() > deadline:
                raise LabError(f"the embedded etcd does not start, see {directory / 'log'}")
            await asyncio.sleep(0.05)
        self._etcd_endpoint = f"http://{gateway}:{images.ETCD_PORT}"
        await report("info", f"embedded etcd ({binary}) at {self._etcd_endpoint}, data in {directory / 'data'}")

    async def host_agent(self) -> Agent:
        """The process that runs commands on the lab's host: the machine's files, the lab's network, an own PID namespace."""
        if self._host_agent is None or self._host_agent.gone.done():
            self._host_agent = await Agent.start("host", None, log_directory=self._lab_directory_fd)
        return self._host_agent

    @property
    def holder(self) -> Namespace:
        """A namespace for ends of veths that lead nowhere, or not yet."""
        if self._holder is None:
            self._holder = Namespace.fresh()
        return self._holder

    # --- one node

    async def create_node(
        self, node: Node, profile: Profile, addresses: Addresses, interfaces: int, main_cwd: str = "/"
    ) -> RunningNode:
        """Create a node and start its main process; only lo and eth0 exist then.

        Raises:
            LabError: it cannot be built, or its main process does not start.
        """
        topology = self._topology()
        labels = environment.labels(topology, node, owner=self.owner, bridge=self.bridge, git=self.git)
        env = environment.variables(topology, node, profile, labels, interfaces)
        if profile.role == "node" and self._etcd_endpoint:
            env.setdefault("ETCD_ENDPOINTS", self._etcd_endpoint)
        running = RunningNode(node, profile, addresses, labels, env)
        self.nodes[node.name] = running
        other = self.nodes.get(node.network_node) if node.network_mode == "container" else None
        uts_fd = None
        if other is not None:
            assert other.agent is not None
            uts_fd = os.open(f"/proc/{other.agent.pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            running.agent = await Agent.start(
                node.name,
                self._spec(topology, running, other),
                log_directory=self._lab_directory_fd,
                network_fd=other.namespace.fd if other and other.namespace else None,
                uts_fd=uts_fd,
                on_main=lambda event: _main_event(running, event),
            )
        finally:
            if uts_fd is not None:
                os.close(uts_fd)
        if other is not None:
            running.namespace = other.namespace
        elif node.network_mode == "host":
            running.namespace = self.host
        else:
            running.namespace = Namespace.of_process(running.agent.pid)
            running.owns_namespace = True
            running.namespace.links.set_up("lo")
            if node.attached:
                running.port = f"veth{secrets.token_hex(5)}"
                pair = (addresses.ipv4, addresses.ipv6)
                wiring.attach(self.host, running.namespace, self.bridge, running.port, topology.management, pair)
        running.netns_target = f"/proc/{running.agent.pid}/ns/net"
        self._record(topology)
        registry.link_netns(node.long_name, running.netns_target)
        await self._start_main(running)
        return running

    def _spec(self, topology: Topology, running: RunningNode, other: RunningNode | None) -> container.Spec:
        node = running.node
        named = other.node if other else node
        named_addresses = other.addresses if other else running.addresses
        hostname = None if node.network_mode == "host" else named.hostname or named.name
        gateways = [topology.management.ipv4_gateway] if named.attached and topology.management.ipv4_gateway else []
        files = {
            "/etc/hostname": f"{hostname or socket.gethostname()}\n",
            "/etc/hosts": environment.hosts(topology, named, named_addresses),
            "/etc/resolv.conf": environment.resolver(node, gateways),
            **running.profile.files,
        }
        own_network = node.network_mode in ("bridge", "none")
        sysctls: dict[str, str] = {}
        if own_network:
            sysctls = {
                "net.ipv6.conf.all.disable_ipv6": "0",
                "net.ipv6.conf.default.disable_ipv6": "0",
                "net.ipv4.conf.all.rp_filter": "0",
                "net.ipv4.conf.default.rp_filter": "0",
                "net.ipv4.ip_forward": "1" if running.profile.forwards else "0",
            }
        data = {}
        if running.profile.role == "etcd":
            directory = Path(topology.lab_directory) / node.name / "data"
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            data[images.ETCD_DATA] = str(directory)
        return container.Spec(
            hostname=hostname,
            own_network=own_network,
            stage=str(registry.stage()),
            files=files,
            programs=program_directories(),
            binds=node.binds,
            tmpfs=node.tmpfs,
            devices=node.devices,
            data=data,
            sysctls={**sysctls, **node.sysctls},
            shm_size=node.shm_size,
            cpus=tuple(sorted(_cpus(node.cpu_set))),
        )

    async def _start_main(self, running: RunningNode) -> None:
        node = running.node
        assert running.agent is not None
        argv = (*(node.entrypoint or ()), *(node.argv or (() if node.entrypoint else running.profile.argv)))
        running.failure = ""
        running.state = "created"
        running.changed.clear()
        await running.agent.start_main(argv, running.env, node.user, node.restart)
        while running.state != "running" and not running.failure:
            if running.agent.gone.done():
                raise LabError(f"node {node.name}: its first process died")
            await running.changed.wait()
            running.changed.clear()
            if running.state == "exited" and not running.failure:
                break
        if running.failure:
            raise LabError(f"node {node.name}: {argv[0]}: {running.failure}")
        if node.health is not None and running.watcher is None:
            running.health = "starting"
            running.watcher = asyncio.get_running_loop().create_task(_watch_health(running))

    async def start(self, name: str) -> None:
        """Start the main process of a node that has exited or was stopped; its interfaces are up, without addresses."""
        running = self._node(name)
        if running.state in {"running", "restarting"}:
            return
        if running.namespace is not None and running.owns_namespace:
            links = running.namespace.links
            for link in links.list_links():
                if link.name != "lo":
                    links.set_up(link.name)
            if running.node.attached and links.get_link("eth0"):
                pair = (running.addresses.ipv4, running.addresses.ipv6)
                wiring.connect(running.namespace, self._topology().management, pair)
        await self._start_main(running)

    async def stop(self, name: str) -> None:
        """End a node's processes. Its interfaces stay, down and without addresses, as in containerlab."""
        running = self._node(name)
        if running.agent is None or not running.alive:
            return
        running.changed.clear()
        await running.agent.stop()
        while running.state != "exited":
            await running.changed.wait()
            running.changed.clear()
        if running.namespace is not None and running.owns_namespace:
            links = running.namespace.links
            for link in links.list_links():
                if link.name == "lo":
                    continue
                for address in links.list_addresses(interface=link.name):
                    links.delete_address(link.name, address.address)
                links.set_down(link.name)

    async def _remove_node(self, name: str) -> None:
        running = self.nodes.pop(name, None)
        if running is None:
            return
        for link in [link for link in self.links if any(end.endpoint.node == name for end in link.ends)]:
            self._remove_link(link)
        await self._end(running)

    async def _end(self, running: RunningNode) -> None:
        if running.watcher is not None:
            running.watcher.cancel()
        if running.netns_target:
            registry.unlink_netns(running.node.long_name, running.netns_target)
        if running.port:
            with contextlib.suppress(CalipyError):
                self.host.links.delete_link(running.port)
        if running.agent is not None:
            await running.agent.close()
        if running.namespace is not None and running.owns_namespace:
            running.namespace.close()
        running.namespace = None

    def _node(self, name: str) -> RunningNode:
        if name not in self.nodes:
            raise LabError(f"lab {self.name} has no node {name}")
        return self.nodes[name]

    def _topology(self) -> Topology:
        if self.topology is None:
            raise LabError(f"lab {self.name} is not deployed")
        return self.topology

    # --- links

    def end(self, endpoint: Endpoint) -> End:
        """Where an endpoint is to go. Its node must exist."""
        topology = self._topology()
        if endpoint.node == linkspec.MGMT_NET:
            return End(endpoint, self.host, self.bridge)
        node = topology.nodes.get(endpoint.node)
        if node is None or node.kind == "host":
            return End(endpoint, self.host)
        if node.kind == "bridge":
            return End(endpoint, self._bridge_namespace(node), node.bridge)
        namespace = self._node(node.name).namespace
        assert namespace is not None
        return End(endpoint, namespace)

    def _bridge_namespace(self, node: Node) -> Namespace:
        namespace = self._node(node.inside).namespace if node.inside else self.host
        assert namespace is not None
        return namespace

    def create_bridge_node(self, node: Node) -> None:
        """Make the bridge of a ``kind: bridge`` node; on the machine's own host it is there already."""
        namespace = self._bridge_namespace(node)
        if namespace is self.machine and namespace.links.get_link(node.bridge) is not None:
            return
        if namespace.links.get_link(node.bridge) is not None:
            if not node.inside and node.name in self._bridge_nodes:
                return
            raise LabError(f"node {node.name}: an interface {node.bridge} exists already")
        namespace.links.create_bridge(node.bridge)
        namespace.links.set_up(node.bridge)
        self._bridge_nodes.add(node.name)

    def _remove_link(self, link: RunningLink) -> None:
        if link in self.links:
            self.links.remove(link)
        for end in link.ends:
            with contextlib.suppress(CalipyError):
                if end.namespace.links.delete_link(end.name) and link.link.type != "vxlan-stitch":
                    break

    def _remove_endpoint(self, endpoint: str) -> None:
        for link in list(self.links):
            if any(str(end.endpoint) == endpoint for end in link.ends):
                self._remove_link(link)

    async def _park(self, name: str) -> list[tuple[RunningLink, End]]:
        """Take a node's data interfaces aside and end the node; it is created anew with them."""
        running = self.nodes[name]
        parked: list[tuple[RunningLink, End]] = []
        if running.owns_namespace and running.namespace is not None:
            for link in self.links:
                for end in link.ends:
                    if end.namespace is running.namespace:
                        waiting = f"p{secrets.token_hex(6)}"
                        running.namespace.links.move(end.name, self.holder.fd, new_name=waiting)
                        link.parked[str(end.endpoint)] = waiting
                        parked.append((link, end))
        self.nodes.pop(name)
        await self._end(running)
        return parked

    def unpark(self, parked: Iterable[tuple[RunningLink, End]], namespace: Namespace) -> None:
        """Give parked interfaces back, up and without addresses."""
        for link, end in parked:
            self.holder.links.move(link.parked[str(end.endpoint)], namespace.fd, new_name=end.name)
            end.namespace = namespace
            namespace.links.set_up(end.name)

    # --- destroy

    async def destroy_nodes(self, names: Iterable[str]) -> None:
        """Take a part of the lab away."""
        for name in names:
            await self._remove_node(name)
        topology = self._topology()
        self._record(topology)

    async def destroy(self) -> None:
        """Take the lab away: afterwards nothing of it exists but its directory."""
        with contextlib.suppress(CalipyError):
            for link in list(self.links):
                if any(end.namespace is self.host for end in link.ends):
                    self._remove_link(link)
        self.links.clear()
        nodes, self.nodes = self.nodes, {}
        # Nodes in another's namespace go first.
        await asyncio.gather(*(self._end(running) for running in nodes.values()))
        if self._host_agent is not None:
            await self._host_agent.close()
            self._host_agent = None
        self._etcd_endpoint = ""
        for bridge in self.created_bridges:
            if self.host_netns:
                registry.remove_bridge(bridge)
            else:
                with contextlib.suppress(CalipyError):
                    self.host.links.delete_link(bridge)
        self.created_bridges.clear()
        self._bridge_nodes.clear()
        if self._holder is not None:
            self._holder.close()
            self._holder = None
        if self._lab_directory_fd >= 0:
            os.close(self._lab_directory_fd)
            self._lab_directory_fd = -1
        self.topology = None

    # --- views

    def containers(self) -> list[dict[str, Any]]:
        """What ``inspect`` shows, by name."""
        return [self._container(running) for _, running in sorted(self.nodes.items())]

    def _container(self, running: RunningNode) -> dict[str, Any]:
        topology = self._topology()
        shown = running.node.attached and running.state != "exited"

        def address(value: str, subnet: str) -> str:
            return f"{value}/{ipaddress.ip_network(subnet).prefixlen}" if value and shown else "N/A"

        seconds = int(time.time() - running.since)
        status = (
            f"Up {seconds} seconds"
            if running.state != "exited"
            else f"Exited ({running.exit_code}) {seconds} seconds ago"
        )
        if running.health and running.state == "running":
            status = "health: starting" if running.health == "starting" else running.health
        return {
            "lab": self.name,
            "node": running.node.name,
            "name": running.node.long_name,
            "id": running.id,
            "image": running.node.image,
            "kind": running.node.kind,
            "group": running.labels["clab-node-group"],
            "state": running.state,
            "status": status,
            "ipv4": address(running.addresses.ipv4, topology.management.ipv4_subnet),
            "ipv6": address(running.addresses.ipv6, topology.management.ipv6_subnet),
            "owner": self.owner,
            "file": topology.file,
            "labels": running.labels,
            "pid": running.agent.pid if running.agent else 0,
            "exit_code": running.exit_code,
        }

    def interfaces(self) -> list[dict[str, Any]]:
        """What ``inspect interfaces`` shows: all interfaces of all nodes that run."""
        shown = []
        for _, running in sorted(self.nodes.items()):
            if running.namespace is None or not running.alive:
                continue
            interfaces = [
                {
                    "name": link.name,
                    "alias": next((n for n in link.alternative_names if not n.startswith("clab-o-")), ""),
                    "mac": "" if link.name == "lo" else link.mac,
                    "ifindex": link.index,
                    "mtu": link.mtu,
                    "type": link.kind or "device",
                    "state": "unknown" if link.name == "lo" else "up" if link.running else "down",
                }
                for link in sorted(running.namespace.links.list_links(), key=lambda link: link.name)
            ]
            shown.append({"name": running.node.long_name, "interfaces": interfaces})
        return shown

    def files_view(self, *, known: bool) -> inventories.View:
        """What the files of the lab directory are made from.

        Args:
            known: whether management addresses are filled in; containerlab forgets them in a deploy without changes.
        """
        topology = self._topology()
        return inventories.View(
            bridge=self.bridge if topology.uses_management else "",
            addresses={name: running.addresses for name, running in self.nodes.items()} if known else {},
            labels={
                node.name: self.nodes[node.name].labels
                if node.name in self.nodes
                else environment.labels(topology, node, owner=self.owner, bridge=self.bridge, git=self.git)
                for node in topology.nodes.values()
            },
            macs={str(end.endpoint): end.mac for link in self.links for end in link.ends},
            parents={
                link.b.interface: found.mac
                for link in topology.links
                if link.type == "macvlan" and link.b and (found := self.host.links.get_link(link.b.interface))
            },
            parked=frozenset(end for link in self.links for end in link.parked),
        )


class _Build:
    """One pass through the stages for the nodes that are new."""

    def __init__(
        self,
        lab: Lab,
        topology: Topology,
        work: Plan,
        report: Report,
        profiles: Mapping[str, Profile],
        addresses: Mapping[str, Addresses],
        cwd: str,
        caller: Mapping[str, str],
        parked: Mapping[str, list[tuple[RunningLink, End]]],
    ) -> None:
        self.lab = lab
        self.topology = topology
        self.report = report
        self.profiles = profiles
        self.addresses = addresses
        self.cwd = cwd
        self.caller = caller
        self.parked = parked
        self.added = work.added_links
        self.pending = list(work.added_links)
        self.fresh: set[str] = set()
        self.done: dict[tuple[str, StageName], asyncio.Event] = {}
        self.created: dict[str, asyncio.Event] = {}
        self.failed = 0

    async def run(self, names: Iterable[str]) -> int:
        """Build the nodes; how many of their ``exec`` commands failed."""
        nodes = [self.topology.nodes[name] for name in names]
        self.fresh = {node.name for node in nodes}
        for node in nodes:
            self.created[node.name] = asyncio.Event()
            for stage in ("create", "create-links", "configure", "healthy", "exit"):
                self.done[node.name, stage] = asyncio.Event()
        for node in nodes:
            if node.kind == "host" or (node.kind == "bridge" and not node.inside):
                if node.kind == "bridge":
                    self.lab.create_bridge_node(node)
                self.created[node.name].set()
        tasks = [asyncio.ensure_future(self._node(node)) for node in nodes]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        await self._connect(None)
        return self.failed

    async def _node(self, node: Node) -> None:
        if node.kind == "bridge":
            if node.inside:
                await self._arrived(node.inside)
                await asyncio.sleep(_BRIDGE_DELAY)
                self.lab.create_bridge_node(node)
                self.created[node.name].set()
            return
        if node.kind == "host":
            for argv in node.execs:
                await self._exec(node, argv)
            return
        if node.network_mode == "container":
            await self._wait(node.network_node, "create")
        await self._enter(node, "create")
        if node.startup_delay:
            await asyncio.sleep(node.startup_delay)
        links = [end for link in self.added for end in link.endpoints if end.node == node.name]
        addresses = self.addresses.get(node.name, Addresses())
        running = await self.lab.create_node(node, self.profiles[node.name], addresses, len(links))
        if node.name in self.parked:
            assert running.namespace is not None
            self.lab.unpark(self.parked[node.name], running.namespace)
        if node.argv or node.entrypoint:
            await asyncio.sleep(_HEAD_START)
        self.created[node.name].set()
        await self._leave(node, "create")
        await self._enter(node, "create-links")
        for other in sorted({end.node for link in self._links_of(node.name) for end in link.endpoints}):
            if self._comes_at_once(other):
                await self._arrived(other)
        await self._connect(node.name)
        for bridge in self.topology.nodes.values():
            if bridge.kind == "bridge" and bridge.inside == node.name:
                await self._arrived(bridge.name)
        await self._leave(node, "create-links")
        await self._enter(node, "configure")
        await self._leave(node, "configure")
        for argv in node.execs:
            await self._exec(node, argv)
        if self._awaited(node, "healthy"):
            while running.health != "healthy":
                running.changed.clear()
                await running.changed.wait()
            await self._enter(node, "healthy")
            await self._leave(node, "healthy")
        if self._awaited(node, "exit"):
            while running.state != "exited":
                running.changed.clear()
                await running.changed.wait()
            await self._enter(node, "exit")
            await self._leave(node, "exit")

    # --- stages

    def _awaited(self, node: Node, stage: StageName) -> bool:
        waits = (w for n in self.topology.nodes.values() for s in n.stages.values() for w in s.wait_for)
        return bool(node.stages.get(stage)) or any(w.node == node.name and w.stage == stage for w in waits)

    async def _enter(self, node: Node, stage: StageName) -> None:
        definition = node.stages.get(stage, Stage())
        for wait in definition.wait_for:
            await self._wait(wait.node, wait.stage)
        await self._commands(node, definition, "on-enter")

    async def _leave(self, node: Node, stage: StageName) -> None:
        await self._commands(node, node.stages.get(stage, Stage()), "on-exit")
        self.done[node.name, stage].set()

    async def _wait(self, name: str, stage: StageName) -> None:
        if event := self.done.get((name, stage)):
            await event.wait()

    async def _arrived(self, name: str) -> None:
        if event := self.created.get(name):
            await event.wait()

    def _comes_at_once(self, name: str) -> bool:
        """Whether a node is created without waiting for anybody."""
        node = self.topology.nodes.get(name)
        if node is None or name not in self.fresh:
            return True
        if node.kind == "bridge" and node.inside:
            return self._comes_at_once(node.inside)
        if node.network_mode == "container" and not self._comes_at_once(node.network_node):
            return False
        return not node.startup_delay and not node.stages.get("create", Stage()).wait_for

    async def _commands(self, node: Node, stage: Stage, phase: str) -> None:
        for command in stage.commands:
            if command.phase == phase:
                if command.target == "host":
                    await self._show(node, await self._on_host(command.argv))
                else:
                    await self._exec(node, command.argv)

    async def _exec(self, node: Node, argv: tuple[str, ...]) -> None:
        if node.kind == "host":
            await self._show(node, await self._on_host(argv))
            return
        running = self.lab.nodes[node.name]
        assert running.agent is not None
        await self._show(node, await running.agent.run(argv, running.env))

    async def _on_host(self, argv: tuple[str, ...]) -> Output:
        agent = await self.lab.host_agent()
        return await agent.run(argv, self.caller, cwd=self.cwd)

    async def _show(self, node: Node, output: Output) -> None:
        text = f"node {node.name}: {' '.join(output.argv)}"
        said = "".join(f"\n{part.rstrip()}" for part in (output.stdout, output.stderr) if part.strip())
        if output.returncode:
            self.failed += 1
            await self.report("error", f"{text}: exit {output.returncode}{said}")
        else:
            await self.report("info", f"{text}{said}")

    # --- links

    def _links_of(self, name: str) -> list[Link]:
        return [link for link in self.pending if any(end.node == name for end in link.endpoints)]

    def _is_there(self, name: str) -> bool:
        event = self.created.get(name)
        return event is None or event.is_set()

    async def _connect(self, name: str | None) -> None:
        """Build the links of a node that arrived, as far as their other ends allow; None builds what needs no node."""
        for waiting in [link for link in self.lab.links if link.waiting]:
            if all(self._is_there(end.node) for end in waiting.link.endpoints):
                self._complete(waiting)
        for link in self._links_of(name) if name else list(self.pending):
            there = [end for end in link.endpoints if self._is_there(end.node)]
            self.pending.remove(link)
            try:
                await self._build_link(link, there)
            except KernelError as error:
                raise LabError(f"link {link}: {error}") from None

    async def _build_link(self, link: Link, there: list[Endpoint]) -> None:
        lab = self.lab
        if link.type in {"veth", "host", "mgmt-net"}:
            if len(there) == 2:
                a, b = (lab.end(end) for end in link.endpoints)
                wiring.join(lab.host, a, b, link.mtu)
                lab.links.append(RunningLink(link, [a, b]))
            else:
                other = next(end for end in link.endpoints if end not in there)
                a = lab.end(there[0])
                b = End(other, lab.holder)
                waiting = wiring.half_join(lab.host, a, b, link.mtu, lab.holder)
                ends = [a, b] if there[0] == link.a else [b, a]
                lab.links.append(RunningLink(link, ends, waiting))
            return
        end = lab.end(link.a)
        if link.type == "dummy":
            if not wiring.dummy(lab.host, end, link.mtu, lab.holder):
                await self.report("warning", f"{link.a}: this kernel has no dummy driver, a veth stands in")
            lab.links.append(RunningLink(link, [end]))
        elif link.type == "macvlan":
            wiring.macvlan(lab.host, end, link)
            lab.links.append(RunningLink(link, [end]))
        elif link.type == "vxlan":
            wiring.vxlan(lab.host, end, link)
            lab.links.append(RunningLink(link, [end]))
        else:
            suffix = f"{link.a.node}_{link.a.interface}"
            outer = End(Endpoint(node=linkspec.HOST, interface=f"ve-{suffix}"), lab.host)
            tunnel = End(Endpoint(node=linkspec.HOST, interface=f"vx-{suffix}"), lab.host)
            wiring.join(lab.host, end, outer, link.mtu or 9500)
            wiring.vxlan(lab.host, tunnel, link)
            wiring.stitch(lab.host, outer.name, tunnel.name)
            lab.links.append(RunningLink(link, [end, tunnel]))

    def _complete(self, waiting: RunningLink) -> None:
        for number, end in enumerate(waiting.ends):
            if end.namespace is self.lab.holder:
                final = self.lab.end(end.endpoint)
                final.mac = end.mac
                wiring.complete(self.lab.holder, waiting.waiting, final)
                waiting.ends[number] = final
        waiting.waiting = ""


def _main_event(running: RunningNode, event: dict[str, Any]) -> None:
    running.since = time.time()
    if event["main"] == "running":
        running.state = "running"
    elif event["main"] == "failed":
        running.state = "exited"
        running.exit_code = 127
        running.failure = event["reason"]
    else:
        running.exit_code = event["code"]
        running.state = "restarting" if event["again"] else "exited"
    running.changed.set()


async def _watch_health(running: RunningNode) -> None:
    """Run the healthcheck again and again, as Docker does: the first time after one interval."""
    check = running.node.health
    assert check is not None
    assert running.agent is not None
    failures = 0
    began = time.monotonic()
    while not running.agent.gone.done():
        await asyncio.sleep(check.interval)
        if running.state != "running":
            continue
        try:
            output = await running.agent.run(check.argv, running.env, timeout=check.timeout)
            healthy = output.returncode == 0
        except TimeoutError:
            healthy = False
        if healthy:
            failures = 0
            running.health = "healthy"
        elif time.monotonic() - began > check.start_period or running.health == "healthy":
            failures += 1
            if failures >= check.retries:
                running.health = "unhealthy"
        running.changed.set()


async def _answers(address: str, port: int) -> bool:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            await asyncio.wait_for(loop.sock_connect(probe, (address, port)), 1.0)
        except (OSError, TimeoutError):
            return False
    return True


def _cpus(text: str) -> frozenset[int]:
    from calipy.containerlab.values import cpu_set  # noqa: PLC0415

    return cpu_set(text) & frozenset(os.sched_getaffinity(0)) if text else frozenset()
