"""Comparison of expected and actual JSON, where ``<uid-1>``, ``<time>`` and their like stand for values of a run."""

from __future__ import annotations

import re
from typing import Any, Final

_PLACEHOLDER: Final = re.compile(r"<([a-z]+(?:-[a-z]+)*)(?:-(\d+))?>(?:\+(\d+))?")

_FORMS: Final[dict[str, str]] = {
    "uid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "go-time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? [+-]\d{4} [A-Z]+.*",
    "guid": r"[0-9a-f]{32}",
    "modrev": r"\d+",
    "header-revision": r"\d+",
    "rev": r"\d+",
    "mac": r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}",
    "random-ula": r"fd[0-9a-f:]+",
    "link-local": r"fe80::[0-9a-f:]+",
    "seconds": r"[\d.]+",
    "etcd": r"https?://\S+",
}
_BOUND: Final = frozenset({"uid"})
"""Placeholders of which one with the same number is the same value, and one with another number another value."""


class Mismatch(Exception):  # noqa: N818 - a finding, not an error
    """Where and how two values differ."""


class Matcher:
    """Compares the values of one case; remembers what the placeholders stand for."""

    def __init__(self) -> None:
        self._bound: dict[str, str] = {}
        self._sequences: dict[str, int] = {}

    def check(self, expected: Any, actual: Any, path: str = "") -> None:
        """Raise ``Mismatch`` unless they agree: values, types and presence of members; order of members is free."""
        if isinstance(expected, dict):
            if not isinstance(actual, dict):
                raise Mismatch(_difference(path, expected, actual))
            self._check_object(expected, actual, path)
        elif isinstance(expected, list):
            if not isinstance(actual, list):
                raise Mismatch(_difference(path, expected, actual))
            if len(expected) != len(actual):
                raise Mismatch(f"{path or '.'}: expected {len(expected)} items, got {len(actual)}: {_short(actual)}")
            for index, (left, right) in enumerate(zip(expected, actual, strict=True)):
                self.check(left, right, f"{path}[{index}]")
        elif isinstance(expected, str):
            self._check_text(expected, actual, path)
        elif type(expected) is not type(actual) or expected != actual:
            raise Mismatch(_difference(path, expected, actual))

    def _check_object(self, expected: dict[str, Any], actual: dict[str, Any], path: str) -> None:
        missing = [name for name in expected if name not in actual]
        if missing:
            raise Mismatch(f"{path or '.'}: no member {missing[0]!r} (expected {_short(expected[missing[0]])})")
        extra = [name for name in actual if name not in expected]
        if extra:
            raise Mismatch(f"{path or '.'}: unexpected member {extra[0]!r} = {_short(actual[extra[0]])}")
        for name, value in expected.items():
            self.check(value, actual[name], f"{path}.{name}" if path else name)
        if expected.get("creationTimestamp") == "<time>" and str(expected.get("uid", "")).startswith("<uid-"):
            # An update keeps the creation time: it is bound to the uid.
            self._bind(f"creation time of {expected['uid']}", actual["creationTimestamp"], path)

    def _check_text(self, expected: str, actual: Any, path: str) -> None:
        found = _PLACEHOLDER.fullmatch(expected)
        if found and found[1] == "seq":
            self._check_sequence(found, actual, path)
            return
        pattern, bound = self._pattern(expected)
        text = str(actual) if isinstance(actual, int) and found and found[1] == "rev" else actual
        match = re.fullmatch(pattern, text, re.DOTALL) if isinstance(text, str) else None
        if match is None:
            raise Mismatch(_difference(path, expected, actual))
        for group, name in bound.items():
            self._bind(name, match[group], path)

    def _check_sequence(self, found: re.Match[str], actual: Any, path: str) -> None:
        if not isinstance(actual, int):
            raise Mismatch(_difference(path, found[0], actual))
        name, offset = found[2] or "", int(found[3] or 0)
        first = self._sequences.setdefault(name, actual - offset)
        if first + offset != actual:
            raise Mismatch(_difference(path, found[0], actual - first))

    def _pattern(self, expected: str) -> tuple[str, dict[str, str]]:
        """A regular expression for a text with placeholders, and which of its groups are bound to which name."""
        parts, bound, position = [], {}, 0
        for number, found in enumerate(_PLACEHOLDER.finditer(expected)):
            form = _FORMS.get(found[1])
            if form is None:
                continue
            parts.append(re.escape(expected[position : found.start()]))
            parts.append(f"(?P<p{number}>{form})")
            if found[1] in _BOUND and found[2]:
                bound[f"p{number}"] = found[0]
            position = found.end()
        parts.append(re.escape(expected[position:]))
        return "".join(parts), bound

    def _bind(self, name: str, value: str, path: str) -> None:
        known = self._bound.setdefault(name, value)
        if known != value:
            raise Mismatch(f"{path}: {name} was {known}, now it is {value}")
        if name.startswith("<"):
            others = [
                other
                for other, text in self._bound.items()
                if text == value and other != name and other.startswith("<")
            ]
            if others:
                raise Mismatch(f"{path}: {name} and {others[0]} are both {value}")

    def fill(self, value: Any) -> Any:
        """A value in which the placeholders met so far are replaced by what they stand for."""
        if isinstance(value, dict):
            return {name: self.fill(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if isinstance(value, str):
            return _PLACEHOLDER.sub(lambda found: self._bound.get(found[0], found[0]), value)
        return value


def _difference(path: str, expected: Any, actual: Any) -> str:
    return f"{path or '.'}: expected {_short(expected)}, got {_short(actual)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
