"""Felix's parameters as typed values.

The parameters arrive as Calico spells them in its file and environment (``InterfacePrefix`` → ``cali``), already merged
by precedence. A value that cannot be used falls back to the default and is reported, as Felix does
(felix/config/config_params.go); a parameter that this agent does not know is left alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, NamedTuple

from calipy.felix import parsing
from calipy.felix.messages import Encap, Encapsulation, PortRange
from calipy.net import Prefix

_FAILSAFE: Final = re.compile(r"(?:([a-zA-Z]+):(?:\[([^\]]+)\]:|([^:\[\]]+):)?)?(\d+)", re.ASCII)

Backend = Literal["auto", "nft", "legacy"]

MTU_INTERFACES: Final = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"
"""Names of physical links, whose MTU bounds that of the pods."""
CLUSTER_ROUTES: Final[dict[str, frozenset[Encap]]] = {
    "Enabled": frozenset({"ipip", "none"}),
    "Disabled": frozenset(),
    "EnabledIPIPOnly": frozenset({"ipip"}),
    "EnabledNoEncapOnly": frozenset({"none"}),
}
"""What ``programClusterRoutes`` claims, here and in a BGPConfiguration; VXLAN is Felix's in any case."""


class FailsafePort(NamedTuple):
    """A port of the node that no policy closes; ``net`` limits it to these peers, "" does not."""

    protocol: str
    port: int
    net: str = ""


def _tcp(*ports: int) -> tuple[FailsafePort, ...]:
    return tuple(FailsafePort("tcp", port) for port in ports)


_CONTROL: Final = _tcp(179, 2379, 2380, 5473, 6443, 6666, 6667)


@dataclass(frozen=True, slots=True)
class FelixConfig:
    """Effective parameters of one node; the defaults are Felix's. Durations are seconds, 0 switches a refresh off.

    ``problems`` lists the values that could not be used, as ``(parameter, value, reason)``. ``encapsulation`` is no
    parameter: it says what the pools (and ``ipip_enabled``, ``vxlan_enabled``, where set) come to.
    """

    interface_prefixes: tuple[str, ...] = ("cali",)
    ipv6_support: bool = True
    chain_insert_mode: Literal["insert", "append"] = "insert"
    endpoint_to_host_action: Literal["DROP", "RETURN", "ACCEPT", "REJECT"] = "DROP"
    filter_allow_action: Literal["ACCEPT", "RETURN"] = "ACCEPT"
    mangle_allow_action: Literal["ACCEPT", "RETURN"] = "ACCEPT"
    filter_deny_action: Literal["DROP", "REJECT"] = "DROP"
    iptables_backend: Backend = "auto"
    mark_mask: int = 0xFFFF0000
    iptables_refresh: float = 180.0
    post_write_check: float = 5.0
    lock_probe: float = 0.05
    ipsets_refresh: float = 90.0
    max_ipset_size: int = 1048576
    route_refresh: float = 90.0
    interface_refresh: float = 90.0
    device_route_protocol: int = 3
    device_route_source: str = ""
    device_route_source_ipv6: str = ""
    remove_external_routes: bool = True
    ipv4_route_priority: int = 1024
    ipv6_route_priority: int = 1024
    service_loop_action: Literal["DROP", "REJECT", ""] = "DROP"
    route_sync_disabled: bool = False
    cluster_routes: frozenset[Encap] = frozenset({"ipip"})
    forwarding: bool = True
    ipip_enabled: bool | None = None
    ipip_mtu: int = 0
    ipip_tunnel_address: str = ""
    vxlan_enabled: bool | None = None
    vxlan_port: int = 4789
    vxlan_vni: int = 4096
    vxlan_mtu: int = 0
    vxlan_mtu_v6: int = 0
    vxlan_tunnel_address: str = ""
    vxlan_tunnel_address_v6: str = ""
    encapsulation: Encapsulation = field(default_factory=Encapsulation)
    mtu_interfaces: re.Pattern[str] = re.compile(MTU_INTERFACES)
    require_mtu_file: bool = False
    allow_vxlan_from_workloads: bool = False
    allow_ipip_from_workloads: bool = False
    disable_conntrack_invalid_check: bool = False
    nat_port_range: PortRange | None = None
    nat_outgoing_address: str = ""
    nat_outgoing_interface: str = ""
    nat_outgoing_exclude_hosts: bool = False
    spoofing_allowed: bool = False
    external_nodes: tuple[Prefix, ...] = ()
    log_prefix: str = "calico-packet"
    log_rate_limit: str = ""
    log_rate_burst: int = 5
    failsafe_inbound: tuple[FailsafePort, ...] = (*_tcp(22), FailsafePort("udp", 68), *_CONTROL)
    failsafe_outbound: tuple[FailsafePort, ...] = (FailsafePort("udp", 53), FailsafePort("udp", 67), *_CONTROL)
    interface_exclude: tuple[re.Pattern[str], ...] = (re.compile(r"kube-ipvs0"),)
    problems: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> FelixConfig:
        """Read the parameters that this agent uses; names are compared without regard to case, as Felix does.

        Never fails: what cannot be used keeps its default and is listed in ``problems``. The value ``none`` stands for
        "nothing": an empty list or text, 0, or off.
        """
        values, problems = parsing.read(parameters, _PARAMETERS)
        return replace(cls(), **values, problems=problems)


def _prefixes(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise ValueError("at least one interface prefix is needed")
    for name in names:
        _interface(name)
    return names


def _interface(text: str) -> str:
    if len(text) > 15 or not all(c.isalnum() or c in "-_.+" for c in text):
        raise ValueError("not an interface name")
    return text


def _address(version: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not text:
            return ""
        address = ipaddress.ip_address(text)
        if address.version != version:
            raise ValueError(f"expected an IPv{version} address")
        return str(address)

    return parse


def _networks(text: str) -> tuple[Prefix, ...]:
    return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def _ports(text: str) -> PortRange | None:
    if not text:
        return None
    first, _, last = text.partition(":")
    ports = PortRange(int(first), int(last or first))
    if not 0 < ports.first <= ports.last <= 65535:
        raise ValueError("expected first:last within 1..65535")
    return ports


def _failsafes(text: str) -> tuple[FailsafePort, ...]:
    """``tcp:22``, ``udp:10.0.0.0/8:53``, ``tcp:[fd00::/8]:179``, or a port alone for TCP; separated by commas."""
    return tuple(_failsafe(part.strip()) for part in text.split(",") if part.strip())


def _failsafe(text: str) -> FailsafePort:
    found = _FAILSAFE.fullmatch(text)
    if found is None:
        raise ValueError(f"expected protocol:port or protocol:net:port, not {text!r}")
    protocol, net, port = (found[1] or "tcp").lower(), found[2] or found[3] or "", int(found[4])
    if protocol not in {"tcp", "udp", "sctp"} or port > 65535:
        raise ValueError(f"expected tcp, udp or sctp and a port within 0..65535, not {text!r}")
    return FailsafePort(protocol, port, str(ipaddress.ip_network(net, strict=False)) if net else "")


def _patterns(text: str) -> tuple[re.Pattern[str], ...]:
    """Names, or regular expressions between slashes; separated by commas."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        expression = len(part) > 1 and part.startswith("/") and part.endswith("/")
        try:
            found.append(re.compile(f".*(?:{part[1:-1]}).*" if expression else re.escape(part)))
        except re.error as error:
            raise ValueError(f"{part!r} is no regular expression: {error}") from None
    return tuple(found)


def _mask(text: str) -> int:
    value = int(text or "0", 0)
    if not 0 < value <= 0xFFFFFFFF or value.bit_count() < 5:
        raise ValueError("a mask of at least 5 bits is needed")
    return value


def _loop_action(text: str) -> str:
    """Target of the rules against service loops; "" for none."""
    choice = parsing.choice("Drop", "Reject", "Disabled")(text or "Disabled")
    return "" if choice == "Disabled" else choice.upper()


def _cluster_routes(text: str) -> frozenset[Encap]:
    """Pools without VXLAN whose routes are the agent's; those with it always are."""
    return CLUSTER_ROUTES[parsing.choice(*CLUSTER_ROUTES)(text or "Disabled")]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


def _rate(text: str) -> str:
    if text:
        count, _, unit = text.partition("/")
        if not count.isdigit() or unit not in {"second", "minute", "hour", "day"}:
            raise ValueError("expected a rate such as 10/minute")
    return text


_PARAMETERS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "InterfacePrefix": ("interface_prefixes", _prefixes),
    "Ipv6Support": ("ipv6_support", parsing.boolean),
    "ChainInsertMode": ("chain_insert_mode", parsing.choice("insert", "append")),
    "DefaultEndpointToHostAction": ("endpoint_to_host_action", parsing.choice("DROP", "RETURN", "ACCEPT", "REJECT")),
    "IptablesFilterAllowAction": ("filter_allow_action", parsing.choice("ACCEPT", "RETURN")),
    "IptablesMangleAllowAction": ("mangle_allow_action", parsing.choice("ACCEPT", "RETURN")),
    "IptablesFilterDenyAction": ("filter_deny_action", parsing.choice("DROP", "REJECT")),
    "ServiceLoopPrevention": ("service_loop_action", _loop_action),
    "IptablesBackend": ("iptables_backend", parsing.choice("auto", "nft", "legacy")),
    "IptablesMarkMask": ("mark_mask", _mask),
    "IptablesRefreshInterval": ("iptables_refresh", parsing.seconds),
    "IptablesPostWriteCheckIntervalSecs": ("post_write_check", parsing.seconds),
    "IptablesLockProbeIntervalMillis": ("lock_probe", parsing.milliseconds),
    "IpsetsRefreshInterval": ("ipsets_refresh", parsing.seconds),
    "MaxIpsetSize": ("max_ipset_size", parsing.integer(1, 2**31)),
    "RouteRefreshInterval": ("route_refresh", parsing.seconds),
    "InterfaceRefreshInterval": ("interface_refresh", parsing.seconds),
    "DeviceRouteProtocol": ("device_route_protocol", parsing.integer(0, 255)),
    "DeviceRouteSourceAddress": ("device_route_source", _address(4)),
    "DeviceRouteSourceAddressIPv6": ("device_route_source_ipv6", _address(6)),
    "RemoveExternalRoutes": ("remove_external_routes", parsing.boolean),
    "IPv4NormalRoutePriority": ("ipv4_route_priority", parsing.integer(1, 2**31 - 1)),
    "IPv6NormalRoutePriority": ("ipv6_route_priority", parsing.integer(1, 2**31 - 1)),
    "RouteSyncDisabled": ("route_sync_disabled", parsing.boolean),
    "ProgramClusterRoutes": ("cluster_routes", _cluster_routes),
    "IPForwarding": ("forwarding", parsing.boolean),
    "IpInIpEnabled": ("ipip_enabled", parsing.boolean),
    "IpInIpMtu": ("ipip_mtu", parsing.integer(0, 65535)),
    "IpInIpTunnelAddr": ("ipip_tunnel_address", _address(4)),
    "VXLANEnabled": ("vxlan_enabled", parsing.boolean),
    "VXLANPort": ("vxlan_port", parsing.integer(1, 65535)),
    "VXLANVNI": ("vxlan_vni", parsing.integer(1, 2**24 - 1)),
    "VXLANMTU": ("vxlan_mtu", parsing.integer(0, 65535)),
    "VXLANMTUV6": ("vxlan_mtu_v6", parsing.integer(0, 65535)),
    "IPv4VXLANTunnelAddr": ("vxlan_tunnel_address", _address(4)),
    "IPv6VXLANTunnelAddr": ("vxlan_tunnel_address_v6", _address(6)),
    "MTUIfacePattern": ("mtu_interfaces", _pattern),
    "RequireMTUFile": ("require_mtu_file", parsing.boolean),
    "AllowVXLANPacketsFromWorkloads": ("allow_vxlan_from_workloads", parsing.boolean),
    "AllowIPIPPacketsFromWorkloads": ("allow_ipip_from_workloads", parsing.boolean),
    "DisableConntrackInvalidCheck": ("disable_conntrack_invalid_check", parsing.boolean),
    "NATPortRange": ("nat_port_range", _ports),
    "NATOutgoingAddress": ("nat_outgoing_address", _address(4)),
    "IptablesNATOutgoingInterfaceFilter": ("nat_outgoing_interface", _interface),
    "NATOutgoingExclusions": (
        "nat_outgoing_exclude_hosts",
        lambda text: parsing.choice("IPPoolsOnly", "IPPoolsAndHostIPs")(text) == "IPPoolsAndHostIPs",
    ),
    "WorkloadSourceSpoofing": ("spoofing_allowed", lambda text: parsing.choice("Disabled", "Any")(text) == "Any"),
    "ExternalNodesCIDRList": ("external_nodes", _networks),
    "FailsafeInboundHostPorts": ("failsafe_inbound", _failsafes),
    "FailsafeOutboundHostPorts": ("failsafe_outbound", _failsafes),
    "InterfaceExclude": ("interface_exclude", _patterns),
    "LogPrefix": ("log_prefix", parsing.text),
    "LogActionRateLimit": ("log_rate_limit", _rate),
    "LogActionRateLimitBurst": ("log_rate_burst", parsing.integer(1, 9999)),
}

assert {attribute for attribute, _ in _PARAMETERS.values()} <= {one.name for one in fields(FelixConfig)}
