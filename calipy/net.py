"""Value types of the network that all components share. Pure: nothing here does I/O."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
"""An address with the length of its prefix, as interfaces carry it."""
Prefix: TypeAlias = IPv4Network | IPv6Network
Family: TypeAlias = Literal[4, 6]

RouteKind: TypeAlias = Literal["unicast", "blackhole", "unreachable", "prohibit", "throw", "local", "other"]

# Route protocol numbers: how our routes are recognised as ours after a restart (`ip route` shows them by name where
# /etc/iproute2/rt_protos.d/calipy.conf is installed).
PROTO_WORKLOAD = 3
"""``boot``: routes to local pods (Felix's DeviceRouteProtocol)."""
PROTO_FELIX = 80
"""Felix's own number: cluster routes that the agent programs, and then blackholes of local blocks."""
PROTO_BGP = 82
"""Ours: routes learned by BGP. Not 11, 12 or 186, whose daemons clean up what carries their number."""

NORMAL_METRIC = 1024
"""Felix's IPv4/IPv6NormalRoutePriority."""

HOST_MAC = "ee:ee:ee:ee:ee:ee"
"""MAC of the host end of every pod's veth; its EUI-64 link-local address is ``HOST_LINK_LOCAL``."""
HOST_LINK_LOCAL = "fe80::ecee:eeff:feee:eeee"
POD_GATEWAY = "169.254.1.1"
"""The pod's IPv4 default gateway, answered by proxy ARP on the host end."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """One way out of a route.

    Attributes:
        gateway: next router's address, or None for a route straight to the link.
        interface: name of the outgoing device, or "" to let the kernel resolve ``gateway``.
        onlink: pretend that ``gateway`` is on the link (tunnels).
        weight: share among several next hops, 1 based.
    """

    gateway: IPAddress | None = None
    interface: str = ""
    onlink: bool = False
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """A kernel route. The kernel's key is ``(dst, table, metric)``; see ``key``.

    Attributes:
        dst: destination; ``0.0.0.0/0`` or ``::/0`` for a default route.
        kind: ``unicast`` needs next hops, the others have none.
        next_hops: empty unless unicast; several mean ECMP.
        protocol: who wrote it, one of the PROTO_ numbers for ours.
        metric: priority, lower wins. The kernel stores IPv6 metric 0 as 1024.
        scope: ``link`` for routes straight to a device, else ``global``.
        source: preferred source address, or None.
        table: routing table, 254 is main.
        origin: why we want it, for people; never compared.
    """

    dst: Prefix
    kind: RouteKind = "unicast"
    next_hops: tuple[NextHop, ...] = ()
    protocol: int = PROTO_FELIX
    metric: int = 0
    scope: Literal["global", "link", "host", "nowhere"] = "global"
    source: IPAddress | None = None
    table: int = 254
    origin: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[Prefix, int, int]:
        """What the kernel tells routes apart by."""
        return (self.dst, self.table, self.metric)


def parse_prefix(text: str) -> Prefix:
    """``10.0.0.0/26`` or ``fd00::/122`` or a bare address (a host prefix); host bits are cleared.

    Raises:
        ValueError: not an address or prefix.
    """
    return ipaddress.ip_network(text, strict=False)


def host_prefix(address: IPAddress) -> Prefix:
    """The /32 or /128 of an address."""
    return ipaddress.ip_network(address)


def family_of(text: str) -> Family:
    """4 or 6, from the text of an address or prefix alone."""
    return 6 if ":" in text else 4
