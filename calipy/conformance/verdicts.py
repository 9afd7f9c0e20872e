"""Cases of one document each, accepted or refused (``validation/*.json``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calipy.conformance.bench import START_KEYS, Bench, parsed
from calipy.conformance.report import CaseResult
from calipy.conformance.volatile import Matcher, Mismatch


def detect(_path: Path, document: Any) -> bool:
    """A JSON file whose cases have a verdict."""
    cases = document.get("cases") if isinstance(document, dict) else None
    return isinstance(cases, list) and bool(cases) and all(isinstance(one, dict) and "verdict" in one for one in cases)


async def run(name: str, document: Any, bench: Bench) -> list[CaseResult]:
    """Run all cases of a file."""
    return [await run_case(name, case, bench) for case in document["cases"]]


async def run_case(name: str, case: dict[str, Any], bench: Bench) -> CaseResult:
    """Create the setup, do the verb, compare the verdict and what is stored."""
    themes = (case["theme"],) if case.get("theme") else ()
    try:
        await _check(case, bench)
    except Mismatch as difference:
        if case.get("quirk"):
            # A slip of that version: the sensible thing may well be the opposite.
            return CaseResult(name, case["id"], "skipped", themes, "quirks on which calipy differs on purpose")
        what = json.dumps(case["input"])
        return CaseResult(name, case["id"], "failed", themes, f"{case['field']}: {difference}\n{what[:600]}")
    return CaseResult(name, case["id"], "passed", themes)


async def _check(case: dict[str, Any], bench: Bench) -> None:
    await bench.reset()
    for document in case.get("setup", ()):
        outcome = await bench.command(["create", "-f", "-"], json.dumps(document))
        if outcome.exit_code:
            raise Mismatch(f"setup is refused: {outcome.error}")
    await bench.take_events()
    outcome = await bench.command([case["verb"], "-f", "-"], json.dumps(case["input"]))
    accepted = outcome.exit_code == 0
    if accepted != (case["verdict"] == "accept"):
        raise Mismatch(
            f"expected {case['verdict']}, got {'accept' if accepted else 'reject: ' + outcome.error.strip()}"
        )
    events = await bench.take_events()
    if not accepted and events and not case.get("changed"):
        raise Mismatch(f"refused, but wrote {[event.key for event in events]}")
    if "stored" in case:
        stored = await bench.stored()
        actual = {key: parsed(item.value) for key, item in stored.items() if key not in START_KEYS}
        Matcher().check(
            case["stored"], {key: value for key, value in actual.items() if key in case["stored"]}, "stored"
        )
