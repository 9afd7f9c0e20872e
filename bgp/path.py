"""Path attributes and paths: the values that every other part of BGP passes around. Pure.

Attributes are interned: a block of routes that arrived with one set of attributes shares one object, so that 20 000
paths are a few megabytes and comparing them is mostly comparing identities.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal, NamedTuple, TypeAlias

from calipy.net import NORMAL_METRIC, IPAddress, Prefix

SegmentKind: TypeAlias = Literal["sequence", "set"]
Origin: TypeAlias = Literal["igp", "egp", "incomplete"]
Community: TypeAlias = tuple[int, int]
LargeCommunity: TypeAlias = tuple[int, int, int]

NO_EXPORT: Community = (0xFFFF, 0xFF01)
NO_ADVERTISE: Community = (0xFFFF, 0xFF02)
NO_EXPORT_SUBCONFED: Community = (0xFFFF, 0xFF03)

ORIGIN_RANK: dict[Origin, int] = {"igp": 0, "egp": 1, "incomplete": 2}
DEFAULT_LOCAL_PREFERENCE = 100
"""What a path without LOCAL_PREF counts as (eBGP never carries one); BIRD's and ExaBGP's default too."""

HIGHEST_LOCAL_PREFERENCE = 2147483647
NORMAL_LOCAL_PREFERENCE = HIGHEST_LOCAL_PREFERENCE - NORMAL_METRIC
"""LOCAL_PREF of routes we originate: Calico maps a kernel metric m to 2147483647 - m, and 1024 is the normal metric."""


class Segment(NamedTuple):
    """One AS_PATH segment (RFC 4271 4.3)."""

    kind: SegmentKind
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attributes:
    """Path attributes of a route, as received or as sent.

    Attributes:
        next_hop: NEXT_HOP, of the route's own address family (RFC 8950 next hops may differ).
        as_path: segments, nearest AS first; () for a route that our own AS originated.
        local_preference: None when absent (eBGP).
        med: MULTI_EXIT_DISC, None when absent.
        originator_id, cluster_list: set by route reflectors (RFC 4456).
    """

    next_hop: IPAddress
    origin: Origin = "igp"
    as_path: tuple[Segment, ...] = ()
    local_preference: int | None = None
    med: int | None = None
    communities: tuple[Community, ...] = ()
    large_communities: tuple[LargeCommunity, ...] = ()
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()

    @property
    def as_path_length(self) -> int:
        """Hops as RFC 4271 9.1.2.2 counts them: a set is one."""
        return sum(len(numbers) if kind == "sequence" else 1 for kind, numbers in self.as_path)

    @property
    def neighbour_as(self) -> int:
        """First AS of the path, which MED is compared within; 0 for an empty path."""
        return next((numbers[0] for _, numbers in self.as_path if numbers), 0)

    def count_as(self, number: int) -> int:
        """How often an AS occurs in the path: what loop detection asks."""
        return sum(numbers.count(number) for _, numbers in self.as_path)


@functools.lru_cache(maxsize=65536)
def intern(attributes: Attributes) -> Attributes:
    """The one shared object equal to ``attributes`` (the 65 536 most recently used are kept)."""
    return attributes


@dataclass(frozen=True, slots=True)
class Peer:
    """The far end of a session, as far as judging its routes needs it.

    Attributes:
        address: what the session is known by.
        remote_as, local_as: equal for iBGP.
        router_id: BGP identifier from its OPEN.
    """

    address: IPAddress
    remote_as: int
    local_as: int
    router_id: IPv4Address

    @property
    def external(self) -> bool:
        """Whether this is eBGP."""
        return self.remote_as != self.local_as


@dataclass(frozen=True, slots=True)
class Path:
    """One way to a prefix, in some peer's adj-rib-in.

    Attributes:
        attributes: as import filters have left them.
        received: as the peer sent them, None if that is the same.
        path_id: ADD-PATH identifier as text, "" without ADD-PATH.
        stale: kept from before the session's last restart and not confirmed since (RFC 4724).
        rejected: why import refused it, or "" if it takes part in the decision.
    """

    prefix: Prefix
    peer: Peer
    attributes: Attributes
    path_id: str = ""
    received: Attributes | None = None
    stale: bool = False
    rejected: str = ""
