"""Cluster-wide state and controllers. Source: Calico ``api/pkg/apis/projectcalico/v3``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from calipy.datastore.kinds.base import (
    Always,
    Duration,
    Given,
    GoStruct,
    Int32,
    Length,
    Range,
    Required,
    Timestamp,
    UInt32,
    Unique,
    enum,
)

Switch = Annotated[str | None, enum("Enabled", "Disabled")]


class ClusterInformationSpec(GoStruct, frozen=True, kw_only=True):
    """What holds for the cluster.

    Attributes:
        cluster_guid: 32 hex digits.
        datastore_ready: agents stop when False; None while nobody has set it.
    """

    cluster_guid: str = msgspec.field(default="", name="clusterGUID")
    cluster_type: str = ""
    calico_version: str = ""
    datastore_ready: bool | None = None
    variant: str = ""


class TemplateSpec(GoStruct, frozen=True, kw_only=True):
    """How automatic host endpoints are made."""

    generate_name: Annotated[str, Length(high=253)] = ""
    interface_cidrs: tuple[str, ...] = msgspec.field(default=(), name="interfaceCIDRs")
    interface_pattern: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    node_selector: str = ""


class AutoHostEndpointConfig(GoStruct, frozen=True, kw_only=True):
    auto_create: Annotated[str, enum("Enabled", "Disabled")] = ""
    create_default_host_endpoint: Annotated[str, enum("Enabled", "Disabled")] = ""
    templates: tuple[TemplateSpec, ...] = ()


class NodeControllerConfig(GoStruct, frozen=True, kw_only=True):
    reconciler_period: Duration | None = None
    sync_labels: Annotated[str, enum("Enabled", "Disabled")] = ""
    host_endpoint: AutoHostEndpointConfig | None = None
    leak_grace_period: Duration | None = None


class ReconcilingControllerConfig(GoStruct, frozen=True, kw_only=True):
    reconciler_period: Duration | None = None


class LoadBalancerControllerConfig(GoStruct, frozen=True, kw_only=True):
    assign_ips: Annotated[str, enum("AllServices", "RequestedServicesOnly")] = msgspec.field(
        default="", name="assignIPs"
    )


class MigrationControllerConfig(GoStruct, frozen=True, kw_only=True):
    policy_name_migrator: Annotated[str, enum("Enabled", "Disabled")] = ""


class ControllersConfig(GoStruct, frozen=True, kw_only=True):
    """Each controller: None is off."""

    node: NodeControllerConfig | None = None
    policy: ReconcilingControllerConfig | None = None
    workload_endpoint: ReconcilingControllerConfig | None = None
    service_account: ReconcilingControllerConfig | None = None
    namespace: ReconcilingControllerConfig | None = None
    load_balancer: LoadBalancerControllerConfig | None = None
    migration: MigrationControllerConfig | None = None


class KubeControllersConfigurationSpec(GoStruct, frozen=True, kw_only=True):
    """Settings of kube-controllers."""

    log_severity_screen: Annotated[str, enum("None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic")] = ""
    health_checks: Annotated[str, enum("Enabled", "Disabled")] = ""
    etcd_v3_compaction_period: Duration | None = None
    prometheus_metrics_port: Annotated[int | None, Range(0, 65535)] = None
    controllers: ControllersConfig = ControllersConfig()
    debug_profile_port: Annotated[Int32 | None, Range(0, 65535)] = None


class KubeControllersConfigurationStatus(GoStruct, frozen=True, kw_only=True):
    running_config: dict[str, Any] | None = None
    environment_vars: dict[str, str] = msgspec.field(default_factory=dict)


class CalicoNodeStatusSpec(GoStruct, frozen=True, kw_only=True):
    """Which report a node is asked for, and how often (0 = once)."""

    node: str = ""
    classes: Annotated[tuple[Annotated[str, enum("Agent", "BGP", "Routes")], ...], Given(), Unique()] = ()
    update_period_seconds: Annotated[UInt32 | None, Required(), Range(0, 86400)] = None


class BGPDaemonStatus(GoStruct, frozen=True, kw_only=True):
    state: str = ""
    version: str = ""
    router_id: str = msgspec.field(default="", name="routerID")
    last_boot_time: str = ""
    last_reconfiguration_time: str = ""


class NodeAgentStatus(GoStruct, frozen=True, kw_only=True):
    bird_v4: BGPDaemonStatus = BGPDaemonStatus()
    bird_v6: BGPDaemonStatus = BGPDaemonStatus()


class NodePeer(GoStruct, frozen=True, kw_only=True):
    peer_ip: str = msgspec.field(default="", name="peerIP")
    type: str = ""
    state: str = ""
    since: str = ""


class NodeBGPStatus(GoStruct, frozen=True, kw_only=True):
    number_established_v4: Annotated[int, Always()] = 0
    number_not_established_v4: Annotated[int, Always()] = 0
    number_established_v6: Annotated[int, Always()] = 0
    number_not_established_v6: Annotated[int, Always()] = 0
    peers_v4: tuple[NodePeer, ...] = ()
    peers_v6: tuple[NodePeer, ...] = ()


class LearnedFrom(GoStruct, frozen=True, kw_only=True):
    source_type: str = ""
    peer_ip: str = msgspec.field(default="", name="peerIP")


class NodeRoute(GoStruct, frozen=True, kw_only=True):
    type: str = ""
    destination: str = ""
    gateway: str = ""
    interface: str = ""
    learned_from: LearnedFrom = LearnedFrom()


class NodeRoutesStatus(GoStruct, frozen=True, kw_only=True):
    routes_v4: tuple[NodeRoute, ...] = ()
    routes_v6: tuple[NodeRoute, ...] = ()


class CalicoNodeStatusStatus(GoStruct, frozen=True, kw_only=True):
    """The report; ``last_updated`` None is written as ``null``."""

    last_updated: Annotated[Timestamp | None, Always()] = None
    agent: NodeAgentStatus = NodeAgentStatus()
    bgp: NodeBGPStatus = NodeBGPStatus()
    routes: NodeRoutesStatus = NodeRoutesStatus()
