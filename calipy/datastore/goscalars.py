"""Scalars of Calico's JSON, each checked as Go checks it and brought into one spelling.

All raise ``InvalidInputError`` naming the field and the value.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeAlias

from calipy.datastore import durations
from calipy.datastore.kinds.base import Bits
from calipy.errors import InvalidInputError

Reader: TypeAlias = Callable[[Any, str], Any]
"""Parsed JSON and its path → the value."""

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
INT64 = Bits(-(2**63), 2**63 - 1)
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)


def text(value: Any, path: str) -> str:
    """A JSON text."""
    if not isinstance(value, str):
        raise InvalidInputError("must be a text", field=path, value=value)
    return value


def boolean(value: Any, path: str) -> bool:
    """``true`` or ``false``."""
    if not isinstance(value, bool):
        raise InvalidInputError("must be true or false", field=path, value=value)
    return value


def integer(value: Any, path: str, bits: Bits = INT64) -> int:
    """An integer that fits Go's type."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidInputError("must be an integer, unquoted and without a point", field=path, value=value)
    if not bits.low <= value <= bits.high:
        raise InvalidInputError(f"must be in {bits.low}..{bits.high}", field=path, value=value)
    return value


def number(value: Any, path: str) -> float:
    """A number; whole ones may come without a point."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidInputError("must be a number", field=path, value=value)
    try:
        return float(value)
    except OverflowError:
        raise InvalidInputError("is too big", field=path, value=value) from None


def print_float(value: float) -> str:
    """Go's shortest print of a number (``%g``): ``5``, ``0.5``, ``1.2345675e+06``."""
    if math.isinf(value) or math.isnan(value):
        return "NaN" if math.isnan(value) else f"{value:+.0f}".replace("inf", "Inf")
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    exponent = Decimal(repr(value)).adjusted() if value else 0
    if -4 <= exponent < 6:
        return f"{Decimal(repr(value)).normalize():f}"
    tail = "".join(map(str, digits[1:]))
    return f"{'-' * sign}{digits[0]}{'.' * bool(tail)}{tail}e{exponent:+03d}"


def integer_or_text(value: Any, path: str) -> int | str:
    """Kubernetes' IntOrString."""
    if isinstance(value, str):
        return value
    return integer(value, path, Bits(-(2**31), 2**31 - 1))


def time(value: Any, path: str) -> str:
    """RFC 3339 with a zone, into UTC and whole seconds."""
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidInputError("must be a time such as 2026-08-01T10:00:00Z", field=path, value=value)
    try:
        moment = datetime.datetime.fromisoformat(
            "{}-{}-{}T{}:{}:{}{}".format(*found.groups()[:6], found[7].replace("Z", "+00:00"))
        ).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise InvalidInputError("is no such moment", field=path, value=value) from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(value: Any, path: str) -> str:
    """A Go duration, into Go's print."""
    try:
        return durations.canonical(text(value, path))
    except ValueError as error:
        raise InvalidInputError(str(error), field=path, value=value) from None


def as_number(value: Any, path: str) -> int:
    """An AS number: integer, its text, or ``high.low``."""
    if not isinstance(value, str):
        return integer(value, path, Bits(0, 2**32 - 1))
    high, dot, low = value.rpartition(".")
    limit = 2**16 if dot else 2**32
    parts = [high, low] if dot else [low]
    if not all(part.isascii() and part.isdigit() and int(part) < limit for part in parts):
        raise InvalidInputError("must be an AS number such as 65001 or 1.10", field=path, value=value)
    return (int(high) << 16) + int(low) if dot else int(low)


def protocol(value: Any, path: str) -> int | str:
    """An IP protocol: number, or name; the text of a number is the number."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and int(value) <= 255 else value
    return integer(value, path, Bits(0, 255))


def port(value: Any, path: str) -> int | str:
    """A port, a range, or the name of a port; a range of one port is the port."""
    if not isinstance(value, str):
        return integer(value, path, Bits(0, 65535))
    if value.isascii() and value.isdigit():
        return integer(int(value), path, Bits(0, 65535))
    low, colon, high = value.partition(":")
    if colon and low.isascii() and high.isascii() and low.isdigit() and high.isdigit():
        first, last = integer(int(low), path, Bits(0, 65535)), integer(int(high), path, Bits(0, 65535))
        if first > last:
            raise InvalidInputError("must not begin above its end", field=path, value=value)
        return first if first == last else f"{first}:{last}"
    if not _PORT_NAME.fullmatch(value):
        raise InvalidInputError("must be a port number, a range such as 1000:2000, or a name", field=path, value=value)
    return value


FORMS: dict[str, Reader] = {
    "time": time,
    "duration": duration,
    "as": as_number,
    "protocol": protocol,
    "port": port,
}
