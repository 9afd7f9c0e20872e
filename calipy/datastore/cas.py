"""Calico's single-key writes, expressed once as transactions; every store inherits them.

``libcalico-go/lib/backend/etcdv3/etcdv3.go`` writes with exactly these guards and reads what is there when one fails.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from calipy.datastore.store import Compare, Delete, Get, KeyValue, Operation, Put, TxnResult
from calipy.errors import AlreadyExistsError, ConflictError, InvalidInputError, NotFoundError


class CompareAndSwap(ABC):
    """``create``, ``update``, ``put`` and ``delete`` of the ``Store`` protocol, on top of its ``txn``."""

    @abstractmethod
    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        """See ``Store.txn``."""

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """See ``Store.create``."""
        result = await self.txn([Compare(key, 0)], [Put(key, value, lease)], [Get(key)])
        if result.succeeded:
            return result.revision
        current = result.reads[0]
        raise AlreadyExistsError(
            f"{key} exists already",
            key=key,
            current=current.value if current else None,
            current_revision=current.mod_revision if current else 0,
        )

    async def update(self, key: str, value: bytes, *, revision: int, lease: int = 0) -> int:
        """See ``Store.update``. ``revision`` must be positive (``InvalidInputError``): 0 would mean "absent"."""
        _require_revision(revision)
        result = await self.txn([Compare(key, revision)], [Put(key, value, lease)], [Get(key)])
        if result.succeeded:
            return result.revision
        raise _lost(key, revision, result.reads[0])

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """See ``Store.put``."""
        return (await self.txn([], [Put(key, value, lease)])).revision

    async def delete(self, key: str, *, revision: int = 0) -> KeyValue:
        """See ``Store.delete``."""
        if revision:
            _require_revision(revision)
            result = await self.txn([Compare(key, revision)], [Get(key), Delete(key)], [Get(key)])
        else:
            result = await self.txn([], [Get(key), Delete(key)])
        found = result.reads[0]
        if result.succeeded and found is not None:
            return found
        raise _lost(key, revision, found)


def _require_revision(revision: int) -> None:
    if revision < 1:
        raise InvalidInputError("must be the mod revision that was read", field="revision", value=revision)


def _lost(key: str, expected: int, current: KeyValue | None) -> ConflictError | NotFoundError:
    if current is None:
        return NotFoundError(f"{key} does not exist", key=key)
    return ConflictError(
        f"{key} is at revision {current.mod_revision}, not {expected}",
        key=key,
        current=current.value,
        current_revision=current.mod_revision,
    )
