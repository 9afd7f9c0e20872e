"""Runs the status reports: to files on this node, to the datastore, and the heartbeat. Wiring and timing only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from calipy import clock, log
from calipy.datastore.store import Store
from calipy.errors import DatastoreError
from calipy.felix.daemon import Felix
from calipy.felix.status_files import StatusFiles
from calipy.felix.status_reports import Heartbeat, StatusReports, desired, report_alive
from calipy.felix.statuses import EndpointState, EndpointStatus
from calipy.node.parameters import ReportingSettings

logger = log.get("reporting")

K = TypeVar("K")

FIRST_HEARTBEAT: Final = 10.0
RECHECK: Final = 10.0
"""Seconds after which the files, and states that changed by themselves, are looked at again."""
SHORTEST_DELAY: Final = 0.1
RESYNC_DELAYS: Final = 180
"""The datastore is read again after so many delays."""


class Reporting:
    """All reports of one node, as its settings say."""

    def __init__(self, felix: Felix, store: Store, host: str) -> None:
        self._felix = felix
        self._store = store
        self._host = host
        self._settings = ReportingSettings(interval=0.0, path_prefix="")
        self._reconfigured = asyncio.Event()
        self._since = clock.monotonic()
        self._alive_before = False

    def configure(self, settings: ReportingSettings) -> None:
        """Report as these settings say from now on. What was reported stays where it is."""
        if settings != self._settings:
            self._settings = settings
            self._reconfigured.set()

    async def run(self) -> None:
        """Report until cancelled. Neither the datastore nor the files can make it fail."""
        while True:
            self._reconfigured.clear()
            parts = [asyncio.create_task(part) for part in self._parts(self._settings)]
            waiting = asyncio.create_task(self._reconfigured.wait())
            try:
                done, _ = await asyncio.wait([*parts, waiting], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (*parts, waiting):
                    task.cancel()
                await asyncio.gather(*parts, waiting, return_exceptions=True)
            for task in done:
                task.result()

    def _parts(self, settings: ReportingSettings) -> list[Coroutine[Any, Any, None]]:
        parts = []
        if settings.path_prefix:
            parts.append(self._files(Path(settings.path_prefix)))
        if settings.endpoints:
            parts.append(self._statuses(settings))
        if settings.interval:
            parts.append(self._heartbeats(settings))
        return parts

    async def _files(self, prefix: Path) -> None:
        files = StatusFiles(prefix)
        version, read_at, said = 0, clock.monotonic(), ""
        while True:
            version = await self._felix.changed_since(version, RECHECK)
            if not self._felix.programmed:
                continue
            if clock.monotonic() - read_at >= RECHECK:
                files.recheck()
                read_at = clock.monotonic()
            states = self._felix.status().endpoints
            up = [self._felix.endpoint(identity) for identity, status in states.items() if status.state == "up"]
            try:
                await asyncio.to_thread(files.reconcile, [endpoint for endpoint in up if endpoint])
                said = ""
            except OSError as error:
                if str(error) != said:
                    logger.warning("cannot keep the endpoints' status files", directory=str(prefix), error=str(error))
                said = str(error)

    async def _statuses(self, settings: ReportingSettings) -> None:
        reports = StatusReports(self._store, self._host, region=settings.region)
        delay = max(settings.delay, SHORTEST_DELAY)
        version, read_at, more, said = 0, clock.monotonic(), False, ""
        while True:
            # Spread, so that the nodes of a cluster do not all write at once; many changes make one write.
            await asyncio.sleep(delay * random.uniform(0.9, 1.1))  # noqa: S311 - no secret
            if not more:
                version = await self._felix.changed_since(version, RECHECK)
            if not self._felix.programmed:
                continue
            status = self._felix.status()
            wanted = desired(self._host, settings.region, _states(status.endpoints), _states(status.host_endpoints))
            if clock.monotonic() - read_at >= delay * RESYNC_DELAYS:
                reports.recheck()
                read_at = clock.monotonic()
            more, said = await _attempt(reports.write(wanted), said)

    async def _heartbeats(self, settings: ReportingSettings) -> None:
        said = ""
        await asyncio.sleep(min(FIRST_HEARTBEAT, settings.interval))
        while True:
            _, said = await _attempt(self._beat(settings), said)
            await asyncio.sleep(settings.interval)

    async def _beat(self, settings: ReportingSettings) -> bool:
        beat = Heartbeat(clock.wall(), clock.monotonic() - self._since, first=not self._alive_before)
        await report_alive(self._store, self._host, beat, region=settings.region, ttl=settings.ttl)
        self._alive_before = True
        return False


def _states(found: Mapping[K, EndpointStatus]) -> dict[K, EndpointState]:
    return {name: status.state for name, status in found.items()}


async def _attempt(write: Awaitable[bool], said: str) -> tuple[bool, str]:
    """Do it, or log why not, once for each reason; what it returned, True for failure, and what was said last."""
    try:
        return await write, ""
    except DatastoreError as error:
        if str(error) != said:
            logger.warning("cannot report the status", error=str(error))
        return True, str(error)
