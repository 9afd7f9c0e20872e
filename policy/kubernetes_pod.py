"""A Kubernetes Pod as the workload endpoint that Calico makes of it.

Source: Calico ``libcalico-go/lib/backend/k8s/conversion/{conversion,workload_endpoint_default}.go``. Documents are
dicts as parsed from JSON or YAML.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from calipy.datastore.names import format_workload_endpoint, kubernetes_interface
from calipy.datastore.resources import (
    IPNAT,
    NoStatus,
    ObjectMeta,
    Resource,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calipy.errors import InvalidInputError
from calipy.policy.effective import NAMESPACE_LABEL, SERVICE_ACCOUNT_LABEL
from calipy.policy.kubernetes import namespace_profile_name, service_account_profile_name
from calipy.policy.kubernetes_qos import qos_controls

ORCHESTRATOR_LABEL: Final = "projectcalico.org/orchestrator"
POD_IP: Final = "cni.projectcalico.org/podIP"
POD_IPS: Final = "cni.projectcalico.org/podIPs"
AWS_POD_IPS: Final = "vpc.amazonaws.com/pod-ips"
CONTAINER_ID: Final = "cni.projectcalico.org/containerID"
FLOATING_IPS: Final = "cni.projectcalico.org/floatingIPs"
SOURCE_PREFIXES: Final = "cni.projectcalico.org/allowedSourcePrefixes"
NETWORK_STATUS: Final = "k8s.v1.cni.cncf.io/network-status"

_OVER: Final = frozenset({"Failed", "Succeeded", "Completed"})
_LABEL_LENGTH: Final = 63
_PROTOCOLS: Final = frozenset({"TCP", "UDP", "SCTP"})


@dataclass(frozen=True, slots=True)
class PodState:
    """Where a pod stands in its life.

    Attributes:
        valid: it becomes an endpoint: scheduled, and not in its node's own network.
        ready: valid, and it has an address.
        finished: it has run, and its addresses are no longer its own.
    """

    valid: bool
    ready: bool
    finished: bool


def pod_state(document: Mapping[str, Any]) -> PodState:
    """Whether a pod becomes an endpoint, has an address, is over."""
    spec, status = document.get("spec") or {}, document.get("status") or {}
    annotations = (document.get("metadata") or {}).get("annotations") or {}
    valid = bool(spec.get("nodeName")) and not spec.get("hostNetwork")
    has_address = bool(status.get("podIP") or annotations.get(POD_IP) or annotations.get(AWS_POD_IPS))
    deleting = (document.get("metadata") or {}).get("deletionTimestamp") is not None
    taken_back = deleting and "" in {annotations.get(POD_IP), annotations.get(AWS_POD_IPS)}
    return PodState(valid, valid and has_address, taken_back or status.get("phase") in _OVER)


def convert_pod(document: Mapping[str, Any]) -> Resource[WorkloadEndpointSpec, NoStatus]:
    """A pod's workload endpoint; without addresses when the pod has none (yet, or any more).

    Quality-of-service annotations that cannot be used are left out or brought into range, as Calico does.

    Raises:
        InvalidInputError: not scheduled, or an address or annotation that cannot be read; names the field.
    """
    metadata, spec = document.get("metadata") or {}, document.get("spec") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    namespace, name, node = metadata.get("namespace", ""), metadata.get("name", ""), spec.get("nodeName") or ""
    if not node:
        raise InvalidInputError("not scheduled", field="spec.nodeName", value=node, remedy="wait for its node")
    account = spec.get("serviceAccountName") or ""
    profiles = [namespace_profile_name(namespace)]
    labels = {**(metadata.get("labels") or {}), NAMESPACE_LABEL: namespace, ORCHESTRATOR_LABEL: "k8s"}
    if account:
        profiles.append(service_account_profile_name(namespace, account))
        if len(account) < _LABEL_LENGTH:
            labels[SERVICE_ACCOUNT_LABEL] = account
    networks = () if pod_state(document).finished else tuple(_networks(document))
    kept = {NETWORK_STATUS: annotations[NETWORK_STATUS]} if NETWORK_STATUS in annotations else {}
    return Resource(
        kind="WorkloadEndpoint",
        metadata=ObjectMeta(
            name=format_workload_endpoint(node, "k8s", name, "eth0"),
            generate_name=metadata.get("generateName", ""),
            namespace=namespace,
            uid=metadata.get("uid", ""),
            creation_timestamp=metadata.get("creationTimestamp"),
            labels=labels,
            annotations=kept,
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node=node,
            container_id=annotations.get(CONTAINER_ID, ""),
            pod=name,
            endpoint="eth0",
            service_account_name=account,
            ip_networks=networks,
            ip_nats=_floating(annotations, networks),
            profiles=tuple(profiles),
            interface_name=kubernetes_interface(namespace, name),
            ports=tuple(_ports(spec)),
            allow_spoofed_source_prefixes=_source_prefixes(annotations),
            qos_controls=qos_controls(annotations),
        ),
    )


def _networks(document: Mapping[str, Any]) -> Iterator[str]:
    status, annotations = document.get("status") or {}, (document.get("metadata") or {}).get("annotations") or {}
    if status.get("podIPs"):
        found, field = [entry["ip"] for entry in status["podIPs"]], "status.podIPs"
    elif status.get("podIP"):
        found, field = [status["podIP"]], "status.podIP"
    else:
        key = next((key for key in (POD_IPS, POD_IP, AWS_POD_IPS) if annotations.get(key)), "")
        found, field = annotations[key].split(",") if key else [], f"metadata.annotations[{key}]"
    for text in found:
        try:
            yield str(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise InvalidInputError("not an address", field=field, value=text, remedy="an address or CIDR") from None


def _floating(annotations: Mapping[str, str], networks: tuple[str, ...]) -> tuple[IPNAT, ...]:
    if FLOATING_IPS not in annotations or not networks:
        return ()
    targets = {":" in network: network.partition("/")[0] for network in networks}
    return tuple(
        IPNAT(internal_ip=targets[":" in address], external_ip=address)
        for address in _json_list(annotations, FLOATING_IPS)
        if (":" in address) in targets
    )


def _source_prefixes(annotations: Mapping[str, str]) -> tuple[str, ...]:
    if not annotations.get(SOURCE_PREFIXES):
        return ()
    found = []
    for text in _json_list(annotations, SOURCE_PREFIXES):
        try:
            if "/" not in text:
                raise ValueError(text)
            found.append(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise InvalidInputError(
                "not a CIDR", field=f"metadata.annotations[{SOURCE_PREFIXES}]", value=text, remedy="like 10.0.0.0/24"
            ) from None
    return tuple(found)


def _json_list(annotations: Mapping[str, str], key: str) -> list[str]:
    try:
        found = json.loads(annotations[key])
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise InvalidInputError(
            "not a JSON list of texts", field=f"metadata.annotations[{key}]", value=annotations[key], remedy='["…"]'
        )
    return found


def _ports(spec: Mapping[str, Any]) -> Iterator[WorkloadEndpointPort]:
    """Declared ports that have a name or a host port, of containers, then of init containers."""
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        for port in container.get("ports") or ():
            number, host_port, name = port.get("containerPort", 0), port.get("hostPort", 0), port.get("name", "")
            protocol = port.get("protocol") or "TCP"
            if number and (host_port or name) and protocol in _PROTOCOLS:
                yield WorkloadEndpointPort(
                    name=name, protocol=protocol, port=number, host_port=host_port, host_ip=port.get("hostIP", "")
                )
