"""The stores that other tests lean on do what they say."""

from __future__ import annotations

import pytest

from calipy.datastore.memory import MemoryStore
from calipy.errors import ConflictError, UnavailableError
from tests.support.stores import CountingStore, FaultyStore, Killed


async def test_round_trips_are_counted():
    """Every call of the program counts once, lost guards apart."""
    store = CountingStore(MemoryStore())
    revision = await store.create("/a", b"")
    await store.put("/a", b"")
    with pytest.raises(ConflictError):
        await store.update("/a", b"", revision=revision)
    await store.get("/a")
    await store.list("/")
    counts = store.reset()
    assert (counts.gets, counts.lists, counts.txns, counts.lost) == (1, 1, 3, 1)
    assert counts.calls == [("txn", "/a"), ("txn", "/a"), ("txn", "/a"), ("get", "/a"), ("list", "/")]
    assert store.counts.txns == 0


@pytest.mark.parametrize(("when", "written"), [("before", None), ("after", b"2")])
async def test_crash_at_a_write(when, written):
    """A crash before a write leaves it undone, one after leaves it done, and nothing works afterwards."""
    inner = MemoryStore()
    store = FaultyStore(inner, 2, when)
    await store.put("/1", b"1")
    with pytest.raises(Killed):
        await store.put("/2", b"2")
    found = await inner.get("/2")
    assert (found and found.value) == written
    with pytest.raises(Killed):
        await store.get("/1")


async def test_glitch_passes():
    """A fault that is not for good strikes once."""
    store = FaultyStore(MemoryStore(), 1, "after", lambda: UnavailableError("lost"), for_good=False)
    with pytest.raises(UnavailableError):
        await store.put("/1", b"1")
    assert (await store.get("/1")).value == b"1"
