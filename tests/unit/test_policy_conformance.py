"""Policy against cases made with Calico: selectors, conversion of Kubernetes objects, who reaches whom."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from calipy.conformance import netpol
from calipy.conformance.registry import suites

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
CASES = sorted((ROOT / "netpol").glob("*.yaml"))

pytestmark = pytest.mark.skipif(not CASES, reason="no conformance data; set CALIPY_CONFORMANCE")


@pytest.mark.parametrize("file", ["selectors/selectors.json", "k8s-conversion/conversion.json"])
async def test_selectors_and_conversion(file: str) -> None:
    """Expressions, ids, policies, namespaces, accounts and names come out as from Calico's own tools."""
    path = ROOT / "datastore" / file
    document = json.loads(path.read_text())
    suite = next(suite for suite in suites() if suite.detect(path, document))
    results = await suite.run(str(path), document, None)  # needs no store
    assert sum(result.outcome == "passed" for result in results) > 50
    assert not [result for result in results if result.outcome == "failed"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem[:40])
def test_reachability(path: Path) -> None:
    """The evaluator sees every cell of every state as it is on the wire."""
    assert netpol.detect(path, None)
    result = netpol.check_file(path)
    assert result.outcome == "passed", result.detail
