"""Host endpoints in the calculation graph."""

from __future__ import annotations

from typing import Any

from calipy.datastore.keys import ResourceKey
from calipy.felix.graph.graph import Graph
from calipy.felix.messages import Changes, HostEndpoint
from tests.support.objects import Object, global_policy, gone, make

ALLOW = [{"action": "Allow"}]


def _host(name: str = "n1-eth0", *, node: str = "n1", labels: dict[str, str] | None = None, **spec: Any) -> Object:
    fields = {"node": node, "interfaceName": "eth0", **spec}
    return make("HostEndpoint", name, fields, labels={"role": "host"} if labels is None else labels)


def _running(*objects: Object) -> tuple[Graph, Changes]:
    graph = Graph("n1")
    for key, value in objects:
        graph.on_update(key, value)
    graph.on_in_sync()
    return graph, graph.flush()


def _step(graph: Graph, *objects: Object) -> Changes:
    for key, value in objects:
        graph.on_update(key, value)
    return graph.flush()


def _only(changes: Changes) -> HostEndpoint:
    [endpoint] = changes.host_endpoints.values()
    assert endpoint is not None
    return endpoint


def test_each_policy_is_in_its_list() -> None:
    """Untracked and pre-DNAT stand apart; what holds for forwarded traffic is also in the normal list."""
    common = {"selector": "all()", "types": ["Ingress", "Egress"], "ingress": ALLOW}
    _, changes = _running(
        _host(),
        global_policy("normal", order=2, **common),
        global_policy("forward", order=1, applyOnForward=True, **common),
        global_policy("early", preDNAT=True, applyOnForward=True, selector="all()", types=["Ingress"], ingress=ALLOW),
        global_policy("raw", doNotTrack=True, applyOnForward=True, **common),
    )
    endpoint = _only(changes)

    def names(tiers: tuple[Any, ...]) -> list[tuple[list[str], list[str]]]:
        return [([p.name for p in tier.ingress], [p.name for p in tier.egress]) for tier in tiers]

    assert names(endpoint.tiers) == [(["forward", "normal"], ["forward", "normal"])]
    assert names(endpoint.forward) == [(["forward"], ["forward"])]
    assert names(endpoint.pre_dnat) == [(["early"], [])]
    assert names(endpoint.untracked) == [(["raw"], ["raw"])]
    assert {p.id.name: (p.untracked, p.pre_dnat) for p in changes.policies.values() if p} == {
        "normal": (False, False),
        "forward": (False, False),
        "early": (False, True),
        "raw": (True, False),
    }


def test_only_those_of_this_node() -> None:
    """Another node's host endpoint activates nothing here, and moves in and out by its node's name."""
    policy = global_policy("p", selector="role == 'host'", ingress=ALLOW)
    graph, changes = _running(_host(node="n2"), policy)
    assert not changes.host_endpoints
    assert not changes.policies
    changes = _step(graph, _host(expectedIPs=["192.0.2.1"], profiles=["open"]))
    assert _only(changes).expected_ips == ("192.0.2.1",)
    assert set(changes.profiles) == {"open"}
    assert len(changes.policies) == 1
    changes = _step(graph, _host(node="n2"))
    assert changes.host_endpoints == {"n1-eth0": None}
    assert list(changes.policies.values()) == [None]


def test_labels_and_inherited_labels_decide() -> None:
    """A profile's labels count as for pods; a relabelled host endpoint loses the policy."""
    policy = global_policy("p", selector="site == 'x'", ingress=ALLOW)
    profile = make("Profile", "site", {"labelsToApply": {"site": "x"}})
    graph, changes = _running(_host(profiles=["site"]), profile, policy)
    assert _only(changes).tiers
    changes = _step(graph, _host(profiles=["site"], labels={"site": "y"}))
    assert not _only(changes).tiers
    assert list(changes.policies.values()) == [None]
    assert _step(graph, gone(_host())).host_endpoints == {"n1-eth0": None}


def test_one_that_is_nowhere_is_reported() -> None:
    """Neither interface nor address, or an address that is none: absent, and listed."""
    for spec in ({"interfaceName": ""}, {"expectedIPs": ["192.0.2.300"]}):
        graph, changes = _running(_host(**spec))
        assert not changes.host_endpoints
        assert set(graph.problems) == {ResourceKey("HostEndpoint", "n1-eth0")}
        assert _only(_step(graph, _host())).name == "n1-eth0"
        assert not graph.problems
