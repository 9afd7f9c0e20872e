"""``calipy lab``: labs from containerlab's topology files, in plain namespaces.

Flags, outputs and exit codes are containerlab's: logs go to stderr, tables and JSON to stdout, and a failure of any
sort is exit status 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from calipy.errors import CalipyError

if TYPE_CHECKING:
    from calipy.containerlab.driver import Lab
    from calipy.containerlab.model import Topology

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LEVELS = {"trace": 0, "debug": 0, "info": 1, "warn": 2, "warning": 2, "error": 3, "fatal": 4}


class _Shared:
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


_pass = click.make_pass_decorator(_Shared, ensure=True)


def _shared_flags(function: _Function) -> _Function:
    def set_topo(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(_Shared).topo = value

    def set_name(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(_Shared).name = value

    def set_host(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        ctx.ensure_object(_Shared).host_netns |= value

    def set_level(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(_Shared).level = value.lower()

    def set_debug(ctx: click.Context, _parameter: click.Parameter, value: int) -> None:
        if value:
            ctx.ensure_object(_Shared).level = "debug"

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


class _LabGroup(click.Group):
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


@click.group(cls=_LabGroup, context_settings={"auto_envvar_prefix": "CLAB"})
@_shared_flags
def command() -> None:
    """Deploy and inspect labs of containers, from containerlab's topology files, in namespaces of this machine.

    Everything of a lab is in namespaces of its own, also its host's interfaces (unless --host-netns): labs do not see
    each other. Needs root.
    """


def _formats(*names: str) -> Callable[[_Function], _Function]:
    return click.option(
        "-f", "--format", "form", type=click.Choice(names), default=names[0], show_default=True, help="Output."
    )


def _node_list(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> list[str]:
    return [name for name in (value or "").split(",") if name]


_node_filter = click.option("--node-filter", metavar="NODES", callback=_node_list, help="Only these nodes: a,b,c.")
_format_inspect = _formats("table", "json", "csv")


# --- deploy


@command.command()
@_shared_flags
@click.option("-c", "--reconfigure", is_flag=True, help="Destroy a running lab and its directory first.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@_node_filter
@_format_inspect
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
@_pass
def deploy(shared: _Shared, /, **flags: Any) -> None:
    """Deploy a lab, or bring one that runs to what its file says now.

    \b
    Examples:
      calipy lab deploy -t mesh.clab.yml
      calipy lab deploy -t mesh.clab.yml --reconfigure
      calipy lab deploy -t mesh.clab.yml --node-filter n1,n2 --strict
    """
    _deploy(shared, **flags)


def _deploy(
    shared: _Shared,
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
    wanted = _read(shared, overrides=overrides, node_filter=node_filter)
    lab = driver.Lab(wanted.name)
    if dry_run:
        rows = lab.preview(wanted) if lab.runs and not reconfigure else [("deploy lab", wanted.name)]
        print(outputs.plan_table(rows), end="")
        return
    if reconfigure:
        lab.destroy(cleanup=True, directory=wanted.lab_directory)
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
        _write_graph(wanted, "dot", outputs.dot(wanted, _stem(wanted)))
    _show(shared, [*containers, *_host_entries(wanted)], form)
    if strict and lab.failed:
        raise click.ClickException(f"{lab.failed} exec commands failed")


def _owner(shared: _Shared, wanted: str) -> str:
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


def _read(shared: _Shared, *, overrides: Any = None, node_filter: Sequence[str] = (), loose: bool = False) -> Topology:
    from calipy.containerlab import reading  # noqa: PLC0415 - start-up time

    if shared.topo in {"-", "stdin"}:
        file, text = reading.keep_standard_input(sys.stdin.read())
        return reading.read_topology(file, text=text, overrides=overrides, name=shared.name, node_filter=node_filter)
    return reading.read_topology(
        shared.topo or None, overrides=overrides, name=shared.name, node_filter=node_filter, loose=loose
    )


def _host_entries(wanted: Topology) -> list[dict[str, Any]]:
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


def _show(
    shared: _Shared, containers: Sequence[Mapping[str, Any]], form: str, *, every: bool = False, wide: bool = False
) -> None:
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


# --- destroy


@command.command()
@_shared_flags
@click.option("-a", "--all", "every", is_flag=True, help="All labs of this machine.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-c", "--cleanup", is_flag=True, help="Remove the lab directory, too.")
@_node_filter
@click.option("--graceful", is_flag=True, hidden=True)
@click.option("--keep-mgmt-net", is_flag=True, hidden=True)
@click.option("--max-workers", type=int, default=0, hidden=True)
@_pass
def destroy(shared: _Shared, /, every: bool, yes: bool, cleanup: bool, node_filter: list[str], **_ignored: Any) -> None:
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
            lab.destroy(cleanup=cleanup)
        return
    if shared.name and not shared.topo:
        lab = driver.Lab(shared.name)
        if not lab.destroy(cleanup=cleanup, nodes=node_filter):
            raise click.ClickException(f"lab {shared.name} does not run")
        return
    wanted = _read(shared, loose=True)
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
    if not lab.destroy(cleanup=cleanup, directory=wanted.lab_directory, nodes=names):
        shared.say("info", f"lab {wanted.name} does not run")


@command.command()
@_shared_flags
@click.option("-c", "--cleanup", is_flag=True, help="Remove the lab directory in between.")
@_format_inspect
@_pass
@click.pass_context
def redeploy(ctx: click.Context, shared: _Shared, cleanup: bool, form: str) -> None:
    """Destroy a lab and deploy it again.

    \b
    Example:
      calipy lab redeploy -t mesh.clab.yml --cleanup
    """
    from calipy.containerlab import driver  # noqa: PLC0415 - start-up time

    wanted = _read(shared)
    driver.Lab(wanted.name).destroy(cleanup=cleanup, directory=wanted.lab_directory)
    flags: dict[str, Any] = {p.name or "": p.get_default(ctx) for p in deploy.params if p.expose_value}
    flags |= {"node_filter": [], "form": form}
    _deploy(shared, **flags)


# --- inspect


@command.group(cls=_LabGroup, invoke_without_command=True)
@_shared_flags
@click.option("-a", "--all", "every", is_flag=True, help="All labs of this machine.")
@_format_inspect
@click.option("--details", is_flag=True, help="Everything known about the nodes, as JSON.")
@click.option("-w", "--wide", is_flag=True, help="With the owner.")
@_pass
@click.pass_context
def inspect(ctx: click.Context, shared: _Shared, every: bool, form: str, details: bool, wide: bool) -> None:
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
        _show(shared, [*containers, *extra], form, every=every, wide=wide)


def _containers(shared: _Shared, *, every: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The nodes asked for; with a file all of its nodes must exist."""
    from calipy.containerlab import driver  # noqa: PLC0415 - start-up time

    if every:
        return driver.running_nodes(driver.running_labs()), []
    if shared.name and not shared.topo:
        return driver.Lab(shared.name).containers(), []
    wanted = _read(shared, loose=True)
    found = {container["node"]: container for container in driver.Lab(wanted.name).containers()}
    names = [node.name for node in wanted.nodes.values() if node.is_container]
    if missing := [name for name in names if name not in found]:
        raise click.ClickException(f"lab {wanted.name}: node {', '.join(missing)} does not exist")
    return [found[name] for name in names], _host_entries(wanted)


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
@_shared_flags
@_formats("table", "json")
@click.option("-n", "--node", default="", help="Only this node (its long name, as inspect shows it).")
@_pass
def interfaces(shared: _Shared, form: str, node: str) -> None:
    """Show the interfaces of the nodes of a lab.

    \b
    Examples:
      calipy lab inspect interfaces -t mesh.clab.yml
      calipy lab inspect interfaces --name mesh -n clab-mesh-n1 --format json
    """
    import json  # noqa: PLC0415 - start-up time

    from calipy.containerlab import outputs  # noqa: PLC0415

    nodes = [shown for shown in _lab(shared).interfaces() if node in {"", shown["name"]}]
    if form == "json":
        print(json.dumps(nodes, indent=2) if nodes else "", end="")
    elif nodes:
        print(outputs.interfaces_table(nodes), end="")


def _lab(shared: _Shared) -> Lab:
    """The lab that the flags name."""
    from calipy.containerlab import driver  # noqa: PLC0415 - start-up time

    if shared.name and not shared.topo:
        return driver.Lab(shared.name)
    from calipy.containerlab import reading  # noqa: PLC0415 - only where there is a file to read

    return driver.Lab(reading.lab_name(shared.topo or None))


# --- exec


@command.command("exec", context_settings={"allow_interspersed_args": False})
@_shared_flags
@click.argument("direct", metavar="[NODE COMMAND [ARGUMENT]...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--cmd", "commands", metavar="COMMAND", multiple=True, help="What to run; no shell. Repeatable.")
@click.option("--label", "labels", metavar="KEY[=VALUE]", multiple=True, help="Only nodes with this label. Repeatable.")
@_formats("plain", "json")
@click.option("--strict", is_flag=True, help="Exit status 1 if a command fails.")
@_pass
def execute(
    shared: _Shared,
    direct: Sequence[str],
    commands: Sequence[str],
    labels: Sequence[str],
    form: str,
    strict: bool,
) -> None:
    """Run commands in nodes. Plain results are lines on stderr, JSON goes to stdout.

    With NODE and COMMAND instead of --cmd, run that one on this terminal; its exit status is this command's.

    \b
    Examples:
      calipy lab exec -t mesh.clab.yml --label clab-node-name=n1 --cmd 'ip route'
      calipy lab exec --name mesh --format json --cmd 'calipy node status'
      calipy lab exec --name mesh n1 -- bash
    """
    if direct:
        _exec_here(shared, direct, [*commands, *labels])
    if not commands:
        raise click.UsageError("what to run? --cmd COMMAND, or NODE COMMAND")
    from calipy.containerlab import driver  # noqa: PLC0415 - start-up time
    from calipy.containerlab.words import split  # noqa: PLC0415

    try:
        argvs = [split(text) for text in commands]
    except ValueError as error:
        raise click.ClickException(f"--cmd: {error}") from None
    if not all(argvs):
        raise click.ClickException("--cmd holds no command")
    by_labels_alone = labels and not shared.topo and not shared.name
    labs = driver.running_labs() if by_labels_alone else [_lab(shared)]
    nodes = [container for lab in labs for container in lab.containers() if _matches(container["labels"], labels)]
    if not nodes:
        raise click.ClickException("no node matches")

    def run(container: Mapping[str, Any]) -> list[dict[str, Any]]:
        lab = driver.Lab(container["lab"])
        return [_run_one(shared, lab, container, argv) for argv in argvs]

    alive = [node for node in nodes if node["state"] != "exited"]
    for node in nodes:
        if node not in alive:
            shared.say("error", f"{node['name']} is not running")
    names = [node["name"] for node in alive]
    if len(alive) == 1:
        results = {names[0]: run(alive[0])}
    else:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - start-up time

        with ThreadPoolExecutor(max_workers=16) as pool:
            results = dict(zip(names, pool.map(run, alive), strict=True))
    if form == "json":
        from calipy.containerlab import outputs  # noqa: PLC0415 - start-up time

        print(outputs.exec_json(results), end="")
    else:
        for name, of_node in sorted(results.items()):
            for result in of_node:
                said = "".join(f"\n{part.rstrip()}" for part in (result["stdout"], result["stderr"]) if part.strip())
                level = "error" if result["code"] else "info"
                shared.say(level, f"{name}: {' '.join(result['argv'])}: exit {result['code']}{said}")
    if strict and any(result["code"] for of_node in results.values() for result in of_node):
        sys.exit(1)


def _exec_here(shared: _Shared, words: Sequence[str], others: Sequence[str]) -> NoReturn:
    """Run a program in a node on this process's own streams, and exit as it does."""
    from calipy.containerlab.driver import NOT_FOUND, CommandFailedError  # noqa: PLC0415 - start-up time

    node, *argv = words
    argv = argv[1:] if argv[:1] == ["--"] else argv
    if others or not argv:
        raise click.UsageError("write NODE COMMAND [ARGUMENT]..., without --cmd and --label")
    try:
        sys.exit(_lab(shared).exec_attached(node, argv))
    except CommandFailedError as error:
        shared.say("error", str(error))
        sys.exit(NOT_FOUND)


def _run_one(shared: _Shared, lab: Lab, container: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    from calipy.containerlab.driver import NOT_FOUND, CommandFailedError  # noqa: PLC0415 - start-up time

    try:
        done = lab.exec(container["node"], argv, timeout=None)
    except CommandFailedError as error:
        return {"argv": argv, "code": NOT_FOUND, "stdout": "", "stderr": f"{error}\n"}
    except CalipyError as error:
        shared.say("error", str(error))
        return {"argv": argv, "code": NOT_FOUND, "stdout": "", "stderr": f"{error}\n"}
    return {"argv": argv, "code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def _matches(have: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether all filters hold: ``key=value``, or ``key`` for a label that exists; one with two = is no filter."""
    for text in wanted:
        parts = text.split("=")
        if len(parts) == 1 and text not in have:
            return False
        if len(parts) == 2 and have.get(parts[0]) != parts[1]:
            return False
    return True


# --- life of nodes


def _lifecycle(name: str, words: str) -> None:
    @command.command(name, help=words)
    @_shared_flags
    @click.option(
        "-n", "--node", "nodes", multiple=True, metavar="NODE", help="Only this node. Repeatable; a,b works, too."
    )
    @_pass
    def act(shared: _Shared, nodes: Sequence[str]) -> None:
        names = [part for node in nodes for part in node.split(",") if part]
        getattr(_lab(shared), name)(*names)


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


@command.command()
@_shared_flags
@_pass
def validate(shared: _Shared) -> None:
    """Check a topology file and deploy nothing.

    \b
    Example:
      calipy lab validate -t mesh.clab.yml
    """
    wanted = _read(shared)
    for warning in wanted.warnings:
        shared.say("warning", warning)
    shared.say("info", f"{wanted.file} is valid: {len(wanted.nodes)} nodes, {len(wanted.links)} links")


@command.command()
@_shared_flags
@_pass
def save(shared: _Shared) -> None:
    """Save the configuration of the nodes: nothing to do for nodes of kind linux."""
    _read(shared, loose=True)
    shared.say("info", "nodes of kind linux have no configuration to save")


# --- graph


@command.command()
@_shared_flags
@click.option("--mermaid", "form", flag_value="mermaid", help="Write a Mermaid flow chart.")
@click.option("--dot", "form", flag_value="dot", help="Write a graph for Graphviz.")
@click.option("--mermaid-direction", "direction", default="TD", show_default=True, help="TB, TD, BT, RL or LR.")
@click.option("--offline", is_flag=True, help="From the file alone (always so here).")
@_node_filter
@_pass
def graph(shared: _Shared, form: str | None, direction: str, offline: bool, node_filter: list[str]) -> None:  # noqa: ARG001
    """Write a graph of a topology into the lab directory.

    \b
    Example:
      calipy lab graph -t mesh.clab.yml --mermaid
    """
    from calipy.containerlab import outputs  # noqa: PLC0415 - start-up time

    if not form:
        raise click.UsageError("choose --mermaid or --dot: the embedded driver serves no web page")
    wanted = _read(shared, loose=True, node_filter=node_filter)
    try:
        text = outputs.mermaid(wanted, direction) if form == "mermaid" else outputs.dot(wanted, _stem(wanted))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    shared.say("info", f"wrote {_write_graph(wanted, form, text)}")


def _stem(wanted: Topology) -> str:
    return os.path.splitext(os.path.basename(wanted.file))[0]  # noqa: PTH119, PTH122 - pure text


def _write_graph(wanted: Topology, form: str, text: str) -> str:
    from pathlib import Path  # noqa: PLC0415 - start-up time

    folder = Path(wanted.lab_directory) / "graph"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_stem(wanted)}.{form}"
    file.write_text(text, encoding="utf-8")
    return str(file)


@command.command()
@click.argument("form", required=False)
def version(form: str | None) -> None:
    """Show the version."""
    import importlib.metadata  # noqa: PLC0415 - start-up time

    number = importlib.metadata.version("calipy")
    print(number if form == "short" else f"calipy lab {number}: an embedded driver for containerlab's topology files")
