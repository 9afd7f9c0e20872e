"""Felix settings. Source: Calico ``api/pkg/apis/projectcalico/v3/felixconfig.go``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from calipy.datastore.kinds.base import (
    Always,
    Duration,
    GoStruct,
    Length,
    Pattern,
    Port,
    Range,
    UInt16,
    UInt32,
    any_case,
    enum,
)
from calipy.datastore.kinds.bgp import LogLevel, RoutePriority

FLAGS = r"^([a-zA-Z0-9_]+=(true|false|)(,|\Z))*\Z"
GATES = r"^([a-zA-Z0-9_]+=[^=,]+,+)*([a-zA-Z0-9_]+=[^=,]+)?\Z"
INTERFACE = r"^(\*|[a-zA-Z0-9_.-]{1,15})\Z"
INTERFACE_FILTER = r"^[a-zA-Z0-9:._+-]{1,15}\Z"
CONNTRACK_TIMEOUT = r"^((?:[0-9]*(?:\.[0-9]*)?(?>ms|us|s|h|m))+|Auto)\Z"
PORT_NUMBER = Range(0, 65535)
COUNT_OR_ALL = Range(low=-1)
MAGLEV = Range(1, 3000)
ConntrackTimeout = Annotated[str | None, Pattern(CONNTRACK_TIMEOUT)]


class ProtoPort(GoStruct, frozen=True, kw_only=True):
    """A failsafe port: no protocol means TCP, no net means all."""

    protocol: str = ""
    port: Annotated[UInt16, Always()] = 0
    net: str = ""


class RouteTableRange(GoStruct, frozen=True, kw_only=True):
    """Routing tables Felix may use, inclusive."""

    min: Annotated[int, Always()] = 0
    max: Annotated[int, Always()] = 0


class HealthTimeoutOverride(GoStruct, frozen=True, kw_only=True):
    """Watchdog of one component of Felix."""

    name: Annotated[str, Always(), Pattern(r"^[a-zA-Z0-9_ -]+\Z")] = ""
    timeout: Annotated[Duration, Always()] = "0s"


class BPFConntrackTimeouts(GoStruct, frozen=True, kw_only=True):
    """Texts: Go durations or ``Auto``."""

    creation_grace_period: ConntrackTimeout = None
    tcp_syn_sent: ConntrackTimeout = None
    tcp_established: ConntrackTimeout = None
    tcp_fins_seen: ConntrackTimeout = None
    tcp_reset_seen: ConntrackTimeout = None
    udp_timeout: ConntrackTimeout = None
    generic_timeout: ConntrackTimeout = None
    icmp_timeout: ConntrackTimeout = None


class FelixConfigurationSpec(GoStruct, frozen=True, kw_only=True):
    """Settings of all nodes (``default``), one node (``node.<node>``) or selected nodes; absent fields are inherited.

    Field and parameter names differ in places (reference: ``felix/config``); merging is by field.
    """

    use_internal_dataplane_driver: bool | None = None
    dataplane_driver: str = ""
    dataplane_watchdog_timeout: Duration | None = None
    ipv6_support: bool | None = None
    route_refresh_interval: Duration | None = None
    interface_refresh_interval: Duration | None = None
    iptables_refresh_interval: Duration | None = None
    iptables_post_write_check_interval: Duration | None = None
    iptables_lock_probe_interval: Duration | None = None
    feature_detect_override: Annotated[str, Pattern(FLAGS)] = ""
    feature_gates: Annotated[str, Pattern(GATES)] = ""
    ipsets_refresh_interval: Duration | None = None
    max_ipset_size: int | None = None
    iptables_backend: Annotated[str | None, enum("Legacy", "NFT", "Auto")] = None
    xdp_refresh_interval: Duration | None = None
    netlink_timeout: Duration | None = None
    metadata_addr: str = ""
    metadata_port: int | None = None
    openstack_region: str = ""
    interface_prefix: str = ""
    interface_exclude: str = ""
    chain_insert_mode: Annotated[str, any_case("Insert", "Append")] = ""
    default_endpoint_to_host_action: Annotated[str, any_case("Drop", "Accept", "Return")] = ""
    iptables_filter_allow_action: Annotated[str, any_case("Accept", "Return")] = ""
    iptables_mangle_allow_action: Annotated[str, any_case("Accept", "Return")] = ""
    iptables_filter_deny_action: Annotated[str, any_case("Drop", "Reject")] = ""
    log_prefix: Annotated[str, Pattern(r"^[a-zA-Z0-9%: /_-]*\Z")] = ""
    log_action_rate_limit: Annotated[str | None, Pattern(r"^[1-9]\d{0,3}/(second|minute|hour|day)\Z")] = None
    log_action_rate_limit_burst: Annotated[int | None, Range(0, 9999)] = None
    log_file_path: str = ""
    log_severity_file: LogLevel = ""
    log_severity_screen: LogLevel = ""
    log_severity_sys: LogLevel = ""
    log_debug_filename_regex: str = ""
    ipip_enabled: bool | None = None
    ipip_mtu: int | None = msgspec.field(default=None, name="ipipMTU")
    vxlan_enabled: bool | None = None
    vxlan_mtu: int | None = msgspec.field(default=None, name="vxlanMTU")
    vxlan_mtuv6: int | None = msgspec.field(default=None, name="vxlanMTUV6")
    vxlan_port: int | None = None
    vxlan_vni: int | None = msgspec.field(default=None, name="vxlanVNI")
    allow_vxlan_packets_from_workloads: bool | None = msgspec.field(default=None, name="allowVXLANPacketsFromWorkloads")
    allow_ipip_packets_from_workloads: bool | None = msgspec.field(default=None, name="allowIPIPPacketsFromWorkloads")
    reporting_interval: Duration | None = None
    reporting_ttl: Duration | None = msgspec.field(default=None, name="reportingTTL")
    endpoint_reporting_enabled: bool | None = None
    endpoint_reporting_delay: Duration | None = None
    endpoint_status_path_prefix: str = ""
    iptables_mark_mask: UInt32 | None = None
    disable_conntrack_invalid_check: bool | None = None
    health_enabled: bool | None = None
    health_host: str | None = None
    health_port: int | None = None
    health_timeout_overrides: tuple[HealthTimeoutOverride, ...] = ()
    prometheus_metrics_enabled: bool | None = None
    prometheus_metrics_host: Annotated[str, Pattern(r"^[a-zA-Z0-9:._+-]{1,64}\Z")] = ""
    prometheus_metrics_port: int | None = None
    prometheus_go_metrics_enabled: bool | None = None
    prometheus_process_metrics_enabled: bool | None = None
    prometheus_wire_guard_metrics_enabled: bool | None = None
    prometheus_metrics_ca_file: str | None = msgspec.field(default=None, name="prometheusMetricsCAFile")
    prometheus_metrics_cert_file: str | None = None
    prometheus_metrics_key_file: str | None = None
    prometheus_metrics_client_auth: Annotated[
        str | None,
        enum("RequireAndVerifyClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "NoClientCert"),
    ] = None
    failsafe_inbound_host_ports: tuple[ProtoPort, ...] | None = None
    failsafe_outbound_host_ports: tuple[ProtoPort, ...] | None = None
    kube_node_port_ranges: Annotated[tuple[Port, ...] | None, Length(high=7)] = None
    policy_sync_path_prefix: str = ""
    usage_reporting_enabled: bool | None = None
    usage_reporting_initial_delay: Duration | None = None
    usage_reporting_interval: Duration | None = None
    nat_port_range: Port | None = None
    nat_outgoing_address: str = ""
    nat_outgoing_exclusions: Annotated[str | None, enum("IPPoolsOnly", "IPPoolsAndHostIPs")] = None
    device_route_source_address: str = ""
    device_route_source_address_ipv6: str = msgspec.field(default="", name="deviceRouteSourceAddressIPv6")
    device_route_protocol: int | None = None
    remove_external_routes: bool | None = None
    ip_forwarding: Annotated[str, enum("Enabled", "Disabled")] = ""
    program_cluster_routes: Annotated[
        str | None, enum("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly")
    ] = None
    external_nodes_list: tuple[str, ...] | None = None
    debug_memory_profile_path: str = ""
    debug_disable_log_dropping: bool | None = None
    debug_simulate_calc_graph_hang_after: Duration | None = None
    debug_simulate_dataplane_hang_after: Duration | None = None
    debug_simulate_dataplane_apply_delay: Duration | None = None
    debug_host: str | None = None
    debug_port: Annotated[int | None, PORT_NUMBER] = None
    iptables_nat_outgoing_interface_filter: Annotated[str, Pattern(INTERFACE_FILTER)] = msgspec.field(
        default="", name="iptablesNATOutgoingInterfaceFilter"
    )
    sidecar_acceleration_enabled: bool | None = None
    xdp_enabled: bool | None = None
    generic_xdp_enabled: bool | None = msgspec.field(default=None, name="genericXDPEnabled")
    nftables_mode: Annotated[str | None, enum("Disabled", "Enabled", "Auto")] = None
    nftables_refresh_interval: Duration | None = None
    nftables_filter_allow_action: Annotated[str, any_case("Accept", "Return")] = ""
    nftables_mangle_allow_action: Annotated[str, any_case("Accept", "Return")] = ""
    nftables_filter_deny_action: Annotated[str, any_case("Drop", "Reject")] = ""
    nftables_mark_mask: UInt32 | None = None
    nftables_flow_table_offload: Annotated[str | None, enum("All", "Disabled")] = None
    nftables_flow_table_data_iface_pattern: str = ""
    bpf_enabled: bool | None = None
    bpf_overlay_host_source_ip: Annotated[str | None, enum("TunnelAddress", "HostAddress")] = msgspec.field(
        default=None, name="bpfOverlayHostSourceIP"
    )
    bpf_disable_unprivileged: bool | None = None
    bpf_jit_hardening: Annotated[str | None, enum("Auto", "Strict")] = msgspec.field(
        default=None, name="bpfJITHardening"
    )
    bpf_log_level: Annotated[str, Always(), any_case("Off", "Info", "Debug")] = ""
    bpf_conntrack_log_level: Annotated[str, enum("Off", "Debug")] = ""
    bpf_conntrack_mode: Annotated[str | None, enum("Auto", "Userspace", "BPFProgram")] = None
    bpf_conntrack_timeouts: BPFConntrackTimeouts | None = None
    bpf_ip_frag_timeout: Duration | None = msgspec.field(default=None, name="bpfIPFragTimeout")
    bpf_ip_fragment_reassembly_enabled: bool | None = msgspec.field(default=None, name="bpfIPFragmentReassemblyEnabled")
    bpf_log_filters: dict[str, str] | None = None
    bpf_ctlb_log_filter: str = msgspec.field(default="", name="bpfCTLBLogFilter")
    bpf_data_iface_pattern: str = ""
    bpf_l3_iface_pattern: str = ""
    bpf_connect_time_load_balancing_enabled: bool | None = None
    bpf_connect_time_load_balancing: Annotated[str | None, enum("TCP", "Enabled", "Disabled")] = None
    bpf_host_networked_nat_without_ctlb: Annotated[str | None, enum("Enabled", "Disabled")] = msgspec.field(
        default=None, name="bpfHostNetworkedNATWithoutCTLB"
    )
    bpf_external_service_mode: Annotated[str, any_case("Tunnel", "DSR")] = ""
    bpf_dsr_optout_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="bpfDSROptoutCIDRs")
    bpf_ext_to_service_connmark: Annotated[int | None, Range(0, 2**32 - 1)] = None
    bpf_kube_proxy_iptables_cleanup_enabled: bool | None = None
    bpf_kube_proxy_min_sync_period: Duration | None = None
    bpf_kube_proxy_healthz_port: Annotated[int | None, PORT_NUMBER] = None
    bpf_host_conntrack_bypass: bool | None = None
    bpf_enforce_rpf: Annotated[str, any_case("Disabled", "Strict", "Loose")] = msgspec.field(
        default="", name="bpfEnforceRPF"
    )
    bpf_policy_debug_enabled: bool | None = None
    bpf_force_track_packets_from_ifaces: tuple[Annotated[str, Pattern(INTERFACE_FILTER)], ...] | None = None
    bpf_disable_gro_for_ifaces: str = msgspec.field(default="", name="bpfDisableGROForIfaces")
    bpf_exclude_cidrs_from_nat: tuple[str, ...] | None = msgspec.field(default=None, name="bpfExcludeCIDRsFromNAT")
    bpf_redirect_to_peer: Annotated[str, enum("Enabled", "Disabled")] = ""
    bpf_profiling: Annotated[str, enum("Enabled", "Disabled")] = ""
    bpf_export_buffer_size_mb: int | None = msgspec.field(default=None, name="bpfExportBufferSizeMB")
    bpf_attach_type: Annotated[str | None, enum("TC", "TCX", "Netkit")] = None
    bpf_map_size_conntrack: int | None = None
    bpf_map_size_per_cpu_conntrack: int | None = None
    bpf_map_size_conntrack_scaling: Annotated[str, any_case("Disabled", "DoubleIfFull")] = ""
    bpf_map_size_conntrack_cleanup_queue: Annotated[int | None, Range(low=1)] = None
    bpf_map_size_nat_frontend: int | None = msgspec.field(default=None, name="bpfMapSizeNATFrontend")
    bpf_map_size_nat_backend: int | None = msgspec.field(default=None, name="bpfMapSizeNATBackend")
    bpf_map_size_nat_affinity: int | None = msgspec.field(default=None, name="bpfMapSizeNATAffinity")
    bpf_map_size_ip_sets: int | None = msgspec.field(default=None, name="bpfMapSizeIPSets")
    bpf_map_size_route: int | None = None
    bpf_map_size_if_state: int | None = None
    bpf_maglev_max_endpoints_per_service: Annotated[int | None, MAGLEV] = None
    bpf_maglev_max_services: Annotated[int | None, MAGLEV] = None
    bpf_psnat_ports: Port | None = msgspec.field(default=None, name="bpfPSNATPorts")
    route_source: Annotated[str, any_case("WorkloadIPs", "CalicoIPAM")] = ""
    route_table_ranges: tuple[RouteTableRange, ...] | None = None
    route_table_range: RouteTableRange | None = None
    route_sync_disabled: bool | None = None
    ipv4_normal_route_priority: RoutePriority = None
    ipv4_elevated_route_priority: RoutePriority = None
    ipv6_normal_route_priority: RoutePriority = None
    ipv6_elevated_route_priority: RoutePriority = None
    live_migration_route_convergence_time: Duration | None = None
    wireguard_enabled: bool | None = None
    wireguard_enabled_v6: bool | None = None
    wireguard_listening_port: Annotated[int | None, Range(1, 65535)] = None
    wireguard_listening_port_v6: Annotated[int | None, Range(1, 65535)] = None
    wireguard_routing_rule_priority: Annotated[int | None, Range(1, 32765)] = None
    wireguard_interface_name: Annotated[str, Pattern(INTERFACE)] = ""
    wireguard_interface_name_v6: Annotated[str, Pattern(INTERFACE)] = ""
    wireguard_mtu: int | None = msgspec.field(default=None, name="wireguardMTU")
    wireguard_mtuv6: int | None = msgspec.field(default=None, name="wireguardMTUV6")
    wireguard_host_encryption_enabled: bool | None = None
    wireguard_keep_alive: Duration | None = None
    wireguard_threading_enabled: bool | None = None
    aws_src_dst_check: Annotated[str | None, enum("DoNothing", "Enable", "Disable")] = None
    service_loop_prevention: Annotated[str, enum("Drop", "Reject", "Disabled")] = ""
    workload_source_spoofing: Annotated[str, enum("Disabled", "Any")] = ""
    mtu_iface_pattern: str = ""
    floating_ips: Annotated[str | None, enum("Enabled", "Disabled")] = msgspec.field(default=None, name="floatingIPs")
    local_subnet_l2_reachability: Annotated[str | None, enum("Disabled", "PodsAndLoadBalancers")] = None
    local_subnet_l2_reachability_refresh_interval: Duration | None = None
    windows_manage_firewall_rules: Annotated[str | None, enum("Enabled", "Disabled")] = None
    cgroup_v2_path: str = ""
    go_gc_threshold: Annotated[int | None, COUNT_OR_ALL] = msgspec.field(default=None, name="goGCThreshold")
    go_memory_limit_mb: Annotated[int | None, COUNT_OR_ALL] = msgspec.field(default=None, name="goMemoryLimitMB")
    go_max_procs: Annotated[int | None, COUNT_OR_ALL] = None
    flow_logs_flush_interval: Duration | None = None
    flow_logs_collector_debug_trace: bool | None = None
    flow_logs_goldmane_server: str | None = None
    flow_logs_local_reporter: Annotated[str | None, enum("Enabled", "Disabled")] = None
    flow_logs_policy_evaluation_mode: Annotated[str | None, enum("None", "Continuous")] = None
    require_mtu_file: bool | None = msgspec.field(default=None, name="requireMTUFile")
    istio_ambient_mode: Annotated[str | None, enum("Enabled", "Disabled")] = None
    istio_dscp_mark: int | str | None = msgspec.field(default=None, name="istioDSCPMark")
    node_selector: str | None = None
