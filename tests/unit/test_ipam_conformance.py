"""The collection's cases about address management."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from calipy.conformance import ipam

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
FOLDER = ROOT / "datastore" / "ipam"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no conformance data; set CALIPY_CONFORMANCE")

CASES: list[dict[str, Any]] = [
    case for file in sorted(FOLDER.glob("*.json")) for case in json.loads(file.read_text())["cases"]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    """Results, states in between and the state afterwards are Calico's."""
    assert ipam.run(case) == []


def test_a_wrong_state_is_noticed() -> None:
    """A case whose expectation is changed fails: the comparison looks at what is stored."""
    case = json.loads(json.dumps(next(case for case in CASES if case["id"] == "ipam-first-address")))
    case["steps"][1]["writes"][-1]["value"]["unallocated"].reverse()
    assert any("unallocated" in text or "state" in text for text in ipam.run(case))


def test_a_wrong_result_is_noticed() -> None:
    """An address other than Calico's is a failure."""
    case = json.loads(json.dumps(next(case for case in CASES if case["id"] == "ipam-release-order")))
    case["steps"][7]["result"]["v4"]["ips"] = ["10.61.9.0/30"]
    assert any("result" in text for text in ipam.run(case))
