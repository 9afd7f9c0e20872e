"""What is asked for a pod's network and what comes of it; names and objects derived from that. Pure.

Source: Calico ``cni-plugin`` and ``libcalico-go/lib/names``.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from calipy.datastore import names
from calipy.datastore.resources import (
    EntityRule,
    NoStatus,
    ObjectMeta,
    ProfileSpec,
    Resource,
    Rule,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calipy.errors import InvalidInputError
from calipy.net import IPAddress, family_of
from calipy.policy.kubernetes import namespace_profile_name, service_account_profile_name

DEFAULT_NETWORK: Final = "k8s-pod-network"
"""Name of the network in Calico's own CNI configuration; it begins every handle."""

_NAMESPACE_LABEL: Final = "projectcalico.org/namespace"
_ORCHESTRATOR_LABEL: Final = "projectcalico.org/orchestrator"
_SERVICE_ACCOUNT_LABEL: Final = "projectcalico.org/serviceaccount"

_CONTAINER_ID: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_EPOCH: Final = datetime.date(1970, 1, 1).toordinal()
_INTERFACE: Final = re.compile(r"[^\s/:]{1,15}")

WorkloadEndpoint = Resource[WorkloadEndpointSpec, NoStatus]


@dataclass(frozen=True, slots=True)
class PodRequest:
    """A pod's interface, as a container runtime or the command line asks for it.

    Attributes:
        container_id: the sandbox; unique for each incarnation of the pod.
        netns: path of its network namespace; may be "" when deleting.
        ifname: name inside the pod.
        namespace: of the pod.
        name: of the pod; ``cni`` has none.
        labels: of the pod.
        orchestrator: ``k8s`` for pods (also those of the command line), ``cni`` for containers without names.
        service_account: of the pod, "" for none.
        ports: named ports.
        network: name of the network.
        ips: given addresses, at most one of each family; they decide which families the pod has.
        pools4, pools6: CIDRs or names of the pools to take addresses from, () = as the pools select.
        ipv4, ipv6: families wanted.
        mtu: bytes, 0 = the node's.
        mac: of the pod's end, "" lets the kernel choose.
        forwarding: the pod may forward packets.
        wait: seconds to wait until policy is in force.
    """

    container_id: str
    netns: str
    ifname: str = "eth0"
    namespace: str = "default"
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    orchestrator: Literal["k8s", "cni"] = "k8s"
    service_account: str = "default"
    ports: tuple[WorkloadEndpointPort, ...] = ()
    network: str = DEFAULT_NETWORK
    ips: tuple[str, ...] = ()
    pools4: tuple[str, ...] = ()
    pools6: tuple[str, ...] = ()
    ipv4: bool = True
    ipv6: bool = False
    mtu: int = 0
    mac: str = ""
    forwarding: bool = False
    wait: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what could not be the name of anything.

        Raises:
            InvalidInputError: naming the field.
        """
        _demand(_CONTAINER_ID, self.container_id, "container_id", "letters, digits, _ . and - only")
        _demand(_CONTAINER_ID, self.network, "network", "letters, digits, _ . and - only")
        _demand(_DNS_LABEL, self.namespace, "namespace", "lower-case letters, digits and -, at most 63")
        _demand(_INTERFACE, self.ifname, "ifname", "1 to 15 characters, no /, : or space")
        if self.orchestrator == "k8s":
            _demand(
                _DNS_NAME, self.name, "name", "lower-case letters, digits, - and .; a letter or digit at either end"
            )
        if self.ifname in {".", ".."}:
            raise InvalidInputError("not an interface name", field="ifname", value=self.ifname)
        if self.mtu and not 68 <= self.mtu <= 65535:
            raise InvalidInputError("not an MTU", field="mtu", value=self.mtu, remedy="68 to 65535 bytes, 0 = default")
        families = [family_of(address) for address in self.ips]
        if len(set(families)) < len(families):
            raise InvalidInputError("at most one address of each family", field="ips", value=list(self.ips))
        for address in self.ips:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise InvalidInputError("not an IP address", field="ips", value=address) from None
        if not self.families:
            raise InvalidInputError("at least one of ipv4 and ipv6 must be wanted", field="ipv4", value=False)

    @property
    def families(self) -> tuple[Literal[4, 6], ...]:
        """Families the pod will have: those of the given addresses, else those wanted."""
        if self.ips:
            return tuple(sorted(family_of(address) for address in self.ips))
        return tuple(family for family, wanted in ((4, self.ipv4), (6, self.ipv6)) if wanted)  # type: ignore[misc] # literals

    @property
    def workload(self) -> str:
        """The pod, or the container where there is no pod."""
        return self.name if self.orchestrator == "k8s" else self.container_id

    @property
    def handle(self) -> str:
        """Owner of the addresses in IPAM: ``<network>.<container id>``."""
        return f"{self.network}.{self.container_id}"

    @property
    def interface(self) -> str:
        """Name of the host's end. Only a pod's further interfaces go beyond Calico's naming."""
        further = "" if self.ifname == "eth0" else f".{self.ifname}"
        if self.orchestrator == "cni" and not further:
            return f"cali{self.container_id[:11]}"
        return names.kubernetes_interface(self.namespace, self.workload + further)

    @property
    def profiles(self) -> tuple[str, ...]:
        """Profiles that apply to the pod, in order."""
        if self.orchestrator == "cni":
            return (self.network,)
        found = [namespace_profile_name(self.namespace)]
        if self.service_account:
            found.append(service_account_profile_name(self.namespace, self.service_account))
        return tuple(found)

    def endpoint_name(self, node: str) -> str:
        """Name of the WorkloadEndpoint."""
        return names.format_workload_endpoint(node, self.orchestrator, self.workload, self.ifname)

    def attributes(self, node: str, now: int) -> dict[str, str]:
        """What IPAM stores with each address; ``now`` in nanoseconds since 1970."""
        of_pod = {"namespace": self.namespace, "pod": self.name} if self.orchestrator == "k8s" else {}
        return {"node": node, **of_pod, "timestamp": go_time(now)}


@dataclass(frozen=True, slots=True)
class PodAddress:
    """An address of a pod and the block it is from ("" when not known)."""

    address: IPAddress
    block: str = ""


@dataclass(frozen=True, slots=True)
class PodResult:
    """A pod's network as it is now.

    Attributes:
        interface: host's end.
        programmed: policy was seen to be in force; until it is, the pod can send and receive nothing.
        milliseconds: how long each step took: ``datastore`` (reads), ``ipam``, ``veth`` (beside these two),
            ``addresses``, ``endpoint``, ``policy``, and ``total``.
    """

    endpoint: str
    interface: str
    mac: str
    mtu: int
    addresses: tuple[PodAddress, ...]
    programmed: bool
    milliseconds: Mapping[str, float]


def build_endpoint(
    request: PodRequest, node: str, mac: str, addresses: tuple[IPAddress, ...], existing: WorkloadEndpoint | None
) -> WorkloadEndpoint:
    """The endpoint to write: ``existing`` (of an earlier incarnation) brought up to date, or a new one."""
    labels = {**request.labels, _NAMESPACE_LABEL: request.namespace, _ORCHESTRATOR_LABEL: request.orchestrator}
    account = request.service_account if request.orchestrator == "k8s" else ""
    if account:
        labels[_SERVICE_ACCOUNT_LABEL] = account
    spec = WorkloadEndpointSpec(
        orchestrator=request.orchestrator,
        node=node,
        container_id=request.container_id,
        pod=request.name if request.orchestrator == "k8s" else "",
        endpoint=request.ifname,
        service_account_name=account,
        ip_networks=tuple(f"{address}/{address.max_prefixlen}" for address in addresses),
        profiles=request.profiles,
        interface_name=request.interface,
        mac=mac,
        ports=request.ports,
    )
    if existing is not None:
        metadata = msgspec.structs.replace(existing.metadata, labels=labels)
        return msgspec.structs.replace(existing, metadata=metadata, spec=spec)
    metadata = ObjectMeta(name=request.endpoint_name(node), namespace=request.namespace, labels=labels)
    return Resource(kind="WorkloadEndpoint", metadata=metadata, spec=spec)


def network_profile(network: str) -> Resource[ProfileSpec, NoStatus]:
    """Profile of a network without Kubernetes: its containers may talk among themselves and to everybody."""
    spec = ProfileSpec(
        ingress=(Rule(action="Allow", source=EntityRule(selector=f"has({network})")),),
        egress=(Rule(action="Allow"),),
        labels_to_apply={network: ""},
    )
    return Resource(kind="Profile", metadata=ObjectMeta(name=network), spec=spec)


def go_time(nanoseconds: int) -> str:
    """A moment as Go prints it, UTC: ``2026-08-01 10:00:00.123456789 +0000 UTC``, zeros at the end left out."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    days, second = divmod(seconds, 86400)
    date = datetime.date.fromordinal(_EPOCH + days)
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{date} {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}{digits} +0000 UTC"


def _demand(pattern: re.Pattern[str], value: str, field_name: str, remedy: str) -> None:
    if not pattern.fullmatch(value):
        raise InvalidInputError("not allowed", field=field_name, value=value, remedy=remedy)
