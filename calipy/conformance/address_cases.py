"""Files of address management cases (``ipam/*.json``), each case on a store of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from calipy.conformance import ipam
from calipy.conformance.bench import Bench
from calipy.conformance.report import CaseResult


def detect(_path: Path, document: Any) -> bool:
    """A JSON file of cases with calls of the address library."""
    cases = document.get("cases") if isinstance(document, dict) else None
    return isinstance(cases, list) and bool(cases) and all(ipam.applies(case) for case in cases)


async def run(name: str, document: Any, _bench: Bench) -> list[CaseResult]:
    """Run all cases of a file."""
    return [await asyncio.to_thread(_run_case, name, case) for case in document["cases"]]


def _run_case(name: str, case: dict[str, Any]) -> CaseResult:
    differences = ipam.run(case)
    themes = (case["theme"],) if case.get("theme") else ()
    return CaseResult(name, case["id"], "failed" if differences else "passed", themes, "\n".join(differences[:3]))
