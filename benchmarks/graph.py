"""Cost of the calculation graph: cold start and single events, on a cluster of the size Felix is measured with.

10,000 endpoints on 50 nodes in 50 namespaces, 1,000 policies of which 50 are global and 8 match every pod. ``--local``
pods run on the node under test (200; the other nodes share the rest). Prints CPU seconds and microseconds; needs
nothing but the package. Run: ``.venv/bin/python benchmarks/graph.py``.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from calipy.datastore.keys import Key, ResourceKey
from calipy.datastore.resources import (
    EntityRule,
    GlobalNetworkPolicySpec,
    NetworkPolicySpec,
    NetworkSetSpec,
    ObjectMeta,
    ProfileSpec,
    Resource,
    Rule,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calipy.felix.graph import Graph
from calipy.felix.messages import IPSet

HOST = "node-0"
NAMESPACES = 50
NODES = 50
APPS = 20
TIERS = ("web", "api", "db", "cache")


def endpoint(number: int, node: str, **labels: str) -> tuple[ResourceKey, Resource[Any, Any]]:
    """Pod ``number`` on ``node``; further labels override the usual ones."""
    namespace = f"ns-{number % NAMESPACES}"
    name = f"{node.replace('-', '--')}-k8s-pod--{number}-eth0"
    all_labels = {
        "app": f"app-{number // NAMESPACES % APPS}",
        "tier": TIERS[number // 7 % len(TIERS)],
        "pod-template-hash": f"{number // 3:x}",
        "projectcalico.org/namespace": namespace,
        "projectcalico.org/orchestrator": "k8s",
        **labels,
    }
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=node,
        pod=f"pod-{number}",
        endpoint="eth0",
        interface_name=f"cali{number:011x}",
        ip_networks=(f"10.{64 + number // 65536}.{number // 256 % 256}.{number % 256}/32",),
        service_account_name="default",
        profiles=(f"kns.{namespace}", f"ksa.{namespace}.default"),
        ports=(WorkloadEndpointPort(name="http", protocol="TCP", port=8080),),
    )
    meta = ObjectMeta(name=name, namespace=namespace, labels=all_labels)
    return ResourceKey("WorkloadEndpoint", name, namespace), Resource(kind="WorkloadEndpoint", metadata=meta, spec=spec)


def policy(number: int, *, port: int = 8080) -> tuple[ResourceKey, Resource[Any, Any]]:
    """Policy ``number``: the first 50 are global, the first 8 of these match every pod."""
    if number < 50:
        selector = "all()" if number < 8 else f"tier == '{TIERS[number % 4]}' && app == 'app-{number % APPS}'"
        spec: Any = GlobalNetworkPolicySpec(
            tier="default",
            order=float(number),
            selector=selector,
            namespace_selector="all()",
            types=("Ingress",),
            ingress=(
                Rule(action="Allow", protocol="TCP", source=_from(f"role == 'r{number}'"), destination=_ports(port)),
            ),
        )
        kind, namespace = "GlobalNetworkPolicy", ""
    else:
        app = number // NAMESPACES % APPS
        peer = _from(f"app == 'app-{(app + 1) % APPS}'")
        team = f"team == 'team-{number % 10}'"
        spec = NetworkPolicySpec(
            tier="default",
            order=1000.0,
            selector=f"app == 'app-{app}'",
            types=("Ingress", "Egress"),
            ingress=(
                Rule(
                    action="Allow",
                    protocol="TCP",
                    source=peer,
                    destination=_ports(port),
                ),
                Rule(action="Allow", protocol="TCP", source=_from(namespaces=team), destination=_ports("http")),
            ),
            egress=(
                Rule(action="Allow", protocol="UDP", destination=EntityRule(ports=(53,))),
                Rule(action="Allow", destination=_from(f"tier in {{'{TIERS[app % 4]}', 'cache'}}")),
            ),
        )
        kind, namespace = "NetworkPolicy", f"ns-{number % NAMESPACES}"
    name = f"policy-{number}"
    meta = ObjectMeta(name=name, namespace=namespace)
    return ResourceKey(kind, name, namespace), Resource(kind=kind, metadata=meta, spec=spec)


def _from(selector: str = "", *, namespaces: str = "") -> EntityRule:
    return EntityRule(selector=selector, namespace_selector=namespaces)


def _ports(port: int | str) -> EntityRule:
    return EntityRule(ports=(port,))


def profile(number: int, **labels: str) -> tuple[ResourceKey, Resource[Any, Any]]:
    """Profile of namespace ``number``."""
    allow = (Rule(action="Allow"),)
    applied = {"pcns.projectcalico.org/name": f"ns-{number}", "pcns.team": f"team-{number % 10}", **labels}
    name = f"kns.ns-{number}"
    return ResourceKey("Profile", name), Resource(
        kind="Profile",
        metadata=ObjectMeta(name=name),
        spec=ProfileSpec(ingress=allow, egress=allow, labels_to_apply=applied),
    )


def cluster(endpoints: int, policies: int, local: int) -> Iterator[tuple[Key, Any]]:
    """Everything in the datastore that concerns policy, in the order the syncer lists it."""
    for number in range(NAMESPACES):
        yield profile(number)
        name = f"ksa.ns-{number}.default"
        spec = ProfileSpec(labels_to_apply={"pcsa.projectcalico.org/name": "default"})
        yield ResourceKey("Profile", name), Resource(kind="Profile", metadata=ObjectMeta(name=name), spec=spec)
        net_set = NetworkSetSpec(nets=(f"192.168.{number}.0/24",))
        meta = ObjectMeta(name="outside", namespace=f"ns-{number}", labels={"role": f"r{number % 8}"})
        yield (
            ResourceKey("NetworkSet", "outside", f"ns-{number}"),
            Resource(kind="NetworkSet", metadata=meta, spec=net_set),
        )
    for number in range(endpoints):
        yield endpoint(number, node_of(number, endpoints, local))
    for number in range(policies):
        yield policy(number)


def node_of(number: int, endpoints: int, local: int) -> str:
    """Where a pod runs: the local ones are spread over all namespaces and applications."""
    return HOST if number * 7919 % endpoints < local else f"node-{1 + number % (NODES - 1)}"


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
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1_000)
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
    nodes = {n: node_of(n, arguments.endpoints, arguments.local) for n in range(arguments.endpoints)}
    remote = rng.sample([n for n, node in nodes.items() if node != HOST], 300)
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
