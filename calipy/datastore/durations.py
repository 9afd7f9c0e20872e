"""Go durations: their texts, as Calico stores them, and nanoseconds.

Source: Go ``time.ParseDuration`` and ``Duration.String``.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_LIMIT = 2**63


def parse(text: str) -> int:
    """Nanoseconds of ``90s``, ``1h30m``, ``-1.5h``, ``0``.

    Raises:
        ValueError: not a Go duration, or one longer than about 292 years.
    """
    rest = text[1:] if text[:1] in {"-", "+"} else text
    if rest == "0":
        return 0
    total, position = Fraction(0), 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None:
            break
        total += Fraction(part[1]) * NANOSECONDS[part[2]]
        position = part.end()
    if not rest or position < len(rest):
        raise ValueError(f"{text!r} is not a duration such as 90s, 1m30s or 1.5h")
    nanoseconds = int(total)
    if nanoseconds >= _LIMIT:
        raise ValueError(f"duration {text!r} is too long")
    return -nanoseconds if text[0] == "-" else nanoseconds


def seconds(text: str) -> float:
    """Seconds of a Go duration. Raises ``ValueError`` as ``parse``."""
    return parse(text) / 10**9


def text(nanoseconds: int) -> str:
    """Go's own print: ``1m30s``, ``1h0m0s``, ``500ms``, ``1.5s``, ``0s``."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    if rest < 10**9:
        unit = "ns" if rest < 1_000 else "µs" if rest < 10**6 else "ms"
        return sign + _decimal(rest, NANOSECONDS[unit]) + unit
    minutes, below = divmod(rest, 60 * 10**9)
    tail = _decimal(below, 10**9) + "s"
    if minutes == 0:
        return sign + tail
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours}h{minutes}m{tail}" if hours else f"{sign}{minutes}m{tail}"


def _decimal(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    if not fraction:
        return str(whole)
    digits = str(fraction).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}"


def canonical(value: str) -> str:
    """Go's print of a Go duration: ``90s`` → ``1m30s``. Raises ``ValueError`` as ``parse``."""
    return text(parse(value))
