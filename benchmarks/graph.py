"""Cost of the calculation graph alone: cold start and single events, on the cluster of ``felix.py``.

``--local`` pods run on the node under test (200; the other nodes share the rest). Prints CPU seconds and microseconds;
needs nothing but the package. Run: ``.venv/bin/python benchmarks/graph.py``.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

from _cluster import APPS, ENDPOINTS, HOST, POLICIES, cluster, endpoint, node_of, policy, profile

from calipy.datastore.keys import Key
from calipy.felix.graph.graph import Graph
from calipy.felix.messages import IPSet


def cost(graph: Graph, updates: list[tuple[Key, Any]]) -> list[float]:
    """Microseconds of each update with its flush."""
    found = []
    for key, value in updates:
        begin = time.perf_counter()
        graph.on_update(key, value)
        graph.flush()
        found.append((time.perf_counter() - begin) * 1e6)
    return found


def show(what: str, micros: list[float]) -> None:
    """One line: median and the worst."""
    print(f"{what:44} {statistics.median(micros):9.0f} µs median {max(micros):9.0f} µs worst")


def timed(what: str, work: Callable[[], Any]) -> Any:
    """CPU seconds of ``work``, printed."""
    begin = time.process_time()
    result = work()
    print(f"{what:44} {time.process_time() - begin:9.3f} s CPU")
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--endpoints", type=int, default=ENDPOINTS)
    parser.add_argument("--policies", type=int, default=POLICIES)
    parser.add_argument("--local", type=int, default=200)
    arguments = parser.parse_args()
    snapshot = list(cluster(arguments.endpoints, arguments.policies, arguments.local))
    gc.freeze()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = Graph(HOST)

    def load() -> None:
        for key, value in snapshot:
            graph.on_update(key, value)
        graph.on_in_sync()

    timed("cold start: snapshot", load)
    changes = timed("cold start: first flush", graph.flush)
    sets = [found for found in changes.ip_sets.values() if isinstance(found, IPSet)]
    rules = sum(len(found.inbound) + len(found.outbound) for found in changes.policies.values() if found)
    print(
        f"{len(changes.policies)} policies with {rules} rules, {len(changes.endpoints)} endpoints, {len(sets)} sets, "
        f"{sum(len(found.members) for found in sets)} members; "
        f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MiB more"
    )
    rng = random.Random(1)
    nodes = {n: node_of(n, arguments.local, arguments.endpoints) for n in range(arguments.endpoints)}
    elsewhere = [n for n, node in nodes.items() if node != HOST]
    remote = rng.sample(elsewhere, min(300, len(elsewhere)))
    show("label of a remote endpoint", cost(graph, [endpoint(n, nodes[n], app=f"app-{n % APPS}") for n in remote]))
    gone: list[tuple[Key, Any]] = [(endpoint(n, nodes[n])[0], None) for n in remote]
    show("remote endpoint deleted", cost(graph, gone))
    show("remote endpoint created", cost(graph, [endpoint(n, nodes[n]) for n in remote]))
    namespaced = [50 + n for n in range(100)]
    show("port of a namespaced policy", cost(graph, [policy(n, port=9000 + n) for n in namespaced]))
    show("port of a policy that matches every pod", cost(graph, [policy(n % 8, port=9000 + n) for n in range(40)]))
    new = [endpoint(arguments.endpoints + n, HOST) for n in range(30)]
    show("local pod created", cost(graph, [(key, value) for key, value in new]))
    show("local pod deleted", cost(graph, [(key, None) for key, _ in new]))
    show("label of a namespace", cost(graph, [profile(n, **{"pcns.team": f"team-{(n + 1) % 10}"}) for n in range(20)]))
    show("policy deleted", cost(graph, [(policy(n)[0], None) for n in namespaced]))
    show("policy created", cost(graph, [policy(n) for n in namespaced]))


if __name__ == "__main__":
    main()
