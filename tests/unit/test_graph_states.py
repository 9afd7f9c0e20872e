"""The graph's output depends on the present state only: states replayed forward, reversed, squashed, split, with noise.

Each scenario is a list of states; a state is the whole datastore at one moment. Whatever way the graph is led through
them, what is enforced at the end of a state must be what a graph that only ever saw that state enforces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calipy.datastore.keys import Key
from calipy.felix.graph.graph import Graph
from tests.support.enforced import Enforced, enforce
from tests.support.objects import Object, block, global_policy, make, namespace_profile, network_policy, pod

State = dict[Key, Any]

WEB = pod("web", "10.65.1.1", app="web", ports={"http": 8080})
WEB_MOVED = pod("web", "10.65.1.9", app="web", ports={"http": 9090})
DB = pod("db", "10.65.1.2", app="db")
DB_IS_WEB = pod("db", "10.65.1.2", app="web")
REMOTE = pod("far", "10.65.2.1", "fd00:65:2::1", node="n2", app="web", ports={"http": 8080})
SHARES = pod("twin", "10.65.2.1", node="n2", app="web")
BILLING = pod("bill", "10.65.2.3", node="n2", namespace="billing", app="web")
SHOP, SHOP_RED = namespace_profile("shop", team="blue"), namespace_profile("shop", team="red")
BILLING_SPACE = namespace_profile("billing", team="red")
ALLOW_WEB = network_policy(
    "allow-web",
    selector="app == 'db'",
    ingress=[{"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'web'"}}],
)
ALLOW_RED = network_policy(
    "allow-web",
    selector="app == 'db'",
    order=10,
    ingress=[{"action": "Allow", "source": {"namespaceSelector": "team == 'red'", "notSelector": "app == 'db'"}}],
)
NAMED_PORT = network_policy(
    "named",
    selector="all()",
    types=["Egress"],
    egress=[{"action": "Allow", "protocol": "TCP", "destination": {"selector": "app == 'web'", "ports": ["http", 53]}}],
)
SECURITY = make("Tier", "security", {"order": 10, "defaultAction": "Pass"})
SECURITY_LAST = make("Tier", "security", {"order": 2_000_000, "defaultAction": "Deny"})
GUARD = global_policy("guard", tier="security", order=1, selector="app == 'web'", ingress=[{"action": "Pass"}])
STAGED = make("StagedNetworkPolicy", "later", {"selector": "all()", "ingress": [{"action": "Deny"}]}, namespace="shop")
EVERYWHERE = global_policy("hint", selector="app == 'nobody'", performanceHints=["AssumeNeededOnEveryNode"])
BAD_SELECTOR = network_policy("allow-web", selector="app = 'db'")
BAD_RULE = network_policy("allow-web", selector="app == 'db'", ingress=[{"action": "Allow", "source": {"nets": ["x"]}}])
OUTSIDE = make("GlobalNetworkSet", "outside", {"nets": ["192.0.2.0/24", "0.0.0.0/0"]}, labels={"app": "web"})
INSIDE = make("NetworkSet", "inside", {"nets": ["10.65.2.1"]}, namespace="shop", labels={"app": "web"})
POOL_A = make("IPPool", "a", {"cidr": "10.65.0.0/16", "natOutgoing": True})
POOL_B = make("IPPool", "b", {"cidr": "10.65.0.0/16", "natOutgoing": False})
NODE = make("Node", "n1", {"bgp": {"ipv4Address": "172.20.0.11/24"}}, labels={"rack": "1"})
CONFIG = make("FelixConfiguration", "default", {"logPrefix": "a", "ipv6Support": False})
CONFIG_RACK = make("FelixConfiguration", "rack", {"logPrefix": "b", "nodeSelector": "rack == '1'"})
CONFIG_NODE = make("FelixConfiguration", "node.n1", {"logPrefix": "c"})

VXLAN = make("IPPool", "a", {"cidr": "10.65.0.0/16", "vxlanMode": "Always"})
VXLAN_CROSS = make("IPPool", "a", {"cidr": "10.65.0.0/16", "vxlanMode": "CrossSubnet"})
IPIP = make("IPPool", "a", {"cidr": "10.65.0.0/16", "ipipMode": "CrossSubnet"})
INNER = make("IPPool", "inner", {"cidr": "10.65.2.0/24", "ipipMode": "Always"})
VXLAN6 = make("IPPool", "six", {"cidr": "fd65::/112", "vxlanMode": "CrossSubnet"})
N1 = make("Node", "n1", {"bgp": {"ipv4Address": "172.20.0.11/24"}, "ipv4VXLANTunnelAddr": "10.65.1.1"})
N1_MOVED = make("Node", "n1", {"bgp": {"ipv4Address": "172.21.0.11/24", "ipv6Address": "fd20::11/64"}})
N2 = make("Node", "n2", {"bgp": {"ipv4Address": "172.20.0.12/24"}, "ipv4VXLANTunnelAddr": "10.65.2.1"})
N2_AWAY = make("Node", "n2", {"bgp": {"ipv4Address": "172.22.0.12/24"}, "ipv4VXLANTunnelAddr": "10.65.2.1"})
N2_BORROWS = make("Node", "n2", {"bgp": {"ipv4Address": "172.21.0.12/24"}, "ipv4VXLANTunnelAddr": "10.65.1.7"})
N3 = make("Node", "n3", {"bgp": {"ipv4Address": "172.20.0.13/24"}, "ipv4VXLANTunnelAddr": "10.65.2.1"})
N3_INSIDE = make("Node", "n3", {"bgp": {"ipv4Address": "10.65.2.9/24"}, "ipv4VXLANTunnelAddr": "10.65.9.9"})
B1, B1_LENDS, B1_LENT_ON = (block("10.65.1.0/28", "n1", **users) for users in ({}, {"_7": "n2"}, {"_7": "n3"}))
B2, B2_LENDS, B2_FREE = block("10.65.2.0/28", "n2"), block("10.65.2.0/28", "n2", _9="n3"), block("10.65.2.0/28", None)
B2_MOVED = block("10.65.2.0/28", "n1", _1="n3", _2="n1")
SINGLE, SIX = block("10.65.9.9/32", "n3", _0="n3"), block("fd65::100/122", "n2", _3="n1")
ALL_ROUTES = make("FelixConfiguration", "default", {"programClusterRoutes": "Enabled"})
NO_VXLAN = make("FelixConfiguration", "default", {"vxlanEnabled": False, "ipipEnabled": True})

SCENARIOS: dict[str, list[list[Object]]] = {
    "policy comes and goes": [
        [],
        [WEB, DB, REMOTE, SHOP],
        [WEB, DB, REMOTE, SHOP, ALLOW_WEB],
        [WEB, DB, REMOTE, SHOP],
        [],
    ],
    "policy changes": [
        [DB, REMOTE, BILLING, SHOP, BILLING_SPACE, ALLOW_WEB],
        [DB, REMOTE, BILLING, SHOP, BILLING_SPACE, ALLOW_RED],
        [DB, REMOTE, BILLING, SHOP, BILLING_SPACE, BAD_SELECTOR],
        [DB, REMOTE, BILLING, SHOP, BILLING_SPACE, BAD_RULE],
        [DB, REMOTE, BILLING, SHOP, BILLING_SPACE, ALLOW_WEB],
    ],
    "labels move": [
        [WEB, DB, ALLOW_WEB, SHOP],
        [WEB, DB_IS_WEB, ALLOW_WEB, SHOP],
        [WEB_MOVED, DB_IS_WEB, ALLOW_WEB, SHOP],
        [DB, ALLOW_WEB, SHOP],
    ],
    "namespace labels": [
        [DB, WEB, ALLOW_RED, SHOP],
        [DB, WEB, ALLOW_RED, SHOP_RED],
        [DB, WEB, ALLOW_RED],
        [DB, WEB, BILLING, BILLING_SPACE, ALLOW_RED],
    ],
    "named ports": [
        [DB, REMOTE, NAMED_PORT, SHOP],
        [DB, REMOTE, WEB, NAMED_PORT, SHOP],
        [DB, WEB_MOVED, NAMED_PORT, SHOP],
    ],
    "shared address": [
        [DB, REMOTE, SHARES, INSIDE, ALLOW_WEB, SHOP],
        [DB, SHARES, INSIDE, ALLOW_WEB, SHOP],
        [DB, INSIDE, ALLOW_WEB, SHOP],
        [DB, OUTSIDE, ALLOW_WEB, SHOP],
        [DB, REMOTE, ALLOW_WEB, SHOP],
    ],
    "tiers": [
        [WEB, DB, GUARD, ALLOW_WEB, SHOP],
        [WEB, DB, GUARD, SECURITY, ALLOW_WEB, SHOP],
        [WEB, DB, GUARD, SECURITY_LAST, ALLOW_WEB, STAGED, SHOP],
        [WEB, DB, SECURITY_LAST, ALLOW_WEB, EVERYWHERE, SHOP],
    ],
    "pools, hosts, configuration": [
        [POOL_A, NODE, CONFIG],
        [POOL_A, POOL_B, NODE, CONFIG, CONFIG_RACK],
        [POOL_B, CONFIG, CONFIG_RACK, CONFIG_NODE],
        [CONFIG_RACK, NODE],
    ],
    "cluster routes": [
        [VXLAN, N1, N2, B1, B2],
        [VXLAN, N1, N2_AWAY, B1, B2],
        [VXLAN, N1, N2, N3, B1_LENDS, B2_LENDS, SINGLE],
        [VXLAN_CROSS, N1, N2_BORROWS, N3, B1_LENT_ON, B2_MOVED],
        [IPIP, N1_MOVED, N2, N3_INSIDE, B1, B2_LENDS, SINGLE],
        [N1, N2, B1, B2],
    ],
    "cluster routes by pool and configuration": [
        [VXLAN, INNER, VXLAN6, N1_MOVED, N2, B1, B2, SIX],
        [VXLAN, VXLAN6, N2, B1, B2, SIX, ALL_ROUTES],
        [POOL_A, N1, N2, B1_LENDS, B2, ALL_ROUTES],
        [VXLAN, N1, N2, B1, B2_FREE, NO_VXLAN],
        [VXLAN, INNER, N1, N3_INSIDE, B2_FREE, B1_LENDS],
    ],
}


def _moves(old: State, new: State) -> Iterator[Object]:
    for key in old.keys() - new.keys():
        yield key, None
    for key, value in new.items():
        if old.get(key) is not value:
            yield key, value


def _walk(states: Iterable[State], *, flush_each: bool, noise: bool, sync_first: bool) -> Iterator[Enforced]:
    graph, enforced, present = Graph("n1"), Enforced(), State()
    if sync_first:
        graph.on_in_sync()
    for state in states:
        for key, value in _moves(present, state):
            if noise:
                graph.on_update(key, None)
                graph.on_update(key, value)
            graph.on_update(key, value)
            if flush_each:
                enforced.apply(graph.flush())
        present = state
        graph.on_in_sync()
        enforced.apply(graph.flush())
        yield enforced


@pytest.mark.parametrize("noise", [False, True], ids=["plain", "with spurious deletions and repetitions"])
@pytest.mark.parametrize("flush_each", [False, True], ids=["flush per state", "flush per update"])
@pytest.mark.parametrize("sync_first", [False, True], ids=["in-sync after the first state", "in-sync from the start"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forward", "reversed"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_way_leads_to_the_same_state(
    scenario: str, *, backwards: bool, sync_first: bool, flush_each: bool, noise: bool
) -> None:
    """After each state, what is enforced equals what a fresh graph makes of that state alone."""
    states = [dict(objects) for objects in SCENARIOS[scenario]]
    if backwards:
        states.reverse()
    walked = _walk(states, flush_each=flush_each, noise=noise, sync_first=sync_first)
    for state, enforced in zip(states, walked, strict=True):
        assert enforced == enforce(state.items())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_squashed(scenario: str) -> None:
    """Two states that follow each other within one flush leave no trace of the first."""
    states = [dict(objects) for objects in SCENARIOS[scenario]]
    for first, second in pairwise(states):
        graph, enforced = Graph("n1"), Enforced()
        graph.on_in_sync()
        for key, value in (*_moves({}, first), *_moves(first, second)):
            graph.on_update(key, value)
        enforced.apply(graph.flush())
        assert enforced == enforce(second.items())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_order_inside_a_state(scenario: str) -> None:
    """The order in which a snapshot's objects arrive does not matter."""
    for objects in SCENARIOS[scenario]:
        assert enforce(objects) == enforce(reversed(objects)) == enforce(sorted(objects, key=lambda o: repr(o[0])))


VARIANTS = list({id(found): found for states in SCENARIOS.values() for state in states for found in state}.values())
"""Every object of every scenario once; several may share a key."""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(VARIANTS), st.booleans(), st.booleans()), max_size=40), st.integers(0, 40))
def test_random_walks(steps: list[tuple[Object, bool, bool]], sync_at: int) -> None:
    """Any history of creations, changes and deletions, flushed at any time, leads to what its last state says."""
    graph, enforced, present = Graph("n1"), Enforced(), State()
    for number, ((key, value), exists, flush) in enumerate(steps):
        if number == sync_at:
            graph.on_in_sync()
        graph.on_update(key, value if exists else None)
        present.pop(key, None)
        if exists:
            present[key] = value
        if flush:
            enforced.apply(graph.flush())
    graph.on_in_sync()
    enforced.apply(graph.flush())
    assert enforced == enforce(present.items())
