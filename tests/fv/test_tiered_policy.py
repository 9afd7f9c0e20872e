"""Theme ``tiered_policy``: tiers in their order, Pass, and what happens at a tier's end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fv import Lab
from tests.support.objects import Object, global_policy, make, network_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A server and two clients, one of them on another node."""
    with Lab(nodes=2) as lab:
        here, there = lab.nodes
        for name, node in (("server", here), ("near", here), ("far", there)):
            lab.pod(name, node, app=name)
        yield lab.settled()


def tier(name: str, order: float | None, action: str = "Deny") -> Object:
    """A tier."""
    return make("Tier", name, {"order": order, "defaultAction": action})


def tcp(action: str, *ports: int) -> dict[str, Any]:
    """A rule for TCP ports."""
    return rule(action, protocol="TCP", destination={"ports": list(ports)})


def server_policy(tier: str, *rules: dict[str, Any], name: str = "p", **more: Any) -> Object:
    """The server's policy of a tier."""
    spec = {"selector": "app == 'server'", "types": ["Ingress"], "ingress": list(rules), "tier": tier, **more}
    return global_policy(f"{tier}.{name}", **spec)


def both(lab: Lab, text: str) -> None:
    """What the clients of both nodes get from the server."""
    server, near, far = lab.pods
    lab.expect({(near, server): text, (far, server): text})


def test_tiers_are_walked_by_their_order(lab: Lab) -> None:
    """The first tier that decides wins; changing the order changes the verdict; no order comes last but the default."""
    lab.apply(tier("a", 20), tier("b", 10))
    lab.apply(server_policy("a", tcp("Deny", 80), tcp("Allow", 81)), server_policy("b", tcp("Allow", 80), rule("Pass")))
    both(lab, "tcp46/80,81 !tcp46/82")
    lab.apply(tier("a", 5))
    both(lab, "!tcp46/80 tcp46/81 !tcp46/82")
    lab.apply(tier("a", None))
    both(lab, "tcp46/80,81 !tcp46/82")


def test_pass_goes_on_with_the_next_tier(lab: Lab) -> None:
    """Pass skips the rest of its tier; after the last tier the profile decides."""
    lab.apply(tier("a", 10), tier("b", 20))
    first = server_policy("a", tcp("Pass", 80, 81), order=1)
    second = server_policy("a", tcp("Deny", 80), tcp("Allow", 82), name="q", order=2)
    lab.apply(first, second, server_policy("b", tcp("Deny", 81), tcp("Allow", 80)))
    both(lab, "tcp46/80 !tcp46/81 tcp46/82 !tcp46/83")
    lab.delete(server_policy("b"))
    both(lab, "tcp46/80,81,82 !tcp46/83")
    server, *_ = lab.pods
    lab.apply(server.object(profiles=()))
    both(lab, "!tcp46/80 !tcp46/81 tcp46/82 !tcp46/83")


def test_end_of_a_tier(lab: Lab) -> None:
    """A tier that selected an endpoint and did not decide denies, unless its default action is Pass."""
    server, near, _ = lab.pods
    lab.apply(tier("a", 10), server_policy("a", tcp("Allow", 80)))
    lab.apply(server_policy("default", rule("Allow")))
    both(lab, "tcp46/80 !tcp46/81")
    lab.expect({(server, near): "tcp46/81"})  # the other direction, and endpoints that it does not select
    lab.apply(tier("a", 10, "Pass"))
    both(lab, "tcp46/80,81")
    lab.apply(server_policy("default", tcp("Deny", 81), rule("Allow")))
    both(lab, "tcp46/80 !tcp46/81 tcp46/82")
    lab.apply(tier("a", 10))
    both(lab, "tcp46/80 !tcp46/81 !tcp46/82")


def test_a_tier_with_staged_policies_only_is_not_there(lab: Lab) -> None:
    """Staged policies decide nothing and bring no end of tier; a real one beside them does."""
    lab.apply(tier("a", 10))
    spec = {"selector": "app == 'server'", "types": ["Ingress"], "ingress": [rule("Deny")], "tier": "a"}
    lab.apply(make("StagedGlobalNetworkPolicy", "a.staged", spec))
    both(lab, "tcp46/80,81")
    lab.apply(server_policy("a", tcp("Allow", 80)))
    both(lab, "tcp46/80 !tcp46/81")


def test_namespaced_policies_in_tiers(lab: Lab) -> None:
    """A NetworkPolicy in a tier stands among the global ones by its order, and selects in its namespace only."""
    lab.apply(tier("a", 10), server_policy("a", tcp("Deny", 80), rule("Pass"), order=2))
    spec = {"selector": "app == 'server'", "types": ["Ingress"], "ingress": [tcp("Allow", 80)], "tier": "a", "order": 1}
    lab.apply(network_policy("a.first", namespace="fv", **spec))
    both(lab, "tcp46/80,81")
    lab.apply(network_policy("a.first", namespace="fv", **{**spec, "order": 3}))
    both(lab, "!tcp46/80 tcp46/81")


def test_egress(lab: Lab) -> None:
    """Tiers decide on egress likewise, each direction for itself."""
    server, near, far = lab.pods
    lab.apply(tier("a", 10))
    spec = {"selector": "app == 'near'", "types": ["Egress"], "tier": "a"}
    lab.apply(global_policy("a.out", egress=[tcp("Allow", 80), tcp("Pass", 81)], **spec))
    open_, shut = "tcp46/80,81", "!tcp46/82"
    lab.expect({(near, server): f"{open_} {shut}", (near, far): f"{open_} {shut}", (server, near): "tcp46/82"})
    lab.apply(global_policy("rest", selector="app == 'near'", types=["Egress"], egress=[tcp("Deny", 81)]))
    lab.expect({(near, server): "tcp46/80 !tcp46/81,82"})
