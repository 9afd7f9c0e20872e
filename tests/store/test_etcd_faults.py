"""A real etcd that dies, stalls, loses its data, or is only half there."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from calipy.datastore.etcd import EtcdStore
from calipy.datastore.store import Put
from calipy.datastore.syncer import InSync, Status, Syncer, Update
from calipy.errors import CompactedError, UnavailableError
from tests.support.etcd import EtcdServer, etcd_cluster, etcdctl
from tests.support.watching import take_events

pytestmark = pytest.mark.etcd


@pytest.fixture
async def store(own_etcd: EtcdServer) -> AsyncIterator[EtcdStore]:
    made = EtcdStore([own_etcd.url])
    yield made
    await made.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that lets connections neither succeed nor fail: its queue of connections is full."""
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


async def put_when_back(store: EtcdStore, key: str, value: bytes) -> None:
    """Write; a connection that died of the pause may still be the one in use, and of a write only the caller knows
    that it may be sent again."""
    async with asyncio.timeout(30):
        while True:
            try:
                await store.put(key, value)
            except UnavailableError:
                continue
            return


@pytest.mark.usefixtures("way")
async def test_watch_ends_when_etcd_is_killed_and_resumes(own_etcd: EtcdServer, store: EtcdStore):
    """kill -9 ends a watch at once with an error; resumed after a restart, it has lost nothing."""
    revision = await store.put("/a", b"1")
    watch = store.watch(["/"], start_revision=revision)
    assert [e.kv.value for e in await take_events(watch, 1)] == [b"1"]
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.1)
    own_etcd.kill()
    with pytest.raises(UnavailableError, match=own_etcd.url):
        async with asyncio.timeout(8):  # silence would end it after 10 s
            await waiting
    own_etcd.start()
    etcdctl(own_etcd, "put", "/a", "2")
    watch = store.watch(["/"], start_revision=revision + 1)
    assert [e.kv.value for e in await take_events(watch, 1)] == [b"2"]
    await watch.aclose()


async def test_calls_wait_for_a_quick_restart(own_etcd: EtcdServer, store: EtcdStore):
    """Calls made while etcd is down succeed if it comes back within the time to connect; else they say why not."""
    await store.put("/a", b"1")
    own_etcd.kill()
    started = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        await store.put("/a", b"2")
    assert 1.5 < time.monotonic() - started < 15
    assert own_etcd.url in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert caught.value.remedy
    calls = asyncio.gather(store.get("/a"), store.put("/b", b"2"), store.list("/"))
    await asyncio.sleep(0.05)
    own_etcd.start()  # blocks this loop until etcd serves: the calls' own time to connect goes on meanwhile
    kv, _, _ = await calls
    assert kv.value == b"1"


@pytest.mark.usefixtures("way")
async def test_stopped_etcd_is_noticed(own_etcd: EtcdServer, store: EtcdStore):
    """An etcd that is stopped, its connections open, ends a watch after twice the time of silence; then all goes on."""
    revision = await store.put("/a", b"1")
    watch = store.watch(["/"], start_revision=revision + 1)
    await anext(watch)
    own_etcd.pause()
    try:
        with pytest.raises(UnavailableError, match=own_etcd.url):
            async with asyncio.timeout(30):
                while True:
                    await anext(watch)
    finally:
        own_etcd.resume()
    await put_when_back(store, "/a", b"2")
    watch = store.watch(["/"], start_revision=revision + 1)
    assert {e.kv.value for e in await take_events(watch, 1)} == {b"2"}  # twice, if what seemed lost arrived after all
    await watch.aclose()


@pytest.mark.usefixtures("way")
async def test_silence_is_bounded_by_progress_requests(own_etcd: EtcdServer):
    """A stopped etcd ends a watch after twice the time of silence, long before the connection's own keepalive."""
    store = EtcdStore([own_etcd.url], silence=0.5)
    for prefixes in (["/"], ["/a/", "/b/"]):
        watch = store.watch(prefixes, start_revision=1)
        await anext(watch)
        own_etcd.pause()
        started = time.monotonic()
        try:
            with pytest.raises(UnavailableError, match="stalled: silent for 1 s"):
                async with asyncio.timeout(30):
                    while True:
                        await anext(watch)
            assert time.monotonic() - started > 0.9
        finally:
            own_etcd.resume()
    await store.close()


async def test_slow_consumer_is_no_stall(own_etcd: EtcdServer):
    """Time in which nobody reads the watch does not count as silence."""
    store = EtcdStore([own_etcd.url], silence=0.2)
    revision = await store.put("/a", b"1")
    watch = store.watch(["/"], start_revision=revision)
    await take_events(watch, 1)
    await asyncio.sleep(1.5)
    await store.put("/a", b"2")
    assert [e.kv.value for e in await take_events(watch, 1)] == [b"2"]
    await watch.aclose()
    await store.close()


@pytest.mark.usefixtures("way")
async def test_quiet_watch_lives_on(own_etcd: EtcdServer):
    """A watch without events is kept by progress answers, which move the place to resume from."""
    store = EtcdStore([own_etcd.url], silence=0.2)
    revision = await store.put("/elsewhere", b"1")
    for prefixes in (["/quiet/"], ["/quiet/", "/silent/"]):
        watch = store.watch(prefixes, start_revision=revision + 1)
        await anext(watch)
        for _ in range(3):
            last = await store.put("/elsewhere", b"1")
        async with asyncio.timeout(10):
            while True:
                batch = await anext(watch)
                assert batch.events == ()
                if batch.revision >= last:
                    break
        await watch.aclose()
        etcdctl(own_etcd, "compact", str(last))
        watch = store.watch(prefixes, start_revision=batch.revision + 1)
        revision = await store.put("/quiet/a", b"x")
        assert [e.revision for e in await take_events(watch, 1)] == [revision]
        await watch.aclose()
    await store.close()


async def test_deadline_of_calls(own_etcd: EtcdServer):
    """A call to a stopped etcd ends at its deadline; of a write it says that the outcome is unknown."""
    store = EtcdStore([own_etcd.url], call_timeout=0.5)
    await store.put("/a", b"1")
    own_etcd.pause()
    try:
        started = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await store.get("/a")
        assert time.monotonic() - started < 4.5, "its own deadline, not the usual one"
        assert "unknown" not in str(caught.value)
        with pytest.raises(UnavailableError, match="unknown"):
            await store.put("/a", b"2")
    finally:
        own_etcd.resume()
    await store.get("/a")
    await store.close()


async def test_closing_ends_calls_under_way(own_etcd: EtcdServer, store: EtcdStore):
    """Close turns waiting calls into errors of the store, not into cancellation of their tasks."""
    await store.put("/a", b"1")
    own_etcd.pause()
    try:
        calls = [asyncio.ensure_future(store.get("/a")), asyncio.ensure_future(store.put("/a", b"2"))]
        await asyncio.sleep(0.1)
        await store.close()
        for call in calls:
            with pytest.raises(UnavailableError):
                await call
    finally:
        own_etcd.resume()


async def test_dead_endpoint_is_passed_over(own_etcd: EtcdServer, unused_port: int, silent_port: int):
    """With one endpoint refusing, or swallowing connections, the other one serves at once."""
    for port in (unused_port, silent_port):
        store = EtcdStore([f"http://127.0.0.1:{port}", own_etcd.url], connect_timeout=30)
        started = time.monotonic()
        revision = await store.put("/a", b"1")
        assert (await store.get("/a")).value == b"1"
        assert (await take_events(store.watch(["/"], start_revision=revision), 1))[0].key == "/a"
        assert time.monotonic() - started < 15
        await store.close()


async def test_no_endpoint_answers(unused_port: int, silent_port: int):
    """With no endpoint left the error names each with its own reason."""
    store = EtcdStore([f"http://127.0.0.1:{unused_port}", f"http://127.0.0.1:{silent_port}"], connect_timeout=0.5)
    with pytest.raises(UnavailableError) as caught:
        await store.get("/a")
    text = str(caught.value)
    assert f"127.0.0.1:{unused_port} does not answer: " in text
    assert "Connection refused" in text
    assert f"127.0.0.1:{silent_port} does not answer: no connection within 0.5 s" in text
    await store.close()


async def test_failover_from_a_stopped_endpoint(own_etcd: EtcdServer):
    """When the endpoint in use stops, reads move to the other one at their deadline, later calls at once, and so does
    the next watch; there is no time of punishment for the endpoint that failed.
    """
    with EtcdServer() as second:
        store = EtcdStore([own_etcd.url, second.url], call_timeout=2, silence=0.3)
        etcdctl(second, "put", "/who", "second")
        etcdctl(own_etcd, "put", "/who", "first")
        async with asyncio.timeout(15):
            while (await store.get("/who")).value != b"first":  # the second may have been the first to connect
                await asyncio.sleep(0.01)
        watch = store.watch(["/"], start_revision=1)
        await take_events(watch, 1)
        own_etcd.pause()
        try:
            with pytest.raises(UnavailableError):
                await take_events(watch, 1)
            started = time.monotonic()
            for _ in range(3):
                assert (await store.get("/who")).value == b"second"
            assert time.monotonic() - started < 6, "one deadline, not three"
        finally:
            own_etcd.resume()
        second.kill()
        assert (await store.get("/who")).value == b"first"
        await store.close()


async def test_lost_data_is_noticed(own_etcd: EtcdServer, store: EtcdStore):
    """A store that went back to an older revision does not leave a resumed watch waiting for ever."""
    for _ in range(5):
        revision = await store.put("/a", b"1")
    own_etcd.wipe()
    own_etcd.start()
    with pytest.raises(CompactedError, match="restored or replaced"):
        await take_events(store.watch(["/"], start_revision=revision + 1), 1)


@pytest.mark.usefixtures("way")
async def test_huge_transactions_come_whole(own_etcd: EtcdServer, store: EtcdStore):
    """Events that etcd splits over several messages still come in one batch."""
    revision = await store.txn([], [Put(f"/f/{i:03}", b"x" * 12_000) for i in range(100)])
    await store.txn([], [Put(f"/f/{i:03}", b"y" * 12_000) for i in range(100)])
    for prefixes in (["/f/"], ["/f/", "/g/"]):
        watch = store.watch(prefixes, start_revision=revision.revision + 1)
        async with asyncio.timeout(10):
            batch = await anext(watch)
            while not batch.events:
                batch = await anext(watch)
        assert len(batch.events) == 100
        assert {e.revision for e in batch.events} == {revision.revision + 1}
        assert all(e.prev.value[:1] == b"x" and e.kv.value[:1] == b"y" for e in batch.events)
        await watch.aclose()


async def test_answers_of_many_megabytes(own_etcd: EtcdServer, store: EtcdStore):
    """A page larger than gRPC's usual 4 MiB is read."""
    for i in range(12):
        await store.put(f"/m/{i:02}", b"x" * 1_000_000)
    listing = await store.list("/m/")
    assert sum(len(kv.value) for kv in listing.items) == 12_000_000


async def test_listing_starts_over_after_compaction(own_etcd: EtcdServer):
    """A compaction between two pages costs a second attempt, not an error; at a given revision it is one."""
    store = EtcdStore([own_etcd.url], page=10)
    await store.txn([], [Put(f"/p/{i:02}", b"1") for i in range(35)])
    first = (await store.list("/p/")).revision
    original = store._transport.call
    pages = 0

    async def compacting(method, request, *, repeatable):
        nonlocal pages
        pages += 1
        response = await original(method, request, repeatable=repeatable)
        if pages == 2:
            last = await EtcdStore([own_etcd.url]).put("/p/00", b"2")
            etcdctl(own_etcd, "compact", str(last))
        return response

    store._transport.call = compacting
    listing = await store.list("/p/")
    assert pages == 7
    assert listing.revision > first
    assert [kv.value for kv in listing.items[:2]] == [b"2", b"1"]
    with pytest.raises(CompactedError):
        await store.list("/p/", revision=first)
    await store.close()


async def test_real_client_reads_what_we_write(own_etcd: EtcdServer, store: EtcdStore):
    """etcdctl sees the keys, values and revisions that we wrote, and we see its own."""
    revision = await store.create("/calico/x", b"value")
    shown = etcdctl(own_etcd, "get", "/calico/x", "-w", "fields")
    assert '"Key" : "/calico/x"' in shown
    assert '"Value" : "value"' in shown
    assert f'"ModRevision" : {revision}' in shown
    etcdctl(own_etcd, "put", "/calico/x", "theirs")
    assert (await store.get("/calico/x")).value == b"theirs"


@pytest.mark.usefixtures("way")
async def test_syncer_through_crashes(own_etcd: EtcdServer):
    """A syncer whose etcd is killed four times, once with its history compacted, ends equal to etcd, with every key's
    updates in order.
    """
    store, writer = EtcdStore([own_etcd.url]), EtcdStore([own_etcd.url])
    syncer = Syncer(store, ["/s/a/", "/s/b/"], parse=lambda path: path, decode=lambda key, value, revision: value)
    state: dict[str, bytes] = {}
    seen: dict[str, int] = {}
    log = []

    async def follow() -> None:
        async for batch in syncer.run():
            for event in batch:
                log.append(event)
                if isinstance(event, Update):
                    assert event.revision > seen.get(event.key, 0)
                    seen[event.key] = event.revision
                    if event.value is None:
                        state.pop(event.key, None)
                    else:
                        state[event.key] = event.value

    following = asyncio.create_task(follow())

    async def until(condition, timeout: float = 30) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                assert not following.done(), following.exception()
                await asyncio.sleep(0.01)

    await until(lambda: any(isinstance(event, InSync) for event in log))
    n = 0
    for crash in range(4):
        for _ in range(100):
            n += 1
            key = f"/s/{'ab'[n % 2]}/{n % 17}"
            if n % 5 == 0 and await writer.get(key):
                await writer.delete(key)
            else:
                await writer.put(key, b"%d" % n)
        own_etcd.kill()
        await until(lambda: syncer.state == "disconnected")
        own_etcd.start()
        last = await writer.put(f"/s/a/crash{crash}", b"x")
        if crash == 2:
            etcdctl(own_etcd, "compact", str(last))
        await until(lambda crash=crash: f"/s/a/crash{crash}" in state)
    await writer.delete("/s/a/crash1")
    await until(lambda: "/s/a/crash1" not in state)
    assert state == {kv.key: kv.value for kv in (await writer.list("/s/")).items}
    states = [event.state for event in log if isinstance(event, Status)]
    assert states.count("disconnected") >= 4
    assert states[-1] == "connected"
    following.cancel()
    await asyncio.wait({following})
    await store.close()
    await writer.close()


async def test_cluster_loses_members():
    """Of three members any one may die: calls and a syncer go on with the others. Without a majority everything is
    refused in time, watches included, and when the members are back all is as before.
    """
    with etcd_cluster(3) as members:
        store = EtcdStore([member.url for member in members], call_timeout=2, silence=1)
        syncer = Syncer(store, ["/s/"], parse=lambda path: path, decode=lambda key, value, revision: value)
        state: dict[str, bytes] = {}

        async def follow() -> None:
            async for batch in syncer.run():
                state.update({event.key: event.value for event in batch if isinstance(event, Update)})

        following = asyncio.create_task(follow())

        async def write(key: str) -> None:
            """Write, again if need be, and see it told."""
            async with asyncio.timeout(20):
                while True:
                    try:
                        await store.put(key, b"x")
                        break
                    except UnavailableError:
                        await asyncio.sleep(0.05)
                while key not in state:
                    await asyncio.sleep(0.01)

        await write("/s/all")
        for member in members:
            member.kill()
            await write(f"/s/without-{member.name}")
            member.begin()
            await asyncio.to_thread(member.wait)
        for member in members[:2]:
            member.kill()
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            await store.get("/s/all")
        with pytest.raises(UnavailableError):
            await store.put("/s/none", b"x")
        async with asyncio.timeout(15):
            while syncer.state != "disconnected":
                await asyncio.sleep(0.05)
        assert time.monotonic() - started < 15
        for member in members[:2]:
            member.begin()
        for member in members[:2]:
            await asyncio.to_thread(member.wait)
        await write("/s/again")
        assert state == {kv.key: kv.value for kv in (await store.list("/s/")).items}
        assert len(state) in {5, 6}
        following.cancel()
        await asyncio.wait({following})
        await store.close()
