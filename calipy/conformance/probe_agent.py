"""Listeners and probes in any number of network namespaces, in one event loop.

A socket belongs for good to the namespace in which its thread stood when it was made. So one thread that steps from
namespace to namespace serves them all: no process per namespace, and none per probe. All probes of a batch are under
way at once; denied ones cost one deadline together.

Everything here blocks and must run inside ``netns.run_in``: the thread does not return to where it was.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calipy.conformance import probe_wire
from calipy.conformance.netpol_case import Probe
from calipy.conformance.probe_sockets import (
    ABORT,
    ICMP_PROTOCOLS,
    SCTP,
    TOKEN_BYTES,
    Attempt,
    Datagram,
    Loop,
    RawPort,
    Stream,
    association,
    echo_request,
    new_socket,
)
from calipy.errors import KernelError
from calipy.kernel import netns
from calipy.net import IPAddress

DEADLINE: Final = 0.2
"""Seconds for an answer, from when the last packet of a batch was sent. Below 1 s, when the kernel repeats a SYN."""

_FLOW_DEADLINE: Final = 2.0
_PORTS: Final = range(32768, 61000)
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One probe: from an address in a namespace to an address. See ``unsupported`` for what can be asked."""

    netns_fd: int
    source: IPAddress
    destination: IPAddress
    probe: Probe


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a probe.

    Attributes:
        answered: the destination got the request and its answer came back.
        refused: somebody said no, which denies as well as silence does.
    """

    answered: bool
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection held open."""

    sock: socket.socket
    datagrams: bool


def unsupported(probe: Probe) -> str:
    """Why a probe cannot be made here, "" if it can."""
    if probe.icmp is not None and probe.icmp.type not in probe_wire.ICMP_REPLIES[probe.family]:
        return f"no kernel answers ICMP type {probe.icmp.type} over IPv{probe.family}"
    return ""


class ProbeAgent:
    """All listeners, probes and held flows of a run. One call at a time."""

    def __init__(self) -> None:
        """Allow this process as many open files as it may have."""
        self._loop = Loop()
        self._listeners: list[socket.socket] = []
        self._accepted: set[socket.socket] = set()
        self._held: set[Any] = set()
        self._raw: dict[tuple[int, IPAddress, int], RawPort] = {}
        self._fresh: dict[tuple[int, IPAddress], itertools.cycle[int]] = {}
        self._kernel_sctp = _has_sctp()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def listen(self, netns_fd: int, address: IPAddress, protocol: str, port: int) -> None:
        """Answer on a port: TCP and UDP echo what they get, SCTP answers INIT. ICMP is the kernel's.

        Raises:
            KernelError: the port is taken or the address is not there; without a listener no verdict is worth anything.
        """
        netns.enter(netns_fd)
        if protocol == "sctp" and not self._kernel_sctp:
            self._raw_port(netns_fd, address, SCTP).open_ports.add(port)
        elif protocol in {"tcp", "sctp"}:
            listener = new_socket(address, socket.SOCK_STREAM, SCTP if protocol == "sctp" else 0)
            self._open(listener, address, port)
            listener.listen(_BACKLOG)
            self._loop.when_readable(listener, lambda: self._accept(listener))
        elif protocol == "udp":
            server = new_socket(address, socket.SOCK_DGRAM)
            self._open(server, address, port)
            self._loop.when_readable(server, lambda: _echo_datagrams(server))

    def close_listeners(self) -> None:
        """Stop answering, and end all connections but held ones.

        A client whose port is fixed would otherwise meet what is left of its last connection, where the packets that
        should have ended that did not get through.
        """
        for sock in [one for one in self._accepted if _peer(one) not in self._held]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            self._hang_up(sock)
        for sock in (*self._listeners, *(port.sock for port in self._raw.values())):
            self._loop.close(sock)
        self._listeners.clear()
        self._raw.clear()

    def probe(self, requests: Sequence[Request], deadline: float = DEADLINE) -> list[Answer]:
        """Make all probes at once; answers in the same order. Takes up to ``deadline`` after the last packet."""
        attempts = [self._attempt(request) for request in requests]
        try:
            self._run(attempts, deadline)
            return [Answer(attempt.answered, attempt.refused) for attempt in attempts]
        finally:
            for attempt in attempts:
                attempt.close()

    def hold(self, request: Request) -> Flow | None:
        """Open a TCP or UDP connection and keep it; None if nobody answers."""
        attempt = self._attempt(request)
        assert isinstance(attempt, Stream | Datagram)
        self._run([attempt], _FLOW_DEADLINE)
        if not attempt.answered:
            attempt.close()
            return None
        self._loop.forget(attempt.sock)
        self._held.add(attempt.sock.getsockname())
        return Flow(attempt.sock, datagrams=isinstance(attempt, Datagram))

    def alive(self, flow: Flow) -> bool:
        """Whether bytes sent on a held flow arrive and are answered. TCP repeats lost ones itself, for UDP we do."""
        token = os.urandom(TOKEN_BYTES)
        got = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):
                got.extend(flow.sock.recv(4096))

        self._loop.when_readable(flow.sock, read)
        end = time.monotonic() + _FLOW_DEADLINE
        send_at = 0.0
        try:
            while token not in got and (now := time.monotonic()) < end:
                if now >= send_at:
                    flow.sock.send(token)
                    send_at = now + DEADLINE if flow.datagrams else end
                self._loop.turn(min(end, send_at) - now)
        except OSError:
            return False
        finally:
            self._loop.forget(flow.sock)
        return token in got

    def release(self, flow: Flow) -> None:
        """Close a held flow."""
        self._held.discard(flow.sock.getsockname())
        flow.sock.close()

    def _run(self, attempts: Sequence[Attempt], deadline: float) -> None:
        for attempt in attempts:
            attempt.send()
        sent = time.monotonic()
        repeat_at, end = sent + deadline / 3, sent + deadline
        waiting = list(attempts)
        while waiting and (now := time.monotonic()) < end:
            if now >= repeat_at:
                repeat_at = end
                for attempt in waiting:
                    if not attempt.repeats:
                        attempt.send()
            self._loop.turn(repeat_at - now)
            waiting = [attempt for attempt in waiting if not attempt.answered]

    def _attempt(self, request: Request) -> Attempt:
        netns.enter(request.netns_fd)
        probe, destination = request.probe, request.destination
        if probe.protocol == "tcp" or (probe.protocol == "sctp" and self._kernel_sctp):
            sock = new_socket(request.source, socket.SOCK_STREAM, SCTP if probe.protocol == "sctp" else 0)
            return Stream(self._loop, self._bound(sock, request), destination, probe.port)
        if probe.protocol == "udp":
            sock = new_socket(request.source, socket.SOCK_DGRAM)
            return Datagram(self._loop, self._bound(sock, request), destination, probe.port)
        number = ICMP_PROTOCOLS[probe.family] if probe.icmp else SCTP
        port = self._raw_port(request.netns_fd, request.source, number)
        identifier = probe.source_port or self._fresh_port(request)
        if probe.icmp:
            return echo_request(port, destination, identifier, probe.icmp)
        return association(port, destination, identifier, probe.port)

    def _bound(self, sock: socket.socket, request: Request) -> socket.socket:
        while True:
            port = request.probe.source_port or self._fresh_port(request)
            try:
                sock.bind((str(request.source), port))
                return sock
            except OSError as error:
                if error.errno != errno.EADDRINUSE or request.probe.source_port:
                    sock.close()
                    raise KernelError(f"cannot send from {request.source} port {port}: {error.strerror}") from error

    def _fresh_port(self, request: Request) -> int:
        """Never the same within minutes: what connection tracking remembers must not let a later probe pass."""
        ports = self._fresh.setdefault((request.netns_fd, request.source), itertools.cycle(_PORTS))
        return next(ports)

    def _open(self, sock: socket.socket, address: IPAddress, port: int) -> None:
        self._listeners.append(sock)
        try:
            sock.bind((str(address), port))
        except OSError as error:
            raise KernelError(f"cannot listen on {address} port {port}: {error.strerror}") from error

    def _raw_port(self, netns_fd: int, address: IPAddress, protocol: int) -> RawPort:
        key = (netns_fd, address, protocol)
        if key not in self._raw:
            port = self._raw[key] = RawPort(new_socket(address, socket.SOCK_RAW, protocol), address, protocol)
            port.sock.bind((str(address), 0))
            self._loop.when_readable(port.sock, port.read)
        return self._raw[key]

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                self._accepted.add(sock)
                self._loop.when_readable(sock, self._echo(sock))

    def _echo(self, sock: socket.socket) -> Callable[[], None]:
        def read() -> None:
            try:
                if data := sock.recv(4096):
                    sock.send(data)
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            self._hang_up(sock)

        return read

    def _hang_up(self, sock: socket.socket) -> None:
        self._accepted.discard(sock)
        self._loop.close(sock)


def _echo_datagrams(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, peer = server.recvfrom(4096)
            server.sendto(data, peer)


def _peer(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:  # it is closed already
        return None


def _has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError:
        return False
    return True
