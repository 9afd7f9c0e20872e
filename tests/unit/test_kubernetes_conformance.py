"""Conversion of Kubernetes objects against what Calico's own converter gave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from calipy.datastore.codec import write_resource
from calipy.policy.kubernetes import (
    ConversionError,
    convert_namespace,
    convert_network_policy,
    convert_service_account,
    namespace_profile_name,
    parse_namespace_profile,
    parse_service_account_profile,
    service_account_profile_name,
)

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
FILE = ROOT / "datastore" / "k8s-conversion" / "conversion.json"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="no conformance data; set CALIPY_CONFORMANCE")

DATA: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"cases": [], "profile_names": []}
CONVERTERS = {
    "NetworkPolicy": convert_network_policy,
    "Namespace": convert_namespace,
    "ServiceAccount": convert_service_account,
}


@pytest.mark.parametrize("case", [c for c in DATA["cases"] if c["kind"] in CONVERTERS], ids=lambda case: case["id"])
def test_conversion(case: dict[str, Any]) -> None:
    """The converted object has the spec and the name that Calico writes; a bad rule is reported and left out."""
    convert = CONVERTERS[case["kind"]]
    if case.get("error"):
        with pytest.raises(ConversionError) as caught:
            convert(case["input"])
        converted = caught.value.partial
    else:
        converted = convert(case["input"])
    found = write_resource(converted)
    assert found["spec"] == case["result"]["value"]["spec"]
    if "etcd_object" in case:
        assert found == case["etcd_object"]


@pytest.mark.parametrize("case", DATA["profile_names"], ids=lambda case: case["profile"])
def test_profile_name(case: dict[str, Any]) -> None:
    """Profile names map to namespaces and service accounts, and back."""
    assert parse_namespace_profile(case["profile"]) == case.get("namespace")
    account = (case["sa_namespace"], case["sa"]) if "sa" in case else None
    assert parse_service_account_profile(case["profile"]) == account
    if "namespace" in case:
        assert namespace_profile_name(case["namespace"]) == case["profile"]
    if account:
        assert service_account_profile_name(*account) == case["profile"]
