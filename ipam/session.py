"""One operation on the datastore: read what is missing, decide elsewhere, write under guards.

This is the only module of address management that talks to the store.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from calipy import clock
from calipy.datastore import codec
from calipy.datastore.ipam import IPAMConfig
from calipy.datastore.keys import (
    BlockAffinityKey,
    BlockKey,
    IPAMConfigKey,
    IPAMHostKey,
    Key,
    ResourceKey,
    affinity_prefix,
    blocks_prefix,
    parse,
    resource_prefix,
)
from calipy.datastore.keys import path as make_path
from calipy.datastore.store import Compare, Delete, Get, KeyValue, Operation, Put, Store
from calipy.errors import UnavailableError, UndecodableError
from calipy.ipam.errors import TooManyConflictsError
from calipy.ipam.pools import Start
from calipy.ipam.view import ABSENT, Known, View
from calipy.net import Family

path = functools.lru_cache(maxsize=8192)(make_path)
"""Paths, remembered: a host writes the same few keys all the time."""

MAX_TRIES = 100
"""As often as Calico tries before it gives up."""
_MAX_READS = 100


@dataclass(frozen=True, slots=True)
class Environment:
    """What does not change between operations.

    Attributes:
        owner: name of the node, or of a virtual owner.
        affinity_type: ``host`` or ``virtual``.
        defaults: settings for a store without any.
        start: where the search for a free block begins.
        now: wall clock, UTC.
        nanoseconds: wall clock in nanoseconds, for new blocks.
    """

    owner: str
    affinity_type: str
    defaults: IPAMConfig
    start: Start
    now: Callable[[], datetime.datetime] = clock.wall
    nanoseconds: Callable[[], int] = clock.unix_nanoseconds

    @property
    def owner_text(self) -> str:
        """As it stands in ``Block.affinity``."""
        return f"{self.affinity_type}:{self.owner}"

    def affinity_key(self, cidr: str) -> BlockAffinityKey:
        """The key of the owner's claim on a block."""
        return BlockAffinityKey(self.owner, cidr, self.affinity_type)


class Session:
    """The state of one operation.

    Args:
        store: where everything is.
        environment: who acts.
        watched: the view that a watch feeds, or None. What the session learns and writes is told to it.
        rely_on_it: start from the watched view; otherwise read what is needed.
    """

    def __init__(
        self, store: Store, environment: Environment, watched: View | None = None, *, rely_on_it: bool = False
    ) -> None:
        self._store = store
        self._watched = watched
        self.environment = environment
        self._relied = watched is not None and rely_on_it
        self.view = watched if watched is not None and rely_on_it else self._new_view()

    def _new_view(self) -> View:
        return View(self.environment.owner, self.environment.affinity_type)

    @property
    def is_live(self) -> bool:
        """Whether the operation still runs on watched state."""
        return self.view is self._watched

    def read_afresh(self) -> None:
        """Forget the watched state and read from here on: before saying no, look twice."""
        self.view = self._new_view()

    @property
    def config(self) -> IPAMConfig:
        """The settings in force. Raises ``UndecodableError``: nobody may guess whether borrowing is allowed."""
        known = self.known(IPAMConfigKey())
        if known.value is None and known.revision:
            raise UndecodableError("the settings of address management cannot be read", key=path(IPAMConfigKey()))
        stored: IPAMConfig | None = known.value
        return self.environment.defaults if stored is None else stored

    @property
    def cooldown(self) -> datetime.timedelta:
        """How long a released address stays unused."""
        return datetime.timedelta(seconds=max(0, self.config.cooldown_seconds))

    def node_labels(self) -> Mapping[str, str] | None:
        """Labels of the owner's Node; None if there is no Node."""
        known = self.known(ResourceKey("Node", self.environment.owner))
        return known.value.metadata.labels if known.value is not None else None

    def known(self, key: Key) -> Known[Any]:
        """What is known of a key that was asked for with ``need`` before."""
        return self.view.known(key) or ABSENT

    def assume_absent(self, key: Key) -> None:
        """Take a key for absent unless something is known of it; the guard of the write finds out."""
        if self.view.known(key) is None:
            self.view.note(key, None, revision=0, seen=0)

    async def need(self, *keys: Key) -> None:
        """Read those of the keys of which nothing is known yet, in one round trip a hundred."""
        missing = [key for key in dict.fromkeys(keys) if self.view.known(key) is None]
        for first in range(0, len(missing), _MAX_READS):
            chunk = missing[first : first + _MAX_READS]
            result = await self._store.txn([], [Get(path(key)) for key in chunk])
            for key, kv in zip(chunk, result.reads, strict=True):
                self._note(key, kv, result.revision)

    async def need_selection(self, family: Family) -> None:
        """Read what choosing a pool takes: settings, node, pools, reservations and the owner's affinities."""
        if self.is_live and self.view.has("everything"):
            return
        owner, kind = self.environment.owner, self.environment.affinity_type
        await asyncio.gather(
            self.need(IPAMConfigKey(), *([ResourceKey("Node", owner)] if kind == "host" else [])),
            self._list("pools", resource_prefix("IPPool")),
            self._list("reservations", resource_prefix("IPReservation")),
            self._list(f"affinities{family}", affinity_prefix(owner, family, kind)),
        )

    async def need_pools(self) -> None:
        """Read all pools."""
        await self._list("pools", resource_prefix("IPPool"))

    async def need_affinities(self, family: Family) -> None:
        """Read the owner's affinities of a family."""
        owner, kind = self.environment.owner, self.environment.affinity_type
        await self._list(f"affinities{family}", affinity_prefix(owner, family, kind))

    async def need_blocks(self, family: Family) -> None:
        """Read all blocks of a family. O(blocks)."""
        await self._list(f"blocks{family}", blocks_prefix(family))

    async def _list(self, name: str, prefix: str) -> None:
        if self.view.has(name):
            return
        view = self.view
        listing = await self._store.list(prefix)
        for kv in listing.items:
            key = parse(kv.key)
            # A key in another spelling than ours is not the object that we would write: leave it alone.
            if key is not None and path(key) == kv.key:
                self._note(key, kv, listing.revision)
        view.complete.add(name)

    def _note(self, key: Key, kv: KeyValue | None, seen: int) -> None:
        value = None
        if kv is not None and not isinstance(key, IPAMHostKey):
            try:
                value = codec.decode(key, kv.value, kv.mod_revision)
            except UndecodableError:
                value = None  # it exists, so nobody else may take its place; the syncer reports it
        self._tell(key, value, kv.mod_revision if kv is not None else 0, seen)

    def _tell(self, key: Key, value: Any, revision: int, seen: int) -> None:
        self.view.note(key, value, revision=revision, seen=seen)
        if self._watched is not None and not self.is_live and self._watched.wants(key):
            self._watched.note(key, value, revision=revision, seen=seen)

    async def commit(
        self, changes: Mapping[Key, Any], *, guards: Iterable[Key] = (), recognisable: bool = True
    ) -> bool:
        """Write all changes in one transaction, if everything they were decided from is still so.

        Args:
            changes: key → new value, or None to delete it. Each is guarded with what is known of it.
            guards: further keys that must not have changed.
            recognisable: if the blocks are found as they were to be written, it does not matter who wrote them. Not so
                for an assignment, unless its attributes occur in no other request.

        Returns:
            True if written; the view knows the new values. False if somebody was faster; the view knows the present
            values of all these keys, so the decision can be taken again.

        Raises:
            UnavailableError: nobody answered, and a second look did not show that it was written. It may still be.
        """
        paths = {key: path(key) for key in (*changes, *guards)}
        compares = [Compare(place, self.known(key).revision) for key, place in paths.items()]
        encoded = {key: codec.encode(value) for key, value in changes.items() if value is not None}
        then: list[Operation] = [
            Put(paths[key], encoded[key]) if value is not None else Delete(paths[key]) for key, value in changes.items()
        ]
        reads = [Get(place) for place in paths.values()]
        try:
            result = await self._store.txn(compares, then, reads)
        except UnavailableError:
            if not recognisable or not await self._was_written(encoded):
                raise
            return True
        if not result.succeeded:
            for key, kv in zip(paths, result.reads, strict=True):
                self._note(key, kv, result.revision)
            return False
        for key, value in changes.items():
            self._tell(key, value, result.revision if value is not None else 0, result.revision)
        return True

    async def _was_written(self, encoded: Mapping[Key, bytes]) -> bool:
        """Look whether a write of unknown outcome was done: whether the blocks are what they should have become."""
        blocks = {key: text for key, text in encoded.items() if isinstance(key, BlockKey)}
        if not blocks:
            return False
        result = await self._store.txn([], [Get(path(key)) for key in encoded])
        found = dict(zip(encoded, result.reads, strict=True))
        for key, kv in found.items():
            self._note(key, kv, result.revision)
        return all((kv := found[key]) is not None and kv.value == text for key, text in blocks.items())

    def close(self) -> None:
        """Leave nothing behind in the watched state that no watch keeps up to date."""
        if self._relied and self._watched is not None:
            self._watched.forget_passing()


class Attempts:
    """Counts lost races of one decision, and waits a little from the third on.

    Args:
        what: the decision, for the error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lost = 0

    async def lost(self) -> None:
        """Another writer was faster. Raises ``TooManyConflictsError`` when it was so too often."""
        self._lost += 1
        if self._lost >= MAX_TRIES:
            raise TooManyConflictsError(self._what, self._lost)
        if self._lost >= 3:
            ceiling = min(0.05, 0.002 * self._lost)
            await asyncio.sleep(random.uniform(0.001, ceiling))  # noqa: S311 - jitter, not a secret
