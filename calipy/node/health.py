"""Liveness and readiness of a daemon: reporters with time-outs (pure), and the small HTTP server that tells of them.

Mirrors Felix's health aggregator: each part of a daemon reports ``live`` and ``ready``; a report older than its
time-out counts as neither. ``/liveness`` and ``/readiness`` answer 200 when all is well and 503 when any reporter is
not, with a table of the reasons either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from calipy import clock, log
from calipy.errors import CalipyError

logger = log.get("health")

REQUEST_SECONDS = 5.0
MAX_REQUEST_LINE = 4096


@dataclass(frozen=True, slots=True)
class Report:
    """What a reporter last said, and when (monotonic seconds)."""

    live: bool
    ready: bool
    detail: str
    at: float


@dataclass(frozen=True, slots=True)
class Line:
    """One reporter's state as shown."""

    name: str
    live: bool
    ready: bool
    detail: str


class Health:
    """All reporters of one process. Pure but for the clock that ``report`` is given."""

    def __init__(self) -> None:
        self._timeouts: dict[str, float] = {}
        self._reports: dict[str, Report] = {}

    def register(self, name: str, *, timeout: float = 0.0) -> None:
        """Add a reporter. Until its first report it is live and not ready. ``timeout`` in seconds, 0 = never stale."""
        self._timeouts[name] = timeout

    def report(self, name: str, *, live: bool = True, ready: bool, detail: str = "", now: float | None = None) -> None:
        """Take a report; ``now`` is for tests."""
        self._reports[name] = Report(live, ready, detail, clock.monotonic() if now is None else now)

    def lines(self, now: float | None = None) -> list[Line]:
        """Every reporter's state at ``now``, in order of registration."""
        moment = clock.monotonic() if now is None else now
        result = []
        for name, timeout in self._timeouts.items():
            report = self._reports.get(name)
            if report is None:
                result.append(Line(name, live=True, ready=False, detail="starting"))
            elif timeout and moment - report.at > timeout:
                age = moment - report.at
                result.append(Line(name, live=False, ready=False, detail=f"no report for {age:.0f} s"))
            else:
                result.append(Line(name, report.live, report.ready, report.detail))
        return result

    @property
    def ready(self) -> bool:
        return all(line.ready for line in self.lines())

    @property
    def live(self) -> bool:
        return all(line.live for line in self.lines())


def table(lines: list[Line]) -> str:
    """The reporters as people read them: name, live, ready, detail."""
    rows = [("COMPONENT", "LIVE", "READY", "DETAIL")]
    rows += [(x.name, "yes" if x.live else "no", "yes" if x.ready else "no", x.detail) for x in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip() + "\n" for row in rows
    )


class HealthServer:
    """Serves ``/liveness`` and ``/readiness`` (GET and HEAD) on one address, by default localhost only."""

    def __init__(self, health: Health, *, host: str, port: int, refresh: Callable[[], None] = lambda: None) -> None:
        """``refresh`` is called before each answer, so that reporters without a loop of their own are up to date."""
        self._health = health
        self._host = host
        self._port = port
        self._refresh = refresh
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            CalipyError: the port is taken or the address is not ours.
        """
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=MAX_REQUEST_LINE)
        except OSError as error:
            raise CalipyError(
                f"cannot listen for health checks on {self._host}:{self._port}: {error.strerror or error}",
                remedy="set FELIX_HEALTHPORT or FELIX_HEALTHHOST, or FELIX_HEALTHENABLED=false",
            ) from error

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                status, body, method = self._answer((await reader.readline()).decode("latin-1"))
                while (await reader.readline()).strip():
                    pass
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + (b"" if method == "HEAD" else body))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            logger.debug("health request not completed")
        finally:
            writer.close()

    def _answer(self, request: str) -> tuple[str, bytes, str]:
        method, _, rest = request.partition(" ")
        path = rest.split(" ")[0].split("?")[0]
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", b"GET only\n", method
        if path not in ("/liveness", "/readiness"):
            return "404 Not Found", b"/liveness or /readiness\n", method
        self._refresh()
        good = self._health.live if path == "/liveness" else self._health.ready
        return ("200 OK" if good else "503 Service Unavailable"), table(self._health.lines()).encode(), method
