"""Keeps this node's automatic host endpoints in the datastore as ``autohep`` says: the edge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

from calipy import log
from calipy.datastore.client import Client
from calipy.datastore.syncer import Update
from calipy.errors import AlreadyExistsError, CalipyError, ConflictError, NotFoundError
from calipy.node.autohep import HostEndpoint, View, Work, is_automatic

logger = log.get("autohep")

PAUSE_SECONDS: Final = 1.0
"""After each round of writes: time for their events to come back, and a limit for two that do not agree."""
RETRY_SECONDS: Final = 30.0
"""Until what could not be written is tried again without any event."""


class AutoHostEndpoints:
    """Makes, changes and deletes the host endpoints of this node that carry the label of automatic ones, no others.

    Writes hold for the revision that was seen: what somebody else has changed meanwhile is looked at again.
    """

    def __init__(self, client: Client, node: str) -> None:
        self._client = client
        self._view = View(node)
        self._changed = asyncio.Event()
        self._problem = ""

    def observe(self, event: Update) -> None:
        """Take in an event of the syncer."""
        if self._view.observe(event):
            self._changed.set()

    def in_sync(self) -> None:
        """The syncer has handed everything over; from now on there is something to compare with."""
        self._view.in_sync()
        self._changed.set()

    async def run(self) -> None:
        """Write what is to be written, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._problem else None):
                    await self._changed.wait()
            self._changed.clear()
            if await self._settle():
                await asyncio.sleep(PAUSE_SECONDS)

    async def _settle(self) -> bool:
        """One round; whether anything was written."""
        try:
            work = self._view.work()
            problems = [problem for problem in [await self._write(one) for one in _writes(work)] if problem]
        except CalipyError as error:
            work, problems = Work(), [str(error)]
        problem = "; ".join(problems)
        if problem and problem != self._problem:
            logger.error("automatic host endpoints are not as the configuration says", reason=problem)
        self._problem = problem
        return bool(work)

    async def _write(self, write: tuple[str, HostEndpoint]) -> str:
        """Do it; why it cannot be done, "" if it was, or if somebody else was quicker."""
        verb, endpoint = write
        try:
            await self._call(verb, endpoint)
        except AlreadyExistsError:
            found = await self._client.get("HostEndpoint", endpoint.name)
            if found is not None and not is_automatic(found):
                return f"host endpoint {endpoint.name} exists and is not automatic: delete it, or rename it"
        except (ConflictError, NotFoundError) as error:
            logger.debug("somebody else was quicker", name=endpoint.name, reason=str(error))
        except CalipyError as error:
            return f"cannot {verb} host endpoint {endpoint.name}: {error}"
        else:
            logger.info("automatic host endpoint written", how=verb, name=endpoint.name)
        return ""

    def _call(self, verb: str, endpoint: HostEndpoint) -> Awaitable[object]:
        if verb == "create":
            return self._client.create(endpoint)
        if verb == "update":
            return self._client.update(endpoint)
        return self._client.delete("HostEndpoint", endpoint.name, revision=endpoint.revision)


def _writes(work: Work) -> list[tuple[str, HostEndpoint]]:
    """New ones before old ones go: an interface must not be without in between."""
    return [
        *(("create", endpoint) for endpoint in work.create),
        *(("update", endpoint) for endpoint in work.update),
        *(("delete", endpoint) for endpoint in work.delete),
    ]
