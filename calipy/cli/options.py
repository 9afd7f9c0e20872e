"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

_MISMATCH: Final = "calipy.cli.options.mismatch"

config_option = click.option(
    "-c",
    "--config",
    "config_file",
    metavar="FILE",
    help="Datastore configuration file [default: /etc/calico/calicoctl.cfg].",
)


def _anywhere(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    """Calicoctl takes the flag before and after the command's name."""
    allowed: bool = value or context.meta.get(_MISMATCH, False)
    context.meta[_MISMATCH] = allowed
    return allowed


def mismatch_option(*, checked: bool) -> Callable[[_Function], _Function]:
    """``--allow-version-mismatch``; hidden, and without effect by itself, where the release is not ``checked``."""
    return click.option(
        "--allow-version-mismatch",
        is_flag=True,
        callback=_anywhere,
        expose_value=checked,
        hidden=not checked,
        help="Work on a datastore of an older release too.",
    )


def datastore_options(function: _Function) -> _Function:
    """Options of the commands that read and write resources."""
    for option in (config_option, mismatch_option(checked=True)):
        function = option(function)
    return function
