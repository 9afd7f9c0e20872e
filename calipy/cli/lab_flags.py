"""What the commands of ``calipy lab`` share: their flags, before or after the command's name, and exit statuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LEVELS = {"trace": 0, "debug": 0, "info": 1, "warn": 2, "warning": 2, "error": 3, "fatal": 4}


class Shared:
    """Values of the flags that every command takes, before or after its name."""

    def __init__(self) -> None:
        self.topo = ""
        self.name = ""
        self.host_netns = False
        self.level = "info"

    def say(self, level: str, text: str) -> None:
        """A line on stderr."""
        if _LEVELS.get(level, 1) >= _LEVELS.get(self.level, 1):
            print(f"{level.upper()[:4]} {text}", file=sys.stderr, flush=True)


pass_shared = click.make_pass_decorator(Shared, ensure=True)


def shared_flags(function: _Function) -> _Function:
    def set_topo(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(Shared).topo = value

    def set_name(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(Shared).name = value

    def set_host(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        ctx.ensure_object(Shared).host_netns |= value

    def set_level(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(Shared).level = value.lower()

    def set_debug(ctx: click.Context, _parameter: click.Parameter, value: int) -> None:
        if value:
            ctx.ensure_object(Shared).level = "debug"

    def refuse_vars(_ctx: click.Context, _parameter: click.Parameter, value: Sequence[str]) -> None:
        if value:
            raise click.UsageError("--vars: the embedded driver has no template engine; render the file first")

    def check_runtime(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value not in {None, "", "calipy"}:
            raise click.UsageError(f"--runtime {value}: this driver makes namespaces itself and uses no {value}")

    options = [
        click.option("-t", "--topo", metavar="FILE", envvar="CLAB_TOPO", expose_value=False, callback=set_topo,
                     help="Topology file, a directory with one, or - for standard input."),
        click.option("--name", metavar="LAB", envvar="CLAB_NAME", expose_value=False, callback=set_name,
                     help="Name of the lab, instead of a file."),
        click.option("--host-netns", is_flag=True, envvar="CALIPY_LAB_HOST_NETNS", expose_value=False,
                     callback=set_host, help="The lab's host is this machine's own network namespace."),
        click.option("--log-level", metavar="LEVEL", envvar="CLAB_LOG_LEVEL", expose_value=False, callback=set_level,
                     help="trace, debug, info, warn, error or fatal."),
        click.option("-d", "--debug", count=True, expose_value=False, callback=set_debug, help="As --log-level debug."),
        click.option("--vars", metavar="FILE", multiple=True, expose_value=False, callback=refuse_vars, hidden=True),
        click.option("--timeout", metavar="DURATION", envvar="CLAB_TIMEOUT", expose_value=False, hidden=True),
        click.option("-r", "--runtime", envvar="CLAB_RUNTIME", expose_value=False, callback=check_runtime, hidden=True),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


class _FlagError(click.UsageError):
    """A wrong command line, which is exit status 1 here."""

    exit_code = 1


def _as_failure(error: click.UsageError) -> click.UsageError:
    return _FlagError(error.format_message(), error.ctx)


class LabGroup(click.Group):
    """A group in which wrong flags and commands are exit status 1, as in containerlab, and aliases work."""

    ALIASES = {  # noqa: RUF012 - click subclasses carry no annotations of ours
        "dep": "deploy", "apply": "deploy", "des": "destroy", "ins": "inspect", "rdep": "redeploy", "int": "interfaces",
        "intf": "interfaces",
    }  # fmt: skip

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, self.ALIASES.get(cmd_name, cmd_name))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent=parent, **extra)
        except click.UsageError as error:
            raise _as_failure(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _as_failure(error) from None


def formats(*names: str) -> Callable[[_Function], _Function]:
    return click.option(
        "-f", "--format", "form", type=click.Choice(names), default=names[0], show_default=True, help="Output."
    )


def _node_list(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> list[str]:
    return [name for name in (value or "").split(",") if name]


node_filter_option = click.option(
    "--node-filter", metavar="NODES", callback=_node_list, help="Only these nodes: a,b,c."
)
format_inspect = formats("table", "json", "csv")
