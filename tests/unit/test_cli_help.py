"""What ``--help`` shows, of every command."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from calipy.cli.main import calipy

PLAIN = {"lab version", "lab save"}
"""Commands that there is nothing to show about."""


def _commands(command: click.Command, ctx: click.Context, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(command, click.Group):
        for word in command.list_commands(ctx):
            found = command.get_command(ctx, word)
            assert found is not None
            yield from _commands(found, click.Context(found, info_name=word, parent=ctx), f"{name} {word}".strip())
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield name, command.get_help(ctx)


_HELP = dict(_commands(calipy, click.Context(calipy, info_name="calipy")))


@pytest.mark.parametrize("name", sorted(_HELP))
def test_help_has_an_example_laid_out_in_lines(name: str) -> None:
    """Each command shows how it is used, one example a line, and no mark of the formatter."""
    text = _HELP[name]
    assert "\\b" not in text
    if name not in PLAIN:
        assert any(line.strip() in {"Example:", "Examples:"} for line in text.splitlines()), text
        assert any(line.startswith("    ") and f"calipy {name}" in line for line in text.splitlines()), text
