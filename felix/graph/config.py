"""Felix's parameters merged by precedence: environment, ``node.<node>``, one selected object, ``default``.

Values stay texts as Felix's own file holds them (``calipy.felix.config`` reads them and knows the defaults). Merging is
per parameter, without regard to case: an object contributes the fields it sets and its ``config.projectcalico.org/…``
annotations. Source: Calico ``libcalico-go/lib/backend/syncersv1/updateprocessors/configurationprocessor.go`` and
``felix/config``.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from calipy.datastore import durations
from calipy.datastore.keys import ResourceKey
from calipy.datastore.kinds.base import Form, GoStruct
from calipy.datastore.resources import (
    ClusterInformationSpec,
    FelixConfigurationSpec,
    HealthTimeoutOverride,
    NodeSpec,
    ProtoPort,
    Resource,
    RouteTableRange,
)
from calipy.errors import InvalidInputError
from calipy.policy.effective import parse_field

ANNOTATION: Final = "config.projectcalico.org/"
ENVIRONMENT: Final = "FELIX_"

_RENAMED: Final = {
    "ipv6Support": "Ipv6Support",
    "ipipEnabled": "IpInIpEnabled",
    "ipipMTU": "IpInIpMtu",
    "iptablesPostWriteCheckInterval": "IptablesPostWriteCheckIntervalSecs",
    "iptablesLockProbeInterval": "IptablesLockProbeIntervalMillis",
    "iptablesLockTimeout": "IptablesLockTimeoutSecs",
    "externalNodesList": "ExternalNodesCIDRList",
    "reportingInterval": "ReportingIntervalSecs",
    "reportingTTL": "ReportingTTLSecs",
    "endpointReportingDelay": "EndpointReportingDelaySecs",
    "usageReportingInitialDelay": "UsageReportingInitialDelaySecs",
    "usageReportingInterval": "UsageReportingIntervalSecs",
    "netlinkTimeout": "NetlinkTimeoutSecs",
    "wireguardKeepAlive": "WireguardPersistentKeepAlive",
    "bpfConntrackMode": "BPFConntrackCleanupMode",
    "bpfMapSizePerCpuConntrack": "BPFMapSizePerCPUConntrack",
    "nftablesMode": "NFTablesMode",
    "nftablesFlowTableOffload": "NFTablesFlowTableOffload",
}
_ACRONYMS: Final = {"ip": "IP", "ipv4": "IPv4", "ipv6": "IPv6"} | {
    word: word.upper() for word in ("vxlan", "bpf", "xdp", "aws", "nat", "mtu")
}
_FIRST_WORD = re.compile(r"[a-z0-9]+")
_NOT_PARAMETERS: Final = frozenset({"node_selector", "unknown"})
_LOCAL_ONLY = re.compile(r"datastoretype|felixhostname|etcd.*|typha.*")
"""Parameters that tell where the datastore is (passwords too) or who we are; they are not the graph's to hand on."""


def parameter_name(json_name: str) -> str:
    """Felix's name of a resource field: ``vxlanMTU`` → ``VXLANMTU``, ``ipipEnabled`` → ``IpInIpEnabled``."""
    if json_name in _RENAMED:
        return _RENAMED[json_name]
    word = _FIRST_WORD.match(json_name)
    assert word is not None
    return _ACRONYMS.get(word[0], word[0].capitalize()) + json_name[word.end() :]


def _is_duration(hint: Any) -> bool:
    return any(Form("duration") in getattr(part, "__metadata__", ()) for part in (hint, *typing.get_args(hint)))


_HINTS = typing.get_type_hints(FelixConfigurationSpec, include_extras=True)
_FIELDS: Final = tuple(
    (field.name, parameter_name(field.encode_name), _is_duration(_HINTS[field.name]))
    for field in msgspec.structs.fields(FelixConfigurationSpec)
    if field.name not in _NOT_PARAMETERS
)
_SPELLING: Final = {name.lower(): name for _, name, _ in _FIELDS}


def resource_parameters(resource: Resource[FelixConfigurationSpec, Any]) -> dict[str, str]:
    """Parameters that a FelixConfiguration sets, as texts; annotations override fields.

    Lists are joined by commas, empty ones are ``none``; durations are seconds, or milliseconds where the name says so.
    """
    found = {}
    for attribute, name, is_duration in _FIELDS:
        value = getattr(resource.spec, attribute)
        if value is None or value == "" or (value == () and attribute == "health_timeout_overrides"):
            continue
        found[name] = _seconds(name, value) if is_duration else _text(value)
    for key, value in resource.metadata.annotations.items():
        if key.startswith(ANNOTATION):
            name = key.removeprefix(ANNOTATION)
            found[_SPELLING.get(name.lower(), name)] = value
    return {name: value for name, value in found.items() if not _LOCAL_ONLY.fullmatch(name.lower())}


def _seconds(name: str, text: str) -> str:
    return f"{durations.parse(text) / (10**6 if name.endswith('Millis') else 10**9):.9f}".rstrip("0").rstrip(".")


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case ProtoPort(protocol=protocol, port=port, net=net):
            middle = f"[{net}]:" if ":" in net else f"{net}:" if net else ""
            return f"{protocol.lower() or 'tcp'}:{middle}{port}"
        case HealthTimeoutOverride(name=name, timeout=timeout):
            return f"{name}={timeout}"
        case RouteTableRange(min=low, max=high):
            return f"{low}-{high}"
        case GoStruct():
            return _text({k: v for k, v in msgspec.structs.asdict(value).items() if v is not None})
        case tuple():
            return ",".join(map(_text, value)) or "none"
        case dict():
            return ",".join(f"{key}={_text(item)}" for key, item in value.items()) or "none"
        case _:
            return str(value)


class Configuration:
    """All sources of parameters, and what they come to.

    Args:
        hostname: this node.
        environment: variables; those that begin with ``FELIX_`` count.
        report: called with a key and why its object does not count ("" = it is all right).
    """

    def __init__(
        self, hostname: str, environment: Mapping[str, str], report: Callable[[ResourceKey, str], None]
    ) -> None:
        self._hostname = hostname
        self._report = report
        given = {k.removeprefix(ENVIRONMENT): value for k, value in environment.items() if k.startswith(ENVIRONMENT)}
        self._environment = {
            _SPELLING.get(name.lower(), name): value
            for name, value in given.items()
            if not _LOCAL_ONLY.fullmatch(name.lower())
        }
        self._objects: dict[str, Resource[FelixConfigurationSpec, Any]] = {}
        self._node: Resource[NodeSpec, Any] | None = None
        self._cluster: Resource[ClusterInformationSpec, Any] | None = None
        self._dirty = True
        self._sent: dict[str, str] | None = None

    def set_object(self, name: str, resource: Resource[FelixConfigurationSpec, Any] | None) -> None:
        """Add, replace or (None) remove a FelixConfiguration."""
        if resource is None:
            self._objects.pop(name, None)
        else:
            self._objects[name] = resource
        self._dirty = True

    def set_node(self, resource: Resource[NodeSpec, Any] | None) -> None:
        """This node's own Node: its labels choose among selected objects, its tunnel addresses are parameters."""
        self._node = resource
        self._dirty = True

    def set_cluster(self, resource: Resource[ClusterInformationSpec, Any] | None) -> None:
        """The ClusterInformation."""
        self._cluster = resource
        self._dirty = True

    def effective(self) -> dict[str, str]:
        """All parameters that some source sets."""
        layers = [
            self._cluster_parameters(),
            self._parameters("default"),
            self._selected(),
            self._node_parameters(),
            self._parameters(f"node.{self._hostname}"),
            self._environment,
        ]
        merged: dict[str, tuple[str, str]] = {}
        for layer in layers:
            merged.update({name.lower(): (name, value) for name, value in layer.items()})
        return dict(sorted(merged.values()))

    def flush(self) -> dict[str, str] | None:
        """The parameters if they changed since the last flush, else None."""
        if not self._dirty:
            return None
        self._dirty = False
        found = self.effective()
        if found == self._sent:
            return None
        self._sent = found
        return dict(found)

    def _parameters(self, name: str) -> dict[str, str]:
        resource = self._objects.get(name)
        if resource is None:
            return {}
        key = ResourceKey("FelixConfiguration", name)
        try:
            found = resource_parameters(resource)
        except ValueError as error:
            self._report(key, str(error))
            return {}
        self._report(key, "")
        return found

    def _selected(self) -> dict[str, str]:
        """Of the objects whose selector picks this node, the oldest, then the lowest name."""
        labels = self._node.metadata.labels if self._node is not None else {}
        chosen = []
        for name, resource in self._objects.items():
            if name == "default" or name.startswith("node.") or not resource.spec.node_selector:
                continue
            try:
                if parse_field(resource.spec.node_selector, "spec.nodeSelector").matches(labels):
                    chosen.append((resource.metadata.creation_timestamp or "", name))
            except InvalidInputError as error:
                self._report(ResourceKey("FelixConfiguration", name), str(error))
        return self._parameters(min(chosen)[1]) if chosen else {}

    def _node_parameters(self) -> dict[str, str]:
        if self._node is None:
            return {}
        spec = self._node.spec
        found = {
            "IpInIpTunnelAddr": spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp is not None else "",
            "IPv4VXLANTunnelAddr": spec.ipv4_vxlan_tunnel_addr,
            "VXLANTunnelMACAddr": spec.vxlan_tunnel_mac_addr,
            "IPv6VXLANTunnelAddr": spec.ipv6_vxlan_tunnel_addr,
            "VXLANTunnelMACAddrV6": spec.vxlan_tunnel_mac_addr_v6,
        }
        return {name: value for name, value in found.items() if value}

    def _cluster_parameters(self) -> dict[str, str]:
        if self._cluster is None:
            return {}
        spec = self._cluster.spec
        found = {
            "ClusterGUID": spec.cluster_guid,
            "ClusterType": spec.cluster_type,
            "CalicoVersion": spec.calico_version,
            "Variant": spec.variant,
        }
        return {name: value for name, value in found.items() if value}
