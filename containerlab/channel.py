"""Messages over Unix sockets, with file descriptors beside them: JSON objects, one a line. Edge.

Used between the command line and a lab's supervisor, and between the supervisor and the first process of each node.
This is the blocking end, of the command line and the nodes; the supervisor's is in ``async_channel``.
"""

from __future__ import annotations

import array
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


class Inbox:
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


def read_once(sock: socket.socket, inbox: Inbox) -> bool:
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
        self._inbox = Inbox()

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
            if not read_once(self.socket, self._inbox):
                return None
        return message

    def pending(self) -> tuple[dict[str, Any], list[int]] | None:
        """A message that has been read already, without blocking."""
        return self._inbox.take()

    def read(self) -> bool:
        """Read what is there (the socket was reported readable); False at the end."""
        return read_once(self.socket, self._inbox)

    def close(self) -> None:
        """Close it, and descriptors that nobody took."""
        self._inbox.close()
        self.socket.close()
