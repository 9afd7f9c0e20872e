"""A node that exists: its first process, its main process and health, how it looks from outside. Edge."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from calipy.containerlab import wiring
from calipy.containerlab.agent import END_SECONDS, Agent, Report
from calipy.containerlab.errors import LabError
from calipy.containerlab.images import Profile
from calipy.containerlab.management import Addresses
from calipy.containerlab.model import HealthCheck, Management, Node, Topology
from calipy.containerlab.wiring import Namespace

NOT_AVAILABLE = "N/A"
_NOT_FOUND = 127


@dataclass(slots=True)
class RunningNode:
    """A node.

    Attributes:
        node: as it was created.
        id: 64 hex digits, as a container has them.
        state: ``created``, ``running``, ``restarting`` or ``exited``, as Docker tells it.
        health: ``""`` without healthcheck, else ``starting``, ``healthy``, ``unhealthy``.
        namespace: the network namespace; shared where ``owns_namespace`` is false.
        netns_target: what the link in /run/netns points to.
        port: name of eth0's other end on the host, or "".
        changed: set at each change of ``state`` or ``health``.
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
    failure: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _watcher: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether commands can be run in it."""
        return self.agent is not None and self.state in {"running", "restarting"}

    def on_main(self, event: dict[str, Any]) -> None:
        """Take note of what the first process tells about the main one."""
        self.since = time.time()
        if event["main"] == "running":
            self.state = "running"
        elif event["main"] == "failed":
            self.state, self.exit_code, self.failure = "exited", _NOT_FOUND, event["reason"]
        else:
            self.state, self.exit_code = "restarting" if event["again"] else "exited", event["code"]
        self.changed.set()

    async def until(self, *states: str, health: str = "") -> None:
        """Wait for one of the states (and the health)."""
        while self.state not in states or (health and self.health != health):
            self.changed.clear()
            await self.changed.wait()

    # --- the main process

    async def start_main(self) -> None:
        """Start the main process; returns when it runs, or has run already.

        Raises:
            LabError: it cannot be started.
        """
        assert self.agent is not None
        default = () if self.node.entrypoint else self.profile.argv
        argv = (*(self.node.entrypoint or ()), *(self.node.argv or default))
        self.failure, self.state = "", "created"
        await self.agent.start_main(argv, self.env, self.node.user, self.node.restart)
        started = asyncio.ensure_future(self.until("running", "restarting", "exited"))
        await asyncio.wait({started, self.agent.gone}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            started.cancel()
            raise LabError(f"node {self.node.name}: its first process died")
        if self.failure:
            raise LabError(f"node {self.node.name}: {argv[0]}: {self.failure}")
        if self.node.health is not None and self._watcher is None:
            self.health = "starting"
            self._watcher = asyncio.get_running_loop().create_task(self._watch(self.node.health))

    async def start(self, management: Management) -> None:
        """Start a node that has exited or was stopped: interfaces up, only eth0 with addresses, the main process."""
        if self.alive:
            return
        if self.namespace is not None and self.owns_namespace:
            links = self.namespace.links
            for link in links.list_links():
                if link.name != "lo":
                    links.set_up(link.name)
            if self.node.attached:
                wiring.connect(self.namespace, management, (self.addresses.ipv4, self.addresses.ipv6))
        await self.start_main()

    async def stop(self) -> None:
        """End all processes. The interfaces stay, down and without addresses, as containerlab leaves them."""
        if self.agent is None or not self.alive:
            return
        await self.agent.stop()
        await self.until("exited")
        if self.namespace is not None and self.owns_namespace:
            links = self.namespace.links
            for link in links.list_links():
                if link.name == "lo":
                    continue
                for address in links.list_addresses(interface=link.name):
                    links.delete_address(link.name, address.address)
                links.set_down(link.name)

    async def end(self, report: Report | None = None, timeout: float = END_SECONDS) -> None:
        """Take the node away: afterwards no process, mount or namespace of it exists. As ``Agent.close``."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self.agent is not None:
            await self.agent.close(report, timeout)
        if self.namespace is not None and self.owns_namespace:
            self.namespace.close()
        self.namespace = None

    async def _watch(self, check: HealthCheck) -> None:
        """Run the healthcheck again and again as Docker does: for the first time after one interval."""
        assert self.agent is not None
        failures = 0
        began = time.monotonic()
        while not self.agent.gone.done():
            await asyncio.sleep(check.interval)
            if self.state != "running":
                continue
            try:
                healthy = (await self.agent.run(check.argv, self.env, timeout=check.timeout)).returncode == 0
            except TimeoutError:
                healthy = False
            if healthy:
                failures, self.health = 0, "healthy"
            elif self.health != "starting" or time.monotonic() - began > check.start_period:
                failures += 1
                if failures >= check.retries:
                    self.health = "unhealthy"
            self.changed.set()

    # --- views

    def container(self, topology: Topology, owner: str) -> dict[str, Any]:
        """What ``inspect`` shows of it."""
        shown = self.node.attached and self.state != "exited"

        def address(value: str, subnet: str) -> str:
            return f"{value}/{ipaddress.ip_network(subnet).prefixlen}" if value and shown else NOT_AVAILABLE

        return {
            "lab": topology.name,
            "node": self.node.name,
            "name": self.node.long_name,
            "id": self.id,
            "image": self.node.image,
            "kind": self.node.kind,
            "group": self.labels["clab-node-group"],
            "state": self.state,
            "status": self._status(),
            "ipv4": address(self.addresses.ipv4, topology.management.ipv4_subnet),
            "ipv6": address(self.addresses.ipv6, topology.management.ipv6_subnet),
            "owner": owner,
            "file": topology.file,
            "labels": self.labels,
            "pid": self.agent.pid if self.agent else 0,
            "exit_code": self.exit_code,
        }

    def _status(self) -> str:
        seconds = int(time.time() - self.since)
        if self.state == "exited":
            return f"Exited ({self.exit_code}) {seconds} seconds ago"
        if self.health and self.state == "running":
            return "health: starting" if self.health == "starting" else self.health
        return f"Up {seconds} seconds" if self.state == "running" else f"Restarting ({self.exit_code})"

    def interfaces(self) -> list[dict[str, Any]]:
        """What ``inspect interfaces`` shows of it."""
        assert self.namespace is not None
        return [
            {
                "name": link.name,
                "alias": next((name for name in link.alternative_names if not name.startswith("clab-o-")), ""),
                "mac": "" if link.name == "lo" else link.mac,
                "ifindex": link.index,
                "mtu": link.mtu,
                "type": link.kind or "device",
                "state": "unknown" if link.name == "lo" else "up" if link.running else "down",
            }
            for link in sorted(self.namespace.links.list_links(), key=lambda link: link.name)
        ]
