"""Small values of rules that every part of policy shares: ids, ports, protocols, ICMP types, members of ip sets."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from calipy.errors import InvalidInputError

Action: TypeAlias = Literal["allow", "deny", "pass", "log"]

PORT_PROTOCOLS: Final = frozenset({"tcp", "udp", "sctp"})
"""Protocols whose packets a rule may ask for ports."""

PROTOCOL_NAMES: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
"""Protocols that have a name in Calico's API."""

_NAMED_PROTOCOLS: Final = frozenset(PROTOCOL_NAMES.values())
_DIGITS = re.compile(r"[0-9]{1,5}")
_RANGE = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_HOST_V4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!/)|(?=/))){4}/32")


class PolicyID(NamedTuple):
    """A policy by kind (``NetworkPolicy``, ``GlobalNetworkPolicy``), namespace ("" for global kinds) and name."""

    kind: str
    namespace: str
    name: str


class PortRange(NamedTuple):
    """Ports ``first``..``last``, both included; a single port has them equal."""

    first: int
    last: int


class ICMP(NamedTuple):
    """ICMP type, and code or None for any."""

    type: int
    code: int | None


def protocol(value: int | str | None, field: str) -> int | str | None:
    """A protocol as rules hold it: lower-case name, or a number that has none. None stays None.

    Raises:
        InvalidInputError: neither a known name nor 1-255.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value.lower() in _NAMED_PROTOCOLS:
            return value.lower()
        if _DIGITS.fullmatch(value):
            value = int(value)
    if isinstance(value, int) and 1 <= value <= 255:
        return PROTOCOL_NAMES.get(value, value)
    raise InvalidInputError(
        "not a protocol", field=field, value=value, remedy="TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or 1-255"
    )


def port(value: int | str, field: str) -> PortRange | str:
    """A port as rules hold it: a range, or the name of a port.

    Raises:
        InvalidInputError: no number 0-65535, ascending range ``a:b`` or name.
    """
    text = str(value)
    if _DIGITS.fullmatch(text) or _RANGE.fullmatch(text):
        first, _, last = text.partition(":")
        found = PortRange(int(first), int(last or first))
        if found.first <= found.last <= 65535:
            return found
    elif _PORT_NAME.fullmatch(text):
        return text
    raise InvalidInputError(
        "not a port", field=field, value=value, remedy="a number 0-65535, a range '80:90' or a name"
    )


@lru_cache(maxsize=65536)
def cidr(text: str) -> str:
    """Canonical CIDR of an address or CIDR, host bits cleared: ``10.1.2.3/8`` → ``10.0.0.0/8``, ``::1`` → ``::1/128``.

    Raises:
        ValueError: neither an address nor a CIDR.
    """
    return str(ipaddress.ip_network(text, strict=False))


def host_address(text: str) -> str:
    """The bare address of a /32 or /128 CIDR or of an address, in canonical form.

    Raises:
        ValueError: a wider CIDR, or none at all.
    """
    if _HOST_V4.fullmatch(text):  # the overwhelming case, ten times faster than the general one
        return text[:-3]
    interface = ipaddress.ip_interface(text)
    if interface.network.prefixlen != interface.max_prefixlen:
        raise ValueError(f"{text!r} is not a single address")
    return str(interface.ip)


def set_members(text: str) -> tuple[str, ...]:
    """How an address or CIDR stands in a ``hash:net`` set: bare for a host; ``/0`` as its two halves, which the kernel
    needs.

    Raises:
        ValueError: neither an address nor a CIDR.
    """
    network = ipaddress.ip_network(text, strict=False)
    if network.prefixlen == network.max_prefixlen:
        return (str(network.network_address),)
    if network.prefixlen == 0:
        return tuple(str(half) for half in network.subnets())
    return (str(network),)
