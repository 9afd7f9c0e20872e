"""The conversation with ExaBGP through the relay: events come when they come, commands go one kind at a time.

Acknowledgements carry no number and overtake each other between commands of different kinds. So commands are sent in
batches of one kind, a batch is over when each of its commands is acknowledged, and questions are asked alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from calipy import clock, log
from calipy.bgp.exabgp import commands
from calipy.bgp.exabgp.events import Ack, Event, Malformed, NeighbourTable, Resync, ShownRoute, Text, parse
from calipy.metrics import REGISTRY

logger = log.get("bgp.channel")

_ACK: Final = REGISTRY.summary("bgp_exabgp_ack_seconds", "Time from a batch of commands to its last acknowledgement.")
_DROPPED: Final = REGISTRY.counter("bgp_relay_dropped_bytes", "What ExaBGP said while no bgpd was there to read it.")

ANSWER_SECONDS: Final = 10.0
"""Longest silence from ExaBGP while something is outstanding; after it ExaBGP counts as hung."""
_CHUNK: Final = 1 << 18
_LINES_PER_TURN: Final = 500


class ChannelClosedError(Exception):
    """The conversation is over: the relay has gone."""


class SpeakerUnusableError(ChannelClosedError):
    """ExaBGP runs but hangs, refuses, or has the wrong settings: it must be restarted."""


class Channel:
    """One connection from the relay.

    Attributes:
        relay: process id of the relay, from its first line.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_events: Callable[[list[Event]], None]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_events = on_events
        self._lock = asyncio.Lock()
        self._acks: asyncio.Queue[Ack | None] = asyncio.Queue()
        self._answers: list[Event] = []
        self._asking = False
        self._closed = asyncio.Event()
        self._resync: asyncio.Future[Resync] = asyncio.get_running_loop().create_future()
        self._heard = 0
        self.relay = 0
        self._task = asyncio.create_task(self._read())

    async def open(self) -> None:
        """Take the relay's greeting and let pass what earlier commands are still to be answered with.

        Raises:
            ChannelClosedError: there was none in time.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                greeting = await self._resync
        except TimeoutError:
            raise ChannelClosedError("the relay does not introduce itself") from None
        self.relay = greeting.relay
        _DROPPED.inc(greeting.dropped)
        for _ in range(greeting.outstanding):
            await self._next_ack()

    async def send(self, lines: Sequence[str], *, window: int = commands.WINDOW) -> int:
        """Send commands of one kind and wait until each is acknowledged.

        Args:
            lines: from ``commands``.
            window: how many may be outstanding.

        Returns:
            How many were refused (``error``).

        Raises:
            ChannelClosedError: ExaBGP or the relay has gone; how many commands were taken up is unknown.
        """
        async with self._lock:
            began = clock.monotonic()
            refused = outstanding = 0
            for line in lines:
                self._write(line)
                outstanding += 1
                if outstanding >= window:
                    refused += not (await self._next_ack()).ok
                    outstanding -= 1
            for _ in range(outstanding):
                refused += not (await self._next_ack()).ok
            if lines:
                _ACK.observe(clock.monotonic() - began)
            return refused

    async def ask(self, line: str) -> list[Event]:
        """Ask a question, alone; the lines of the answer in order.

        Raises:
            ChannelClosedError: the relay has gone, or (``SpeakerUnusableError``) there is no answer, or a refusal.
        """
        async with self._lock:
            self._answers = []
            self._asking = True
            try:
                self._write(line)
                acknowledged = await self._next_ack()
            finally:
                self._asking = False
            answers, self._answers = self._answers, []
            if not acknowledged.ok:
                # No answer is not an empty one: routes would be let go of.
                raise SpeakerUnusableError(f"ExaBGP refuses {line!r}")
            return answers

    async def wait_closed(self) -> None:
        """Until the connection is over."""
        await self._closed.wait()

    async def close(self) -> None:
        """End it; may be called twice."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        self._over()

    def _write(self, line: str) -> None:
        if self._closed.is_set():
            raise ChannelClosedError("the relay has gone")
        self._writer.write(commands.checked(line).encode("ascii") + b"\n")

    async def _next_ack(self) -> Ack:
        """The next acknowledgement; any line from ExaBGP in between shows that it lives."""
        while True:
            before = self._heard
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    ack = await self._acks.get()
            except TimeoutError:
                if self._heard != before:
                    continue
                raise SpeakerUnusableError(f"ExaBGP has not answered for {ANSWER_SECONDS:.0f} s") from None
            if ack is None:
                self._acks.put_nowait(None)
                raise ChannelClosedError("the relay has gone")
            return ack

    async def _read(self) -> None:
        """Split into lines and hand them out; a line may be of any length."""
        partial: list[bytes] = []
        try:
            while data := await self._reader.read(_CHUNK):
                self._heard += 1
                first, *rest = data.split(b"\n")
                partial.append(first)
                if not rest:
                    continue
                lines = [b"".join(partial), *rest[:-1]]
                partial = [rest[-1]]
                for start in range(0, len(lines), _LINES_PER_TURN):
                    self._dispatch(lines[start : start + _LINES_PER_TURN])
                    await asyncio.sleep(0)
        except OSError as error:
            logger.warning("connection to the relay broke", error=str(error))
        finally:
            self._over()

    def _dispatch(self, lines: Sequence[bytes]) -> None:
        events: list[Event] = []
        for line in lines:
            event = parse(line)
            match event:
                case Ack():
                    self._acks.put_nowait(event)
                case Resync():
                    if not self._resync.done():
                        self._resync.set_result(event)
                    events.append(event)  # here, and nowhere else in the stream, something is missing
                case NeighbourTable() if self._asking:
                    self._answers.append(event)
                    events.append(event)  # true at this place of the stream only
                case ShownRoute() | Text() if self._asking:
                    self._answers.append(event)
                case ShownRoute() | NeighbourTable() | Text():
                    pass  # rest of an answer to a bgpd that has gone
                case Malformed():
                    logger.warning("unusable line from exabgp", reason=event.reason, line=event.line)
                    events.append(event)
                case _:
                    events.append(event)
        if events:
            self._on_events(events)

    def _over(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._acks.put_nowait(None)
            if not self._resync.done():
                self._resync.set_exception(ChannelClosedError("the relay has gone"))
                self._resync.exception()  # nobody may be waiting


class ChannelServer:
    """The socket that the relay connects to. One connection at a time: a new one ends the old."""

    def __init__(self, path: Path, on_events: Callable[[list[Event]], None]) -> None:
        self._path = path
        self._on_events = on_events
        self._server: asyncio.Server | None = None
        self._queue: asyncio.Queue[Channel] = asyncio.Queue()
        self._current: Channel | None = None

    async def start(self) -> None:
        """Listen; replaces a socket that an earlier bgpd left."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, path=str(self._path), limit=1 << 20)
        self._path.chmod(0o600)

    async def accept(self) -> Channel:
        """The next connection, introduced."""
        while True:
            channel = await self._queue.get()
            try:
                await channel.open()
            except ChannelClosedError as error:
                logger.warning("relay did not stay", reason=str(error))
            else:
                return channel

    async def close(self) -> None:
        """Stop listening. The file stays: the relay tries it until the next bgpd listens."""
        if self._server is not None:
            self._server.close()
        if self._current is not None:
            await self._current.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._current is not None:
            await self._current.close()
        self._current = Channel(reader, writer, self._on_events)
        self._queue.put_nowait(self._current)
