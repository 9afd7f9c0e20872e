"""What Calico's client fills in before it writes, and what a reader makes of absent fields.

Source: Calico ``api/pkg/defaults``, the CRD schemas, and ``libcalico-go/lib/clientv3/{ippool,tier}.go``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from calipy.datastore import names
from calipy.datastore.keys import canonical_cidr
from calipy.datastore.kinds.bgp import BGPConfigurationSpec
from calipy.datastore.kinds.cluster import KubeControllersConfigurationSpec
from calipy.datastore.kinds.endpoints import WorkloadEndpointSpec
from calipy.datastore.kinds.felix import FelixConfigurationSpec
from calipy.datastore.kinds.meta import ObjectMeta, Resource
from calipy.datastore.kinds.policy import TierSpec
from calipy.datastore.kinds.pools import IPPoolSpec
from calipy.datastore.policynames import NAMED_POLICIES, TIER_LABEL
from calipy.errors import InvalidInputError

BUILT_IN_TIERS: Final[dict[str, TierSpec]] = {
    "default": TierSpec(order=1_000_000, default_action="Deny"),
    "kube-admin": TierSpec(order=1_000, default_action="Pass"),
    "kube-baseline": TierSpec(order=10_000_000, default_action="Pass"),
}
"""The tiers every store has, in the order in which they are made."""

DEFAULT_TIER_ORDER: Final = 1_000_000.0
NAMESPACE_LABEL: Final = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL: Final = "projectcalico.org/orchestrator"


def fill(resource: Resource[Any, Any]) -> Resource[Any, Any]:
    """The resource as it is to be written. Doing it twice changes nothing."""
    if resource.kind in NAMED_POLICIES:
        return _policy(resource)
    if resource.kind == "StagedKubernetesNetworkPolicy":
        return replace(resource, spec=replace(resource.spec, staged_action=resource.spec.staged_action or "Set"))
    if resource.kind == "WorkloadEndpoint":
        return _workload_endpoint(resource)
    if resource.kind == "Tier":
        return replace(resource, spec=_tier(resource.metadata.name, resource.spec))
    default = _BY_SPEC.get(resource.kind)
    return replace(resource, spec=default(resource.spec)) if default else resource


def show(resource: Resource[Any, Any]) -> Resource[Any, Any]:
    """The resource as Calico's client shows it: policies carry the label of their tier, stored or not."""
    if resource.kind not in NAMED_POLICIES:
        return resource
    return replace(resource, metadata=_with_labels(resource.metadata, {TIER_LABEL: resource.spec.tier or "default"}))


def _with_labels(metadata: ObjectMeta, labels: dict[str, str]) -> ObjectMeta:
    return replace(metadata, labels={**metadata.labels, **labels})


def _policy(resource: Resource[Any, Any]) -> Resource[Any, Any]:
    spec = replace(resource.spec, tier=resource.spec.tier or "default")
    if hasattr(spec, "staged_action"):
        spec = replace(spec, staged_action=spec.staged_action or "Set")
    if getattr(spec, "staged_action", "") == "Delete":
        spec = replace(spec, types=())
    elif not spec.types:
        types: tuple[str, ...] = ("Ingress",) if spec.ingress or not spec.egress else ()
        spec = replace(spec, types=(*types, "Egress") if spec.egress else types)
    return replace(resource, spec=spec, metadata=_with_labels(resource.metadata, {TIER_LABEL: spec.tier}))


def _workload_endpoint(resource: Resource[Any, Any]) -> Resource[Any, Any]:
    spec: WorkloadEndpointSpec = resource.spec
    metadata = _with_labels(
        resource.metadata, {NAMESPACE_LABEL: resource.metadata.namespace, ORCHESTRATOR_LABEL: spec.orchestrator}
    )
    if not metadata.name:
        metadata = replace(metadata, name=endpoint_name(spec))
    return replace(resource, metadata=metadata)


def endpoint_name(spec: WorkloadEndpointSpec) -> str:
    """The name an endpoint must have by its spec. Raises ``InvalidInputError`` for a missing or unfit part."""
    third, field = {
        "k8s": (spec.pod, "pod"),
        "cni": (spec.container_id, "containerID"),
        "libnetwork": ("libnetwork", "orchestrator"),
    }.get(spec.orchestrator, (spec.workload, "workload"))
    try:
        return names.format_workload_endpoint(spec.node, spec.orchestrator, third, spec.endpoint)
    except InvalidInputError as error:
        raise InvalidInputError(
            "is part of the endpoint's name and must be given, without dashes at its ends",
            field=f"spec.{field if error.field == 'workload' else error.field}",
            value=error.value,
        ) from None


def _tier(name: str, spec: TierSpec) -> TierSpec:
    built_in = BUILT_IN_TIERS.get(name, TierSpec(order=DEFAULT_TIER_ORDER, default_action="Deny"))
    return replace(
        spec,
        order=built_in.order if spec.order is None else spec.order,
        default_action=built_in.default_action if spec.default_action is None else spec.default_action,
    )


def fill_pool(spec: IPPoolSpec) -> IPPoolSpec:
    """A pool in which old writers left out fields has their defaults, for every reader too."""
    try:
        cidr = canonical_cidr(_unmapped(spec.cidr)) if "/" in spec.cidr else spec.cidr
    except ValueError:
        cidr = spec.cidr  # the check that follows says what is wrong with it
    return replace(
        spec,
        cidr=cidr,
        block_size=spec.block_size or (122 if ":" in cidr else 26),
        ipip_mode=spec.ipip_mode or "Never",
        vxlan_mode=spec.vxlan_mode or "Never",
        node_selector=spec.node_selector or "all()",
        allowed_uses=spec.allowed_uses or ("Workload", "Tunnel"),
        assignment_mode="Automatic" if spec.assignment_mode is None else spec.assignment_mode,
    )


def _unmapped(cidr: str) -> str:
    """Go writes a prefix of IPv4-mapped addresses as the IPv4 prefix that it is."""
    network = ipaddress.ip_network(cidr)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    return cidr if mapped is None or network.prefixlen < 96 else f"{mapped}/{network.prefixlen - 96}"


def _bgp_configuration(spec: BGPConfigurationSpec) -> BGPConfigurationSpec:
    return replace(
        spec,
        log_severity_screen=spec.log_severity_screen or "Info",
        service_load_balancer_aggregation=_or(spec.service_load_balancer_aggregation, "Enabled"),
    )


def _felix_configuration(spec: FelixConfigurationSpec) -> FelixConfigurationSpec:
    if spec.bpf_connect_time_load_balancing_enabled is not None:  # the older field wins, and turns the other one off
        spec = replace(
            spec,
            bpf_connect_time_load_balancing="Enabled" if spec.bpf_connect_time_load_balancing_enabled else "Disabled",
            bpf_host_networked_nat_without_ctlb="Disabled",
        )
    return replace(
        spec,
        nftables_mode=_or(spec.nftables_mode, "Auto"),
        nftables_flow_table_offload=_or(spec.nftables_flow_table_offload, "Disabled"),
        floating_ips=_or(spec.floating_ips, "Disabled"),
        bpf_connect_time_load_balancing=_or(spec.bpf_connect_time_load_balancing, "TCP"),
        bpf_host_networked_nat_without_ctlb=_or(spec.bpf_host_networked_nat_without_ctlb, "Enabled"),
    )


def _kube_controllers(spec: KubeControllersConfigurationSpec) -> KubeControllersConfigurationSpec:
    controllers = spec.controllers
    if controllers.node is not None and controllers.node.leak_grace_period is None:
        controllers = replace(controllers, node=replace(controllers.node, leak_grace_period="15m0s"))
    if controllers.load_balancer is not None and not controllers.load_balancer.assign_ips:
        controllers = replace(controllers, load_balancer=replace(controllers.load_balancer, assign_ips="AllServices"))
    if controllers.migration is not None and not controllers.migration.policy_name_migrator:
        controllers = replace(controllers, migration=replace(controllers.migration, policy_name_migrator="Enabled"))
    return replace(
        spec,
        health_checks=spec.health_checks or "Enabled",
        prometheus_metrics_port=9094 if spec.prometheus_metrics_port is None else spec.prometheus_metrics_port,
        controllers=controllers,
    )


def _or(value: str | None, default: str) -> str:
    return default if value is None else value


_BY_SPEC: dict[str, Callable[[Any], Any]] = {
    "IPPool": fill_pool,
    "BGPConfiguration": _bgp_configuration,
    "FelixConfiguration": _felix_configuration,
    "KubeControllersConfiguration": _kube_controllers,
}
