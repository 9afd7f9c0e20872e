"""The agent: node start-up, Felix, IPAM, pods and the local API in one process. Wiring only, in reading order.

    etcd ─► Syncer ─► Felix (graph, dataplane)      kernel
                 └──► Allocator's view of the pools and blocks
    CLI, CNI ─► agent.sock ─► Workloads ─► PodNetwork ─► Allocator, veth, endpoint in etcd ─► Syncer

The agent starts whatever is missing: etcd unreachable, no address on any interface yet. It says so in ``/readiness``
and goes on trying. SIGTERM ends it and leaves routes, rules, sets and pods as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import gc
import os
import random
import signal
from collections.abc import Sequence
from typing import Any

from calipy import api_client, clock, log
from calipy.api import Server
from calipy.cni.pod import PodNetwork
from calipy.cni.workloads import Workloads
from calipy.datastore import keys
from calipy.datastore.client import Client
from calipy.datastore.connect import EtcdConfig, connect
from calipy.datastore.syncer import InSync, Status, Syncer, SyncEvent, Update
from calipy.errors import CalipyError, DatastoreError, NotFoundError
from calipy.felix.daemon import Felix, FelixStatus
from calipy.httpd import HttpServer
from calipy.ipam.allocator import Allocator
from calipy.ipam.collector import LeakTracker, collect
from calipy.metrics import REGISTRY
from calipy.node import host, startup, tunnels
from calipy.node.autohep_writer import AutoHostEndpoints
from calipy.node.health import Health, pages
from calipy.node.metrics_server import MetricsServer, watch_process
from calipy.node.parameters import AgentParameters
from calipy.node.reporting import Reporting
from calipy.node.settings import LIB_DIR, NodeSettings, etcd_config

logger = log.get("agent")

STARTUP_RETRY_SECONDS = 1.0
LISTEN_RETRY_SECONDS = 5.0
LEAK_SECONDS = 300.0
"""Shortest grace period that sets the pace of looking for leaks; Calico's where none is given."""


def prefixes(node: str) -> tuple[str, ...]:
    """What the agent follows in the datastore: all resources, the blocks, and this node's own claims."""
    return (keys.RESOURCES, keys.BLOCKS, keys.affinity_prefix(node), keys.IPAM_CONFIG)


class Agent:
    """Everything the agent owns. Works in the network namespace of its process."""

    def __init__(self, settings: NodeSettings, etcd: EtcdConfig) -> None:
        self.settings = settings
        self.since = clock.wall()
        self.store = connect(etcd)
        self.client = Client(self.store)
        self.felix = Felix(settings.felix, settings.name, mtu_file=LIB_DIR / "mtu")
        self.allocator = Allocator(self.store, settings.name)
        self.syncer = Syncer(self.store, prefixes(settings.name))
        pods = PodNetwork(self.client, self.allocator, self.felix, settings.name)
        self.workloads = Workloads(pods, self.client, settings.name)
        self.metrics = MetricsServer(remedy="mend the parameters PrometheusMetrics… of the FelixConfiguration")
        self.reporting = Reporting(self.felix, self.store, settings.name)
        self.host_endpoints = AutoHostEndpoints(self.client, settings.name)
        self.health = Health()
        self._watchdog = AgentParameters().watchdog
        self._parameter_problems: tuple[str, ...] = ()
        self._health_problem = ""
        self._datastore_problem = "not connected yet"
        self._stop = asyncio.Event()
        self._pools_changed = asyncio.Event()
        self._tunnels = asyncio.Lock()

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT: 0; 1 if one of the parts failed, so that the supervisor starts us again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        for name in ("startup", "datastore", "felix", "parameters"):
            self.health.register(name)
        api = Server(api_client.agent_socket(), {"status": self.status, **self.workloads.handlers()})
        async with api:
            parts = (
                self._announce_node(),
                self._keep_tunnel_addresses(),
                self._follow_datastore(),
                self._collect_leaks(),
                self.host_endpoints.run(),
                self.felix.run(),
                self.reporting.run(),
                self._follow_parameters(),
                self._serve_health(),
                self._stop.wait(),
            )
            tasks = [asyncio.create_task(part) for part in parts]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        await self.metrics.stop()
        await self.store.close()
        failures = [r for r in results if isinstance(r, Exception)]
        for failure in failures:
            logger.error("a part of the agent failed", exc_info=failure)
        return 1 if failures else 0

    async def _announce_node(self) -> None:
        """Node start-up until it succeeds; then again and again where addresses are to be detected."""
        said = ""
        recovered = False
        while True:
            try:
                await startup.start(self.client, self.settings, host.read())
                await self._ensure_tunnel_addresses()
                if not recovered:
                    await self.workloads.recover()
                    recovered = True
                self.health.report("startup", ready=True, detail=f"node {self.settings.name} is in the datastore")
                said = ""
                await asyncio.sleep(self.settings.poll_interval)
            except CalipyError as error:
                if str(error) != said:
                    logger.warning("cannot register the node yet", reason=str(error))
                said = str(error)
                if not isinstance(error, DatastoreError):
                    self.health.report("startup", ready=False, detail=said)
                await asyncio.sleep(STARTUP_RETRY_SECONDS)

    async def _ensure_tunnel_addresses(self) -> None:
        async with self._tunnels:
            if self.settings.networking:
                await tunnels.ensure(self.client, self.allocator, self.settings.name)

    async def _keep_tunnel_addresses(self) -> None:
        """Assign and give back the node's tunnel addresses as pools, or the node, change."""
        while True:
            await self._pools_changed.wait()
            self._pools_changed.clear()
            try:
                await self._ensure_tunnel_addresses()
            except NotFoundError as error:
                logger.debug("no tunnel addresses yet", reason=str(error))
            except CalipyError as error:
                logger.warning("cannot settle the node's tunnel addresses", reason=str(error))
                self._pools_changed.set()
                await asyncio.sleep(STARTUP_RETRY_SECONDS)

    async def _follow_datastore(self) -> None:
        async for batch in self.syncer.run():
            self._on_events(batch)

    async def _serve_health(self) -> None:
        """Answer ``/readiness`` and ``/liveness``, as soon as the port is free."""
        settings = self.settings
        server = HttpServer(
            pages(self.health, self._report),
            host=settings.health_host,
            port=settings.health_port,
            purpose="health checks",
            remedy="set FELIX_HEALTHPORT or FELIX_HEALTHHOST, or FELIX_HEALTHENABLED=false",
        )
        while settings.health_enabled:
            try:
                await server.start()
                self._health_problem = ""
                break
            except CalipyError as error:
                if str(error) != self._health_problem:
                    logger.warning("nobody can ask for the agent's health; trying again", reason=str(error))
                self._health_problem = str(error)
                await asyncio.sleep(LISTEN_RETRY_SECONDS)
        try:
            await self._stop.wait()
        finally:
            await server.stop()

    async def _follow_parameters(self) -> None:
        """Serve metrics and report statuses as the configuration says, when it changes."""
        while True:
            self.felix.reconfigured.clear()
            parameters = AgentParameters.from_parameters(self.felix.parameters)
            problems = [f"{name}={value}: {reason}" for name, value, reason in parameters.problems]
            self.reporting.configure(parameters.reporting)
            self._watchdog = parameters.watchdog
            if parameters.log_level:
                log.configure(parameters.log_level)
            retry = None
            try:
                await self.metrics.configure(parameters.metrics)
            except CalipyError as error:
                problems.append(str(error))
                retry = LISTEN_RETRY_SECONDS
            if problems and tuple(problems) != self._parameter_problems:
                logger.error("the configuration cannot be followed in full", problems=problems)
            self._parameter_problems = tuple(problems)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry):  # wait_for of Python 3.11 can lose a cancellation
                    await self.felix.reconfigured.wait()

    async def _collect_leaks(self) -> None:
        """Give back addresses of this node that nobody has used for the grace period, and blocks that stay empty."""
        grace = self.settings.leak_grace
        tracker = LeakTracker(datetime.timedelta(seconds=grace), scope=self.settings.name)
        while True:
            # Half the grace period, spread so that the nodes of a cluster do not all read at once.
            await asyncio.sleep(max(grace, LEAK_SECONDS) / 2 * random.uniform(0.9, 1.1))  # noqa: S311 - no secret
            try:
                done = await collect(self.store, self.allocator, tracker, now=clock.wall)
                if done.released or done.handles or done.blocks or done.failed:
                    logger.info("leaks collected", **dataclasses.asdict(done))
            except CalipyError as error:
                logger.warning("cannot look for leaked addresses", reason=str(error))

    def _on_events(self, batch: Sequence[SyncEvent]) -> None:
        for event in batch:
            match event:
                case Update():
                    self.allocator.observe(event)
                    self.host_endpoints.observe(event)
                    if _concerns_tunnels(event.key, self.settings.name):
                        self._pools_changed.set()
                case InSync():
                    self.allocator.in_sync()
                    self.host_endpoints.in_sync()
                    self._datastore_problem = ""
                    gc.freeze()  # the cluster's objects stay: no collection need walk over them again
                case Status(state="connected"):
                    self._datastore_problem = ""
                case Status(detail=detail):
                    self.allocator.out_of_sync()
                    self._datastore_problem = detail or "listing the datastore anew"
        self.felix.on_events(batch)

    # Answers

    def _report(self) -> None:
        """Bring the reporters that have no loop of their own up to date."""
        problem = self._datastore_problem
        self.health.report("datastore", ready=not problem, detail=problem or "in sync")
        felix = self.felix.status()
        live = felix.busy_seconds <= self._watchdog
        detail = "; ".join(felix.reasons) or "the kernel is as it should be"
        self.health.report("felix", live=live, ready=felix.ready and live, detail=detail)
        warnings = "; ".join(self._parameter_problems)
        self.health.report("parameters", ready=True, detail=f"warning: {warnings}" if warnings else "followed")

    async def status(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to ``status``."""
        self._report()
        felix = self.felix.status()
        return {
            "pid": os.getpid(),
            "node": self.settings.name,
            "since": clock.rfc3339(self.since),
            "ready": self.health.ready,
            "reasons": [f"{line.name}: {line.detail}" for line in self.health.lines() if not line.ready],
            "warnings": [*filter(None, [self._health_problem]), *self._parameter_problems],
            "felix": felix_document(felix),
            "undecodable": {path: str(error) for path, error in self.syncer.problems.items()},
        }


def _concerns_tunnels(key: keys.Key, node: str) -> bool:
    """Whether the node's tunnel addresses may depend on an object."""
    return isinstance(key, keys.ResourceKey) and (key.kind == "IPPool" or (key.kind == "Node" and key.name == node))


def felix_document(status: FelixStatus) -> dict[str, Any]:
    """Felix's status as the API tells it."""
    return {
        "in_sync": status.in_sync,
        "datastore": status.datastore,
        "applied_revision": status.applied_revision,
        "backend": status.backend,
        "last_apply_ms": round(status.apply_seconds * 1000, 1),
        "errors": list(status.errors),
        "endpoints": {
            f"{identity.workload}/{identity.endpoint}": {"state": endpoint.state, "cause": endpoint.cause}
            for identity, endpoint in status.endpoints.items()
        },
        "host_endpoints": {
            name: {"state": endpoint.state, "cause": endpoint.cause} for name, endpoint in status.host_endpoints.items()
        },
        "drift": [str(difference) for difference in status.drift],
        "warnings": list(status.warnings),
    }


async def run(settings: NodeSettings, config_file: str | None) -> int:
    """Run the agent until it is told to stop; its exit status. Raises ``InvalidInputError`` for a bad configuration."""
    agent = Agent(settings, etcd_config(config_file))
    watch_process()
    REGISTRY.gauges("felix_host", "Always 1; the label is this node's name.", "host").labels(settings.name).set(1)
    log_errors = REGISTRY.counter("felix_log_errors", "Writes of the log that failed.")

    def measure() -> None:
        log_errors.value = log.SINK.failures
        agent.felix.measure()

    REGISTRY.before_exposing(measure)
    return await agent.run()
