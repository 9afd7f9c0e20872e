"""Nodes and endpoints. Source: Calico ``libcalico-go/lib/apis/internalapi`` and ``api/pkg/apis/projectcalico/v3``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from calipy.datastore.kinds.base import Always, ASNumber, GoStruct, Length, Protocol, UInt16


class NodeBGPSpec(GoStruct, frozen=True, kw_only=True):
    """BGP side of a node.

    Attributes:
        ipv4_address: address with prefix length and host bits, ``172.20.0.11/24``; "" when it has none.
        route_reflector_cluster_id: an IPv4 literal; "" for a node of the mesh.
    """

    as_number: ASNumber | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""
    ipv4_ipip_tunnel_addr: str = msgspec.field(default="", name="ipv4IPIPTunnelAddr")
    route_reflector_cluster_id: str = msgspec.field(default="", name="routeReflectorClusterID")


class OrchRef(GoStruct, frozen=True, kw_only=True):
    """What an orchestrator calls the node."""

    node_name: str = ""
    orchestrator: Annotated[str, Always()] = ""


class NodeWireguardSpec(GoStruct, frozen=True, kw_only=True):
    """WireGuard tunnel addresses."""

    interface_ipv4_address: str = msgspec.field(default="", name="interfaceIPv4Address")
    interface_ipv6_address: str = msgspec.field(default="", name="interfaceIPv6Address")


class NodeAddress(GoStruct, frozen=True, kw_only=True):
    """``CalicoNodeIP`` (with prefix length), ``InternalIP`` or ``ExternalIP``."""

    address: Annotated[str, Always()] = ""
    type: str = ""


class NodeInterface(GoStruct, frozen=True, kw_only=True):
    """A host interface and its addresses without prefix length."""

    name: str = ""
    addresses: tuple[str, ...] = ()


class NodeSpec(GoStruct, frozen=True, kw_only=True):
    """A node of the cluster."""

    bgp: NodeBGPSpec | None = None
    ipv4_vxlan_tunnel_addr: str = msgspec.field(default="", name="ipv4VXLANTunnelAddr")
    vxlan_tunnel_mac_addr: str = msgspec.field(default="", name="vxlanTunnelMACAddr")
    ipv6_vxlan_tunnel_addr: str = msgspec.field(default="", name="ipv6VXLANTunnelAddr")
    vxlan_tunnel_mac_addr_v6: str = msgspec.field(default="", name="vxlanTunnelMACAddrV6")
    orch_refs: tuple[OrchRef, ...] = ()
    wireguard: NodeWireguardSpec | None = None
    addresses: tuple[NodeAddress, ...] = ()
    interfaces: tuple[NodeInterface, ...] = ()


class NodeStatus(GoStruct, frozen=True, kw_only=True):
    """What the node's own agents report."""

    wireguard_public_key: str = ""
    wireguard_public_key_v6: str = ""
    pod_cidrs: tuple[str, ...] = msgspec.field(default=(), name="podCIDRs")


class IPNAT(GoStruct, frozen=True, kw_only=True):
    """A floating address: ``external_ip`` is the endpoint's ``internal_ip`` seen from outside."""

    internal_ip: Annotated[str, Always()] = msgspec.field(default="", name="internalIP")
    external_ip: Annotated[str, Always()] = msgspec.field(default="", name="externalIP")


class WorkloadEndpointPort(GoStruct, frozen=True, kw_only=True):
    """A named port; all five members are always written."""

    name: Annotated[str, Always()] = ""
    protocol: Annotated[Protocol, Always()] = 0
    port: Annotated[UInt16, Always()] = 0
    host_port: Annotated[UInt16, Always()] = 0
    host_ip: Annotated[str, Always()] = msgspec.field(default="", name="hostIP")


class QoSControls(GoStruct, frozen=True, kw_only=True):
    """Limits of an endpoint: bits, bytes, packets per second; 0 is no limit."""

    ingress_bandwidth: int = 0
    egress_bandwidth: int = 0
    ingress_burst: int = 0
    egress_burst: int = 0
    ingress_peakrate: int = 0
    egress_peakrate: int = 0
    ingress_minburst: int = 0
    egress_minburst: int = 0
    ingress_packet_rate: int = 0
    egress_packet_rate: int = 0
    ingress_packet_burst: int = 0
    egress_packet_burst: int = 0
    ingress_max_connections: int = 0
    egress_max_connections: int = 0
    dscp: int | str | None = None


class WorkloadEndpointSpec(GoStruct, frozen=True, kw_only=True):
    """The network end of a pod or another workload.

    Attributes:
        ip_networks: /32 and /128 CIDRs.
        interface_name: host side of the pair.
        profiles: names, in order of precedence.
    """

    orchestrator: str = ""
    workload: str = ""
    node: str = ""
    container_id: str = msgspec.field(default="", name="containerID")
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: tuple[str, ...] = ()
    ip_nats: tuple[IPNAT, ...] = msgspec.field(default=(), name="ipNATs")
    ipv4_gateway: str = ""
    ipv6_gateway: str = ""
    profiles: tuple[str, ...] = ()
    interface_name: str = ""
    mac: str = ""
    ports: tuple[WorkloadEndpointPort, ...] = ()
    allow_spoofed_source_prefixes: tuple[str, ...] = ()
    qos_controls: QoSControls | None = None


class EndpointPort(GoStruct, frozen=True, kw_only=True):
    """A named port of a host endpoint."""

    name: Annotated[str, Always()] = ""
    protocol: Annotated[Protocol, Always()] = 0
    port: Annotated[UInt16, Always()] = 0


class HostEndpointSpec(GoStruct, frozen=True, kw_only=True):
    """An interface of a node (``*`` for all), or the one that holds one of the expected addresses."""

    node: Annotated[str, Length(high=253)] = ""
    interface_name: str = ""
    expected_ips: tuple[str, ...] = msgspec.field(default=(), name="expectedIPs")
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
