"""Comparison with placeholders."""

from __future__ import annotations

from typing import Any

import pytest

from calipy.conformance.report import CaseResult, as_json, text
from calipy.conformance.volatile import Matcher, Mismatch

UID = "7b7e4f0e-5b0d-4a29-9a0c-2f8c7e1d9a11"
OTHER = "7b7e4f0e-5b0d-4a29-9a0c-2f8c7e1d9a12"


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"a": 1}, {"a": 1}),
        ("<time>", "2026-08-01T10:00:00Z"),
        (["<uid-1>", "<uid-1>", "<uid-2>"], [UID, UID, OTHER]),
        (["<seq-1>", "<seq-1>+2"], [2**60, 2**60 + 2]),
        ("at <guid>.", "at " + "0a" * 16 + "."),
        ("<pointer>", "<pointer>"),
    ],
)
def test_agree(expected: Any, actual: Any) -> None:
    """Values agree, and placeholders with what they stand for."""
    Matcher().check(expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"a": 1}, {"a": 1, "b": None}),
        ({"a": None}, {}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ([], {}),
        ([1, 2], [2, 1]),
        ("<time>", "2026-08-01 10:00:00Z"),
        (["<uid-1>", "<uid-1>"], [UID, OTHER]),
        (["<uid-1>", "<uid-2>"], [UID, UID]),
        (["<seq-1>", "<seq-1>+2"], [5, 6]),
        ("<modrev>", 7),
    ],
)
def test_differ(expected: Any, actual: Any) -> None:
    """Missing, null, empty and zero are four things; numbers have types; placeholders are consistent."""
    with pytest.raises(Mismatch):
        Matcher().check(expected, actual)


def test_creation_time_belongs_to_the_uid() -> None:
    """An update that changes the creation time is found."""
    matcher = Matcher()
    metadata = {"uid": "<uid-1>", "creationTimestamp": "<time>"}
    matcher.check(metadata, {"uid": UID, "creationTimestamp": "2026-08-01T10:00:00Z"})
    with pytest.raises(Mismatch, match="creation time"):
        matcher.check(metadata, {"uid": UID, "creationTimestamp": "2026-08-01T10:00:01Z"})


def test_report_never_takes_skipped_for_passed() -> None:
    """The last line counts each outcome, and what was left out is named."""
    results = [
        CaseResult("f", "one", "passed", ("t",), skipped_steps=("go-template",)),
        CaseResult("f", "two", "failed", ("t",), "step 1: differs"),
        CaseResult("f", "three", "skipped", (), "patch"),
        CaseResult("f", "four", "skipped", (), "no root"),
        CaseResult("g", "five", "skipped", (), "no root"),
    ]
    shown = text(results, ignored=["3 files of x"])
    assert shown.splitlines()[-1] == "1 passed, 1 failed, 3 skipped"
    for line in (
        "not run: 1 cases of f: patch",
        "not run: 2 cases of 2 files: no root",
        "not run: 1 steps of f: go-template",
        "not run: 3 files of x, whose format no suite knows",
        "    step 1: differs",
    ):
        assert line in shown.splitlines()
    assert as_json(results)["cases"][2]["outcome"] == "skipped"
