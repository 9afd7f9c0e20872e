"""Stages of a deployment: what waits for what, the commands between, and healthchecks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, get_args

from calipy.containerlab.document import Cursor
from calipy.containerlab.model import HealthCheck, Node, Stage, StageCommand, StageName, Wait
from calipy.containerlab.words import split

NAMES: tuple[StageName, ...] = get_args(StageName)
_STAGE = frozenset({"wait-for", "exec"})
_WAIT = frozenset({"node", "stage"})
_COMMAND = frozenset({"command", "target", "phase"})


def health(cursor: Cursor) -> HealthCheck | None:
    """A node's ``healthcheck``; None where it is switched off (``test: [NONE]``).

    Raises:
        TopologyError: the test is neither ``[CMD, …]`` nor ``[CMD-SHELL, "…"]``.
    """
    fields = cursor.mapping()
    test = fields["test"].texts() if "test" in fields else ()
    if test[:1] == ("NONE",):
        return None
    if test[:1] == ("CMD",) and len(test) > 1:
        argv = test[1:]
    elif test[:1] == ("CMD-SHELL",) and len(test) == 2:
        argv = ("/bin/sh", "-c", test[1])
    else:
        word = repr(test[0]) if test else "nothing"
        fields.get("test", cursor).fail(
            f"a healthcheck begins with CMD or CMD-SHELL, found {word}", value=word, remedy="test: [CMD, program, …]"
        )

    def number(name: str, default: float) -> float:
        value = fields[name].integer(minimum=0) if name in fields else 0
        return value or default

    return HealthCheck(
        argv=argv,
        interval=number("interval", 30),
        timeout=number("timeout", 30),
        retries=int(number("retries", 3)),
        start_period=number("start-period", 0),
    )


def read(levels: Sequence[Cursor], replace: Callable[[str], str]) -> dict[StageName, Stage]:
    """The merged stages of the levels that state any, least specific first: wait-for and commands are appended."""
    merged: dict[StageName, Stage] = {}
    for cursor in levels:
        for name, at in cursor.mapping(frozenset(NAMES)).items():
            stage = _stage(name)
            fields = at.mapping(_STAGE)
            old = merged.get(stage, Stage())
            waits = [_wait(item) for item in fields["wait-for"].items()] if "wait-for" in fields else []
            commands = [_command(item, replace) for item in fields["exec"].items()] if "exec" in fields else []
            merged[stage] = Stage(wait_for=(*old.wait_for, *waits), commands=(*old.commands, *commands))
    return merged


def _stage(name: str) -> StageName:
    return next(stage for stage in NAMES if stage == name)


def _wait(cursor: Cursor) -> Wait:
    fields = cursor.mapping(_WAIT)
    node = fields["node"].text() if "node" in fields else ""
    stage = fields["stage"].text() if "stage" in fields else ""
    if not node or not stage:
        cursor.fail("an entry of wait-for needs 'node' and 'stage'")
    if stage not in NAMES:
        cursor.fail(f"unknown stage {stage!r}", value=stage, remedy=f"stages are: {', '.join(NAMES)}")
    return Wait(node=node, stage=_stage(stage))


def _command(cursor: Cursor, replace: Callable[[str], str]) -> StageCommand:
    fields = cursor.mapping(_COMMAND)
    text = fields["command"].text() if "command" in fields else ""
    target = (fields["target"].text() if "target" in fields else "") or "container"
    phase = (fields["phase"].text() if "phase" in fields else "") or "on-enter"
    if target not in ("container", "host"):
        cursor.fail(f"unknown target {target!r}", value=target, remedy="container or host")
    if phase not in ("on-enter", "on-exit"):
        cursor.fail(f"unknown phase {phase!r}", value=phase, remedy="on-enter or on-exit")
    try:
        argv = split(replace(text))
    except ValueError as error:
        cursor.fail(f"{text!r}: {error}", value=text)
    if not argv:
        cursor.fail("a stage command needs 'command'")
    return StageCommand(
        argv=argv,
        target="host" if target == "host" else "container",
        phase="on-exit" if phase == "on-exit" else "on-enter",
    )


def check(nodes: Mapping[str, Node], at: Mapping[str, Cursor]) -> None:
    """Check that everything waited for can come about: nodes exist, healthchecks too, and nothing waits in a circle.

    As in containerlab a circle is one between nodes, whatever the stages.

    Raises:
        TopologyError: names the node.
    """

    def fail(node: str, message: str) -> NoReturn:
        at[node].fail(f"node {node}: {message}", value=node)

    waits: dict[str, set[str]] = {name: set() for name in nodes}
    for node in nodes.values():
        if node.network_mode == "container" and node.is_container:
            waits[node.name].add(node.network_node)
        for stage, attached in node.stages.items():
            for wait in attached.wait_for:
                target = nodes.get(wait.node)
                if target is None:
                    fail(node.name, f"stage {stage} waits for unknown node {wait.node!r}")
                if wait.stage == "healthy" and target.health is None:
                    fail(node.name, f"stage {stage} waits until {wait.node} is healthy, but it has no healthcheck")
                waits[node.name].add(wait.node)
    while free := [name for name, others in waits.items() if not others]:
        for name in free:
            del waits[name]
        for others in waits.values():
            others.difference_update(free)
    if waits:
        first = min(waits)
        fail(first, f"cyclic dependencies between nodes: {', '.join(sorted(waits))}")
