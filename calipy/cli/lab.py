"""``calipy lab``: labs from containerlab's topology files, in plain namespaces.

Flags, outputs and exit codes are containerlab's: logs go to stderr, tables and JSON to stdout, and a failure of any
sort is exit status 1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from calipy.cli import lab_show
from calipy.cli.lab_exec import execute
from calipy.cli.lab_flags import LabGroup, Shared, format_inspect, node_filter_option, pass_shared, shared_flags
from calipy.cli.lab_show import host_entries, lab_of, read, show, stem, write_graph


@click.group(cls=LabGroup, context_settings={"auto_envvar_prefix": "CLAB"})
@shared_flags
def command() -> None:
    """Deploy and inspect labs of containers, from containerlab's topology files, in namespaces of this machine.

    Everything of a lab is in namespaces of its own, also its host's interfaces (unless --host-netns): labs do not see
    each other. Needs root.
    """


for _command in (
    execute,
    lab_show.inspect,
    lab_show.validate,
    lab_show.save,
    lab_show.graph,
    lab_show.version,
):
    command.add_command(_command)


# --- deploy


@command.command()
@shared_flags
@click.option("-c", "--reconfigure", is_flag=True, help="Destroy a running lab and its directory first.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@node_filter_option
@format_inspect
@click.option("--strict", is_flag=True, help="Exit status 1 if an exec command fails.")
@click.option("--create-bridges", is_flag=True, help="Make bridges (kind bridge) that this machine does not have.")
@click.option("-g", "--graph", is_flag=True, help="Write a graph of the topology, too.")
@click.option("--network", metavar="NAME", default="", help="Name of the management network.")
@click.option("-4", "--ipv4-subnet", metavar="CIDR", default="", help="IPv4 subnet of the management network.")
@click.option("-6", "--ipv6-subnet", metavar="CIDR", default="", help="IPv6 subnet of the management network.")
@click.option("--owner", metavar="USER", default="", help="Owner of the lab (members of the group clab_admins).")
@click.option("--max-workers", type=int, default=0, hidden=True)
@click.option("--skip-post-deploy", is_flag=True, hidden=True)
@click.option("--export-template", default="", hidden=True)
@pass_shared
def deploy(shared: Shared, /, **flags: Any) -> None:
    """Deploy a lab, or bring one that runs to what its file says now.

    \b
    Examples:
      calipy lab deploy -t mesh.clab.yml
      calipy lab deploy -t mesh.clab.yml --reconfigure
      calipy lab deploy -t mesh.clab.yml --node-filter n1,n2 --strict
    """
    _deploy(shared, **flags)


def _deploy(
    shared: Shared,
    *,
    reconfigure: bool,
    dry_run: bool,
    node_filter: list[str],
    form: str,
    strict: bool,
    create_bridges: bool,
    graph: bool,
    network: str,
    ipv4_subnet: str,
    ipv6_subnet: str,
    owner: str,
    **_ignored: Any,
) -> None:
    from calipy.containerlab import driver, outputs  # noqa: PLC0415 - start-up time
    from calipy.containerlab.management import Overrides  # noqa: PLC0415

    overrides = Overrides(network=network, ipv4_subnet=ipv4_subnet, ipv6_subnet=ipv6_subnet)
    wanted = read(shared, overrides=overrides, node_filter=node_filter)
    lab = driver.Lab(wanted.name)
    if dry_run:
        rows = lab.preview(wanted) if lab.runs and not reconfigure else [("deploy lab", wanted.name)]
        print(outputs.plan_table(rows), end="")
        return
    if reconfigure:
        lab.destroy(cleanup=True, directory=wanted.lab_directory, report=shared.say)
    shared.say("info", f"deploying lab {wanted.name} from {wanted.file}")
    containers = lab.apply(
        wanted,
        report=shared.say,
        host_netns=shared.host_netns,
        create_bridges=create_bridges,
        owner=_owner(shared, owner),
    )
    if lab.plan is not None and form == "table":
        print(outputs.plan_table(lab.plan), end="")
    if graph:
        write_graph(wanted, "dot", outputs.dot(wanted, stem(wanted)))
    show(shared, [*containers, *host_entries(wanted)], form)
    if strict and lab.failed:
        raise click.ClickException(f"{lab.failed} exec commands failed")


def _owner(shared: Shared, wanted: str) -> str:
    import grp  # noqa: PLC0415 - rare

    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or ""
    if wanted:
        try:
            if user in grp.getgrnam("clab_admins").gr_mem:
                return wanted
        except KeyError:
            pass
        shared.say("warning", "only members of the group clab_admins can set an owner")
    return user


# --- destroy


@command.command()
@shared_flags
@click.option("-a", "--all", "every", is_flag=True, help="All labs of this machine.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-c", "--cleanup", is_flag=True, help="Remove the lab directory, too.")
@node_filter_option
@click.option("--graceful", is_flag=True, hidden=True)
@click.option("--keep-mgmt-net", is_flag=True, hidden=True)
@click.option("--max-workers", type=int, default=0, hidden=True)
@pass_shared
def destroy(shared: Shared, /, every: bool, yes: bool, cleanup: bool, node_filter: list[str], **_ignored: Any) -> None:
    """Take a lab away. What a killed one left is removed, too.

    \b
    Examples:
      calipy lab destroy -t mesh.clab.yml --cleanup
      calipy lab destroy --name mesh
      calipy lab destroy --all --yes
    """
    from calipy.containerlab import driver, inventories  # noqa: PLC0415 - start-up time

    if every and (shared.name or shared.topo):
        raise click.UsageError("--all excludes --name and --topo")
    if node_filter and cleanup:
        raise click.UsageError("--node-filter and --cleanup exclude each other")
    if every:
        labs = driver.all_labs()
        if labs and not yes:
            click.confirm(f"Destroy {', '.join(lab.name for lab in labs)}?", abort=True, err=True)
        for lab in labs:
            shared.say("info", f"destroying lab {lab.name}")
            lab.destroy(cleanup=cleanup, report=shared.say)
        return
    if shared.name and not shared.topo:
        lab = driver.Lab(shared.name)
        if not lab.destroy(cleanup=cleanup, nodes=node_filter, report=shared.say):
            raise click.ClickException(f"lab {shared.name} does not run")
        return
    wanted = read(shared, loose=True)
    unknown = [name for name in node_filter if name not in wanted.nodes]
    if unknown:
        raise click.ClickException(f"node filter: no node {', '.join(unknown)} in the file")
    lab = driver.Lab(wanted.name)
    names = node_filter
    if lab.runs and not names:
        listed = {node.long_name for node in wanted.nodes.values()}
        containers = lab.containers()
        mine = [container["node"] for container in containers if container["name"] in listed]
        if len(mine) < len(containers):  # another file's nodes in a lab of the same name stay
            left = sorted(container["name"] for container in containers if container["name"] not in listed)
            shared.say("warning", f"not in {wanted.file}, left alone: {', '.join(left)} (destroy --name {wanted.name})")
            if not mine:
                if cleanup:
                    inventories.remove_directory(wanted.lab_directory)
                return
            names = mine
    if not lab.destroy(cleanup=cleanup, directory=wanted.lab_directory, nodes=names, report=shared.say):
        shared.say("info", f"lab {wanted.name} does not run")


@command.command()
@shared_flags
@click.option("-c", "--cleanup", is_flag=True, help="Remove the lab directory in between.")
@format_inspect
@pass_shared
@click.pass_context
def redeploy(ctx: click.Context, shared: Shared, cleanup: bool, form: str) -> None:
    """Destroy a lab and deploy it again.

    \b
    Example:
      calipy lab redeploy -t mesh.clab.yml --cleanup
    """
    from calipy.containerlab import driver  # noqa: PLC0415 - start-up time

    wanted = read(shared)
    driver.Lab(wanted.name).destroy(cleanup=cleanup, directory=wanted.lab_directory, report=shared.say)
    flags: dict[str, Any] = {p.name or "": p.get_default(ctx) for p in deploy.params if p.expose_value}
    flags |= {"node_filter": [], "form": form}
    _deploy(shared, **flags)


# --- life of nodes


def _lifecycle(name: str, words: str) -> None:
    @command.command(name, help=words)
    @shared_flags
    @click.option(
        "-n", "--node", "nodes", multiple=True, metavar="NODE", help="Only this node. Repeatable; a,b works, too."
    )
    @pass_shared
    def act(shared: Shared, nodes: Sequence[str]) -> None:
        names = [part for node in nodes for part in node.split(",") if part]
        getattr(lab_of(shared), name)(*names)


_lifecycle(
    "stop",
    "End nodes; their links are kept for the next start.\n\n"
    "As with containerlab, interfaces come back with name, MTU and MAC, and without the addresses and routes that the "
    "file's exec commands gave them: these run at deploy only. `calipy lab deploy -c` builds the lab anew.\n\n"
    "\b\nExample:\n  calipy lab stop -t mesh.clab.yml -n n1",
)
_lifecycle(
    "start",
    "Start nodes that were stopped or have exited.\n\n\b\nExample:\n  calipy lab start -t mesh.clab.yml -n n1",
)
_lifecycle(
    "restart",
    "Stop and start nodes.\n\n\b\nExample:\n  calipy lab restart -t mesh.clab.yml -n n1",
)
