"""BGP configuration, peers and filters."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

from calipy.datastore.kinds.bgp import BGPConfigurationSpec, BGPFilterRule, BGPFilterSpec, BGPPeerSpec
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.validation.fields import (
    address,
    community,
    fail,
    interface_pattern,
    network,
    selects,
    subdomain,
)

_PEER_IPV4: Final = re.compile(r"([0-9.]+)(?::([0-9]+))?")
_PEER_IPV6: Final = re.compile(r"\[([^\]]+)\](?::([0-9]+))?")


def check_configuration(resource: Resource[Any, Any]) -> None:
    """Global settings stand in ``default`` only; communities and advertisements agree."""
    spec: BGPConfigurationSpec = resource.spec
    if resource.metadata.name != "default":
        for field, value in (
            ("nodeToNodeMeshEnabled", spec.node_to_node_mesh_enabled),
            ("asNumber", spec.as_number),
            ("serviceClusterIPs", spec.service_cluster_ips or None),
            ("serviceExternalIPs", spec.service_external_ips or None),
            ("serviceLoadBalancerIPs", spec.service_load_balancer_ips or None),
            ("nodeMeshPassword", spec.node_mesh_password),
            ("nodeMeshMaxRestartTime", spec.node_mesh_max_restart_time),
        ):
            if value is not None:
                fail("may only be set in the object named default", f"spec.{field}", value)
    if spec.node_to_node_mesh_enabled is False:
        for field, setting in (
            ("nodeMeshPassword", spec.node_mesh_password),
            ("nodeMeshMaxRestartTime", spec.node_mesh_max_restart_time),
        ):
            if setting is not None:
                fail("means nothing while nodeToNodeMeshEnabled is false", f"spec.{field}", setting)
    for field, blocks in (
        ("serviceClusterIPs", spec.service_cluster_ips),
        ("serviceExternalIPs", spec.service_external_ips),
        ("serviceLoadBalancerIPs", spec.service_load_balancer_ips),
    ):
        for index, block in enumerate(blocks):
            if block.cidr:
                network(block.cidr, f"spec.{field}[{index}].cidr")
    _check_communities(spec)
    for index, name in enumerate(spec.ignored_interfaces):
        interface_pattern(name, f"spec.ignoredInterfaces[{index}]")
    for version, text in ((4, spec.local_workload_peering_ipv4), (6, spec.local_workload_peering_ipv6)):
        if text:
            address(text, f"spec.localWorkloadPeeringIPV{version}", version)


def _check_communities(spec: BGPConfigurationSpec) -> None:
    if spec.communities and not spec.prefix_advertisements:
        fail("are of no use without prefixAdvertisements", "spec.communities", [one.name for one in spec.communities])
    known = set()
    for index, item in enumerate(spec.communities):
        subdomain(item.name, f"spec.communities[{index}].name")
        community(item.value, f"spec.communities[{index}].value")
        known.add(item.name)
    for index, advertisement in enumerate(spec.prefix_advertisements):
        field = f"spec.prefixAdvertisements[{index}]"
        network(advertisement.cidr, f"{field}.cidr")
        for text in advertisement.communities:
            if text not in known:
                if ":" not in text:
                    fail("is not defined in spec.communities", f"{field}.communities", text)
                community(text, f"{field}.communities")


def check_peer(resource: Resource[Any, Any]) -> None:
    """Which nodes, which peer, and what goes together."""
    spec: BGPPeerSpec = resource.spec
    if spec.node and spec.node_selector:
        fail("cannot be combined with nodeSelector", "spec.node", spec.node)
    if spec.peer_ip and spec.peer_selector:
        fail("cannot be combined with peerSelector", "spec.peerIP", spec.peer_ip)
    if spec.peer_selector and spec.as_number:
        fail(
            "cannot be combined with peerSelector", "spec.asNumber", spec.as_number, "the AS comes from the peer's Node"
        )
    if spec.local_workload_selector:
        if spec.peer_ip or spec.peer_selector:
            fail(
                "cannot be combined with peerIP or peerSelector",
                "spec.localWorkloadSelector",
                spec.local_workload_selector,
            )
        if not spec.as_number:
            fail("must be given with localWorkloadSelector", "spec.asNumber", spec.as_number)
    if spec.node:
        subdomain(spec.node, "spec.node")
    for field, text in (
        ("nodeSelector", spec.node_selector),
        ("peerSelector", spec.peer_selector),
        ("localWorkloadSelector", spec.local_workload_selector),
    ):
        if text:
            selects(text, f"spec.{field}")
    peer = parse_peer_ip(spec.peer_ip)[0] if spec.peer_ip else None
    if spec.keep_original_next_hop and spec.next_hop_mode is not None:
        fail("cannot be combined with keepOriginalNextHop", "spec.nextHopMode", spec.next_hop_mode)
    if spec.reachable_by:
        gateway = address(spec.reachable_by, "spec.reachableBy")
        if peer is None or peer.version != gateway.version:
            fail("needs a peerIP of the same family", "spec.reachableBy", spec.reachable_by)
    for index, name in enumerate(spec.filters):
        subdomain(name, f"spec.filters[{index}]")


def parse_peer_ip(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int | None]:
    """``10.0.0.1``, ``10.0.0.1:180``, ``fd00::1``, ``[fd00::1]:180`` → address and port.

    Raises:
        InvalidInputError: none of these.
    """
    found = _PEER_IPV4.fullmatch(text) or _PEER_IPV6.fullmatch(text)
    host, port = (found[1], found[2]) if found else (text, None)
    if port is not None and not 1 <= int(port) <= 65535:
        fail("has a port that is not in 1..65535", "spec.peerIP", text)
    try:
        return ipaddress.ip_address(host), int(port) if port else None
    except ValueError:
        fail("must be an address, or 10.0.0.1:180, or [fd00::1]:180", "spec.peerIP", text)


def check_filter(resource: Resource[Any, Any]) -> None:
    """Each rule in its family."""
    spec: BGPFilterSpec = resource.spec
    for name, version, rules in (
        ("exportV4", 4, spec.export_v4),
        ("importV4", 4, spec.import_v4),
        ("exportV6", 6, spec.export_v6),
        ("importV6", 6, spec.import_v6),
    ):
        for index, rule in enumerate(rules):
            _check_filter_rule(rule, f"spec.{name}[{index}]", version)


def _check_filter_rule(rule: BGPFilterRule, path: str, version: int) -> None:
    if bool(rule.cidr) != bool(rule.match_operator):
        fail("goes with matchOperator, and that with it", f"{path}.cidr", rule.cidr, "give both or neither")
    if rule.cidr:
        network(rule.cidr, f"{path}.cidr", version)
    if rule.prefix_length is not None:
        if not rule.cidr:
            fail("needs a cidr", f"{path}.prefixLength", rule.prefix_length.min)
        longest = 32 if version == 4 else 128
        for field, length in (("min", rule.prefix_length.min), ("max", rule.prefix_length.max)):
            if length is not None and not 0 <= length <= longest:
                fail(f"must be in 0..{longest}", f"{path}.prefixLength.{field}", length)
    if rule.interface:
        interface_pattern(rule.interface, f"{path}.interface")
    if rule.communities is not None:
        for value in rule.communities.values:
            community(value, f"{path}.communities.values")
    if rule.operations and rule.action != "Accept":
        fail("go with action Accept only", f"{path}.operations", rule.action)
    for index, operation in enumerate(rule.operations):
        field = f"{path}.operations[{index}]"
        parts = [operation.add_community, operation.prepend_as_path, operation.set_priority]
        if sum(part is not None for part in parts) != 1:
            fail("must hold exactly one operation", field, None)
        if operation.add_community is not None:
            community(operation.add_community.value, f"{field}.addCommunity.value")
        if operation.set_priority is not None and not 1 <= (operation.set_priority.value or 0) <= 2147483646:
            fail("must be in 1..2147483646", f"{field}.setPriority.value", operation.set_priority.value)
