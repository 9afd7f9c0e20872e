"""Metrics: served where the configuration says, and true."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.felix import until
from tests.support.fv import Lab
from tests.support.matrix import PATIENCE
from tests.support.objects import global_policy, make
from tests.support.scraping import get, metrics

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node with two pods and a machine outside; nothing said of metrics in the agent's environment."""
    with Lab() as lab:
        lab.external()
        lab.pod("a")
        lab.pod("b")
        yield lab.settled()


def felix_configuration(**spec: object) -> object:
    return make("FelixConfiguration", "default", {"reportingInterval": "0s", **spec})


@pytest.fixture
def served(lab: Lab) -> Lab:
    """Metrics are on."""
    lab.apply(felix_configuration(prometheusMetricsEnabled=True))
    until(lambda: metrics(lab.nodes[0]), timeout=PATIENCE)
    return lab


def test_off_unless_asked_for_then_on_localhost_alone(lab: Lab) -> None:
    """Nobody listens by default; switched on, the node itself is answered and its neighbours are not; and off again."""
    [node], [world] = lab.nodes, lab.externals
    assert not metrics(node)
    lab.apply(felix_configuration(prometheusMetricsEnabled=True))
    assert until(lambda: metrics(node), timeout=PATIENCE)["felix_resync_state"] == 3
    assert not metrics(world, host=node.ip)
    lab.apply(
        felix_configuration(prometheusMetricsEnabled=True, prometheusMetricsHost="0.0.0.0", prometheusMetricsPort=9191)
    )
    assert until(lambda: metrics(world, host=node.ip, port=9191), timeout=PATIENCE)["felix_resync_state"] == 3
    assert not metrics(node)
    lab.apply(felix_configuration())
    until(lambda: not metrics(node, port=9191), timeout=PATIENCE)


def test_a_port_that_is_taken_harms_nothing_else(lab: Lab) -> None:
    """The agent goes on and says what to do, and serves metrics once it can: the port is that of its health checks."""
    [node] = lab.nodes
    lab.apply(felix_configuration(prometheusMetricsEnabled=True, prometheusMetricsPort=9099))
    [warning] = until(node.warnings, timeout=PATIENCE)
    assert "cannot listen for metrics on localhost:9099" in warning
    assert "PrometheusMetrics" in warning
    assert node.agent.status()["ready"]
    answer, table = get(node, "/readiness", port=9099)
    assert answer == 200
    assert warning in table
    lab.apply(felix_configuration(prometheusMetricsEnabled=True))
    until(lambda: metrics(node), timeout=PATIENCE)
    assert node.warnings() == []


def test_nothing_but_metrics_on_the_port(served: Lab) -> None:
    """No profiles, no debugging, no health: only what was asked for."""
    [node] = served.nodes
    assert get(node, "/metrics")[0] == 200
    for path in ("/", "/debug/pprof/profile?seconds=1", "/debug/pprof/", "/readiness", "/metrics/../debug"):
        assert get(node, path)[0] == 404


def test_names_are_calicos(served: Lab) -> None:
    """Whatever a dashboard for Felix asks of an iptables agent is there."""
    names = {name.partition("{")[0] for name in metrics(served.nodes[0])}
    wanted = set(
        re.findall(
            r"\w+",
            """
        felix_active_local_endpoints felix_active_local_policies felix_active_local_selectors felix_cluster_num_hosts
        felix_cluster_num_host_endpoints felix_cluster_num_workload_endpoints felix_cluster_num_tiers
        felix_cluster_num_policies felix_cluster_num_profiles felix_calc_graph_output_events
        felix_calc_graph_update_time_seconds felix_calc_graph_updates_processed felix_label_index_num_endpoints
        felix_label_index_num_active_selectors felix_label_index_selector_evals
        felix_int_dataplane_apply_time_seconds felix_int_dataplane_failures felix_int_dataplane_messages
        felix_int_dataplane_initial_resync_time_seconds felix_int_dataplane_msg_batch_size_count
        felix_int_dataplane_iface_msg_batch_size_count felix_int_dataplane_addr_msg_batch_size_count
        felix_iptables_chains felix_iptables_rules felix_iptables_lines_executed felix_iptables_save_calls
        felix_iptables_save_errors felix_iptables_restore_calls felix_iptables_restore_errors felix_ipsets_calico
        felix_ipsets_total felix_ipset_calls felix_ipset_errors felix_ipset_lines_executed felix_route_table_num_routes
        felix_route_table_num_ifaces felix_route_table_resync_seconds felix_route_table_partial_resync_seconds
        felix_route_table_conntrack_wait_seconds felix_resync_state felix_resyncs_started felix_exec_time_micros
        felix_log_errors felix_host process_cpu_seconds_total process_resident_memory_bytes process_start_time_seconds
    """,
        )
    )
    assert wanted <= names


def test_values_are_true(served: Lab) -> None:
    """Counts of rules, sets and routes are those of the kernel; counters move with what happens."""
    [node] = served.nodes
    served.sync()
    before = metrics(node)
    assert before['felix_host{host="n1"}'] == 1
    assert before["felix_active_local_endpoints"] == before["felix_cluster_num_workload_endpoints"] == 2
    assert before["felix_cluster_num_hosts"] == 1
    assert before['felix_calc_graph_updates_processed{type="WorkloadEndpoint"}'] >= 2
    assert before['felix_route_table_num_routes{table="IPv4:254"}'] == 2
    assert before['felix_route_table_num_routes{table="IPv6:254"}'] == 2
    assert before["felix_exec_time_micros_count"] > 0

    source = {"selector": "has(a)"}
    served.apply(
        global_policy("p", selector="all()", ingress=[{"action": "Allow", "source": source}], types=["Ingress"])
    )
    after = metrics(node)
    moved = {name: value - before.get(name, 0) for name, value in after.items()}
    assert after["felix_active_local_policies"] == moved["felix_cluster_num_policies"] == 1
    assert moved["felix_active_local_selectors"] == moved['felix_ipsets_calico{ip_version="4"}'] == 1
    assert moved['felix_int_dataplane_messages{type="ActivePolicyUpdate"}'] == 1
    assert moved['felix_int_dataplane_messages{type="IPSetUpdate"}'] == 1
    assert moved['felix_iptables_chains{ip_version="4",table="filter"}'] >= 1
    assert moved["felix_iptables_restore_calls"] >= 2
    assert moved["felix_iptables_restore_errors"] == moved["felix_int_dataplane_failures"] == 0
    assert moved['felix_iptables_lines_executed{ip_version="4",table="filter"}'] > 0
    assert moved["felix_ipset_lines_executed"] >= 2
    assert moved["felix_int_dataplane_apply_time_seconds_count"] >= 1

    rules = [rule for rule in node.rules() if "cali:" in rule]
    chains = {rule.split()[1] for rule in rules if rule.split()[1].startswith("cali-")}
    assert after['felix_iptables_rules{ip_version="4",table="filter"}'] == len(rules)
    assert after['felix_iptables_chains{ip_version="4",table="filter"}'] >= len(chains)
    assert after["felix_ipsets_total"] == len(node.ns.run("ipset", "list", "-name").split())
