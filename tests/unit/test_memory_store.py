"""What only the store in memory offers: time and compaction in the test's own hands."""

from __future__ import annotations

import asyncio

import pytest

from calipy.datastore.memory import MemoryStore
from calipy.errors import CompactedError
from tests.support.watching import take_events


async def test_leases_follow_the_injected_clock():
    """A lease's keys live exactly as long as the clock says, and vanish at one revision with an event each."""
    now = 100.0
    store = MemoryStore(now=lambda: now)
    lease = await store.grant_lease(30)
    await store.put("/a", b"", lease=lease)
    revision = await store.put("/b", b"", lease=lease)
    now = 129.9
    assert await store.get("/a") is not None
    watch = store.watch(["/"], start_revision=revision + 1)
    assert (await anext(watch)).events == ()
    waiting = asyncio.ensure_future(take_events(watch, 2))
    await asyncio.sleep(0)
    now = 130.0
    store.expire()
    events = await waiting
    assert [(e.type, e.key, e.revision) for e in events] == [
        ("delete", "/a", revision + 1),
        ("delete", "/b", revision + 1),
    ]
    assert (await store.list("/")).items == ()


async def test_compaction_twice_or_of_the_future_is_refused():
    """As etcd, compaction goes forward and not beyond the present."""
    store = MemoryStore()
    revision = await store.put("/a", b"")
    store.compact(revision)
    for wrong in (revision, revision + 1):
        with pytest.raises(CompactedError):
            store.compact(wrong)
