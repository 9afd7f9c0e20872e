"""Running a program in a node from outside: its streams are pipes of the caller. Edge."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Sequence
from typing import Any

from calipy.containerlab.channel import Channel
from calipy.containerlab.client import answer
from calipy.containerlab.errors import LabError

NOT_FOUND = 126
"""Exit code that stands for a program that is not there, as ``docker exec`` has it."""


class CommandFailedError(LabError):
    """A program cannot be started in a node."""


def exit_code(result: dict[str, Any], node: str, argv: Sequence[str]) -> int:
    """The exit code in the supervisor's answer. Raises CommandFailedError: the program was not started."""
    if "failed" in result:
        raise CommandFailedError(f"{node}: {argv[0]}: {result['failed']}")
    code: int = result["code"]
    return code


def await_exit(channel: Channel, pipes: Sequence[Pipe], timeout: float | None, node: str, argv: Sequence[str]) -> int:
    """Move data until the program has ended; closing the channel ends one that is out of time."""
    deadline = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    poll.register(channel.socket, select.POLLIN)
    for pipe in pipes[1:]:
        poll.register(pipe.read_end, select.POLLIN)
    if pipes[0].write_end >= 0:
        poll.register(pipes[0].write_end, select.POLLOUT)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = poll.poll(None if left is None else left * 1000)
        if not ready and deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"{node}: {' '.join(argv)}: not done after {timeout:g} s")
        for fd, _events in ready:
            if fd == channel.socket.fileno():
                return exit_code(answer(channel), node, argv)
            pipe = next(pipe for pipe in pipes if fd in (pipe.read_end, pipe.write_end))
            if not pipe.move():
                poll.unregister(fd)
                pipe.finish()


class Pipe:
    """A pipe of which this process keeps one end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._chunks: list[bytes] = []
        self._left = memoryview(b"")
        self._feeds = False
        stack.callback(self.close)

    def feeds(self, data: bytes) -> None:
        """Be the one that carries input."""
        self._feeds = True
        self._left = memoryview(data)
        os.set_blocking(self.write_end, False)
        if not data:
            self.finish()

    def move(self) -> bool:
        """Move what can be moved at once; False when nothing more will come or go."""
        try:
            if self._feeds:
                self._left = self._left[os.write(self.write_end, self._left[: 1 << 16]) :]
                return bool(self._left)
            data = os.read(self.read_end, 1 << 16)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        self._chunks.append(data)
        return bool(data)

    def finish(self) -> None:
        """Close the end that this process keeps."""
        if self._feeds:
            os.close(self.write_end)
            self.write_end = -1
        else:
            os.close(self.read_end)
            self.read_end = -1

    def text(self) -> str:
        """What came out, to the last byte that the program has written before its end."""
        if self.read_end >= 0:
            os.set_blocking(self.read_end, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self.read_end, 1 << 16):
                    self._chunks.append(data)
        return b"".join(self._chunks).decode("utf-8", "surrogateescape")

    def close(self) -> None:
        for fd in (self.read_end, self.write_end):
            if fd >= 0:
                os.close(fd)
        self.read_end = self.write_end = -1
