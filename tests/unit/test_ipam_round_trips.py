"""How often the allocator talks to the datastore, counted."""

from __future__ import annotations

import pytest

from calipy.datastore import codec
from calipy.datastore.ipam import IPAMConfig
from calipy.datastore.keys import HandleKey, path
from calipy.datastore.memory import MemoryStore
from calipy.errors import UnavailableError
from calipy.ipam import snapshot
from calipy.ipam.allocator import Allocator
from calipy.ipam.errors import HandleNotFoundError, NoPoolError
from calipy.ipam.handle import increment
from tests.support.ipam import cluster, feed, read
from tests.support.stores import CountingStore, FaultyStore

POOLS = {"amber": {"cidr": "10.1.0.0/24", "blockSize": 29}}


async def watching(store: MemoryStore, counting: CountingStore, host: str = "n1") -> Allocator:
    """An allocator that has seen everything so far, as the agent's has."""
    allocator = Allocator(counting, host)
    feed(store, allocator, upto=(await store.list("/calico/")).revision)
    counting.reset()
    return allocator


async def test_from_watched_state_one_transaction_does_it_all() -> None:
    """New block, its affinity, handle and address: one round trip; so is each further address."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    allocator = await watching(store, counting)
    for number in range(20):
        await allocator.auto_assign(num4=1, handle_id=f"h{number}", attributes={"node": "n1"})
        counts = counting.reset()
        assert (counts.gets, counts.lists, counts.txns, counts.lost) == (0, 0, 1, 0)


async def test_removal_takes_two() -> None:
    """The handle is read, then block and handle are written at once."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    allocator = await watching(store, counting)
    await allocator.auto_assign(num4=1, handle_id="h", attributes={"node": "n1"})
    counting.reset()
    await allocator.release_by_handle("h")
    counts = counting.reset()
    assert (counts.gets, counts.lists, counts.txns, counts.lost) == (0, 0, 2, 0)
    with pytest.raises(HandleNotFoundError):
        await allocator.release_by_handle("h")
    assert counting.reset().txns == 1


async def test_without_a_watch() -> None:
    """Reading everything afresh takes pools, reservations, affinities, two reads and one write: six requests."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    allocator = Allocator(counting, "n1")
    await allocator.auto_assign(num4=1, handle_id="a")
    counting.reset()
    await allocator.auto_assign(num4=1, handle_id="b")
    counts = counting.reset()
    assert (counts.gets, counts.lists, counts.txns, counts.lost) == (0, 3, 3, 0)
    await allocator.release_by_handle("b")
    counts = counting.reset()
    assert (counts.gets, counts.lists, counts.txns, counts.lost) == (0, 0, 3, 0)


async def test_an_old_view_costs_one_more_try() -> None:
    """What another client changed unseen is learned from the guard that failed, without any other read."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    await Allocator(store, "n1").auto_assign(num4=1, handle_id="a")
    allocator = await watching(store, counting)
    await Allocator(store, "n1").auto_assign(num4=3, handle_id="b")
    done = await allocator.auto_assign(num4=1, handle_id="b")
    counts = counting.reset()
    assert (counts.lists, counts.txns, counts.lost) == (0, 2, 1)
    assert len(done.ipv4) == 1
    assert (await read(store, HandleKey("b"))).blocks == {done.families[4].blocks[0]: 4}


async def test_a_pool_disabled_unseen_is_not_used() -> None:
    """Assignments rest on the pool, the settings and the node as they are now, however old the view is."""
    store = MemoryStore()
    counting = CountingStore(store)
    client = await cluster(store, pools=POOLS)
    allocator = await watching(store, counting)
    pool = await client.get("IPPool", "amber")
    assert pool is not None
    await client.delete("IPPool", "amber")
    with pytest.raises(NoPoolError):
        await allocator.auto_assign(num4=1, handle_id="h")
    assert (await snapshot.read(store, snapshot.EVERYTHING)).blocks == {}


async def test_strictness_set_unseen_is_obeyed() -> None:
    """A host that watched a cluster that borrows does not borrow once that was forbidden."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/30", "blockSize": 30}})
    await Allocator(store, "n2").set_config(IPAMConfig(strict_affinity=False))
    await Allocator(store, "n2").auto_assign(num4=1, handle_id="a")
    allocator = await watching(store, counting)
    await Allocator(store, "n2").set_config(IPAMConfig(strict_affinity=True))
    done = await allocator.auto_assign(num4=1, handle_id="h")
    assert done.ipv4 == []
    assert "strict affinity" in done.messages[0]


async def test_no_is_said_only_after_a_second_look() -> None:
    """A pool that was created, or an address that was freed, unseen is found before the request fails."""
    store = MemoryStore()
    counting = CountingStore(store)
    client = await cluster(store, pools={"amber": {"cidr": "10.1.0.0/30", "blockSize": 30}})
    other = Allocator(store, "n1")
    await other.auto_assign(num4=4, handle_id="full")
    allocator = await watching(store, counting)
    await other.release_by_handle("full")
    assert len((await allocator.auto_assign(num4=1, handle_id="h")).ipv4) == 1
    await client.delete("IPPool", "amber")
    blind = await watching(store, counting)
    await cluster(store, nodes=(), pools={"new": {"cidr": "10.2.0.0/24"}})
    assert (await blind.auto_assign(num4=1, handle_id="h")).ipv4[0].startswith("10.2.")


async def test_release_does_not_trust_an_old_block() -> None:
    """An address assigned unseen is released with its handle: the block looked at is guarded, too."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    await Allocator(store, "n1").auto_assign(num4=1, handle_id="a")
    allocator = await watching(store, counting)
    got = (await Allocator(store, "n1").auto_assign(num4=1, handle_id="late")).ipv4
    assert await allocator.release_by_handle("late") == got


async def test_out_of_sync_reads_again() -> None:
    """When the watch breaks, operations read what they need; when it is back, they rest on it again."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    allocator = await watching(store, counting)
    allocator.out_of_sync()
    await allocator.auto_assign(num4=1, handle_id="a")
    assert counting.reset().lists == 4
    allocator.in_sync()
    await allocator.auto_assign(num4=1, handle_id="b")
    assert (counting.counts.lists, counting.counts.txns) == (0, 1)


async def test_an_answer_that_got_lost_is_looked_up() -> None:
    """A write that was done although nobody said so counts as done: the address is not lost, nor given twice."""
    store = MemoryStore()
    await cluster(store, pools=POOLS)
    faulty = FaultyStore(store, 1, "after", lambda: UnavailableError("no answer"), for_good=False)
    allocator = Allocator(faulty, "n1")
    attributes = {"node": "n1", "timestamp": "2026-08-01 09:00:03.120000001 +0000 UTC"}
    got = (await allocator.auto_assign(num4=1, handle_id="h", attributes=attributes)).ipv4
    assert await allocator.ips_by_handle("h") == got


async def test_an_assignment_that_looks_like_another_is_not_taken_for_done() -> None:
    """Without a time of its own in the attributes nobody can tell whose the address is: the caller has to clean up."""
    store = MemoryStore()
    await cluster(store, pools=POOLS)
    faulty = FaultyStore(store, 1, "after", lambda: UnavailableError("no answer"), for_good=False)
    allocator = Allocator(faulty, "n1")
    with pytest.raises(UnavailableError):
        await allocator.auto_assign(num4=1, handle_id="h", attributes={"node": "n1"})
    assert len(await allocator.release_by_handle("h")) == 1


async def test_a_write_that_was_not_done_is_reported() -> None:
    """If the second look does not show it, the caller hears that the datastore did not answer."""
    store = MemoryStore()
    await cluster(store, pools=POOLS)
    faulty = FaultyStore(store, 1, "before", lambda: UnavailableError("no answer"), for_good=False)
    with pytest.raises(UnavailableError):
        await Allocator(faulty, "n1").auto_assign(num4=1, handle_id="h")
    assert (await snapshot.read(store, snapshot.EVERYTHING)).handles == {}


async def test_one_host_with_full_blocks_looks_at_each_once() -> None:
    """Walking over full blocks costs nothing on watched state."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    await Allocator(store, "n1").auto_assign(num4=80, handle_id="full")
    allocator = await watching(store, counting)
    await allocator.auto_assign(num4=1, handle_id="h")
    counts = counting.reset()
    assert (counts.lists, counts.gets, counts.txns) == (0, 0, 1)


async def test_a_handle_that_counts_too_much_is_kept_for_others() -> None:
    """A count left by a dead client does not stop a release, and what it counts too much stays visible to check."""
    store = MemoryStore()
    await cluster(store, pools=POOLS)
    allocator = Allocator(store, "n1")
    done = await allocator.auto_assign(num4=1, handle_id="h")
    cidr = done.families[4].blocks[0]
    await store.put(path(HandleKey("h")), codec.encode(increment(await read(store, HandleKey("h")), cidr, 2)))
    assert await allocator.release_by_handle("h") == done.ipv4
    assert (await read(store, HandleKey("h"))).blocks == {cidr: 2}


async def test_live_view_follows_its_own_writes() -> None:
    """What this allocator wrote counts at once; a late watch event about an older state does not undo it."""
    store = MemoryStore()
    counting = CountingStore(store)
    await cluster(store, pools=POOLS)
    allocator = await watching(store, counting)
    old = (await store.list("/calico/")).revision
    first = (await allocator.auto_assign(num4=1, handle_id="a")).ipv4
    feed(store, allocator, upto=old)
    second = (await allocator.auto_assign(num4=1, handle_id="b")).ipv4
    assert first != second
    assert counting.counts.lost == 0
