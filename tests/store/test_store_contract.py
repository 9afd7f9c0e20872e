"""What every store promises: the same cases for memory and for a real etcd."""

from __future__ import annotations

import asyncio

import pytest

from calipy.datastore.etcd import EtcdStore
from calipy.datastore.memory import MemoryStore
from calipy.datastore.store import Compare, Delete, Get, KeyValue, Put, Store
from calipy.errors import (
    AlreadyExistsError,
    CompactedError,
    ConflictError,
    DatastoreError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from tests.support.etcd import EtcdServer, etcdctl
from tests.support.watching import take_events


async def revision_of(store: Store) -> int:
    """The store's present revision."""
    return (await store.list("/nothing/")).revision


def compact(store: Store, request: pytest.FixtureRequest, revision: int) -> None:
    """Compact either store."""
    if isinstance(store, MemoryStore):
        store.compact(revision)
    else:
        server: EtcdServer = request.getfixturevalue("etcd")
        etcdctl(server, "compact", str(revision))


async def test_created_key_is_read_back(store: Store):
    """A created key holds its value, at the revision that create returned, as version 1."""
    revision = await store.create("/a", b"one")
    assert await store.get("/a") == KeyValue("/a", b"one", revision, revision, 1, 0)


async def test_absent_key_is_none(store: Store):
    """Reading an absent key gives None and no error."""
    assert await store.get("/absent") is None


async def test_empty_key_is_refused(store: Store):
    """There is no key without a name."""
    with pytest.raises(DatastoreError):
        await store.get("")


async def test_create_of_existing_key_shows_what_is_there(store: Store):
    """A second create fails with the present value and revision, and changes nothing."""
    revision = await store.create("/a", b"one")
    with pytest.raises(AlreadyExistsError) as caught:
        await store.create("/a", b"two")
    assert (caught.value.key, caught.value.current, caught.value.current_revision) == ("/a", b"one", revision)
    assert (await store.get("/a")).value == b"one"


async def test_update_at_right_revision(store: Store):
    """An update at the revision read writes, keeps the creation revision and counts the version."""
    first = await store.create("/a", b"one")
    second = await store.update("/a", b"two", revision=first)
    assert second > first
    assert await store.get("/a") == KeyValue("/a", b"two", second, first, 2, 0)


async def test_update_at_wrong_revision_shows_what_is_there(store: Store):
    """An update that lost the race fails with the present value, and changes nothing."""
    first = await store.create("/a", b"one")
    second = await store.update("/a", b"two", revision=first)
    with pytest.raises(ConflictError) as caught:
        await store.update("/a", b"three", revision=first)
    assert not isinstance(caught.value, AlreadyExistsError)
    assert (caught.value.key, caught.value.current, caught.value.current_revision) == ("/a", b"two", second)
    assert (await store.get("/a")).value == b"two"


async def test_update_of_absent_key(store: Store):
    """An update of a key that was deleted meanwhile says so."""
    first = await store.create("/a", b"one")
    await store.delete("/a")
    with pytest.raises(NotFoundError) as caught:
        await store.update("/a", b"two", revision=first)
    assert caught.value.key == "/a"
    assert await store.get("/a") is None


@pytest.mark.parametrize("revision", [0, -1])
async def test_update_needs_a_revision(store: Store, revision: int):
    """Revision 0 must not silently turn an update into a create."""
    with pytest.raises(InvalidInputError):
        await store.update("/a", b"x", revision=revision)
    assert await store.get("/a") is None


async def test_put_writes_whatever_is_there(store: Store):
    """A put creates and overwrites."""
    first = await store.put("/a", b"one")
    second = await store.put("/a", b"two")
    assert await store.get("/a") == KeyValue("/a", b"two", second, first, 2, 0)


async def test_delete_returns_what_was_there(store: Store):
    """A delete hands back the old value, and the key is gone."""
    revision = await store.create("/a", b"one")
    assert await store.delete("/a") == KeyValue("/a", b"one", revision, revision, 1, 0)
    assert await store.get("/a") is None


async def test_delete_at_right_revision(store: Store):
    """A guarded delete at the present revision works and hands back the old value."""
    revision = await store.create("/a", b"one")
    assert (await store.delete("/a", revision=revision)).value == b"one"
    assert await store.get("/a") is None


async def test_delete_at_wrong_revision(store: Store):
    """A guarded delete that lost the race leaves the key and shows it."""
    first = await store.create("/a", b"one")
    second = await store.put("/a", b"two")
    with pytest.raises(ConflictError) as caught:
        await store.delete("/a", revision=first)
    assert (caught.value.current, caught.value.current_revision) == (b"two", second)
    assert (await store.get("/a")).value == b"two"


@pytest.mark.parametrize("revision", [0, 5])
async def test_delete_of_absent_key(store: Store, revision: int):
    """Deleting what is not there is an error with the key, guarded or not, and no change."""
    before = await revision_of(store)
    with pytest.raises(NotFoundError) as caught:
        await store.delete("/absent", revision=revision)
    assert caught.value.key == "/absent"
    assert await revision_of(store) == before


async def test_recreated_key_starts_over(store: Store):
    """A key created again after a delete is at version 1 with a new creation revision."""
    await store.put("/a", b"one")
    await store.put("/a", b"two")
    await store.delete("/a")
    revision = await store.create("/a", b"three")
    assert await store.get("/a") == KeyValue("/a", b"three", revision, revision, 1, 0)


@pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), "ä€𝄞".encode(), b"x" * 1_000_000])
async def test_values_are_bytes(store: Store, value: bytes):
    """Any bytes, up to about a megabyte, come back as they were."""
    await store.put("/a", value)
    assert (await store.get("/a")).value == value
    assert (await store.list("/a")).items[0].value == value


@pytest.mark.parametrize("key", ["/calico/ipam/v2/handle/ä€", "/a b%2f/\x7f", "no-slash"])
async def test_keys_are_text(store: Store, key: str):
    """Keys beyond ASCII work like others."""
    await store.create(key, b"x")
    assert (await store.list(key)).items[0].key == key


async def test_past_revision_is_read(store: Store):
    """Reading at a past revision shows the past, also the absence of a key."""
    first = await store.create("/p/a", b"one")
    second = await store.update("/p/a", b"two", revision=first)
    third = await store.create("/p/b", b"three")
    await store.delete("/p/a")
    assert (await store.get("/p/a", revision=first)).value == b"one"
    assert (await store.get("/p/a", revision=second)).value == b"two"
    assert await store.get("/p/b", revision=second) is None
    listing = await store.list("/p/", revision=third)
    assert [(kv.key, kv.value) for kv in listing.items] == [("/p/a", b"two"), ("/p/b", b"three")]
    assert listing.revision == third


async def test_future_revision_is_an_error(store: Store):
    """A revision that is not there yet is refused rather than answered with something else."""
    future = await revision_of(store) + 1000
    with pytest.raises(DatastoreError):
        await store.get("/a", revision=future)
    with pytest.raises(DatastoreError):
        await store.list("/a", revision=future)


async def test_compacted_revision_is_an_error(store: Store, request: pytest.FixtureRequest):
    """What is compacted away is reported as such by get, list and watch; the present stays readable."""
    first = await store.create("/a", b"one")
    await store.put("/a", b"two")
    last = await store.put("/a", b"three")
    compact(store, request, last)
    with pytest.raises(CompactedError):
        await store.get("/a", revision=first)
    with pytest.raises(CompactedError):
        await store.list("/", revision=first)
    with pytest.raises(CompactedError) as caught:
        await take_events(store.watch(["/a"], start_revision=first), 1)
    assert caught.value.compact_revision == last
    assert (await store.get("/a")).value == b"three"
    assert (await store.get("/a", revision=last)).value == b"three"


async def test_compaction_removes_deleted_keys(store: Store, request: pytest.FixtureRequest):
    """Keys deleted before the compaction stay deleted, those alive stay alive."""
    await store.put("/p/gone", b"1")
    await store.put("/p/kept", b"2")
    await store.delete("/p/gone")
    compact(store, request, await revision_of(store))
    assert [kv.key for kv in (await store.list("/p/")).items] == ["/p/kept"]


async def test_listing_is_by_prefix_in_key_order(store: Store):
    """A listing holds exactly the keys with the prefix, ordered by their bytes."""
    for key in ("/p/b", "/p/a", "/p", "/p/a-1", "/q/a", "/p/Z", "/p0", "/p/ä"):
        await store.put(key, key.encode())
    listing = await store.list("/p/")
    assert [kv.key for kv in listing.items] == ["/p/Z", "/p/a", "/p/a-1", "/p/b", "/p/ä"]
    assert all(kv.value == kv.key.encode() for kv in listing.items)
    assert listing.revision == await revision_of(store)


async def test_listing_of_everything(store: Store):
    """The empty prefix lists the whole store."""
    for key in ("a", "/b", "zzz"):
        await store.put(key, b"")
    assert [kv.key for kv in (await store.list("")).items] == ["/b", "a", "zzz"]


async def test_big_listing_is_of_one_revision(store: Store):
    """Pages read while another writes show the store at the listing's revision: no key lost, twice, or newer."""
    keys = [f"/big/{i:04}" for i in range(1000)]
    for start in range(0, 1000, 100):
        await store.txn([], [Put(key, b"0") for key in keys[start : start + 100]])

    stop = asyncio.Event()

    async def writer() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            await store.txn([], [Put(keys[n * 7 % 1000], b"%d" % n), Put(f"/big/new{n:06}", b"")])
            await store.delete(f"/big/new{n:06}")

    writing = asyncio.create_task(writer())
    try:
        for _ in range(5):
            listing = await store.list("/big/")
            names = [kv.key for kv in listing.items]
            assert names == sorted(set(names))
            assert [name for name in names if "new" not in name] == keys
            assert max(kv.mod_revision for kv in listing.items) <= listing.revision
            assert (await store.list("/big/", revision=listing.revision)).items == listing.items
    finally:
        stop.set()
        await writing


async def test_concurrent_swaps_lose_no_update(store: Store):
    """Writers that add one under compare-and-swap, each retrying, reach exactly the sum."""
    await store.create("/counter", b"0")

    async def add(times: int) -> int:
        lost = 0
        for _ in range(times):
            while True:
                kv = await store.get("/counter")
                await asyncio.sleep(0)
                try:
                    await store.update("/counter", b"%d" % (int(kv.value) + 1), revision=kv.mod_revision)
                    break
                except ConflictError:
                    lost += 1
        return lost

    lost = await asyncio.gather(*(add(20) for _ in range(8)))
    assert (await store.get("/counter")).value == b"160"
    assert sum(lost) > 0


async def test_only_one_of_many_creates_wins(store: Store):
    """Of creators of one key exactly one succeeds, and the others see its value."""

    async def create(name: bytes) -> bytes:
        try:
            await store.create("/lock", name)
        except AlreadyExistsError as error:
            return error.current
        return b"won by " + name

    outcome = await asyncio.gather(*(create(b"%d" % n) for n in range(10)))
    winner = (await store.get("/lock")).value
    assert sorted(outcome) == sorted([winner] * 9 + [b"won by " + winner])


async def test_txn_does_then_if_all_guards_hold(store: Store):
    """All guards hold: every operation of ``then`` is done at one revision and the reads come in order."""
    revision = await store.create("/a", b"one")
    result = await store.txn(
        [Compare("/a", revision), Compare("/b", 0)],
        [Get("/a"), Put("/a", b"two"), Put("/b", b"new"), Get("/a"), Get("/none"), Delete("/absent")],
        [Put("/c", b"no")],
    )
    assert result.succeeded
    assert [kv and kv.value for kv in result.reads] == [b"one", b"two", None]
    assert (await store.get("/a")).mod_revision == (await store.get("/b")).mod_revision == result.revision
    assert await store.get("/c") is None


async def test_txn_does_otherwise_if_a_guard_fails(store: Store):
    """One guard fails: only ``otherwise`` is done."""
    revision = await store.create("/a", b"one")
    result = await store.txn(
        [Compare("/a", revision), Compare("/b", revision)], [Put("/a", b"no")], [Get("/a"), Put("/c", b"x")]
    )
    assert not result.succeeded
    assert [kv.value for kv in result.reads] == [b"one"]
    assert (await store.get("/a")).value == b"one"
    assert (await store.get("/c")).mod_revision == result.revision


async def test_txn_without_writes_changes_no_revision(store: Store):
    """Reads and deletes of absent keys leave the revision alone."""
    before = await revision_of(store)
    result = await store.txn([], [Get("/a"), Delete("/a")])
    assert (result.succeeded, result.revision, result.reads) == (True, before, (None,))
    assert await revision_of(store) == before


async def test_txn_limits(store: Store):
    """128 operations pass; 129, or two writes of one key, are refused and nothing is written."""
    result = await store.txn([], [Put(f"/t/{i}", b"") for i in range(128)])
    assert len((await store.list("/t/")).items) == 128
    for bad in (
        [Put(f"/u/{i}", b"") for i in range(129)],
        [Put("/u/a", b"1"), Put("/u/a", b"2")],
        [Put("/u/a", b"1"), Delete("/u/a")],
    ):
        with pytest.raises(DatastoreError):
            await store.txn([], bad)
    with pytest.raises(DatastoreError):
        await store.txn([Compare(f"/u/{i}", 0) for i in range(129)], [Put("/u/a", b"1")])
    assert await revision_of(store) == result.revision


@pytest.mark.usefixtures("way")
async def test_watch_starts_in_the_past(store: Store):
    """A watch gives first what happened since its start revision, inclusive, then what happens."""
    await store.put("/w/a", b"before")
    start = await store.put("/w/a", b"one")
    deleted = await store.delete("/w/a")
    watch = store.watch(["/w/"], start_revision=start)
    await asyncio.sleep(0)
    events = await take_events(watch, 2)
    later = await store.put("/w/b", b"two")
    events += await take_events(watch, 1)
    assert [(e.type, e.key, e.revision) for e in events] == [
        ("put", "/w/a", start),
        ("delete", "/w/a", start + 1),
        ("put", "/w/b", later),
    ]
    assert events[0].kv == deleted
    assert events[0].prev.value == b"before"
    assert (events[1].kv, events[1].prev) == (None, deleted)
    assert (events[2].kv.value, events[2].prev) == (b"two", None)
    await watch.aclose()


async def test_watch_first_says_that_it_stands(store: Store):
    """The first batch is empty, comes at once, and tells the place to resume from."""
    revision = await store.put("/w/a", b"one")
    watch = store.watch(["/w/"], start_revision=revision + 1)
    async with asyncio.timeout(2):
        batch = await anext(watch)
    assert (batch.events, batch.revision) == ((), revision)
    await watch.aclose()


@pytest.mark.usefixtures("way")
async def test_watch_sees_only_its_prefixes_in_order(store: Store):
    """Events of several prefixes, also overlapping ones, come once, merged by revision; others not at all."""
    start = await revision_of(store) + 1
    watch = store.watch(["/w/b/", "/w/a/", "/w/a/x/", "/w/a/"], start_revision=start)
    written = []
    for i in range(60):
        key = f"/w/{'abc'[i % 3]}/x/{i}"
        revision = await store.put(key, b"")
        if i % 3 < 2:
            written.append((key, revision))
    events = await take_events(watch, len(written))
    assert [(e.key, e.revision) for e in events] == written
    await watch.aclose()


@pytest.mark.usefixtures("way")
async def test_events_of_one_transaction_come_in_one_batch(store: Store):
    """All events of one revision are in one batch, also when they lie under several prefixes."""
    start = await revision_of(store) + 1
    watch = store.watch(["/w/a/", "/w/b/"], start_revision=start)
    assert (await anext(watch)).events == ()
    for n in range(20):
        await store.txn([], [Put(f"/w/{'ab'[i % 2]}/{i}", b"%d" % n) for i in range(100)])
    seen = 0
    async with asyncio.timeout(15):
        while seen < 2000:
            batch = await anext(watch)
            by_revision: dict[int, int] = {}
            for event in batch.events:
                by_revision[event.revision] = by_revision.get(event.revision, 0) + 1
            assert set(by_revision.values()) <= {100}
            seen += len(batch.events)
    await watch.aclose()


@pytest.mark.usefixtures("way")
async def test_watch_resumes_without_loss(store: Store):
    """Left at any batch and resumed behind its revision, a watch shows every change at least once, in order per key."""
    start = await revision_of(store) + 1
    written: dict[str, list[int]] = {"/w/a/": [], "/w/b/": []}
    for i in range(300):
        prefix = ("/w/a/", "/w/b/")[i % 7 == 0]
        written[prefix].append(await store.put(f"{prefix}{i % 10}", b"%d" % i))
    seen: dict[str, list[int]] = {"/w/a/": [], "/w/b/": []}
    last = max(map(max, written.values()))
    async with asyncio.timeout(20):
        while max(map(max, seen.values())) < last if all(seen.values()) else True:
            watch = store.watch(list(written), start_revision=start)
            taken = 0
            async for batch in watch:
                for event in batch.events:
                    revisions = seen[event.key[:5]]
                    if not revisions or event.revision > revisions[-1]:
                        revisions.append(event.revision)
                start = batch.revision + 1
                taken += len(batch.events)
                if taken > 40 or (taken and start > last):
                    break
            await watch.aclose()
    assert seen == written


async def test_watch_meets_compaction_on_resume(store: Store, request: pytest.FixtureRequest):
    """Resuming from a compacted revision fails with the oldest revision left; behind it, it works."""
    first = await store.put("/w/a", b"1")
    for _ in range(3):
        last = await store.put("/w/a", b"2")
    compact(store, request, last)
    with pytest.raises(CompactedError):
        await take_events(store.watch(["/w/"], start_revision=first + 1), 1)
    watch = store.watch(["/w/"], start_revision=last + 1)
    await store.put("/w/a", b"3")
    assert [e.kv.value for e in await take_events(watch, 1)] == [b"3"]
    await watch.aclose()


async def test_open_watch_survives_compaction(store: Store, request: pytest.FixtureRequest):
    """A watch that has caught up is not disturbed when the past behind it is compacted."""
    revision = await store.put("/w/a", b"1")
    watch = store.watch(["/w/"], start_revision=revision)
    await take_events(watch, 1)
    revision = await store.put("/w/a", b"2")
    await take_events(watch, 1)
    compact(store, request, revision)
    await store.put("/w/a", b"3")
    assert [e.kv.value for e in await take_events(watch, 1)] == [b"3"]
    await watch.aclose()


async def test_watch_needs_a_prefix(store: Store):
    """A watch of nothing is a mistake, not an endless wait."""
    with pytest.raises(InvalidInputError):
        await anext(store.watch([], start_revision=1))


async def test_lease_removes_its_keys(store: Store):
    """A key with a lease shows it, and vanishes with a delete event some time after the lease's time."""
    lease = await store.grant_lease(1)
    assert lease != 0
    revision = await store.put("/l/a", b"x", lease=lease)
    await store.put("/l/b", b"x")
    assert (await store.get("/l/a")).lease == lease
    watch = store.watch(["/l/"], start_revision=revision + 2)

    async def poll() -> None:
        while await store.get("/l/a") is not None:
            await asyncio.sleep(0.05)

    async with asyncio.timeout(15):
        await poll()
    events = await take_events(watch, 1)
    assert [(e.type, e.key) for e in events] == [("delete", "/l/a")]
    assert [kv.key for kv in (await store.list("/l/")).items] == ["/l/b"]
    await watch.aclose()


async def test_rewrite_without_lease_keeps_the_key(store: Store):
    """A key written again without its lease no longer ends with it."""
    lease = await store.grant_lease(1)
    await store.put("/l/a", b"x", lease=lease)
    await store.put("/l/b", b"x", lease=lease)
    await store.put("/l/a", b"y")
    async with asyncio.timeout(15):
        while await store.get("/l/b") is not None:
            await asyncio.sleep(0.05)
    assert (await store.get("/l/a")) is not None


async def test_unknown_lease_is_refused(store: Store):
    """Writing under a lease that does not exist fails and writes nothing."""
    with pytest.raises(DatastoreError):
        await store.put("/l/a", b"x", lease=123456789)
    assert await store.get("/l/a") is None


async def test_closed_store_refuses(store: Store):
    """After close, which may be called twice, every call fails at once and open watches end with an error."""
    revision = await store.put("/a", b"x")
    watch = store.watch(["/a"], start_revision=revision + 1)
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.05)
    await store.close()
    await store.close()
    with pytest.raises(UnavailableError):
        async with asyncio.timeout(5):
            await waiting
    with pytest.raises(UnavailableError):
        await store.get("/a")
    with pytest.raises(UnavailableError):
        await store.put("/a", b"y")


async def test_left_watch_frees_the_store(store: Store):
    """Leaving watches early leaves nothing behind that disturbs later calls."""
    revision = await store.put("/a", b"x")
    for _ in range(30):
        async for batch in store.watch(["/a"], start_revision=revision):
            if batch.events:
                break
    assert (await store.get("/a")).value == b"x"


async def test_cancelled_call_is_cancelled(store: Store):
    """Cancelling a task that waits in a watch ends it as cancelled, not as a datastore error."""

    async def follow() -> None:
        async for _ in store.watch(["/a"], start_revision=await revision_of(store) + 1):
            pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.put("/a", b"x")


def test_representation_holds_no_secret():
    """A store's representation shows endpoints and no password."""
    store = EtcdStore(["http://127.0.0.1:2379"], username="root", password="hush")
    assert "127.0.0.1" in repr(store)
    assert "hush" not in repr(store)
    assert "hush" not in repr(vars(store)["_transport"])
