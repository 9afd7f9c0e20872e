"""Calico's own client, as far as it shows in etcd: defaults, checks, guards, protected objects and cascades.

Everything is one compare-and-swap per object; only deletions of pools and nodes touch more than one, in Calico's order,
and can be repeated after an interruption. Source: Calico ``libcalico-go/lib/clientv3`` and ``calicoctl/resourcemgr``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from msgspec.structs import replace

from calipy import clock, log
from calipy.datastore import codec, defaults, relations, validation
from calipy.datastore.keys import NAMESPACED, ResourceKey, parse, path, resource_prefix
from calipy.datastore.kinds.cluster import ClusterInformationSpec
from calipy.datastore.kinds.meta import ObjectMeta, Resource
from calipy.datastore.kinds.policy import ProfileSpec
from calipy.datastore.kinds.rules import Rule
from calipy.datastore.store import Store
from calipy.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UndecodableError,
)

AnyResource: TypeAlias = Resource[Any, Any]

ATTEMPTS: Final = 5
"""Times that ``apply`` and ``replace`` start over after losing a race."""

RETRY_PAUSE: Final = 1.0
"""Seconds between them."""

DEFAULT_ALLOW: Final[AnyResource] = Resource(
    kind="Profile",
    metadata=ObjectMeta(name="projectcalico-default-allow", resource_version="1"),
    spec=ProfileSpec(ingress=(Rule(action="Allow"),), egress=(Rule(action="Allow"),)),
    revision=1,
)
"""The profile that exists without being stored."""

_log = log.get("datastore")


class AddressKeeper(Protocol):
    """What deleting a pool or a node needs from IPAM."""

    async def release_ips(self, addresses: Sequence[str]) -> object:
        """Free addresses; unknown ones are no error."""
        ...

    async def release_pool_affinities(self, cidr: str) -> None:
        """Give up all claims on blocks inside the CIDR; blocks in use stay, without owner."""
        ...

    async def remove_host(self, host: str) -> None:
        """Forget a host: its claims and its marker."""
        ...


@dataclass(frozen=True, slots=True)
class ResourceList:
    """Objects of a kind as they were at ``revision``.

    Attributes:
        items: in key order (tiers by their order).
        problems: objects that could not be decoded; Calico's tools silently leave them out.
    """

    items: tuple[AnyResource, ...]
    revision: int
    problems: tuple[UndecodableError, ...] = ()

    def __iter__(self) -> Iterator[AnyResource]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Client:
    """v3 resources in a store.

    Args:
        store: where they are.
        addresses: IPAM, for deleting pools and nodes that have addresses.
        now: source of creation times.
        settle: seconds between disabling a pool and taking its blocks, for allocations under way.
    """

    def __init__(
        self,
        store: Store,
        *,
        addresses: AddressKeeper | None = None,
        now: Callable[[], datetime.datetime] = clock.wall,
        settle: float = 0.5,
    ) -> None:
        self.store = store
        self._addresses = addresses
        self._now = now
        self._settle = settle

    async def get(self, kind: str, name: str, namespace: str = "") -> AnyResource | None:
        """One object by its key; None if absent. Raises ``UndecodableError``."""
        key = _key(kind, name, namespace)
        if key == DEFAULT_ALLOW.key:
            return DEFAULT_ALLOW
        found = await self.store.get(path(key))
        if found is None:
            return None
        return defaults.show(codec.decode_resource(key, found.value, found.mod_revision))

    async def list(self, kind: str, namespace: str = "") -> ResourceList:
        """All objects of a kind (of one namespace)."""
        if namespace:
            _key(kind, "any", namespace)
        listing = await self.store.list(resource_prefix(kind, namespace))
        items, problems = [], []
        for found in listing.items:
            key = parse(found.key)
            if not isinstance(key, ResourceKey):
                continue
            try:
                items.append(defaults.show(codec.decode_resource(key, found.value, found.mod_revision)))
            except UndecodableError as error:
                problems.append(error)
        if kind == "Tier":
            items.sort(key=lambda tier: (_tier_order(tier), tier.metadata.name))
        if kind == "Profile":
            items.append(DEFAULT_ALLOW)
        return ResourceList(tuple(items), listing.revision, tuple(problems))

    async def create(self, resource: AnyResource) -> AnyResource:
        """Write an object that must not exist; what was written.

        Raises:
            InvalidInputError: refused as it is.
            AlreadyExistsError: it exists.
            NotFoundError: the tier of a policy does not exist.
        """
        if resource.revision or resource.metadata.resource_version:
            raise InvalidInputError(
                "must not be given when creating", field="metadata.resourceVersion", value=resource.revision
            )
        if resource.key == DEFAULT_ALLOW.key:
            raise AlreadyExistsError("this profile always exists", key=path(resource.key))
        if resource.kind == "Node":
            await self.ensure_initialised()
        resource = _prepared(resource)
        await relations.check_create(self, resource)
        metadata = replace(
            resource.metadata,
            uid=resource.metadata.uid or str(uuid.uuid4()),
            creation_timestamp=resource.metadata.creation_timestamp or clock.rfc3339(self._now()),
        )
        resource = replace(resource, metadata=metadata)
        return replace(resource, revision=await self.store.create(path(resource.key), codec.encode(resource)))

    async def update(self, resource: AnyResource) -> AnyResource:
        """Write an object that must still be at ``resource.revision``; what was written.

        Raises:
            InvalidInputError: refused as it is, or without uid or creation time.
            ConflictError: somebody else has written it.
            NotFoundError: it does not exist.
        """
        metadata = resource.metadata
        if not resource.revision:
            raise InvalidInputError("must be given when updating", field="metadata.resourceVersion", value=0)
        if resource.key == DEFAULT_ALLOW.key:
            raise _protected(resource.key, "changed")
        for field, value in (("uid", metadata.uid), ("creationTimestamp", metadata.creation_timestamp)):
            if not value:
                raise InvalidInputError(
                    "is missing in the stored object",
                    field=f"metadata.{field}",
                    value=value,
                    remedy="delete the object and create it again",
                )
        resource = _prepared(resource)
        await relations.check_update(self, resource)
        revision = await self.store.update(path(resource.key), codec.encode(resource), revision=resource.revision)
        return replace(resource, revision=revision)

    async def apply(self, resource: AnyResource) -> AnyResource:
        """Create the object, or bring the existing one to this spec, labels and annotations.

        Other metadata of an existing object stay. A revision in ``resource`` must be the present one. Raises as
        ``create`` and ``update``.
        """
        if await self._exists(resource):
            await relations.check_tier(self, defaults.fill(resource))
            return await self.replace(resource)
        try:
            return await self.create(resource)
        except AlreadyExistsError:
            return await self.replace(resource)  # somebody else has made it in between

    async def replace(self, resource: AnyResource) -> AnyResource:
        """As ``apply`` for an object that must exist (``NotFoundError``). Lost races are tried again a few times."""
        key = self._key_of(resource)
        attempt = 0
        while True:
            existing = await self.get(key.kind, key.name, key.namespace)
            if existing is None:
                raise NotFoundError(f"{key} does not exist", key=path(key))
            wanted = resource.revision or existing.revision
            metadata = replace(
                existing.metadata,
                labels=resource.metadata.labels,
                annotations=resource.metadata.annotations,
                resource_version="",
            )
            merged = replace(
                resource,
                metadata=metadata,
                status=existing.status if resource.status is None else resource.status,
                revision=wanted,
            )
            try:
                return await self.update(merged)
            except ConflictError:
                attempt += 1
                if resource.revision or attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(RETRY_PAUSE)

    async def delete(self, kind: str, name: str, namespace: str = "", revision: int = 0) -> None:
        """Remove an object (at ``revision``, if given), and what goes with a pool or a node.

        Raises:
            NotFoundError: it does not exist.
            ConflictError: it is at another revision.
            InvalidInputError: it may not be deleted.
        """
        key = _key(kind, name, namespace)
        if key == DEFAULT_ALLOW.key or (kind == "Tier" and name in defaults.BUILT_IN_TIERS):
            raise _protected(key, "deleted")
        if kind == "Tier":
            await relations.refuse_used_tier(self, name)
        elif kind == "IPPool":
            await self._empty_pool(key)
        elif kind == "Node":
            await self._empty_node(key)
        await self.store.delete(path(key), revision=0 if kind == "IPPool" else revision)

    async def ensure_initialised(self, *, cluster_type: str = "") -> None:
        """Cluster information (with GUID and ready flag) and the built-in tiers exist.

        Args:
            cluster_type: comma-separated words that the stored ``clusterType`` must have; others stay.
        """
        information = await self.get("ClusterInformation", "default")
        if information is None:
            spec = ClusterInformationSpec(
                cluster_guid=uuid.uuid4().hex, cluster_type=cluster_type, datastore_ready=True
            )
            await self._create_unless_exists(codec.new("ClusterInformation", "default", spec))
        elif (
            not information.spec.cluster_guid
            or information.spec.datastore_ready is None
            or _merged_words(information.spec.cluster_type, cluster_type) != information.spec.cluster_type
        ):
            await self._complete(information, cluster_type)
        for name, tier in defaults.BUILT_IN_TIERS.items():
            if await self.store.get(path(ResourceKey("Tier", name))) is None:
                await self._create_unless_exists(codec.new("Tier", name, tier))

    async def _complete(self, information: AnyResource, cluster_type: str) -> None:
        spec = replace(
            information.spec,
            cluster_guid=information.spec.cluster_guid or uuid.uuid4().hex,
            cluster_type=_merged_words(information.spec.cluster_type, cluster_type),
            datastore_ready=information.spec.datastore_ready is not False,
        )
        try:
            await self.update(replace(information, spec=spec))
        except (InvalidInputError, ConflictError) as error:
            # Calico's client goes on as well: the object is readable, only not completed.
            _log.warning("cluster information is incomplete", error=str(error))

    async def _create_unless_exists(self, resource: AnyResource) -> None:
        with contextlib.suppress(AlreadyExistsError):
            await self.create(resource)

    def _key_of(self, resource: AnyResource) -> ResourceKey:
        return _key(resource.kind, _named(resource).metadata.name, resource.metadata.namespace)

    async def _exists(self, resource: AnyResource) -> bool:
        key = self._key_of(resource)
        return key == DEFAULT_ALLOW.key or await self.store.get(path(key)) is not None

    async def _empty_pool(self, key: ResourceKey) -> None:
        pool = await self.get(key.kind, key.name)
        if pool is None:
            raise NotFoundError(f"{key} does not exist", key=path(key))
        if not pool.spec.disabled:
            await self.replace(replace(pool, spec=replace(pool.spec, disabled=True), revision=0))
            await asyncio.sleep(self._settle)
        if self._addresses is not None:
            await self._addresses.release_pool_affinities(pool.spec.cidr)
        else:
            await relations.refuse_claimed_pool(self, pool)

    async def _empty_node(self, key: ResourceKey) -> None:
        """In Calico's order; what is gone, be it the node, is skipped: an interrupted deletion can be repeated."""
        node = await self.get(key.kind, key.name)
        endpoints = [one for one in await self.list("WorkloadEndpoint") if one.spec.node == key.name]
        if self._addresses is not None:
            await self._addresses.release_ips(relations.addresses_of_node(node, endpoints))
        for endpoint in endpoints:
            await self._delete_if_there(endpoint.key)
        if self._addresses is not None:
            await self._addresses.remove_host(key.name)
        else:
            await relations.refuse_claiming_host(self, key.name)
        for kind in ("BGPPeer", "FelixConfiguration", "BGPConfiguration", "HostEndpoint"):
            if kind.endswith("Configuration"):
                await self._delete_if_there(ResourceKey(kind, f"node.{key.name}"))
                continue
            for resource in await self.list(kind):
                if resource.spec.node == key.name:
                    await self._delete_if_there(resource.key)

    async def _delete_if_there(self, key: ResourceKey) -> None:
        with contextlib.suppress(NotFoundError):
            await self.store.delete(path(key))


def _merged_words(present: str, wanted: str) -> str:
    """Comma-separated words of both, those present first."""
    words = [word for word in present.split(",") if word]
    return ",".join(words + [word for word in wanted.split(",") if word and word not in words])


def _tier_order(tier: AnyResource) -> float:
    order: float | None = tier.spec.order
    return defaults.DEFAULT_TIER_ORDER if order is None else order


def _key(kind: str, name: str, namespace: str) -> ResourceKey:
    if kind in NAMESPACED and not namespace:
        raise InvalidInputError(f"must be given: {kind} objects live in one", field="metadata.namespace", value="")
    if kind not in NAMESPACED and namespace:
        raise InvalidInputError(f"{kind} objects live in none", field="metadata.namespace", value=namespace)
    if not name or "/" in name:
        raise InvalidInputError("must be given, without '/'", field="metadata.name", value=name)
    if "/" in namespace:
        raise InvalidInputError("must not hold '/'", field="metadata.namespace", value=namespace)
    return ResourceKey(kind, name, namespace)


def _named(resource: AnyResource) -> AnyResource:
    """Endpoints get their name from their spec when they come without."""
    if resource.kind == "WorkloadEndpoint" and not resource.metadata.name:
        name = defaults.endpoint_name(resource.spec)
        return replace(resource, metadata=replace(resource.metadata, name=name))
    return resource


def _prepared(resource: AnyResource) -> AnyResource:
    """With defaults, and checked."""
    resource = _named(resource)
    _key(resource.kind, resource.metadata.name, resource.metadata.namespace)
    resource = defaults.fill(resource)
    validation.check(resource)
    return resource


def _protected(key: ResourceKey, verb: str) -> InvalidInputError:
    return InvalidInputError(f"is built in and cannot be {verb}", field=f"{key.kind}.metadata.name", value=key.name)
