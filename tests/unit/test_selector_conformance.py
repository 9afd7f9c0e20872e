"""Selectors against verdicts, canonical texts, ids and matches that Calico's own parser gave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from calipy.errors import InvalidInputError
from calipy.policy.selector import named_port_set_id, parse, service_set_id

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
FILE = ROOT / "datastore" / "selectors" / "selectors.json"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="no conformance data; set CALIPY_CONFORMANCE")

DATA: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"cases": [], "ip_set_ids": []}


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda case: case["id"])
def test_expression(case: dict[str, Any]) -> None:
    """Acceptance, canonical text, id and every match agree with Calico's."""
    if not case["accept"]:
        with pytest.raises(InvalidInputError, match="at character"):
            parse(case["expr"])
        return
    selector = parse(case["expr"])
    assert selector.canonical == case["canonical"]
    assert selector.unique_id() == case["id_hash"]
    assert [selector.matches(labels) for labels in DATA["label_sets"]] == case["match"]


@pytest.mark.parametrize("case", [c for c in DATA["cases"] if c["accept"]], ids=lambda case: case["id"])
def test_restrictions(case: dict[str, Any]) -> None:
    """What an index may conclude about each label is what Calico concludes."""
    found = {
        label: (r.must_be_present, r.must_be_absent, list(r.one_of or ()))
        for label, r in parse(case["expr"]).restrictions.items()
    }
    expected = {
        label: (r["mustBePresent"], r["mustBeAbsent"], r.get("oneOf") or [])
        for label, r in case["restrictions"].items()
    }
    assert found == expected


@pytest.mark.parametrize("case", DATA["ip_set_ids"], ids=lambda case: case["id"])
def test_ip_set_id(case: dict[str, Any]) -> None:
    """Ids of selector, named port and service sets are Calico's."""
    if "service" in case:
        namespace, _, name = case["service"].partition("/")
        found = service_set_id(namespace, name, with_ports=case["with_ports"])
    elif "port" in case:
        found = named_port_set_id(parse(case["selector"]), case["protocol"], case["port"])
    else:
        found = parse(case["selector"]).unique_id()
    assert found == case["id"]
