"""Metrics of the index that finds the members of ip sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.felix import until
from tests.support.fv import POD_NAMESPACE, Lab
from tests.support.matrix import PATIENCE
from tests.support.objects import Object, global_policy
from tests.support.scraping import metrics

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node with two pods that differ in a label."""
    with Lab(FELIX_PROMETHEUSMETRICSENABLED="true") as lab:
        for number in (0, 1):
            lab.pod(f"w{number}", foo=str(number), common="x")
        yield lab.settled()


def from_selector(name: str, selector: str, **source: str) -> Object:
    """A policy for all pods that needs the set of what a selector picks."""
    rule = {"action": "Allow", "source": {"selector": selector, **source}}
    return global_policy(name, selector="all()", types=["Ingress"], ingress=[rule])


def test_selectors_show_how_they_are_evaluated(lab: Lab) -> None:
    """One that asks for a label looks at its holders; one that does not looks at everything; a namespace's, at it."""
    [node] = lab.nodes

    def index() -> dict[str, float]:
        start = "felix_label_index_"
        return {name.removeprefix(start): value for name, value in metrics(node).items() if name.startswith(start)}

    start = until(index, timeout=PATIENCE)
    assert start["num_endpoints"] == 2
    assert start['num_active_selectors{optimized="true"}'] == start['num_active_selectors{optimized="false"}'] == 0
    assert start['selector_evals{result="true"}'] == start['selector_evals{result="false"}'] == 0

    lab.apply(from_selector("one", "foo == '0'"))
    first = index()
    assert first['strategy_evals{strategy="endpoint-single-value"}'] == 1
    assert (first['selector_evals{result="true"}'], first['selector_evals{result="false"}']) == (1, 0)
    assert first['num_active_selectors{optimized="true"}'] == 1

    lab.apply(from_selector("two", "bar == 'biff' || foo == '1'"))
    second = index()
    assert second['strategy_evals{strategy="endpoint-full-scan"}'] == 1
    assert second['selector_evals{result="false"}'] == 1
    assert second['num_active_selectors{optimized="false"}'] == 1

    lab.apply(from_selector("three", "common == 'x'", namespaceSelector=f"projectcalico.org/name == '{POD_NAMESPACE}'"))
    assert index()['num_active_selectors{optimized="true"}'] == 2

    lab.delete(*(from_selector(name, "all()") for name in ("one", "two", "three")))
    last = index()
    assert last['num_active_selectors{optimized="true"}'] == last['num_active_selectors{optimized="false"}'] == 0
    assert last["num_endpoints"] == 2
