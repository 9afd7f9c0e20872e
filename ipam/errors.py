"""What can go wrong in address management. Each error names the object, what was tried, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calipy.datastore.ipam import AllocationAttribute
from calipy.errors import CalipyError, InvalidInputError

if TYPE_CHECKING:
    from calipy.ipam.request import Assignment


class IPAMError(CalipyError):
    """Base of all errors of address management.

    Attributes:
        partial: addresses that the same request did get before it failed; they are assigned, and the caller has to
            release them. None when there are none.
    """

    partial: Assignment | None = None


class UnknownNodeError(IPAMError):
    """The node that asks has no Node object, so no pool can be chosen for it."""

    def __init__(self, node: str) -> None:
        super().__init__(
            f"node {node!r} has no Node object in the datastore",
            remedy="start calipy on that node, or create the Node with calicoctl",
        )
        self.node = node


class UnknownPoolError(IPAMError):
    """The request names a pool that is not there or not enabled."""

    def __init__(self, pool: str, enabled: Sequence[str], *, why: str = "") -> None:
        super().__init__(
            f"pool {pool!r} {why or 'does not exist'}",
            remedy=f"enabled pools are {', '.join(enabled)}" if enabled else "no pool of this family is enabled",
        )
        self.pool = pool


class NoPoolError(IPAMError):
    """No enabled pool selects the node (and namespace)."""

    def __init__(self, node: str, family: int, tried: Sequence[str]) -> None:
        text = f"no IPv{family} pool can be used on node {node!r}"
        super().__init__(
            f"{text}: {'; '.join(tried)}" if tried else f"{text}: there is none",
            remedy="create or enable an IPPool whose nodeSelector and namespaceSelector match, or name one",
        )


class WrongUseError(IPAMError):
    """Pools match, but none of them allows this use."""

    def __init__(self, use: str, tried: Sequence[str]) -> None:
        super().__init__(
            f"no pool allows the use {use}: {'; '.join(tried)}", remedy="add the use to spec.allowedUses of a pool"
        )
        self.use = use


class BadSelectorError(IPAMError):
    """A pool's selector cannot be parsed, so nobody knows whom the pool is for."""

    def __init__(self, pool: str, field: str, selector: str, error: Exception) -> None:
        super().__init__(f"pool {pool!r}: {field} {selector!r} cannot be parsed: {error}", remedy="mend the pool")
        self.pool = pool


class BlockLimitError(IPAMError):
    """The host may not own more blocks."""

    def __init__(self, host: str, family: int, limit: int, owned: int, pools: Sequence[str]) -> None:
        super().__init__(
            f"host {host!r} owns {owned} IPv{family} blocks of {', '.join(pools)}, and may own {limit}; all are full",
            remedy="raise maxBlocksPerHost (calipy ipam configure), or make the pool's blocks larger",
        )
        self.limit = limit


class NoBlockError(IPAMError):
    """The host has no block with a free address, and may not claim one."""

    def __init__(
        self, host: str, family: int, pools: Sequence[str], *, why: str = "automatic claiming of blocks is off"
    ) -> None:
        super().__init__(
            f"host {host!r} has no IPv{family} block with free addresses in {', '.join(pools)}, and {why}",
            remedy="claim a block for the host, set auto_allocate_blocks, or add a pool",
        )


class AddressNotInPoolError(IPAMError):
    """The address (or CIDR) asked for lies in no enabled pool."""

    def __init__(self, address: str, pools: Sequence[str]) -> None:
        super().__init__(
            f"{address} lies in no enabled pool",
            remedy=f"enabled pools are {', '.join(pools)}" if pools else "there is no enabled pool",
        )
        self.address = address


class AddressTakenError(IPAMError):
    """The address asked for is held by somebody."""

    def __init__(self, address: str, block: str, holder: AllocationAttribute | None) -> None:
        super().__init__(
            f"{address} (block {block}) is taken by {describe(holder)}",
            remedy="ask for another address, or release it first",
        )
        self.address = address
        self.holder = holder


class ForeignBlockError(IPAMError):
    """The address lies in a block of another host, and strict affinity forbids to take it."""

    def __init__(self, address: str, block: str, owner: str | None) -> None:
        super().__init__(
            f"{address} lies in block {block}, which belongs to {owner or 'nobody'}, and strict affinity is on",
            remedy="ask for an address of this host's blocks, or allow borrowing (calipy ipam configure)",
        )


class TooSmallError(IPAMError):
    """A CIDR to claim or release is smaller than a block."""

    def __init__(self, cidr: str, block_size: int) -> None:
        super().__init__(f"{cidr} is smaller than a block (/{block_size})", remedy="give one whole block or more")


class ClaimConflictError(IPAMError):
    """The block belongs to somebody else."""

    def __init__(self, block: str, owner: str | None) -> None:
        super().__init__(f"block {block} belongs to {owner or 'nobody, but holds addresses'}", remedy="try another")


class BlockNotEmptyError(IPAMError):
    """The block still holds addresses."""

    def __init__(self, block: str, held: int) -> None:
        super().__init__(
            f"block {block} still holds {held} addresses", remedy="release them first, or do not insist on empty blocks"
        )


class ReleaseConflictError(IPAMError):
    """The address is not held by whom the release names: it was released and handed out again meanwhile."""

    def __init__(self, address: str, what: str, expected: object, found: object) -> None:
        super().__init__(
            f"{address} has {what} {found}, not {expected}: nothing was released",
            remedy="read the allocation again before releasing it",
        )
        self.address = address


class HandleNotFoundError(IPAMError):
    """Nobody has addresses under this handle. On removal of a pod this means that there is nothing left to do."""

    def __init__(self, handle_id: str) -> None:
        super().__init__(f"handle {handle_id!r} does not exist")
        self.handle_id = handle_id


class NotAllocatedError(IPAMError):
    """Nobody holds the address."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is not allocated")
        self.address = address


class RefusedConfigError(InvalidInputError):
    """Settings of address management that contradict each other or are out of range."""


class TooManyConflictsError(IPAMError):
    """Every try was overtaken by somebody else."""

    def __init__(self, what: str, tries: int) -> None:
        super().__init__(
            f"{what}: overtaken {tries} times by other writers",
            remedy="retry; if it persists, many clients fight over the same block",
        )


def describe(holder: AllocationAttribute | None) -> str:
    """Who holds an address, in words: pod, tunnel, service or handle, and the node."""
    if holder is None:
        return "an unknown owner"
    if holder.cooling:
        return f"nobody, but cools down since {holder.released_at}"
    attributes = holder.attributes
    if "pod" in attributes:
        who = f"pod {attributes.get('namespace', '')}/{attributes['pod']}"
    elif "service" in attributes:
        who = f"service {attributes.get('namespace', '')}/{attributes['service']}"
    elif "type" in attributes:
        who = attributes["type"]
    else:
        who = f"handle {holder.handle_id}" if holder.handle_id else "an owner without a handle"
    return f"{who} on node {holder.node}" if holder.node else who
