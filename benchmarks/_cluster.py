"""A cluster of the size that Felix is measured with, as objects of the datastore.

10,000 endpoints on 50 nodes in 50 namespaces; 1,000 policies, of which 50 are global and 8 match every pod. With 200
pods on the node under test that makes about 9,500 rules in IPv4's filter table and 900 ip sets with 40,000 members;
with 1,500 pods 62,000 rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from calipy.datastore.keys import ResourceKey
from calipy.datastore.resources import (
    ClusterInformationSpec,
    EntityRule,
    GlobalNetworkPolicySpec,
    IPPoolSpec,
    NetworkPolicySpec,
    NetworkSetSpec,
    ObjectMeta,
    ProfileSpec,
    Resource,
    Rule,
    TierSpec,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)

Object = tuple[ResourceKey, Resource[Any, Any]]

HOST = "node-0"
ENDPOINTS = 10_000
POLICIES = 1_000
GLOBAL = 50
EVERYWHERE = 8
NAMESPACES = 50
NODES = 50
APPS = 20
ROLES = 250
TIERS = ("web", "api", "db", "cache")


def _object(kind: str, name: str, spec: Any, namespace: str = "", **labels: str) -> Object:
    meta = ObjectMeta(name=name, namespace=namespace, labels=labels)
    return ResourceKey(kind, name, namespace), Resource(kind=kind, metadata=meta, spec=spec)


def interface(number: int) -> str:
    """The host's end of pod ``number``; as Calico's, it looks random."""
    return f"cali{number * 2654435761 % 2**44:011x}"


def address(number: int) -> str:
    """Address of pod ``number``."""
    return f"10.{64 + number // 65536}.{number // 256 % 256}.{number % 256}"


def endpoint(number: int, node: str, **changed: str) -> Object:
    """Pod ``number`` on ``node``; further labels override the usual ones."""
    namespace = f"ns-{number % NAMESPACES}"
    labels = {
        "app": f"app-{number // NAMESPACES % APPS}",
        "tier": TIERS[number // 7 % len(TIERS)],
        "role": f"r{number % ROLES}",
        "pod-template-hash": f"{number // 3:x}",
        "projectcalico.org/namespace": namespace,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
        **changed,
    }
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=node,
        pod=f"pod-{number}",
        endpoint="eth0",
        interface_name=interface(number),
        ip_networks=(f"{address(number)}/32",),
        service_account_name="default",
        profiles=(f"kns.{namespace}", f"ksa.{namespace}.default"),
        ports=(WorkloadEndpointPort(name="http", protocol="TCP", port=8080),),
    )
    name = f"{node.replace('-', '--')}-k8s-pod--{number}-eth0"
    return _object("WorkloadEndpoint", name, spec, namespace, **labels)


def policy(number: int, *, port: int = 8080) -> Object:
    """Policy ``number``: the first 50 are global, the first 8 of these match every pod."""
    name = f"policy-{number}"
    if number < GLOBAL:
        everywhere = number < EVERYWHERE
        spec = GlobalNetworkPolicySpec(
            tier="default",
            order=float(number),
            selector="all()" if everywhere else f"tier == '{TIERS[number % 4]}' && app == 'app-{number % APPS}'",
            types=("Ingress", "Egress"),
            ingress=(_allow(_from(f"role == 'r{number}'"), _ports(port)),),
            egress=(_allow(EntityRule(), _to(f"role == 'r{number + GLOBAL}'", port)),),
        )
        return _object("GlobalNetworkPolicy", name, spec)
    app = number // NAMESPACES % APPS
    named = NetworkPolicySpec(
        tier="default",
        order=1000.0,
        selector=f"app == 'app-{app}'",
        types=("Ingress", "Egress"),
        ingress=(
            _allow(_from(f"app == 'app-{(app + 1) % APPS}'"), _ports(port)),
            _allow(_from(f"app == 'app-{(app + 3) % APPS}' && tier == '{TIERS[app % 4]}'"), _ports(port + 1)),
            _allow(EntityRule(namespace_selector=f"team == 'team-{number % 10}'"), _ports("http")),
        ),
        egress=(
            Rule(action="Allow", protocol="UDP", destination=_ports(53)),
            _allow(EntityRule(), _to(f"app == 'app-{(app + 7) % APPS}'", port)),
            _allow(EntityRule(), _to(f"role == 'r{number % NAMESPACES}'", port)),
            Rule(action="Allow", destination=_from(f"tier in {{'{TIERS[app % 4]}', 'gone'}}")),
        ),
    )
    return _object("NetworkPolicy", name, named, f"ns-{number % NAMESPACES}")


def _from(selector: str) -> EntityRule:
    return EntityRule(selector=selector)


def _to(selector: str, port: int) -> EntityRule:
    return EntityRule(selector=selector, ports=(port,))


def _ports(port: int | str) -> EntityRule:
    return EntityRule(ports=(port,))


def _allow(source: EntityRule, destination: EntityRule) -> Rule:
    return Rule(action="Allow", protocol="TCP", source=source, destination=destination)


def profile(number: int, **labels: str) -> Object:
    """Profile of namespace ``number``."""
    allow = (Rule(action="Allow"),)
    applied = {"pcns.projectcalico.org/name": f"ns-{number}", "pcns.team": f"team-{number % 10}", **labels}
    return _object("Profile", f"kns.ns-{number}", ProfileSpec(ingress=allow, egress=allow, labels_to_apply=applied))


def cluster(endpoints: int = ENDPOINTS, policies: int = POLICIES, local: int = 200) -> Iterator[Object]:
    """Everything in the datastore that concerns Felix."""
    ready = ClusterInformationSpec(cluster_guid="0123456789abcdef0123456789abcdef", datastore_ready=True)
    yield _object("ClusterInformation", "default", ready)
    yield _object("Tier", "default", TierSpec(order=1_000_000.0, default_action="Deny"))
    yield _object("IPPool", "pods", IPPoolSpec(cidr="10.64.0.0/12", nat_outgoing=True, block_size=26))
    for number in range(NAMESPACES):
        yield profile(number)
        service_account = ProfileSpec(labels_to_apply={"pcsa.projectcalico.org/name": "default"})
        yield _object("Profile", f"ksa.ns-{number}.default", service_account)
        net_set = NetworkSetSpec(nets=(f"192.168.{number}.0/24",))
        yield _object("NetworkSet", "outside", net_set, f"ns-{number}", role=f"r{number % ROLES}")
    for number in range(endpoints):
        yield endpoint(number, node_of(number, local, endpoints))
    for number in range(policies):
        yield policy(number)


def node_of(number: int, local: int, endpoints: int = ENDPOINTS) -> str:
    """Where a pod runs: the local ones are spread over all namespaces and applications."""
    return HOST if number * 7919 % endpoints < local else f"node-{1 + number % (NODES - 1)}"
