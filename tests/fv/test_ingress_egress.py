"""Theme ``ingress_egress``: policy speaks for the directions in its ``types``, and shuts them unless a rule opens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fv import Lab
from tests.support.objects import Object, global_policy, network_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

TO_PEER = [rule("Allow", destination={"selector": "app == 'peer'"})]
FROM_PEER = [rule("Allow", source={"selector": "app == 'peer'"})]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The pod in question and its peer on one node, a third pod on another."""
    with Lab(nodes=2) as lab:
        here, there = lab.nodes
        lab.pod("guarded", here, app="guarded")
        lab.pod("peer", here, app="peer")
        lab.pod("other", there, app="other")
        yield lab.settled()


def of_kind(kind: str, **spec: Any) -> Object:
    """The guarded pod's policy, of either kind."""
    if kind == "global":
        return global_policy("guard", selector="app == 'guarded'", **spec)
    return network_policy("guard", namespace="fv", selector="app == 'guarded'", **spec)


ALL = "tcp46/80 udp46/80 ping46"
NONE = "!tcp46/80 !udp46/80 !ping46"


SPECS = pytest.mark.parametrize(
    ("spec", "into", "out_of"),
    [
        ({"types": ["Ingress"]}, "none", "all"),
        ({"types": ["Egress"]}, "all", "none"),
        ({"types": ["Ingress", "Egress"]}, "none", "none"),
        ({"types": ["Ingress"], "ingress": FROM_PEER}, "peer", "all"),
        ({"types": ["Egress"], "egress": TO_PEER}, "all", "peer"),
        ({"types": ["Ingress", "Egress"], "ingress": FROM_PEER}, "peer", "none"),
        ({"types": ["Ingress", "Egress"], "egress": TO_PEER}, "none", "peer"),
        ({"types": ["Ingress", "Egress"], "ingress": FROM_PEER, "egress": TO_PEER}, "peer", "peer"),
        ({}, "none", "all"),
        ({"ingress": FROM_PEER}, "peer", "all"),
        ({"egress": TO_PEER}, "all", "peer"),
        ({"ingress": FROM_PEER, "egress": TO_PEER}, "peer", "peer"),
    ],
    ids=str,
)


@SPECS
def test_directions(lab: Lab, spec: dict[str, Any], into: str, out_of: str) -> None:
    """Without ``types`` the rules tell the direction; without rules, too, it is ingress. The other one stays open."""
    guarded, peer, other = lab.pods
    kind = "namespaced" if into == "peer" or not spec else "global"
    lab.apply(of_kind(kind, **spec))
    from_peer, from_other = {"all": (ALL, ALL), "none": (NONE, NONE), "peer": (ALL, NONE)}[into]
    to_peer, to_other = {"all": (ALL, ALL), "none": (NONE, NONE), "peer": (ALL, NONE)}[out_of]
    lab.expect(
        {
            (peer, guarded): from_peer,
            (other, guarded): from_other,
            (guarded, peer): to_peer,
            (guarded, other): to_other,
            (peer, other): ALL,
        }
    )


def test_both_ends_have_to_agree(lab: Lab) -> None:
    """What one end's egress allows and the other's ingress does not, or the other way round, does not pass."""
    guarded, peer, other = lab.pods
    to_web = [rule("Allow", protocol="TCP", destination={"ports": [80, 81]})]
    from_web = [rule("Allow", protocol="TCP", destination={"ports": [81, 82]})]
    lab.apply(
        of_kind("global", types=["Egress"], egress=to_web),
        global_policy("others", selector="app in {'peer', 'other'}", types=["Ingress"], ingress=from_web),
    )
    both = "!tcp46/80 tcp46/81 !tcp46/82 !udp46/81"
    lab.expect({(guarded, peer): both, (guarded, other): both, (peer, other): "!tcp46/80 tcp46/81,82"})


def test_an_open_direction_comes_back_with_the_end_of_the_policy(lab: Lab) -> None:
    """Deleting the policy, or the label that it selects, opens again; so does taking the direction out of ``types``."""
    guarded, peer, other = lab.pods
    shut = of_kind("global", types=["Ingress", "Egress"])
    lab.apply(shut)
    lab.expect({(peer, guarded): NONE, (guarded, other): NONE})
    lab.apply(of_kind("global", types=["Egress"]))
    lab.expect({(peer, guarded): ALL, (guarded, other): NONE})
    lab.apply(shut, guarded.object(app="another"))
    lab.expect({(peer, guarded): ALL, (guarded, other): ALL})
    lab.apply(guarded.object())
    lab.expect({(peer, guarded): NONE, (guarded, other): NONE})
    lab.delete(shut)
    lab.expect({(peer, guarded): ALL, (guarded, other): ALL})
