"""The ``Store`` protocol: what every datastore edge offers, in etcd v3's terms.

Two implementations pass the same contract tests: ``calipy.datastore.etcd.EtcdStore`` and
``calipy.datastore.memory.MemoryStore`` (for pure tests only). Keys are text, values are bytes, revisions are etcd's
store-wide integers. Everything is asynchronous and runs in one event loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as stored. ``version`` counts writes since creation (1 = just created); ``lease`` is 0 for none."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    version: int = 1
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys under a prefix, in key order, as they were at ``revision`` (all pages read at that one revision)."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change. ``kv`` for a put; for a delete ``kv`` is None, and ``prev`` the old value if not yet compacted."""

    type: Literal["put", "delete"]
    key: str
    revision: int
    kv: KeyValue | None = None
    prev: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events in order of revision; all events of one revision come in one batch.

    Attributes:
        revision: safe to resume from ``revision + 1``: up to it nothing was missed. That of the last event; in a watch
            over several prefixes on a real server it may lie before, and the events between come again on resuming.
            A batch without events only moves it on.
    """

    events: tuple[Event, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """A guard of a transaction: ``key`` has this ``mod_revision`` (0 = the key does not exist)."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. ``lease`` 0 = none."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one key; removing an absent one is no error."""

    key: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key inside the transaction."""

    key: str


Operation: TypeAlias = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Outcome of a transaction.

    Attributes:
        succeeded: all guards held and ``then`` was done; else ``otherwise`` was done.
        revision: store revision after it; that of every key it wrote.
        reads: results of the ``Get`` operations that ran, in order; None for an absent key.
    """

    succeeded: bool
    revision: int
    reads: tuple[KeyValue | None, ...] = ()


class Store(Protocol):
    """etcd v3, as far as calipy needs it.

    Every call has a deadline of its own and raises ``errors.UnavailableError`` when it passes; a write that meets it
    has an unknown outcome. ``errors.AccessDeniedError`` means that the credentials are refused. All other failures are
    ``errors.DatastoreError``.
    """

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """One key, now or at a past ``revision``; None if absent.

        Raises ``CompactedError`` for a revision that is gone.
        """
        ...

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        """Every key that starts with ``prefix``, read in pages at one revision. O(result)."""
        ...

    def watch(self, prefixes: Sequence[str], *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Follow all changes under the prefixes from ``start_revision`` on (inclusive), merged in revision order.

        Never ends by itself: raises ``CompactedError`` when ``start_revision`` is gone (list again), and
        ``UnavailableError`` when the stream broke or stalled (no answer to a progress request), so that the caller
        decides about resuming. Leaving the iteration closes the stream. The first batch is empty: the watch stands.
        """
        ...

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        """If all guards hold do ``then``, else ``otherwise``, atomically. At most 128 operations, one write per key."""
        ...

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key that must not exist; its revision. Raises ``AlreadyExistsError`` with the present value."""
        ...

    async def update(self, key: str, value: bytes, *, revision: int, lease: int = 0) -> int:
        """Write a key that must be at ``revision``; the new one. Raises ``ConflictError`` or ``NotFoundError``."""
        ...

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key whatever is there; its revision."""
        ...

    async def delete(self, key: str, *, revision: int = 0) -> KeyValue:
        """Remove a key, if ``revision`` is given only at that revision; what was there.

        Raises ``NotFoundError`` if absent, ``ConflictError`` if at another revision.
        """
        ...

    async def grant_lease(self, ttl: int) -> int:
        """A new lease of ``ttl`` seconds; its id."""
        ...

    async def close(self) -> None:
        """Free the connection; open watches end with ``UnavailableError``. May be called twice."""
        ...
