"""A policy that is needed on every node is there before its first pod: ``policy_perf_hint``,
``iptables_force_programming``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fv import Lab
from tests.support.objects import Object, global_policy

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node with a pod that the policy does not select."""
    with Lab() as lab:
        lab.pod("friend", friend="yes")
        yield lab.settled()


def policy(**spec: Any) -> Object:
    ingress = [{"action": "Allow", "source": {"selector": "friend == 'yes'"}}]
    return global_policy("hinted", selector="app == 'later'", types=["Ingress"], ingress=ingress, **spec)


def programmed(lab: Lab) -> tuple[bool, bool]:
    """Whether the kernel has the policy's rules, and the set that they need with its member."""
    node, friend = lab.nodes[0], lab.pods[0]
    rules = [rule for rule in node.rules() if rule.startswith("-A cali-pi-gnp/hinted ")]
    return bool(rules), any(f" {friend.ip}" in line for line in node.ns.run("ipset", "save").splitlines())


def test_a_hinted_policy_is_there_without_users(lab: Lab) -> None:
    """Its chain and its sets exist while it selects no pod of the node, and go with the hint, or with the policy."""
    lab.apply(policy())
    assert programmed(lab) == (False, False)
    lab.apply(policy(performanceHints=["AssumeNeededOnEveryNode"]))
    assert programmed(lab) == (True, True)
    lab.apply(policy())
    assert programmed(lab) == (False, False)
    lab.apply(policy(performanceHints=["AssumeNeededOnEveryNode"]))
    lab.delete(policy())
    assert programmed(lab) == (False, False)


def test_a_pod_that_comes_later_finds_it(lab: Lab) -> None:
    """When a pod uses it and goes again, the chain stays."""
    lab.apply(policy(performanceHints=["AssumeNeededOnEveryNode"]))
    later = lab.pod("later", app="later")
    lab.sync()
    assert programmed(lab) == (True, True)
    lab.delete(later.object())
    assert programmed(lab) == (True, True)
