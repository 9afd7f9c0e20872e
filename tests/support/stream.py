"""A conversation of datagrams between two sites of which every packet counts."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Final

from tests.support.matrix import Site

_INTERVAL: Final = 0.002
_PATIENCE: Final = 1.0
"""Seconds for the last answers; an answer that comes later than that is lost."""


class Stream:
    """Sends numbered datagrams from one socket, half a thousand a second, and counts which come back.

    Attributes:
        sent: datagrams sent.
        answered: numbers of those that came back.
    """

    def __init__(self, source: Site, destination: Site, port: int, family: int = 4) -> None:
        """Open both ends; nothing is sent yet."""
        here, there = str(source.addresses[family]), str(destination.addresses[family])
        self.sent = 0
        self.answered: set[int] = set()
        self._server: socket.socket = destination.ns.call(_udp, there, port)
        self._client: socket.socket = source.ns.call(_udp, here, 0)
        self._client.connect((there, port))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._echo, self._count)]
        for thread in self._threads:
            thread.start()
        self._sender: threading.Thread | None = None
        self._enough = threading.Event()

    @property
    def lost(self) -> int:
        """Datagrams that have not come back."""
        return self.sent - len(self.answered)

    def run(self, count: int) -> None:
        """Send so many, and wait for the answers."""
        for _ in range(count):
            self._send()
            time.sleep(_INTERVAL)
        self._settle()

    def begin(self) -> None:
        """Send in the background until ``end``."""
        self._enough.clear()
        self._sender = threading.Thread(target=self._keep_sending)
        self._sender.start()

    def end(self) -> None:
        """Stop sending, and wait for the answers."""
        if self._sender is not None:
            self._enough.set()
            self._sender.join()
            self._sender = None
            self._settle()

    def close(self) -> None:
        """Close both ends."""
        self.end()
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._server.close()

    def _keep_sending(self) -> None:
        while not self._enough.wait(_INTERVAL):
            self._send()

    def _send(self) -> None:
        self.sent += 1
        with contextlib.suppress(OSError):
            self._client.send(self.sent.to_bytes(4, "big"))

    def _settle(self) -> None:
        end = time.monotonic() + _PATIENCE
        while self.lost and time.monotonic() < end:
            time.sleep(0.01)

    def _echo(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                data, peer = self._server.recvfrom(100)
                self._server.sendto(data, peer)

    def _count(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                self.answered.add(int.from_bytes(self._client.recv(100), "big"))


def _udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.settimeout(0.1)
    return sock
