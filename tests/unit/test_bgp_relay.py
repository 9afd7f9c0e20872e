"""The relay: ExaBGP can always write, bgpd gets whole lines, and nothing but ExaBGP's end ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calipy.bgp import relay as module
from calipy.bgp.exabgp import commands
from calipy.bgp.exabgp.channel import ChannelServer
from calipy.bgp.exabgp.events import Event, Malformed, UpdateEvent, parse
from tests.unit.test_bgp_events import UPDATE, event


class Relay:
    """A running relay; this test is both its ExaBGP (pipes) and its bgpd (socket)."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "relay.sock"
        argv = [sys.executable, "-I", "-S", str(module.__file__), str(self.path)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def exabgp_writes(self, data: bytes) -> None:
        """As ExaBGP does, blocking."""
        self.stdin.write(data)
        self.stdin.flush()

    def exabgp_reads(self, timeout: float = 30.0) -> bytes:
        """One command line."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self.stdout], [], [], timeout)[0], f"no command, only {line!r}"
            line += os.read(self.stdout.fileno(), 1)
        return line

    @contextlib.contextmanager
    def bgpd(self) -> Iterator[tuple[socket.socket, Any]]:
        """bgpd listening until the relay has connected; its connection and a line reader."""
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self.path))
            listener.listen()
            listener.settimeout(30)
            connection, _ = listener.accept()
        connection.settimeout(30)
        with connection, connection.makefile("rb") as lines:
            yield connection, lines


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    """A relay without bgpd."""
    made = Relay(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()
    made.stdin.close()
    made.stdout.close()


def test_exabgp_never_waits_while_nobody_listens(relay: Relay) -> None:
    """20 MB without a bgpd go through; the next bgpd is greeted with how many they were, at the start of a line."""
    events = b'{"event": 1}\n' * 1_500_000
    relay.exabgp_writes(events)
    relay.exabgp_writes(b"half of a li")
    with relay.bgpd() as (_, lines):
        greeting = json.loads(lines.readline())
        in_the_pipe = 1 << 16  # not read yet when bgpd came
        assert len(events) - in_the_pipe <= greeting.pop("dropped") <= len(events) + 12
        assert greeting == {"relay": relay.process.pid, "exabgp": os.getpid(), "outstanding": 0}
        relay.exabgp_writes(b"ne\nnext line\n")
        assert lines.readline() == b"next line\n"
    with relay.bgpd() as (_, lines):
        assert json.loads(lines.readline())["dropped"] == 0


def test_commands_are_passed_whole_and_counted(relay: Relay) -> None:
    """Half a command of a bgpd that died is dropped; its successor is told how many answers are still to come."""
    with relay.bgpd() as (connection, lines):
        lines.readline()
        connection.sendall(b"announce 1\nannounce 2\nannounce 3\nhalf a comm")
        assert [relay.exabgp_reads() for _ in range(3)] == [b"announce 1\n", b"announce 2\n", b"announce 3\n"]
        relay.exabgp_writes(b"do")
        relay.exabgp_writes(b'ne\n{"an": "event"}\n')
        assert lines.readline() == b"done\n"
    with relay.bgpd() as (connection, lines):
        assert json.loads(lines.readline())["outstanding"] == 2
        connection.sendall(b"version\n")
        assert relay.exabgp_reads() == b"version\n"
        relay.exabgp_writes(b"error\ndone\nexabgp 5.0.15\ndone\n")
        assert [lines.readline() for _ in range(4)] == [b"error\n", b"done\n", b"exabgp 5.0.15\n", b"done\n"]
    with relay.bgpd() as (_, lines):
        assert json.loads(lines.readline())["outstanding"] == 0


def test_a_bgpd_that_stops_reading_is_dropped_not_waited_for(relay: Relay) -> None:
    """At the cap the connection ends, ExaBGP has not waited, and a new connection begins with a greeting."""
    line = b"x" * 999_999 + b"\n"
    with relay.bgpd() as (connection, lines):
        lines.readline()
        for _ in range(module.CAP // len(line) + 4):
            relay.exabgp_writes(line)
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(1 << 20):
                received += len(data)
        assert received < module.CAP
    with relay.bgpd() as (_, lines):
        assert json.loads(lines.readline())["dropped"] >= module.CAP


def test_exabgp_that_does_not_read_stops_bgpd_not_the_relay(relay: Relay) -> None:
    """Commands wait for ExaBGP at bgpd's end, and events go on meanwhile."""
    with relay.bgpd() as (connection, lines):
        lines.readline()
        connection.settimeout(0.2)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 16 << 20:
                sent += connection.send(b"announce route 10.0.0.0/26 next-hop 10.0.0.1\n" * 100)
        assert sent < 16 << 20
        connection.settimeout(30)
        relay.exabgp_writes(b'{"event": 1}\n')
        assert lines.readline() == b'{"event": 1}\n'


def test_it_outlives_signals_of_a_terminal_and_ends_with_exabgp(relay: Relay) -> None:
    """Ctrl-C must not spend ExaBGP's budget of API process deaths; the end of ExaBGP ends the relay."""
    with relay.bgpd() as (_, lines):
        lines.readline()
        relay.process.send_signal(signal.SIGINT)
        relay.exabgp_writes(b"still here\n")
        assert lines.readline() == b"still here\n"
    relay.stdin.close()
    assert relay.process.wait(5) == 0


def test_it_is_small(relay: Relay) -> None:
    """One relay a node: it should not be noticed (12 MB resident at most, no CPU while idle)."""
    with relay.bgpd() as (_, lines):
        lines.readline()
        pid = relay.process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        assert pages * os.sysconf("SC_PAGESIZE") < 12 << 20
        before = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        time.sleep(0.5)
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] == before


def test_one_very_long_line_arrives_whole(relay: Relay) -> None:
    """An UPDATE of more than 300 KB, written in pieces, is one event behind relay and channel, as are others."""
    nlri = [{"nlri": f"10.{i >> 8}.{i & 255}.0/24"} for i in range(15_000)]
    update = {"attribute": {"origin": "igp"}, "announce": {"ipv4 unicast": {"10.77.0.3": nlri}}}
    long = event("update", f'"direction": "receive", "message": {json.dumps({"update": update})}') + b"\n"
    assert len(long) > 300_000
    heard: list[Event] = []

    async def talk() -> None:
        complete = asyncio.Event()

        def on_events(events: list[Event]) -> None:
            heard.extend(events)
            if len([one for one in heard if isinstance(one, UpdateEvent)]) == 3:
                complete.set()

        server = ChannelServer(relay.path, on_events)
        await server.start()
        channel = await server.accept()
        asking = asyncio.create_task(channel.ask(commands.VERSION))
        assert await asyncio.to_thread(relay.exabgp_reads) == b"version\n"
        for part in (UPDATE + b"\n", long[:7], long[7:150_000], long[150_000:], UPDATE + b"\n", b"done\n"):
            await asyncio.to_thread(relay.exabgp_writes, part)
        async with asyncio.timeout(30):
            await complete.wait()
            await asking
        await server.close()

    asyncio.run(talk())
    first, big, last = [one for one in heard if isinstance(one, UpdateEvent)]
    assert first == last == parse(UPDATE)
    assert [str(one.prefix) for one in big.announced] == [one["nlri"] for one in nlri]
    assert not [one for one in heard if isinstance(one, Malformed)]
