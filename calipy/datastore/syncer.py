"""List, then watch: turns a store into ordered updates of typed values that end, after any fault, in the store's state.

The shape of ``libcalico-go/lib/backend/watchersyncer``: an update per changed key, in-sync after each complete listing,
deletions that were missed during a gap made up for, a value that cannot be decoded reported as absent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeAlias

from calipy import log
from calipy.datastore import codec, keys
from calipy.datastore.store import KeyValue, Store
from calipy.errors import CompactedError, DatastoreError, UndecodableError

CHUNK = 500
"""Updates of a listing per batch: what is decoded before the event loop gets its turn."""

BACKOFF_BASE = 0.1
BACKOFF_CAP = 2.0
"""Seconds: the first and the longest pause between two attempts to reach the store."""

logger = log.get("syncer")


@dataclass(frozen=True, slots=True)
class Update:
    """One key's new state.

    Attributes:
        key: what changed.
        value: None when it is gone or cannot be decoded.
        revision: of the write, or of the deletion; for a deletion found by listing that of the listing.
        error: why ``value`` is None although the key exists.
    """

    key: keys.Key
    value: codec.Value | None
    revision: int
    error: UndecodableError | None = None


@dataclass(frozen=True, slots=True)
class InSync:
    """Everything that was in the store at ``revision`` has been handed over. Comes after each complete listing."""

    revision: int


@dataclass(frozen=True, slots=True)
class Status:
    """How the syncer stands with the store.

    ``connected``: updates flow. ``disconnected``: the store cannot be reached or refuses, see ``detail``; what was
    handed over so far stays as it is, and the syncer goes on trying. ``resync``: the history was lost and everything is
    listed anew; the differences follow.
    """

    state: Literal["connected", "disconnected", "resync"]
    detail: str = ""


SyncEvent: TypeAlias = Update | InSync | Status


def backoff(attempt: int, chance: float) -> float:
    """Seconds to wait before the next attempt: doubling from ``BACKOFF_BASE`` to ``BACKOFF_CAP``, then spread.

    Args:
        attempt: failures so far, from 0.
        chance: from 0 to 1; spreads the nodes of a cluster over the second half of the time.
    """
    longest: float = min(BACKOFF_CAP, BACKOFF_BASE * 2 ** min(attempt, 16))
    return longest * (0.5 + chance / 2)


class Syncer:
    """Follows all keys under some prefixes.

    Keeps one integer per key, so that after a gap only differences are handed over. Keys that ``parse`` does not know
    are ignored. An event costs O(1) and one ``decode``; a listing costs O(keys) and one ``decode`` per changed key.

    Args:
        store: where to look.
        prefixes: what to follow; listed in this order.
        parse: path to typed key, None for keys of other owners.
        decode: key, bytes and revision to value; raises ``UndecodableError``.
        sleep: how to wait between attempts.
        chance: from 0 to 1, anew each time.

    Attributes:
        problems: per path, why its value cannot be decoded; always of the state handed over.
        state: as told by the last ``Status``; ``disconnected`` before the first.
    """

    def __init__(
        self,
        store: Store,
        prefixes: Sequence[str],
        *,
        parse: Callable[[str], keys.Key | None] = keys.parse,
        decode: Callable[[keys.Key, bytes, int], codec.Value] = codec.decode,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.problems: dict[str, UndecodableError] = {}
        self.state: Literal["connected", "disconnected", "resync"] = "disconnected"
        self._store = store
        self._prefixes = tuple(prefixes)
        self._parse = parse
        self._decode = decode
        self._sleep = sleep
        self._chance = chance
        self._detail: str | None = None
        self._attempt = 0
        self._position = 0  # everything up to this revision was handed over; 0: list first
        self._known: dict[str, int] = {}
        # Deletions newer than the position: a resumed watch may tell older events of their keys again.
        self._gone: dict[str, int] = {}

    async def run(self) -> AsyncGenerator[list[SyncEvent], None]:
        """Batches of events, for ever; each is counted as handed over when it is given out.

        Never fails for what the store does: it tells ``Status`` and tries again. Leaving the iteration closes the
        watch.
        """
        while True:
            try:
                steps = [self._watch()] if self._position else [self._list(), self._watch()]
                for step in steps:
                    async with aclosing(step) as batches:
                        async for batch in batches:
                            yield batch
            except CompactedError as error:
                self._position = 0
                for batch in self._become("resync", str(error)):
                    yield batch
            except DatastoreError as error:
                for batch in self._become("disconnected", str(error)):
                    yield batch
            pause = backoff(self._attempt, self._chance())
            self._attempt += 1
            await self._sleep(pause)

    async def _list(self) -> AsyncGenerator[list[SyncEvent], None]:
        """List every prefix at one revision and hand over what differs from what was handed over before."""
        first = await self._store.list(self._prefixes[0])
        revision = first.revision
        others = [await self._store.list(prefix, revision=revision) for prefix in self._prefixes[1:]]
        found = {kv.key: kv for listing in (first, *others) for kv in listing.items}
        if self._known and revision < max(self._known.values()):
            # The store was restored from an older copy: equal revisions no longer mean equal values.
            self._known = dict.fromkeys(self._known, 0)
        for batch in self._become("connected"):
            yield batch
        # Deletions go first: what replaces a key, such as a pod that took over an address, must find the place free.
        gone: list[SyncEvent] = [
            update for path in [*self._known] if path not in found for update in self._remove(path, revision)
        ]
        self._gone.clear()
        if gone:
            yield gone
        changed = [kv for kv in found.values() if self._known.get(kv.key) != kv.mod_revision]
        for start in range(0, len(changed), CHUNK):
            updates: list[SyncEvent] = [*self._put(changed[start : start + CHUNK])]
            if updates:
                yield updates
            await asyncio.sleep(0)
        self._position = revision
        yield [InSync(revision)]

    async def _watch(self) -> AsyncGenerator[list[SyncEvent], None]:
        """Follow the changes since the position until the watch fails."""
        async with aclosing(self._store.watch(self._prefixes, start_revision=self._position + 1)) as batches:
            async for batch in batches:
                self._attempt = 0
                for status in self._become("connected"):
                    yield status
                updates: list[SyncEvent] = []
                for event in batch.events:
                    if event.revision <= self._known.get(event.key, self._gone.get(event.key, 0)):
                        continue
                    if event.kv is None:
                        updates.extend(self._remove(event.key, event.revision))
                    else:
                        updates.extend(self._put([event.kv]))
                if batch.revision > self._position:
                    self._position = batch.revision
                    if self._gone:
                        self._gone = {key: at for key, at in self._gone.items() if at > batch.revision}
                if updates:
                    yield updates

    def _put(self, kvs: Iterable[KeyValue]) -> Iterable[Update]:
        for kv in kvs:
            key = self._parse(kv.key)
            if key is None:
                continue
            self._known[kv.key] = kv.mod_revision
            self._gone.pop(kv.key, None)
            try:
                value = self._decode(key, kv.value, kv.mod_revision)
            except Exception as error:
                problem = error if isinstance(error, UndecodableError) else _unexpected(kv.key, error)
                self.problems[kv.key] = problem
                logger.warning("value cannot be decoded", key=kv.key, reason=str(problem))
                yield Update(key, None, kv.mod_revision, problem)
            else:
                self.problems.pop(kv.key, None)
                yield Update(key, value, kv.mod_revision)

    def _remove(self, path: str, revision: int) -> Iterable[Update]:
        self._gone[path] = revision
        if self._known.pop(path, None) is not None:
            self.problems.pop(path, None)
            key = self._parse(path)
            assert key is not None
            yield Update(key, None, revision)

    def _become(self, state: Literal["connected", "disconnected", "resync"], detail: str = "") -> list[list[SyncEvent]]:
        """At most one batch: the status, if it is news."""
        if (state, detail) == (self.state, self._detail):
            return []
        self.state, self._detail = state, detail
        return [[Status(state, detail)]]


def _unexpected(path: str, error: Exception) -> UndecodableError:
    """A decoder that trips over a value must not stop the others."""
    return UndecodableError(f"{type(error).__name__}: {error}", key=path)
