"""Which nodes a restart need not wait for: those that the datastore has reported, and does no more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from calipy.bgp import liveness
from calipy.datastore import keys
from calipy.datastore.memory import MemoryStore
from calipy.datastore.store import Compare, Operation, TxnResult
from calipy.errors import UnavailableError


@pytest.mark.parametrize(
    ("own", "alive", "reported", "is_dead"),
    [
        (True, False, True, True),
        (True, True, True, False),
        (True, False, False, False),  # it has never reported: its Felix may not be one that does
        (False, False, True, False),  # nobody reports any more, or we have only just started
        (True, True, False, False),
    ],
)
def test_a_node_is_dead_only_for_sure(own: bool, alive: bool, reported: bool, is_dead: bool) -> None:
    """Whatever is missing makes it unknown, which is as good as alive."""
    assert liveness.dead(own, [("n2", alive, reported)]) == (frozenset({"n2"}) if is_dead else frozenset())


class Away(MemoryStore):
    """A store that does not answer."""

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        raise UnavailableError("no answer")


async def test_many_nodes_are_looked_at() -> None:
    """More than fit into one transaction, each by its own keys; none while the datastore is away."""
    store = MemoryStore()
    names = [f"n{number}" for number in range(2, 200)]
    for name in ["n1", *names]:
        await store.put(keys.path(keys.FelixStatusKey(name, last_reported=True)), b"{}")
        if name not in ("n77", "n150"):
            await store.put(keys.path(keys.FelixStatusKey(name)), b"{}")
    assert await liveness.look(store, "n1", names) == {"n77", "n150"}
    assert await liveness.look(store, "n1", []) == frozenset()
    assert await liveness.look(store, "n77", names) == frozenset()
    assert await liveness.look(Away(), "n1", names) == frozenset()
