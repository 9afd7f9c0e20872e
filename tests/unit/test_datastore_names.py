"""Names of workload endpoints and interfaces, against Calico's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.datastore.names import format_workload_endpoint, kubernetes_interface, parse_workload_endpoint
from calipy.errors import InvalidInputError

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
FILE = ROOT / "datastore" / "k8s-conversion" / "conversion.json"
DATA: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"interface_names": [], "endpoint_names": []}

part = st.from_regex(r"[a-z0-9.]([a-z0-9.-]{0,6}[a-z0-9.])?", fullmatch=True)


@pytest.mark.parametrize("case", DATA["interface_names"], ids=lambda case: case["interface"])
def test_interface_name(case: dict[str, Any]) -> None:
    """The host end of a pod's interface has the name Calico gives it."""
    assert kubernetes_interface(case["namespace"], case["pod"]) == case["interface"]


@pytest.mark.parametrize("case", DATA["endpoint_names"], ids=lambda case: case["name"])
def test_endpoint_name(case: dict[str, Any]) -> None:
    """Names parse, or are refused, as Calico does."""
    if case.get("error"):
        with pytest.raises(InvalidInputError):
            parse_workload_endpoint(case["name"])
        return
    expected = case["parsed"]
    found = parse_workload_endpoint(case["name"])
    workload = next((expected[k] for k in ("Pod", "ContainerID", "Workload") if k in expected), None)
    assert (found.node, found.orchestrator, found.endpoint) == (
        expected["Node"],
        expected["Orchestrator"],
        expected.get("Endpoint", ""),
    )
    assert workload is None or found.workload == workload


@given(part, part, part, part)
def test_round_trip(node: str, orchestrator: str, workload: str, endpoint: str) -> None:
    """Whatever the parts hold inside, parsing gives them back."""
    name = format_workload_endpoint(node, orchestrator, workload, endpoint)
    assert parse_workload_endpoint(name) == (node, orchestrator, workload, endpoint)
