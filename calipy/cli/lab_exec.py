"""``calipy lab exec``: commands in nodes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from calipy.cli.lab_flags import Shared, formats, pass_shared, shared_flags
from calipy.cli.lab_show import lab_of
from calipy.errors import CalipyError

if TYPE_CHECKING:
    from calipy.containerlab.driver import Lab


@click.command("exec", context_settings={"allow_interspersed_args": False})
@shared_flags
@click.argument("direct", metavar="[NODE COMMAND [ARGUMENT]...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--cmd", "commands", metavar="COMMAND", multiple=True, help="What to run; no shell. Repeatable.")
@click.option("--label", "labels", metavar="KEY[=VALUE]", multiple=True, help="Only nodes with this label. Repeatable.")
@formats("plain", "json")
@click.option("--strict", is_flag=True, help="Exit status 1 if a command fails.")
@pass_shared
def execute(
    shared: Shared,
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
    _refuse_contradiction(labels)
    by_labels_alone = labels and not shared.topo and not shared.name
    labs = driver.running_labs() if by_labels_alone else [lab_of(shared)]
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


def _exec_here(shared: Shared, words: Sequence[str], others: Sequence[str]) -> NoReturn:
    """Run a program in a node on this process's own streams, and exit as it does."""
    from calipy.containerlab.driver import NOT_FOUND, CommandFailedError  # noqa: PLC0415 - start-up time

    node, *argv = words
    argv = argv[1:] if argv[:1] == ["--"] else argv
    if others or not argv:
        raise click.UsageError("write NODE COMMAND [ARGUMENT]..., without --cmd and --label")
    try:
        sys.exit(lab_of(shared).exec_attached(node, argv))
    except CommandFailedError as error:
        shared.say("error", str(error))
        sys.exit(NOT_FOUND)


def _run_one(shared: Shared, lab: Lab, container: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    from calipy.containerlab.driver import NOT_FOUND, CommandFailedError  # noqa: PLC0415 - start-up time

    try:
        done = lab.exec(container["node"], argv, timeout=None)
    except CommandFailedError as error:
        return {"argv": argv, "code": NOT_FOUND, "stdout": "", "stderr": f"{error}\n"}
    except CalipyError as error:
        shared.say("error", str(error))
        return {"argv": argv, "code": NOT_FOUND, "stdout": "", "stderr": f"{error}\n"}
    return {"argv": argv, "code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def _refuse_contradiction(wanted: Sequence[str]) -> None:
    """All filters must hold, so two values of one label match nothing: that is a mistake, and no empty result."""
    values: dict[str, str] = {}
    for key, *value in (text.split("=") for text in wanted):
        if len(value) == 1 and values.setdefault(key, value[0]) != value[0]:
            raise click.UsageError(
                f"--label {key}: a node has one value, not both {values[key]} and {value[0]}; run the command for each"
            )


def _matches(have: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether all filters hold: ``key=value``, or ``key`` for a label that exists; one with two = is no filter."""
    for text in wanted:
        parts = text.split("=")
        if len(parts) == 1 and text not in have:
            return False
        if len(parts) == 2 and have.get(parts[0]) != parts[1]:
            return False
    return True
