"""bgpd as a process: the datastore, the kernel's events and ExaBGP feed one ``Router``; its passes do the work.

Nothing is touched before the datastore has been read completely: until then routes, ExaBGP and its sessions stay as an
earlier bgpd left them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from calipy import clock, log
from calipy.api import Server
from calipy.bgp import liveness, metrics, view
from calipy.bgp.answers import Answers
from calipy.bgp.exabgp.process import Paths, SpeakerProcess
from calipy.bgp.forwarding import REPAIR_SECONDS
from calipy.bgp.kernel import KernelFib
from calipy.bgp.reporting import Reporter
from calipy.bgp.router import Options, Router
from calipy.datastore import keys
from calipy.datastore.resources import Resource
from calipy.datastore.store import Store
from calipy.datastore.syncer import InSync, Status, Syncer, SyncEvent, Update
from calipy.errors import KernelError
from calipy.kernel.monitor import Monitor
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable

logger = log.get("bgpd")

LOOK_SECONDS: Final = 2.0
"""Between two looks at whether nodes that are waited for are alive."""


class Bgpd:
    """One node's BGP, wired up."""

    def __init__(self, store: Store, hostname: str, options: Options | None = None) -> None:
        self.options = options or Options()
        self._store = store
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._waiting = asyncio.Event()
        self._view = view.View(hostname)
        self._kernel = KernelFib(RouteTable(NetlinkSocket()))
        self._router = Router(self._view, self._kernel, self.options, self._wake.set)
        self._answers = Answers(self._router)
        metrics.watch(self._router)
        self._reporter = Reporter(store, hostname, self._answers.facts)
        self._syncer = Syncer(store, view.prefixes())
        self._in_sync = False

    async def run(self) -> None:
        """Work until cancelled; routes and ExaBGP then stay as they are.

        Raises:
            CalipyError: another bgpd runs, or the kernel's routes cannot be read.
        """
        self._router.paths.prepare()
        self._kernel.start()
        handlers = {**self._answers.handlers(), "drain": self._drain, "undrain": self._undrain}
        server = Server(self.options.run_dir / "bgpd.sock", handlers)
        with Monitor() as monitor:
            async with server, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_datastore())
                tasks.create_task(self._follow_kernel(monitor))
                tasks.create_task(self._router.speaker.run())
                tasks.create_task(self._work_for_ever())
                tasks.create_task(self._look_for_the_dead())
                tasks.create_task(self._reporter.run(self._ready))

    async def _drain(self, _: dict[str, Any]) -> dict[str, Any]:
        """Take the node out of service; answers when ExaBGP has ended."""
        speaker = self._router.speaker
        farewell = await speaker.drain.begin(self._router.sessions.states().keys)
        return farewell.as_json()

    async def _undrain(self, _: dict[str, Any]) -> dict[str, Any]:
        """Speak again; answers at once."""
        return {"drained_before": self._router.speaker.drain.end()}

    async def _follow_datastore(self) -> None:
        async for batch in self._syncer.run():
            self._on_datastore(batch)

    def _on_datastore(self, batch: Sequence[SyncEvent]) -> None:
        for event in batch:
            match event:
                case Update(key, value, _, error):
                    self._view.on_update(key, value, error)
                    if isinstance(key, keys.ResourceKey) and key.kind == "CalicoNodeStatus" and error is None:
                        resource = value if isinstance(value, Resource) else None
                        self._reporter.on_update(key.name, resource)
                        self._answers.reports.on_update(key.name, resource)
                case InSync():
                    if not self._in_sync:
                        logger.info("datastore read", revision=event.revision)
                        self._router.hold_stale(clock.monotonic())
                    self._in_sync = self._answers.in_sync = True
                case Status(state, detail):
                    self._answers.datastore_problem = detail if state == "disconnected" else ""
        self._wake.set()

    async def _follow_kernel(self, monitor: Monitor) -> None:
        async for event in monitor:
            if self._router.forwarding.on_kernel_event(event):
                self._wake.set()

    async def _look_for_the_dead(self) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            dead = await liveness.look(self._store, self._view.hostname, self._router.awaited())
            if dead - self._router.dead:
                logger.info("nodes that are not waited for", nodes=sorted(dead))
            self._router.dead = dead
            await asyncio.sleep(LOOK_SECONDS)

    async def _work_for_ever(self) -> None:
        while True:
            until = self._router.next_deadline() if self._in_sync else clock.monotonic() + REPAIR_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - clock.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            if not self._in_sync:
                continue
            try:
                self._router.work(clock.monotonic())
                self._ready.set()
                if self._router.awaited():
                    self._waiting.set()
            except Exception as error:
                # Whatever it is, routes and sessions are better kept up by trying again than by ending.
                known = isinstance(error, KernelError)
                logger.warning("a pass has failed, trying again", reason=str(error), exc_info=not known)
                self._router.retry(clock.monotonic())


async def main(store: Store, hostname: str, options: Options | None = None) -> int:
    """Run bgpd until SIGTERM or SIGINT; 0. Kernel routes and ExaBGP stay: see ``stop_speaker``.

    Raises:
        CalipyError: another bgpd runs, or the kernel's routes cannot be read.
    """
    running = asyncio.ensure_future(Bgpd(store, hostname, options).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logger.info("stopping, routes and sessions stay")
    except BaseExceptionGroup as group:
        # A task group wraps what one of its tasks ran into.
        raise group.exceptions[0] from group
    finally:
        await store.close()
    return 0


async def stop_speaker(run_dir: Path) -> bool:
    """End the ExaBGP that a bgpd has left running; whether there was one. Kernel routes stay."""
    running = SpeakerProcess.adopt(Paths(run_dir / "exabgp"))
    if running is None:
        return False
    await running.kill()
    running.close()
    return True
