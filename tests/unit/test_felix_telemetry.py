"""What Felix tells Prometheus follows what it knows and does."""

from __future__ import annotations

from calipy.datastore.syncer import InSync, Status
from calipy.felix import telemetry
from calipy.felix.daemon import Felix
from calipy.felix.graph.graph import Graph
from calipy.felix.graph.statistics import GraphStatistics, IndexStatistics
from calipy.felix.messages import Changes, IPSet, IPSetDelta
from calipy.metrics import REGISTRY
from tests.support.objects import Object, global_policy, gone, make, namespace_profile, network_policy, pod

DB = pod("db", "10.65.1.2", app="db")
WEB = pod("web", "10.65.2.1", node="n2", app="web")
SHOP = namespace_profile("shop", team="blue")


def _running(*objects: Object) -> Graph:
    graph = Graph("n1")
    for key, value in objects:
        graph.on_update(key, value)
    graph.on_in_sync()
    graph.flush()
    return graph


def _step(graph: Graph, *objects: Object) -> GraphStatistics:
    for key, value in objects:
        graph.on_update(key, value)
    graph.flush()
    return graph.statistics()


def _values() -> dict[str, float]:
    lines = (line.rpartition(" ") for line in REGISTRY.expose().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_totals_come_and_go() -> None:
    """Objects of the cluster are counted by kind, and those of this node apart."""
    graph = _running()
    empty = graph.statistics()
    host = make("HostEndpoint", "h", {"node": "n2", "interfaceName": "eth0"})
    objects = (
        DB,
        WEB,
        SHOP,
        host,
        make("Node", "n1", {}),
        make("Node", "n2", {}),
        make("Tier", "sec", {"order": 1}),
        network_policy("p", selector="app == 'db'", ingress=[{"action": "Allow", "source": {"selector": "has(app)"}}]),
        global_policy("elsewhere", selector="app == 'web'"),
    )
    full = _step(graph, *objects)
    assert full.local == {"endpoints": 1, "policies": 1, "selectors": 1}
    grown = {kind: full.cluster[kind] - empty.cluster[kind] for kind in full.cluster}
    assert grown == {
        "hosts": 2, "host_endpoints": 1, "workload_endpoints": 2, "tiers": 1, "policies": 2, "profiles": 1,
    }  # fmt: skip
    after = _step(graph, *(gone(one) for one in objects))
    assert (after.local, after.cluster) == (empty.local, empty.cluster)


def _from(name: str, selector: str) -> Object:
    return global_policy(name, selector="all()", ingress=[{"action": "Allow", "source": {"selector": selector}}])


def _work(graph: Graph) -> IndexStatistics:
    index = graph.statistics().index
    return IndexStatistics(
        index.items, index.watches, index.unfiled, index.evaluated, index.matched, dict(index.strategies)
    )


def test_the_index_counts_its_work() -> None:
    """A selector that asks for a label is evaluated for its holders only; others for everything."""
    graph = _running(pod("a", "10.65.0.1", foo="0"), pod("b", "10.65.0.2", foo="1"))
    assert _work(graph) == IndexStatistics(items=2)
    _step(graph, _from("one", "foo == '0'"))
    assert _work(graph) == IndexStatistics(2, 1, 0, 1, 1, {"endpoint-single-value": 1})
    _step(graph, _from("two", "bar == 'x' || foo == '1'"))
    assert _work(graph) == IndexStatistics(2, 2, 1, 3, 2, {"endpoint-single-value": 1, "endpoint-full-scan": 1})
    _step(
        graph,
        SHOP,
        _from("three", "pcns.team == 'blue'"),
        _from("four", "foo in {'0', '1'}"),
        _from("five", "has(foo)"),
    )
    assert _work(graph).strategies == {
        "endpoint-single-value": 1, "endpoint-full-scan": 1, "parent-single-value": 1, "endpoint-multi-value": 1,
        "endpoint-label-name": 1,
    }  # fmt: skip
    before = _work(graph)
    _step(graph, pod("c", "10.65.0.3", foo="0"))
    after = _work(graph)
    # foo == '0', foo in …, has(foo), the inherited team, and the one that is evaluated for everything, in vain.
    assert (after.evaluated - before.evaluated, after.matched - before.matched) == (5, 4)


def test_the_graph_is_shown() -> None:
    """Statistics become gauges under Calico's names."""
    telemetry.show_graph(_running(DB, WEB, SHOP, _from("one", "foo == '0'"), _from("two", "!has(foo)")).statistics())
    values = _values()
    assert values["felix_active_local_endpoints"] == 1
    assert values["felix_active_local_selectors"] == 2
    assert values["felix_cluster_num_workload_endpoints"] == 2
    assert values["felix_label_index_num_endpoints"] == 2
    assert values['felix_label_index_num_active_selectors{optimized="true"}'] == 1
    assert values['felix_label_index_num_active_selectors{optimized="false"}'] == 1
    assert values['felix_label_index_selector_evals{result="true"}'] == 2
    assert values['felix_label_index_selector_evals{result="false"}'] == 0


def test_messages_are_counted_by_type() -> None:
    """Each change is a message, named as in Felix."""
    before = _values()
    changes = Changes(
        ip_sets={"a": IPSet("a", "net", frozenset()), "b": IPSetDelta("b", frozenset(), frozenset()), "c": None},
        profiles={"p": None},
        config={},
        in_sync=True,
    )
    assert telemetry.flushed(changes) == 5
    after = _values()
    names = ("IPSetUpdate", "IPSetDeltaUpdate", "IPSetRemove", "ActiveProfileRemove", "ConfigUpdate")
    for name in names:
        metric = f'felix_int_dataplane_messages{{type="{name}"}}'
        assert after[metric] == before.get(metric, 0) + 1
    assert after["felix_calc_graph_output_events"] == before["felix_calc_graph_output_events"] + 5


def test_only_updates_with_news_are_timed() -> None:
    """The first has a gauge of its own; looking after the kernel is no update."""
    before = _values()["felix_int_dataplane_apply_time_seconds_count"]
    telemetry.applied(telemetry.Batch(messages=3), 0.5, first=True, failed=False)
    telemetry.applied(telemetry.Batch(), 0.1, first=False, failed=False)
    assert _values()["felix_int_dataplane_apply_time_seconds_count"] == before
    telemetry.applied(telemetry.Batch(links=2), 0.1, first=False, failed=True)
    values = _values()
    assert values["felix_int_dataplane_apply_time_seconds_count"] == before + 1
    assert values["felix_int_dataplane_initial_resync_time_seconds"] == 0.5
    assert values["felix_int_dataplane_failures"] >= 1


def test_the_datastore_has_three_states() -> None:
    """Waiting, reading, in sync; a mere reconnection is no resync."""
    felix = Felix({}, "n1")
    before = _values()["felix_resyncs_started"]
    seen = []
    events = (
        Status("disconnected"), Status("connected"), InSync(1), Status("disconnected"), Status("connected"),
        Status("resync"), Status("connected"), InSync(2),
    )  # fmt: skip
    for event in events:
        felix.on_events([event])
        seen.append(_values()["felix_resync_state"])
    assert seen == [1, 2, 3, 1, 3, 2, 2, 3]
    assert _values()["felix_resyncs_started"] == before + 2
