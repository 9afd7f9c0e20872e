"""Histories of several hosts, Calico's client among them, interleaved at every call and killed at any write.

``CALIPY_HISTORIES`` sets how many are tried; hypothesis prints how to repeat a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calipy.datastore import codec
from calipy.datastore.ipam import CONFIRMED, Block, BlockAffinity, Handle
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, parse
from calipy.datastore.memory import MemoryStore
from calipy.errors import UnavailableError
from calipy.ipam import block as blocks
from calipy.ipam import snapshot
from calipy.ipam.allocator import CALICO_DEFAULTS, Allocator
from calipy.ipam.audit import audit
from calipy.ipam.errors import HandleNotFoundError, IPAMError
from calipy.ipam.request import ReleaseRequest
from tests.support.ipam import CalicoClient, Clock, Turnstile, TurnstileStore, cluster, feed
from tests.support.stores import FaultyStore, Killed

HISTORIES = int(os.environ.get("CALIPY_HISTORIES", "250"))
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
        self.checked = 0
        self.delivered = 0
        """How far the watch has come: never further than the batch before."""
        self.made = 0

    async def start(self) -> None:
        await cluster(
            self.store, nodes=[*CALIPY_HOSTS, *CALICO_HOSTS], pools={"amber": {"cidr": POOL, "blockSize": 30}}
        )
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
                attributes = {"node": host, "timestamp": str(self.clock.nanoseconds())}
                done = await allocator.auto_assign(num4=step.number, handle_id=handle, attributes=attributes)
                for address in done.ipv4:
                    self._promise(address, handle)
            case "more":
                handle = self._some_handle(host, step.number)
                if handle is not None:
                    self.used_now.add(handle)
                    done = await allocator.auto_assign(num4=2, handle_id=handle, attributes={"node": host})
                    for address in done.ipv4:
                        self._promise(address, handle)
            case "given":
                handle = self._new_handle(host)
                address = f"10.9.0.{step.number * 3}"
                await allocator.assign(address, handle, {"node": host})
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
        """Every state since the last check is sound; the present one keeps all promises."""
        last = (await self.store.list("/calico/")).revision
        for revision in range(self.checked + 1, last + 1):
            await self._check_state(revision)
        self.checked = last
        held = await self._held()
        assert not self.gone & set(held.values()), "addresses of a released handle are left"
        for address, handle in self.owners.items():
            if handle not in self.released:
                assert held.get(address) == handle, f"{address} was promised to {handle}, {held.get(address)} has it"

    async def _held(self) -> dict[str, str | None]:
        picture = await snapshot.read(self.store)
        return {str(a): x.handle_id for block in picture.blocks.values() for a, x in block.assignments()}

    async def _check_state(self, revision: int) -> None:
        listing = await self.store.list("/calico/ipam/", revision=revision)
        found = {}
        for kv in listing.items:
            key = parse(kv.key)
            assert key is not None
            found[key] = codec.decode(key, kv.value, kv.mod_revision)
        held: dict[tuple[str, str], int] = defaultdict(int)
        for key, block in found.items():
            if isinstance(key, BlockKey):
                assert isinstance(block, Block)
                assert blocks.problems(block, now=self.clock.now()) == []
                for _, attribute in block.assignments():
                    assert attribute.handle_id is not None
                    held[attribute.handle_id, block.cidr] += 1
                assert block.affinity is not None or not block.empty, "an empty block that nobody owns"
        for (handle_id, cidr), count in held.items():
            handle = found.get(HandleKey(handle_id))
            assert isinstance(handle, Handle), f"{handle_id} does not exist"
            assert handle.blocks.get(cidr, 0) >= count, f"{handle_id} counts too little"
        for key, affinity in found.items():
            if isinstance(key, BlockAffinityKey):
                assert isinstance(affinity, BlockAffinity)
                block = found.get(BlockKey(key.cidr))
                if affinity.state == CONFIRMED:
                    assert isinstance(block, Block), f"{key} is confirmed, its block does not exist"
                    assert block.affinity == f"host:{key.host}", f"{key} is confirmed, block has {block.affinity}"

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
        held = await self._held()
        expected = {address: handle for address, handle in self.owners.items() if handle in live}
        assert {address: handle for address, handle in held.items() if handle in live} == held
        assert expected.items() <= held.items()
        picture = await snapshot.read(self.store, snapshot.EVERYTHING)
        assert picture.affinities == {}
        found = audit(picture, now=self.clock.now())
        assert {finding.kind for finding in found.findings} <= {"leaked address", "handle without address"}
        await self.check()
        # And the pool serves again, to the last address.
        for handle in live:
            await allocator.release_by_handle(handle)
        assert len((await allocator.auto_assign(num4=16, handle_id="all", max_blocks=0)).ipv4) == 16


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.mark.timeout(120 + HISTORIES)
@settings(
    max_examples=HISTORIES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
@given(history=HISTORY, order=ORDER, borrowing=st.booleans(), watching=st.booleans())
def test_any_history_keeps_every_promise(
    history: list[list[Step]], order: list[int], borrowing: bool, watching: bool
) -> None:
    """No address is held twice, handles never count too little, confirmed means owned, and all faults can be mended."""

    async def main() -> None:
        world = World(order, borrowing=borrowing, watching=watching)
        await world.start()
        for steps in history:
            await world.batch(steps)
        await world.clean_up()

    run(main)
