"""What happens to links, addresses and routes, as it happens.

Events are hints, never the truth: after an ``Overrun`` some are lost, and the kernel drops the IPv4 routes of a link
that goes down without a word. Whoever needs the state dumps it; the monitor says when.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from calipy.kernel import links, netlink, netns, routes
from calipy.kernel.links import Link, LinkAddress
from calipy.net import Prefix

_GROUP_LINK: Final = 0x1
_GROUP_IPV4_ADDRESS: Final = 0x10
_GROUP_IPV4_ROUTE: Final = 0x40
_GROUP_IPV6_ADDRESS: Final = 0x100
_GROUP_IPV6_ROUTE: Final = 0x400
_RECEIVE_BUFFER: Final = 16 * 1024 * 1024
_AF_BRIDGE: Final = 7
_YIELD_EVERY: Final = 64


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """An interface appeared, changed (``gone`` False) or disappeared."""

    link: Link
    gone: bool

    @property
    def name(self) -> str:
        """Interface name at the time of the event."""
        return self.link.name

    @property
    def index(self) -> int:
        """Interface index."""
        return self.link.index

    @property
    def up(self) -> bool:
        """It can pass packets: set up and with a carrier."""
        return self.link.running and not self.gone


@dataclass(frozen=True, slots=True)
class AddressEvent:
    """An address was added, changed (a tentative one became usable) or removed."""

    address: LinkAddress
    gone: bool


@dataclass(frozen=True, slots=True)
class RouteEvent:
    """A route was written or deleted by anyone, ourselves included."""

    dst: Prefix
    protocol: int
    table: int
    gone: bool


@dataclass(frozen=True, slots=True)
class Overrun:
    """Events were lost: read the state again."""


Event: TypeAlias = LinkEvent | AddressEvent | RouteEvent | Overrun


class Monitor:
    """Asynchronous iterator of events; ends only when closed. Events count from the constructor on.

    Open it first and dump the state after that, then no change can fall between.
    """

    def __init__(
        self,
        *,
        links: bool = True,
        addresses: bool = True,
        routes: bool = True,
        netns_fd: int | None = None,
        receive_buffer: int = _RECEIVE_BUFFER,
    ) -> None:
        """Start to listen.

        Args:
            links: hear of interfaces.
            addresses: hear of addresses, IPv4 and IPv6.
            routes: hear of routes of all tables, IPv4 and IPv6.
            netns_fd: namespace to watch, or None for the calling thread's; needed during this call only.
            receive_buffer: bytes of events to hold while nobody reads, about 1 kB each.
        """
        groups = _GROUP_LINK if links else 0
        groups |= _GROUP_IPV4_ADDRESS | _GROUP_IPV6_ADDRESS if addresses else 0
        groups |= _GROUP_IPV4_ROUTE | _GROUP_IPV6_ROUTE if routes else 0

        def listen() -> socket.socket:
            return netlink.open_socket(groups=groups, receive_buffer=receive_buffer)

        self._socket = listen() if netns_fd is None else netns.run_in(netns_fd, listen)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Stop; an iteration under way must have been cancelled."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        burst = 0
        while True:
            try:
                datagram = await loop.sock_recv(self._socket, netlink.RECEIVE_SIZE)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._drain()
                yield Overrun()
                continue
            for event in self._decode(datagram):
                yield event
            burst += 1
            if burst % _YIELD_EVERY == 0:  # sock_recv does not suspend while there is data: let others run
                await asyncio.sleep(0)

    def _drain(self) -> None:
        """Throw away what is queued: the kernel drops all further events, silently, until the queue is empty."""
        while True:
            try:
                self._socket.recv(netlink.RECEIVE_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _decode(self, datagram: bytes) -> Iterator[Event]:
        for kind, _flags, _sequence, body in netlink.split(datagram):
            if kind in {links.RTM_NEWLINK, links.RTM_DELLINK}:
                if body[0] != _AF_BRIDGE:  # a bridge's port has news, not the link itself
                    yield LinkEvent(links.decode_link(body), gone=kind == links.RTM_DELLINK)
            elif kind in {links.RTM_NEWADDR, links.RTM_DELADDR}:
                name = netlink.interface_name(self._socket, links.address_index(body))
                yield AddressEvent(links.decode_address(body, name), gone=kind == links.RTM_DELADDR)
            elif kind in {routes.RTM_NEWROUTE, routes.RTM_DELROUTE}:
                dst, table, protocol = routes.decode_key(body)
                yield RouteEvent(dst, protocol, table, gone=kind == routes.RTM_DELROUTE)
