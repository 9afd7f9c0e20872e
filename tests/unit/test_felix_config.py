"""Felix's parameters as values."""

from __future__ import annotations

from calipy.felix.config import FelixConfig
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
