"""Value types of Calico's IPAM objects, and their JSON. Pure.

A block holds the state of all its addresses; a block affinity is a host's claim on a block; a handle counts, per block,
the addresses of one owner; the configuration is global. All types are frozen: changing means making a new one
(``msgspec.structs.replace``). What changes a block lives in ``calipy.ipam.block``.

Source: libcalico-go/lib/backend/model/{block,block_affinity,ipam_handle,ipam_config}.go.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from calipy.errors import UndecodableError
from calipy.net import Family, IPAddress, Prefix, family_of

CONFIRMED = "confirmed"

WINDOWS_RESERVED_HANDLE = "windows-reserved-ipam-handle"
"""Owner of the ordinals that a Windows host keeps for itself in each of its blocks."""

_Uint64 = Annotated[int, msgspec.Meta(ge=0)]


class AllocationAttribute(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"alternate_owner": "alternateOwnerAttrs", "released_at": "releasedAt"},
):
    """Who holds an address; shared by all addresses of a block with the same owner and attributes.

    Attributes:
        handle_id: the owner's handle, or None.
        secondary: what the owner says of itself: ``node``, ``pod``, ``namespace``, ``type``, ``timestamp``, …
        alternate_owner: attributes of the other end of a live migration.
        released_at: RFC 3339 time at which the address was released, while it cools down; then there is no owner.
        extra: fields of newer releases, kept as they are.
    """

    handle_id: str | None = None
    secondary: dict[str, str] | None = None
    alternate_owner: dict[str, str] | None = None
    released_at: str | None = None
    extra: dict[str, Any] = {}

    @property
    def cooling(self) -> bool:
        """Released, and not yet back in the free list."""
        return self.released_at is not None

    @property
    def attributes(self) -> Mapping[str, str]:
        """``secondary``, empty if there is none."""
        return self.secondary or {}

    @property
    def node(self) -> str | None:
        """The node that uses the address, as its owner wrote it."""
        return self.attributes.get("node")


class Block(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "legacy_host": "hostAffinity",
        "sequence_number": "sequenceNumber",
        "sequence_number_for_allocation": "sequenceNumberForAllocation",
    },
):
    """A slice of a pool and the state of each of its addresses.

    Attributes:
        cidr: the slice, canonical text.
        affinity: ``host:<node>``, ``virtual:<name>``, or None for nobody.
        legacy_host: the owner as releases before 2.0 wrote it; allocation ignores it, readers should use ``host()``.
        affinity_claim_time: RFC 3339 time of the claim, None in blocks of older releases.
        allocations: one slot per ordinal: None if free, else an index into ``attributes``.
        unallocated: free ordinals, the next to be handed out first.
        attributes: owners.
        sequence_number: of the last write; one more with each. Nanoseconds of the clock for a new block.
        sequence_number_for_allocation: ordinal → sequence number before the write that allocated (or released) it.
        deleted: True only on objects being removed by a backend without compare-and-delete.
        nulls: JSON names of the fields that are stored as ``null``, where empty and null differ in the text only.
        extra: fields of newer releases, kept as they are.
    """

    cidr: str
    affinity: str | None = None
    legacy_host: str | None = None
    affinity_claim_time: str | None = None
    allocations: tuple[int | None, ...]
    unallocated: tuple[int, ...] = ()
    attributes: tuple[AllocationAttribute, ...] = ()
    sequence_number: _Uint64 = 0
    sequence_number_for_allocation: dict[int, _Uint64] = {}
    deleted: bool = False
    nulls: tuple[str, ...] = ()
    extra: dict[str, Any] = {}

    @property
    def network(self) -> Prefix:
        """``cidr`` as a value."""
        return network_of(self.cidr)

    @property
    def family(self) -> Family:
        """4 or 6."""
        return family_of(self.cidr)

    @property
    def size(self) -> int:
        """How many addresses the block has."""
        return len(self.allocations)

    def host(self) -> str | None:
        """Name of the node that the block belongs to; None for nobody or a virtual owner."""
        if self.affinity is None:
            return self.legacy_host
        kind, _, name = self.affinity.partition(":")
        return name if kind == "host" else None

    def address(self, ordinal: int) -> IPAddress:
        """The address at an ordinal (0 based)."""
        return self.network.network_address + ordinal

    def ordinal(self, address: IPAddress) -> int:
        """The place of an address in this block. Raises ``ValueError`` if it lies outside."""
        if address not in self.network:
            raise ValueError(f"{address} is not in block {self.cidr}")
        return int(address) - int(self.network.network_address)

    def attribute(self, ordinal: int) -> AllocationAttribute | None:
        """Who holds an ordinal (also while it cools down); None if it is free or its index is broken."""
        index = self.allocations[ordinal]
        if index is None or not 0 <= index < len(self.attributes):
            return None
        return self.attributes[index]

    def assignments(self) -> Iterator[tuple[IPAddress, AllocationAttribute]]:
        """Every address in use and who uses it, in order of address. Cooling addresses are not in use. O(size)."""
        first = self.network.network_address
        count = len(self.attributes)
        for ordinal, index in enumerate(self.allocations):
            if index is not None and 0 <= index < count and self.attributes[index].released_at is None:
                yield first + ordinal, self.attributes[index]

    @property
    def empty(self) -> bool:
        """No address is held by anybody but a Windows host itself. Cooling addresses count as held."""
        return all(
            attribute is not None and attribute.handle_id == WINDOWS_RESERVED_HANDLE
            for attribute in (self.attribute(o) for o, index in enumerate(self.allocations) if index is not None)
        )


class BlockAffinity(msgspec.Struct, frozen=True, kw_only=True):
    """A host's claim on a block.

    Attributes:
        state: ``pending``, ``confirmed`` or ``pendingDeletion``. Only confirmed ones count for anybody but their host.
        deleted: as in ``Block``.
        extra: fields of newer releases, kept as they are.
    """

    state: str = CONFIRMED
    deleted: bool = False
    extra: dict[str, Any] = {}


class Handle(msgspec.Struct, frozen=True, kw_only=True, rename={"blocks": "block"}):
    """How many addresses an owner has in which blocks: an upper bound, never a proof of an allocation.

    Attributes:
        blocks: CIDR of the block (canonical text with ``/``) → count.
        deleted: as in ``Block``.
        extra: fields of newer releases, kept as they are.
    """

    blocks: dict[str, int] = {}
    deleted: bool = False
    extra: dict[str, Any] = {}


class IPAMConfig(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={
        "max_blocks_per_host": "maxBlocksPerHost",
        "kubevirt_vm_address_persistence": "kubeVirtVMAddressPersistence",
        "cooldown_seconds": "ipCooldownSeconds",
    },
):
    """Settings of address management. The defaults here are those of a store without the key.

    Attributes:
        strict_affinity: never take an address from another host's block.
        auto_allocate_blocks: claim new blocks when needed.
        max_blocks_per_host: per family; 0 means 20.
        cooldown_seconds: how long a released address stays unused.
        kubevirt_vm_address_persistence: ``Enabled`` or ``Disabled``, or None.
        extra: fields of newer releases, kept as they are.
    """

    strict_affinity: bool = False
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = 0
    cooldown_seconds: int = 0
    kubevirt_vm_address_persistence: str | None = None
    extra: dict[str, Any] = {}


def decode_block(value: bytes, *, key: str = "") -> Block:
    """A block from its JSON. ``key`` is named in errors. Raises ``UndecodableError``."""
    block = _ordinary_block(value) or _any_block(value, key)
    expected = block_size(block.cidr, key=key)
    if block.size != expected:
        raise UndecodableError(f"has {block.size} slots for {expected} addresses", key=key, field="allocations")
    if "/block/" in key and not _is_at(key, block.cidr):
        raise UndecodableError("is not the block that the key names", key=key, field="cidr", value=block.cidr)
    return block


_BLOCK = msgspec.json.Decoder(Block)


def _ordinary_block(value: bytes) -> Block | None:
    """A block without nulls and unknown fields, in a fifth of the time; None if it is not like that."""
    if b'"extra"' in value or b'"nulls"' in value:
        return None  # the names of fields of ours that are none of the format
    try:
        return _BLOCK.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _any_block(value: bytes, key: str) -> Block:
    raw = _object(value, key)
    nulls = tuple(
        name for name in ("unallocated", "attributes", "sequenceNumberForAllocation") if raw.get(name, 0) is None
    )
    attributes = [_with_extra(a, AllocationAttribute) for a in raw.get("attributes") or ()]
    return _convert({**_with_extra(_without(raw, nulls), Block), "attributes": attributes, "nulls": nulls}, Block, key)


def encode_block(block: Block) -> bytes:
    """The JSON of a block, as Calico writes it. An old-style owner is written in the present form."""
    fields: dict[str, Any] = {"cidr": block.cidr, "affinity": block.affinity}
    if block.affinity is None and block.legacy_host is not None:
        fields["affinity"] = f"host:{block.legacy_host}"
    if block.affinity_claim_time is not None:
        fields["affinity_claim_time"] = block.affinity_claim_time
    fields["allocations"] = block.allocations
    fields["unallocated"] = _or_null(block, "unallocated", block.unallocated)
    fields["attributes"] = _or_null(block, "attributes", [_attribute_fields(a) for a in block.attributes])
    fields["sequenceNumber"] = block.sequence_number
    fields["sequenceNumberForAllocation"] = _or_null(
        block, "sequenceNumberForAllocation", {str(k): v for k, v in block.sequence_number_for_allocation.items()}
    )
    fields["deleted"] = block.deleted
    return msgspec.json.encode({**fields, **block.extra})


def decode_affinity(value: bytes, *, key: str = "") -> BlockAffinity:
    """A claim from its JSON; an empty value or state is a confirmed one of an old release."""
    if not value:
        return BlockAffinity()
    raw = _object(value, key)
    if not raw.get("state"):
        raw = {**raw, "state": CONFIRMED}
    return _convert(_with_extra(raw, BlockAffinity), BlockAffinity, key)


def encode_affinity(affinity: BlockAffinity) -> bytes:
    """The JSON of a claim."""
    return msgspec.json.encode({"state": affinity.state, "deleted": affinity.deleted, **affinity.extra})


def decode_handle(value: bytes, *, key: str = "") -> Handle:
    """A handle from its JSON; a missing or null map is empty."""
    return _convert(_with_extra(_without_null(_object(value, key), "block"), Handle), Handle, key)


def encode_handle(handle: Handle) -> bytes:
    """The JSON of a handle. The map is never null: that would crash Calico's client."""
    return msgspec.json.encode({"block": handle.blocks, "deleted": handle.deleted, **handle.extra})


def decode_config(value: bytes, *, key: str = "") -> IPAMConfig:
    """Settings from their JSON. What is absent here is off or 0, unlike in a store without the key."""
    raw = {name: field for name, field in _object(value, key).items() if field is not None}
    return _convert({"auto_allocate_blocks": False, **_with_extra(raw, IPAMConfig)}, IPAMConfig, key)


def encode_config(config: IPAMConfig) -> bytes:
    """The JSON of the settings; what is off or 0 is left out, as Calico does."""
    fields: dict[str, Any] = {
        "strict_affinity": config.strict_affinity,
        "auto_allocate_blocks": config.auto_allocate_blocks,
        "maxBlocksPerHost": config.max_blocks_per_host,
        "kubeVirtVMAddressPersistence": config.kubevirt_vm_address_persistence,
        "ipCooldownSeconds": config.cooldown_seconds,
    }
    return msgspec.json.encode({**{name: field for name, field in fields.items() if field}, **config.extra})


@functools.lru_cache(maxsize=65536)
def network_of(cidr: str) -> Prefix:
    """The CIDR of a block as a value; remembered, since the same few are asked for all the time."""
    return ipaddress.ip_network(cidr)


def block_size(cidr: str, *, key: str = "") -> int:
    """How many addresses a block of this CIDR has. Raises ``UndecodableError`` for what cannot be a block."""
    try:
        network = network_of(cidr)
    except ValueError as error:
        raise UndecodableError(str(error), key=key, field="cidr", value=cidr) from error
    if network.max_prefixlen - network.prefixlen > 16:
        raise UndecodableError("is too large for a block", key=key, field="cidr", value=cidr)
    return network.num_addresses


def _is_at(key: str, cidr: str) -> bool:
    address, _, length = key.rpartition("/")[2].rpartition("-")
    try:
        return ipaddress.ip_network(f"{address}/{length}", strict=False) == network_of(cidr)
    except ValueError:
        return False


_T = TypeVar("_T", bound=msgspec.Struct)


def _object(value: bytes, key: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UndecodableError(f"is not JSON: {error}", key=key) from error
    if not isinstance(raw, dict):
        raise UndecodableError("is not a JSON object", key=key)
    return raw


def _convert(fields: dict[str, Any], to: type[_T], key: str) -> _T:
    try:
        return msgspec.convert(fields, to, str_keys=True)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise UndecodableError(message, key=key, field=path.rstrip("`")) from error


@functools.lru_cache(maxsize=16)
def _known(to: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(to)) - {"extra", "nulls"}


def _with_extra(raw: Any, to: type[msgspec.Struct]) -> Any:
    """Move the fields that ``to`` does not know into ``extra``. Anything but an object is left to the converter."""
    if not isinstance(raw, dict):
        return raw
    known = _known(to)
    if raw.keys() <= known:
        return raw
    extra = {name: field for name, field in raw.items() if name not in known}
    return {**{name: field for name, field in raw.items() if name in known}, "extra": extra}


def _without(raw: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: field for name, field in raw.items() if name not in names} if names else raw


def _without_null(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return _without(raw, (name,)) if raw.get(name, 0) is None else raw


def _or_null(block: Block, name: str, value: Any) -> Any:
    return value if value or name not in block.nulls else None


def _attribute_fields(attribute: AllocationAttribute) -> AllocationAttribute | dict[str, Any]:
    if not attribute.extra and attribute.secondary != {} and attribute.alternate_owner != {}:
        return attribute  # without what is None or empty, it is encoded as it should be
    fields: dict[str, Any] = {}
    if attribute.handle_id is not None:
        fields["handle_id"] = attribute.handle_id
    if attribute.secondary:
        fields["secondary"] = attribute.secondary
    if attribute.alternate_owner:
        fields["alternateOwnerAttrs"] = attribute.alternate_owner
    if attribute.released_at is not None:
        fields["releasedAt"] = attribute.released_at
    return {**fields, **attribute.extra}
