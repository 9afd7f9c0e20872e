"""Reads texts as typed values the way Felix does: its file, its environment and annotations know texts only.

Each parser raises ``ValueError`` with what it expected. ``""`` stands for "nothing": off, 0, an empty text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Parser: TypeAlias = Callable[[str], Any]
Problem: TypeAlias = tuple[str, str, str]
"""Parameter, value, why it cannot be used."""

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def read(
    parameters: Mapping[str, str], known: Mapping[str, tuple[str, Parser]]
) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """Typed values of the ``known`` parameters that are given and can be used, and what cannot be used.

    Args:
        parameters: texts by name; the case of names does not matter. The value ``none`` stands for "".
        known: parameter → name of the value and its parser.
    """
    given = {name.lower(): (name, value.strip()) for name, value in parameters.items()}
    values: dict[str, Any] = {}
    problems = []
    for parameter, (attribute, parse) in known.items():
        name, value = given.get(parameter.lower(), (parameter, ""))
        if not value:
            continue
        try:
            values[attribute] = parse("" if value.lower() == "none" else value)
        except ValueError as error:
            problems.append((name, value, str(error)))
    return values, tuple(problems)


def boolean(text: str) -> bool:
    """``true``, ``yes``, ``enabled`` and so on, in any case."""
    lowered = text.lower()
    if lowered in {"true", "1", "yes", "y", "t", "enabled"}:
        return True
    if lowered in {"false", "0", "no", "n", "f", "disabled", ""}:
        return False
    raise ValueError("expected true or false")


def seconds(text: str) -> float:
    """Plain seconds, or Go's form of a duration such as ``1m30s``."""
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        value = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        value = float(text or 0)
    if not 0 <= value < 1e9:
        raise ValueError("expected a number of seconds, 0 or more")
    return value


def milliseconds(text: str) -> float:
    """Plain milliseconds, or Go's form of a duration; in seconds."""
    return seconds(text) / (1000 if text.isdigit() else 1)


def integer(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers within these bounds."""

    def parse(text: str) -> int:
        value = int(text or "0", 0)
        if not low <= value <= high:
            raise ValueError(f"expected {low}..{high}")
        return value

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """A parser of these words, in any case."""

    def parse(text: str) -> str:
        for word in allowed:
            if word.lower() == text.lower():
                return word
        raise ValueError(f"expected one of {', '.join(allowed)}")

    return parse


def text(given: str) -> str:
    """Any text."""
    return given
