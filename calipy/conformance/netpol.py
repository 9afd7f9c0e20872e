"""Network-policy cases, two ways: through the evaluator, and with packets. Every cell of every state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from calipy.conformance import netpol_packets
from calipy.conformance.bench import Bench
from calipy.conformance.netpol_case import Case, State, is_case, load
from calipy.conformance.netpol_packets import PacketRunner, Wrong
from calipy.conformance.netpol_verdicts import snapshot_of, verdict_of
from calipy.conformance.report import CaseResult
from calipy.errors import CalipyError, InvalidInputError

SHOWN: Final = 5
"""How many wrong cells of a case the report holds."""


def detect(path: Path, _document: Any) -> bool:
    """Whether the file is a network-policy case."""
    return is_case(path)


async def run(name: str, _document: Any, bench: Bench) -> list[CaseResult]:
    """Run one file in the ways that the bench's options ask for; ``name`` is its path."""
    path = Path(name)
    try:
        case = await asyncio.to_thread(load, path)
    except (InvalidInputError, *_UNUSABLE) as error:
        return [CaseResult(name, path.stem, "failed", (), _unusable(error))]
    options = bench.options
    results = [await asyncio.to_thread(check, name, case)] if options.evaluate else []
    if options.packets and options.no_packets:
        results.append(CaseResult(name, case.id, "skipped", _themes(case, "packets"), options.no_packets))
    elif options.packets:
        results.append(await check_with_packets(name, case, bench))
    return results


def check_file(path: Path) -> CaseResult:
    """Evaluate one file; one that cannot be read is a failure that says why."""
    try:
        return check(str(path), load(path))
    except (InvalidInputError, *_UNUSABLE) as error:
        return CaseResult(str(path), path.stem, "failed", (), _unusable(error))


def check(name: str, case: Case) -> CaseResult:
    """Compare every cell of every state with the evaluator's verdict."""
    themes = _themes(case, "evaluator")
    try:
        wrong = [line for state in case.states() for line in wrong_cells(state)]
    except (InvalidInputError, *_UNUSABLE) as error:
        return CaseResult(name, case.id, "failed", themes, _unusable(error))
    return CaseResult(name, case.id, "failed" if wrong else "passed", themes, _first(wrong[:SHOWN], len(wrong)))


async def check_with_packets(name: str, case: Case, bench: Bench) -> CaseResult:
    """Compare every cell of every state, and the held flows, with what packets do."""
    themes = _themes(case, "packets")
    try:
        findings = await (await _runner(bench)).check(case)
    except (CalipyError, *_UNUSABLE) as error:
        return CaseResult(name, case.id, "failed", themes, _unusable(error))
    count = len(findings.problems) + len(findings.wrong)
    wrong = [*findings.problems, *map(_wrong_line, findings.wrong[:SHOWN])]
    return CaseResult(
        name,
        case.id,
        "failed" if wrong else "passed",
        themes,
        _first(wrong[:SHOWN], count),
        tuple(findings.left_out),
        tuple(findings.notes),
    )


async def _runner(bench: Bench) -> PacketRunner:
    if "packets" not in bench.shared:
        bench.shared["packets"] = await bench.stack.enter_async_context(netpol_packets.running(bench.options.backend))
    runner: PacketRunner = bench.shared["packets"]
    return runner


def _wrong_line(one: Wrong) -> str:
    """The cell, what packets did, and what the evaluator thinks of it."""
    place = f"{one.state.name}: {one.probe} {one.source} -> {one.destination}: want {one.want}, {one.how}"
    try:
        verdict = verdict_of(snapshot_of(one.state.cluster), one.state.cluster, one.probe, one.source, one.destination)
    except CalipyError as error:
        return f"{place}; evaluator: {error}"
    return f"{place}; evaluator: {'A' if verdict.allowed else 'D'}: {verdict.reason}"


def _first(wrong: Sequence[str], count: int) -> str:
    return "\n".join([*wrong, *([f"and {count - SHOWN} more"] if count > SHOWN else [])])


def _themes(case: Case, way: str) -> tuple[str]:
    return (f"{case.family}/{case.theme} ({way})",)


_UNUSABLE: Final = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a case that is not as the format says can raise."""


def _unusable(error: BaseException) -> str:
    return f"cannot be used: {type(error).__name__}: {error}"


def wrong_cells(state: State) -> list[str]:
    """One line for each cell that the evaluator sees differently, with its reason."""
    snapshot = snapshot_of(state.cluster)
    found = [f"{state.name}: {where}: {why}" for where, why in snapshot.problems.items()]
    for probe, source, destination, wanted in state.cells():
        verdict = verdict_of(snapshot, state.cluster, probe, source, destination)
        if verdict.allowed != (wanted == "A"):
            got = "A" if verdict.allowed else "D"
            found.append(f"{state.name}: {probe} {source} -> {destination}: want {wanted}, got {got}: {verdict.reason}")
    return found
