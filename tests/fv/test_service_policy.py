"""Theme ``service_policy``, for a datastore without Services: a rule about a Service is about nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.objects import global_policy, make, network_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

SERVICE = {"services": {"name": "web", "namespace": "fv"}}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A server and a client on one node."""
    with Lab() as lab:
        for name in ("server", "client"):
            lab.pod(name, app=name)
        yield lab.settled()


@pytest.mark.parametrize("tier", ["default", "early"])
@pytest.mark.parametrize(("direction", "side"), [("egress", "destination"), ("ingress", "source")])
def test_allowed_service(lab: Lab, tier: str, direction: str, side: str) -> None:
    """Allowing a Service allows nothing, in any tier and direction: what is not known must not open."""
    server, client = lab.pods
    lab.apply(make("Tier", "early", {"order": 10}))
    allow = rule("Allow", **{side: SERVICE})
    selector = "app == 'client'" if direction == "egress" else "app == 'server'"
    types = [direction.capitalize()]
    lab.apply(global_policy("svc", selector=selector, types=types, tier=tier, **{direction: [allow]}))
    lab.expect({(client, server): "!tcp46/80 !udp46/80 !ping46", (server, client): "tcp46/80"})


@pytest.mark.parametrize("tier", ["default", "early"])
@pytest.mark.parametrize(("direction", "side"), [("egress", "destination"), ("ingress", "source")])
def test_denied_service(lab: Lab, tier: str, direction: str, side: str) -> None:
    """Denying a Service denies nobody; the next rule decides."""
    server, client = lab.pods
    lab.apply(make("Tier", "early", {"order": 10}))
    rules = [rule("Deny", **{side: SERVICE}), rule("Allow", protocol="TCP")]
    selector = "app == 'client'" if direction == "egress" else "app == 'server'"
    types = [direction.capitalize()]
    lab.apply(global_policy("svc", selector=selector, types=types, tier=tier, **{direction: rules}))
    lab.expect({(client, server): "tcp46/80 !udp46/80 !ping46"})


def test_namespaced_policy(lab: Lab) -> None:
    """A namespaced policy's Service is of its own namespace unless it says otherwise, and as unknown there."""
    server, client = lab.pods
    for service in ({"name": "web"}, {"name": "web", "namespace": "elsewhere"}):
        allow = rule("Allow", destination={"services": service})
        policy = network_policy("svc", namespace="fv", selector="app == 'client'", types=["Egress"], egress=[allow])
        lab.apply(policy)
        lab.expect({(client, server): "!tcp46/80"})
    assert not lab.nodes[0].felix()["errors"]
