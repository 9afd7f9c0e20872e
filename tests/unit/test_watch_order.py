"""Order and safe resumption of a watch over several ranges, whatever the server's messages overtake."""

from __future__ import annotations

import random

from calipy.datastore.store import Event, WatchBatch
from calipy.datastore.watch_order import HOLD, SETTLED, WatchOrder


def put(key: str, revision: int) -> Event:
    return Event("put", key, revision)


def keys(batch: WatchBatch | None) -> list[tuple[str, int]]:
    return [(event.key, event.revision) for event in batch.events] if batch else []


def test_one_range_waits_for_nothing():
    """With one range, events pass at once and the place to resume from is behind the last."""
    order = WatchOrder(1, 5)
    batch = order.events(0, [put("a", 5), put("b", 7)], 0)
    assert (keys(batch), batch.revision) == ([("a", 5), ("b", 7)], 7)
    assert not order.waiting


def test_several_ranges_are_sorted():
    """Events of two ranges come in order of revision, once two answers have confirmed that nothing is missing."""
    order = WatchOrder(2, 1)
    assert order.events(0, [put("a", 3), put("a", 6)], 0) is None
    assert order.waiting
    assert order.progress(6, 0) is None
    batch = order.events(1, [put("b", 3), put("b", 4)], 0)
    assert keys(batch) == [("a", 3), ("b", 3), ("b", 4)]
    assert batch.revision == 4
    assert order.progress(6, 0) is None
    batch = order.progress(6, 0)
    assert keys(batch) == [("a", 6)]
    assert not order.waiting


def test_an_answer_that_overtook_an_event_is_not_believed():
    """An answer followed by an event of before it releases nothing; the transaction comes whole."""
    order = WatchOrder(3, 1)
    assert order.events(0, [put("a", 9)], 0) is None
    assert order.progress(9, 0) is None
    assert order.events(1, [put("b", 9)], 0) is None
    assert order.progress(9, 0) is None
    assert keys(order.progress(9, 0)) == [("a", 9), ("b", 9)]


def test_resuming_never_skips_a_silent_range():
    """The place to resume from stays before what a silent range might still say, until answers a while apart."""
    order = WatchOrder(2, 5)
    order.events(0, [put("a", 9)], 0)
    order.progress(9, 0)
    batch = order.progress(9, 0)
    assert (keys(batch), batch.revision) == ([("a", 9)], 4)
    assert order.progress(9, SETTLED / 2) is None
    batch = order.progress(12, SETTLED)
    assert (batch.events, batch.revision) == ((), 9)
    assert order.progress(12, SETTLED * 1.1) is None
    assert order.progress(13, SETTLED * 2.2).revision == 12


def test_progress_of_one_range_counts_for_it_alone():
    """A notice about one range moves that range; the slowest one decides."""
    order = WatchOrder(2, 1)
    order.range_progress(0, 50)
    order.range_progress(0, 10)
    for revision, place in ((20, 20), (30, 30), (70, None)):
        batch = order.events(1, [put("b", revision)], 0)
        assert (batch and batch.revision) == place
    assert order.waiting


def test_nothing_is_held_for_long():
    """A server that is catching up gives no answers; after a while events pass in the order known."""
    order = WatchOrder(2, 1)
    assert order.events(0, [put("a", 5)], 0) is None
    assert order.events(0, [put("a", 6)], HOLD / 2) is None
    assert keys(order.events(0, [put("a", 7)], HOLD * 1.1)) == [("a", 5), ("a", 6), ("a", 7)]


def test_any_interleaving_loses_nothing():
    """However messages of ranges interleave and answers overtake: each event comes once, and resuming from any batch's
    revision repeats but never skips.
    """
    for seed in range(200):
        rng = random.Random(seed)
        ranges = rng.randrange(1, 4)
        queues = [[] for _ in range(ranges)]
        everything = []
        for revision in range(10, 60):
            for index in rng.sample(range(ranges), rng.randrange(1, ranges + 1)):
                event = put(f"{index}", revision)
                queues[index].append(event)
                everything.append(event)
        order = WatchOrder(ranges, 10)
        now, given = 0.0, []
        while any(queues) or order.waiting:
            now += rng.choice([0.0, 0.001, 0.01])
            index = rng.randrange(ranges)
            if queues[index] and rng.random() < 0.7:
                count = rng.randrange(1, 4)
                batch = order.events(index, queues[index][:count], now)
                del queues[index][:count]
            else:
                behind = max((queue[0].revision for queue in queues if queue), default=59)
                batch = order.progress(min(59, behind + rng.randrange(3)), now)
            if batch:
                given.extend(batch.events)
                told = {id(event) for event in given}
                assert all(id(event) in told for event in everything if event.revision <= batch.revision)
        assert len(given) == len(everything)
        for index in range(ranges):
            own = [event.revision for event in given if event.key == str(index)]
            assert own == sorted(own)


def test_one_range_moves_without_events():
    """What is filtered out of a range still moves the place to resume from."""
    order = WatchOrder(1, 5)
    assert order.range_progress(0, 4) is None
    batch = order.range_progress(0, 9)
    assert (batch.events, batch.revision) == ((), 9)
    assert order.range_progress(0, 9) is None
