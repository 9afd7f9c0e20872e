"""Network-policy cases as data: states, and which cells are denied all the way from one state to the next."""

from __future__ import annotations

from typing import Any

import pytest

from calipy.conformance.netpol_case import Case
from calipy.conformance.netpol_packets import closed_throughout


def _policy(direction: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"shut-{direction.lower()}", "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": [direction]},
    }


SHUT = _policy("Ingress", "a")
DELETE = {
    "delete": {"apiVersion": SHUT["apiVersion"], "kind": "NetworkPolicy", "name": "shut-ingress", "namespace": "a"}
}
EXPECT = {
    "endpoints": ["a/x", "b/y", "ext:e"],
    "tables": {"tcp/80": {"a/x": "SAA", "b/y": "DSA", "ext:e": "DA-"}, "udp/80+sport=9": {"b/y": "DSA"}},
}
CLOSED = [("tcp/80", "b/y", "a/x", "D"), ("tcp/80", "ext:e", "a/x", "D")]


def case(*actions: dict[str, Any]) -> Case:
    pods = [
        {"namespace": "a", "name": "x", "node": "n", "ip": "10.65.1.1", "labels": {}},
        {"namespace": "b", "name": "y", "node": "n", "ip": "10.65.1.2", "labels": {}},
    ]
    document = {
        "nodes": [{"name": "n", "ip": "172.20.0.11"}],
        "namespaces": [{"name": "a", "labels": {}}, {"name": "b", "labels": {}}],
        "pods": pods,
        "externals": [{"name": "e", "ip": "192.0.2.1"}],
        "policies": [SHUT],
        "expect": EXPECT,
        "steps": [{"name": "step", "actions": list(actions), "expect": EXPECT}],
    }
    return Case("id", "f", "t", (), document)


def test_states_keep_every_stage_of_a_step() -> None:
    """A step of two actions has two clusters; the first one is that in between, earlier ones are not changed."""
    start, step = case(DELETE, {"apply": SHUT}).states()
    kinds = [[r.kind for r in cluster.resources()].count("NetworkPolicy") for cluster in (start.cluster, *step.changes)]
    assert kinds == [1, 0, 1]
    assert step.cluster is step.changes[-1]


@pytest.mark.parametrize(
    ("actions", "closed"),
    [
        (({"setPodLabels": {"pod": "b/y", "labels": {"k": "v"}}},), CLOSED),
        ((DELETE, {"apply": SHUT}), []),
        (({"apply": {**SHUT, "metadata": {"name": "other", "namespace": "a"}}}, DELETE), CLOSED),
        (
            ({"deletePod": "b/y"}, {"addPod": {"namespace": "b", "name": "y", "node": "n", "ip": "10.65.1.2"}}),
            CLOSED[1:],
        ),
        (({"apply": _policy("Egress", "b")}, {"apply": _policy("Egress", "a")}), CLOSED[1:]),
        (({"addNamespace": {"name": "c"}}, {"deleteNamespace": "c"}), []),
    ],
    ids=[
        "relabelled",
        "policy away for a moment",
        "policy replaced",
        "pod away for a moment",
        "closed elsewhere too",
        "namespace goes",
    ],
)
def test_closed_throughout(actions: tuple[dict[str, Any], ...], closed: list[tuple[str, ...]]) -> None:
    """Only cells between ends that stay, and that nothing opens on the way."""
    start, step = case(*actions).states()
    assert closed_throughout(start, step) == closed
