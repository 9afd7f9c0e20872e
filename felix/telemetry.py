"""What Felix tells Prometheus of its graph and its main loop, under Calico's names. The edges count their own calls.

Counters and summaries are followed as things happen; gauges are set when somebody asks. Label values that name a type
are the resource's kind for updates of the datastore, and Felix's message for what the dataplane is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from calipy.datastore.keys import Key, ResourceKey
from calipy.felix.delta import Table
from calipy.felix.graph.statistics import GraphStatistics
from calipy.felix.messages import Changes, IPSetDelta
from calipy.metrics import REGISTRY, Gauge
from calipy.net import Family

_UPDATES: Final = REGISTRY.counters(
    "felix_calc_graph_updates_processed", "Datastore updates that the calculation graph processed.", "type"
)
_UPDATE_SECONDS: Final = REGISTRY.summary(
    "felix_calc_graph_update_time_seconds", "Seconds to update the calculation graph for one datastore update."
)
_OUTPUT: Final = REGISTRY.counter("felix_calc_graph_output_events", "Events that the calculation graph emitted.")
_RESYNC_STATE: Final = REGISTRY.gauge(
    "felix_resync_state", "State of the datastore: 1 waiting for it, 2 reading it anew, 3 in sync."
)
_RESYNCS: Final = REGISTRY.counter("felix_resyncs_started", "Times that the datastore was read anew.")
_APPLY_SECONDS: Final = REGISTRY.summary(
    "felix_int_dataplane_apply_time_seconds", "Seconds of each update of the dataplane after the first."
)
_FIRST_APPLY: Final = REGISTRY.gauge(
    "felix_int_dataplane_initial_resync_time_seconds", "Seconds that the first update of the dataplane took."
)
_FAILURES: Final = REGISTRY.counter(
    "felix_int_dataplane_failures", "Times that an update of the dataplane failed and is to be tried again."
)
_MESSAGES: Final = REGISTRY.counters("felix_int_dataplane_messages", "Messages to the dataplane.", "type")
_BATCH: Final = REGISTRY.summary("felix_int_dataplane_msg_batch_size", "Messages per update of the dataplane.")
_LINK_BATCH: Final = REGISTRY.summary(
    "felix_int_dataplane_iface_msg_batch_size", "Changes of interfaces that one update of the dataplane took."
)
_ADDRESS_BATCH: Final = REGISTRY.summary(
    "felix_int_dataplane_addr_msg_batch_size", "Changes of addresses that one update of the dataplane took."
)

_LOCAL: Final = {
    "endpoints": REGISTRY.gauge("felix_active_local_endpoints", "Active endpoints on this host."),
    "policies": REGISTRY.gauge("felix_active_local_policies", "Active policies on this host."),
    "selectors": REGISTRY.gauge("felix_active_local_selectors", "Active selectors on this host."),
}
_CLUSTER: Final = {
    "hosts": REGISTRY.gauge("felix_cluster_num_hosts", "Nodes in the cluster."),
    "host_endpoints": REGISTRY.gauge("felix_cluster_num_host_endpoints", "Host endpoints in the cluster."),
    "workload_endpoints": REGISTRY.gauge("felix_cluster_num_workload_endpoints", "Workload endpoints in the cluster."),
    "tiers": REGISTRY.gauge("felix_cluster_num_tiers", "Tiers in the cluster."),
    "policies": REGISTRY.gauge("felix_cluster_num_policies", "Policies in the cluster."),
    "profiles": REGISTRY.gauge("felix_cluster_num_profiles", "Profiles in the cluster."),
}
_INDEXED: Final = REGISTRY.gauge(
    "felix_label_index_num_endpoints", "Endpoints and network sets in the index of ip sets' selectors."
)
_SELECTORS: Final = REGISTRY.gauges(
    "felix_label_index_num_active_selectors",
    "Selectors of ip sets; the optimized ones are evaluated only for what has one of their labels.",
    "optimized",
)
_EVALUATIONS: Final = REGISTRY.counters("felix_label_index_selector_evals", "Evaluations of selectors.", "result")
_STRATEGIES: Final = REGISTRY.counters(
    "felix_label_index_strategy_evals", "Scans of the index for a new selector, by the way of scanning.", "strategy"
)
_CHAINS: Final = REGISTRY.gauges("felix_iptables_chains", "Active chains of ours.", "ip_version", "table")
_RULES: Final = REGISTRY.gauges("felix_iptables_rules", "Active rules of ours.", "ip_version", "table")

_RESYNC_STATES: Final = {"wait-for-ready": 1, "resync": 2, "in-sync": 3}
_MESSAGES_OF: Final = {
    "ip_sets": "IPSet",
    "policies": "ActivePolicy",
    "profiles": "ActiveProfile",
    "endpoints": "WorkloadEndpoint",
    "host_endpoints": "HostEndpoint",
    "pools": "IPAMPool",
    "hosts": "HostMetadata",
    "blocks": "Route",
    "routes": "Route",
    "vteps": "VXLANTunnelEndpoint",
}
"""Changes → what Felix calls the message, without ``Update`` or ``Remove``."""


def processed(key: Key, seconds: float) -> None:
    """The graph took one update."""
    _UPDATES.labels(key.kind if isinstance(key, ResourceKey) else type(key).__name__).inc()
    _UPDATE_SECONDS.observe(seconds)


def datastore(state: Literal["wait-for-ready", "resync", "in-sync"]) -> None:
    """How far we are with the datastore."""
    number = _RESYNC_STATES[state]
    if state == "resync" and _RESYNC_STATE.value != number:
        _RESYNCS.inc()
    _RESYNC_STATE.set(number)


@dataclass(slots=True)
class Batch:
    """What comes together in one update of the dataplane: messages of the graph, events of interfaces and addresses."""

    messages: int = 0
    links: int = 0
    addresses: int = 0


def flushed(changes: Changes) -> int:
    """The graph emitted these changes, and the dataplane took them; as so many messages they count."""
    counts = Counter({"ConfigUpdate": changes.config is not None})
    for attribute, name in _MESSAGES_OF.items():
        for value in getattr(changes, attribute, {}).values():
            end = "Remove" if value is None else "DeltaUpdate" if isinstance(value, IPSetDelta) else "Update"
            counts[name + end] += 1
    for name, number in (+counts).items():
        _MESSAGES.labels(name).inc(number)
    _OUTPUT.inc(counts.total())
    return counts.total()


def applied(batch: Batch, seconds: float, *, first: bool, failed: bool) -> None:
    """One update of the dataplane ended; those that only looked after the kernel are not timed."""
    if first:
        _FIRST_APPLY.set(seconds)
    elif batch != Batch():
        _APPLY_SECONDS.observe(seconds)
    if failed:
        _FAILURES.inc()
    for summary, number in ((_BATCH, batch.messages), (_LINK_BATCH, batch.links), (_ADDRESS_BATCH, batch.addresses)):
        if number:
            summary.observe(number)


def show_graph(statistics: GraphStatistics) -> None:
    """Set the gauges of the graph."""
    _set(_LOCAL, statistics.local)
    _set(_CLUSTER, statistics.cluster)
    index = statistics.index
    _INDEXED.set(index.items)
    _SELECTORS.labels("true").set(index.watches - index.unfiled)
    _SELECTORS.labels("false").set(index.unfiled)
    _EVALUATIONS.labels("true").value = index.matched
    _EVALUATIONS.labels("false").value = index.evaluated - index.matched
    for strategy, number in index.strategies.items():
        _STRATEGIES.labels(strategy).value = number


def show_rules(family: Family, tables: Iterable[Table]) -> None:
    """Set the gauges of one family's rules. Linear in the chains."""
    for table in tables:
        sizes = [len(chain.rules) for chain in table.programmed()]
        sizes_of_hooks = [len(hook.inserts) + len(hook.appends) for hook in table.hooks.values()]
        _CHAINS.labels(str(family), table.name).set(len(sizes))
        _RULES.labels(str(family), table.name).set(sum(sizes) + sum(sizes_of_hooks))


def _set(gauges: Mapping[str, Gauge], values: Mapping[str, int]) -> None:
    for name, gauge in gauges.items():
        gauge.set(values[name])
