"""Messages over Unix sockets, with file descriptors beside them: JSON objects, one a line. Edge.

Used between the command line and a lab's supervisor, and between the supervisor and the first process of each node. The
blocking ``Channel`` serves the command line and the nodes, ``AsyncChannel`` the supervisor.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

_CHUNK = 1 << 18
_MAX_FDS = 16


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class _Inbox:
    """Bytes and descriptors that came in, until a whole line is there."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.fds: list[int] = []

    def feed(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        self.buffer += data
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                self.fds.extend(numbers)

    def take(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message; the descriptors it announces in ``fds`` go along."""
        end = self.buffer.find(b"\n")
        if end < 0:
            return None
        message: dict[str, Any] = json.loads(bytes(self.buffer[:end]))
        del self.buffer[: end + 1]
        count = message.pop("fds", 0)
        fds, self.fds = self.fds[:count], self.fds[count:]
        return message, fds

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def _receive(sock: socket.socket, inbox: _Inbox) -> bool:
    """Read once; False at the end."""
    room = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    data, ancillary, _flags, _address = sock.recvmsg(_CHUNK, room, socket.MSG_CMSG_CLOEXEC)
    inbox.feed(data, ancillary)
    return bool(data)


class Channel:
    """A blocking end. Not to be shared by threads."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over ``sock``."""
        self.socket = sock
        self._inbox = _Inbox()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message, and duplicates of ``fds``. Raises OSError when the other side is gone."""
        data = encode({**message, "fds": len(fds)} if fds else message)
        if fds:
            sent = socket.send_fds(self.socket, [data], list(fds))
            data = data[sent:]
        self.socket.sendall(data)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors; None at the end. Blocks. Raises TimeoutError as the socket says."""
        while (message := self._inbox.take()) is None:
            if not _receive(self.socket, self._inbox):
                return None
        return message

    def pending(self) -> tuple[dict[str, Any], list[int]] | None:
        """A message that has been read already, without blocking."""
        return self._inbox.take()

    def read(self) -> bool:
        """Read what is there (the socket was reported readable); False at the end."""
        return _receive(self.socket, self._inbox)

    def close(self) -> None:
        """Close it, and descriptors that nobody took."""
        self._inbox.close()
        self.socket.close()


class AsyncChannel:
    """An end in an event loop."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over ``sock``."""
        sock.setblocking(False)
        self.socket = sock
        self._inbox = _Inbox()
        self._sending = asyncio.Lock()

    async def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message, and duplicates of ``fds``. Raises OSError when the other side is gone."""
        data = encode({**message, "fds": len(fds)} if fds else message)
        loop = asyncio.get_running_loop()
        async with self._sending:
            while fds:
                try:
                    data = data[socket.send_fds(self.socket, [data], list(fds)) :]
                    fds = ()
                except BlockingIOError:
                    await self._ready(write=True)
            await loop.sock_sendall(self.socket, data)

    async def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors; None at the end."""
        while (message := self._inbox.take()) is None:
            try:
                if not _receive(self.socket, self._inbox):
                    return None
            except BlockingIOError:
                await self._ready(write=False)
            except OSError:
                return None
        return message

    async def _ready(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
        add(self.socket, wake)
        try:
            await ready
        finally:
            remove(self.socket)

    def close(self) -> None:
        """Close it, and descriptors that nobody took."""
        self._inbox.close()
        with contextlib.suppress(OSError):
            self.socket.close()
