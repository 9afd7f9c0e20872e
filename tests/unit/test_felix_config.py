"""Felix's parameters as values."""

from __future__ import annotations

from calipy.felix.config import FailsafePort, FelixConfig
from calipy.felix.messages import PortRange


def test_defaults_are_felixs() -> None:
    """An empty map gives Felix's defaults."""
    config = FelixConfig.from_parameters({})
    assert config == FelixConfig()
    assert (config.endpoint_to_host_action, config.mark_mask, config.iptables_refresh) == ("DROP", 0xFFFF0000, 180)


def test_names_in_any_case_and_values_are_read() -> None:
    """As Felix's environment and file spell them."""
    config = FelixConfig.from_parameters(
        {
            "interfaceprefix": "cali,tap",
            "IPTABLESMARKMASK": "0x00ff0000",
            "DefaultEndpointToHostAction": "accept",
            "IptablesRefreshInterval": "60",
            "IptablesLockProbeIntervalMillis": "100",
            "NATPortRange": "100:200",
            "Ipv6Support": "false",
            "ExternalNodesCIDRList": "10.0.0.0/8, fd00::/8",
            "UnknownParameter": "x",
        }
    )
    assert config.interface_prefixes == ("cali", "tap")
    assert config.mark_mask == 0xFF0000
    assert config.endpoint_to_host_action == "ACCEPT"
    assert (config.iptables_refresh, config.lock_probe) == (60, 0.1)
    assert config.nat_port_range == PortRange(100, 200)
    assert not config.ipv6_support
    assert [str(net) for net in config.external_nodes] == ["10.0.0.0/8", "fd00::/8"]
    assert not config.problems


def test_unusable_values_keep_the_default_and_are_reported() -> None:
    """Nothing a user writes stops the agent; it says what it ignored and why."""
    config = FelixConfig.from_parameters(
        {"IptablesMarkMask": "0x3", "ChainInsertMode": "sideways", "InterfacePrefix": "way-too-long-for-linux"}
    )
    assert {name for name, _, _ in config.problems} == {"IptablesMarkMask", "ChainInsertMode", "InterfacePrefix"}
    assert config.mark_mask == 0xFFFF0000
    assert all(reason for _, _, reason in config.problems)


def test_none_stands_for_nothing() -> None:
    """``none`` empties lists and switches periods off."""
    config = FelixConfig.from_parameters({"IptablesRefreshInterval": "none", "ExternalNodesCIDRList": "NONE"})
    assert config.iptables_refresh == 0
    assert config.external_nodes == ()


def test_periods_are_seconds_or_durations() -> None:
    """Plain numbers as in Felix's file, and Go's form as in the resource."""
    config = FelixConfig.from_parameters(
        {
            "IptablesRefreshInterval": "1m30s",
            "IpsetsRefreshInterval": "12.5",
            "RouteRefreshInterval": "0s",
            "IptablesLockProbeIntervalMillis": "50ms",
            "InterfaceRefreshInterval": "soon",
        }
    )
    assert (config.iptables_refresh, config.ipsets_refresh, config.route_refresh) == (90, 12.5, 0)
    assert config.lock_probe == 0.05
    assert [name for name, _, _ in config.problems] == ["InterfaceRefreshInterval"]


def test_failsafe_ports_as_felix_spells_them() -> None:
    """Protocol, optional network, port; a bare port is TCP; ``none`` closes them all, nonsense keeps the default."""
    default = FelixConfig()
    assert (
        default.failsafe_inbound
        == FelixConfig.from_parameters(
            {"FailsafeInboundHostPorts": "tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667"}
        ).failsafe_inbound
    )
    config = FelixConfig.from_parameters(
        {
            "FailsafeInboundHostPorts": "22, UDP:10.1.2.3/8:53,tcp:[fd00::1/64]:179, tcp:192.0.2.1:80",
            "FailsafeOutboundHostPorts": "none",
        }
    )
    assert config.failsafe_inbound == (
        FailsafePort("tcp", 22),
        FailsafePort("udp", 53, "10.0.0.0/8"),
        FailsafePort("tcp", 179, "fd00::/64"),
        FailsafePort("tcp", 80, "192.0.2.1/32"),
    )
    assert config.failsafe_outbound == ()
    for bad in ("tcp:", "icmp:8", "tcp:65536", "tcp:300.0.0.0/8:22", "tcp:22:10.0.0.0/8", "22;-j ACCEPT"):
        config = FelixConfig.from_parameters({"FailsafeInboundHostPorts": bad})
        assert config.failsafe_inbound == default.failsafe_inbound
        assert [name for name, _, _ in config.problems] == ["FailsafeInboundHostPorts"]


def test_excluded_interfaces_are_names_or_patterns() -> None:
    """``kube-ipvs0`` by default; between slashes stands a regular expression."""
    config = FelixConfig.from_parameters({"InterfaceExclude": "kube-ipvs0,/^veth/,/0$/"})

    def excluded(name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in config.interface_exclude)

    assert excluded("kube-ipvs0")
    assert excluded("veth12")
    assert excluded("eth0")
    assert not excluded("eth1")
    assert not excluded("kube-ipvs1")
    assert FelixConfig.from_parameters({"InterfaceExclude": "none"}).interface_exclude == ()
