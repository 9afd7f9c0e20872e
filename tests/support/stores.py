"""Stores around a store: one that counts, one that dies or fails at a chosen write."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from calipy.datastore.cas import CompareAndSwap
from calipy.datastore.store import Compare, Get, KeyValue, Listing, Operation, Store, TxnResult, WatchBatch


class WrappedStore(CompareAndSwap):
    """Passes everything on. Single-key writes arrive at ``txn``, as in every store."""

    def __init__(self, store: Store) -> None:
        self.inner = store

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        return await self.inner.get(key, revision=revision)

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        return await self.inner.list(prefix, revision=revision)

    def watch(self, prefixes: Sequence[str], *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        return self.inner.watch(prefixes, start_revision=start_revision)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        return await self.inner.txn(compares, then, otherwise)

    async def grant_lease(self, ttl: int) -> int:
        return await self.inner.grant_lease(ttl)

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class Counts:
    """Calls so far. ``txns`` counts every create, update, put, delete and txn; ``lost`` those whose guards failed."""

    gets: int = 0
    lists: int = 0
    txns: int = 0
    lost: int = 0
    calls: list[tuple[str, str]] = field(default_factory=list)


class CountingStore(WrappedStore):
    """Counts round trips in ``counts``; ``counts.calls`` holds method and (first) key in order."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.counts = Counts()

    def reset(self) -> Counts:
        """The counts so far; counting starts anew."""
        counts, self.counts = self.counts, Counts()
        return counts

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        self.counts.gets += 1
        self.counts.calls.append(("get", key))
        return await super().get(key, revision=revision)

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        self.counts.lists += 1
        self.counts.calls.append(("list", prefix))
        return await super().list(prefix, revision=revision)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        self.counts.txns += 1
        self.counts.calls.append(("txn", next((op.key for op in (*then, *otherwise)), "")))
        result = await super().txn(compares, then, otherwise)
        self.counts.lost += not result.succeeded
        return result


class Killed(BaseException):
    """The process "died" here. Not an Exception, so that no clean-up code of the tested program survives it."""


class FaultyStore(WrappedStore):
    """Lets ``fault`` happen at the ``at``-th write (from 1; every txn that may write counts, lost ones too).

    Args:
        store: what to wrap.
        at: which write; 0 never.
        when: ``before`` it is sent: the write is not done. ``after`` it was done, unknown to the caller.
        fault: makes the exception; ``Killed`` plays a crash, ``lambda: UnavailableError("…")`` a lost answer.
        for_good: every later call of any kind raises too (a crash), instead of only this one (a glitch).
    """

    def __init__(
        self,
        store: Store,
        at: int,
        when: Literal["before", "after"] = "before",
        fault: Callable[[], BaseException] = Killed,
        *,
        for_good: bool = True,
    ) -> None:
        super().__init__(store)
        self.writes = 0
        self.dead = False
        self._at = at
        self._when = when
        self._fault = fault
        self._for_good = for_good

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        self._refuse_if_dead()
        return await super().get(key, revision=revision)

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        self._refuse_if_dead()
        return await super().list(prefix, revision=revision)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        self._refuse_if_dead()
        if all(isinstance(operation, Get) for operation in (*then, *otherwise)):
            return await super().txn(compares, then, otherwise)
        self.writes += 1
        due = self.writes == self._at
        if due and self._when == "before":
            self._strike()
        result = await super().txn(compares, then, otherwise)
        if due:
            self._strike()
        return result

    def _strike(self) -> None:
        self.dead = self._for_good
        raise self._fault()

    def _refuse_if_dead(self) -> None:
        if self.dead:
            raise self._fault()
