"""Histories of several hosts, Calico's client among them, interleaved at every call and killed at any write.

10 000 of them are tried, spread over ``tests/unit/test_ipam_histories_*.py``. ``CALIPY_HISTORIES`` sets another
number for each file, ``CALIPY_SEED`` repeats a run: a failure tells its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from calipy.datastore import codec
from calipy.datastore.ipam import CONFIRMED, Block, BlockAffinity
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, parse, path
from calipy.datastore.memory import MemoryStore
from calipy.datastore.store import Event
from calipy.errors import UnavailableError
from calipy.ipam import block as blocks
from calipy.ipam import snapshot
from calipy.ipam.allocator import CALICO_DEFAULTS, Allocator
from calipy.ipam.audit import audit
from calipy.ipam.collector import LeakTracker, collect
from calipy.ipam.errors import HandleNotFoundError, IPAMError
from calipy.ipam.request import ReleaseRequest
from tests.support.ipam import CalicoClient, Clock, Turnstile, TurnstileStore, cluster, decoded, feed
from tests.support.objects import pod
from tests.support.stores import FaultyStore, Killed

HISTORIES = int(os.environ.get("CALIPY_HISTORIES", "2500"))
SEED = int(os.environ.get("CALIPY_SEED", "0")) or random.randrange(1, 10**9)
POOL = "10.9.0.0/28"
BLOCKS = [f"10.9.0.{4 * index}/30" for index in range(4)]
CALIPY_HOSTS = ["n1", "n2", "n3"]
CALICO_HOSTS = ["c1", "c2"]


@dataclass(frozen=True)
class Step:
    """One call of one host.

    ``number`` says how many addresses, or which of the host's handles or blocks. ``fault`` is the write at which the
    host dies (or the answer is lost), 0 for none.
    """

    host: int
    call: str
    number: int
    fault: int
    when: str
    kind: str


STEPS = st.builds(
    Step,
    host=st.integers(0, len(CALIPY_HOSTS) - 1),
    call=st.sampled_from(
        ["assign", "assign", "more", "more", "given", "release", "release", "release one", "give up", "claim"]
    ),
    number=st.integers(1, 5),
    fault=st.sampled_from([0, 0, 0, 1, 2, 3]),
    when=st.sampled_from(["before", "after"]),
    kind=st.sampled_from(["dies", "no answer"]),
)
CALICO_STEPS = st.builds(
    Step,
    host=st.integers(100, 100 + len(CALICO_HOSTS) - 1),
    call=st.sampled_from(["assign", "assign", "release", "give up"]),
    number=st.integers(1, 5),
    fault=st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6]),
    when=st.sampled_from(["before", "after"]),
    kind=st.just("dies"),
)
HISTORY = st.lists(st.lists(STEPS | CALICO_STEPS, min_size=1, max_size=4), min_size=1, max_size=7)
ORDER = st.lists(st.integers(0, 7), max_size=60)


@dataclass(frozen=True)
class Content:
    """What a block holds: who has which address, and how many each."""

    block: Block
    held: Mapping[str, str]
    counts: Mapping[str, int]
    problems: list[str]

    @classmethod
    def of(cls, block: Block, now: datetime.datetime) -> Content:
        held = {}
        for address, attribute in block.assignments():
            assert attribute.handle_id is not None
            held[str(address)] = attribute.handle_id
        return cls(block, held, Counter(held.values()), blocks.problems(block, now=now))


_INITIAL: list[tuple[str, bytes]] = []


async def initial() -> list[tuple[str, bytes]]:
    """Keys and values of the cluster in which every history begins, made once."""
    if not _INITIAL:
        store = MemoryStore()
        await cluster(store, nodes=[*CALIPY_HOSTS, *CALICO_HOSTS], pools={"amber": {"cidr": POOL, "blockSize": 30}})
        _INITIAL.extend((kv.key, kv.value) for kv in (await store.list("/calico/")).items)
    return _INITIAL


class World:
    """A store, hosts, and what each successful call promised."""

    def __init__(self, order: list[int], *, borrowing: bool, watching: bool) -> None:
        turns = iter(order)
        self.clock = Clock()
        self.store = MemoryStore()
        self.turnstile = Turnstile(lambda count: next(turns, 0) % count)
        self.borrowing = borrowing
        self.watching = watching
        self.owners: dict[str, str] = {}
        """Address → handle, as promised to callers."""
        self.handles: dict[str, list[str]] = defaultdict(list)
        self.released: set[str] = set()
        """Handles whose release has begun: whatever they have may go at any time."""
        self.gone: set[str] = set()
        """Handles that were released for sure: nothing may be left of them."""
        self.used_now: set[str] = set()
        """Handles that calls of this batch assign to."""
        self.blocks: dict[str, Content] = {}
        self.handle_counts: dict[str, Mapping[str, int]] = {}
        self.affinities: dict[BlockAffinityKey, BlockAffinity] = {}
        self.looked_at = 0
        """Events of the store that are in the three above."""
        self.checked = 0
        self.delivered = 0
        """How far the watch has come: never further than the batch before."""
        self.made = 0

    async def start(self) -> None:
        for key, value in await initial():
            await self.store.put(key, value)
        self.checked = self.delivered = (await self.store.list("/calico/")).revision

    def _allocator(self, host: str, store: Any) -> Allocator:
        allocator = Allocator(
            store,
            host,
            now=self.clock.now,
            nanoseconds=self.clock.nanoseconds,
            **({"defaults": CALICO_DEFAULTS} if self.borrowing else {}),
        )
        if self.watching:
            feed(self.store, allocator, upto=self.delivered)
        return allocator

    async def batch(self, steps: list[Step]) -> None:
        """Run calls together and check everything they leave and everything in between."""
        self.used_now.clear()
        before = self.checked
        calls = [self._calico(step) if step.host >= 100 else self._calipy(step) for step in steps]
        outcomes = await self.turnstile.run(calls)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Killed | UnavailableError | IPAMError):
                raise outcome
        await self.check()
        self.delivered = before

    def _wrapped(self, step: Step) -> Any:
        lost = step.kind == "no answer"
        faulty = FaultyStore(
            self.store,
            step.fault,
            "after" if step.when == "after" else "before",
            (lambda: UnavailableError("no answer")) if lost else Killed,
            for_good=not lost,
        )
        return TurnstileStore(faulty, self.turnstile)

    def _new_handle(self, host: str) -> str:
        self.made += 1
        handle = f"net.{self.made}"
        self.handles[host].append(handle)
        self.used_now.add(handle)
        return handle

    def _pod(self, host: str, handle: str) -> dict[str, str]:
        return {"node": host, "pod": handle, "namespace": "shop"}

    def _promise(self, address: str, handle: str) -> None:
        holder = self.owners.get(address)
        assert holder is None or holder in self.released, f"{address} given to {handle}, {holder} has it"
        self.owners[address] = handle

    def _some_handle(self, host: str, number: int) -> str | None:
        mine = [handle for handle in self.handles[host] if handle not in self.released]
        return mine[number % len(mine)] if mine else None

    async def _calipy(self, step: Step) -> None:
        host = CALIPY_HOSTS[step.host]
        allocator = self._allocator(host, self._wrapped(step))
        handle: str | None
        match step.call:
            case "assign":
                handle = self._new_handle(host)
                attributes = {**self._pod(host, handle), "timestamp": str(self.clock.nanoseconds())}
                done = await allocator.auto_assign(num4=step.number, handle_id=handle, attributes=attributes)
                for address in done.ipv4:
                    self._promise(address, handle)
            case "more":
                handle = self._some_handle(host, step.number)
                if handle is not None:
                    self.used_now.add(handle)
                    done = await allocator.auto_assign(num4=2, handle_id=handle, attributes=self._pod(host, handle))
                    for address in done.ipv4:
                        self._promise(address, handle)
            case "given":
                handle = self._new_handle(host)
                address = f"10.9.0.{step.number * 3}"
                await allocator.assign(address, handle, self._pod(host, handle))
                self._promise(address, handle)
            case "release":
                handle = self._some_handle(host, step.number)
                if handle is not None:
                    self._forget(handle)
                    try:
                        await allocator.release_by_handle(handle)
                    except HandleNotFoundError:
                        assert handle not in self.owners.values()
                    self._has_gone(handle)
            case "release one":
                handle = self._some_handle(host, step.number)
                mine = [address for address, owner in self.owners.items() if owner == handle]
                if handle is not None and mine:
                    self.released.add(handle)
                    del self.owners[mine[0]]
                    await allocator.release_ips([ReleaseRequest(mine[0], handle)])
            case "give up":
                await allocator.release_affinity(BLOCKS[step.number % 4], must_be_empty=step.number % 2 == 0)
            case "claim":
                await allocator.claim_affinity(BLOCKS[step.number % 4])

    async def _calico(self, step: Step) -> None:
        host = CALICO_HOSTS[step.host - 100]
        rotated = BLOCKS[step.host - 100 :] + BLOCKS[: step.host - 100]
        client = CalicoClient(self._wrapped(step), host, rotated, self.clock)
        match step.call:
            case "assign":
                handle = self._new_handle(host)
                address = await client.assign(handle)
                if address is not None:
                    self._promise(address, handle)
            case "release":
                found = self._some_handle(host, step.number)
                if found is not None:
                    self._forget(found)
                    await client.release(found)
                    self._has_gone(found)
            case "give up":
                await client.release_affinity(BLOCKS[step.number % 4])

    def _forget(self, handle: str) -> None:
        self.released.add(handle)
        for address in [address for address, owner in self.owners.items() if owner == handle]:
            del self.owners[address]

    def _has_gone(self, handle: str) -> None:
        if handle not in self.used_now:
            self.gone.add(handle)

    async def check(self) -> None:
        """Every state since the last check is sound; the present one keeps all promises. O(changes x blocks)."""
        by_revision = itertools.groupby(self.store._log[self.looked_at :], lambda event: event.revision)
        for revision, events in by_revision:
            for event in events:
                self.looked_at += 1
                self._take_in(event)
            if revision > self.checked:
                self._check_state()
                self.checked = revision
        held = self._held()
        assert not self.gone & set(held.values()), "addresses of a released handle are left"
        for address, handle in self.owners.items():
            if handle not in self.released:
                assert held.get(address) == handle, f"{address} was promised to {handle}, {held.get(address)} has it"

    def _take_in(self, event: Event) -> None:
        """Keep the state as it was at one revision after the other."""
        key = parse(event.key)
        assert key is not None
        value = decoded(event)
        kept: dict[Any, Any]
        match key:
            case BlockKey(cidr=cidr):
                kept, key = self.blocks, cidr
                value = value and Content.of(value, self.clock.now())
            case HandleKey(handle_id=handle_id):
                kept, key = self.handle_counts, handle_id
                value = value and value.blocks
            case BlockAffinityKey():
                kept = self.affinities
            case _:
                return
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value

    def _held(self) -> dict[str, str]:
        return {address: handle for content in self.blocks.values() for address, handle in content.held.items()}

    def _check_state(self) -> None:
        for cidr, content in self.blocks.items():
            assert content.block.cidr == cidr
            assert not content.problems, content.problems
            assert content.block.affinity is not None or content.held, "an empty block that nobody owns"
            for handle_id, count in content.counts.items():
                assert handle_id in self.handle_counts, f"{handle_id} does not exist"
                assert self.handle_counts[handle_id].get(cidr, 0) >= count, f"{handle_id} counts too little"
        for key, affinity in self.affinities.items():
            if affinity.state == CONFIRMED:
                assert key.cidr in self.blocks, f"{key} is confirmed, its block does not exist"
                owner = self.blocks[key.cidr].block.affinity
                assert owner == f"host:{key.host}", f"{key} is confirmed, block has {owner}"

    async def collect(self) -> None:
        """The collector gives back what no pod uses, whatever died on the way, and touches nothing that one uses."""
        live = {handle for handle in self.owners.values() if handle not in self.released}
        for address, handle in self.owners.items():
            if handle in live:
                key, endpoint = pod(f"{handle}.{address}", address)
                await self.store.put(path(key), codec.encode(endpoint))
        tracker = LeakTracker()
        for _ in range(2):
            collected = await collect(self.store, self._allocator("n1", self.store), tracker, now=self.clock.now)
            assert collected.failed == []
            self.clock.forward(minutes=16)
            await self.check()
        held = self._held()
        assert set(held.values()) <= live, "a leak was not collected"
        assert set(self.handle_counts) <= live, "a handle without an address was not collected"

    async def clean_up(self) -> None:
        """Everything that deaths left behind is mended by ordinary calls, and live addresses are not touched."""
        self.delivered = self.checked
        allocator = self._allocator("n1", self.store)
        live = {handle for handle in self.owners.values() if handle not in self.released}
        for handles in self.handles.values():
            for handle in handles:
                if handle in live:
                    continue
                with contextlib.suppress(HandleNotFoundError):
                    await allocator.release_by_handle(handle)
        for host in (*CALIPY_HOSTS, *CALICO_HOSTS):
            await allocator.release_host_affinities(host)
        await self.check()
        held = self._held()
        expected = {address: handle for address, handle in self.owners.items() if handle in live}
        assert {address: handle for address, handle in held.items() if handle in live} == held
        assert expected.items() <= held.items()
        picture = await snapshot.read(self.store, snapshot.EVERYTHING)
        assert picture.affinities == {}
        found = audit(picture, now=self.clock.now())
        harmless = {"leaked address", "handle without address"}
        # Two calls of one Calico host, a claim and a giving up, can leave the block without the claim.
        theirs = {("block without affinity", host) for host in CALICO_HOSTS}
        assert [one for one in found.findings if one.kind not in harmless and (one.kind, one.node) not in theirs] == []
        await self.check()
        # And the pool serves again, to the last address.
        for handle in live:
            await allocator.release_by_handle(handle)
        assert len((await allocator.auto_assign(num4=16, handle_id="all", max_blocks=0)).ipv4) == 16


def try_histories(*, borrowing: bool, watching: bool) -> None:
    """No address is held twice, handles never count too little, confirmed means owned, and all faults can be mended.

    Args:
        borrowing: hosts may take addresses from each other's blocks.
        watching: calipy's hosts decide from what a watch has told them, up to one batch of calls old.
    """
    print(f"repeat with CALIPY_SEED={SEED} CALIPY_HISTORIES={HISTORIES}")

    with asyncio.Runner() as runner:

        @seed(SEED)
        @settings(
            max_examples=HISTORIES,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            print_blob=True,
        )
        @given(history=HISTORY, order=ORDER)
        def try_one(history: list[list[Step]], order: list[int]) -> None:
            runner.run(live(World(order, borrowing=borrowing, watching=watching), history))

        try_one()


async def live(world: World, history: list[list[Step]]) -> None:
    """One history, from a cluster without blocks to its end and the mending after it."""
    await world.start()
    for steps in history:
        await world.batch(steps)
    await world.check()
    await world.collect()
    await world.clean_up()
