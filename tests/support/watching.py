"""Reading from watches and other endless iterators in tests, always with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from calipy.datastore.store import Event, WatchBatch

Item = TypeVar("Item")


async def take_events(watch: AsyncIterator[WatchBatch], count: int, timeout: float = 30) -> list[Event]:
    """The next events, at least ``count``, in the order given."""
    events: list[Event] = []
    async with asyncio.timeout(timeout):
        while len(events) < count:
            events.extend((await anext(watch)).events)
    return events


async def take_until(items: AsyncIterator[Item], done: Callable[[list[Item]], bool], timeout: float = 30) -> list[Item]:
    """Items up to and with the one that makes ``done`` true of all so far."""
    taken: list[Item] = []
    async with asyncio.timeout(timeout):
        while not done(taken):
            taken.append(await anext(items))
    return taken
