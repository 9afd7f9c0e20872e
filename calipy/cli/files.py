"""``-f``: a file of resources, a directory of them, or standard input. Edge: reads files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from calipy.cli import manifest
from calipy.datastore.client import AnyResource
from calipy.errors import InvalidInputError

_Function = TypeVar("_Function", bound=Callable[..., Any])

SUFFIXES: Final = (".yaml", ".yml", ".json")
"""What is read of a directory, as calicoctl has it."""


MAX_CHARACTERS: Final = 1 << 28
"""Of one file; a device or pipe may have no end."""

NOTHING: Final = "No resources specified"
"""Said, in calicoctl's words, where ``--skip-empty`` has nothing to do."""


def file_options(*, required: bool) -> Callable[[_Function], _Function]:
    """The options of commands that take resources from files."""

    def decorate(function: _Function) -> _Function:
        for option in (
            click.option("--skip-empty", is_flag=True, help="A file or directory without resources is no error."),
            click.option("-R", "--recursive", is_flag=True, help="Of a directory, also what is in its directories."),
            click.option(
                "-f",
                "--filename",
                required=required,
                metavar="FILE",
                help="File with resources, YAML or JSON, or a directory of such files; - for standard input.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def resources(
    filename: str, *, namespace: str | None, recursive: bool = False, skip_empty: bool = False
) -> list[AnyResource]:
    """The resources of ``-f``, in order; of a directory file by file, by name. All is read before anything is done.

    Raises:
        InvalidInputError: names the file (of a directory), the document and what is wrong.
    """
    found: list[AnyResource] = []
    place = Path(filename)
    if filename == "-" or not place.is_dir():
        found = manifest.read(read_text(filename), namespace=namespace or "")
    else:
        for file in _files(place, recursive=recursive):
            try:
                found += manifest.read(read_text(str(file)), namespace=namespace or "")
            except InvalidInputError as error:
                if error.field == "--filename":
                    raise
                told = InvalidInputError(f"{file}: {error}")
                told.field, told.value = error.field, error.value
                raise told from error
    if not found and not skip_empty:
        remedy = "--skip-empty if that is fine"
        if place.is_dir() and not recursive:
            remedy += f"; read are {', '.join(SUFFIXES)}, and directories in it with --recursive"
        raise InvalidInputError("holds no resource", field="--filename", value=filename, remedy=remedy)
    for (kind, name, of), count in Counter((one.kind, one.name, one.namespace) for one in found).items():
        if count > 1:
            title = f"{kind}({f'{of}/' if of else ''}{name})"
            click.echo(f"calipy: warning: {title} is there {count} times; they are taken in their order", err=True)
    return found


def _files(directory: Path, *, recursive: bool) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            if recursive:
                yield from _files(path, recursive=True)
        elif path.suffix in SUFFIXES:
            yield path


def read_text(filename: str) -> str:
    """The text of a file, or of standard input for ``-``. Raises InvalidInputError where it has none."""
    if filename == "-" and sys.stdin is None:
        raise InvalidInputError("standard input is closed", field="--filename", value=filename)
    try:
        with click.open_file(filename, encoding="utf-8") as file:
            text = str(file.read(MAX_CHARACTERS + 1))
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"is not UTF-8 (byte {error.start})", field="--filename", value=filename, remedy="YAML or JSON is expected"
        ) from None
    except OSError as error:
        raise InvalidInputError(
            f"cannot be read: {error.strerror or error}", field="--filename", value=filename
        ) from None
    if len(text) > MAX_CHARACTERS:
        raise InvalidInputError(f"has more than {MAX_CHARACTERS:,} characters", field="--filename", value=filename)
    return text
