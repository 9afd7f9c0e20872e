"""Matches of iptables rules as predicates over a packet at a hook. Pure.

Semantics are those of the kernel's modules (net/netfilter/xt_*.c, ip_set). What a module cannot tell, or what the
kernel would refuse, raises.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from calipy.felix.sets import KernelSet
from calipy.felix.walk.packet import PORT_PROTOCOLS, PROTOCOLS, Packet, WalkError
from calipy.net import Family, IPAddress, Prefix

_PORT_SLOTS: Final = 15
_SET_TYPES: Final = {"hash:net": 1, "hash:ip": 1, "hash:ip,port": 2}
_SET_PROTOCOLS: Final = {6: "tcp", 17: "udp", 132: "sctp", 136: "udplite"}
_STATES: Final = frozenset({"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "SNAT", "DNAT"})
_ANY_ICMP_TYPE: Final = 255


@dataclass(slots=True)
class Sight:
    """What rules see of a packet at one hook.

    Attributes:
        destination, destination_port: before or after NAT, depending on the hook.
        protocol: number.
        in_interface, out_interface: None where the hook does not know it.
        states: conntrack's, by the names that rules use.
        mark: changes on the way.
        sets: ip sets by kernel name.
    """

    packet: Packet
    destination: IPAddress
    destination_port: int
    protocol: int
    in_interface: str | None
    out_interface: str | None
    states: frozenset[str]
    mark: int
    sets: Mapping[str, KernelSet]


Predicate: TypeAlias = Callable[[Sight], bool]


class Option(NamedTuple):
    """One option of a match: ``! --mark 0/0x1`` → ``--mark``, ("0/0x1",), True."""

    name: str
    arguments: tuple[str, ...]
    negated: bool


def protocol_number(protocol: str | int) -> int:
    """Number of a protocol given by name or number.

    Raises:
        WalkError: an unknown name.
    """
    text = str(protocol)
    number = int(text) if text.isdigit() else PROTOCOLS.get(text.lower())
    if number is None or not 0 < number < 256:
        raise WalkError(f"unknown protocol {protocol!r}")
    return number


def basic(option: Option, family: Family) -> Predicate:
    """Options that need no module: protocol, addresses, interfaces."""
    [argument] = option.arguments
    match option.name:
        case "--protocol":
            number = protocol_number(argument)
            return lambda sight: sight.protocol == number
        case "--source":
            source = _network(argument, family)
            return lambda sight: sight.packet.source in source
        case "--destination":
            destination = _network(argument, family)
            return lambda sight: sight.destination in destination
        case "--in-interface":
            return lambda sight: _is_interface(argument, sight.in_interface)
        case _:
            return lambda sight: _is_interface(argument, sight.out_interface)


def _network(text: str, family: Family) -> Prefix:
    network = ipaddress.ip_network(text)
    if network.version != family:
        raise WalkError(f"{text} in a rule for IPv{family}")
    return network


def _is_interface(pattern: str, interface: str | None) -> bool:
    if interface is None:
        raise WalkError(f"a rule asks for interface {pattern} where a packet has none")
    return interface.startswith(pattern[:-1]) if pattern.endswith("+") else interface == pattern


def mark(option: Option) -> Predicate:
    """``--mark value/mask``."""
    value, mask = masked(option.arguments[0])
    return lambda sight: sight.mark & mask == value


def masked(text: str) -> tuple[int, int]:
    """``value[/mask]`` as numbers; without a mask all bits count."""
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF


def conntrack(option: Option) -> Predicate:
    """``--ctstate A,B``: one of them."""
    wanted = frozenset(option.arguments[0].split(","))
    if not wanted <= _STATES:
        raise WalkError(f"unknown states of connections {sorted(wanted - _STATES)}")
    return lambda sight: not wanted.isdisjoint(sight.states)


def link_group(option: Option) -> Predicate:
    """``--src-group value/mask`` or ``--dst-group``: the packet says which groups its interfaces are in."""
    value, mask = masked(option.arguments[0])

    def predicate(sight: Sight) -> bool:
        interface = sight.in_interface if option.name == "--src-group" else sight.out_interface
        if interface is None:
            raise WalkError("a rule asks for a link group where a packet has no interface")
        return sight.packet.groups.get(interface, 0) & mask == value

    return predicate


def in_set(option: Option, family: Family) -> Predicate:
    """``--match-set name src|dst|src,src|dst,dst``."""
    name, directions = option.arguments
    words = directions.split(",")
    if set(words) not in ({"src"}, {"dst"}):
        raise WalkError(f"directions {directions!r} of set {name}")

    def predicate(sight: Sight) -> bool:
        found = sight.sets.get(name)
        if found is None:
            raise WalkError(f"there is no set {name}")
        if found.family != family or _SET_TYPES.get(found.type) != len(words):
            raise WalkError(f"set {name} of {found.type} in IPv{found.family} is asked for {directions}, IPv{family}")
        source = words[0] == "src"
        address = sight.packet.source if source else sight.destination
        if len(words) == 1:
            return _covers(found.members, address)
        port = sight.packet.source_port if source else sight.destination_port
        protocol = _SET_PROTOCOLS.get(sight.protocol)
        return protocol is not None and f"{address},{protocol}:{port}" in found.members

    return predicate


def _covers(members: set[str], address: IPAddress) -> bool:
    return str(address) in members or any("/" in member and address in _parsed(member) for member in members)


@lru_cache(maxsize=4096)
def _parsed(member: str) -> Prefix:
    return ipaddress.ip_network(member)


def ports(option: Option) -> Predicate:
    """``--source-ports a,b:c`` or ``--destination-ports``; ``--sport`` or ``--dport`` with one of them."""
    ranges = []
    slots = 0
    for part in option.arguments[0].split(","):
        first, colon, last = part.partition(":")
        ranges.append((int(first), int(last if colon else first)))
        slots += 2 if colon else 1
    if slots > _PORT_SLOTS:
        raise WalkError(f"{slots} slots of ports in one match: the kernel takes {_PORT_SLOTS}")
    source = option.name in {"--source-ports", "--sport"}

    def predicate(sight: Sight) -> bool:
        port = sight.packet.source_port if source else sight.destination_port
        return any(first <= port <= last for first, last in ranges)

    return predicate


def icmp(option: Option, family: Family) -> Predicate:
    """``--icmp-type type[/code]``. For IPv4, but not for IPv6, type 255 stands for any."""
    kind, slash, code = option.arguments[0].partition("/")
    wanted, wanted_code = int(kind), int(code) if slash else None

    def predicate(sight: Sight) -> bool:
        found = sight.packet.icmp
        if found is None:
            raise WalkError("an ICMP packet without type")
        if wanted == _ANY_ICMP_TYPE and family == 4:
            return True
        return found.type == wanted and wanted_code in {None, found.code or 0}

    return predicate


def reverse_path(options: tuple[Option, ...]) -> Predicate:
    """``-m rpfilter``: the packet says whether it came by the way that leads back to its source."""
    names = {option.name for option in options}
    inverted = "--invert" in names

    def predicate(sight: Sight) -> bool:
        if not sight.packet.in_interface:
            raise WalkError("a rule asks for the reverse path of a packet that the node itself sends")
        return sight.packet.spoofed == inverted

    return predicate


def address_type(options: tuple[Option, ...]) -> Predicate:
    """``-m addrtype`` for type LOCAL, of the node or, with ``--limit-iface-out``, of the outgoing interface."""
    limited = any(option.name == "--limit-iface-out" for option in options)
    asked = [option for option in options if option.name != "--limit-iface-out"]
    if not asked or any(option.arguments != ("LOCAL",) for option in asked):
        raise WalkError("address types other than LOCAL are not modelled")

    def is_local(sight: Sight, address: IPAddress) -> bool:
        own = sight.packet.own
        if limited:
            return address in own.get(sight.out_interface or "", ())
        return any(address in addresses for addresses in own.values())

    def predicate(sight: Sight) -> bool:
        return all(
            is_local(sight, sight.packet.source if option.name == "--src-type" else sight.destination) != option.negated
            for option in asked
        )

    return predicate


def has_ports(protocol: int) -> bool:
    """Whether a match on ports may stand beside this protocol."""
    return protocol in PORT_PROTOCOLS
