"""Everything address management knows, as it was at one revision."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from calipy.datastore import codec
from calipy.datastore.ipam import Block, BlockAffinity, Handle, IPAMConfig, decode_config
from calipy.datastore.keys import (
    AFFINITIES,
    BLOCKS,
    HANDLES,
    VIRTUAL_AFFINITIES,
    BlockAffinityKey,
    BlockKey,
    HandleKey,
    IPAMConfigKey,
    Key,
    ResourceKey,
    parse,
    path,
    resource_prefix,
)
from calipy.datastore.store import Store
from calipy.errors import UndecodableError
from calipy.ipam.pools import Pool, Reservations, pool_of
from calipy.net import Prefix


@dataclass(slots=True)
class Snapshot:
    """A consistent picture.

    Attributes:
        revision: of the store, at which all this was so.
        pools: in order of name.
        reservations: reserved addresses.
        config: stored settings, None if there are none.
        blocks: by CIDR, in order of key.
        affinities: all claims.
        handles: by id.
        endpoints: WorkloadEndpoints.
        nodes: Nodes.
        cluster: ClusterInformation ``default``, or None.
        revisions: mod revision of each key read, for guards.
        undecodable: path → what is wrong, of objects that could not be read.
    """

    revision: int = 0
    pools: list[Pool] = field(default_factory=list)
    reservations: Reservations = field(default_factory=Reservations)
    config: IPAMConfig | None = None
    blocks: dict[str, Block] = field(default_factory=dict)
    affinities: dict[BlockAffinityKey, BlockAffinity] = field(default_factory=dict)
    handles: dict[str, Handle] = field(default_factory=dict)
    endpoints: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    cluster: Any = None
    revisions: dict[Key, int] = field(default_factory=dict)
    undecodable: dict[str, str] = field(default_factory=dict)


USAGE = (resource_prefix("IPPool"), resource_prefix("IPReservation"), BLOCKS)
"""What it takes to tell how full the pools are."""

USERS = (resource_prefix("WorkloadEndpoint"), resource_prefix("Node"))
"""Who may use an address: endpoints, and nodes for their tunnels."""

EVERYTHING = (
    *USAGE,
    *USERS,
    resource_prefix("ClusterInformation"),
    AFFINITIES,
    VIRTUAL_AFFINITIES,
    HANDLES,
)
"""What it takes to tell whether everything fits together."""


async def read(store: Store, prefixes: tuple[str, ...] = USAGE) -> Snapshot:
    """Read everything under the prefixes, and the settings, at one revision. O(what is there)."""
    snapshot = Snapshot()
    reserved: list[tuple[Prefix, str]] = []
    for prefix in prefixes:
        listing = await store.list(prefix, revision=snapshot.revision)
        snapshot.revision = snapshot.revision or listing.revision
        for kv in listing.items:
            key = parse(kv.key)
            if key is None or path(key) != kv.key:
                continue
            snapshot.revisions[key] = kv.mod_revision
            try:
                value = codec.decode(key, kv.value, kv.mod_revision) if not _is_marker(key) else None
            except UndecodableError as error:
                snapshot.undecodable[kv.key] = str(error)
                continue
            _add(snapshot, key, value, reserved)
    snapshot.reservations = Reservations(reserved)
    snapshot.pools.sort(key=lambda pool: pool.name)
    stored = await store.get(path(IPAMConfigKey()), revision=snapshot.revision)
    if stored is not None:
        try:
            snapshot.config = decode_config(stored.value, key=stored.key)
        except UndecodableError as error:
            snapshot.undecodable[stored.key] = str(error)
        snapshot.revisions[IPAMConfigKey()] = stored.mod_revision
    return snapshot


def _is_marker(key: Key) -> bool:
    return not isinstance(key, ResourceKey | BlockKey | BlockAffinityKey | HandleKey)


def _add(snapshot: Snapshot, key: Key, value: Any, reserved: list[tuple[Prefix, str]]) -> None:
    match key:
        case BlockKey(cidr=cidr):
            snapshot.blocks[cidr] = value
        case BlockAffinityKey():
            snapshot.affinities[key] = value
        case HandleKey(handle_id=handle_id):
            snapshot.handles[handle_id] = value
        case ResourceKey(kind="IPPool"):
            try:
                snapshot.pools.append(pool_of(value))
            except ValueError as error:
                snapshot.undecodable[path(key)] = f"spec.cidr: {error}"
        case ResourceKey(kind="IPReservation", name=name):
            for text in value.spec.reserved_cidrs:
                try:
                    reserved.append((ipaddress.ip_network(text, strict=False), name))
                except ValueError as error:
                    snapshot.undecodable[path(key)] = f"spec.reservedCIDRs: {error}"
        case ResourceKey(kind="WorkloadEndpoint"):
            snapshot.endpoints.append(value)
        case ResourceKey(kind="Node"):
            snapshot.nodes.append(value)
        case ResourceKey(kind="ClusterInformation", name="default"):
            snapshot.cluster = value
