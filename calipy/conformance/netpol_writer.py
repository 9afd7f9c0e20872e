"""Brings a datastore from one cluster's objects to another's, as the writers of a real cluster do: object by object."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Iterable
from typing import Any, Final

from msgspec.structs import replace

from calipy import clock
from calipy.conformance.bench import Bench
from calipy.conformance.netpol_case import Cluster
from calipy.datastore import codec, defaults
from calipy.datastore.codec import new
from calipy.datastore.keys import RESOURCES, ResourceKey, path
from calipy.datastore.resources import FelixConfigurationSpec, Resource
from calipy.errors import InvalidInputError, NotFoundError
from calipy.net import IPAddress

Objects = dict[ResourceKey, Resource[Any, Any]]

_REFUSED: Final = (InvalidInputError, NotFoundError)
_POLICIES: Final = frozenset({"NetworkPolicy", "GlobalNetworkPolicy"})


def objects(cluster: Cluster, interfaces: dict[IPAddress, str]) -> Objects:
    """Everything that a cluster has in the datastore, with the interfaces that its pods really have, by address.

    The action for pods that talk to their node is given per node, where a node's own start leaves Calico's default.
    """
    found: Objects = {}
    for resource in cluster.resources():
        placed = resource
        if resource.kind == "WorkloadEndpoint":
            pod = cluster.site(f"{resource.metadata.namespace}/{resource.spec.pod}")
            name = next(interfaces[address] for address in pod.addresses.values() if address in interfaces)
            placed = replace(resource, spec=replace(resource.spec, interface_name=name))
        found[placed.key] = placed
    for node in cluster.nodes:
        spec = FelixConfigurationSpec(default_endpoint_to_host_action=cluster.endpoint_to_host)
        config = new("FelixConfiguration", f"node.{node}", spec)
        found[config.key] = config
    return found


class Writer:
    """Writes differences. Knows what it has written; objects that others made stay, or come back when done with.

    Attributes:
        notes: objects that the client refuses, and why. The API server of a real cluster may take them, so they are
            stored all the same: the agents have to cope.
    """

    def __init__(self, bench: Bench) -> None:
        """For a store that only this writer and the agents under test write to."""
        self.notes: list[str] = []
        self._bench = bench
        self._present: Objects = {}
        self._original: Objects = {}

    async def begin(self) -> None:
        """Note the tiers that every cluster has."""
        self._original = {tier.key: tier for tier in await self._bench.client.list("Tier")}

    async def write(self, wanted: Objects) -> int:
        """Bring the store to ``wanted``; the revision at which it is there, 0 if there was nothing to do.

        Raises:
            DatastoreError: it did not work; everything else is written.
        """
        gone = [key for key in self._present if key not in wanted]
        changed = [one for key, one in wanted.items() if self._present.get(key) != one]
        policies, others = _split(gone)
        await _all(self._remove(key) for key in policies)
        await _all(self._remove(key) for key in others)
        tiers = [one for one in changed if one.kind == "Tier"]
        policies, _ = _split(one.key for one in changed)
        await _all(self._apply(one) for one in tiers)
        await _all(self._apply(one) for one in changed if one.kind != "Tier" and one.kind not in _POLICIES)
        await _all(self._apply(wanted[key]) for key in policies)
        events = await self._bench.take_events()
        return max((event.revision for event in events if event.key.startswith(RESOURCES)), default=0)

    async def _apply(self, resource: Resource[Any, Any]) -> None:
        try:
            await self._bench.client.apply(resource)
        except _REFUSED as refusal:
            self.notes.append(f"{resource.key} is stored although the client refuses it: {refusal}")
            metadata = replace(resource.metadata, uid=str(uuid.uuid4()), creation_timestamp=clock.rfc3339(clock.wall()))
            stored = defaults.fill(replace(resource, metadata=metadata))
            await self._bench.store.put(path(resource.key), codec.encode(stored))
        self._present[resource.key] = resource

    async def _remove(self, key: ResourceKey) -> None:
        if key in self._original:
            await self._bench.client.apply(replace(self._original[key], revision=0))
            del self._present[key]
            return
        try:
            await self._bench.client.delete(key.kind, key.name, key.namespace)
        except _REFUSED as refusal:
            self.notes.append(f"{key} is deleted although the client refuses it: {refusal}")
            await self._bench.store.delete(path(key))
        del self._present[key]


def _split(keys: Iterable[ResourceKey]) -> tuple[list[ResourceKey], list[ResourceKey]]:
    """Policies, and the rest."""
    every = list(keys)
    return [key for key in every if key.kind in _POLICIES], [key for key in every if key.kind not in _POLICIES]


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Do all; then raise the first failure."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
