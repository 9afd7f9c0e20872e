"""Policies written as the graph's messages, judged by real packets."""

from __future__ import annotations

import pytest

from calipy.felix.messages import ICMP, IPSet, IPSetDelta, Match, Pool, PortRange, Rule
from tests.support.felix import ALLOW_ALL, Node, pings, policy, reaches, tier, until

pytestmark = [pytest.mark.kernel]

BACKENDS = pytest.mark.parametrize("backend", ["nft", "legacy"])


def port(number: int) -> Match:
    return Match(ports=(PortRange(number, number),))


@BACKENDS
def test_policy_allows_what_it_says_and_nothing_else(node: Node, backend: str) -> None:
    """A TCP port from a set of addresses passes, in both families; another port, another source and ICMP do not."""
    server, friend, stranger = node.pod(), node.pod(), node.pod()
    felix = node.felix(IptablesBackend=backend)
    web = policy("web", [Rule("allow", protocol="tcp", src=Match(ip_sets=("s:friends",)), dst=port(80))])
    felix.send(
        ip_sets={"s:friends": IPSet("s:friends", "net", frozenset({friend.address, friend.address6}))},
        profiles={"open": ALLOW_ALL},
        policies={web.id: web},
        endpoints={
            server.id: server.endpoint((tier(web),)),
            friend.id: friend.endpoint(),
            stranger.id: stranger.endpoint(),
        },
    )
    felix.wait(server, friend, stranger)
    for address in (server.address, server.address6):
        assert reaches(friend.ns, address, 80)
        assert not reaches(friend.ns, address, 81)
        assert not reaches(stranger.ns, address, 80)
        assert not pings(friend.ns, address)
    assert pings(server.ns, stranger.address)
    assert pings(server.ns, stranger.address6)


def test_set_membership_follows_deltas(node: Node) -> None:
    """A member that is added to a set passes, a removed one no longer does, and no rule is touched for it."""
    server, client = node.pod(), node.pod()
    felix = node.felix()
    web = policy("web", [Rule("allow", src=Match(ip_sets=("s:x",)))])
    felix.send(
        ip_sets={"s:x": IPSet("s:x", "net", frozenset())},
        profiles={"open": ALLOW_ALL},
        policies={web.id: web},
        endpoints={server.id: server.endpoint((tier(web),)), client.id: client.endpoint()},
    )
    felix.wait(server, client)
    assert not reaches(client.ns, server.address, 80)
    before = node.rules()
    felix.send(ip_sets={"s:x": IPSetDelta("s:x", frozenset({"10.65.0.0/24"}), frozenset())})
    felix.settle()
    assert reaches(client.ns, server.address, 80)
    felix.send(ip_sets={"s:x": IPSetDelta("s:x", frozenset({"0.0.0.0/0"}), frozenset({"10.65.0.0/24"}))})
    felix.settle()
    assert reaches(client.ns, server.address, 80)
    felix.send(ip_sets={"s:x": IPSetDelta("s:x", frozenset(), frozenset({"0.0.0.0/0"}))})
    felix.settle()
    assert not reaches(client.ns, server.address, 80)
    assert _without_counters(node.rules()) == _without_counters(before)


def test_egress_policy_and_pass_to_the_next_tier(node: Node) -> None:
    """An egress deny stops a pod at its own node; Pass hands over to the next tier; a Pass tier to the profile."""
    client, server = node.pod(), node.pod()
    felix = node.felix()
    first = policy("first", (), [Rule("deny", protocol="tcp", dst=port(81)), Rule("pass", protocol="tcp")])
    second = policy("second", (), [Rule("allow", protocol="tcp", dst=port(80))])
    tiers = (tier(first, name="a", action="Pass", ingress=False, egress=True), tier(second, ingress=False, egress=True))
    felix.send(
        profiles={"open": ALLOW_ALL},
        policies={first.id: first, second.id: second},
        endpoints={client.id: client.endpoint(tiers), server.id: server.endpoint()},
    )
    felix.wait(client, server)
    assert reaches(client.ns, server.address, 80)
    assert not reaches(client.ns, server.address, 81)
    assert not reaches(client.ns, server.address, 82)
    assert not reaches(client.ns, "172.16.0.2", 81)
    assert reaches(client.ns, "172.16.0.2", 80)
    felix.send(policies={second.id: None}, endpoints={client.id: client.endpoint(tiers[:1])})
    felix.settle()
    assert reaches(client.ns, server.address, 82)
    assert not reaches(client.ns, server.address, 81)


def test_three_match_blocks_all_have_to_match(node: Node) -> None:
    """More than fifteen ports, two sources and two destinations: a packet that fails the last block does not pass.

    Felix's own sequence lets it through (the reset of the block's bit is missing there).
    """
    server, client = node.pod(), node.pod()
    felix = node.felix()
    ports = tuple(PortRange(n, n) for n in range(100, 140, 2))
    nets = Match(nets=(f"{client.address}/32", "192.0.2.0/24"))

    def allow(*destinations: str) -> Rule:
        return Rule("allow", protocol="tcp", src=nets, dst=Match(nets=destinations, ports=ports))

    for destinations, passes in (
        (("198.51.100.0/24", "203.0.113.0/24"), False),
        (("198.51.100.0/24", f"{server.address}/32"), True),
    ):
        spilling = policy("spilling", [allow(*destinations)])
        felix.send(
            profiles={"open": ALLOW_ALL},
            policies={spilling.id: spilling},
            endpoints={server.id: server.endpoint((tier(spilling),)), client.id: client.endpoint()},
        )
        felix.settle()
        felix.wait(server, client)
        assert reaches(client.ns, server.address, 136) is passes
        assert not reaches(client.ns, server.address, 137)


def test_negations_and_named_ports(node: Node) -> None:
    """Excluded networks and ports do not pass; a named port is as good as a numeric one beside it."""
    server, client, other = node.pod(), node.pod(), node.pod()
    felix = node.felix()
    source = Match(nets=("10.65.0.0/16",), not_nets=(f"{other.address}/32", "10.65.99.0/24"))
    rule = Rule(
        "allow",
        protocol="tcp",
        src=source,
        dst=Match(ports=(PortRange(80, 82),), named_ports=("n:web",), not_ports=(PortRange(81, 81),)),
    )
    mixed = policy("mixed", [rule])
    felix.send(
        ip_sets={"n:web": IPSet("n:web", "ip,port", frozenset({f"{server.address},tcp:8080"}))},
        profiles={"open": ALLOW_ALL},
        policies={mixed.id: mixed},
        endpoints={
            server.id: server.endpoint((tier(mixed),)),
            client.id: client.endpoint(),
            other.id: other.endpoint(),
        },
    )
    felix.wait(server, client, other)
    verdicts = {number: reaches(client.ns, server.address, number) for number in (80, 81, 82, 83, 8080)}
    assert verdicts == {80: True, 81: False, 82: True, 83: False, 8080: True}
    assert not reaches(other.ns, server.address, 80)
    assert not reaches(other.ns, server.address, 8080)


def test_icmp_type_and_established_replies(node: Node) -> None:
    """Echo requests pass where allowed by type, replies always do, and IPv6 works with ICMPv6 denied by policy."""
    server, client = node.pod(), node.pod()
    felix = node.felix()
    echo = policy(
        "echo", [Rule("allow", ip_version=4, protocol="icmp", icmp=ICMP(8, 0)), Rule("allow", protocol="tcp")]
    )
    silent = policy("silent", (), [Rule("deny", protocol="icmpv6"), Rule("allow")])
    felix.send(
        profiles={"open": ALLOW_ALL},
        policies={echo.id: echo, silent.id: silent},
        endpoints={
            server.id: server.endpoint((tier(echo),)),
            client.id: client.endpoint((tier(silent, ingress=False, egress=True),)),
        },
    )
    felix.wait(server, client)
    assert pings(client.ns, server.address)
    assert not pings(client.ns, server.address6)
    assert reaches(client.ns, server.address6, 80)
    client.ns.run("ip", "-6", "neigh", "flush", "dev", "eth0")
    assert reaches(client.ns, server.address6, 80)


def test_pod_to_host_follows_the_configured_action(node: Node) -> None:
    """Pods do not reach the node by default; the node always reaches its pods, whatever policy says."""
    pod = node.pod()
    felix = node.felix()
    closed = policy("closed")
    felix.send(
        profiles={"open": ALLOW_ALL},
        policies={closed.id: closed},
        endpoints={pod.id: pod.endpoint((tier(closed),))},
    )
    felix.wait(pod)
    assert not reaches(pod.ns, "172.16.0.1", 80)
    assert reaches(node.ns, pod.address, 80)
    felix.send(config={"DefaultEndpointToHostAction": "ACCEPT"})
    assert until(lambda: reaches(pod.ns, "172.16.0.1", 80))
    assert not reaches(node.world, pod.address, 80)


def test_nat_outgoing_hides_pods_only_outside_the_pools(node: Node) -> None:
    """With natOutgoing the world sees the node's address, another pod the real one."""
    one, two = node.pod(), node.pod()
    felix = node.felix()
    felix.send(
        profiles={"open": ALLOW_ALL},
        pools={"10.65.0.0/16": Pool("10.65.0.0/16", nat_outgoing=True)},
        endpoints={one.id: one.endpoint(), two.id: two.endpoint()},
    )
    felix.wait(one, two)
    node.world.run("ip", "route", "del", "10.65.0.0/16")
    assert pings(one.ns, "172.16.0.2")
    assert pings(one.ns, two.address)
    felix.send(pools={"10.65.0.0/16": Pool("10.65.0.0/16", nat_outgoing=False)})
    felix.settle()
    assert not pings(one.ns, "172.16.0.2")


def _without_counters(rules: str) -> list[str]:
    return [line for line in rules.splitlines() if not line.startswith(("#", ":"))]
