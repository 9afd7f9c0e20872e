"""What a pod's interface needs beside routes: sysctls and neighbour entries."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address
from typing import Final

from calipy import log
from calipy.errors import InvalidInputError, KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.delta import Difference
from calipy.felix.messages import WorkloadEndpoint
from calipy.kernel import netlink, sysctl
from calipy.kernel.links import Links, Neighbour, parse_mac
from calipy.kernel.netlink import NetlinkSocket

_logger = log.get("felix.endpoints")

GONE: Final = frozenset({errno.ENODEV, errno.ENETDOWN, errno.ESRCH})
"""Errors of an interface that vanished or went down meanwhile: its event is on the way."""

_RTM_GETNETCONF: Final = 82
_NETCONFA_IFINDEX: Final = 1
_NETCONFA_FORWARDING: Final = 2
_NETCONFA_PROXY_NEIGH: Final = 5


class Interfaces:
    """Parameters of the interfaces with an endpoint, in the process's network namespace. Calls do not overlap.

    Attributes:
        endpoints: interface → the endpoint that has it.
        problems: interfaces that are not fully set up → why.
    """

    def __init__(self, netlink_socket: NetlinkSocket, config: FelixConfig) -> None:
        """Nothing is read or written yet."""
        self._socket = netlink_socket
        self._links = Links(netlink_socket)
        self._config = config
        self._dirty: set[str] = set()
        self.endpoints: dict[str, WorkloadEndpoint] = {}
        self.problems: dict[str, str] = {}

    def reconfigure(self, config: FelixConfig) -> None:
        """Take over new parameters."""
        self._config = config
        self.recheck()

    def set_endpoint(self, interface: str, endpoint: WorkloadEndpoint | None) -> bool:
        """The endpoint that has the interface now, None for none; True if it is another one than before."""
        if self.endpoints.get(interface) == endpoint:
            return False
        self.problems.pop(interface, None)
        if endpoint is None:
            del self.endpoints[interface]
            self._dirty.discard(interface)
        else:
            self.endpoints[interface] = endpoint
            self._dirty.add(interface)
        return True

    def recheck(self, interface: str | None = None) -> None:
        """Have the next ``write`` look at everything of an interface, or of all."""
        self._dirty |= self.endpoints.keys() & {interface} if interface else self.endpoints.keys()

    def glance(self, indexes: Mapping[int, str]) -> None:
        """See in two netlink exchanges whether somebody has changed the main sysctls of an interface.

        What looks wrong is put right, and reported, by the next ``write``. The rest is looked at by ``recheck``.

        Args:
            indexes: interfaces that have been set up, by index.
        """
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._socket.dump("read interface parameters", _getnetconf(family)):
                found = netlink.attributes(body, 4)
                name = indexes.get(_number(found[_NETCONFA_IFINDEX]))
                if name is None or (family == socket.AF_INET6 and not self._config.ipv6_support):
                    continue
                if any(_number(found[kind]) != 1 for kind in (_NETCONFA_FORWARDING, _NETCONFA_PROXY_NEIGH)):
                    self.recheck(name)

    def waiting(self, up: AbstractSet[str]) -> bool:
        """Whether ``write`` left something to be tried again of the interfaces that are ``up``."""
        return not self._dirty.isdisjoint(up)

    def write(self, up: AbstractSet[str], settling: AbstractSet[str]) -> list[Difference]:
        """Bring sysctls and neighbours in line. Cost follows what is dirty. What fails is in ``problems``.

        Args:
            up: the interfaces that exist and can pass packets.
            settling: those among them that are new or have a new endpoint.

        Returns:
            The sysctls of settled interfaces that somebody has changed.
        """
        done = set()
        drift: list[Difference] = []
        neighbours: list[Neighbour] = []
        for interface in sorted(self._dirty & up):
            endpoint = self.endpoints[interface]
            try:
                changed = self._write_sysctls(interface, endpoint)
            except KernelError as error:
                self.problems[interface] = str(error)
                continue
            self.problems.pop(interface, None)
            if interface not in settling:
                drift += changed
            done.add(interface)
            try:
                neighbours += _neighbours(endpoint)
            except InvalidInputError as error:
                self.problems[interface] = str(error)
        for entry, code in zip(neighbours, self._links.set_neighbours(neighbours), strict=True):
            if code and code not in GONE:
                self.problems[entry.interface] = f"neighbour {entry.address}: {errno.errorcode.get(code, code)}"
                done.discard(entry.interface)
        self._dirty -= done
        return drift

    def _write_sysctls(self, interface: str, endpoint: WorkloadEndpoint) -> list[Difference]:
        """Felix's list. The strict check of source addresses is the rule in the raw table, not ``rp_filter``."""
        spoofing = bool(endpoint.spoof_prefixes and self._config.spoofing_allowed)
        rp_filter = "0" if spoofing else sysctl.read("net/ipv4/conf/default/rp_filter")
        changed = _settle(f"net/ipv4/conf/{interface}/route_localnet", "1")
        try:
            changed += _settle(f"net/ipv4/neigh/{interface}/proxy_delay", "0")
        except KernelError as error:
            _logger.debug("cannot make proxy ARP answer at once", interface=interface, error=str(error))
        changed += _settle(f"net/ipv4/conf/{interface}/proxy_arp", "1")
        changed += _settle(f"net/ipv4/conf/{interface}/forwarding", "1")
        changed += _settle(f"net/ipv4/conf/{interface}/rp_filter", rp_filter)
        if not self._config.ipv6_support:
            return changed
        try:
            changed += _settle(f"net/ipv6/conf/{interface}/accept_ra", "0")
            changed += _settle(f"net/ipv6/conf/{interface}/proxy_ndp", "1")
            changed += _settle(f"net/ipv6/conf/{interface}/forwarding", "1")
        except KernelError:
            if any(":" in net for net in endpoint.nets):
                raise
        return changed


def _neighbours(endpoint: WorkloadEndpoint) -> list[Neighbour]:
    """Entries that spare the node to ask an enabled pod for its MAC address.

    Raises:
        InvalidInputError: the MAC address is none.
    """
    if not (endpoint.mac and endpoint.admin_up):
        return []
    parse_mac(endpoint.mac)
    addresses = (ipaddress.ip_network(net).network_address for net in endpoint.nets)
    return [Neighbour(endpoint.interface, a, endpoint.mac) for a in addresses if isinstance(a, IPv4Address)]


def _settle(key: str, value: str) -> list[Difference]:
    """Write a sysctl unless it has the value; what it was instead."""
    found = sysctl.read(key)
    if found == value:
        return []
    sysctl.write(key, value)
    return [Difference("sysctl", key, value, found)]


def _getnetconf(family: int) -> bytes:
    return netlink.message(_RTM_GETNETCONF, 0, struct.pack("=B3x", family))


def _number(data: bytes) -> int:
    return int(struct.unpack("=i", data)[0])
