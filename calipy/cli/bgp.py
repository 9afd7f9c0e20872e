"""``calipy bgp``: this node's sessions and routes, as bgpd tells them."""

from __future__ import annotations

from typing import Any

import click

from calipy.bgp import plan as planning
from calipy.cli import files, render
from calipy.cli.options import datastore_options
from calipy.cli.routers import ask_bgpd
from calipy.cli.session import check_release, current
from calipy.datastore import validation
from calipy.datastore.client import Client
from calipy.errors import InvalidInputError

_FORM = click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)


@click.group(name="bgp")
def command() -> None:
    """Show this node's BGP peers and routes.

    \b
    Examples:
      calipy bgp peers
      calipy bgp routes
      calipy bgp routes 10.244.1.5
      calipy bgp explain 10.244.1.5
      calipy bgp plan -f reflectors.yaml
    """


@command.command()
@_FORM
def peers(output: str) -> None:
    """Show each session that this node should have, and why one is not up.

    \b
    Example:
      calipy bgp peers -o json
    """
    status: dict[str, Any] = ask_bgpd("status")
    found = status["peers"]
    if output != "table":
        click.echo(render.structured({"peers": found, "problems": status["problems"]}, output))
        return
    columns = ("PEER", "AS", "NODE", "TYPE", "STATE", "SINCE", "PATHS", "INFO")
    rows = [
        (
            peer["address"],
            str(peer["as_number"]),
            peer["node"] or "-",
            peer["type"],
            peer["state"],
            peer["since"],
            f"{peer['paths']} ({peer['stale_paths']} stale)" if peer["stale_paths"] else str(peer["paths"]),
            peer["info"],
        )
        for peer in found
    ]
    click.echo(render.table(columns, rows) if rows else "This node has no BGP peers.")
    for source, problem in status["problems"].items():
        click.echo(f"{source}: {problem}")


@command.command()
@click.argument("prefix", required=False)
@_FORM
def routes(prefix: str | None, output: str) -> None:
    """Show what peers have told, which path is best and why, and the kernel's route.

    With PREFIX (or an address) only routes that cover it.

    \b
    Examples:
      calipy bgp routes
      calipy bgp routes 10.244.1.5 -o yaml
    """
    params = {"prefix": prefix} if prefix else {}
    found: list[dict[str, Any]] = ask_bgpd("routes", params)
    if output != "table":
        click.echo(render.structured(found, output))
        return
    rows: list[tuple[str, ...]] = []
    for entry in found:
        kernel = ", ".join(entry["kernel"]) or (f"refused: {entry['refused']}" if entry["refused"] else "-")
        if not entry["paths"]:
            rows.append((entry["prefix"], "-", "-", "-", "", kernel))
        rows += [
            (
                entry["prefix"],
                path["peer"],
                path["next_hop"],
                " ".join(map(str, path["as_path"])) or "-",
                _judged(path, entry["reason"]),
                kernel if path["best"] else "",
            )
            for path in entry["paths"]
        ]
    columns = ("PREFIX", "PEER", "NEXT HOP", "AS PATH", "DECISION", "KERNEL")
    click.echo(render.table(columns, rows) if rows else "No routes.")


@command.command()
@click.argument("prefix")
@_FORM
def explain(prefix: str, output: str) -> None:
    """Show why traffic to PREFIX (or an address) goes where it goes from this node, and where the chain breaks.

    From the block it belongs to, over the peers that it is announced to or learned from and the best path, to the
    kernel's route. Exits with 1 if the chain breaks. Then what other nodes have, as far as they publish it: those for
    which a CalicoNodeStatus with the class Routes exists. Of what is in no pool, block or service range only the
    kernel's own route is shown; without any, the chain breaks there.

    \b
    Examples:
      calipy bgp explain 10.244.1.5
      calipy bgp explain 10.244.1.0/26 -o json
    """
    found: dict[str, Any] = ask_bgpd("explain", {"prefix": prefix})
    if output != "table":
        click.echo(render.structured(found, output))
    else:
        click.echo(f"{found['asked']} on {found['node']}: decided by {found['prefix']}")
        for step in found["steps"]:
            click.echo(f"  {step['step']:<10} {'ok' if step['ok'] else 'BREAKS':<7} {step['text']}")
            for detail in step["details"]:
                click.echo(f"{'':21}{detail}")
        _echo_elsewhere(found["elsewhere"])
    if found["broken"]:
        click.get_current_context().exit(1)


def _echo_elsewhere(found: dict[str, Any]) -> None:
    for one in found["nodes"]:
        click.echo(f"  node {one['node']}: {one['text']}")
    if unknown := found["unknown"]:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        click.echo(f"  unknown on {', '.join(unknown[:5])}{more}: {found['remedy']}")


@command.command()
@files.file_options(required=True)
@click.option("--delete", "deleting", is_flag=True, help="Plan the deletion of the file's resources.")
@_FORM
@datastore_options
def plan(
    filename: str,
    recursive: bool,
    skip_empty: bool,
    deleting: bool,
    output: str,
    config_file: str | None,
    allow_version_mismatch: bool,
) -> None:
    """Show what applying a file would do to the BGP sessions of all nodes; nothing is written.

    The file's Nodes, BGPPeers and BGPConfigurations are laid over the datastore's. Sessions are added, removed, changed
    (they go down and come back with other settings) or kept. A change that leaves groups of nodes without each other's
    routes is refused, with their members: exit code 1. Peers outside of the cluster are taken to be connected.

    \b
    Examples:
      calipy bgp plan -f reflectors.yaml
      calipy bgp plan -f reflectors.yaml --delete -o json
    """
    told = files.resources(filename, namespace=None, recursive=recursive, skip_empty=skip_empty)
    resources = [one for one in told if one.kind in planning.KINDS]
    if not resources and not skip_empty:
        remedy = ", ".join(planning.KINDS)
        raise InvalidInputError(
            "nothing that BGP sessions depend on", field="--filename", value=filename, remedy=remedy
        )
    for resource in resources:
        validation.check(resource)

    async def read(client: Client) -> dict[planning.ResourceKey, Any]:
        await check_release(client, allow_mismatch=allow_version_mismatch)
        return {(kind, one.name): one for kind in planning.KINDS for one in await client.list(kind)}

    before = current(config_file).run(read)
    changed = {(one.kind, one.name): one for one in resources}
    after = {key: one for key, one in before.items() if key not in changed} if deleting else before | changed
    found = planning.plan(before, after).as_json()
    click.echo(render.structured(found, output) if output != "table" else _planned(found))
    if found["refused"]:
        click.get_current_context().exit(1)


def _planned(found: dict[str, Any]) -> str:
    rows = [
        (what, f"{link['near']} - {link['far']}", f"IPv{link['family']}", ", ".join(link["because"]))
        for what in ("added", "removed", "changed")
        for link in found[what]
    ]
    lines = [render.table(("CHANGE", "SESSION", "FAMILY", "BECAUSE OF"), rows)] if rows else ["No session changes."]
    counts = [f"{len(found[what])} {what}" for what in ("added", "removed", "changed")]
    lines.append(", ".join((*counts, f"{found['kept']} kept")))
    lines += [
        f"one-sided, never up: {link['near']} - {link['far']} (IPv{link['family']})" for link in found["oneSided"]
    ]
    lines += [f"{source}: {problem}" for source, problem in found["problems"].items()]
    if not found["refused"]:
        lines += [f"islands (as before): {family}: {groups}" for family, groups in found["islands"].items()]
    lines += [f"REFUSED: {reason}" for reason in found["refused"]]
    return "\n".join(lines)


def _judged(path: dict[str, Any], reason: str) -> str:
    if path["rejected"]:
        return f"refused: {path['rejected']}"
    words = f"best: {reason}" if path["best"] else "multipath" if path["multipath"] else ""
    return f"{words} (stale)".strip() if path["stale"] else words
