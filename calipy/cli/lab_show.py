"""``calipy lab inspect``, ``validate``, ``graph`` and their kin: commands that look and change nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from calipy.cli.lab_flags import (
    LabGroup,
    Shared,
    format_inspect,
    formats,
    node_filter_option,
    pass_shared,
    shared_flags,
)

if TYPE_CHECKING:
    from calipy.containerlab.driver import Lab
    from calipy.containerlab.model import Topology


# --- what other commands use, too


def read(shared: Shared, *, overrides: Any = None, node_filter: Sequence[str] = (), loose: bool = False) -> Topology:
    """The topology that the flags name, from its file or standard input, checked; ``loose`` is for what only looks."""
    from calipy.containerlab import reading  # noqa: PLC0415 - start-up time

    if shared.topo in {"-", "stdin"}:
        if sys.stdin is None:
            raise click.ClickException("-t -: standard input is closed")
        try:
            told = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise click.ClickException(f"-t -: is not UTF-8 (byte {error.start})") from None
        file, text = reading.keep_standard_input(told)
        return reading.read_topology(file, text=text, overrides=overrides, name=shared.name, node_filter=node_filter)
    return reading.read_topology(
        shared.topo or None, overrides=overrides, name=shared.name, node_filter=node_filter, loose=loose
    )


def lab_of(shared: Shared) -> Lab:
    """The lab that the flags name."""
    from calipy.containerlab import driver  # noqa: PLC0415 - start-up time

    if shared.name and not shared.topo:
        return driver.Lab(shared.name)
    from calipy.containerlab import reading  # noqa: PLC0415 - only where there is a file to read

    return driver.Lab(reading.lab_name(shared.topo or None))


def host_entries(wanted: Topology) -> list[dict[str, Any]]:
    """The line for the machine itself, where the topology has it as a node."""
    if not any(node.kind == "host" for node in wanted.nodes.values()):
        return []
    import platform  # noqa: PLC0415 - rare

    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = platform.platform()
    absent = {"ipv4": "N/A", "ipv6": "N/A"}
    return [
        {
            "name": "Host",
            "id": "N/A",
            "image": system,
            "kind": "host",
            "state": "running",
            "status": "running",
            **absent,
        }
    ]


def show(
    shared: Shared, containers: Sequence[Mapping[str, Any]], form: str, *, every: bool = False, wide: bool = False
) -> None:
    """Print nodes in the form asked for."""
    from calipy.containerlab import outputs  # noqa: PLC0415 - start-up time

    entries = outputs.details(containers, os.getcwd())  # noqa: PTH109 - a text is wanted
    if form == "json":
        print(outputs.inspect_json(entries), end="")
    elif form == "csv":
        print(outputs.inspect_csv(entries), end="")
    elif entries:
        print(outputs.inspect_table(entries, every=every, wide=wide), end="")
    else:
        shared.say("info", "no containers found")


def stem(wanted: Topology) -> str:
    """The name of the topology file, without folder and extension."""
    return os.path.splitext(os.path.basename(wanted.file))[0]  # noqa: PTH119, PTH122 - pure text


def write_graph(wanted: Topology, form: str, text: str) -> str:
    """Put a graph into the lab directory; the file's path."""
    from pathlib import Path  # noqa: PLC0415 - start-up time

    folder = Path(wanted.lab_directory) / "graph"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem(wanted)}.{form}"
    file.write_text(text, encoding="utf-8")
    return str(file)


# --- inspect


@click.group(cls=LabGroup, invoke_without_command=True)
@shared_flags
@click.option("-a", "--all", "every", is_flag=True, help="All labs of this machine.")
@format_inspect
@click.option("--details", is_flag=True, help="Everything known about the nodes, as JSON.")
@click.option("-w", "--wide", is_flag=True, help="With the owner.")
@pass_shared
@click.pass_context
def inspect(ctx: click.Context, shared: Shared, every: bool, form: str, details: bool, wide: bool) -> None:
    """Show the nodes of a lab.

    \b
    Examples:
      calipy lab inspect -t mesh.clab.yml
      calipy lab inspect --all --format json
      calipy lab inspect interfaces -t mesh.clab.yml -n n1
    """
    if ctx.invoked_subcommand:
        return
    containers, extra = _containers(shared, every=every)
    if details:
        _print_details(containers)
    else:
        show(shared, [*containers, *extra], form, every=every, wide=wide)


def _containers(shared: Shared, *, every: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The nodes asked for; with a file all of its nodes must exist."""
    from calipy.containerlab import driver  # noqa: PLC0415 - start-up time

    if every:
        return driver.running_nodes(driver.running_labs()), []
    if shared.name and not shared.topo:
        return driver.Lab(shared.name).containers(), []
    wanted = read(shared, loose=True)
    found = {container["node"]: container for container in driver.Lab(wanted.name).containers()}
    names = [node.name for node in wanted.nodes.values() if node.is_container]
    if missing := [name for name in names if name not in found]:
        raise click.ClickException(f"lab {wanted.name}: node {', '.join(missing)} does not exist")
    return [found[name] for name in names], host_entries(wanted)


def _print_details(containers: Sequence[Mapping[str, Any]]) -> None:
    import json  # noqa: PLC0415 - start-up time

    labs: dict[str, list[dict[str, Any]]] = {}
    for container in containers:
        labs.setdefault(container["lab"], []).append(
            {
                "Names": [container["name"]],
                "ID": container["id"],
                "ShortID": container["id"][:12],
                "Image": container["image"],
                "State": container["state"],
                "Status": container["status"],
                "Labels": container["labels"],
                "Pid": container["pid"],
                "NetworkSettings": {"IPv4addr": container["ipv4"], "IPv6addr": container["ipv6"]},
            }
        )
    print(json.dumps(labs, indent=2))


@inspect.command()
@shared_flags
@formats("table", "json")
@click.option("-n", "--node", default="", help="Only this node (its long name, as inspect shows it).")
@pass_shared
def interfaces(shared: Shared, form: str, node: str) -> None:
    """Show the interfaces of the nodes of a lab.

    \b
    Examples:
      calipy lab inspect interfaces -t mesh.clab.yml
      calipy lab inspect interfaces --name mesh -n clab-mesh-n1 --format json
    """
    import json  # noqa: PLC0415 - start-up time

    from calipy.containerlab import outputs  # noqa: PLC0415

    nodes = [shown for shown in lab_of(shared).interfaces() if node in {"", shown["name"]}]
    if form == "json":
        print(json.dumps(nodes, indent=2) if nodes else "", end="")
    elif nodes:
        print(outputs.interfaces_table(nodes), end="")


@click.command()
@shared_flags
@pass_shared
def validate(shared: Shared) -> None:
    """Check a topology file and deploy nothing.

    \b
    Example:
      calipy lab validate -t mesh.clab.yml
    """
    wanted = read(shared)
    for warning in wanted.warnings:
        shared.say("warning", warning)
    shared.say("info", f"{wanted.file} is valid: {len(wanted.nodes)} nodes, {len(wanted.links)} links")


@click.command()
@shared_flags
@pass_shared
def save(shared: Shared) -> None:
    """Save the configuration of the nodes: nothing to do for nodes of kind linux."""
    read(shared, loose=True)
    shared.say("info", "nodes of kind linux have no configuration to save")


# --- graph


@click.command()
@shared_flags
@click.option("--mermaid", "form", flag_value="mermaid", help="Write a Mermaid flow chart.")
@click.option("--dot", "form", flag_value="dot", help="Write a graph for Graphviz.")
@click.option("--mermaid-direction", "direction", default="TD", show_default=True, help="TB, TD, BT, RL or LR.")
@click.option("--offline", is_flag=True, help="From the file alone (always so here).")
@node_filter_option
@pass_shared
def graph(shared: Shared, form: str | None, direction: str, offline: bool, node_filter: list[str]) -> None:  # noqa: ARG001
    """Write a graph of a topology into the lab directory.

    \b
    Example:
      calipy lab graph -t mesh.clab.yml --mermaid
    """
    from calipy.containerlab import outputs  # noqa: PLC0415 - start-up time

    if not form:
        raise click.UsageError("choose --mermaid or --dot: the embedded driver serves no web page")
    wanted = read(shared, loose=True, node_filter=node_filter)
    try:
        text = outputs.mermaid(wanted, direction) if form == "mermaid" else outputs.dot(wanted, stem(wanted))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    shared.say("info", f"wrote {write_graph(wanted, form, text)}")


@click.command()
@click.argument("form", required=False)
def version(form: str | None) -> None:
    """Show the version."""
    import importlib.metadata  # noqa: PLC0415 - start-up time

    number = importlib.metadata.version("calipy")
    print(number if form == "short" else f"calipy lab {number}: an embedded driver for containerlab's topology files")
