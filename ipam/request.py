"""What is asked of the allocator, and what comes back. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from calipy.ipam.pools import Use
from calipy.net import Family


@dataclass(frozen=True, slots=True)
class Request:
    """Addresses wanted by one owner.

    Attributes:
        handle_id: the owner; None for addresses that no handle counts.
        attributes: what is stored with each address: ``node``, ``pod``, ``namespace``, ``timestamp``, … Without
            ``node`` a borrowed address gets no route.
        use: what the addresses are for.
        pools: per family, CIDRs or names of pools to take them from, whatever the pools select; empty = any.
        namespace: name of the pod's namespace, for messages.
        namespace_labels: its labels.
        max_blocks: cap on the host's blocks for this request, 0 = none.
    """

    handle_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    use: Use = "Workload"
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    namespace: str = ""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    max_blocks: int = 0

    @property
    def unique(self) -> bool:
        """No other request stores the same attributes: they tell the time in nanoseconds, as those of pods do."""
        return self.handle_id is not None and "timestamp" in self.attributes


@dataclass(slots=True)
class FamilyAssignment:
    """Outcome for one family, filled while it is worked on.

    Attributes:
        requested: how many were wanted.
        addresses: those got, bare texts in order.
        blocks: for each address the CIDR of its block.
        messages: why there are fewer than wanted, empty if all were got.
    """

    requested: int
    addresses: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """How many are still wanted."""
        return self.requested - len(self.addresses)


@dataclass(slots=True)
class Assignment:
    """Addresses that were assigned. Fewer than wanted is no error here: the caller decides, and frees what it got."""

    families: dict[Family, FamilyAssignment] = field(default_factory=dict)

    @property
    def ipv4(self) -> list[str]:
        """IPv4 addresses, bare texts."""
        return self.families[4].addresses if 4 in self.families else []

    @property
    def ipv6(self) -> list[str]:
        """IPv6 addresses, bare texts."""
        return self.families[6].addresses if 6 in self.families else []

    @property
    def messages(self) -> list[str]:
        """Why there are fewer than wanted."""
        return [message for family in self.families.values() for message in family.messages]

    @property
    def complete(self) -> bool:
        """Every family got what it wanted."""
        return all(family.missing == 0 for family in self.families.values())


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """One address to release.

    Attributes:
        address: text.
        handle_id: if given, the address must belong to it.
        sequence_number: if given, it must be the one of this allocation. Whoever decides on data that may be old
            (a collector) must give both.
    """

    address: str
    handle_id: str | None = None
    sequence_number: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """Outcome of a release.

    Attributes:
        processed: the requests that met a block and no conflict, in the order given.
        unallocated: addresses that nobody held.
    """

    processed: tuple[ReleaseRequest, ...] = ()
    unallocated: tuple[str, ...] = ()
