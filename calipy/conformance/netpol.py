"""Network-policy cases through the evaluator: every cell of every state."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

from calipy.conformance.bench import Bench
from calipy.conformance.netpol_case import UPLINK, Case, State, is_case, load, parse_probe
from calipy.conformance.report import CaseResult
from calipy.errors import InvalidInputError
from calipy.policy.evaluate import EPHEMERAL_PORT, Verdict, evaluate
from calipy.policy.snapshot import Snapshot

SHOWN: Final = 5
"""How many wrong cells of a case the report holds."""


def detect(path: Path, _document: Any) -> bool:
    """Whether the file is a network-policy case."""
    return is_case(path)


async def run(name: str, _document: Any, _bench: Bench) -> list[CaseResult]:
    """Evaluate one file; ``name`` is its path."""
    return [await asyncio.to_thread(check_file, Path(name))]


def check_file(path: Path) -> CaseResult:
    """Evaluate one file; one that cannot be read is a failure that says why."""
    try:
        return check(str(path), load(path))
    except (InvalidInputError, KeyError, TypeError, ValueError) as error:
        return CaseResult(str(path), path.stem, "failed", (), f"cannot be used: {type(error).__name__}: {error}")


def check(name: str, case: Case) -> CaseResult:
    """Compare every cell of every state with the evaluator's verdict."""
    wrong = [line for state in case.states() for line in wrong_cells(state)]
    more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    skipped = ("held flows are tested with packets only",) if case.document.get("flows") else ()
    themes = (f"{case.family}/{case.theme}",)
    detail = "\n".join(wrong[:SHOWN] + more)
    return CaseResult(name, case.id, "failed" if wrong else "passed", themes, detail, skipped)


def wrong_cells(state: State) -> list[str]:
    """One line for each cell that the evaluator sees differently, with its reason."""
    cluster = state.cluster
    objects = ((resource.key, resource) for resource in cluster.resources())
    snapshot = Snapshot(objects, endpoint_to_host=cluster.endpoint_to_host, uplink=UPLINK)
    found = [f"{state.name}: {where}: {why}" for where, why in snapshot.problems.items()]
    for probe, source, destination, wanted in state.cells():
        verdict = verdict_of(snapshot, state, probe, source, destination)
        if verdict.allowed != (wanted == "A"):
            got = "A" if verdict.allowed else "D"
            found.append(f"{state.name}: {probe} {source} -> {destination}: want {wanted}, got {got}: {verdict.reason}")
    return found


def verdict_of(snapshot: Snapshot, state: State, probe: str, source: str, destination: str) -> Verdict:
    """The evaluator's verdict on one cell."""
    wanted = parse_probe(probe)
    return evaluate(
        snapshot,
        state.cluster.addresses(source)[wanted.family],
        state.cluster.addresses(destination)[wanted.family],
        wanted.protocol,
        source_port=EPHEMERAL_PORT if wanted.source_port is None else wanted.source_port,
        destination_port=wanted.port,
        icmp=wanted.icmp,
    )
