"""Which of a host's addresses is the node's own. Pure: the host's interfaces are an argument.

The methods are calico/node's (``IP_AUTODETECTION_METHOD``); the order in which interfaces are tried too: the newest
first, because a host's last interface tends to be the one made for the purpose.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from calipy.datastore.validation.fields import is_subdomain
from calipy.errors import InvalidInputError
from calipy.net import Family

EXCLUDED = (
    r"docker.*",
    r"cbr.*",
    r"dummy.*",
    r"podman.*",
    r"virbr.*",
    r"lxcbr.*",
    r"veth.*",
    r"lo",
    r"br-.*",
    r"cali.*",
    r"tunl.*",
    r"flannel.*",
    r"kube-ipvs.*",
    r"cni.*",
    r"vxlan\.calico.*",
    r"vxlan-v6\.calico.*",
    r"wireguard\.cali",
    r"wg-v6\.cali",
    r"nodelocaldns.*",
)
"""Interfaces that never carry a node's own address (calico/node's list)."""


@dataclass(frozen=True, slots=True)
class HostInterface:
    """One interface of the host. ``addresses`` in the kernel's order, with prefix lengths, both families."""

    name: str
    index: int
    up: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()

    def of_family(self, family: Family) -> tuple[IPv4Interface | IPv6Interface, ...]:
        return tuple(a for a in self.addresses if a.version == family)


@dataclass(frozen=True, slots=True)
class Detection:
    """What was found. ``address`` None: nothing. ``reason`` says how, or what was looked at in vain."""

    address: IPv4Interface | IPv6Interface | None
    reason: str


def detect(
    method: str,
    family: Family,
    interfaces: Sequence[HostInterface],
    *,
    source_towards: Callable[[str, Family], str | None],
) -> Detection:
    """The node's address of one family.

    Args:
        method: a checked ``IP_AUTODETECTION_METHOD``.
        family: 4 or 6.
        interfaces: all of the host's.
        source_towards: local address that the kernel would use towards a host or address (``can-reach``), or None.

    Raises:
        InvalidInputError: a regular expression or CIDR in the method cannot be parsed.
    """
    kind, _, argument = method.partition("=")
    if kind == "first-found":
        return _first(family, interfaces, exclude=EXCLUDED, why="first found")
    if kind == "skip-interface":
        patterns = (*EXCLUDED, *_patterns(argument))
        return _first(family, interfaces, exclude=patterns, why=f"first found, without {argument}")
    if kind == "interface":
        return _by_interface(family, interfaces, argument)
    if kind == "cidr":
        return _by_cidr(family, interfaces, argument)
    if kind == "can-reach":
        return _by_reach(family, interfaces, argument, source_towards)
    return Detection(None, f"method {method!r} needs Kubernetes, which this node has not")


def recorded_interfaces(
    interfaces: Sequence[HostInterface], families: Sequence[Family]
) -> list[tuple[str, tuple[str, ...]]]:
    """What ``Node.spec.interfaces`` records: each interface not excluded, by name, its addresses without length.

    Names that Calico's client refuses there (``br_lan``) are left out, lest one of them keep the node from starting.
    """
    return [
        (interface.name, tuple(str(a.ip) for a in interface.addresses if a.version in families))
        for interface in sorted(interfaces, key=lambda i: i.name)
        if not _matches(interface.name, EXCLUDED) and is_subdomain(interface.name)
    ]


def local_prefix(address: str, interfaces: Sequence[HostInterface]) -> str:
    """An address given without length, with the length it has on its interface; unchanged if it is on none."""
    if "/" in address:
        return address
    wanted = ipaddress.ip_address(address)
    for interface in interfaces:
        for own in interface.addresses:
            if own.ip == wanted:
                return str(own)
    return address


def default_pool(interfaces: Sequence[HostInterface]) -> str:
    """Calico's default IPv4 pool: 192.168.0.0/16, else the first of 172.16…172.31 that overlaps no own network."""
    own = [a for interface in interfaces for a in interface.of_family(4)]
    candidates = ["192.168.0.0/16", *(f"172.{n}.0.0/16" for n in range(16, 32))]
    for text in candidates:
        pool = ipaddress.IPv4Network(text)
        if not any(isinstance(a, IPv4Interface) and a.network.overlaps(pool) for a in own):
            return text
    return candidates[0]


def _usable(address: IPv4Interface | IPv6Interface) -> bool:
    ip = address.ip
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


def _patterns(argument: str) -> tuple[str, ...]:
    patterns = tuple(p for p in argument.split(",") if p)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidInputError(
                f"not a regular expression: {error}", field="IP_AUTODETECTION_METHOD", value=pattern
            ) from error
    return patterns


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Exclusions name whole interfaces."""
    return any(re.fullmatch(p, name) for p in patterns)


def _first(family: Family, interfaces: Sequence[HostInterface], *, exclude: Sequence[str], why: str) -> Detection:
    for interface in sorted(interfaces, key=lambda i: -i.index):
        if _matches(interface.name, exclude) or not interface.up:
            continue
        for address in interface.of_family(family):
            if _usable(address):
                return Detection(address, f"{why}: {address} on {interface.name}")
    seen = ", ".join(f"{i.name}{'' if i.up else ' (down)'}" for i in interfaces) or "none"
    return Detection(None, f"no interface has a usable IPv{family} address; interfaces: {seen}")


def _by_interface(family: Family, interfaces: Sequence[HostInterface], argument: str) -> Detection:
    for pattern in _patterns(argument):
        chosen = [i for i in interfaces if re.search(pattern, i.name)]
        found = _first(family, chosen, exclude=(), why=f"interface {pattern!r}")
        if found.address is not None:
            return found
    seen = ", ".join(i.name for i in interfaces) or "none"
    return Detection(None, f"no interface matching {argument!r} has a usable IPv{family} address; interfaces: {seen}")


def _by_cidr(family: Family, interfaces: Sequence[HostInterface], argument: str) -> Detection:
    networks = []
    for text in argument.split(","):
        try:
            networks.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError as error:
            raise InvalidInputError("not a CIDR", field="IP_AUTODETECTION_METHOD", value=text) from error
    for interface in sorted(interfaces, key=lambda i: -i.index):
        for address in interface.of_family(family):
            if any(n.version == family and address.ip in n for n in networks):
                return Detection(address, f"{address} on {interface.name} lies in {argument}")
    return Detection(None, f"no own IPv{family} address lies in {argument}")


def _by_reach(
    family: Family,
    interfaces: Sequence[HostInterface],
    target: str,
    source_towards: Callable[[str, Family], str | None],
) -> Detection:
    source = source_towards(target, family)
    if source is None:
        return Detection(None, f"no IPv{family} route towards {target}")
    for interface in interfaces:
        for address in interface.of_family(family):
            if str(address.ip) == source:
                return Detection(address, f"{address} on {interface.name} is used towards {target}")
    return Detection(None, f"the address used towards {target}, {source}, is on no interface")
