"""What the commands of ``calipy ipam`` share: where they work, what they say, and how they are run.

Each command builds an action; what runs it decides where the store comes from. So the command line and the conformance
cases go through the same parsing and the same code.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import click

from calipy import clock
from calipy.cli.options import mismatch_option
from calipy.cli.render import structured
from calipy.cli.session import current
from calipy.datastore.ipam import IPAMConfig
from calipy.datastore.store import Store
from calipy.ipam.allocator import DEFAULTS, Allocator

_Function = TypeVar("_Function", bound=Callable[..., Any])

CONFIG_FILE = "calipy.cli.ipam.config_file"
"""Where a command's context keeps the configuration file that was given."""

NOBODY = "calipy-cli"
"""Owner of no blocks: the command line only looks, releases and configures."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a command says.

    Attributes:
        text: for people, when there is no table.
        columns: heads of the table.
        rows: its rows.
        document: the same for programs.
        exit_code: 0 for success.
    """

    text: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    document: Any = None
    exit_code: int = 0

    def shown(self, form: str) -> str:
        """The text to print: ``table``, ``json`` or ``yaml``."""
        if form != "table":
            return structured(self.document, form) + "\n"
        shown = table(self.columns, self.rows) if self.columns else ""
        return shown + (self.text + "\n" if self.text else "")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an action is carried out.

    Attributes:
        store: the datastore.
        defaults: settings for a store without any.
        now: wall clock.
        settle: seconds to wait for requests under way after a pool was disabled.
    """

    store: Store
    defaults: IPAMConfig = DEFAULTS
    now: Callable[[], datetime.datetime] = clock.wall
    settle: float = 0.5

    def allocator(self) -> Allocator:
        """An allocator that owns nothing."""
        return Allocator(self.store, NOBODY, defaults=self.defaults, now=self.now)


Action: TypeAlias = Callable[[Place], Awaitable[Output]]


@dataclass(slots=True)
class Collected:
    """Takes the action out of click for callers that run it themselves."""

    actions: list[Action] = field(default_factory=list)


def do(action: Action, form: str = "table") -> None:
    collected = click.get_current_context().find_object(Collected)
    if collected is not None:
        collected.actions.append(action)
        return
    output = current(click.get_current_context().meta.get(CONFIG_FILE)).run(lambda client: action(Place(client.store)))
    print(output.shown(form), end="", file=sys.stderr if output.exit_code and form == "table" else sys.stdout)
    if output.exit_code:
        sys.exit(output.exit_code)


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    del parameter
    context.meta[CONFIG_FILE] = value


_config_option = click.option(
    "-c",
    "--config",
    "config_file",
    metavar="FILE",
    expose_value=False,
    callback=_remember,
    help="Datastore configuration file [default: /etc/calico/calicoctl.cfg].",
)


def config_option(function: _Function) -> _Function:
    """Where the datastore is, and calicoctl's flag beside it."""
    return _config_option(mismatch_option(checked=False)(function))


output_option = click.option(
    "-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True
)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A bordered table, as calicoctl draws it."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    head = "|" + "|".join(f" {name:^{width}} " for name, width in zip(columns, widths, strict=True)) + "|"
    body = ["|" + "|".join(f" {cell:<{width}} " for cell, width in zip(row, widths, strict=True)) + "|" for row in rows]
    return "\n".join((rule, head, rule, *body, rule)) + "\n"


def number(count: int) -> str:
    """As calicoctl prints it: five digits, then powers of ten."""
    return str(count) if count < 100_000 else f"{count:.5g}"
