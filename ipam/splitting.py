"""Cutting a pool into equal parts without touching its addresses.

Source: calicoctl/commands/ipam/split.go. Calico makes the parts one by one while the whole still exists; here the parts
appear and the whole goes in one transaction, so at no time do pools overlap or addresses lie in none.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import uuid
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from calipy import clock
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.keys import path
from calipy.datastore.store import Compare, Delete, Operation, Put, Store
from calipy.errors import InvalidInputError
from calipy.ipam.errors import IPAMError, TooManyConflictsError, UnknownPoolError
from calipy.ipam.pools import pool_of

MAX_PARTS = 64
"""What fits into one transaction with room to spare."""


class NotLockedError(IPAMError):
    """Pools are only split while nobody assigns addresses."""

    def __init__(self) -> None:
        super().__init__(
            "the datastore is not locked",
            remedy="lock it (calicoctl datastore migrate lock), split, and unlock it again",
        )


def parts_of(resource: Any, count: int) -> list[Any]:
    """The parts, as new IPPools named ``split-<name>-<n>``. Pure.

    Raises:
        InvalidInputError: not a power of two, or the parts would be smaller than a block.
    """
    pool = pool_of(resource)
    bits = count.bit_length() - 1
    if count < 2 or count > MAX_PARTS or count != 1 << bits:
        raise InvalidInputError(f"must be a power of two from 2 to {MAX_PARTS}", field="number of parts", value=count)
    if pool.network.prefixlen + bits > pool.block_size:
        raise InvalidInputError(
            f"a part of {pool} would be smaller than a block (/{pool.block_size})", field="number of parts", value=count
        )
    networks = pool.network.subnets(prefixlen_diff=bits)
    return [
        codec.new(
            "IPPool",
            f"split-{pool.name}-{index}",
            replace(resource.spec, cidr=str(network), disabled=False),
        )
        for index, network in enumerate(networks)
    ]


async def split(
    store: Store,
    count: int,
    *,
    name: str | None = None,
    cidr: str | None = None,
    now: Callable[[], datetime.datetime] = clock.wall,
    settle: float = 0.5,
) -> list[Any]:
    """Replace a pool by its parts; the parts. Blocks and addresses stay as they are.

    Args:
        store: the datastore; must be locked (``ClusterInformation.spec.datastoreReady`` false).
        count: number of parts, a power of two.
        name: of the pool; or
        cidr: of the pool.
        now: creation time of the parts.
        settle: seconds for requests under way, after the pool was disabled.

    Raises:
        NotLockedError, UnknownPoolError, InvalidInputError: nothing was changed.
        TooManyConflictsError: the pool was changed meanwhile; it stays disabled.
    """
    client = Client(store, now=now)
    information = await client.get("ClusterInformation", "default")
    if information is None or information.spec.datastore_ready is not False:
        raise NotLockedError
    pools = await client.list("IPPool")
    found = next((p for p in pools if (p.name == name if name is not None else _is(p, cidr))), None)
    if found is None:
        raise UnknownPoolError(name or cidr or "", [p.name for p in pools])
    parts = parts_of(found, count)
    if not found.spec.disabled:
        found = await client.replace(replace(found, spec=replace(found.spec, disabled=True)))
        await asyncio.sleep(settle)
    created = clock.rfc3339(now())
    stored = [
        replace(p, metadata=replace(p.metadata, uid=str(uuid.uuid4()), creation_timestamp=created)) for p in parts
    ]
    then: list[Operation] = [Put(path(p.key), codec.encode(p)) for p in stored]
    result = await store.txn(
        [Compare(path(found.key), found.revision), *(Compare(path(p.key), 0) for p in stored)],
        [*then, Delete(path(found.key))],
    )
    if not result.succeeded:
        raise TooManyConflictsError(f"splitting pool {found.name}", 1)
    return stored


def _is(resource: Any, cidr: str | None) -> bool:
    try:
        return cidr is not None and ipaddress.ip_network(resource.spec.cidr) == ipaddress.ip_network(cidr)
    except ValueError:
        return False
