"""Packets of probes."""

from __future__ import annotations

import struct

import pytest

from calipy.conformance import probe_wire
from calipy.conformance.probe_wire import INIT, INIT_ACK, InitChunk


@pytest.mark.parametrize(
    ("data", "crc"), [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)]
)
def test_crc32c(data: bytes, crc: int) -> None:
    """The check values of CRC-32C and of RFC 3720, B.4."""
    assert probe_wire.crc32c(data) == crc


@pytest.mark.parametrize("kind", [INIT, INIT_ACK])
def test_sctp_comes_back_as_it_was(kind: int) -> None:
    """A packet is read as it was written, its checksum is that of the packet with a zero there, its length is told."""
    init = InitChunk(kind, 32768, 9899, 7, 0xDEADBEEF)
    packet = probe_wire.sctp_packet(init)
    assert probe_wire.sctp_init(packet) == init
    assert struct.unpack("<I", packet[8:12])[0] == probe_wire.crc32c(packet[:8] + bytes(4) + packet[12:])
    assert struct.unpack("!H", packet[14:16])[0] == len(packet) - 12


def test_other_sctp_is_not_taken_for_an_answer() -> None:
    """ABORT, and packets cut short, are nothing."""
    packet = probe_wire.sctp_packet(InitChunk(INIT, 1, 2, 0, 3))
    assert probe_wire.sctp_init(packet[:12] + b"\x06" + packet[13:]) is None
    assert probe_wire.sctp_init(packet[:20]) is None


def test_icmp_request() -> None:
    """A request with its checksum sums up to all ones; type and identifier are read back, behind IP options too."""
    message = probe_wire.icmp_request(8, 1, 0xABCD, b"0123456789ab")
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert probe_wire.icmp_answer(message) == (8, 0xABCD)
    assert probe_wire.icmp_answer(message[:7]) is None
    assert probe_wire.without_ip_header(b"\x46" + bytes(23) + message) == message
