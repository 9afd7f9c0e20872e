"""Results of cases, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from calipy.cli import render

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of one case.

    Attributes:
        file: where it stands, as given on the command line.
        case: its id.
        outcome: ``skipped`` means that something in it is not supported yet; it counts neither way.
        themes: what it is about.
        detail: of a failure the first step that differs, of a skipped case what is missing.
        skipped_steps: steps of a passed case that were left out, each with the reason.
        notes: what was not wrong but is worth a look.
    """

    file: str
    case: str
    outcome: Outcome
    themes: tuple[str, ...] = ()
    detail: str = ""
    skipped_steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def text(results: Sequence[CaseResult], *, ignored: Sequence[str] = ()) -> str:
    """The whole report; its last line is ``N passed, N failed``, with ``, N skipped`` if there are any.

    Args:
        results: of all cases.
        ignored: files that no suite knows.
    """
    parts = [f"FAILED {one.file} {one.case}\n{_indent(one.detail)}" for one in results if one.outcome == "failed"]
    parts.append(_table("FILE", [(one.file, one) for one in results]))
    parts.append(_table("THEME", [(theme, one) for one in results for theme in one.themes or ("-",)]))
    parts.append("\n".join(f"note: {one.file}: {note}" for one in results for note in one.notes))
    parts.append("\n".join(_left_out(results, ignored)))
    counts = Counter(one.outcome for one in results)
    last = f"{counts['passed']} passed, {counts['failed']} failed"
    if counts["skipped"]:
        last += f", {counts['skipped']} skipped"
    return "\n\n".join([part for part in parts if part] + [last])


def _indent(detail: str) -> str:
    return "\n".join(f"    {line}" for line in detail.splitlines())


def _table(heading: str, named: Sequence[tuple[str, CaseResult]]) -> str:
    counts: dict[str, Counter[str]] = {}
    for name, result in named:
        counts.setdefault(name, Counter())[result.outcome] += 1
    if not counts:
        return ""
    rows = [
        [name, *(str(count[outcome]) for outcome in ("passed", "failed", "skipped"))]
        for name, count in sorted(counts.items())
    ]
    return render.table([heading, "PASSED", "FAILED", "SKIPPED"], rows)


def _left_out(results: Sequence[CaseResult], ignored: Sequence[str]) -> list[str]:
    """Lines that tell what was not tested, so that nobody takes it for passed."""
    cases = [(one.detail, one.file) for one in results if one.outcome == "skipped"]
    steps = [(reason, one.file) for one in results for reason in one.skipped_steps]
    lines = [f"not run: {line}" for line in (*_by_reason("cases", cases), *_by_reason("steps", steps))]
    return lines + [f"not run: {name}, whose format no suite knows" for name in sorted(ignored)]


def _by_reason(what: str, skipped: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each reason, with how often it held and in which file, or how many."""
    counts = Counter(reason for reason, _ in skipped)
    files = {reason: sorted({file for why, file in skipped if why == reason}) for reason in counts}
    places = {reason: names[0] if len(names) == 1 else f"{len(names)} files" for reason, names in files.items()}
    return [f"{count} {what} of {places[reason]}: {reason}" for reason, count in sorted(counts.items())]


def as_json(results: Sequence[CaseResult], *, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """The report as a JSON object."""
    counts = Counter(one.outcome for one in results)
    return {
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "cases": [
            {
                "file": one.file,
                "case": one.case,
                "outcome": one.outcome,
                "themes": list(one.themes),
                "detail": one.detail,
                "skipped_steps": list(one.skipped_steps),
                "notes": list(one.notes),
            }
            for one in results
        ],
        "not_supported": sorted(ignored),
    }
