"""Network-policy cases: a cluster, its states one after another, and who may reach whom in each.

Reads ``netpol-case/1`` files and keeps the cluster of a case as Calico resources, the way its controllers and CNI
plugin would have written them. Knows nothing of how reachability is found out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from calipy.datastore.codec import new, read_document
from calipy.datastore.keys import NAMESPACED
from calipy.datastore.names import format_workload_endpoint, kubernetes_interface
from calipy.datastore.resources import (
    NodeBGPSpec,
    NodeSpec,
    Resource,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calipy.errors import InvalidInputError
from calipy.net import IPAddress
from calipy.policy.kubernetes import (
    admit_network_policy,
    convert_namespace,
    convert_network_policy,
    convert_service_account,
    namespace_profile_name,
    service_account_profile_name,
)
from calipy.policy.values import ICMP

FORMAT: Final = "netpol-case/1"
UPLINK: Final = "uplink0"
"""The interface of every node towards the common segment."""

_KUBERNETES: Final = "networking.k8s.io/v1"
_PROBE = re.compile(r"(tcp|udp|sctp|icmp)(6?)/([0-9]+)(?:/([0-9]+))?(?:\+sport=([0-9]+))?")
_FORMAT_LINE = re.compile(rf"format:\s*['\"]?{FORMAT}['\"]?\s*")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Probe:
    """What is sent: ``tcp/8080``, ``icmp6/128``, ``udp/53+sport=5353``.

    Attributes:
        protocol: as policy names it: ``icmpv6`` for ICMP over IPv6.
        port: destination port, 0 for ICMP.
        source_port: None for any ephemeral one.
    """

    family: int
    protocol: str
    port: int = 0
    icmp: ICMP | None = None
    source_port: int | None = None


def parse_probe(text: str) -> Probe:
    """Read a probe.

    Raises:
        InvalidInputError: not one.
    """
    found = _PROBE.fullmatch(text)
    if found is None:
        raise InvalidInputError("not a probe", field="probes", value=text, remedy="for example tcp/8080 or icmp6/128")
    protocol, six, number, code, source_port = found.groups()
    family = 6 if six else 4
    if protocol == "icmp":
        return Probe(family, "icmpv6" if six else "icmp", icmp=ICMP(int(number), int(code or 0)))
    return Probe(family, protocol, int(number), source_port=int(source_port) if source_port else None)


@dataclass(frozen=True, slots=True)
class State:
    """One moment of a case: everything that exists, and the table that must hold.

    Attributes:
        changes: the cluster after each action that led here, in order; the last one is ``cluster``.
    """

    name: str
    cluster: Cluster
    endpoints: tuple[str, ...]
    tables: Mapping[str, Mapping[str, str]]
    changes: tuple[Cluster, ...]

    def cells(self) -> Iterator[tuple[str, str, str, str]]:
        """Probe, source, destination and ``A`` or ``D``, for everything that is to be probed.

        Raises:
            InvalidInputError: a row is not as long as the list of endpoints.
        """
        for probe, table in self.tables.items():
            for source, row in table.items():
                cells = row.replace(" ", "")
                if len(cells) != len(self.endpoints):
                    raise InvalidInputError("wrong number of cells", field=f"{self.name}: {probe}: {source}", value=row)
                for destination, cell in zip(self.endpoints, cells, strict=True):
                    if cell in {"A", "D"}:
                        yield probe, source, destination, cell


@dataclass(frozen=True, slots=True)
class Site:
    """Where an endpoint of a table lives.

    Attributes:
        machine: the node or external in whose namespace it is, for a pod its node.
        pod: it has a namespace of its own.
        addresses: by family.
    """

    machine: str
    pod: bool
    addresses: Mapping[int, IPAddress]


class Cluster:
    """The objects of a case. ``apply`` changes it; ``resources`` is what the datastore would hold."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.endpoint_to_host = (document.get("settings") or {}).get("endpointToHostAction", "Accept")
        self._nodes: dict[str, dict[str, Any]] = {node["name"]: node for node in document["nodes"]}
        self._externals = {external["name"]: external for external in document.get("externals") or ()}
        self._namespaces: dict[str, dict[str, str]] = {
            space["name"]: space.get("labels") or {} for space in document["namespaces"]
        }
        self._accounts: dict[tuple[str, str], dict[str, str]] = {
            (account["namespace"], account["name"]): account.get("labels") or {}
            for account in document.get("serviceAccounts") or ()
        }
        self._pods = {f"{pod['namespace']}/{pod['name']}": pod for pod in document["pods"]}
        self._objects: dict[tuple[str, str, str, str], Mapping[str, Any]] = {}
        for found in document.get("policies") or ():
            self.apply({"apply": found})

    def apply(self, action: Mapping[str, Any]) -> None:
        """Carry out one action of a step.

        Raises:
            InvalidInputError: an action that the format does not know.
            KeyError: it is about something that is not there.
        """
        [(name, given)] = action.items()
        match name:
            case "apply":
                metadata = dict(given["metadata"])
                key = _identity(given["apiVersion"], given["kind"], metadata)
                if key[2]:
                    metadata["namespace"] = key[2]
                self._objects[key] = {**given, "metadata": metadata}
            case "delete":
                del self._objects[_identity(given["apiVersion"], given["kind"], given)]
            case "setPodLabels":
                self._pods[given["pod"]] = {**self._pods[given["pod"]], "labels": given["labels"]}
            case "setNamespaceLabels":
                self._namespaces[given["namespace"]] = given["labels"]
            case "setServiceAccountLabels":
                self._accounts[given["namespace"], given["name"]] = given["labels"]
            case "addPod":
                self._pods[f"{given['namespace']}/{given['name']}"] = given
            case "deletePod":
                del self._pods[given]
            case "addNamespace":
                self._namespaces[given["name"]] = given.get("labels") or {}
            case "deleteNamespace":
                self._delete_namespace(given)
            case _:
                raise InvalidInputError("unknown action", field="steps[].actions[]", value=name)

    def addresses(self, endpoint: str) -> dict[int, IPAddress]:
        """Addresses by family of an endpoint as tables name it: ``ns/pod``, ``node:n1``, ``ext:alpha``.

        Raises:
            KeyError: there is none of that name.
        """
        return _addresses(self._found(endpoint))

    def site(self, endpoint: str) -> Site:
        """Where an endpoint as tables name it lives. Raises as ``addresses``."""
        found = self._found(endpoint)
        own = "node" in found and not found.get("hostNetwork")
        return Site(found.get("node") or found["name"], own, _addresses(found))

    def machines(self) -> dict[str, Site]:
        """All nodes and externals by name."""
        found = {**self._nodes, **self._externals}
        return {name: Site(name, False, _addresses(machine)) for name, machine in found.items()}

    def pods(self) -> dict[str, Site]:
        """All pods with a namespace of their own, as tables name them."""
        return {name: site for name in self._pods if (site := self.site(name)).pod}

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Names of the namespaces."""
        return tuple(self._namespaces)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes."""
        return tuple(self._nodes)

    def _found(self, endpoint: str) -> Mapping[str, Any]:
        kind, _, name = endpoint.partition(":")
        named = {"node": self._nodes, "ext": self._externals}.get(kind)
        found: Mapping[str, Any] = self._pods[endpoint] if named is None else named[name]
        return found

    def resources(self) -> list[Resource[Any, Any]]:
        """Everything, as Calico's own writers put it into the datastore.

        Raises:
            InvalidInputError: an object that the API would refuse.
        """
        found = [_node(node) for node in self._nodes.values()]
        for name, labels in self._namespaces.items():
            found.append(convert_namespace({"metadata": {"name": name, "labels": labels}}))
        accounts = dict.fromkeys((p["namespace"], p.get("serviceAccount", "default")) for p in self._pods.values())
        for namespace, name in dict.fromkeys((*accounts, *self._accounts)):
            labels = self._accounts.get((namespace, name), {})
            metadata = {"name": name, "namespace": namespace, "labels": labels}
            found.append(convert_service_account({"metadata": metadata}))
        found += [_workload(pod) for pod in self._pods.values() if not pod.get("hostNetwork")]
        for (api_version, kind, _, _), given in self._objects.items():
            if api_version == _KUBERNETES:
                found.append(convert_network_policy(admit_network_policy(given)))
            else:
                found.append(read_document(given, kind))
        return found

    def _delete_namespace(self, name: str) -> None:
        del self._namespaces[name]
        self._pods = {key: pod for key, pod in self._pods.items() if pod["namespace"] != name}
        self._accounts = {key: labels for key, labels in self._accounts.items() if key[0] != name}
        self._objects = {key: found for key, found in self._objects.items() if key[2] != name}


@dataclass(frozen=True, slots=True)
class Case:
    """One file."""

    id: str
    family: str
    theme: str
    requires: tuple[str, ...]
    document: Mapping[str, Any]

    def states(self) -> Iterator[State]:
        """The start state, then the one after each step; each with a cluster of its own."""
        cluster = Cluster(self.document)
        yield self._state("start", [cluster], self.document)
        for step in self.document.get("steps") or ():
            changes = []
            for action in step["actions"]:
                cluster = deepcopy(cluster)
                cluster.apply(action)
                changes.append(cluster)
            yield self._state(step["name"], changes or [cluster], step)

    def _state(self, name: str, changes: Sequence[Cluster], source: Mapping[str, Any]) -> State:
        expect = source["expect"]
        return State(name, changes[-1], tuple(expect["endpoints"]), expect["tables"], tuple(changes))


def is_case(path: Path) -> bool:
    """Whether a file says that it is of this format, in one of its first lines."""
    if path.suffix not in {".yaml", ".yml"}:
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        return any(_FORMAT_LINE.fullmatch(line) for line, _ in zip(lines, range(20), strict=False))


def load(path: Path) -> Case:
    """Read a case.

    Raises:
        InvalidInputError: not YAML, or not of this format.
    """
    try:
        document = yaml.load(path.read_bytes(), _LOADER)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise InvalidInputError(f"not YAML: {error}", field=str(path)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidInputError("not a network-policy case", field=str(path), remedy=f"format: {FORMAT}")
    return Case(
        document["id"],
        document.get("family", ""),
        document.get("theme", ""),
        tuple(document.get("requires") or ()),
        document,
    )


def _identity(api_version: str, kind: str, metadata: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """API version, kind, namespace and name; who names no namespace means ``default``, as on the command line."""
    namespace = (metadata.get("namespace") or "default") if kind in NAMESPACED else ""
    return api_version, kind, namespace, metadata["name"]


def _addresses(found: Mapping[str, Any]) -> dict[int, IPAddress]:
    return {a.version: a for a in (ipaddress.ip_address(found[k]) for k in ("ip", "ip6") if found.get(k))}


def _node(node: Mapping[str, Any]) -> Resource[Any, Any]:
    bgp = NodeBGPSpec(ipv4_address=f"{node['ip']}/24", ipv6_address=f"{node['ip6']}/64" if node.get("ip6") else "")
    return new("Node", node["name"], NodeSpec(bgp=bgp))


def _workload(pod: Mapping[str, Any]) -> Resource[Any, Any]:
    namespace, name, node = pod["namespace"], pod["name"], pod["node"]
    account = pod.get("serviceAccount", "default")
    profiles = pod.get("profiles")
    if profiles is None:
        profiles = (namespace_profile_name(namespace), service_account_profile_name(namespace, account))
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=node,
        pod=name,
        endpoint="eth0",
        service_account_name=account,
        ip_networks=tuple(f"{pod[key]}/{length}" for key, length in (("ip", 32), ("ip6", 128)) if pod.get(key)),
        profiles=tuple(profiles),
        interface_name=kubernetes_interface(namespace, name),
        ports=tuple(
            WorkloadEndpointPort(name=port["name"], protocol=port.get("protocol", "TCP"), port=port["port"])
            for port in pod.get("ports") or ()
        ),
    )
    labels = {
        **(pod.get("labels") or {}),
        "projectcalico.org/namespace": namespace,
        "projectcalico.org/orchestrator": "k8s",
    }
    full_name = format_workload_endpoint(node, "k8s", name, "eth0")
    return new("WorkloadEndpoint", full_name, spec, namespace=namespace, labels=labels)
