"""Chains of one table that several users may share, each kept as long as one of them needs it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from calipy.felix.delta import Table
from calipy.felix.render.rule import Chain


class Offers:
    """What is offered to a table on behalf of whom. Chains of one name are taken to be equal."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._names: dict[str, frozenset[str]] = {}
        self._users: Counter[str] = Counter()

    def __contains__(self, user: str) -> bool:
        return user in self._names

    def replace(self, user: str, chains: Iterable[Chain]) -> None:
        """Offer ``chains`` for a user, and no longer what was offered for it before. O(both)."""
        names = set()
        for chain in chains:
            self._table.put(chain)
            names.add(chain.name)
        old = self._names.pop(user, frozenset())
        if names:
            self._names[user] = frozenset(names)
        self._users.update(names - old)
        for name in old - names:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self._table.drop(name)
