"""Felix's parameters: names, texts and precedence."""

from __future__ import annotations

import pytest

from calipy.datastore.keys import ResourceKey
from calipy.felix.config import FelixConfig
from calipy.felix.graph.config import parameter_name, resource_parameters
from calipy.felix.graph.graph import Graph
from tests.support.objects import Object, gone, make, pod


def _config(name: str, spec: dict, **metadata: object) -> Object:
    return make("FelixConfiguration", name, spec, **metadata)


def _effective(*objects: Object, **environment: str) -> dict[str, str]:
    graph = Graph("n1", environment)
    for key, value in objects:
        graph.on_update(key, value)
    graph.on_in_sync()
    found = graph.flush().config
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("field", "parameter"),
    [
        ("interfacePrefix", "InterfacePrefix"),
        ("vxlanMTU", "VXLANMTU"),
        ("vxlanPort", "VXLANPort"),
        ("ipipEnabled", "IpInIpEnabled"),
        ("ipipMTU", "IpInIpMtu"),
        ("ipv6Support", "Ipv6Support"),
        ("ipv4NormalRoutePriority", "IPv4NormalRoutePriority"),
        ("ipForwarding", "IPForwarding"),
        ("ipsetsRefreshInterval", "IpsetsRefreshInterval"),
        ("natPortRange", "NATPortRange"),
        ("bpfConntrackMode", "BPFConntrackCleanupMode"),
        ("reportingTTL", "ReportingTTLSecs"),
        ("externalNodesList", "ExternalNodesCIDRList"),
        ("wireguardKeepAlive", "WireguardPersistentKeepAlive"),
        ("mtuIfacePattern", "MTUIfacePattern"),
        ("nftablesMode", "NFTablesMode"),
    ],
)
def test_parameter_names(field: str, parameter: str) -> None:
    """Fields of the resource have the names that Felix's file and environment use."""
    assert parameter_name(field) == parameter


def test_values_are_texts_as_felix_reads_them() -> None:
    """Booleans, durations, lists, maps, ports and ranges come out as Felix's own file would hold them."""
    _, resource = _config(
        "default",
        {
            "ipv6Support": False,
            "routeRefreshInterval": "1m30s",
            "iptablesPostWriteCheckInterval": "1.5s",
            "iptablesLockProbeInterval": "50ms",
            "failsafeInboundHostPorts": [
                {"protocol": "TCP", "port": 22},
                {"protocol": "udp", "port": 68, "net": "10.0.0.0/8"},
                {"port": 179, "net": "fd00::/8"},
            ],
            "failsafeOutboundHostPorts": [],
            "externalNodesList": ["10.1.0.0/16", "10.2.0.0/16"],
            "routeTableRanges": [{"min": 1, "max": 250}],
            "healthTimeoutOverrides": [{"name": "CalculationGraph", "timeout": "1m0s"}],
            "natPortRange": "32768:65535",
            "iptablesMarkMask": 4294901760,
            "logPrefix": "",
        },
    )
    assert resource_parameters(resource) == {
        "Ipv6Support": "false",
        "RouteRefreshInterval": "90",
        "IptablesPostWriteCheckIntervalSecs": "1.5",
        "IptablesLockProbeIntervalMillis": "50",
        "FailsafeInboundHostPorts": "tcp:22,udp:10.0.0.0/8:68,tcp:[fd00::/8]:179",
        "FailsafeOutboundHostPorts": "none",
        "ExternalNodesCIDRList": "10.1.0.0/16,10.2.0.0/16",
        "RouteTableRanges": "1-250",
        "HealthTimeoutOverrides": "CalculationGraph=1m0s",
        "NATPortRange": "32768:65535",
        "IptablesMarkMask": "4294901760",
    }


def test_the_agent_understands_the_texts() -> None:
    """What comes out of the datastore is usable by the agent's own reading of parameters."""
    spec = {
        "ipv6Support": False,
        "routeRefreshInterval": "30s",
        "iptablesLockProbeInterval": "50ms",
        "defaultEndpointToHostAction": "Return",
        "iptablesMarkMask": 4294901760,
        "natPortRange": "32768:65535",
        "ipForwarding": "Disabled",
        "workloadSourceSpoofing": "Any",
    }
    config = FelixConfig.from_parameters(_effective(_config("default", spec)))
    assert not config.problems
    assert (config.ipv6_support, config.route_refresh, config.lock_probe) == (False, 30.0, 0.05)
    assert (config.endpoint_to_host_action, config.mark_mask) == ("RETURN", 0xFFFF0000)
    assert (config.forwarding, config.spoofing_allowed, config.nat_port_range) == (False, True, (32768, 65535))


def test_precedence() -> None:
    """Environment, own object, oldest selected one, default: each parameter from the first that sets it."""
    names = ("logPrefix", "interfacePrefix", "metadataAddr", "mtuIfacePattern", "interfaceExclude")

    def setting(name: str, count: int, *, rack: str = "", created: int = 0) -> Object:
        spec = dict.fromkeys(names[:count], name) | ({"nodeSelector": f"rack == '{rack}'"} if rack else {})
        return _config(name, spec, **({"creationTimestamp": f"2026-0{created}-01T00:00:00Z"} if created else {}))

    everything = [
        setting("default", 5),
        setting("young", 4, rack="1", created=2),
        setting("old", 3, rack="1", created=1),
        setting("other", 5, rack="2"),
        setting("lost", 5),
        setting("node.n1", 2),
        setting("node.n2", 5),
        make("Node", "n1", {}, labels={"rack": "1"}),
    ]
    found = _effective(*everything, FELIX_LOGPREFIX="environment", FELIX_ETCDPASSWORD="secret", PATH="/bin")
    assert found == {
        "LogPrefix": "environment",
        "InterfacePrefix": "node.n1",
        "MetadataAddr": "old",
        "MTUIfacePattern": "default",
        "InterfaceExclude": "default",
    }


def test_annotations_override_and_add() -> None:
    """Annotations set raw parameters, known or not; where the datastore is cannot be set in the datastore."""
    annotations = {
        "config.projectcalico.org/logprefix": "annotated",
        "config.projectcalico.org/SomethingNew": "1",
        "config.projectcalico.org/EtcdEndpoints": "http://elsewhere",
        "other": "x",
    }
    assert _effective(_config("default", {"logPrefix": "field"}, annotations=annotations)) == {
        "LogPrefix": "annotated",
        "SomethingNew": "1",
    }


def test_node_labels_choose_anew() -> None:
    """A changed label of the node changes which object counts; nothing is said when nothing changes."""
    graph = Graph("n1")
    graph.on_update(*_config("rack", {"logPrefix": "rack", "nodeSelector": "rack == '1'"}))
    graph.on_in_sync()
    assert graph.flush().config == {}
    graph.on_update(*make("Node", "n1", {}, labels={"rack": "1"}))
    assert graph.flush().config == {"LogPrefix": "rack"}
    graph.on_update(*make("Node", "n1", {}, labels={"rack": "1", "more": ""}))
    assert graph.flush().config is None
    graph.on_update(*make("Node", "n2", {}, labels={"rack": "2"}))
    assert graph.flush().config is None


def test_tunnel_addresses_come_from_the_node() -> None:
    """Tunnel addresses of the own Node are parameters; those of others are not."""
    spec = {"bgp": {"ipv4IPIPTunnelAddr": "10.65.1.1"}, "ipv4VXLANTunnelAddr": "10.65.1.2"}
    assert _effective(make("Node", "n1", spec), make("Node", "n2", {"ipv4VXLANTunnelAddr": "10.65.9.9"})) == {
        "IpInIpTunnelAddr": "10.65.1.1",
        "IPv4VXLANTunnelAddr": "10.65.1.2",
    }


def test_bad_selector_is_reported() -> None:
    """An object whose node selector does not parse counts for nobody, and is listed."""
    graph = Graph("n1")
    graph.on_update(*_config("bad", {"logPrefix": "x", "nodeSelector": "rack ="}))
    graph.on_in_sync()
    assert graph.flush().config == {}
    assert "spec.nodeSelector" in graph.problems[ResourceKey("FelixConfiguration", "bad")]


def test_spoofing_endpoint_needs_leave() -> None:
    """A pod that may use foreign addresses exists only where the configuration allows that, and follows its changes."""
    key, resource = pod("vip", "10.65.1.7")
    key, resource = make(
        "WorkloadEndpoint",
        key.name,
        {"interfaceName": "cali1", "ipNetworks": ["10.65.1.7/32"], "allowSpoofedSourcePrefixes": ["10.9.0.0/16"]},
        namespace="shop",
    )
    any_source = _config("default", {"workloadSourceSpoofing": "Any"})
    graph = Graph("n1")
    graph.on_update(key, resource)
    graph.on_in_sync()
    assert not graph.flush().endpoints
    assert "workloadSourceSpoofing" in graph.problems[key]
    graph.on_update(*any_source)
    [endpoint] = graph.flush().endpoints.values()
    assert endpoint is not None
    assert endpoint.spoof_prefixes == ("10.9.0.0/16",)
    graph.on_update(*gone(any_source))
    assert list(graph.flush().endpoints.values()) == [None]
