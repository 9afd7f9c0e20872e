"""Kubernetes policies as the API server would take or refuse them, before they are converted."""

from __future__ import annotations

from typing import Any

import pytest

from calipy.errors import InvalidInputError
from calipy.policy.kubernetes import ConversionError, admit_network_policy, convert_network_policy


def _document(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {}, **spec}}


@pytest.mark.parametrize(
    ("spec", "types"),
    [({}, ["Ingress"]), ({"egress": [{}]}, ["Ingress", "Egress"]), ({"policyTypes": ["Egress"]}, ["Egress"])],
)
def test_policy_types_default(spec: dict[str, Any], types: list[str]) -> None:
    """Absent types are Ingress, plus Egress when there are egress rules."""
    assert admit_network_policy(_document(**spec))["spec"]["policyTypes"] == types


def test_the_document_is_not_touched() -> None:
    """Filling in defaults leaves the caller's document as it was."""
    document = _document(ingress=[{"ports": [{"port": 80}]}])
    assert admit_network_policy(document)["spec"]["ingress"][0]["ports"][0]["protocol"] == "TCP"
    assert document == _document(ingress=[{"ports": [{"port": 80}]}])


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}, "spec.ingress[0].from[0].ipBlock.cidr"),
        (
            {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]},
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]"),
        (
            {"ingress": [{"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
            "spec.ingress[0].from[0]",
        ),
        ({"ingress": [{"ports": [{"protocol": "ICMP"}]}]}, "spec.ingress[0].ports[0].protocol"),
        ({"ingress": [{"ports": [{"endPort": 90}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": "all"}, "spec.ingress"),
        ({"policyTypes": ["Ingress", "Out"]}, "spec.policyTypes[1]"),
        ({"policyTypes": "Ingress"}, "spec.policyTypes"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
            "spec.podSelector.matchExpressions[0].operator",
        ),
    ],
)
def test_refusals_name_their_field(spec: dict[str, Any], field: str) -> None:
    """What the API server would refuse is refused here too, naming the field: nothing opens by a slip."""
    with pytest.raises(InvalidInputError) as caught:
        admit_network_policy(_document(**spec))
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize("document", [{}, {"metadata": {"name": "p"}}, {"metadata": {"namespace": "n"}, "spec": {}}])
def test_nameless_documents_are_refused(document: dict[str, Any]) -> None:
    """A policy without name or namespace is no policy."""
    with pytest.raises(InvalidInputError):
        convert_network_policy(document)


def test_bad_rules_are_left_out_and_told() -> None:
    """One rule that cannot be converted does not take the others with it, and is not silent."""
    document = _document(ingress=[{"ports": [{"port": 9, "endPort": 1}]}, {"ports": [{"port": 80}]}])
    with pytest.raises(ConversionError) as caught:
        convert_network_policy(document)
    assert len(caught.value.errors) == 1
    assert [rule.destination.ports for rule in caught.value.partial.spec.ingress] == [(80,)]
    with pytest.raises(ConversionError):
        admit_network_policy(document)
