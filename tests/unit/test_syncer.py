"""The syncer hands over the store's state and every change to it, whatever happens between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest

from calipy.datastore.memory import MemoryStore
from calipy.datastore.store import Listing, WatchBatch
from calipy.datastore.syncer import BACKOFF_BASE, BACKOFF_CAP, CHUNK, InSync, Status, Syncer, Update, backoff
from calipy.errors import AccessDeniedError, CompactedError, UnavailableError, UndecodableError
from tests.support.stores import WrappedStore
from tests.support.watching import take_until


def parse(path: str) -> str | None:
    """Keys are their paths; other owners' lie under ``/x/other``."""
    return None if "other" in path else path


def decode(key: str, value: bytes, revision: int) -> str:
    """Values are texts."""
    if value == b"bug":
        raise ZeroDivisionError("oops")
    if value.startswith(b"bad"):
        raise UndecodableError("is bad", key=key, field="spec", value=value)
    return value.decode()


class BreakingStore(WrappedStore):
    """Its watches and lists can be broken from outside, and it tells how often it was asked."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.memory = self.inner
        self.down: Exception | None = None
        self.lists = 0
        self.watches: list[int] = []
        self._broken = asyncio.Event()

    def break_watch(self) -> None:
        self._broken.set()
        self._broken = asyncio.Event()

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        self.lists += 1
        if self.down:
            raise self.down
        return await super().list(prefix, revision=revision)

    async def watch(self, prefixes: Sequence[str], *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        self.watches.append(start_revision)
        broken = asyncio.ensure_future(self._broken.wait())
        inner = super().watch(prefixes, start_revision=start_revision)
        pending = None
        try:
            while True:
                if self.down:
                    raise self.down
                pending = asyncio.ensure_future(anext(inner))
                await asyncio.wait({pending, broken}, return_when=asyncio.FIRST_COMPLETED)
                if broken.done():
                    raise UnavailableError("the stream broke")
                yield pending.result()
        finally:
            broken.cancel()
            if pending is not None and not pending.done():
                pending.cancel()
                await asyncio.wait({pending})
            await inner.aclose()


class Follower:
    """A consumer that keeps the state it was told and a log of everything."""

    def __init__(self, store, prefixes=("/x/",), **options) -> None:
        self.slept: list[float] = []
        self.syncer = Syncer(
            store, prefixes, parse=parse, decode=decode, sleep=self._sleep, chance=lambda: 1.0, **options
        )
        self.state: dict[str, str] = {}
        self.log: list = []
        self.batches: list[list] = []
        self._events: AsyncIterator[list] = self.syncer.run()

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    async def step(self) -> None:
        batch = await anext(self._events)
        assert batch, "empty batches are noise"
        self.batches.append(batch)
        for event in batch:
            self.log.append(event)
            if isinstance(event, Update):
                if event.value is None:
                    self.state.pop(event.key, None)
                else:
                    self.state[event.key] = event.value

    async def until(self, done, timeout: float = 30) -> list:
        """Go on until ``done(log)``; what came meanwhile."""
        start = len(self.log)
        async with asyncio.timeout(timeout):
            while not done(self.log[start:]):
                await self.step()
        return self.log[start:]

    async def close(self) -> None:
        await self._events.aclose()


def in_sync(log: list) -> bool:
    return any(isinstance(event, InSync) for event in log)


def connected(log: list) -> bool:
    return Status("connected") in log


def updates(log: list) -> list[tuple]:
    return [(event.key, event.value) for event in log if isinstance(event, Update)]


@pytest.fixture
async def store() -> AsyncIterator[BreakingStore]:
    made = BreakingStore()
    yield made
    await made.close()


async def test_empty_store_is_in_sync_at_once(store):
    """With nothing to tell, connected and in-sync are told."""
    follower = Follower(store)
    assert await follower.until(in_sync) == [Status("connected"), InSync(1)]


async def test_listing_then_changes(store):
    """First the present, then in-sync, then each change in order with its revision."""
    await store.put("/x/a", b"1")
    second = await store.put("/x/b", b"2")
    await store.put("/y/c", b"3")
    follower = Follower(store)
    log = await follower.until(in_sync)
    assert updates(log) == [("/x/a", "1"), ("/x/b", "2")]
    assert log[-1] == InSync(second + 1)
    third = await store.put("/x/a", b"4")
    fourth = (await store.delete("/x/b")).mod_revision
    log = await follower.until(lambda log: len(log) == 2)
    assert log == [Update("/x/a", "4", third), Update("/x/b", None, third + 1)]
    assert fourth == second
    assert follower.state == {"/x/a": "4"}


async def test_all_prefixes_are_listed_at_one_revision(store):
    """A write between two listings is not in the second one; it comes by the watch, after in-sync."""
    await store.put("/x/a", b"1")
    await store.put("/y/a", b"1")
    original = store.memory.list

    async def list_then_write(prefix, *, revision=0):
        listing = await original(prefix, revision=revision)
        if prefix == "/x/":
            await store.txn([], [*map(_put, ("/x/a", "/y/a"))])
        return listing

    store.memory.list = list_then_write
    follower = Follower(store, ("/x/", "/y/"))
    assert updates(await follower.until(in_sync)) == [("/x/a", "1"), ("/y/a", "1")]
    log = await follower.until(lambda log: len(log) == 2)
    assert updates(log) == [("/x/a", "2"), ("/y/a", "2")]


def _put(key):
    from calipy.datastore.store import Put

    return Put(key, b"2")


async def test_big_listings_come_in_pieces(store):
    """A big listing is handed over in batches, in key order, and the event loop gets its turn between them."""
    keys = [f"/x/{i:05}" for i in range(3 * CHUNK + 1)]
    for key in keys:
        await store.put(key, b"v")
    follower = Follower(store)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    log = await follower.until(in_sync)
    task.cancel()
    assert [key for key, _ in updates(log)] == keys
    assert [len(batch) for batch in follower.batches] == [1, CHUNK, CHUNK, CHUNK, 1, 1]
    assert turns >= 4


async def test_unknown_keys_are_ignored(store):
    """Keys of other owners are neither told nor counted as problems, put or deleted."""
    await store.put("/x/other/a", b"bad")
    follower = Follower(store)
    assert updates(await follower.until(in_sync)) == []
    await store.put("/x/other/b", b"1")
    await store.delete("/x/other/a")
    await store.put("/x/a", b"1")
    assert updates(await follower.until(updates)) == [("/x/a", "1")]
    assert follower.syncer.problems == {}


async def test_bad_value_is_told_as_absent_with_its_reason(store):
    """A value that cannot be decoded comes as None with the error, and stays in the list of problems until mended."""
    await store.put("/x/a", b"bad one")
    await store.put("/x/b", b"2")
    follower = Follower(store)
    log = await follower.until(in_sync)
    first, second = (event for event in log if isinstance(event, Update))
    assert (first.value, second.value) == (None, "2")
    assert "spec" in str(first.error)
    assert follower.syncer.problems == {"/x/a": first.error}
    await store.put("/x/b", b"bad two")
    (event,) = await follower.until(updates)
    assert event.error is follower.syncer.problems["/x/b"]
    assert follower.state == {}
    await store.put("/x/a", b"good")
    await store.delete("/x/b")
    log = await follower.until(lambda log: len(log) == 2)
    assert [event.error for event in log] == [None, None]
    assert follower.syncer.problems == {}
    assert follower.state == {"/x/a": "good"}


async def test_a_decoder_that_trips_stops_nothing(store):
    """An unforeseen error in decoding is that key's problem alone."""
    await store.put("/x/a", b"bug")
    await store.put("/x/b", b"2")
    follower = Follower(store)
    await follower.until(in_sync)
    assert follower.state == {"/x/b": "2"}
    assert "ZeroDivisionError" in str(follower.syncer.problems["/x/a"])


async def test_unreachable_store_is_told_once_and_tried_for_ever(store):
    """An unreachable store gives one status with the reason, growing pauses, and in the end the data."""
    await store.put("/x/a", b"1")
    store.down = UnavailableError("nobody there")
    follower = Follower(store)
    await follower.until(lambda log: len(log) == 1)
    assert follower.log == [Status("disconnected", "nobody there")]
    waiting = asyncio.ensure_future(follower.until(in_sync))
    while store.lists < 10:
        await asyncio.sleep(0)
    store.down = None
    log = await waiting
    assert log[0] == Status("connected")
    assert follower.state == {"/x/a": "1"}
    pauses = follower.slept[:9]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (BACKOFF_BASE, BACKOFF_CAP)


async def test_a_new_reason_is_told(store):
    """When the reason changes, it is told."""
    store.down = UnavailableError("nobody there")
    follower = Follower(store)
    await follower.until(lambda log: len(log) == 1)
    store.down = AccessDeniedError("wrong password")
    log = await follower.until(lambda log: len(log) == 1)
    assert log == [Status("disconnected", "wrong password")]


async def test_broken_watch_resumes_without_listing(store):
    """After a broken stream the watch goes on where it was: nothing lost, nothing twice, no listing."""
    await store.put("/x/a", b"1")
    follower = Follower(store)
    await follower.until(in_sync)
    await store.put("/x/b", b"2")
    await follower.until(updates)
    store.break_watch()
    await follower.until(lambda log: any(isinstance(event, Status) for event in log))
    await store.put("/x/c", b"3")
    await store.delete("/x/a")
    log = await follower.until(lambda log: len(updates(log)) == 2)
    assert log[0] == Status("connected")
    assert updates(log) == [("/x/c", "3"), ("/x/a", None)]
    assert store.lists == 1


async def test_pause_starts_small_again_after_success(store):
    """A watch that stood resets the pause."""
    follower = Follower(store)
    await follower.until(in_sync)
    for _ in range(5):
        await store.put("/x/a", b"1")
        await follower.until(updates)
        store.break_watch()
        await follower.until(lambda log: any(isinstance(e, Status) and e.state == "disconnected" for e in log))
        await follower.until(connected)
    assert set(follower.slept) == {BACKOFF_BASE}


async def test_compaction_leads_to_differences_only(store):
    """When the gap was compacted: deletions are made up for, first; changed keys come; unchanged ones do not."""
    for key in "abcd":
        await store.put(f"/x/{key}", b"1")
    await store.put("/x/bad", b"bad")
    await store.put("/x/worse", b"bad")
    follower = Follower(store)
    await follower.until(in_sync)
    store.down = UnavailableError("away")
    store.break_watch()
    await follower.until(lambda log: log)
    await store.delete("/x/a")
    await store.put("/x/b", b"2")
    await store.delete("/x/c")
    await store.put("/x/c", b"1")
    await store.put("/x/e", b"5")
    await store.delete("/x/bad")
    revision = (await store.memory.list("/")).revision
    store.memory.compact(revision)
    store.down = None
    log = await follower.until(in_sync)
    # A server takes the watch on before it finds that the history is gone.
    assert [event.state for event in log if isinstance(event, Status)] == ["connected", "resync", "connected"]
    told = [event for event in log if isinstance(event, Update)]
    assert [(event.key, event.value) for event in told] == [
        ("/x/a", None),
        ("/x/bad", None),
        ("/x/b", "2"),
        ("/x/c", "1"),
        ("/x/e", "5"),
    ]
    assert [event.revision for event in told[:2]] == [revision, revision]
    assert log[-1] == InSync(revision)
    assert list(follower.syncer.problems) == ["/x/worse"]


async def test_restored_store_is_told_anew(store):
    """A store that went back to an older revision is believed: equal revisions may hold other values."""
    revision = await store.put("/x/a", b"1")
    for value in (b"1", b"2", b"3"):
        await store.put("/x/b", value)
    follower = Follower(store)
    await follower.until(in_sync)
    old = store.inner
    store.inner = store.memory = MemoryStore()
    assert await store.put("/x/a", b"other") == revision
    await old.close()
    original, store.watch = store.watch, _compacted
    store.break_watch()
    log = await follower.until(lambda log: any(isinstance(e, Status) and e.state == "resync" for e in log))
    store.watch = original
    log = await follower.until(in_sync)
    assert updates(log) == [("/x/b", None), ("/x/a", "other")]


async def _compacted(prefixes, *, start_revision):
    raise CompactedError("the store was restored")
    yield


async def test_events_told_again_are_dropped(store):
    """A watch that begins before what was told, as one over several prefixes may, brings nothing back to life."""
    revision = await store.put("/x/a", b"1")
    follower = Follower(store)
    await follower.until(in_sync)
    await store.put("/x/a", b"2")
    await store.put("/x/b", b"2")
    await store.delete("/x/b")
    last = await store.put("/x/c", b"2")
    original = store.memory.watch

    async def lagging(prefixes, *, start_revision):
        async for batch in original(prefixes, start_revision=start_revision):
            yield WatchBatch(batch.events, min(batch.revision, revision))

    store.memory.watch = lagging
    store.break_watch()
    await follower.until(lambda log: len(updates(log)) >= 4 or follower.state.get("/x/c"))
    before = len(updates(follower.log))
    for _ in range(3):
        store.break_watch()
        await follower.until(connected)
    await store.put("/x/d", b"4")
    log = await follower.until(updates)
    assert updates(follower.log)[before:] == [("/x/d", "4")]
    assert follower.state == {"/x/a": "2", "/x/c": "2", "/x/d": "4"}
    assert store.watches[-1] == revision + 1 < last
    assert log


async def test_any_history_ends_in_the_stores_state(store):
    """Random writes, breaks and compactions: the follower ends equal to the store, each key's updates in order."""
    rng = random.Random(7)
    follower = Follower(store, ("/x/", "/y/"))
    await follower.until(in_sync)
    expected: dict[str, str] = {}
    for round_ in range(60):
        for _ in range(rng.randrange(1, 12)):
            key = f"/{rng.choice('xy')}/{rng.randrange(12)}"
            if rng.random() < 0.4 and key in expected:
                await store.delete(key)
                del expected[key]
            else:
                value = rng.choice(["good", "better", "bad"])
                await store.put(key, value.encode())
                expected[key] = value
        action = rng.random()
        if action < 0.6:
            store.break_watch()
        if action < 0.25:
            revision = (await store.memory.list("/")).revision
            if revision > store.memory._compacted:
                store.memory.compact(revision)
        await store.put("/x/mark", b"%d" % round_)
        await follower.until(lambda log, mark=str(round_): follower.state.get("/x/mark") == mark)
        good = {key: value for key, value in expected.items() if value != "bad"}
        assert {key: value for key, value in follower.state.items() if key != "/x/mark"} == good
        assert set(follower.syncer.problems) == {key for key, value in expected.items() if value == "bad"}
    revisions: dict[str, int] = {}
    for event in follower.log:
        if isinstance(event, Update):
            assert event.revision > revisions.get(event.key, 0)
            revisions[event.key] = event.revision


async def test_leaving_closes_the_watch(store):
    """When the consumer leaves, nothing of the watch stays behind."""
    follower = Follower(store)
    await follower.until(in_sync)
    await store.put("/x/a", b"1")
    await follower.until(updates)
    await follower.close()
    await asyncio.sleep(0)  # the cancelled helper task of this test's store ends
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def test_backoff_is_bounded_and_spread():
    """Pauses double up to the cap, and chance moves them within their second half."""
    assert [backoff(n, 1.0) for n in range(4)] == [0.1, 0.2, 0.4, 0.8]
    assert backoff(10_000, 1.0) == BACKOFF_CAP
    assert backoff(3, 0.0) == backoff(3, 1.0) / 2


async def test_take_until_is_bounded():
    """The helper of these tests cannot hang."""

    async def never():
        await asyncio.sleep(3600)
        yield 1

    with pytest.raises(TimeoutError):
        await take_until(never(), bool, timeout=0.01)
