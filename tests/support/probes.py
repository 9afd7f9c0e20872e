"""Streams of datagrams, about one a millisecond, of which each must get through, or none.

``Probes`` is a new connection each time, so that every datagram is judged by policy; with ``held`` all are of one
connection, which policy let through once. Both ends are counted: what arrived, and what was answered.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Self

from calipy.kernel import netns as kernel_netns
from tests.support.netns import Namespace

_PAUSE = 0.001
_PATIENCE = 1.0
"""Seconds without news after which the last answers are given up."""
_OPEN = 2000
"""Connections that wait for an answer, for some seconds; the oldest is given up for a newer one."""


def _nothing() -> None:
    """For whom there is nothing to do."""


class Probes:
    """Runs from entering to leaving the context.

    Attributes:
        port: where they go.
        sent: datagrams sent.
        arrived: numbers of those that got to the destination.
        answered: numbers of those whose answer came back.
    """

    def __init__(
        self,
        source: Namespace,
        source_address: str,
        destinations: Namespace | Iterable[Namespace],
        address: str,
        *,
        port: int = 9000,
        held: bool = False,
    ) -> None:
        """Open the destination's socket.

        Args:
            source: where datagrams come from.
            source_address: from which address.
            destinations: where they go; several, where the address moves.
            address: to which address.
            port: to which port.
            held: one connection for all.
        """
        self.sent = 0
        self.arrived: set[int] = set()
        self.answered: set[int] = set()
        self._first = 1
        self._source, self._source_address, self._held = source, source_address, held
        self._target = (address, port)
        self.port = port
        places = [destinations] if isinstance(destinations, Namespace) else destinations
        self._servers = [place.call(_bound, address, port) for place in places]
        self._sending = threading.Event()
        self._sending.set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._answer, args=(server,)) for server in self._servers]
        self._threads.append(threading.Thread(target=kernel_netns.run_in, args=(source.fd, self._probe)))

    @property
    def lost(self) -> set[int]:
        """Numbers that were not answered."""
        return set(range(self._first, self.sent + 1)) - self.answered

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in reversed(self._threads):
            thread.join()
        for server in self._servers:
            server.close()

    def more(self, count: int) -> None:
        """Wait until so many more have been sent."""
        wanted = self.sent + count
        while self.sent < wanted:
            assert self._threads[-1].is_alive()
            time.sleep(0.002)

    def forget(self, meanwhile: Callable[[], object] = _nothing) -> None:
        """Begin to count anew, after a time in which anything goes; ``meanwhile`` is called while nothing is sent."""
        self._sending.clear()
        time.sleep(0.2)
        meanwhile()
        self.arrived.clear()
        self.answered.clear()
        self._first = self.sent + 1
        self._sending.set()

    def _probe(self) -> None:
        """In a thread that stands in the source's namespace."""
        held = _bound(self._source_address, 0) if self._held else None
        waiting: dict[int, socket.socket] = {0: held} if held else {}
        with select.epoll() as poll:
            if held:
                poll.register(held, select.EPOLLIN)
            while not self._stop.is_set():
                if self._sending.is_set():
                    sender = held or _bound(self._source_address, 0)
                    with contextlib.suppress(OSError):  # no route: lost
                        sender.sendto((self.sent + 1).to_bytes(4, "big"), self._target)
                    self.sent += 1
                    if not held:
                        waiting[self.sent] = sender
                        poll.register(sender, select.EPOLLIN)
                        if (old := waiting.pop(self.sent - _OPEN, None)) is not None:
                            old.close()
                self._collect(poll, waiting, 0)
                time.sleep(_PAUSE)
            heard = time.monotonic()
            while self.lost and time.monotonic() < heard + _PATIENCE:
                if self._collect(poll, waiting, 0.05):
                    heard = time.monotonic()
        for sock in waiting.values():
            sock.close()

    def _collect(self, poll: select.epoll, waiting: dict[int, socket.socket], timeout: float) -> bool:
        """Take the answers that are there; whether there were any."""
        ready = {descriptor for descriptor, _ in poll.poll(timeout)}
        for number, sock in [item for item in waiting.items() if item[1].fileno() in ready] if ready else ():
            with contextlib.suppress(OSError):
                while True:
                    self.answered.add(int.from_bytes(sock.recv(16), "big"))
            if not self._held:
                waiting.pop(number).close()
        return bool(ready)

    def _answer(self, server: socket.socket) -> None:
        server.setblocking(True)
        server.settimeout(0.05)
        while not self._stop.is_set() or self._threads[-1].is_alive():
            with contextlib.suppress(OSError):
                data, peer = server.recvfrom(16)
                self.arrived.add(int.from_bytes(data, "big"))
                server.sendto(data, peer)


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.setblocking(False)
    return sock
