"""Which address a node takes for its own."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface

import pytest

from calipy.errors import InvalidInputError
from calipy.net import Family
from calipy.node.autodetect import HostInterface, default_pool, detect, local_prefix, recorded_interfaces


def _interface(name: str, index: int, *addresses: str, up: bool = True) -> HostInterface:
    parsed: tuple[IPv4Interface | IPv6Interface, ...] = tuple(ip_interface(a) for a in addresses)
    return HostInterface(name, index, up, parsed)


HOST = (
    _interface("lo", 1, "127.0.0.1/8", "::1/128"),
    _interface("eth0", 2, "10.0.0.5/24", "fd00::5/64", "fe80::1/64"),
    _interface("eth1", 3, "10.1.0.5/24"),
    _interface("eth2", 4, "10.2.0.5/24", up=False),
    _interface("docker0", 5, "172.17.0.1/16"),
    _interface("cali123", 6, "10.9.9.9/32"),
)


def _source(_target: str, family: Family) -> str | None:
    return "10.0.0.5" if family == 4 else None


@pytest.mark.parametrize(
    ("method", "family", "expected"),
    [
        ("first-found", 4, "10.1.0.5/24"),
        ("first-found", 6, "fd00::5/64"),
        ("skip-interface=eth1", 4, "10.0.0.5/24"),
        ("interface=eth0", 4, "10.0.0.5/24"),
        ("interface=nope,eth.*", 4, "10.1.0.5/24"),
        ("interface=docker0", 4, "172.17.0.1/16"),
        ("interface=nope.*", 4, None),
        ("interface=eth2", 4, None),
        ("cidr=10.0.0.0/24,10.1.0.0/24", 4, "10.1.0.5/24"),
        ("cidr=192.0.2.0/24", 4, None),
        ("cidr=fd00::/64", 6, "fd00::5/64"),
        ("can-reach=192.0.2.1", 4, "10.0.0.5/24"),
        ("can-reach=2001:db8::1", 6, None),
        ("kubernetes-internal-ip", 4, None),
    ],
)
def test_method_picks(method: str, family: Family, expected: str | None) -> None:
    """Each method finds the address that calico/node would, and says so when there is none."""
    found = detect(method, family, HOST, source_towards=_source)
    assert (str(found.address) if found.address else None) == expected
    assert found.reason


@pytest.mark.parametrize("method", ["interface=(", "cidr=10.0.0.0/99"])
def test_unparsable_arguments_are_named(method: str) -> None:
    """A method whose argument cannot be parsed is the user's mistake, and says which."""
    with pytest.raises(InvalidInputError, match="IP_AUTODETECTION_METHOD"):
        detect(method, 4, HOST, source_towards=_source)


def test_recorded_interfaces_follow_the_families() -> None:
    """Node.spec.interfaces has every interface not excluded, with the addresses of the families in use."""
    assert recorded_interfaces(HOST, [4]) == [
        ("eth0", ("10.0.0.5",)),
        ("eth1", ("10.1.0.5",)),
        ("eth2", ("10.2.0.5",)),
    ]
    assert recorded_interfaces(HOST, [4, 6])[0] == ("eth0", ("10.0.0.5", "fd00::5", "fe80::1"))


def test_a_given_address_takes_the_length_of_its_interface() -> None:
    """IP=10.0.0.5 becomes 10.0.0.5/24; an address on no interface stays bare."""
    assert local_prefix("10.0.0.5", HOST) == "10.0.0.5/24"
    assert local_prefix("192.0.2.9", HOST) == "192.0.2.9"


def test_default_pool_avoids_the_host() -> None:
    """192.168.0.0/16 unless the host lives there, then the first free of 172.16…31."""
    assert default_pool(HOST) == "192.168.0.0/16"
    here = (_interface("eth0", 2, "192.168.7.7/24"), _interface("eth1", 3, "172.16.3.4/20"))
    assert default_pool(here) == "172.17.0.0/16"
