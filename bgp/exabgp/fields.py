"""Fields of ExaBGP's JSON, each checked: what is not as it should be raises ``ValueError`` or ``TypeError``. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import Any, Final, cast

from calipy.bgp.path import (
    NO_ADVERTISE,
    NO_EXPORT,
    NO_EXPORT_SUBCONFED,
    Attributes,
    Community,
    LargeCommunity,
    Origin,
    Segment,
    SegmentKind,
    intern,
)
from calipy.net import Family, IPAddress, Prefix

UINT32: Final = 0xFFFFFFFF
_SEGMENTS: Final[dict[str, SegmentKind]] = {"as-sequence": "sequence", "as-set": "set"}
"""Confederation segments arrive under the name of a sequence; nothing here takes part in a confederation."""
_WELL_KNOWN: Final[dict[str, Community]] = {
    "no-export": NO_EXPORT,
    "no-advertise": NO_ADVERTISE,
    "no-export-subconfed": NO_EXPORT_SUBCONFED,
    "no-peer": (0xFFFF, 0xFF04),
    "blackhole": (0xFFFF, 666),
}


def attributes(raw: Mapping[str, Any], next_hop: object) -> Attributes:
    """Path attributes, of an event or of ``show adj-rib``; interned."""
    origin = raw.get("origin", "igp")
    if origin not in ("igp", "egp", "incomplete"):
        raise ValueError(f"origin {origin!r}")
    originator = raw.get("originator-id")
    return intern(
        Attributes(
            next_hop=address(next_hop),
            origin=cast("Origin", origin),
            as_path=tuple(_segments(raw.get("as-path", {}))),
            local_preference=_optional(raw.get("local-preference")),
            med=_optional(raw.get("med")),
            communities=tuple(cast("Community", _numbers(item, 2)) for item in raw.get("community", ())),
            large_communities=tuple(
                cast("LargeCommunity", _numbers(item, 3)) for item in raw.get("large-community", ())
            ),
            originator_id=None if originator is None else IPv4Address(text(originator)),
            cluster_list=tuple(IPv4Address(text(item)) for item in raw.get("cluster-list", ())),
        )
    )


def _segments(raw: Mapping[str, Any]) -> Iterator[Segment]:
    for _, segment in sorted(raw.items(), key=lambda item: int(item[0])):
        yield Segment(_SEGMENTS[segment["element"]], tuple(integer(number) for number in segment["value"]))


def _numbers(item: object, count: int) -> tuple[int, ...]:
    """Communities are lists of numbers in events and ``a:b`` texts (or names) in ``show adj-rib``."""
    if isinstance(item, str):
        if item in _WELL_KNOWN and count == 2:
            return _WELL_KNOWN[item]
        item = [int(part) for part in item.split(":")]
    if not isinstance(item, list) or len(item) != count:
        raise ValueError(f"community {item!r:.40}")
    return tuple(integer(number) for number in item)


def prefix(value: object, family: Family) -> Prefix:
    """A prefix of this family without host bits."""
    found = ipaddress.ip_network(text(value))
    if found.version != family:
        raise ValueError(f"{value} is not IPv{family}")
    return found


def address(value: object) -> IPAddress:
    """An address of either family."""
    return ipaddress.ip_address(text(value))


def text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def integer(value: object) -> int:
    """A number of at most 32 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= UINT32:
        raise TypeError(f"{value!r:.40} is not a 32-bit number")
    return value


def _optional(value: object) -> int | None:
    return None if value is None else integer(value)
