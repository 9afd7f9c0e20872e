"""Which nodes of the cluster are known to be dead, so that a restart need not wait for them.

Felix renews ``status`` of its node every 30 s, under a lease of 90 s, and leaves ``last_reported_status`` behind; only
with ``reportingInterval``, which calico/node sets to 0. A node counts as dead if it has reported once, its lease has
run out, and our own has not: then reports are made in this cluster. Whatever else is the case is no answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from calipy.datastore import keys
from calipy.datastore.store import Get, Store
from calipy.errors import DatastoreError

_NODES_PER_READ = 60
"""Two keys each, and ours: a transaction has at most 128 operations."""


def dead(own: bool, reports: Iterable[tuple[str, bool, bool]]) -> frozenset[str]:
    """Names of the nodes that are dead for sure. Pure.

    Args:
        own: this node's ``status`` exists.
        reports: of other nodes: the name, whether ``status`` exists, and whether ``last_reported_status`` does.
    """
    return frozenset(name for name, alive, reported in reports if own and reported and not alive)


async def look(store: Store, hostname: str, names: Iterable[str]) -> frozenset[str]:
    """Which of these nodes are dead; none, if the datastore does not say. O(names), nothing is kept or watched."""
    found: frozenset[str] = frozenset()
    rest = iter(sorted(names))
    while some := list(islice(rest, _NODES_PER_READ)):
        wanted = [keys.FelixStatusKey(hostname)]
        for name in some:
            wanted += [keys.FelixStatusKey(name), keys.FelixStatusKey(name, last_reported=True)]
        try:
            read = (await store.txn((), [Get(keys.path(key)) for key in wanted])).reads
        except DatastoreError:
            return frozenset()
        there = [one is not None for one in read]
        found |= dead(there[0], zip(some, there[1::2], there[2::2], strict=True))
    return found
