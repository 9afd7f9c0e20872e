"""Writes the CalicoNodeStatus objects that ask this node. An edge: the datastore and the clock."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from msgspec.structs import replace

from calipy import clock, log
from calipy.bgp.nodestatus import FactsSource, NodeStatusResource, Schedule, report
from calipy.datastore import codec, keys
from calipy.datastore.resources import Resource
from calipy.datastore.store import Store
from calipy.errors import CalipyError, ConflictError, NotFoundError, UnavailableError

logger = log.get("bgp.status")

RETRY_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 3600.0


class Reporter:
    """Keeps the reports of one node up to date.

    Args:
        store: where the objects are.
        hostname: this node.
        facts: what a report is made of; raises ``CalipyError`` if it cannot be had now.
    """

    def __init__(self, store: Store, hostname: str, facts: FactsSource) -> None:
        self._store = store
        self._schedule = Schedule(hostname)
        self._facts = facts
        self._wake = asyncio.Event()

    def on_update(self, name: str, resource: Resource[Any, Any] | None) -> None:
        """An object was written or removed (None)."""
        if self._schedule.on_update(name, resource, clock.monotonic()):
            self._wake.set()

    async def run(self, ready: asyncio.Event) -> None:
        """Report until cancelled, once ``ready``."""
        await ready.wait()
        while True:
            for resource in self._schedule.take(clock.monotonic()):
                await self._write(resource)
            due = self._schedule.next_due()
            pause = IDLE_SECONDS if due is None else max(0.0, due - clock.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    async def _write(self, resource: NodeStatusResource) -> None:
        try:
            status = report(resource.spec.classes, self._facts(), clock.wall())
            value = codec.encode(replace(resource, status=status))
            await self._store.update(keys.path(resource.key), value, revision=resource.revision)
        except NotFoundError:
            pass
        except (ConflictError, UnavailableError) as error:
            # Somebody has changed it meanwhile: the change is on its way here.
            logger.debug("report not written, trying again", name=resource.name, reason=str(error))
            self._schedule.again(resource.name, clock.monotonic() + 1.0)
        except Exception as error:
            # A report is never worth a router.
            known = isinstance(error, CalipyError)
            logger.warning("report not written", name=resource.name, reason=str(error), exc_info=not known)
            self._schedule.again(resource.name, clock.monotonic() + RETRY_SECONDS)
