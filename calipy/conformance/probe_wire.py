"""Packets of probes that the kernel's sockets do not make: ICMP requests, and SCTP's INIT and INIT ACK (RFC 4960).

Pure: bytes in, bytes out. Messages begin after the IP header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

ICMP_REPLIES: Final = {4: {8: 0, 13: 14}, 6: {128: 129}}
"""By family the requests that every kernel answers → type of the reply."""

INIT: Final = 1
INIT_ACK: Final = 2

_ICMP: Final = struct.Struct("!BBHHH")
_SCTP: Final = struct.Struct("!HHI")
_CHUNK: Final = struct.Struct("!BBHIIHHI")
_COOKIE: Final = struct.pack("!HHI", 7, 8, 0xCA11_1500)
_WINDOW: Final = 65536


@dataclass(frozen=True, slots=True)
class InitChunk:
    """An SCTP packet whose first chunk is INIT or INIT ACK. ``tag`` is the sender's, ``peer_tag`` the receiver's."""

    kind: int
    source_port: int
    destination_port: int
    peer_tag: int
    tag: int


def icmp_request(kind: int, code: int, identifier: int, token: bytes) -> bytes:
    """A request with ``token`` (12 bytes, as long as a timestamp's body) as its content.

    The checksum is that of IPv4; for ICMPv6 the kernel writes it over with its own.
    """
    unsummed = _ICMP.pack(kind, code, 0, identifier, 1) + token
    return _ICMP.pack(kind, code, _internet_checksum(unsummed), identifier, 1) + token


def icmp_answer(message: bytes) -> tuple[int, int] | None:
    """Type and identifier of an ICMP message, None if it is too short to have any."""
    if len(message) < _ICMP.size:
        return None
    kind, _code, _checksum, identifier, _sequence = _ICMP.unpack_from(message)
    return kind, identifier


def without_ip_header(packet: bytes) -> bytes:
    """What an IPv4 packet carries."""
    return packet[(packet[0] & 0xF) * 4 :]


def sctp_packet(init: InitChunk) -> bytes:
    """The packet, with the checksum without which connection tracking takes it for invalid."""
    cookie = _COOKIE if init.kind == INIT_ACK else b""
    chunk = _CHUNK.pack(init.kind, 0, _CHUNK.size + len(cookie), init.tag, _WINDOW, 1, 1, init.tag) + cookie
    ports = _SCTP.pack(init.source_port, init.destination_port, init.peer_tag)
    return ports + struct.pack("<I", crc32c(ports + bytes(4) + chunk)) + chunk


def sctp_init(message: bytes) -> InitChunk | None:
    """Read a packet; None if it does not begin with INIT or INIT ACK."""
    start = _SCTP.size + 4
    if len(message) < start + _CHUNK.size:
        return None
    source_port, destination_port, peer_tag = _SCTP.unpack_from(message)
    kind, _flags, _length, tag, *_ = _CHUNK.unpack_from(message, start)
    return InitChunk(kind, source_port, destination_port, peer_tag, tag) if kind in {INIT, INIT_ACK} else None


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), SCTP's checksum (RFC 3309)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE: Final = tuple(map(_crc_of_byte, range(256)))


def _internet_checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
