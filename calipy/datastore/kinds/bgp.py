"""BGP resources. Source: Calico ``api/pkg/apis/projectcalico/v3/bgp{config,peer,filter}.go``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from calipy.datastore.kinds.base import (
    Always,
    ASNumber,
    Duration,
    Given,
    GoStruct,
    Int32,
    Length,
    Pattern,
    Range,
    Required,
    UInt8,
    UInt16,
    enum,
)

LogLevel = Annotated[str, Pattern(r"(?i)^(Trace|Debug|Info|Warning|Error|Fatal)?\Z")]
Selector = Annotated[str, Length(high=1024)]
RoutePriority = Annotated[int | None, Range(1, 2147483646)]


class SecretKeySelector(GoStruct, frozen=True, kw_only=True):
    """A key of a Kubernetes Secret."""

    name: str = ""
    key: Annotated[str, Always()] = ""
    optional: bool | None = None


class BGPPassword(GoStruct, frozen=True, kw_only=True):
    """Only ever by reference."""

    secret_key_ref: SecretKeySelector | None = None


class CIDRBlock(GoStruct, frozen=True, kw_only=True):
    """A CIDR of services."""

    cidr: str = ""


class Community(GoStruct, frozen=True, kw_only=True):
    """A name for ``aa:nn`` or ``aa:nn:mm``."""

    name: Annotated[str, Length(high=253)] = ""
    value: str = ""


class PrefixAdvertisement(GoStruct, frozen=True, kw_only=True):
    """Communities (names or values) for routes inside ``cidr``."""

    cidr: str = ""
    communities: Annotated[tuple[str, ...], Given(), Length(high=50)] = ()


class BGPConfigurationSpec(GoStruct, frozen=True, kw_only=True):
    """Settings of all nodes (``default``) or one (``node.<node>``); None means Calico's default.

    Attributes:
        node_to_node_mesh_enabled: None is True.
        as_number: None is 64512.
        listen_port: 0 is 179.
    """

    log_severity_screen: LogLevel = ""
    node_to_node_mesh_enabled: bool | None = None
    as_number: ASNumber | None = None
    service_load_balancer_ips: tuple[CIDRBlock, ...] = msgspec.field(default=(), name="serviceLoadBalancerIPs")
    service_external_ips: tuple[CIDRBlock, ...] = msgspec.field(default=(), name="serviceExternalIPs")
    service_cluster_ips: tuple[CIDRBlock, ...] = msgspec.field(default=(), name="serviceClusterIPs")
    service_load_balancer_aggregation: Annotated[str | None, enum("Enabled", "Disabled")] = None
    communities: Annotated[tuple[Community, ...], Length(high=500)] = ()
    prefix_advertisements: Annotated[tuple[PrefixAdvertisement, ...], Length(high=500)] = ()
    listen_port: UInt16 = 0
    node_mesh_password: BGPPassword | None = None
    node_mesh_max_restart_time: Duration | None = None
    bind_mode: Annotated[str | None, enum("None", "NodeIP")] = None
    ignored_interfaces: tuple[str, ...] = ()
    local_workload_peering_ipv4: str = msgspec.field(default="", name="localWorkloadPeeringIPV4")
    local_workload_peering_ipv6: str = msgspec.field(default="", name="localWorkloadPeeringIPV6")
    program_cluster_routes: Annotated[
        str | None, enum("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly")
    ] = None
    ipv4_normal_route_priority: RoutePriority = None
    ipv6_normal_route_priority: RoutePriority = None


class BGPPeerSpec(GoStruct, frozen=True, kw_only=True):
    """A peer of one node, of the nodes a selector picks, or (both blank) of all nodes.

    Attributes:
        peer_ip: address, ``address:port`` or ``[address]:port``.
        as_number: of the peer; 0 with ``peer_selector``.
        local_as_number: ours for this session, instead of the node's.
        filters: names of BGPFilters, applied in order.
    """

    node: Annotated[str, Length(high=253)] = ""
    node_selector: Selector = ""
    peer_ip: str = msgspec.field(default="", name="peerIP")
    as_number: ASNumber = 0
    local_as_number: ASNumber | None = msgspec.field(default=None, name="localASNumber")
    peer_selector: Selector = ""
    keep_original_next_hop: bool = False
    next_hop_mode: Annotated[str | None, enum("Auto", "Self", "Keep")] = None
    password: BGPPassword | None = None
    source_address: Annotated[str, enum("UseNodeIP", "None")] = ""
    max_restart_time: Duration | None = None
    keepalive_time: Duration | None = None
    num_allowed_local_as_numbers: Int32 | None = msgspec.field(default=None, name="numAllowedLocalASNumbers")
    ttl_security: UInt8 | None = None
    reachable_by: str = ""
    filters: tuple[str, ...] = ()
    local_workload_selector: Selector = ""
    reverse_peering: Annotated[str | None, enum("Auto", "Manual")] = None


class PrefixLengthRange(GoStruct, frozen=True, kw_only=True):
    """Bounds of a prefix length, either optional."""

    min: Int32 | None = None
    max: Int32 | None = None


class CommunityMatch(GoStruct, frozen=True, kw_only=True):
    """Exactly one community."""

    values: Annotated[tuple[str, ...], Length(1, 1), Required()] = ()


class AddCommunity(GoStruct, frozen=True, kw_only=True):
    value: Annotated[str, Required()] = ""


class PrependASPath(GoStruct, frozen=True, kw_only=True):
    prefix: Annotated[tuple[ASNumber, ...], Length(1, 10), Required()] = ()


class SetPriority(GoStruct, frozen=True, kw_only=True):
    value: int | None = None


class FilterOperation(GoStruct, frozen=True, kw_only=True):
    """One change to an accepted route: exactly one member is set."""

    add_community: AddCommunity | None = None
    prepend_as_path: PrependASPath | None = msgspec.field(default=None, name="prependASPath")
    set_priority: SetPriority | None = None


class BGPFilterRule(GoStruct, frozen=True, kw_only=True):
    """First rule that matches decides.

    Attributes:
        match_operator: ``Equal``, ``NotEqual``, ``In``, ``NotIn``; goes with ``cidr``.
        source: ``RemotePeers``.
        operations: only with ``Accept``.
    """

    cidr: str = ""
    prefix_length: PrefixLengthRange | None = None
    source: Annotated[str, enum("RemotePeers")] = ""
    interface: str = ""
    match_operator: Annotated[str, enum("Equal", "NotEqual", "In", "NotIn")] = ""
    peer_type: Annotated[str, enum("eBGP", "iBGP")] = ""
    communities: CommunityMatch | None = None
    as_path_prefix: tuple[ASNumber, ...] = ()
    priority: Annotated[int | None, Range(1, 2147483646)] = None
    action: Annotated[str, Required(), enum("Accept", "Reject")] = ""
    operations: Annotated[tuple[FilterOperation, ...], Length(high=10)] = ()


class BGPFilterSpec(GoStruct, frozen=True, kw_only=True):
    """Rules by family and direction; no match falls through to Calico's own policy."""

    export_v4: tuple[BGPFilterRule, ...] = ()
    import_v4: tuple[BGPFilterRule, ...] = ()
    export_v6: tuple[BGPFilterRule, ...] = ()
    import_v6: tuple[BGPFilterRule, ...] = ()
