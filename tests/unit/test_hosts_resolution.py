"""Which host endpoint is on which interface."""

from __future__ import annotations

from calipy.felix.hosts import problem, resolve, warnings
from calipy.felix.messages import HostEndpoint, PolicyID, TierInfo
from calipy.felix.render.names import ANY_INTERFACE

PREFIXES = ("cali",)
ADDRESSES = {
    "lo": frozenset({"127.0.0.1", "::1"}),
    "eth0": frozenset({"192.0.2.1", "2001:db8::1"}),
    "eth1": frozenset({"198.51.100.1"}),
    "cali1234": frozenset({"192.0.2.99"}),
    "odd+": frozenset({"203.0.113.1"}),
}


def _names(*endpoints: HostEndpoint) -> dict[str, str]:
    return {interface: found.name for interface, found in resolve(endpoints, ADDRESSES, PREFIXES).items()}


def _why(endpoint: HostEndpoint, *others: HostEndpoint, up: frozenset[str] = frozenset({"eth0", "eth1"})) -> str:
    return problem(endpoint, resolve((endpoint, *others), ADDRESSES, PREFIXES), up, PREFIXES)


def test_a_named_interface_is_the_only_one() -> None:
    """Expected addresses do not count beside a name; an interface that is not there yet is governed all the same."""
    named = HostEndpoint("h", "eth9", ("192.0.2.1",))
    assert _names(named) == {"eth9": "h"}
    assert _why(named) == "interface eth9 is missing or down"
    assert _names(HostEndpoint("h", "eth0")) == {"eth0": "h"}
    assert _why(HostEndpoint("h", "eth0")) == ""


def test_expected_addresses_of_either_family() -> None:
    """Every interface with one of them; none, if no interface has any."""
    assert _names(HostEndpoint("h", "", ("2001:db8::1", "198.51.100.1"))) == {"eth0": "h", "eth1": "h"}
    lost = HostEndpoint("h", "", ("203.0.113.77",))
    assert _names(lost) == {}
    assert _why(lost) == "no interface has 203.0.113.77"


def test_the_first_by_name_wins() -> None:
    """Whether by name or by address; the other is reported."""
    by_address, by_name = HostEndpoint("a", "", ("192.0.2.1",)), HostEndpoint("b", "eth0")
    assert _names(by_name, by_address) == {"eth0": "a"}
    assert _why(by_name, by_address) == "interface eth0 belongs to host endpoint a"
    assert _names(HostEndpoint("b", "", ("192.0.2.1",)), HostEndpoint("a", "eth0")) == {"eth0": "a"}


def test_all_interfaces_are_those_that_nothing_else_governs() -> None:
    """``*`` stands beside particular ones, however they are called; of several the first by name."""
    everything, one = HostEndpoint("a", "*"), HostEndpoint("b", "eth0")
    assert _names(everything, one) == {ANY_INTERFACE: "a", "eth0": "b"}
    assert _why(everything, one) == _why(one, everything) == ""
    assert _names(HostEndpoint("c", "*"), everything) == {ANY_INTERFACE: "a"}
    assert _why(HostEndpoint("c", "*"), everything) == "interface * belongs to host endpoint a"


def test_interfaces_of_pods_are_not_the_hosts() -> None:
    """Neither by name nor by address; nor is what iptables would read as a pattern."""
    assert _names(HostEndpoint("h", "cali1234")) == {}
    assert _why(HostEndpoint("h", "cali1234")) == "interface cali1234 is a pod's"
    assert _names(HostEndpoint("h", "", ("192.0.2.99", "203.0.113.1"))) == {}
    assert _names(HostEndpoint("h", "eth+")) == {}
    assert _why(HostEndpoint("h", "eth+")) == "'eth+' is not the name of an interface"


def test_untracked_policy_for_all_interfaces_is_warned_of() -> None:
    """It has no effect there; on a named interface it has, and nothing is said."""
    tiers = (TierInfo("default", "Deny", (PolicyID("GlobalNetworkPolicy", "", "fast"),), ()),)
    [warning] = warnings(resolve([HostEndpoint("h", "*", untracked=tiers)], ADDRESSES, PREFIXES))
    assert warning.startswith("untracked policy (fast) has no effect on host endpoint h")
    assert warnings(resolve([HostEndpoint("h", "eth0", untracked=tiers)], ADDRESSES, PREFIXES)) == []
