"""Settings of Felix and of kube-controllers."""

from __future__ import annotations

import re
from typing import Any, Final

from calipy.datastore.gojson import members
from calipy.datastore.kinds.base import Form
from calipy.datastore.kinds.cluster import KubeControllersConfigurationSpec
from calipy.datastore.kinds.felix import FelixConfigurationSpec
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.validation.fields import (
    address,
    code_point,
    dns_label,
    fail,
    interface,
    network,
    port_name,
    regexp,
    selects,
    subdomain,
)
from calipy.datastore.validation.metadata import check_qualified_name

_DURATION: Final = re.compile(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))*")
_ANY_DURATION: Final = frozenset(
    {"dataplaneWatchdogTimeout", "localSubnetL2ReachabilityRefreshInterval", "nftablesRefreshInterval"}
)
_LONGEST_REGION: Final = 63 - len("openstack-region-")
_MOST_TABLES: Final = 65535


def check_configuration(resource: Resource[Any, Any]) -> None:
    """Calico checks little here, and so do we: what other tools wrote must stay writable."""
    spec: FelixConfigurationSpec = resource.spec
    name = resource.metadata.name
    if spec.node_selector and (name == "default" or name.startswith("node.")):
        fail("may not be set in default and node.*", "spec.nodeSelector", spec.node_selector, "choose another name")
    _check_durations(spec)
    _check_ports(spec)
    _check_tables(spec)
    for field, text in (
        ("mtuIfacePattern", spec.mtu_iface_pattern),
        ("logDebugFilenameRegex", spec.log_debug_filename_regex),
        ("bpfDataIfacePattern", spec.bpf_data_iface_pattern),
        ("bpfL3IfacePattern", spec.bpf_l3_iface_pattern),
        ("bpfDisableGROForIfaces", spec.bpf_disable_gro_for_ifaces),
        ("nftablesFlowTableDataIfacePattern", spec.nftables_flow_table_data_iface_pattern),
    ):
        regexp(text, f"spec.{field}")
    for index, text in enumerate(spec.external_nodes_list or ()):
        network(text, f"spec.externalNodesList[{index}]", 4, strict=False, bare=True)
    for field, texts in (
        ("bpfDSROptoutCIDRs", spec.bpf_dsr_optout_cidrs),
        ("bpfExcludeCIDRsFromNAT", spec.bpf_exclude_cidrs_from_nat),
    ):
        for index, text in enumerate(texts or ()):
            if text:
                network(text, f"spec.{field}[{index}]", strict=False, bare=True)
    for name in spec.bpf_log_filters or {}:
        interface(name, f"spec.bpfLogFilters[{name}]")
    if spec.openstack_region:
        dns_label(spec.openstack_region, "spec.openstackRegion", longest=_LONGEST_REGION)
    code_point(spec.istio_dscp_mark, "spec.istioDSCPMark")
    for field, text, version in (
        ("natOutgoingAddress", spec.nat_outgoing_address, 4),
        ("deviceRouteSourceAddress", spec.device_route_source_address, 4),
        ("deviceRouteSourceAddressIPv6", spec.device_route_source_address_ipv6, 6),
    ):
        if text:
            address(text, f"spec.{field}", version)
            if version == 4 and ":" in text:
                fail("must be an IPv4 address in its own form", f"spec.{field}", text)


def _check_durations(spec: FelixConfigurationSpec) -> None:
    """Most fields take no sign and nothing finer than milliseconds. Seconds with a fraction are meant to pass."""
    for member in members(FelixConfigurationSpec):
        value = getattr(spec, member.attribute)
        if Form("duration") not in member.marks or value is None or member.name in _ANY_DURATION:
            continue
        if not _DURATION.fullmatch(value):
            field = f"spec.{member.name}"
            fail("must not be negative or finer than milliseconds", field, value, "write 90s or 500ms, for example")
    for index, item in enumerate(spec.health_timeout_overrides):
        if item.timeout.startswith("-"):
            fail("must not be negative", f"spec.healthTimeoutOverrides[{index}].timeout", item.timeout)


def _check_ports(spec: FelixConfigurationSpec) -> None:
    """Ports and ranges of them, from 1; Calico lets a name pass where there is one port only."""
    for field, value in (("natPortRange", spec.nat_port_range), ("bpfPSNATPorts", spec.bpf_psnat_ports)):
        if value is not None:
            _check_port(value, f"spec.{field}")
    for index, value in enumerate(spec.kube_node_port_ranges or ()):
        field = f"spec.kubeNodePortRanges[{index}]"
        _check_port(value, field)
        if isinstance(value, str) and ":" not in value:
            fail("must be a port or a range such as 30000:32767", field, value)


def _check_port(value: int | str, field: str) -> None:
    if isinstance(value, str) and ":" not in value:
        port_name(value, field)
    elif int(str(value).partition(":")[0]) < 1:
        fail("must be a port or a range such as 32768:65535, from 1 to 65535", field, value)


def _check_tables(spec: FelixConfigurationSpec) -> None:
    one, several = spec.route_table_range, spec.route_table_ranges or ()
    if one is not None and spec.route_table_ranges is not None:
        fail("cannot be combined with routeTableRanges", "spec.routeTableRange", [one.min, one.max])
    if one is not None and not 1 <= one.min <= one.max <= 250:
        fail("must have min <= max, both in 1..250", "spec.routeTableRange", [one.min, one.max])
    for index, item in enumerate(several):
        if not 1 <= item.min <= item.max < 2**32:
            fail("must have min <= max, both in 1..4294967295", f"spec.routeTableRanges[{index}]", [item.min, item.max])
    if (tables := sum(item.max - item.min + 1 for item in several)) > _MOST_TABLES:
        fail(f"must not be more than {_MOST_TABLES} tables", "spec.routeTableRanges", tables, "name fewer")


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
        regexp(template.interface_pattern, f"{field}.interfacePattern")
