"""The lab's name server at the gateway of its management network: knows the nodes, nothing else.

Docker's resolver knows containers by name and alias; so does this one, and it knows short names and FQDNs, too. It
answers from what the lab has; other names do not exist. ``answer`` is pure, ``serve`` the edge.
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from calipy.containerlab.management import Addresses
from calipy.containerlab.model import Node

PORT = 53
_HEADER = struct.Struct("!HHHHHH")
_A, _AAAA, _ANY = 1, 28, 255
_IN = 1
_RESPONSE, _AUTHORITATIVE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x0400, 0x0100, 0x0080
_FORMAT_ERROR, _NO_SUCH_NAME, _NOT_IMPLEMENTED = 1, 3, 4
_TTL = 5

Names = Mapping[str, Addresses]
"""Lower-case names to addresses."""


def names(nodes: Iterable[tuple[Node, Addresses]]) -> dict[str, Addresses]:
    """Every name by which nodes are known."""
    known: dict[str, Addresses] = {}
    for node, addresses in nodes:
        for name in (node.name, node.hostname, node.long_name, node.fqdn, *node.aliases):
            if name:
                known.setdefault(name.lower().rstrip("."), addresses)
    return known


def answer(query: bytes, known: Names) -> bytes | None:
    """The response to a query datagram (RFC 1035); None for what is no query at all."""
    if len(query) < _HEADER.size:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & _RESPONSE:
        return None
    base = _RESPONSE | _AUTHORITATIVE | _RECURSION_AVAILABLE | (flags & _RECURSION_DESIRED)
    if flags & 0x7800:
        return _HEADER.pack(number, base | _NOT_IMPLEMENTED, 0, 0, 0, 0)
    try:
        name, end = _name(query, _HEADER.size)
        kind, network = struct.unpack_from("!HH", query, end)
    except (IndexError, struct.error, UnicodeDecodeError):
        questions = 0
    if questions != 1:
        return _HEADER.pack(number, base | _FORMAT_ERROR, 0, 0, 0, 0)
    question = query[_HEADER.size : end + 4]
    addresses = known.get(name.lower())
    if addresses is None:
        return _HEADER.pack(number, base | _NO_SUCH_NAME, 1, 0, 0, 0) + question
    wanted = {_A: addresses.ipv4, _AAAA: addresses.ipv6} if network in {_IN, _ANY} else {}
    records = [
        struct.pack("!HHHIH", 0xC000 | _HEADER.size, record, _IN, _TTL, len(packed)) + packed
        for record, address in wanted.items()
        if address and kind in {record, _ANY} and (packed := ipaddress.ip_address(address).packed)
    ]
    return _HEADER.pack(number, base, 1, len(records), 0, 0) + question + b"".join(records)


def _name(message: bytes, offset: int) -> tuple[str, int]:
    """A name of the question section, which is never compressed, and where it ends."""
    labels = []
    while length := message[offset]:
        if length > 63:  # the two high bits mark a pointer
            raise IndexError
        labels.append(message[offset + 1 : offset + 1 + length].decode("ascii"))
        offset += 1 + length
    return ".".join(labels), offset + 1


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, known: Callable[[], Names]) -> None:
        self._known = known
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = answer(data, self._known())
        if response is not None and self._transport is not None:
            self._transport.sendto(response, addr)


async def serve(address: str, known: Callable[[], Names]) -> asyncio.DatagramTransport:
    """Answer queries at UDP port 53 of ``address`` until the transport is closed. Raises OSError: it is taken."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Protocol(known), local_addr=(address, PORT))
    return transport
