"""A session whose OPEN goes to a bgpd that is gone, and whose coming up to the next one; and many bad moments."""

from __future__ import annotations

import random
import socket
import struct
import time

import pytest

from calipy.datastore.resources import NodeBGPSpec, NodeSpec
from tests.support.bgp import BgpLab, eventually, eventually_is

pytestmark = pytest.mark.kernel

MARKER = b"\xff" * 16
OPEN, UPDATE, KEEPALIVE = 1, 2, 4
ADDRESS = "10.77.1.9"


def message(kind: int, body: bytes = b"") -> bytes:
    """A BGP message (RFC 4271 4.1)."""
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def read(connection: socket.socket) -> int:
    """The type of the next message."""
    header = b""
    while len(header) < 19:
        header += connection.recv(19 - len(header)) or pytest.fail("closed")
    length, kind = struct.unpack("!HB", header[16:])
    rest = length - 19
    while rest:
        rest -= len(connection.recv(rest))
    return int(kind)


def opening() -> bytes:
    """An OPEN of AS 64512 with IPv4 unicast, graceful restart and 4-octet AS numbers."""
    capabilities = b"\x01\x04\x00\x01\x00\x01" + b"\x40\x06\x00\x78\x00\x01\x01\x80" + b"\x41\x04\x00\x00\xfc\x00"
    parameters = b"\x02" + bytes([len(capabilities)]) + capabilities
    return message(
        OPEN, struct.pack("!BHH", 4, 64512, 90) + socket.inet_aton(ADDRESS) + bytes([len(parameters)]) + parameters
    )


def announcement() -> bytes:
    """An UPDATE: 10.244.9.0/26 is at this peer."""
    attributes = b"\x40\x01\x01\x00" + b"\x40\x02\x00" + b"\x40\x03\x04" + socket.inet_aton(ADDRESS)
    attributes += b"\x40\x05\x04\x00\x00\x00\x64"
    prefix = bytes([26]) + socket.inet_aton("10.244.9.0")
    return message(UPDATE, struct.pack("!HH", 0, len(attributes)) + attributes + prefix)


def test_an_open_that_nobody_heard(bgp_lab: BgpLab) -> None:
    """The peer's OPEN is read while there is no bgpd, its KEEPALIVE once the next one has seen the neighbours."""
    bgp_lab.pool("10.244.0.0/16")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    bgp_lab.apply("Node", "n9", NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"{ADDRESS}/24")))
    host = bgp_lab.namespace("n9", f"{ADDRESS}/24")
    eventually("n1 waits for it", lambda: ADDRESS in n1.peers() and n1.exabgp())
    eventually("ExaBGP listens", lambda: ":179" in n1.ns.run("ss", "-ltn"))
    n1.kill()
    connection: socket.socket = host.call(socket.create_connection, (n1.address, 179), 20)
    with connection:
        connection.sendall(opening())
        assert [read(connection), read(connection)] == [OPEN, KEEPALIVE]
        n1.start()
        eventually("ExaBGP adopted and read", lambda: "adopted" in n1.told() and "peer" in str(n1.status()["reasons"]))
        assert not n1.up(ADDRESS)
        connection.sendall(message(KEEPALIVE) + announcement())
        eventually_is("its route", {"10.244.9.0/26": (ADDRESS,)}, n1.gateways)
        assert n1.up(ADDRESS)


def test_whatever_is_killed_when(bgp_lab: BgpLab) -> None:
    """bgpd of one end and ExaBGP of the other, killed together, bgpd starting a little later each time."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    chance = random.Random(seed)
    bgp_lab.pool("10.244.0.0/16")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("10.244.2.0/26", "n2")
    routes = {"10.244.2.0/26": (n2.address,)}
    eventually_is("routes", routes, n1.gateways)
    for _ in range(3):
        n1.kill()
        n2.ns.run("kill", "-9", str(n2.exabgp()))
        time.sleep(chance.uniform(0, 0.8))  # the offset is what varies
        n1.start()
        eventually("sessions", lambda: n1.up(n2.address) and n2.up(n1.address), 60)
        eventually("paths", lambda: n1.peers()[n2.address]["paths"] == 1, 60)
        eventually_is("routes", routes, n1.gateways, 60)
