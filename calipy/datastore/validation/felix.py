"""Settings of Felix and of kube-controllers."""

from __future__ import annotations

import re
from typing import Any

from calipy.datastore.gojson import members
from calipy.datastore.kinds.base import Form
from calipy.datastore.kinds.cluster import KubeControllersConfigurationSpec
from calipy.datastore.kinds.felix import FelixConfigurationSpec
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.validation.fields import address, fail, network, selects, subdomain
from calipy.datastore.validation.metadata import check_qualified_name


def check_configuration(resource: Resource[Any, Any]) -> None:
    """Calico checks little here, and so do we: what other tools wrote must stay writable."""
    spec: FelixConfigurationSpec = resource.spec
    name = resource.metadata.name
    if spec.node_selector and (name == "default" or name.startswith("node.")):
        fail("may not be set in default and node.*", "spec.nodeSelector", spec.node_selector, "choose another name")
    for member in members(FelixConfigurationSpec):
        value = getattr(spec, member.attribute)
        if Form("duration") in member.marks and value is not None and value.startswith("-"):
            fail("must not be negative", f"spec.{member.name}", value)
    if spec.mtu_iface_pattern:
        try:
            re.compile(spec.mtu_iface_pattern)
        except re.error as error:
            fail(f"is not a regular expression: {error}", "spec.mtuIfacePattern", spec.mtu_iface_pattern)
    for index, text in enumerate(spec.external_nodes_list or ()):
        network(text, f"spec.externalNodesList[{index}]", strict=False, bare=True)
    for field, text, version in (
        ("natOutgoingAddress", spec.nat_outgoing_address, 4),
        ("deviceRouteSourceAddress", spec.device_route_source_address, 4),
        ("deviceRouteSourceAddressIPv6", spec.device_route_source_address_ipv6, 6),
    ):
        if text:
            address(text, f"spec.{field}", version)
            if version == 4 and ":" in text:
                fail("must be an IPv4 address in its own form", f"spec.{field}", text)
    if isinstance(spec.nat_port_range, str) and ":" not in spec.nat_port_range:
        fail("must be a port or a range such as 32768:65535", "spec.natPortRange", spec.nat_port_range)
    if spec.route_table_range is not None and spec.route_table_ranges is not None:
        fail("cannot be combined with routeTableRanges", "spec.routeTableRange", spec.route_table_range.min)
    for index, item in enumerate(spec.route_table_ranges or ()):
        if not 0 <= item.min <= item.max < 2**32:
            fail("must have min <= max, both in 0..4294967295", f"spec.routeTableRanges[{index}]", [item.min, item.max])


def check_kube_controllers(resource: Resource[Any, Any]) -> None:
    """Templates of automatic host endpoints."""
    spec: KubeControllersConfigurationSpec = resource.spec
    node = spec.controllers.node
    if node is None or node.host_endpoint is None:
        return
    for index, template in enumerate(node.host_endpoint.templates):
        field = f"spec.controllers.node.hostEndpoint.templates[{index}]"
        subdomain(template.generate_name, f"{field}.generateName")
        for name in template.annotations:
            check_qualified_name(name.lower(), f"{field}.annotations[{name}]")
        for position, text in enumerate(template.interface_cidrs):
            network(text, f"{field}.interfaceCIDRs[{position}]", strict=False)
        if template.node_selector:
            selects(template.node_selector, f"{field}.nodeSelector")
        if template.interface_pattern:
            try:
                re.compile(template.interface_pattern)
            except re.error as error:
                fail(f"is not a regular expression: {error}", f"{field}.interfacePattern", template.interface_pattern)
