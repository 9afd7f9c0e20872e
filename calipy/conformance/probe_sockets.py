"""The sockets of probes: one event loop, and one class per way of asking somebody for an answer.

An attempt sends once; those whose protocol does not repeat by itself send a second time when told to. Whatever goes
wrong on the way (refused, unreachable, not permitted) means that it was not answered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol

from calipy.conformance import probe_wire
from calipy.conformance.probe_wire import INIT, INIT_ACK, InitChunk
from calipy.net import IPAddress
from calipy.policy.values import ICMP

SCTP: Final = 132
ICMP_PROTOCOLS: Final = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
TOKEN_BYTES: Final = 12

ABORT: Final = struct.pack("ii", 1, 0)
"""A value of SO_LINGER: closing resets the connection."""
_MESSAGE: Final = 4096


class Loop:
    """Sockets and what to call when they are ready."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def when_readable(self, sock: socket.socket, call: Callable[[], None]) -> None:
        """Call it whenever there is something to read."""
        self._selector.register(sock, selectors.EVENT_READ, call)

    def when_writable(self, sock: socket.socket, call: Callable[[], None]) -> None:
        """Call it when a connection stands or has failed."""
        self._selector.register(sock, selectors.EVENT_WRITE, call)

    def forget(self, sock: socket.socket) -> None:
        """No more calls for this socket."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def close(self, sock: socket.socket) -> None:
        """Forget and close a socket."""
        self.forget(sock)
        sock.close()

    def turn(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for sockets to become ready, and make their calls."""
        for key, _ in self._selector.select(max(timeout, 0)):
            key.data()


class Attempt(Protocol):
    """One probe under way."""

    answered: bool
    refused: bool

    def send(self) -> None:
        """Send, for the first time or again."""
        ...

    @property
    def repeats(self) -> bool:
        """The kernel sends lost packets again."""
        ...

    def close(self) -> None:
        """End it."""
        ...


def new_socket(address: IPAddress, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of the address' family, not blocking, in the thread's namespace."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_STREAM:  # so that a client's fixed port may be one that is listened on
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


class Stream:
    """Connects; an established connection is the answer. Ends it at once, so that none pile up."""

    repeats = True

    def __init__(self, loop: Loop, sock: socket.socket, destination: IPAddress, port: int) -> None:
        self.sock = sock
        self.answered = self.refused = False
        self._loop = loop
        self._where = (str(destination), port)

    def send(self) -> None:
        """Send SYN."""
        code = self.sock.connect_ex(self._where)
        self.refused = code == errno.ECONNREFUSED
        if code in {0, errno.EINPROGRESS}:
            self._loop.when_writable(self.sock, self._ready)

    def _ready(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.answered, self.refused = not code, code == errno.ECONNREFUSED
        self._loop.forget(self.sock)

    def close(self) -> None:
        """Abort it."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        self._loop.close(self.sock)


class Datagram:
    """Sends a datagram with a random token; the same token coming back is the answer."""

    repeats = False

    def __init__(self, loop: Loop, sock: socket.socket, destination: IPAddress, port: int) -> None:
        self.sock = sock
        self.answered = self.refused = False
        self._loop = loop
        self._where = (str(destination), port)
        self._token = os.urandom(TOKEN_BYTES)
        loop.when_readable(sock, self._read)

    def send(self) -> None:
        """Send the datagram."""
        try:
            self.sock.connect(self._where)
            self.sock.send(self._token)
        except OSError as error:
            self.refused = error.errno == errno.ECONNREFUSED

    def _read(self) -> None:
        try:
            self.answered = self.answered or self.sock.recv(_MESSAGE) == self._token
        except OSError as error:
            self.refused = error.errno == errno.ECONNREFUSED

    def close(self) -> None:
        """Close the socket."""
        self._loop.close(self.sock)


class RawPort:
    """A raw socket of an address and protocol: hands answers to those who wait for them, and answers SCTP's INIT.

    Attributes:
        open_ports: SCTP ports that answer.
        waiting: by identifier (of ICMP, or both SCTP ports) and peer, attempts.
    """

    def __init__(self, sock: socket.socket, address: IPAddress, protocol: int) -> None:
        self.sock = sock
        self.open_ports: set[int] = set()
        self.waiting: dict[tuple[int, str], Raw] = {}
        self._version = address.version
        self._protocol = protocol

    def read(self) -> None:
        """Take in everything that has arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, peer = self.sock.recvfrom(_MESSAGE)
                message = probe_wire.without_ip_header(packet) if self._version == 4 else packet
                if self._protocol == SCTP:
                    self._take_sctp(message, peer[0])
                elif (found := probe_wire.icmp_answer(message)) is not None:
                    self._answer(found[1], peer[0], found[0])

    def _take_sctp(self, message: bytes, peer: str) -> None:
        init = probe_wire.sctp_init(message)
        if init is None:
            return
        if init.kind == INIT_ACK:
            self._answer(_ports(init.destination_port, init.source_port), peer, init.peer_tag)
        elif init.destination_port in self.open_ports:
            tag = int.from_bytes(os.urandom(4), "big") | 1
            answer = InitChunk(INIT_ACK, init.destination_port, init.source_port, init.tag, tag)
            with contextlib.suppress(OSError):
                self.sock.sendto(probe_wire.sctp_packet(answer), (peer, 0))

    def _answer(self, identifier: int, peer: str, sign: int) -> None:
        attempt = self.waiting.get((identifier, peer))
        if attempt is not None and attempt.sign == sign:
            attempt.answered = True


class Raw:
    """A packet through a raw port; the answer carries the same identifier and the right ``sign``."""

    repeats = False
    refused = False

    def __init__(self, port: RawPort, destination: IPAddress, identifier: int, packet: bytes, sign: int) -> None:
        self.answered = False
        self.sign = sign
        self._port = port
        self._peer = str(destination)
        self._packet = packet
        self._key = (identifier, self._peer)
        port.waiting[self._key] = self

    def send(self) -> None:
        """Send the packet."""
        with contextlib.suppress(OSError):
            self._port.sock.sendto(self._packet, (self._peer, 0))

    def close(self) -> None:
        """Wait no longer."""
        self._port.waiting.pop(self._key, None)


def echo_request(port: RawPort, destination: IPAddress, identifier: int, icmp: ICMP) -> Raw:
    """An ICMP request; the sign of its answer is the reply's type."""
    packet = probe_wire.icmp_request(icmp.type, icmp.code or 0, identifier, os.urandom(TOKEN_BYTES))
    return Raw(port, destination, identifier, packet, probe_wire.ICMP_REPLIES[destination.version][icmp.type])


def association(port: RawPort, destination: IPAddress, source_port: int, destination_port: int) -> Raw:
    """An SCTP association attempt; the sign of its answer is our tag."""
    tag = int.from_bytes(os.urandom(4), "big") | 1
    packet = probe_wire.sctp_packet(InitChunk(INIT, source_port, destination_port, 0, tag))
    return Raw(port, destination, _ports(source_port, destination_port), packet, tag)


def _ports(client: int, server: int) -> int:
    return client << 16 | server
