"""The environment of a node is parsed strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from calipy.errors import InvalidInputError
from calipy.node.settings import NodeSettings, node_name


def test_defaults(tmp_path: Path) -> None:
    """With only a name given, calico/node's defaults hold."""
    settings = NodeSettings.from_environment({"NODENAME": "n1"}, lib_dir=tmp_path)
    assert (settings.name, settings.ip, settings.ip6, settings.as_number) == ("n1", "", "", None)
    assert settings.pool4.nat_outgoing
    assert not settings.pool6.nat_outgoing
    assert (settings.pool4.block_size, settings.pool6.block_size) == (26, 122)
    assert settings.health_host == "localhost"
    assert settings.networking


def test_name_comes_from_the_first_source_that_has_one(tmp_path: Path) -> None:
    """NODENAME, then the nodename file, then HOSTNAME in lower case."""
    assert node_name({"HOSTNAME": "GW-One"}, lib_dir=tmp_path) == "gw-one"
    (tmp_path / "nodename").write_text("stored\n")
    assert node_name({"HOSTNAME": "GW-One"}, lib_dir=tmp_path) == "stored"
    assert node_name({"NODENAME": "given", "HOSTNAME": "x"}, lib_dir=tmp_path) == "given"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NODENAME", "Bad_Name"),
        ("IP", "10.0.0.300"),
        ("IP", "fd00::1"),
        ("IP6", "10.0.0.1"),
        ("AS", "64512x"),
        ("AS", "4294967296"),
        ("AS", "70000.1"),
        ("IP_AUTODETECTION_METHOD", "interface="),
        ("IP_AUTODETECTION_METHOD", "guess"),
        ("CALICO_NETWORKING_BACKEND", "ospf"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/33"),
        ("CALICO_IPV4POOL_CIDR", "fd00::/64"),
        ("CALICO_IPV4POOL_BLOCK_SIZE", "33"),
        ("CALICO_IPV4POOL_IPIP", "sometimes"),
        ("CALICO_IPV4POOL_NAT_OUTGOING", "perhaps"),
        ("FELIX_HEALTHPORT", "99999"),
        ("AUTODETECT_POLL_INTERVAL", "60"),
    ],
)
def test_bad_values_name_variable_and_value(variable: str, value: str, tmp_path: Path) -> None:
    """What cannot be used is refused, with the variable and its value in the message."""
    with pytest.raises(InvalidInputError) as caught:
        NodeSettings.from_environment({"NODENAME": "n1", variable: value}, lib_dir=tmp_path)
    assert variable in str(caught.value)
    assert value in str(caught.value)


def test_values_are_understood(tmp_path: Path) -> None:
    """Dotted AS numbers, modes in any case, Go durations, Felix parameters without their prefix."""
    settings = NodeSettings.from_environment(
        {
            "NODENAME": "n1",
            "AS": "1.10",
            "CALICO_IPV4POOL_VXLAN": "crosssubnet",
            "CALICO_IPV6POOL_CIDR": "none",
            "AUTODETECT_POLL_INTERVAL": "1m30s",
            "FELIX_IPV6SUPPORT": "false",
            "FELIX_InterfacePrefix": "cali",
        },
        lib_dir=tmp_path,
    )
    assert settings.as_number == 65546
    assert settings.pool4.vxlan_mode == "CrossSubnet"
    assert settings.pool6.cidr is None
    assert settings.poll_interval == 90.0
    assert not settings.ipv6_support
    assert settings.felix["interfaceprefix"] == "cali"


def test_pools_cannot_be_both_wanted_and_not(tmp_path: Path) -> None:
    """NO_DEFAULT_POOLS with a pool given is a contradiction, not a preference."""
    with pytest.raises(InvalidInputError, match="NO_DEFAULT_POOLS"):
        NodeSettings.from_environment(
            {"NODENAME": "n1", "NO_DEFAULT_POOLS": "true", "CALICO_IPV4POOL_CIDR": "10.0.0.0/16"}, lib_dir=tmp_path
        )
