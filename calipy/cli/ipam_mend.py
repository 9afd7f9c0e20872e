"""``calipy ipam check``, ``release``, ``capacity``, ``repair`` and ``split``."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import click

from calipy import clock
from calipy.cli.ipam_output import Output, Place, config_option, do, number, output_option
from calipy.errors import InvalidInputError
from calipy.ipam import audit, release_report, snapshot, splitting
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
@click.option("--show-problem-ips", is_flag=True, help="As without it: findings always name their addresses.")
@click.option(
    "-o",
    "--output",
    "output",
    default="table",
    show_default=True,
    metavar="table|json|yaml|FILE",
    help="How to print it; or a file for the report, which release --from-report takes.",
)
@config_option
def check(show_all_ips: bool, show_problem_ips: bool, output: str) -> None:
    """Check that blocks, handles, affinities, endpoints and nodes fit together.

    Every finding is explained with its evidence. Nothing is changed.

    \b
    Examples:
      calipy ipam check
      calipy ipam check --show-all-ips -o json
      calipy ipam check -o report.json
    """
    del show_problem_ips  # calicoctl's; what it asks for is shown in any case
    if output in {"table", "json", "yaml"}:
        do(lambda place: _check(place, show_all=show_all_ips, file=None), output)
    else:
        do(lambda place: _check(place, show_all=show_all_ips, file=Path(output)))


async def _check(place: Place, *, show_all: bool, file: Path | None) -> Output:
    picture = await snapshot.read(place.store, snapshot.EVERYTHING)
    result = audit.audit(picture, now=place.now())
    lines = [f"{name.replace('_', ' ')}: {count}" for name, count in result.summary.items()]
    if show_all:
        lines += [f"{entry.address}: {', '.join(entry.users) or 'nobody'}" for entry in result.allocated]
    lines += [f"{'PROBLEM' if f.problem else 'note'}: {f.kind}: {f.text}" for f in result.findings]
    document: dict[str, Any] = {
        "summary": result.summary,
        "findings": [
            {name: getattr(f, name) for name in ("kind", "problem", "text", "address", "block", "handle", "node")}
            for f in result.findings
        ],
        "report": audit.report(picture, result),
    }
    if file is not None:
        _write_report(file, document["report"])
        lines.append(f"report written to {file}")
    return Output(text="\n".join(lines), document=document)


def _write_report(file: Path, report: dict[str, Any]) -> None:
    text = json.dumps({"version": importlib.metadata.version("calipy"), **report}, indent=2)
    try:
        file.write_text(text + "\n")
    except OSError as error:
        raise InvalidInputError(f"cannot be written: {error.strerror}", field="-o", value=str(file)) from error


@click.command()
@click.option("--ip", "address", default=None, help="The address to release.")
@click.option(
    "--from-report",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Release what this report of check calls leaked; of several reports what all of them do.",
)
@click.option("--force", is_flag=True, help="Also with an unlocked datastore, and with reports made before its lock.")
@config_option
def release(address: str | None, files: tuple[str, ...], force: bool) -> None:
    """Release addresses that nobody uses any more.

    With --ip the address is free at once: make sure that no pod uses it (calipy ipam show --ip, calipy ipam check).
    With --from-report only what is still leaked is released: users, handle and sequence number of an address are looked
    at again. The datastore must be locked, and one of the reports must have been made under this lock.

    \b
    Examples:
      calipy ipam release --ip 10.65.0.7
      calipy ipam release --from-report monday.json --from-report tuesday.json
    """
    if address is not None and files:
        raise click.UsageError("give either --ip or --from-report")
    if files:
        reports = {file: release_report.read_report(Path(file).read_bytes(), name=file) for file in files}
        do(lambda place: _release_reported(place, reports, force=force))
    else:
        do(lambda place: _release(place, address))


async def _release(place: Place, address: str | None) -> Output:
    if address is None:
        return Output(text="nothing to release: give --ip or --from-report")
    done = await place.allocator().release_ips([address])
    if done.unallocated:
        return Output(text=f"{address} is not assigned to anybody", exit_code=1)
    return Output(text=f"released {address}")


async def _release_reported(place: Place, reports: dict[str, release_report.Report], *, force: bool) -> Output:
    picture = await snapshot.read(place.store, snapshot.EVERYTHING)
    version = importlib.metadata.version("calipy")
    leaks = release_report.agreed(reports, picture.cluster, version=version, force=force)
    present = audit.audit(picture, now=place.now())
    done = await release_report.release(place.store, place.allocator(), leaks, picture, present)
    lines = [f"released {address}" for address in done.addresses]
    lines += [f"deleted handle {handle}" for handle in done.handles]
    lines += [f"left alone: {what}: {why}" for what, why in done.skipped]
    lines.append(f"{len(done.addresses)} addresses and {len(done.handles)} handles released")
    return Output(text="\n".join(lines))


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
        lines = _journal(Path(undo_file))
        do(lambda place: _undo(place, lines), form)
    elif what == "apply":
        file = Path(journal or f"ipam-repair-{clock.wall():%Y%m%dT%H%M%S}.json")
        do(lambda place: _repair(place, file), form)
    else:
        do(lambda place: _repair(place, None), form)


def _journal(file: Path) -> list[dict[str, Any]]:
    """The steps of a journal. Raises InvalidInputError for a file that is none."""
    try:
        steps = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except OSError as error:
        raise InvalidInputError(f"cannot be read: {error.strerror}", field="--undo", value=str(file)) from None
    except ValueError:
        steps = [None]
    if not all(isinstance(step, dict) and step.keys() >= {"text", "before", "after"} for step in steps):
        raise InvalidInputError("is no journal of `ipam repair --apply`", field="--undo", value=str(file))
    return steps


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
