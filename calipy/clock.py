"""The one place that reads the clock. Pure code takes ``now`` as an argument and never imports this."""

from __future__ import annotations

import datetime
import time


def monotonic() -> float:
    """Seconds since an arbitrary start; never jumps. For timeouts and timers."""
    return time.monotonic()


def wall() -> datetime.datetime:
    """Wall clock time, UTC, with zone. For what people and other machines read."""
    return datetime.datetime.now(datetime.UTC)


def unix_nanoseconds() -> int:
    """Wall clock in nanoseconds; new IPAM blocks start their sequence number here."""
    return time.time_ns()


def rfc3339(moment: datetime.datetime) -> str:
    """Calico's timestamp form: RFC 3339, second precision, UTC, e.g. ``2026-08-01T10:00:00Z``."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
