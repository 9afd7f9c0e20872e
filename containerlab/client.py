"""The way to a lab's supervisor: starting it, asking it. Edge."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from calipy.containerlab.channel import Channel
from calipy.containerlab.errors import LabError, SupervisorGoneError
from calipy.containerlab.registry import Entry

_START = 20.0
_POLL = 0.005
_END = 10.0
_BUSY = 75

Report = Callable[[str, str], None]
"""Told what happens: level (``info``, ``warning``, ``error``) and text."""


def connect(entry: Entry) -> Channel:
    """A connection to the lab's supervisor. Raises LabError: it does not run."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(entry.socket))
    except OSError:
        sock.close()
        raise LabError(f"lab {entry.lab} does not run", remedy="calipy lab deploy -t FILE") from None
    return Channel(sock)


def call(entry: Entry, method: str, params: dict[str, Any], report: Report | None = None) -> Any:
    """Ask the supervisor for something; blocks. Raises LabError as it says, or when it is gone."""
    with contextlib.closing(connect(entry)) as channel:
        channel.send({"method": method, "params": params})
        return answer(channel, report, entry)


def answer(channel: Channel, report: Report | None = None, entry: Entry | None = None) -> Any:
    """The result of a request. If the supervisor ends with it, its ``entry`` is free when this returns."""
    while True:
        try:
            received = channel.receive()
        except OSError:
            received = None
        if received is None:
            raise SupervisorGoneError
        message, _ = received
        if "log" in message:
            if report is not None:
                report(*message["log"])
            continue
        while message.get("over") and entry is not None and entry.runs:
            time.sleep(_POLL)
        if "error" in message:
            raise LabError(message["error"]["message"], remedy=message["error"]["remedy"])
        return message["result"]


def await_end(entry: Entry) -> None:
    """Wait until a supervisor that is dying is dead; the kernel may still close its sockets before its locks."""
    give_up = time.monotonic() + _END
    while entry.runs and time.monotonic() < give_up:
        time.sleep(_POLL)


def start_supervisor(entry: Entry, *, host_netns: bool) -> None:
    """Start a supervisor and wait until it listens; another one that was faster is as good.

    Raises:
        LabError: it does not start.
    """
    ready, ready_end = os.pipe2(os.O_CLOEXEC)
    arguments = [sys.executable, "-m", "calipy.containerlab.supervisor", entry.lab, "--ready-fd", str(ready_end)]
    arguments += ["--host-netns"] if host_netns else []
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        stack.callback(os.close, ready)
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[ready_end],
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(ready_end)
        line = _read_line(ready, _START)
        if line == "ready":
            return
        if line is None:
            process.kill()
        if process.wait() == _BUSY:
            _wait_socket(entry)
            return
        said.seek(0)
        reason = line or said.read().decode("utf-8", "replace").strip()[-2000:] or "no word from it"
        raise LabError(f"the supervisor of lab {entry.lab} does not start: {reason}")


def _read_line(fd: int, timeout: float) -> str | None:
    """A line from a pipe without its end; "" at the end, None when out of time."""
    if not select.select([fd], [], [], timeout)[0]:
        return None
    return os.read(fd, 4096).decode("utf-8", "replace").strip()


def _wait_socket(entry: Entry) -> None:
    deadline = time.monotonic() + _START
    while entry.runs and not entry.socket.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
