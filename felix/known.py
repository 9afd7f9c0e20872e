"""What the graph has said so far, how much of it is in force, and which endpoint has which interface. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from calipy.felix.messages import ActivePolicy, ActiveProfile, Changes, EndpointID, PolicyID, Pool, WorkloadEndpoint
from calipy.felix.ownership import is_workload_interface

_K = TypeVar("_K")
_V = TypeVar("_V")


class Known:
    """Changes that wait, and the sum of those that have been taken.

    Attributes:
        pending: what has not been taken yet, oldest first.
        in_sync: whether a complete snapshot is among all that has been said.
        endpoints: workload endpoints of this node, as taken.
        unusable: those that are treated as absent → why.
        unapplied: workload endpoints of which something is not in the kernel yet.
        unapplied_hosts: likewise host endpoints.
    """

    def __init__(self) -> None:
        self.pending: deque[Changes] = deque()
        self.in_sync = False
        self.endpoints: dict[EndpointID, WorkloadEndpoint] = {}
        self.unusable: dict[EndpointID, str] = {}
        self.unapplied: set[EndpointID] = set()
        self.unapplied_hosts: set[str] = set()
        self._policies: dict[PolicyID, ActivePolicy] = {}
        self._profiles: dict[str, ActiveProfile] = {}
        self._pools: dict[str, Pool] = {}
        self._services: tuple[str, ...] = ()
        self._claims: dict[str, set[EndpointID]] = {}

    def expect(self, changes: Changes) -> None:
        """Changes that are to be taken; their endpoints are not in force from now on."""
        self.pending.append(changes)
        self.unapplied |= changes.endpoints.keys()
        self.unapplied_hosts |= changes.host_endpoints.keys()
        self.in_sync = self.in_sync or changes.in_sync

    def applied(self) -> None:
        """All that has been taken is in the kernel, or was refused there."""
        self.unapplied = {identity for changes in self.pending for identity in changes.endpoints}
        self.unapplied_hosts = {name for changes in self.pending for name in changes.host_endpoints}

    def take(self, changes: Changes, prefixes: tuple[str, ...]) -> tuple[Changes, set[str]]:
        """Add changes to the sum. Cost: their size.

        Args:
            changes: what the graph says.
            prefixes: what the names of pods' interfaces begin with; endpoints with others count as absent, for nothing
                may be done to the node's own ones.

        Returns:
            The changes as they are to be carried out, and the interfaces whose ``holder`` may be another one.
        """
        changes = self._without_unusable(changes, prefixes)
        _merge(self._policies, changes.policies)
        _merge(self._profiles, changes.profiles)
        _merge(self._pools, changes.pools)
        self._services = changes.services if changes.services is not None else self._services
        touched: set[str] = set()
        for identity, endpoint in changes.endpoints.items():
            touched |= self._claim(identity, endpoint)
        return changes, touched

    def holder(self, interface: str) -> EndpointID | None:
        """The endpoint that has an interface: of several that claim it, the first by name."""
        return min(self._claims.get(interface, ()), default=None)

    def sum(self) -> Changes:
        """All that has been taken, as one change; host endpoints are kept by their edge."""
        return Changes(
            policies=dict(self._policies),
            profiles=dict(self._profiles),
            endpoints=dict(self.endpoints),
            pools=dict(self._pools),
            services=self._services,
        )

    def _without_unusable(self, changes: Changes, prefixes: tuple[str, ...]) -> Changes:
        endpoints = dict(changes.endpoints)
        for identity, endpoint in changes.endpoints.items():
            self.unusable.pop(identity, None)
            if endpoint is not None and not is_workload_interface(endpoint.interface, prefixes):
                self.unusable[identity] = f"interface {endpoint.interface!r} does not begin with {', '.join(prefixes)}"
                endpoints[identity] = None
        return replace(changes, endpoints=endpoints) if self.unusable else changes

    def _claim(self, identity: EndpointID, endpoint: WorkloadEndpoint | None) -> set[str]:
        touched = set()
        old = self.endpoints.pop(identity, None)
        if old is not None:
            touched.add(old.interface)
            self._claims[old.interface].discard(identity)
            if not self._claims[old.interface]:
                del self._claims[old.interface]
        if endpoint is not None:
            touched.add(endpoint.interface)
            self.endpoints[identity] = endpoint
            self._claims.setdefault(endpoint.interface, set()).add(identity)
        return touched


def _merge(kept: dict[_K, _V], new: Mapping[_K, _V | None]) -> None:
    for key, value in new.items():
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value
