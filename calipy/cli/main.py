"""The ``calipy`` command. Each noun is a module of its own, imported only on use, so that help comes at once."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any, Final

import click

from calipy.cli.options import mismatch_option
from calipy.errors import CalipyError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "get": ("calipy.cli.get:get", "Show resources."),
    "create": ("calipy.cli.resource:create", "Create the resources of a file."),
    "apply": ("calipy.cli.resource:apply", "Create or change the resources of a file."),
    "replace": ("calipy.cli.resource:replace_command", "Change the resources of a file."),
    "delete": ("calipy.cli.resource:delete", "Delete resources."),
    "validate": ("calipy.cli.resource:validate", "Check the resources of a file, without a datastore."),
    "label": ("calipy.cli.edit:label", "Set or remove a label of a resource."),
    "patch": ("calipy.cli.edit:patch", "Change parts of a resource."),
    "node": ("calipy.cli.node:command", "Run this host as a node, and see how it is."),
    "bgp": ("calipy.cli.bgp:command", "Show this node's BGP peers and routes."),
    "workload": ("calipy.cli.workload:command", "Connect network namespaces as pods."),
    "ipam": ("calipy.cli.ipam:command", "Show and change address management."),
    "lab": ("calipy.cli.lab:command", "Deploy and inspect labs of containers."),
    "datastore": ("calipy.cli.datastore:command", "Lock the datastore, migrate names."),
    "version": ("calipy.cli.version:command", "Show versions."),
}
"""Name → where the click command is, and its line in the overview."""


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's interface
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@mismatch_option(checked=False)
def calipy() -> None:
    """BGP-routed container networking, in Calico's own etcd layout.

    The datastore is found as calicoctl finds it: by --config, /etc/calico/calicoctl.cfg, or ETCD_ENDPOINTS and its kin.
    """


def main(arguments: list[str] | None = None, **extra: Any) -> None:
    """Run the command and exit: 0, 1 for an error of ours, 2 for a wrong command line."""
    _never_fail_to_print()
    try:
        _run(arguments, **extra)
    except CalipyError as error:
        click.echo(f"calipy: {error}", err=True)
    except OSError as error:  # a full disk behind standard output, a file that only root may read, ...
        place = f"{error.filename}: " if error.filename else ""
        remedy = " (run calipy as root)" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        click.echo(f"calipy: {place}{error.strerror or error}{remedy}", err=True)
    else:
        return
    sys.exit(1)


def _run(arguments: list[str] | None, **extra: Any) -> None:
    """Run the command to the last byte of its output: what is left in a buffer would fail where nobody tells of it."""
    try:
        calipy.main(args=arguments, prog_name="calipy", **extra)
    finally:
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError:
                sys.stdout = None  # or its end would fail again, with status 120
                raise


def _never_fail_to_print() -> None:
    """Characters that the terminal's encoding, or any, does not have are shown by their numbers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
