"""Nodes, workload and host endpoints."""

from __future__ import annotations

import re
from typing import Any, Final

from calipy.datastore.defaults import endpoint_name
from calipy.datastore.kinds.endpoints import EndpointPort, HostEndpointSpec, NodeSpec, NodeStatus, WorkloadEndpointPort
from calipy.datastore.kinds.endpoints import WorkloadEndpointSpec as Workload
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.validation.fields import address, code_point, fail, interface, mac, network, port_name, subdomain

_PUBLIC_KEY: Final = re.compile(r"[A-Za-z0-9+/]{43}=")
_CONTAINER: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?")
_ENDPOINT_PROTOCOLS: Final = frozenset({"TCP", "UDP", "SCTP", 6, 17, 132})


def check_node(resource: Resource[Any, Any]) -> None:
    """Addresses of a node, each in its family."""
    spec: NodeSpec = resource.spec
    if spec.bgp is not None:
        bgp = spec.bgp
        if bgp == type(bgp)():
            fail("must not be empty", "spec.bgp", {}, "leave it out, or give an address or AS number")
        for field, text, version in (("ipv4Address", bgp.ipv4_address, 4), ("ipv6Address", bgp.ipv6_address, 6)):
            if text:
                network(text, f"spec.bgp.{field}", version, strict=False, bare=True)
        _optional_address(bgp.ipv4_ipip_tunnel_addr, "spec.bgp.ipv4IPIPTunnelAddr", 4)
        _optional_address(bgp.route_reflector_cluster_id, "spec.bgp.routeReflectorClusterID", 4)
    _optional_address(spec.ipv4_vxlan_tunnel_addr, "spec.ipv4VXLANTunnelAddr", 4)
    _optional_address(spec.ipv6_vxlan_tunnel_addr, "spec.ipv6VXLANTunnelAddr", 6)
    for field, text in (
        ("vxlanTunnelMACAddr", spec.vxlan_tunnel_mac_addr),
        ("vxlanTunnelMACAddrV6", spec.vxlan_tunnel_mac_addr_v6),
    ):
        if text:
            mac(text, f"spec.{field}")
    if spec.wireguard is not None:
        _optional_address(spec.wireguard.interface_ipv4_address, "spec.wireguard.interfaceIPv4Address", 4)
        _optional_address(spec.wireguard.interface_ipv6_address, "spec.wireguard.interfaceIPv6Address", 6)
    if resource.status is not None:
        _check_node_keys(resource.status)


def _check_node_keys(status: NodeStatus) -> None:
    for field, text in (
        ("wireguardPublicKey", status.wireguard_public_key),
        ("wireguardPublicKeyV6", status.wireguard_public_key_v6),
    ):
        if text and not _PUBLIC_KEY.fullmatch(text):
            fail("must be 32 bytes in base64", f"status.{field}", text)


def _optional_address(text: str, field: str, version: int) -> None:
    if text:
        address(text, field, version)


def check_node_status(resource: Resource[Any, Any]) -> None:
    """Which node is asked."""
    subdomain(resource.spec.node, "spec.node")


def check_workload_endpoint(resource: Resource[Any, Any]) -> None:
    """Name and spec agree; everything the dataplane needs is there."""
    spec: Workload = resource.spec
    for field, text in (
        ("orchestrator", spec.orchestrator),
        ("workload", spec.workload),
        ("node", spec.node),
        ("pod", spec.pod),
        ("endpoint", spec.endpoint),
        ("serviceAccountName", spec.service_account_name),
    ):
        if text:
            subdomain(text, f"spec.{field}")
    if spec.container_id and not _CONTAINER.fullmatch(spec.container_id):
        fail(
            "must be letters, digits, '-', with letters or digits at both ends",
            "spec.containerID",
            spec.container_id,
        )
    if spec.qos_controls is not None:
        code_point(spec.qos_controls.dscp, "spec.qosControls.dscp")
    expected = endpoint_name(spec)
    if resource.metadata.name != expected:
        fail(
            "does not agree with node, orchestrator, workload and endpoint",
            "metadata.name",
            resource.metadata.name,
            f"name it {expected}",
        )
    if spec.interface_name != "*":
        interface(spec.interface_name, "spec.interfaceName")
    for index, text in enumerate(spec.ip_networks):
        field = f"spec.ipNetworks[{index}]"
        if network(text, field, bare=True).num_addresses != 1:
            fail("must be one address: a /32 or /128", field, text)
    _check_nats(spec)
    _optional_address(spec.ipv4_gateway, "spec.ipv4Gateway", 4)
    _optional_address(spec.ipv6_gateway, "spec.ipv6Gateway", 6)
    if spec.mac:
        mac(spec.mac, "spec.mac")
    for index, text in enumerate(spec.profiles):
        subdomain(text, f"spec.profiles[{index}]")
    for index, port in enumerate(spec.ports):
        _check_port(port, f"spec.ports[{index}]", nameless=port.host_port > 0)
        if port.host_ip:
            network(port.host_ip, f"spec.ports[{index}].hostIP", bare=True)
    for index, text in enumerate(spec.allow_spoofed_source_prefixes):
        network(text, f"spec.allowSpoofedSourcePrefixes[{index}]", strict=False, bare=True)


def _check_nats(spec: Workload) -> None:
    own = {text.partition("/")[0] for text in spec.ip_networks}
    own_addresses = {str(address(text, "spec.ipNetworks")) for text in own}
    for index, nat in enumerate(spec.ip_nats):
        field = f"spec.ipNATs[{index}]"
        internal = address(nat.internal_ip, f"{field}.internalIP")
        address(nat.external_ip, f"{field}.externalIP", internal.version)
        if str(internal) not in own_addresses:
            fail("is not an address of the endpoint", f"{field}.internalIP", nat.internal_ip, "add it to ipNetworks")


def _check_port(port: WorkloadEndpointPort | EndpointPort, field: str, *, nameless: bool = False) -> None:
    if port.name or not nameless:
        port_name(port.name, f"{field}.name")
    if port.protocol not in _ENDPOINT_PROTOCOLS:
        fail("must be TCP, UDP or SCTP", f"{field}.protocol", port.protocol)
    if port.port == 0:
        fail("must be in 1..65535", f"{field}.port", port.port)


def check_host_endpoint(resource: Resource[Any, Any]) -> None:
    """A node, and an interface or addresses on it."""
    spec: HostEndpointSpec = resource.spec
    if not spec.node:
        fail("must be given", "spec.node", spec.node)
    subdomain(spec.node, "spec.node")
    if not spec.interface_name and not spec.expected_ips:
        fail("must be given, or expectedIPs", "spec.interfaceName", spec.interface_name)
    if spec.interface_name and spec.interface_name != "*":
        interface(spec.interface_name, "spec.interfaceName")
    for index, text in enumerate(spec.expected_ips):
        address(text, f"spec.expectedIPs[{index}]")
    for index, text in enumerate(spec.profiles):
        subdomain(text, f"spec.profiles[{index}]")
    for index, port in enumerate(spec.ports):
        _check_port(port, f"spec.ports[{index}]")
