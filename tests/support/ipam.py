"""Address management in tests: a store with pools and nodes, an interleaving of writers, and Calico's own client.

``CalicoClient`` does what libcalico-go does, one key at a time and in its order, so that everything it can leave behind
half done is there for calipy to meet.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.ipam import AllocationAttribute, Block, BlockAffinity, Handle
from calipy.datastore.keys import BLOCKS_V4, BlockAffinityKey, BlockKey, HandleKey, Key, affinity_prefix, parse, path
from calipy.datastore.memory import MemoryStore
from calipy.datastore.store import Compare, Event, KeyValue, Listing, Operation, Store, TxnResult
from calipy.errors import AlreadyExistsError, ConflictError, NotFoundError
from calipy.ipam import block as blocks
from calipy.ipam import handle as handles
from calipy.ipam.allocator import Allocator
from tests.support.objects import make
from tests.support.stores import WrappedStore

NOW = datetime.datetime(2026, 8, 1, 9, 0, tzinfo=datetime.UTC)


class Clock:
    """Time that stands still until it is moved; nanoseconds never repeat."""

    def __init__(self, moment: datetime.datetime = NOW) -> None:
        self.moment = moment
        self._ticks = itertools.count(1)

    def now(self) -> datetime.datetime:
        return self.moment

    def nanoseconds(self) -> int:
        return int(self.moment.timestamp()) * 1_000_000_000 + next(self._ticks)

    def forward(self, **step: float) -> None:
        self.moment += datetime.timedelta(**step)


async def cluster(
    store: Store,
    *,
    nodes: Sequence[str] = ("n1", "n2"),
    labels: dict[str, dict[str, str]] | None = None,
    pools: dict[str, dict[str, Any]] | None = None,
    reservations: dict[str, Sequence[str]] | None = None,
) -> Client:
    """Make nodes, pools (``{"amber": {"cidr": …, "blockSize": 30}}``) and reservations."""
    client = Client(store, addresses=Allocator(store, "nobody"), settle=0)
    for node in nodes:
        await client.create(make("Node", node, {}, labels=(labels or {}).get(node, {}))[1])
    for name, spec in (pools or {}).items():
        await client.create(make("IPPool", name, spec)[1])
    for name, cidrs in (reservations or {}).items():
        await client.create(make("IPReservation", name, {"reservedCIDRs": list(cidrs)})[1])
    return client


async def read(store: Store, key: Key) -> Any:
    """What a key holds, decoded; None if it is absent."""
    kv = await store.get(path(key))
    return None if kv is None else codec.decode(key, kv.value, kv.mod_revision)


class Turnstile:
    """Lets concurrent tasks through to the store one call at a time, in an order that a test chooses."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._waiting: list[asyncio.Future[None]] = []

    async def enter(self) -> None:
        """Wait for one's turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    async def run(self, calls: Sequence[Awaitable[Any]]) -> list[Any]:
        """Run calls together; their results or exceptions (also those that are no ``Exception``)."""
        tasks = [asyncio.ensure_future(_caught(call)) for call in calls]
        loop: Any = asyncio.get_running_loop()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            while loop._ready:  # let every task run until it waits for its turn, sleeps or ends
                await asyncio.sleep(0)
            if self._waiting:
                self._waiting.pop(self._choose(len(self._waiting))).set_result(None)
            else:
                await asyncio.sleep(0.001)  # only back-offs are left
        return [task.result() for task in tasks]


async def _caught(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return error


class TurnstileStore(WrappedStore):
    """Takes a turn before every call."""

    def __init__(self, store: Store, turnstile: Turnstile) -> None:
        super().__init__(store)
        self._turnstile = turnstile

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        await self._turnstile.enter()
        return await super().get(key, revision=revision)

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        await self._turnstile.enter()
        return await super().list(prefix, revision=revision)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        await self._turnstile.enter()
        return await super().txn(compares, then, otherwise)


class LostError(Exception):
    """Another writer was faster."""


class CalicoClient:
    """libcalico-go's way of assigning one address and releasing by handle, step by step; IPv4, one pool."""

    def __init__(self, store: Store, host: str, candidates: Sequence[str], clock: Clock) -> None:
        self.store = store
        self.host = host
        self._candidates = candidates
        self._clock = clock

    async def _read(self, key: Key) -> tuple[Any, int]:
        kv = await self.store.get(path(key))
        return (None, 0) if kv is None else (codec.decode(key, kv.value, kv.mod_revision), kv.mod_revision)

    async def _write(self, key: Key, value: Any, revision: int) -> int:
        try:
            if value is None:
                await self.store.delete(path(key), revision=revision)
                return 0
            text = codec.encode(value)
            if revision:
                return await self.store.update(path(key), text, revision=revision)
            return await self.store.create(path(key), text)
        except (ConflictError, NotFoundError, AlreadyExistsError) as error:
            raise LostError from error

    async def assign(self, handle_id: str) -> str | None:
        """One address, or None if the pool has no more block for this host."""
        for _ in range(100):
            try:
                return await self._assign_once(handle_id)
            except LostError:
                continue
        raise AssertionError("overtaken a hundred times")

    async def _assign_once(self, handle_id: str) -> str | None:
        listing = await self.store.list(affinity_prefix(self.host, 4))
        for kv in listing.items:
            key = parse(kv.key)
            assert isinstance(key, BlockAffinityKey)
            block, revision = await self._usable_block(key)
            if block is not None and block.unallocated:
                address = await self._assign_from(block, revision, handle_id)
                if address is not None:
                    return address
        claimed = await self._claim_new()
        return None if claimed is None else await self._assign_from(*claimed, handle_id)

    async def _usable_block(self, key: BlockAffinityKey) -> tuple[Block | None, int]:
        affinity, revision = await self._read(key)
        if affinity is None:
            return None, 0
        block, block_revision = await self._read(BlockKey(key.cidr))
        if block is not None and block.affinity != f"host:{self.host}":
            await self._write(key, None, revision)
            return None, 0
        if affinity.state == "confirmed" and block is not None:
            return block, block_revision
        revision = await self._write(key, BlockAffinity(state="pending"), revision)
        return await self._make_block(key, revision, block, block_revision)

    async def _make_block(
        self, key: BlockAffinityKey, revision: int, block: Block | None, block_revision: int
    ) -> tuple[Block, int]:
        block = self._new(key.cidr) if block is None else blocks.rewrite(block)
        block_revision = await self._write(BlockKey(key.cidr), block, block_revision)
        await self._write(key, BlockAffinity(), revision)
        return block, block_revision

    def _new(self, cidr: str) -> Block:
        return blocks.new_block(
            cidr, f"host:{self.host}", now=self._clock.now(), sequence_number=self._clock.nanoseconds()
        )

    async def _claim_new(self) -> tuple[Block, int] | None:
        taken = {kv.key for kv in (await self.store.list(BLOCKS_V4)).items}
        for cidr in self._candidates:
            if path(BlockKey(cidr)) in taken:
                continue
            key = BlockAffinityKey(self.host, cidr)
            revision = await self._write(key, BlockAffinity(state="pending"), (await self._read(key))[1])
            revision = await self._write(key, BlockAffinity(state="pending"), revision)
            try:
                block = self._new(cidr)
                block_revision = await self._write(BlockKey(cidr), block, 0)
            except LostError:
                existing, _ = await self._read(BlockKey(cidr))
                if existing is None or existing.affinity != f"host:{self.host}":
                    await self._write(key, None, revision)
                raise
            await self._write(key, BlockAffinity(), revision)
            return block, block_revision
        return None

    async def _assign_from(self, block: Block, revision: int, handle_id: str) -> str | None:
        attributes = {"node": self.host, "pod": handle_id, "namespace": "shop"}
        owner = AllocationAttribute(handle_id=handle_id, secondary=attributes)
        after, ordinals = blocks.assign(block, 1, owner)
        if not ordinals:
            return None
        await self._change_handle(handle_id, block.cidr, +1)
        try:
            await self._write(BlockKey(block.cidr), after, revision)
        except LostError:
            await self._change_handle(handle_id, block.cidr, -1)
            raise
        return str(block.address(ordinals[0]))

    async def _change_handle(self, handle_id: str, cidr: str, count: int) -> None:
        for _ in range(100):
            handle, revision = await self._read(HandleKey(handle_id))
            try:
                if count > 0:
                    await self._write(HandleKey(handle_id), handles.increment(handle, cidr, count), revision)
                elif handle is not None:
                    await self._write(HandleKey(handle_id), handles.decrement(handle, {cidr: -count}), revision)
            except LostError:
                continue
            return
        raise AssertionError("overtaken a hundred times")

    async def release(self, handle_id: str) -> None:
        """Release by handle; nothing if there is none."""
        handle: Handle | None = (await self._read(HandleKey(handle_id)))[0]
        for cidr in handle.blocks if handle is not None else ():
            for _ in range(100):
                block, revision = await self._read(BlockKey(cidr))
                if block is None:
                    break
                done = blocks.release_handle(block, handle_id, now=self._clock.now(), cooldown=datetime.timedelta(0))
                if not done.freed:
                    break
                try:
                    await self._write(BlockKey(cidr), done.block, revision)
                except LostError:
                    continue
                await self._change_handle(handle_id, cidr, -len(done.freed))
                break

    async def release_affinity(self, cidr: str) -> None:
        """Give up a block."""
        key = BlockAffinityKey(self.host, cidr)
        affinity, revision = await self._read(key)
        block, block_revision = await self._read(BlockKey(cidr))
        if affinity is None:
            return
        try:
            if block is not None and block.affinity not in {None, f"host:{self.host}"}:
                await self._write(key, None, revision)
                return
            revision = await self._write(key, BlockAffinity(state="pendingDeletion"), revision)
            if block is not None:
                await self._write(BlockKey(cidr), None if block.empty else blocks.disown(block), block_revision)
            await self._write(key, None, revision)
        except LostError:
            return  # half done, as Calico leaves it


@dataclass(frozen=True)
class Change:
    """What a watch says of one key."""

    key: Key
    value: Any
    revision: int
    error: None = None


def decoded(event: Event) -> Any:
    """The value after an event; None if it deleted the key or is of no kind we know."""
    return _decoded(event.key, event.kv.value, event.kv.mod_revision) if event.kv is not None else None


@functools.lru_cache(maxsize=65536)
def _decoded(path: str, value: bytes, revision: int) -> Any:
    key = parse(path)
    return codec.decode(key, value, revision) if key is not None else None


def feed(store: MemoryStore, allocator: Allocator, *, upto: int) -> None:
    """Hand an allocator everything that happened up to a revision, as the agent's watch would."""
    for event in store._log:
        key = parse(event.key)
        if event.revision <= upto and key is not None:
            allocator.observe(Change(key, decoded(event), event.revision))
    allocator.in_sync()
