"""Tells the cluster how this node's endpoints are, and that its agent is alive: Felix's status keys in the datastore.

Off by default, as in Calico (``EndpointReportingEnabled``, ``ReportingIntervalSecs``). Statuses have no lease, so that
what is stale must be looked for: the node's keys are listed now and then. The heartbeat expires by itself.

Source: Calico ``felix/statusrep/status_reporter.go``, ``felix/daemon/daemon.go``.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from calipy import clock
from calipy.datastore import keys
from calipy.datastore.keys import FelixStatusKey, HostEndpointStatusKey, WorkloadStatusKey
from calipy.datastore.store import Delete, Put, Store
from calipy.felix.messages import EndpointID
from calipy.felix.statuses import EndpointState

_AT_ONCE: Final = 100
"""etcd takes 128 operations in a transaction."""


def desired(
    host: str, region: str, endpoints: Mapping[EndpointID, EndpointState], host_endpoints: Mapping[str, EndpointState]
) -> dict[str, bytes]:
    """What the datastore should say of a node's endpoints: path → value."""
    states = {keys.path(WorkloadStatusKey(host, *identity, region)): state for identity, state in endpoints.items()}
    states |= {keys.path(HostEndpointStatusKey(host, name)): state for name, state in host_endpoints.items()}
    return {path: msgspec.json.encode({"status": state}) for path, state in states.items()}


class StatusReports:
    """Keeps the statuses of one node in the datastore. Calls do not overlap."""

    def __init__(self, store: Store, host: str, *, region: str) -> None:
        """Nothing is read or written yet. ``region`` is ``no-region``, or ``region-`` and OpenStack's name for it."""
        self._store = store
        self._prefixes = (f"{keys.STATUS_V2}{region}/host/{host}/workload/", f"{keys.STATUS_V1}{host}/endpoint/")
        self._written: dict[str, bytes] | None = None

    def recheck(self) -> None:
        """Have the next ``write`` read first, so that it puts right what others changed and what is stale."""
        self._written = None

    async def _read(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for prefix in self._prefixes:
            listing = await self._store.list(prefix)
            found.update((item.key, item.value) for item in listing.items)
        return found

    async def write(self, wanted: Mapping[str, bytes]) -> bool:
        """Bring the datastore nearer to what is ``wanted``, by one transaction of at most 100 keys.

        Returns:
            Whether more is to be written.

        Raises:
            DatastoreError: it cannot be read or written; what happened is not known, the next call reads first.
        """
        written, self._written = self._written, None
        if written is None:
            written = await self._read()
        puts = (Put(path, value) for path, value in wanted.items() if written.get(path) != value)
        changes = [*islice(puts, _AT_ONCE)]
        deletes = [Delete(path) for path in islice(written.keys() - wanted.keys(), _AT_ONCE - len(changes))]
        if changes or deletes:
            await self._store.txn((), (*changes, *deletes))
        written.update((change.key, change.value) for change in changes)
        for gone in deletes:
            del written[gone.key]
        self._written = written
        return len(changes) + len(deletes) == _AT_ONCE


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life: wall clock, seconds since the agent started, whether it is its first."""

    time: datetime.datetime
    uptime: float
    first: bool


async def report_alive(store: Store, host: str, beat: Heartbeat, *, region: str, ttl: float) -> None:
    """Say that the agent of ``host`` is alive: once for ``ttl`` seconds, under a lease of its own, once for good.

    Raises:
        DatastoreError: it cannot be written.
    """
    value = msgspec.json.encode({"time": clock.rfc3339(beat.time), "uptime": beat.uptime, "first_update": beat.first})
    lease = await store.grant_lease(max(math.ceil(ttl), 1))
    await store.put(keys.path(FelixStatusKey(host, region)), value, lease=lease)
    await store.put(keys.path(FelixStatusKey(host, region, last_reported=True)), value)
