"""Policy on the node's own interfaces, judged by real packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from calipy.felix.messages import ActivePolicy, HostEndpoint, Match, PortRange, Rule, TierInfo
from tests.support.felix import ALLOW_ALL, FelixProcess, Node, pings, policy, reaches, tier, until
from tests.support.netns import Namespace, connect

pytestmark = [pytest.mark.kernel]

BACKENDS = pytest.mark.parametrize("backend", ["nft", "legacy"])
UPLINK = "eth0"
HOST, HOST6, WORLD, WORLD6 = "172.16.0.1", "fd16::1", "172.16.0.2", "fd16::2"


@pytest.fixture
def second(node: Node, make_netns: Callable[..., Namespace]) -> Callable[[str], Namespace]:
    """A function that connects one more neighbour to the node, by an interface of this name."""

    def make(interface: str) -> Namespace:
        made = make_netns("second")
        connect(
            node.ns,
            made,
            ("172.17.0.1/24", "172.17.0.2/24"),
            ("fd17::1/64", "fd17::2/64"),
            names=(interface, "eth0"),
        )
        return made

    return make


def tcp(action: Any, port: int) -> Rule:
    return Rule(action, protocol="tcp", dst=Match(ports=(PortRange(port, port),)))


def both(item: ActivePolicy) -> TierInfo:
    return tier(item, egress=True)


def send(felix: FelixProcess, *endpoints: HostEndpoint, policies: tuple[ActivePolicy, ...] = (), **more: Any) -> None:
    """Send host endpoints and wait until they are in force."""
    felix.send(
        profiles={"open": ALLOW_ALL},
        policies={item.id: item for item in policies},
        host_endpoints={endpoint.name: endpoint for endpoint in endpoints},
        **more,
    )
    felix.settle()


def state(felix: FelixProcess, name: str = "h") -> tuple[str, str]:
    found = felix.status().host_endpoints[name]
    return found.state, found.cause


@BACKENDS
def test_normal_policy_failsafes_and_profiles(node: Node, backend: str) -> None:
    """Policy decides both ways on what begins or ends on the node; failsafe ports stay open; a profile opens the rest.

    Pods, the node's way to them and what belongs to connections are not concerned.
    """
    pod = node.pod()
    felix = node.felix(IptablesBackend=backend)
    felix.send(profiles={"open": ALLOW_ALL}, endpoints={pod.id: pod.endpoint()})
    felix.wait(pod)
    assert reaches(node.world, HOST, 81)
    guard = policy("guard", [tcp("allow", 80)], [tcp("allow", 443)])
    send(felix, HostEndpoint("h", UPLINK, tiers=(both(guard),)), policies=(guard,))
    assert state(felix) == ("up", "")
    for host, world in ((HOST, WORLD), (HOST6, WORLD6)):
        assert reaches(node.world, host, 80)
        assert not reaches(node.world, host, 81)
        assert reaches(node.world, host, 22)
        assert reaches(node.ns, world, 443)
        assert not reaches(node.ns, world, 444)
        assert reaches(node.ns, world, 2379)
        assert not reaches(node.ns, world, 22)
        assert not pings(node.world, host)
    assert reaches(node.world, pod.address, 81)
    assert reaches(pod.ns, WORLD6, 444)
    assert reaches(node.ns, pod.address, 81)
    assert reaches(node.ns, "127.0.0.1", 81)
    send(felix, HostEndpoint("h", UPLINK, profiles=("open",)))
    assert reaches(node.world, HOST, 81)
    assert pings(node.ns, WORLD6)
    send(felix, HostEndpoint("h", UPLINK))
    assert not reaches(node.world, HOST, 80)
    felix.send(host_endpoints={"h": None})
    felix.settle()
    assert reaches(node.world, HOST, 81)


@BACKENDS
def test_reject_where_the_kernel_takes_it(node: Node, backend: str) -> None:
    """With REJECT as the deny action every table is accepted, and each place denies."""
    felix = node.felix(IptablesBackend=backend, IptablesFilterDenyAction="REJECT")
    shut = policy("shut", [Rule("deny")], [Rule("deny")])
    raw = policy("raw", [tcp("deny", 81)], untracked=True)
    early = policy("early", [tcp("deny", 82)], pre_dnat=True)
    lists = {"tiers": (both(shut),), "untracked": (tier(raw),), "pre_dnat": (tier(early),)}
    send(felix, HostEndpoint("h", UPLINK, profiles=("open",), **lists), policies=(shut, raw, early))
    assert state(felix) == ("up", "")
    assert "REJECT" in node.rules(backend)
    for host in (HOST, HOST6):
        for port in (81, 82):
            assert not reaches(node.world, host, port)
        assert reaches(node.world, host, 22)


def test_neighbour_discovery_survives_a_deny(node: Node) -> None:
    """With everything denied in every place, IPv6 failsafe ports work after neighbour entries are gone."""
    felix = node.felix()
    shut = policy("shut", [Rule("deny")], [Rule("deny")])
    raw = policy("raw", [Rule("deny")], [Rule("deny")], untracked=True)
    early = policy("early", [Rule("deny")], pre_dnat=True)
    endpoint = HostEndpoint("h", UPLINK, tiers=(both(shut),), untracked=(both(raw),), pre_dnat=(tier(early),))
    send(felix, endpoint, policies=(shut, raw, early))
    for namespace in (node.ns, node.world):
        namespace.run("ip", "-6", "neigh", "flush", "all")
    assert not reaches(node.world, HOST6, 80)
    assert not pings(node.world, HOST6)
    assert reaches(node.world, HOST6, 22)
    node.ns.run("ip", "-6", "neigh", "flush", "all")
    assert reaches(node.ns, WORLD6, 179)


@BACKENDS
def test_forwarded_traffic_is_judged_by_its_own_policy(node: Node, backend: str) -> None:
    """Policy that applies on forward stops pods' traffic by the uplink, too, without failsafes; others do not."""
    pod, neighbour = node.pod(), node.pod()
    felix = node.felix(IptablesBackend=backend)
    felix.send(profiles={"open": ALLOW_ALL}, endpoints={item.id: item.endpoint() for item in (pod, neighbour)})
    felix.wait(pod, neighbour)
    gate = policy("gate", [tcp("allow", 80)])
    send(felix, HostEndpoint("h", UPLINK, tiers=(tier(gate),)), policies=(gate,))
    assert reaches(node.world, pod.address, 81)
    endpoint = HostEndpoint("h", UPLINK, tiers=(tier(gate),), forward=(tier(gate),), profiles=("open",))
    send(felix, endpoint, policies=(gate,))
    for address in (pod.address, pod.address6):
        assert reaches(node.world, address, 80)
        assert not reaches(node.world, address, 81)
        assert not reaches(node.world, address, 22)
        assert reaches(neighbour.ns, address, 81)
    assert reaches(pod.ns, WORLD, 81)
    assert not reaches(node.world, HOST, 81)


@BACKENDS
def test_pre_dnat_policy_sees_the_original_destination(node: Node, backend: str) -> None:
    """A port that DNAT redirects to a pod can be closed by the port that the client asked for; the pod stays open."""
    pod = node.pod()
    felix = node.felix(IptablesBackend=backend)
    felix.send(profiles={"open": ALLOW_ALL}, endpoints={pod.id: pod.endpoint()})
    felix.wait(pod)
    node.ns.run(
        *(f"iptables-{backend}", "-t", "nat", "-A", "PREROUTING", "-d", HOST, "-p", "tcp", "--dport", "8080:8089"),
        *("-j", "DNAT", "--to-destination", f"{pod.address}:80"),
    )
    early = policy("early", [tcp("allow", 8081), tcp("deny", 8080)], pre_dnat=True)
    endpoint = HostEndpoint("h", UPLINK, pre_dnat=(tier(early),), profiles=("open",))
    send(felix, endpoint, policies=(early,))
    assert not reaches(node.world, HOST, 8080)
    assert reaches(node.world, HOST, 8081)
    assert reaches(node.world, HOST, 8082)
    assert reaches(node.world, pod.address, 80)
    shut = policy("shut")
    send(felix, HostEndpoint("h", UPLINK, pre_dnat=(tier(early),), tiers=(both(shut),)), policies=(shut,))
    assert reaches(node.world, HOST, 8081)


def test_what_the_node_sends_is_judged_after_dnat(node: Node) -> None:
    """A service address that DNAT turns into one in the world: egress policy sees the real destination and port."""
    felix = node.felix()
    node.ns.run(
        *("iptables-nft", "-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.7", "-p", "tcp", "--dport", "80:81"),
        *("-j", "DNAT", "--to-destination", f"{WORLD}:8000"),
    )
    assert reaches(node.ns, "192.0.2.7", 80)
    closed = policy("closed", (), [tcp("allow", 80)])
    send(felix, HostEndpoint("h", UPLINK, tiers=(both(closed),)), policies=(closed,))
    assert not reaches(node.ns, "192.0.2.7", 80)
    open_ = policy("closed", (), [tcp("allow", 8000)])
    felix.send(policies={open_.id: open_})
    felix.settle()
    assert reaches(node.ns, "192.0.2.7", 80)


@BACKENDS
def test_all_interfaces(node: Node, second: Callable[[str], Namespace], backend: str) -> None:
    """``*`` governs each interface that has no endpoint of its own, also one that comes later; not the way to pods."""
    pod = node.pod()
    felix = node.felix(IptablesBackend=backend)
    felix.send(profiles={"open": ALLOW_ALL}, endpoints={pod.id: pod.endpoint()})
    felix.wait(pod)
    guard = policy("guard", [tcp("allow", 80)], [Rule("allow")])
    early = policy("early", [tcp("deny", 90)], pre_dnat=True)
    everywhere = HostEndpoint("all", "*", tiers=(both(guard),), pre_dnat=(tier(early),))
    send(felix, everywhere, HostEndpoint("h", UPLINK, profiles=("open",)), policies=(guard, early))
    assert state(felix, "all") == state(felix) == ("up", "")
    neighbour = second("eth1")
    assert reaches(node.world, HOST, 81)
    for address in ("172.17.0.1", "fd17::1"):
        until(lambda address=address: reaches(neighbour, address, 80))  # a new link takes its time
        assert not reaches(neighbour, address, 81)
        assert reaches(neighbour, address, 22)
    assert reaches(node.ns, pod.address, 81)
    neighbour.run("ip", "route", "add", "10.65.0.0/16", "via", "172.17.0.1")
    assert reaches(neighbour, pod.address, 81)
    assert not reaches(neighbour, pod.address, 90)
    assert not reaches(pod.ns, "172.17.0.2", 90)


def test_expected_addresses_are_followed(node: Node, second: Callable[[str], Namespace]) -> None:
    """Policy goes where the address goes, whoever moves it; without it nowhere, and the status says so."""
    neighbour = second("eth1")
    felix = node.felix()
    send(felix, HostEndpoint("h", "", ("172.17.0.99", "fd17::99")))
    assert state(felix) == ("down", "no interface has 172.17.0.99 or fd17::99")
    assert reaches(node.world, HOST, 80)
    node.ns.run("ip", "address", "add", "172.17.0.99/24", "dev", "eth1")
    until(lambda: not reaches(neighbour, "172.17.0.1", 80, timeout=0.2))
    assert reaches(node.world, HOST, 80)
    assert state(felix) == ("up", "")
    node.ns.run("ip", "address", "del", "172.17.0.99/24", "dev", "eth1")
    until(lambda: reaches(neighbour, "172.17.0.1", 80, timeout=0.2))
    node.ns.run("ip", "address", "add", "fd17::99/64", "dev", UPLINK, "nodad")
    until(lambda: not reaches(node.world, HOST, 80, timeout=0.2))
    assert reaches(neighbour, "172.17.0.1", 80)


def test_rules_wait_for_a_named_interface(node: Node, second: Callable[[str], Namespace]) -> None:
    """They are there before the interface, so no packet passes when it appears; the status tells of both."""
    felix = node.felix()
    send(felix, HostEndpoint("h", "late0"))
    assert state(felix) == ("down", "interface late0 is missing or down")
    assert "cali-fh-late0" in node.rules()
    neighbour = second("late0")
    assert not reaches(neighbour, "172.17.0.1", 80)
    until(lambda: state(felix) == ("up", ""))
    assert until(lambda: reaches(neighbour, "172.17.0.1", 22))
    assert not reaches(neighbour, "172.17.0.1", 80)
    node.ns.run("ip", "link", "set", "late0", "down")
    until(lambda: state(felix) == ("down", "interface late0 is missing or down"))


def test_restart_writes_nothing_and_damage_is_repaired(node: Node) -> None:
    """A killed agent's rules stand; the next one finds them right; a flushed chain comes back within seconds."""
    felix = node.felix()
    guard = policy("guard", [tcp("allow", 80)], [Rule("allow")])
    endpoint = HostEndpoint("h", UPLINK, tiers=(both(guard),), forward=(both(guard),))
    send(felix, endpoint, policies=(guard,))
    tables = ("raw", "mangle", "filter")
    before = {table: node.rules(table=table) for table in tables}
    felix.kill()
    assert not reaches(node.world, HOST, 81)
    felix = node.felix()
    send(felix, endpoint, policies=(guard,))
    assert felix.status().drift == ()
    for table in tables:
        assert _bare(node.rules(table=table)) == _bare(before[table])
    node.ns.run("iptables-nft", "-F", f"cali-fh-{UPLINK}")
    until(lambda: not reaches(node.world, HOST, 81, timeout=0.2))
    assert f"cali-fh-{UPLINK}" in {difference.name for difference in until(lambda: felix.status().drift)}


def _bare(rules: str) -> list[str]:
    return [line for line in rules.splitlines() if not line.startswith(("#", ":"))]
