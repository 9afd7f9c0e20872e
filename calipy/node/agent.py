"""The agent: node start-up, Felix, IPAM, pods and the local API in one process. Wiring only, in reading order.

    etcd ─► Syncer ─► Felix (graph, dataplane)      kernel
                 └──► Allocator's view of the pools and blocks
    CLI, CNI ─► agent.sock ─► Workloads ─► PodNetwork ─► Allocator, veth, endpoint in etcd (and back through the Syncer)

The agent starts whatever is missing: etcd unreachable, no address on any interface yet. It says so in ``/readiness`` and
goes on trying. SIGTERM ends it and leaves routes, rules, sets and pods as they are.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any

from calipy import api_client, clock, log
from calipy.api import Server
from calipy.cni.pod import PodNetwork
from calipy.cni.workloads import Workloads
from calipy.datastore.client import Client
from calipy.datastore.connect import EtcdConfig, connect
from calipy.datastore.keys import AGENT_PREFIXES
from calipy.datastore.syncer import InSync, Status, SyncEvent, Syncer, Update
from calipy.errors import CalipyError
from calipy.felix.daemon import Felix
from calipy.ipam.allocator import Allocator
from calipy.node import host, startup
from calipy.node.health import Health, HealthServer
from calipy.node.settings import NodeSettings

logger = log.get("agent")

STARTUP_RETRY_SECONDS = 1.0
WATCHDOG_SECONDS = 90.0
TICK_SECONDS = 1.0


class Agent:
    """Everything the agent owns."""

    def __init__(self, settings: NodeSettings, etcd: EtcdConfig) -> None:
        self.settings = settings
        self.started_at = clock.wall()
        self.store = connect(etcd)
        self.client = Client(self.store)
        self.felix = Felix(settings.felix, settings.name)
        self.allocator = Allocator(self.store, settings.name)
        pods = PodNetwork(self.client, self.allocator, self.felix, settings.name)
        self.workloads = Workloads(pods, self.client, settings.name)
        self.health = Health()
        self.syncer = Syncer(self.store, AGENT_PREFIXES)
        self.api = Server(
            api_client.agent_socket(), {"status": self.status, **self.workloads.handlers()}
        )
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; 0. Ends with an exception only if one of the parts has a bug."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        for name, timeout in (("startup", 0.0), ("datastore", 0.0), ("felix", WATCHDOG_SECONDS)):
            self.health.register(name, timeout=timeout)
        server = HealthServer(self.health, host=self.settings.health_host, port=self.settings.health_port, refresh=self.refresh)
        await self.api.start()
        if self.settings.health_enabled:
            await server.start()
        parts = [self._announce_node(), self._follow_datastore(), self.felix.run(), self._tick()]
        tasks = [asyncio.create_task(self._guard(part)) for part in parts]
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait({stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        await self.api.close()
        await server.stop()
        for task in (stop, *tasks):
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)
        await self.store.close()
        failed = [t for t in done - {stop} if t.exception() is not None]
        for task in failed:
            logger.error("a part of the agent failed", exc_info=task.exception())
        return 1 if failed else 0
