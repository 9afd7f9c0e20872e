"""What an allocator knows of the datastore: pools, reservations, blocks, its own affinities, node and settings.

A view is fed either by reads, for one operation, or by the agent's watch, for as long as it lives. Either way it may be
old. That is no danger: every write is guarded with the revisions the decision was taken from, so an old view costs
another try, never a wrong write.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from calipy.datastore.ipam import Block, BlockAffinity
from calipy.datastore.keys import BlockAffinityKey, BlockKey, IPAMConfigKey, Key, ResourceKey
from calipy.ipam.pools import Pool, Reservations, pool_of
from calipy.net import Family, Prefix, family_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """What is known of one key.

    Attributes:
        value: None if the key is absent, or its value cannot be decoded.
        revision: mod revision for guards, 0 if absent.
        seen: store revision at which this was so; older news are ignored.
    """

    value: T | None
    revision: int
    seen: int


ABSENT: Known[Any] = Known(None, 0, 0)


def _order(cidr: str) -> str:
    return cidr.replace("/", "-")


class View:
    """The part of the datastore that concerns one owner of blocks.

    Args:
        owner: name of the node, or of a virtual owner.
        affinity_type: ``host`` or ``virtual``.
    """

    def __init__(self, owner: str, affinity_type: str = "host") -> None:
        self.owner = owner
        self.affinity_type = affinity_type
        self.complete: set[str] = set()
        """Listings that were read whole: what is not in them does not exist. ``everything`` stands for all."""
        self._keys: dict[Key, Known[Any]] = {}
        self._passing: dict[Key, Known[Any]] = {}
        self._pools: dict[ResourceKey, Pool] = {}
        self._reserved: dict[str, tuple[Prefix, ...]] = {}
        self._reservations: Reservations | None = None
        self._blocks: dict[Family, dict[str, Block | None]] = {4: {}, 6: {}}
        self._affinities: dict[Family, set[str]] = {4: set(), 6: set()}
        self._full: set[str] = set()

    def wants(self, key: Key) -> bool:
        """Whether a change of this key is kept when it comes from a watch. Handles are not: there are too many."""
        match key:
            case ResourceKey(kind="IPPool" | "IPReservation") | BlockKey() | IPAMConfigKey():
                return True
            case ResourceKey(kind="Node", name=name):
                return name == self.owner
            case BlockAffinityKey(host=host, affinity_type=affinity_type):
                return host == self.owner and affinity_type == self.affinity_type
        return False

    def note(self, key: Key, value: Any, *, revision: int, seen: int) -> None:
        """Take in what a key holds. O(1).

        Args:
            key: the key.
            value: decoded; None if absent or undecodable.
            revision: its mod revision, 0 if it is absent.
            seen: store revision at which this was so.
        """
        keys = self._keys if self.wants(key) else self._passing
        before = keys.get(key)
        if before is not None and before.seen > seen:
            return
        keys[key] = Known(value, revision, seen)
        match key:
            case ResourceKey(kind="IPPool"):
                self._note_pool(key, value)
            case ResourceKey(kind="IPReservation", name=name):
                self._note_reservation(name, value)
            case BlockKey(cidr=cidr):
                blocks = self._blocks[family_of(cidr)]
                self._full.discard(cidr)
                if revision:
                    blocks[cidr] = value
                    if value is not None and not value.unallocated and not any(a.cooling for a in value.attributes):
                        self._full.add(cidr)
                else:
                    blocks.pop(cidr, None)
            case BlockAffinityKey(host=host, cidr=cidr, affinity_type=affinity_type) if (
                host == self.owner and affinity_type == self.affinity_type
            ):
                affinities = self._affinities[family_of(cidr)]
                if revision:
                    affinities.add(cidr)
                else:
                    affinities.discard(cidr)

    def _note_pool(self, key: ResourceKey, resource: Any) -> None:
        self._pools.pop(key, None)
        if resource is not None:
            try:
                self._pools[key] = pool_of(resource)
            except ValueError:
                return  # a CIDR that is none: such a pool serves nobody; the syncer reports it

    def _note_reservation(self, name: str, resource: Any) -> None:
        self._reservations = None
        self._reserved.pop(name, None)
        if resource is not None:
            networks = []
            for text in resource.spec.reserved_cidrs:
                try:
                    networks.append(ipaddress.ip_network(text, strict=False))
                except ValueError:
                    continue
            self._reserved[name] = tuple(networks)

    def known(self, key: Key) -> Known[Any] | None:
        """What is known of a key; None = nothing, it has to be read."""
        found = self._keys.get(key) or self._passing.get(key)
        if found is not None:
            return found
        return ABSENT if self._listed(key) else None

    def _listed(self, key: Key) -> bool:
        if "everything" in self.complete:
            return self.wants(key)
        match key:
            case BlockKey(cidr=cidr):
                return f"blocks{family_of(cidr)}" in self.complete
            case BlockAffinityKey(host=self.owner, cidr=cidr, affinity_type=self.affinity_type):
                return f"affinities{family_of(cidr)}" in self.complete
            case ResourceKey(kind="IPPool"):
                return "pools" in self.complete
        return False

    def has(self, listing: str) -> bool:
        """Whether a listing is complete."""
        return listing in self.complete or "everything" in self.complete

    @property
    def pools(self) -> list[Pool]:
        """All pools, in no order."""
        return list(self._pools.values())

    @property
    def reservations(self) -> Reservations:
        """All reserved addresses."""
        if self._reservations is None:
            self._reservations = Reservations(
                (network, name) for name, networks in sorted(self._reserved.items()) for network in networks
            )
        return self._reservations

    def block(self, cidr: str) -> Block | None:
        """A block; None if it does not exist, cannot be decoded, or is not known."""
        return self._blocks[family_of(cidr)].get(cidr)

    def is_full(self, cidr: str) -> bool:
        """Whether a block is known to have nothing to hand out, now or after any time of waiting. O(1)."""
        return cidr in self._full

    def blocks(self, family: Family) -> dict[str, Block | None]:
        """All known blocks by CIDR; None for one that exists but cannot be decoded. Not to be changed."""
        return self._blocks[family]

    def affinity(self, cidr: str) -> BlockAffinity | None:
        """The owner's claim on a block."""
        found = self._keys.get(BlockAffinityKey(self.owner, cidr, self.affinity_type))
        return found.value if found else None

    def affinities(self, family: Family) -> list[str]:
        """CIDRs of the owner's claims, in the order of their keys, which is the order in which they are used."""
        return sorted(self._affinities[family], key=_order)

    def forget_passing(self) -> None:
        """Drop what was read for one operation only and no watch keeps up to date: handles, what is other owners'."""
        self._passing.clear()
