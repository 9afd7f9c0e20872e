"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

config_option = click.option(
    "-c",
    "--config",
    "config_file",
    metavar="FILE",
    help="Datastore configuration file [default: /etc/calico/calicoctl.cfg].",
)


def datastore_options(function: _Function) -> _Function:
    """Options of every command that talks to the datastore."""
    for option in (
        config_option,
        click.option("--allow-version-mismatch", is_flag=True, help="Work on a datastore of an older release too."),
    ):
        function = option(function)
    return function
