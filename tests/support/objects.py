"""Short ways to write datastore objects in tests."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from calipy.datastore.codec import read_document
from calipy.datastore.ipam import AllocationAttribute, Block
from calipy.datastore.keys import BlockKey, Key, ResourceKey

Object = tuple[Key, Any]
"""A key and its resource or block, or None for one that is gone."""


def make(kind: str, name: str, spec: dict[str, Any], *, namespace: str = "", **metadata: Any) -> Object:
    """A v3 resource from its JSON ``spec``; ``metadata`` takes ``labels`` and so on."""
    meta = {"name": name, **({"namespace": namespace} if namespace else {}), **metadata}
    document = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": meta, "spec": spec}
    return ResourceKey(kind, name, namespace), read_document(document, kind)


def pod(
    name: str,
    *ips: str,
    node: str = "n1",
    namespace: str = "shop",
    profiles: tuple[str, ...] | None = None,
    ports: Mapping[str, int] | Sequence[tuple[str, str, int]] = (),
    interface: str | None = None,
    account: str = "",
    **labels: str,
) -> Object:
    """A Kubernetes pod's workload endpoint, with the labels and profiles that Calico's CNI gives it.

    Its named ports are TCP ports by name, or names, protocols and ports.
    """
    named = [(name, "TCP", port) for name, port in ports.items()] if isinstance(ports, Mapping) else ports
    escaped = name.replace("-", "--")
    spec = {
        "orchestrator": "k8s",
        "node": node,
        "pod": name,
        "endpoint": "eth0",
        "interfaceName": f"cali{namespace}{name}" if interface is None else interface,
        "ipNetworks": [f"{ip}/{128 if ':' in ip else 32}" for ip in ips],
        "profiles": [f"kns.{namespace}"] if profiles is None else list(profiles),
        "serviceAccountName": account,
        "ports": [
            {"name": name, "protocol": protocol, "port": port, "hostPort": 0, "hostIP": ""}
            for name, protocol, port in named
        ],
    }
    labels = {"projectcalico.org/namespace": namespace, "projectcalico.org/orchestrator": "k8s", **labels}
    return make(
        "WorkloadEndpoint", f"{node.replace('-', '--')}-k8s-{escaped}-eth0", spec, namespace=namespace, labels=labels
    )


def namespace_profile(name: str, **labels: str) -> Object:
    """The profile of a namespace: allows everything, hands labels down."""
    allow = [{"action": "Allow"}]
    applied = {f"pcns.{key}": value for key, value in {"projectcalico.org/name": name, **labels}.items()}
    return make("Profile", f"kns.{name}", {"ingress": allow, "egress": allow, "labelsToApply": applied})


def block(cidr: str, host: str | None, **users: str) -> Object:
    """A block affine to a node; ``users`` say which node uses an ordinal: ``_5="n3"``."""
    network = ipaddress.ip_network(cidr)
    allocations: list[int | None] = [None] * network.num_addresses
    for place, ordinal in enumerate(users):
        allocations[int(ordinal.lstrip("_"))] = place
    attributes = tuple(AllocationAttribute(handle_id=f"h-{n}", secondary={"node": n}) for n in users.values())
    affinity = f"host:{host}" if host else None
    free = tuple(ordinal for ordinal, slot in enumerate(allocations) if slot is None)
    found = Block(
        cidr=str(network), affinity=affinity, allocations=tuple(allocations), unallocated=free, attributes=attributes
    )
    return BlockKey(str(network)), found


def network_policy(name: str, *, namespace: str = "shop", **spec: Any) -> Object:
    """A NetworkPolicy; ``spec`` by JSON names."""
    return make("NetworkPolicy", name, spec, namespace=namespace)


def global_policy(name: str, **spec: Any) -> Object:
    """A GlobalNetworkPolicy; ``spec`` by JSON names."""
    return make("GlobalNetworkPolicy", name, spec)


def network_set(name: str, *nets: str, namespace: str = "", **labels: str) -> Object:
    """A GlobalNetworkSet, or with ``namespace`` a NetworkSet."""
    kind = "NetworkSet" if namespace else "GlobalNetworkSet"
    return make(kind, name, {"nets": list(nets)}, namespace=namespace, labels=labels)


def rule(action: str, **fields: Any) -> dict[str, Any]:
    """A policy rule; ``fields`` by JSON names."""
    return {"action": action, **fields}


def gone(found: Object) -> Object:
    """The deletion of an object."""
    return found[0], None
