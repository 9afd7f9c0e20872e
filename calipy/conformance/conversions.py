"""Kubernetes objects to Calico's, and the names derived from them (``k8s-conversion/conversion.json``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from calipy.conformance.bench import Bench
from calipy.conformance.report import CaseResult
from calipy.conformance.volatile import Matcher, Mismatch
from calipy.datastore import gojson, names
from calipy.datastore.codec import write_resource
from calipy.errors import InvalidInputError
from calipy.policy import kubernetes, kubernetes_pod

CONVERTERS: Final[dict[str, Callable[[Any], Any]]] = {
    "NetworkPolicy": kubernetes.convert_network_policy,
    "Namespace": kubernetes.convert_namespace,
    "ServiceAccount": kubernetes.convert_service_account,
}
_WORKLOAD_PARTS: Final = ("Pod", "ContainerID", "Workload")


def detect(_path: Path, document: Any) -> bool:
    """A JSON file of Kubernetes objects and what becomes of them."""
    cases = document.get("cases") if isinstance(document, dict) else None
    return (
        isinstance(cases, list)
        and bool(cases)
        and all(isinstance(one, dict) and ("result" in one or "results" in one or "error" in one) for one in cases)
        and all("kind" in one and "input" in one for one in cases)
    )


async def run(name: str, document: Any, _bench: Bench) -> list[CaseResult]:
    """Run all conversions and names."""
    results = [_result(name, case["id"], case, _convert) for case in document["cases"]]
    for group, check in (
        ("interface_names", _interface_name),
        ("profile_names", _profile_name),
        ("endpoint_names", _endpoint_name),
    ):
        for number, case in enumerate(document.get(group, ()), 1):
            results.append(_result(name, f"{group}-{number}", {"theme": group, **case}, check))
    return results


def _result(name: str, case_id: str, case: dict[str, Any], check: Callable[[dict[str, Any]], None]) -> CaseResult:
    themes = (case["theme"],) if case.get("theme") else ()
    if check is _convert and case["kind"] == "Pod":
        check = _convert_pod
    elif check is _convert and case["kind"] not in CONVERTERS:
        return CaseResult(name, case_id, "skipped", themes, f"conversion of a {case['kind']}")
    try:
        check(case)
    except Mismatch as difference:
        return CaseResult(name, case_id, "failed", themes, str(difference))
    return CaseResult(name, case_id, "passed", themes)


def _convert(case: dict[str, Any]) -> None:
    try:
        converted = CONVERTERS[case["kind"]](case["input"])
        failed = False
    except kubernetes.ConversionError as error:
        converted, failed = error.partial, True
    except InvalidInputError as error:
        raise Mismatch(f"refused: {error}") from None
    if failed != bool(case.get("error")):
        raise Mismatch(f"expected {'an' if case.get('error') else 'no'} error")
    found = write_resource(converted)
    if "result" in case:
        Matcher().check(case["result"]["value"]["spec"], found["spec"], "spec")
    if "etcd_object" in case:
        Matcher().check(case["etcd_object"], found)


def _convert_pod(case: dict[str, Any]) -> None:
    found: dict[str, Any] = {"error": False, "results": []}
    try:
        found["results"].append({"value": gojson.write(kubernetes_pod.convert_pod(case["input"]))})
    except InvalidInputError:
        found["error"] = True
    state = kubernetes_pod.pod_state(case["input"])
    found |= {"valid": state.valid, "ready": state.ready, "finished": state.finished}
    expected = {
        "error": bool(case.get("error")),
        "results": [{"value": one["value"]} for one in case.get("results", ())],
        **{field: case[field] for field in ("valid", "ready", "finished")},
    }
    Matcher().check(expected, found)


def _interface_name(case: dict[str, Any]) -> None:
    Matcher().check(case["interface"], names.kubernetes_interface(case["namespace"], case["pod"]))


def _profile_name(case: dict[str, Any]) -> None:
    account = kubernetes.parse_service_account_profile(case["profile"])
    found: dict[str, str] = {}
    if (namespace := kubernetes.parse_namespace_profile(case["profile"])) is not None:
        found["namespace"] = namespace
    if account is not None:
        found |= {"sa_namespace": account[0], "sa": account[1]}
    Matcher().check({field: case[field] for field in ("namespace", "sa_namespace", "sa") if field in case}, found)


def _endpoint_name(case: dict[str, Any]) -> None:
    try:
        parsed = names.parse_workload_endpoint(case["name"])
    except InvalidInputError:
        if not case.get("error"):
            raise Mismatch(f"{case['name']}: refused") from None
        return
    if case.get("error"):
        raise Mismatch(f"{case['name']}: expected an error, got {parsed}")
    expected = case["parsed"]
    found = {"Node": parsed.node, "Orchestrator": parsed.orchestrator, "Endpoint": parsed.endpoint}
    found |= {part: parsed.workload for part in _WORKLOAD_PARTS if part in expected}
    Matcher().check({"Endpoint": "", **expected}, found, case["name"])
