"""What a dataplane that obeyed every flush of the graph would hold, with the rules of the road checked on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from calipy.felix.graph.graph import Graph
from calipy.felix.messages import Changes, IPSet, IPSetDelta, Match
from tests.support.objects import Object


@dataclass
class Enforced:
    """Accumulated state; compares by value."""

    ip_sets: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    policies: dict[Any, Any] = field(default_factory=dict)
    profiles: dict[str, Any] = field(default_factory=dict)
    endpoints: dict[Any, Any] = field(default_factory=dict)
    pools: dict[str, Any] = field(default_factory=dict)
    hosts: dict[str, Any] = field(default_factory=dict)
    routes: dict[Any, Any] = field(default_factory=dict)
    vteps: dict[Any, Any] = field(default_factory=dict)
    encapsulation: Any = None
    config: dict[str, str] | None = None

    def apply(self, changes: Changes) -> None:
        """Take one flush. Deltas must fit, removals must hit, and every reference must resolve afterwards."""
        if not changes.in_sync:
            assert not changes, "nothing may be said before in-sync"
            return
        for ident, found in changes.ip_sets.items():
            match found:
                case None:
                    del self.ip_sets[ident]
                case IPSet():
                    self.ip_sets[ident] = (found.type, found.members)
                case IPSetDelta():
                    kind, members = self.ip_sets[ident]
                    assert found.added or found.removed, "an empty delta is noise"
                    assert not found.added & members, "added what was there"
                    assert found.removed <= members, "removed what was not there"
                    self.ip_sets[ident] = (kind, members - found.removed | found.added)
        for name in ("policies", "profiles", "endpoints", "pools", "hosts", "routes", "vteps"):
            present = getattr(self, name)
            for key, value in getattr(changes, name).items():
                if value is None:
                    del present[key]
                else:
                    assert present.get(key) != value, "said what was known"
                    present[key] = value
        if changes.config is not None:
            self.config = changes.config
        if changes.encapsulation is not None:
            assert changes.encapsulation != self.encapsulation, "said what was known"
            self.encapsulation = changes.encapsulation
        self.check()

    def check(self) -> None:
        """References resolve, and nothing is held that nobody refers to."""
        used: set[str] = set()
        for owner in (*self.policies.values(), *self.profiles.values()):
            for rule in (*owner.inbound, *owner.outbound):
                used |= _sets(rule.src) | _sets(rule.dst)
        assert used == set(self.ip_sets)
        named: set[Any] = set()
        for endpoint in self.endpoints.values():
            assert set(endpoint.profiles) <= set(self.profiles)
            for tier in endpoint.tiers:
                named |= {*tier.ingress, *tier.egress}
        assert named <= set(self.policies)
        assert {name for endpoint in self.endpoints.values() for name in endpoint.profiles} == set(self.profiles)


def _sets(match: Match) -> set[str]:
    names = {f.name for f in fields(Match)} & {"ip_sets", "not_ip_sets", "named_ports", "not_named_ports", "services"}
    return {ident for name in names for ident in getattr(match, name)}


def enforce(updates: Iterable[Object], *, hostname: str = "n1") -> Enforced:
    """The state after these updates in one go."""
    graph = Graph(hostname)
    for key, value in updates:
        graph.on_update(key, value)
    graph.on_in_sync()
    state = Enforced()
    state.apply(graph.flush())
    return state
