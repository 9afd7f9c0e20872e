"""The supervisor's end of ``channel``: the same messages, in an event loop. Edge."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

from calipy.containerlab.channel import Inbox, encode, read_once


class AsyncChannel:
    """An end in an event loop."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over ``sock``."""
        sock.setblocking(False)
        self.socket = sock
        self._inbox = Inbox()
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
                if not read_once(self.socket, self._inbox):
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
