"""Selector expressions: acceptance, canonical text, ids, matches (``selectors/selectors.json``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calipy.conformance.bench import Bench
from calipy.conformance.report import CaseResult
from calipy.conformance.volatile import Matcher, Mismatch
from calipy.errors import InvalidInputError
from calipy.policy import selector


def detect(_path: Path, document: Any) -> bool:
    """A JSON file with expressions and sets of labels."""
    return isinstance(document, dict) and "label_sets" in document and isinstance(document.get("cases"), list)


async def run(name: str, document: Any, _bench: Bench) -> list[CaseResult]:
    """Run all expressions, and the ids of ip sets."""
    results = [_run_case(name, case, document["label_sets"]) for case in document["cases"]]
    return results + [_run_set_id(name, case) for case in document.get("ip_set_ids", ())]


def _run_case(name: str, case: dict[str, Any], label_sets: list[dict[str, str]]) -> CaseResult:
    found: dict[str, Any] = {"accept": True}
    try:
        parsed = selector.parse(case["expr"])
    except InvalidInputError:
        found["accept"] = False
    else:
        found |= {
            "canonical": parsed.canonical,
            "id_hash": parsed.unique_id(),
            "match": [parsed.matches(labels) for labels in label_sets],
            "restrictions": {
                label: {"mustBePresent": one.must_be_present, "mustBeAbsent": one.must_be_absent}
                | ({"oneOf": list(one.one_of)} if one.one_of else {})
                for label, one in parsed.restrictions.items()
            },
        }
    expected = {field: case[field] for field in found if field in case}
    if "restrictions" in expected:
        expected["restrictions"] = {
            label: {field: value for field, value in one.items() if value or field != "oneOf"}
            for label, one in expected["restrictions"].items()
        }
    return _compare(name, case, expected, {field: found[field] for field in expected})


def _run_set_id(name: str, case: dict[str, Any]) -> CaseResult:
    if "service" in case:
        namespace, _, service = case["service"].partition("/")
        found = selector.service_set_id(namespace, service, with_ports=case["with_ports"])
    elif "port" in case:
        found = selector.named_port_set_id(selector.parse(case["selector"]), case["protocol"], case["port"])
    else:
        found = selector.parse(case["selector"]).unique_id()
    return _compare(name, case, case["id"], found, case_id=f"ip-set-{case['id']}")


def _compare(name: str, case: dict[str, Any], expected: Any, found: Any, *, case_id: str = "") -> CaseResult:
    themes = (case["theme"],) if case.get("theme") else ()
    try:
        Matcher().check(expected, found)
    except Mismatch as difference:
        detail = f"{case.get('expr', case.get('selector'))!r}: {difference}"
        return CaseResult(name, case_id or case["id"], "failed", themes, detail)
    return CaseResult(name, case_id or case["id"], "passed", themes)
