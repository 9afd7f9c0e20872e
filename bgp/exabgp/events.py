"""What ExaBGP 5.0 says on its API pipe, as values. Pure, and total: any line gives an event, never an exception.

One stream carries three things: events (objects with the key ``exabgp``), answers to ``show`` commands (objects with
``peer`` and ``route``, or one array of neighbours) and the acknowledgements ``done`` and ``error``. Peers choose much
of what is in these lines, so that every field is checked; a line that does not hold what it should becomes
``Malformed`` and the routes in it are not used. The peer-controlled part is already decoded BGP: ExaBGP handles
broken UPDATEs itself (RFC 7606).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final, Literal, TypeAlias

import msgspec

from calipy.bgp.exabgp import fields
from calipy.bgp.path import Attributes
from calipy.net import Family, IPAddress, Prefix


@dataclass(frozen=True, slots=True)
class Ack:
    """A command was taken up (``ok``; not: was sent) or refused. Carries no hint at which command."""

    ok: bool


@dataclass(frozen=True, slots=True)
class StateEvent:
    """A session came up or went down. ``connected`` is noise: it comes with every refused attempt."""

    peer: IPAddress
    state: Literal["connected", "up", "down"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """The peer's OPEN.

    Attributes:
        restart_time: seconds from its graceful restart capability, None if it has none (RFC 4724).
        restarted: the R bit: the speaker has just restarted.
        preserved: families whose F bit is set: it kept forwarding.
        graceful: families listed in the capability.
    """

    peer: IPAddress
    remote_as: int
    local_as: int
    router_id: IPv4Address
    hold_time: int
    restart_time: int | None = None
    restarted: bool = False
    preserved: frozenset[Family] = frozenset()
    graceful: frozenset[Family] = frozenset()


@dataclass(frozen=True, slots=True)
class Announced:
    """One announced prefix; paths of one UPDATE share their ``attributes``."""

    prefix: Prefix
    attributes: Attributes
    path_id: str = ""


@dataclass(frozen=True, slots=True)
class UpdateEvent:
    """An UPDATE: withdrawals first, as RFC 4271 has it."""

    peer: IPAddress
    withdrawn: tuple[tuple[Prefix, str], ...]
    announced: tuple[Announced, ...]


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """The peer has told all it has of one family."""

    peer: IPAddress
    family: Family


@dataclass(frozen=True, slots=True)
class RefreshEvent:
    """ROUTE-REFRESH: ``query`` asks us (ExaBGP answers itself); ``begin`` and ``end`` bracket an answer (RFC 7313)."""

    peer: IPAddress
    family: Family
    subtype: Literal["query", "begin", "end"]


@dataclass(frozen=True, slots=True)
class NotificationEvent:
    """The peer closed the session with a NOTIFICATION."""

    peer: IPAddress
    code: int
    subcode: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One entry of ``show neighbor json``; ``seconds`` in state up, ``router_id`` None while there was no OPEN."""

    peer: IPAddress
    local: IPAddress
    up: bool
    seconds: int
    local_as: int
    remote_as: int
    router_id: IPv4Address | None
    graceful: bool


@dataclass(frozen=True, slots=True)
class NeighbourTable:
    """The answer to ``show neighbor json``."""

    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class ShownRoute:
    """One line of ``show adj-rib in|out json`` in format v2. Does not say which of the two was asked for."""

    peer: IPAddress
    route: Announced


@dataclass(frozen=True, slots=True)
class Resync:
    """First line of a connection from the relay.

    Attributes:
        relay: the relay's process id; another one than before means that ExaBGP has started it anew.
        exabgp: its parent's process id.
        outstanding: commands forwarded earlier whose acknowledgement is still to come.
        dropped: bytes that nobody was there to read since the last connection.
    """

    relay: int
    exabgp: int
    outstanding: int
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """Any other line: the words of an answer such as ``exabgp 5.0.15``."""

    line: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that should have been an event but is not usable. ``peer`` if that much could be read."""

    reason: str
    line: str
    peer: IPAddress | None = None


Event: TypeAlias = (
    Ack
    | StateEvent
    | OpenEvent
    | UpdateEvent
    | EndOfRib
    | RefreshEvent
    | NotificationEvent
    | NeighbourTable
    | ShownRoute
    | Resync
    | Text
    | Malformed
)

_FAMILIES: Final[dict[str, Family]] = {"ipv4 unicast": 4, "ipv6 unicast": 6}
_EXCERPT: Final = 200
_decode = msgspec.json.Decoder().decode


def parse(line: bytes) -> Event:
    """One line, without its newline, of any length. O(length)."""
    if line == b"done":
        return Ack(ok=True)
    if line == b"error":
        return Ack(ok=False)
    if line[:1] not in (b"{", b"["):
        return Text(line.decode("utf-8", "replace"))
    peer: IPAddress | None = None
    try:
        message = _decode(line)
        if isinstance(message, list):
            return NeighbourTable(tuple(_neighbour(entry) for entry in message))
        if "route" in message:
            return _shown_route(message)
        if "relay" in message:
            return Resync(
                fields.integer(message["relay"]),
                fields.integer(message["exabgp"]),
                fields.integer(message["outstanding"]),
                fields.integer(message.get("dropped", 0)),  # an adopted relay may be older
            )
        peer = fields.address(message["neighbor"]["address"]["peer"])
        handler = _HANDLERS.get(message["type"])
        if handler is None:
            return Malformed(f"unknown type {message['type']!r:.40}", _excerpt(line), peer)
        return handler(peer, message["neighbor"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, msgspec.DecodeError) as error:
        return Malformed(f"{type(error).__name__}: {error!s:.100}", _excerpt(line), peer)


def _excerpt(line: bytes) -> str:
    return line[:_EXCERPT].decode("utf-8", "replace")


def _state(peer: IPAddress, neighbor: Mapping[str, Any]) -> Event:
    state = neighbor["state"]
    if state not in ("connected", "up", "down"):
        raise ValueError(f"state {state!r}")
    return StateEvent(peer, state, str(neighbor.get("reason", "")))


def _open(peer: IPAddress, neighbor: Mapping[str, Any]) -> Event:
    body = neighbor["open"]
    capabilities = body["capabilities"]
    # The OPEN's own field holds AS_TRANS for a 4-octet AS; capability 65 holds the real one (RFC 6793).
    remote_as = fields.integer(capabilities.get("65", {}).get("asn4", body["asn"]))
    restart_time: int | None = None
    restarted = False
    graceful: set[Family] = set()
    preserved: set[Family] = set()
    if (capability := capabilities.get("64")) is not None:
        restart_time = fields.integer(capability["time"])
        # ExaBGP's words are swapped: "restart" of a family is the F bit, "forwarding" at the top the R bit.
        restarted = "forwarding" in capability["restart-flags"]
        for name, flags in capability["address-family-flags"].items():
            if (family := _FAMILIES.get(name.replace("/", " "))) is not None:
                graceful.add(family)
                if "restart" in flags:
                    preserved.add(family)
    return OpenEvent(
        peer,
        remote_as,
        fields.integer(neighbor["asn"]["local"]),
        IPv4Address(fields.text(body["router_id"])),
        fields.integer(body["hold_time"]),
        restart_time,
        restarted,
        frozenset(preserved),
        frozenset(graceful),
    )


def _update(peer: IPAddress, neighbor: Mapping[str, Any]) -> Event:
    message = neighbor["message"]
    if (marker := message.get("eor")) is not None:
        return EndOfRib(peer, _FAMILIES[f"{marker['afi']} {marker['safi']}"])
    body = message["update"]
    withdrawn = tuple(
        (fields.prefix(nlri["nlri"], family), fields.text(nlri.get("path-information", "")))
        for name, entries in body.get("withdraw", {}).items()
        if (family := _FAMILIES.get(name)) is not None
        for nlri in entries
    )
    raw = body.get("attribute", {})
    announced: list[Announced] = []
    for name, by_next_hop in body.get("announce", {}).items():
        if (family := _FAMILIES.get(name)) is None:
            continue
        for next_hop, entries in _global_first(by_next_hop).items():
            attributes = fields.attributes(raw, next_hop)
            announced += [
                Announced(
                    fields.prefix(nlri["nlri"], family), attributes, fields.text(nlri.get("path-information", ""))
                )
                for nlri in entries
            ]
    return UpdateEvent(peer, withdrawn, tuple(announced))


def _global_first(by_next_hop: Mapping[str, Any]) -> Mapping[str, Any]:
    """NLRI by next hop, without the link-local ones that only accompany a global one.

    An UPDATE has one next hop, which RFC 2545 lets have both addresses; ExaBGP then tells every NLRI twice.
    """
    if len(by_next_hop) < 2:
        return by_next_hop
    known = {hop: nlri for hop, nlri in by_next_hop.items() if not fields.address(hop).is_link_local}
    return known or by_next_hop


def _refresh(peer: IPAddress, neighbor: Mapping[str, Any]) -> Event:
    body = neighbor["route-refresh"]
    if body["subtype"] not in ("query", "begin", "end"):
        raise ValueError(f"subtype {body['subtype']!r}")
    return RefreshEvent(peer, _FAMILIES[f"{body['afi']} {body['safi']}"], body["subtype"])


def _notification(peer: IPAddress, neighbor: Mapping[str, Any]) -> Event:
    body = neighbor["message"]["notification"] if "message" in neighbor else neighbor["notification"]
    return NotificationEvent(
        peer, fields.integer(body["code"]), fields.integer(body["subcode"]), str(body.get("message", ""))[:200]
    )


_HANDLERS: Final[dict[str, Callable[[IPAddress, Mapping[str, Any]], Event]]] = {
    "state": _state,
    "open": _open,
    "update": _update,
    "refresh": _refresh,
    "notification": _notification,
}


def _neighbour(entry: Mapping[str, Any]) -> Neighbour:
    local, peer = entry["local"], entry["peer"]
    identifier = peer["id"]
    return Neighbour(
        peer=fields.address(peer["address"]),
        local=fields.address(local["address"]),
        # "state" is "up" only after the first second, and "duration" before that is how long the session was down.
        up=fields.text(entry["fsm"]) == "ESTABLISHED",
        seconds=fields.integer(entry["duration"]) if entry["state"] == "up" else 0,
        local_as=fields.integer(local["as"]),
        remote_as=fields.integer(peer["as"]),
        router_id=IPv4Address(identifier) if isinstance(identifier, str) else None,
        graceful=peer["capabilities"].get("graceful-restart") is True,
    )


def _shown_route(message: Mapping[str, Any]) -> ShownRoute:
    nlri = message["route"]["nlri"]
    family = _FAMILIES[f"{nlri['family']['afi']} {nlri['family']['safi']}"]
    peer, hop = (
        fields.address(message["peer"]["address"]),
        fields.address(nlri["nexthop"]),
    )
    if hop.is_link_local and not peer.is_link_local:
        # Of two next hops ExaBGP keeps the link-local one; it stands beside a global one of the speaker (RFC 2545 3).
        hop = peer
    attributes = fields.attributes(message["route"]["attributes"], str(hop))
    route = Announced(fields.prefix(nlri["prefix"], family), attributes, fields.text(nlri.get("path-information", "")))
    return ShownRoute(peer, route)
