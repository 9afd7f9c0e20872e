"""What others change in the kernel is noticed, reported with object, expected and found, and put right."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from tests.support.felix import (
    BACKENDS,
    Node,
    listed,
    programmed,
    reaches,
    sysctl_of,
    until,
)
from tests.support.probes import Probes

pytestmark = [pytest.mark.kernel]


def _flush_all(node: Node) -> None:
    node.ns.run("iptables-nft", "-F")


def _delete_hook(node: Node) -> None:
    node.ns.run("iptables-nft", "-D", "FORWARD", "1")


def _insert_before_hook(node: Node) -> None:
    node.ns.run("iptables-nft", "-I", "FORWARD", "-j", "ACCEPT")


def _insert_into_ours(node: Node) -> None:
    node.ns.run("iptables-nft", "-I", "cali-FORWARD", "-j", "ACCEPT")


def _delete_everything(node: Node) -> None:
    node.ns.run("nft", "flush", "ruleset")


def _delete_chain(node: Node) -> None:
    chains = [line.split()[1] for line in node.rules().splitlines() if line.startswith("-A cali-pi-gnp/web")][:1]
    users = [line for line in node.rules().splitlines() if any(f" {chain}" in line[4:] for chain in chains)]
    for line in users:
        node.ns.run("iptables-nft", *shlex.split(line.replace("-A ", "-D ", 1)))
    for chain in chains:
        node.ns.run("iptables-nft", "-F", chain)
        node.ns.run("iptables-nft", "-X", chain)


def _delete_rules_and_sets(node: Node) -> None:
    node.ns.run("nft", "flush", "ruleset")
    node.ns.run("ipset", "destroy")


@pytest.mark.parametrize(
    "damage",
    [
        _flush_all,
        _delete_hook,
        _delete_chain,
        _insert_before_hook,
        _insert_into_ours,
        _delete_everything,
        _delete_rules_and_sets,
    ],
)
def test_damaged_rules_are_noticed_and_healed(node: Node, damage: Callable[[Node], None]) -> None:
    """Whoever flushes, deletes or inserts: soon the rules are back, the drift is reported with object, expected and
    found, and connections that are established, or of others, have noticed nothing.
    """
    felix = node.felix()
    server, client = programmed(node, felix)
    wanted = listed(node.rules())
    with Probes(client.ns, client.address, server.ns, server.address, held=True) as held:
        held.more(20)
        damage(node)
        own = [rule for rule in wanted if "cali" in rule]
        assert [rule for rule in listed(node.rules()) if "cali" in rule] != own or damage is _insert_before_hook
        until(lambda: [rule for rule in listed(node.rules()) if "cali" in rule] == own)
        drift = until(lambda: felix.status().drift)
        until(lambda: felix.status().ready)
        until(lambda: reaches(client.ns, server.address, 80))
        held.more(20)
    assert all(item.place and item.name and item.expected != item.found for item in drift)
    assert not reaches(client.ns, server.address, 81)
    forward = [rule for rule in node.rules().splitlines() if rule.startswith("-A FORWARD")]
    assert "cali-FORWARD" in forward[0]
    assert len(held.lost) == 0 or damage in _LOSING


_LOSING = (_delete_rules_and_sets,)
"""Nothing is lost when rules go; when sets go, rules that name them drop until they are back."""


def test_legacy_damage_is_noticed_by_the_post_write_check(node: Node) -> None:
    """The legacy backend tells nobody of changes: they are found when the tables are read again."""
    felix = node.felix(IptablesBackend="legacy", IptablesPostWriteCheckIntervalSecs="1")
    programmed(node, felix)
    wanted = listed(node.rules("legacy"))
    node.ns.run("iptables-legacy", "-F")
    until(lambda: listed(node.rules("legacy")) == wanted)


def test_flushed_and_deleted_sets_are_noticed_by_their_size(node: Node) -> None:
    """Long before the refresh, and without anybody reading all members all the time."""
    felix = node.felix()
    server, client = programmed(node, felix)
    node.ns.run("ipset", "flush", "cali40s:x")
    assert not reaches(client.ns, server.address, 80)
    until(lambda: reaches(client.ns, server.address, 80))
    assert [item.name for item in felix.status().drift] == ["cali40s:x"]


def test_deleted_set_members_come_back_at_the_refresh(node: Node) -> None:
    """A member that was deleted, and one that was smuggled in, are put right when the sets are read again."""
    felix = node.felix(IpsetsRefreshInterval="1")
    server, client = programmed(node, felix)
    node.ns.run("ipset", "del", "cali40s:x", client.address)
    node.ns.run("ipset", "add", "cali40s:x", "192.0.2.1")
    until(lambda: felix.status().drift)
    members = node.ns.run("ipset", "save", "cali40s:x")
    assert client.address in members
    assert "192.0.2.1" not in members
    assert reaches(client.ns, server.address, 80)


@pytest.mark.parametrize(
    ("parameter", "config"),
    [
        ("ipv4/conf/{}/proxy_arp", {}),
        ("ipv4/conf/{}/forwarding", {}),
        ("ipv6/conf/{}/proxy_ndp", {}),
        ("ipv4/conf/{}/route_localnet", {"RouteRefreshInterval": "1"}),
    ],
)
def test_changed_sysctls_are_put_right(node: Node, parameter: str, config: dict[str, str]) -> None:
    """Within seconds, or at the refresh where the kernel does not tell; and reported, with what was found."""
    felix = node.felix(**config)
    server, client = programmed(node, felix)
    del client
    key = "net/" + parameter.format(server.interface)
    node.ns.call(sysctl_of, key, "0")
    until(lambda: node.ns.call(sysctl_of, key) == "1")
    drift = until(lambda: felix.status().drift)
    assert [(item.place, item.name, item.found) for item in drift] == [("sysctl", key, "0")]


def test_forwarding_that_somebody_turned_off_comes_back(node: Node) -> None:
    """A node that stopped being a router (``sysctl -w net.ipv4.ip_forward=0``) is one again without a restart."""
    felix = node.felix(RouteRefreshInterval="1")
    server, client = programmed(node, felix)
    node.ns.call(sysctl_of, "net.ipv4.ip_forward", "0")
    until(lambda: node.ns.call(sysctl_of, "net.ipv4.ip_forward") == "1")
    until(lambda: reaches(client.ns, server.address, 80))


def test_deleted_route_comes_back_at_once(node: Node) -> None:
    """The kernel reports a deleted route, so that no refresh is needed; a foreign route to a pod's interface goes."""
    felix = node.felix()
    server, client = programmed(node, felix)
    node.ns.run("ip", "route", "del", f"{server.address}/32")
    until(lambda: server.address in node.ns.run("ip", "route"))
    assert reaches(client.ns, server.address, 80)
    node.ns.run("ip", "route", "add", "192.0.2.7/32", "dev", client.interface)
    until(lambda: "192.0.2.7" not in node.ns.run("ip", "route"))


def test_interface_flap_brings_routes_and_sysctls_back(node: Node) -> None:
    """The kernel drops the routes of a link that goes down; they return with it, and the status follows."""
    felix = node.felix()
    server, client = programmed(node, felix)
    node.ns.links.set_down(server.interface)
    until(lambda: felix.status().endpoints[server.id].state == "down")
    node.ns.call(sysctl_of, f"net/ipv4/conf/{server.interface}/proxy_arp", "0")
    node.ns.links.set_up(server.interface)
    until(lambda: felix.status().endpoints[server.id].state == "up")
    assert reaches(client.ns, server.address, 80)
    assert node.ns.call(sysctl_of, f"net/ipv4/conf/{server.interface}/proxy_arp") == "1"


@BACKENDS
def test_foreign_rules_sets_and_routes_survive(node: Node, backend: str) -> None:
    """What is not ours stays through programming, healing and removal; our hook stays in front of it."""
    name = f"iptables-{backend}"
    node.ns.run("ipset", "create", "theirs", "hash:ip")
    node.ns.run(name, "-N", "THEIRS")
    node.ns.run(name, "-A", "THEIRS", "-m", "set", "--match-set", "theirs", "src", "-j", "ACCEPT")
    node.ns.run(name, "-A", "FORWARD", "-m", "comment", "--comment", "cali is not ours", "-j", "THEIRS")
    node.ns.run("ip", "route", "add", "192.0.2.0/24", "via", "172.16.0.2")
    felix = node.felix(IptablesBackend=backend)
    server, client = programmed(node, felix)
    felix.send(endpoints={server.id: None, client.id: None})
    felix.settle()
    rules = listed(node.rules(backend))
    assert any("-j THEIRS" in rule for rule in rules)
    assert any(rule.startswith("-A THEIRS") for rule in rules)
    forward = [rule for rule in node.rules(backend).splitlines() if rule.startswith("-A FORWARD")]
    assert "cali-FORWARD" in forward[0]
    assert "THEIRS" in forward[1]
    assert "theirs" in node.ns.run("ipset", "list", "-n")
    assert "192.0.2.0/24" in node.ns.run("ip", "route")


def test_a_node_without_a_default_route_says_so(node: Node) -> None:
    """Nobody answers for the pods' gateway then: a warning, which goes away with the cause."""
    felix = node.felix()
    node.ns.run("ip", "route", "del", "default")
    programmed(node, felix)
    assert "169.254.1.1" in " ".join(felix.status().warnings)
    node.ns.run("ip", "route", "add", "default", "via", "172.16.0.2")
    until(lambda: not felix.status().warnings)
    assert felix.status().ready
