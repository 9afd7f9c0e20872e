"""Liveness and readiness of a daemon: reporters with time-outs, and the pages that tell of them.

Mirrors Felix's health aggregator: each part of a daemon reports ``live`` and ``ready``; a report older than its
time-out counts as neither. ``/liveness`` and ``/readiness`` answer 200 when all is well and 503 when any reporter is
not, with a table of the reasons either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calipy import clock
from calipy.httpd import Page


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


def pages(health: Health, refresh: Callable[[], None] = lambda: None) -> dict[str, Callable[[], Page]]:
    """``/liveness`` and ``/readiness``, to be served.

    ``refresh`` is called before each answer, so that reporters without a loop of their own are up to date.
    """

    def page(good: Callable[[], bool]) -> Page:
        refresh()
        return Page(table(health.lines()), "200 OK" if good() else "503 Service Unavailable")

    return {
        "/liveness": lambda: page(lambda: health.live),
        "/readiness": lambda: page(lambda: health.ready),
    }
