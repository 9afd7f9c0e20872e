"""Theme ``cluster_network_policy``: administrators' tiers before, and baseline tiers after, what namespaces decide.

Cluster network policies themselves come from Kubernetes' API; where the datastore is etcd, their tiers hold Calico's
own policies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from calipy.errors import InvalidInputError
from tests.support.fv import Lab
from tests.support.objects import Object, global_policy, make, network_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

ADMIN, BASELINE = "kube-admin", "kube-baseline"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A server and a client on one node."""
    with Lab() as lab:
        for name in ("server", "client"):
            lab.pod(name, app=name)
        yield lab.settled()


def tcp(action: str, *ports: int) -> dict[str, Any]:
    """A rule for TCP ports."""
    return rule(action, protocol="TCP", destination={"ports": list(ports)})


def policy(tier: str, *rules: dict[str, Any], **more: Any) -> Object:
    """A policy of the server in a tier."""
    spec = {"selector": "app == 'server'", "types": ["Ingress"], "ingress": list(rules), "tier": tier, **more}
    return global_policy(f"{tier}.p", **spec)


def namespaces(*rules: dict[str, Any]) -> Object:
    """What the namespace says about the server."""
    return network_policy("own", namespace="fv", selector="app == 'server'", types=["Ingress"], ingress=list(rules))


def test_administrators_come_first(lab: Lab) -> None:
    """Allow and deny there are final; Pass and what is not mentioned go on to the namespace's policies."""
    server, client = lab.pods
    lab.apply(policy(ADMIN, tcp("Deny", 80), tcp("Allow", 81), tcp("Pass", 82)), namespaces(tcp("Allow", 80, 82, 83)))
    lab.expect({(client, server): "!tcp46/80 tcp46/81,82,83 !tcp46/84"})
    lab.delete(namespaces())
    lab.expect({(client, server): "!tcp46/80 tcp46/81,82,83,84"})


def test_the_baseline_comes_last(lab: Lab) -> None:
    """It decides only where no namespace's policy selects the endpoint; then the profile has the rest."""
    server, client = lab.pods
    lab.apply(policy(BASELINE, tcp("Deny", 80), tcp("Allow", 81)))
    lab.expect({(client, server): "!tcp46/80 tcp46/81,82"})
    lab.apply(namespaces(tcp("Allow", 80)))
    lab.expect({(client, server): "tcp46/80 !tcp46/81 !tcp46/82"})
    lab.apply(namespaces(tcp("Allow", 80), tcp("Pass", 82)))
    lab.expect({(client, server): "tcp46/80 !tcp46/81 tcp46/82"})
    lab.apply(server.object(profiles=()))
    lab.expect({(client, server): "tcp46/80 !tcp46/81 !tcp46/82"})


def test_both_around_calico_tiers(lab: Lab) -> None:
    """A tier of a lower order stands before the administrators', one of a higher order than the default after it."""
    server, client = lab.pods
    lab.apply(make("Tier", "security", {"order": 500, "defaultAction": "Pass"}))
    lab.apply(policy("security", tcp("Deny", 81)), policy(ADMIN, tcp("Allow", 80, 81)), policy(BASELINE, rule("Deny")))
    lab.expect({(client, server): "tcp46/80 !tcp46/81 !tcp46/82"})


@pytest.mark.parametrize(("name", "order"), [(ADMIN, 1_000), (BASELINE, 10_000_000)])
def test_their_place_is_fixed(lab: Lab, name: str, order: int) -> None:
    """Neither order nor action of these tiers can be changed, nor can they be deleted."""
    found = lab.datastore.client("get", "Tier", name)
    assert (found.spec.order, found.spec.default_action) == (order, "Pass")
    for spec in ({"order": 7, "defaultAction": "Pass"}, {"order": order, "defaultAction": "Deny"}):
        with pytest.raises(InvalidInputError):
            lab.apply(make("Tier", name, spec))
    with pytest.raises(InvalidInputError):
        lab.delete(make("Tier", name, {}))
