"""``calipy ipam check``, ``capacity``, ``repair`` and ``split``."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from pathlib import Path
from typing import Any

import click

from calipy import clock
from calipy.cli.ipam_output import Output, Place, config_option, do, number, output_option
from calipy.ipam import audit, snapshot, splitting
from calipy.ipam import capacity as pool_capacity
from calipy.ipam import repair as mending


@click.command()
@click.argument("number", type=int)
@click.option("--cidr", default=None, help="CIDR of the pool.")
@click.option("--name", default=None, help="Name of the pool.")
@config_option
def split(number: int, cidr: str | None, name: str | None) -> None:
    """Cut a pool into NUMBER equal parts (a power of two). The datastore must be locked.

    The parts are called split-<name>-0 and so on; addresses and blocks stay as they are.

    \b
    Example:
      calipy ipam split 4 --name default-ipv4-ippool
    """
    if (cidr is None) == (name is None):
        raise click.UsageError("give either --cidr or --name")
    do(lambda place: _split(place, number, cidr, name))


async def _split(place: Place, number: int, cidr: str | None, name: str | None) -> Output:
    parts = await splitting.split(place.store, number, cidr=cidr, name=name, now=place.now, settle=place.settle)
    return Output(text="split into " + ", ".join(f"{part.name} ({part.spec.cidr})" for part in parts))


@click.command()
@click.option("--show-all-ips", is_flag=True, help="Also list every allocated address and who uses it.")
@output_option
@config_option
def check(show_all_ips: bool, form: str) -> None:
    """Check that blocks, handles, affinities, endpoints and nodes fit together.

    Every finding is explained with its evidence. Nothing is changed.

    \b
    Examples:
      calipy ipam check
      calipy ipam check --show-all-ips -o json
    """
    do(lambda place: _check(place, show_all=show_all_ips), form)


async def _check(place: Place, *, show_all: bool) -> Output:
    picture = await snapshot.read(place.store, snapshot.EVERYTHING)
    result = audit.audit(picture, now=place.now())
    lines = [f"{name.replace('_', ' ')}: {count}" for name, count in result.summary.items()]
    if show_all:
        lines += [f"{entry.address}: {', '.join(entry.users) or 'nobody'}" for entry in result.allocated]
    lines += [f"{'PROBLEM' if f.problem else 'note'}: {f.kind}: {f.text}" for f in result.findings]
    document = {
        "summary": result.summary,
        "findings": [
            {name: getattr(f, name) for name in ("kind", "problem", "text", "address", "block", "handle", "node")}
            for f in result.findings
        ],
        "report": audit.report(picture, result),
    }
    return Output(text="\n".join(lines), document=document)


@click.command()
@output_option
@config_option
def capacity(form: str) -> None:
    """Tell how many blocks and addresses each pool has left, and which node is the first to get none.

    \b
    Example:
      calipy ipam capacity
    """
    do(_capacity, form)


async def _capacity(place: Place) -> Output:
    picture = await snapshot.read(place.store, snapshot.EVERYTHING)
    config = picture.config or place.defaults
    pools = pool_capacity.capacity(picture, max_blocks_per_host=config.max_blocks_per_host)
    columns = ("POOL", "CIDR", "BLOCKS", "UNCLAIMED", "IPS FREE", "NEXT")
    rows = tuple((p.name, p.cidr, number(p.blocks), number(p.unclaimed), number(p.free), p.verdict) for p in pools)
    return Output(columns=columns, rows=rows, document=[dataclasses.asdict(pool) for pool in pools])


@click.command()
@click.option("--plan", "what", flag_value="plan", default=True, help="Show what would be done (the default).")
@click.option("--apply", "what", flag_value="apply", help="Do it, and write a journal.")
@click.option(
    "--undo", "undo_file", type=click.Path(exists=True, dir_okay=False), help="Take back the steps of a journal."
)
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, writable=True),
    help="Where to write it [default: ipam-repair-<time>.json].",
)
@output_option
@config_option
def repair(what: str, undo_file: str | None, journal: str | None, form: str) -> None:
    """Mend what check finds, in guarded steps that can be undone.

    Each step tells what it does and what shows that nobody loses anything. Before an address is freed, all endpoints
    and nodes are read once more. Addresses of pods that are just being set up look leaked: repair when nothing starts.

    \b
    Examples:
      calipy ipam repair
      calipy ipam repair --apply --journal before-upgrade.json
      calipy ipam repair --undo before-upgrade.json
    """
    if undo_file is not None:
        lines = [json.loads(line) for line in Path(undo_file).read_text().splitlines() if line]
        do(lambda place: _undo(place, lines), form)
    elif what == "apply":
        file = Path(journal or f"ipam-repair-{clock.wall():%Y%m%dT%H%M%S}.json")
        do(lambda place: _repair(place, file), form)
    else:
        do(lambda place: _repair(place, None), form)


async def _repair(place: Place, journal: Path | None) -> Output:
    picture = await snapshot.read(place.store, snapshot.EVERYTHING)
    cooldown = datetime.timedelta(seconds=max(0, (picture.config or place.defaults).cooldown_seconds))
    steps = mending.plan(picture, now=place.now(), cooldown=cooldown)
    if journal is None:
        lines = [f"{step.text}\n  proof: {step.proof}" for step in steps] or ["nothing to repair"]
        return Output(text="\n".join(lines), document=[{"text": step.text, "proof": step.proof} for step in steps])
    if not steps:
        return Output(text="nothing to repair", document={"done": [], "skipped": []})
    with os.fdopen(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:

        def note(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

        outcome = await mending.apply(place.store, picture, steps, note=note)
    return _outcome(outcome, f"journal: {journal}")


async def _undo(place: Place, journal: list[dict[str, Any]]) -> Output:
    return _outcome(await mending.undo(place.store, journal), "")


def _outcome(outcome: mending.Outcome, last: str) -> Output:
    lines = [f"done: {text}" for text in outcome.done]
    lines += [f"skipped: {text}: {why}" for text, why in outcome.skipped]
    document = {"done": outcome.done, "skipped": [{"text": text, "why": why} for text, why in outcome.skipped]}
    text = "\n".join([*lines, *([last] if last else [])])
    return Output(text=text, document=document, exit_code=1 if outcome.skipped else 0)
