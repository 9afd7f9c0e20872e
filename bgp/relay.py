"""The process that ExaBGP talks to: always drains ExaBGP, and passes lines on to bgpd while bgpd is there.

ExaBGP stops, and loses all its sessions, when its API process does not read; and it exits when that process dies too
often. This one therefore does nothing that can block or fail: bgpd may be absent, slow or restarted, and the sessions
stay. Each connection to bgpd's socket begins with one line ``{"relay": pid, "exabgp": pid, "outstanding": n,
"dropped": m}``: ask for everything again, expect n acknowledgements of commands of an earlier connection, and know that
m bytes of ExaBGP's have gone unread since the last such line.

Stdlib only, run with ``python -I -S relay.py SOCKET``; ends only when ExaBGP does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time

CAP = 64 * 1024 * 1024  # unread by bgpd; beyond it bgpd is taken for dead and must resynchronise
COMMANDS = 64 * 1024  # unread by ExaBGP; beyond it bgpd is not read
RETRY = 0.2


class Relay:
    """Bytes from ExaBGP (fd 0) to bgpd's socket, and whole command lines from there to ExaBGP (fd 1)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.bgpd: socket.socket | None = None
        self.retry_at = 0.0
        self.events = bytearray()  # to bgpd
        self.at_line_start = True  # of what ExaBGP has written so far
        self.skipping = False  # the rest of a line that began before bgpd connected
        self.tail = b""  # end of what ExaBGP wrote, to recognise acknowledgements cut in two
        self.command = b""  # a line of bgpd without its end
        self.commands = bytearray()  # to ExaBGP
        self.outstanding = 0
        self.dropped = 0  # bytes that no bgpd has read

    def run(self) -> None:
        """Until ExaBGP closes its end."""
        while True:
            self.connect()
            bgpd = self.bgpd
            readable: list[int] = [0]
            writable: list[int] = [1] if self.commands else []
            if bgpd is not None:
                if len(self.commands) < COMMANDS:
                    readable.append(bgpd.fileno())
                if self.events:
                    writable.append(bgpd.fileno())
            ready, _, _ = select.select(readable, writable, [], None if bgpd else RETRY)
            # What was just read goes on at once: nothing here blocks, and another look at the descriptors costs time.
            if 0 in ready and not self.from_exabgp():
                return
            if bgpd is not None and bgpd.fileno() in ready:
                self.from_bgpd(bgpd)
            if self.bgpd is not None and self.events:
                self.to_bgpd(self.bgpd)
            if self.commands:
                with contextlib.suppress(BlockingIOError):
                    del self.commands[: os.write(1, self.commands)]

    def connect(self) -> None:
        """Try once in a while; a Unix socket answers at once or not at all."""
        now = time.monotonic()
        if self.bgpd is not None or now < self.retry_at:
            return
        self.retry_at = now + RETRY
        attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        attempt.setblocking(False)
        try:
            attempt.connect(self.path)
        except OSError:
            attempt.close()
            return
        self.bgpd, self.command, self.skipping = attempt, b"", not self.at_line_start
        marker = (
            f'{{"relay": {os.getpid()}, "exabgp": {os.getppid()}, "outstanding": {self.outstanding}, '
            f'"dropped": {min(self.dropped, 0xFFFFFFFF)}}}\n'
        )
        self.dropped = 0
        self.events = bytearray(marker.encode())

    def disconnect(self) -> None:
        """Forget bgpd; what it had not read is gone, and a new connection resynchronises."""
        if self.bgpd is not None:
            self.bgpd.close()
        self.bgpd = None
        self.dropped += len(self.events)
        self.events = bytearray()

    def from_exabgp(self) -> bool:
        """Read what ExaBGP has written; False at its end."""
        data = os.read(0, 1 << 20)
        if not data:
            return False
        lines = (self.tail + data).split(b"\n")
        answered = lines[:-1].count(b"done") + lines[:-1].count(b"error")
        self.outstanding = max(0, self.outstanding - answered)
        self.tail = lines[-1] if len(lines[-1]) < 8 else b"not an acknowledgement"
        self.at_line_start = data.endswith(b"\n")
        if self.bgpd is None:
            self.dropped += len(data)
            return True
        if self.skipping:
            _, newline, data = data.partition(b"\n")
            self.skipping = not newline
        self.events += data
        if len(self.events) > CAP:
            self.disconnect()
        return True

    def from_bgpd(self, bgpd: socket.socket) -> None:
        """Take whole lines only: half a command of a bgpd that died must not meet another's."""
        try:
            data = bgpd.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.disconnect()
            return
        whole, newline, self.command = (self.command + data).rpartition(b"\n")
        self.commands += whole + newline
        self.outstanding += whole.count(b"\n") + len(newline)

    def to_bgpd(self, bgpd: socket.socket) -> None:
        """Send what fits."""
        try:
            with memoryview(self.events) as view:
                sent = bgpd.send(view[: 1 << 20])
            del self.events[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.disconnect()


def main(path: str) -> None:
    """Relay until ExaBGP ends. Signals meant for a terminal's process group must not count as a death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.set_blocking(1, False)
    with contextlib.suppress(BrokenPipeError):
        Relay(path).run()


if __name__ == "__main__":
    main(sys.argv[1])
