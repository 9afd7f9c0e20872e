"""Splitting of command lines and env-files, as containerlab's libraries do it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_SPACE = " \t\r\n"


def split(command: str) -> tuple[str, ...]:
    """Split a command line into words, without a shell (Go's ``shlex``).

    Single quotes keep everything, double quotes and bare words know the backslash, which takes the next character as it
    is; a ``#`` at the start of a word begins a comment.

    Raises:
        ValueError: a quote is not closed, or the text ends in a backslash.
    """
    words: list[str] = []
    current: list[str] | None = None
    characters = iter(command)
    for character in characters:
        if character in _SPACE:
            if current is not None:
                words.append("".join(current))
                current = None
        elif character == "#" and current is None:
            for skipped in characters:
                if skipped == "\n":
                    break
        else:
            current = current if current is not None else []
            if character in "'\"":
                current.extend(_quoted(characters, character))
            elif character == "\\":
                current.append(_next(characters, "the text ends in a backslash"))
            else:
                current.append(character)
    if current is not None:
        words.append("".join(current))
    return tuple(words)


def _quoted(characters: Iterator[str], quote: str) -> Iterator[str]:
    message = f"a quote ({quote}) is not closed"
    while (character := _next(characters, message)) != quote:
        yield _next(characters, message) if character == "\\" and quote == '"' else character


def _next(characters: Iterator[str], message: str) -> str:
    character = next(characters, None)
    if character is None:
        raise ValueError(message)
    return character


_NAME = r"[A-Za-z_][A-Za-z0-9_.]*"
_LINE = re.compile(rf"\s*(?:export\s+)?({_NAME})\s*[=:]\s*(.*)", re.DOTALL)
_REFERENCE = re.compile(rf"(\\)?\$(?:\{{({_NAME})\}}|({_NAME}))")


def parse_env_file(text: str) -> dict[str, str]:
    """The variables of a dotenv file: ``KEY=value`` lines, ``export``, comments, quotes and ``$KEY`` of earlier lines.

    Raises:
        ValueError: a line is no assignment; the message holds its number.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is not KEY=value")
        found[match[1]] = _env_value(match[2].strip(), found, number)
    return found


def _env_value(raw: str, found: Mapping[str, str], number: int) -> str:
    quote = raw[:1]
    if quote in ("'", '"'):
        end = re.search(r"(?<!\\)" + quote, raw[1:])
        if end is None:
            raise ValueError(f"line {number} has an unclosed quote")
        inner = raw[1 : 1 + end.start()]
        if quote == "'":
            return inner
        inner = re.sub(r"\\([nr\"\\])", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), inner)
        return _references(inner, found)
    return _references(re.split(r"\s#", raw, maxsplit=1)[0].rstrip(), found)


def _references(text: str, found: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return match[0][1:] if match[1] else found.get(match[2] or match[3], "")

    return _REFERENCE.sub(value, text)
