"""Counting addresses per owner. Pure.

A handle may count more than there is (somebody died between raising it and writing the block), never less: otherwise a
release by handle would miss an address.

Source: libcalico-go/lib/ipam/ipam_handle.go.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from calipy.datastore.ipam import Handle, network_of
from calipy.errors import InvalidInputError


def sanitise(handle_id: str) -> str:
    """The id as Calico stores it: what follows a carriage return is cut off.

    Raises:
        InvalidInputError: empty, or with a ``/`` in it.
    """
    text = handle_id.partition("\r")[0]
    if not text or "/" in text:
        raise InvalidInputError("must be neither empty nor hold a '/'", field="handle_id", value=handle_id)
    return text


def increment(handle: Handle | None, cidr: str, count: int) -> Handle:
    """The handle with ``count`` more addresses in a block; None stands for one that does not exist yet."""
    handle = handle or Handle()
    return replace(handle, blocks={**handle.blocks, cidr: handle.blocks.get(cidr, 0) + count})


def decrement(handle: Handle, counts: Mapping[str, int]) -> Handle | None:
    """The handle with fewer addresses; None when nothing is left and its key should go.

    A count that would fall below zero ends at zero: Calico refuses and leaves the handle behind for ever.

    Args:
        handle: as read.
        counts: block → how many addresses less.
    """
    left = {cidr: count - counts.get(cidr, 0) for cidr, count in handle.blocks.items()}
    blocks = {cidr: count for cidr, count in left.items() if count > 0}
    return replace(handle, blocks=blocks) if blocks else None


def blocks_of(handle: Handle) -> list[str]:
    """The blocks a handle names, in order of text; entries that are no CIDR name none."""
    return sorted(cidr for cidr in handle.blocks if _is_cidr(cidr))


def _is_cidr(text: str) -> bool:
    try:
        network_of(text)
    except ValueError:
        return False
    return True
