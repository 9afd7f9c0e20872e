"""``MemoryStore``: etcd's semantics in memory, with history, for pure tests only."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from calipy import clock
from calipy.datastore.cas import CompareAndSwap
from calipy.datastore.store import (
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    Listing,
    Operation,
    Put,
    TxnResult,
    WatchBatch,
)
from calipy.errors import CompactedError, DatastoreError, InvalidInputError, UnavailableError

MAX_OPERATIONS = 128
"""etcd's default ``--max-txn-ops``, for guards and for each branch."""


@dataclass(slots=True)
class _Lease:
    expires: float
    keys: set[str] = field(default_factory=set)


class MemoryStore(CompareAndSwap):
    """A store of one process's own, that answers as etcd does.

    Leases expire by ``now``; what is due is removed at the next call, or by ``expire``. The history is kept as the list
    of versions per key, so reading the past costs O(log versions) per key.

    Args:
        now: seconds, for leases.
    """

    def __init__(self, *, now: Callable[[], float] = clock.monotonic) -> None:
        self._now = now
        self._revision = 1
        self._compacted = 0
        self._history: dict[str, list[tuple[int, KeyValue | None]]] = {}
        self._log: list[Event] = []
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1
        self._changed = asyncio.Event()
        self._closed = False

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """See ``Store.get``."""
        self._enter()
        if not key:
            raise DatastoreError("the key is empty")
        return self._at(key, self._check_revision(revision))

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        """See ``Store.list``. O(all keys)."""
        self._enter()
        at = self._check_revision(revision)
        found = (self._at(key, at) for key in sorted((k for k in self._history if k.startswith(prefix)), key=_order))
        return Listing(tuple(kv for kv in found if kv is not None), at)

    async def watch(self, prefixes: Sequence[str], *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See ``Store.watch``. Like ``EtcdStore`` it gives an empty batch first."""
        if not prefixes:
            raise InvalidInputError("a watch needs at least one prefix", field="prefixes", value=prefixes)
        self._enter()
        yield WatchBatch((), start_revision - 1)
        wanted = tuple(prefixes)
        revision = start_revision
        while True:
            if revision <= self._compacted:
                raise CompactedError(f"revisions before {self._compacted} are gone", compact_revision=self._compacted)
            position = bisect_left(self._log, revision, key=lambda event: event.revision)
            events = tuple(event for event in self._log[position:] if event.key.startswith(wanted))
            if self._revision >= revision:
                revision = self._revision + 1
            if events:
                yield WatchBatch(events, events[-1].revision)
                self._refuse_closed()
                continue
            await self._changed.wait()
            self._refuse_closed()

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        """See ``Store.txn``."""
        self._enter()
        for branch in (then, otherwise):
            self._check_branch(branch)
        if len(compares) > MAX_OPERATIONS:
            raise DatastoreError("too many operations in txn request")
        succeeded = all(_mod_revision(self._at(c.key, self._revision)) == c.mod_revision for c in compares)
        operations = then if succeeded else otherwise
        reads = self._apply(operations)
        return TxnResult(succeeded, self._revision, tuple(reads))

    async def grant_lease(self, ttl: int) -> int:
        """See ``Store.grant_lease``."""
        self._enter()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[lease] = _Lease(self._now() + ttl)
        return lease

    async def close(self) -> None:
        """See ``Store.close``."""
        self._closed = True
        self._wake()

    def expire(self) -> None:
        """Remove the keys of leases whose time has passed, one revision per lease."""
        now = self._now()
        for lease in [lease for lease, state in self._leases.items() if state.expires <= now]:
            keys = sorted(self._leases[lease].keys)
            del self._leases[lease]
            self._apply([Delete(key) for key in keys])

    def compact(self, revision: int) -> None:
        """Forget all versions that were no longer present at ``revision``, as ``etcdctl compact`` does."""
        if not self._compacted < revision <= self._revision:
            raise CompactedError(f"cannot compact at {revision}", compact_revision=self._compacted)
        self._compacted = revision
        self._log = [event for event in self._log if event.revision >= revision]
        for key, versions in list(self._history.items()):
            start = max(0, bisect_left(versions, revision + 1, key=lambda version: version[0]) - 1)
            kept = versions[start:]
            if kept[0][0] <= revision and kept[0][1] is None:
                kept = kept[1:]
            if kept:
                self._history[key] = kept
            else:
                del self._history[key]
        self._wake()

    def _apply(self, operations: Sequence[Operation]) -> Sequence[KeyValue | None]:
        """Do the operations in order at one new revision, which counts only if something changed."""
        revision = self._revision + 1
        events: list[Event] = []
        reads: list[KeyValue | None] = []
        for operation in operations:
            before = self._at(operation.key, revision)
            match operation:
                case Get():
                    reads.append(before)
                case Put(key, value, lease):
                    after = KeyValue(
                        key,
                        bytes(value),
                        revision,
                        before.create_revision if before else revision,
                        before.version + 1 if before else 1,
                        lease,
                    )
                    self._attach(key, before, after)
                    events.append(Event("put", key, revision, after, before))
                case Delete(key):
                    if before is not None:
                        self._attach(key, before, None)
                        events.append(Event("delete", key, revision, None, before))
        if events:
            self._revision = revision
            self._log.extend(events)
            self._wake()
        return reads

    def _attach(self, key: str, before: KeyValue | None, after: KeyValue | None) -> None:
        if before is not None and before.lease in self._leases:
            self._leases[before.lease].keys.discard(key)
        if after is not None and after.lease:
            self._leases[after.lease].keys.add(key)
        revision = after.mod_revision if after else self._revision + 1
        self._history.setdefault(key, []).append((revision, after))

    def _at(self, key: str, revision: int) -> KeyValue | None:
        versions = self._history.get(key)
        if not versions:
            return None
        if versions[-1][0] <= revision:
            return versions[-1][1]
        index = bisect_left(versions, revision + 1, key=lambda version: version[0])
        return versions[index - 1][1] if index else None

    def _check_revision(self, revision: int) -> int:
        if revision > self._revision:
            raise DatastoreError(f"revision {revision} is in the future")
        if revision and revision < self._compacted:
            raise CompactedError(f"revision {revision} has been compacted", compact_revision=self._compacted)
        return revision or self._revision

    def _check_branch(self, branch: Sequence[Operation]) -> None:
        if len(branch) > MAX_OPERATIONS:
            raise DatastoreError("too many operations in txn request")
        written = [operation.key for operation in branch if not isinstance(operation, Get)]
        if len(set(written)) < len(written):
            raise DatastoreError("duplicate key given in txn request")
        if not all(operation.key for operation in branch):
            raise DatastoreError("the key is empty")
        for operation in branch:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise DatastoreError("requested lease not found")

    def _enter(self) -> None:
        self._refuse_closed()
        self.expire()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UnavailableError("the store was closed")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _order(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _mod_revision(kv: KeyValue | None) -> int:
    return kv.mod_revision if kv else 0
