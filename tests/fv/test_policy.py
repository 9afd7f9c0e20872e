"""Theme ``policy``: what a rule that logs does, and that it decides nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.fv import Lab, Node
from tests.support.objects import Object, global_policy, make, network_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A server and two clients on one node."""
    with Lab() as lab:
        for name in ("server", "friend", "other"):
            lab.pod(name, app=name)
        yield lab.settled()


def logging(*more: dict) -> Object:
    """The server's policy: log what comes to TCP port 80 from a friend, then ``more``."""
    log = rule("Log", protocol="TCP", source={"selector": "app == 'friend'"}, destination={"ports": [80]})
    return network_policy("log", namespace="fv", selector="app == 'server'", types=["Ingress"], ingress=[log, *more])


def log_rules(node: Node, chain: str = "cali-pi-np/fv/log", family: int = 4) -> list[str]:
    """What the kernel's LOG rules of a chain say, from the jump on."""
    found = [line for line in node.rules(family=family) if chain in line and "-j LOG" in line]
    return [re.sub(r".*-j LOG ", "", line) for line in found]


def logged(lab: Lab) -> int:
    """Packets that the first LOG rule has seen."""
    listing = lab.iptables(lab.nodes[0], "-t", "filter", "-nvxL", "cali-pi-np/fv/log")
    return next(int(line.split()[0]) for line in listing.splitlines() if " LOG " in line)


def test_logged_packets_go_on_to_the_next_rule(lab: Lab) -> None:
    """The rule sees the packets that it matches and no others; what follows decides, else the end of the tier."""
    server, friend, other = lab.pods
    lab.apply(logging(rule("Allow", protocol="TCP", destination={"ports": [80]})))
    lab.expect({(other, server): "tcp46/80 !tcp46/81", (friend, server): "!tcp46/81"})
    assert logged(lab) == 0
    lab.expect({(friend, server): "tcp46/80"})
    assert logged(lab) == 2  # one packet of each round: what follows belongs to a connection
    lab.apply(logging())
    lab.expect({(friend, server): "!tcp46/80", (other, server): "!tcp46/80"})
    assert logged(lab) >= 2


def test_log_prefix(lab: Lab) -> None:
    """Calico's prefix and level by default, afterwards the configured prefix, in both families, without a restart."""
    node = lab.nodes[0]
    lab.apply(logging())
    for family in (4, 6):
        assert log_rules(node, family=family) == ['--log-prefix "calico-packet: " --log-level 5']
    lab.apply(make("FelixConfiguration", "default", {"logPrefix": "seen"}))
    for family in (4, 6):
        assert log_rules(node, family=family) == ['--log-prefix "seen: " --log-level 5']


def test_log_prefix_names_the_policy(lab: Lab) -> None:
    """``%t``, ``%k``, ``%p``, ``%n`` stand for tier, kind, full name and name; the kernel's 29 characters are kept."""
    node = lab.nodes[0]
    every = global_policy("all", selector="all()", types=["Egress"], egress=[rule("Log"), rule("Allow")])
    lab.apply(logging(), every)
    for prefix, namespaced, cluster in (
        ("%t %k %n", "default np log: ", "default gnp all: "),
        ("%p", "fv/log: ", "all: "),
        ("a-prefix-that-is-far-too-long-for-%n", "a-prefix-that-is-far-too-lo: ", "a-prefix-that-is-far-too-lo: "),
    ):
        lab.apply(make("FelixConfiguration", "default", {"logPrefix": prefix}))
        assert log_rules(node) == [f'--log-prefix "{namespaced}" --log-level 5']
        assert log_rules(node, "cali-po-gnp/all") == [f'--log-prefix "{cluster}" --log-level 5']


def test_log_rate_limit(lab: Lab) -> None:
    """A limited rule logs no more than its burst, and lets the rest go on as well."""
    server, friend, _ = lab.pods
    lab.apply(make("FelixConfiguration", "default", {"logActionRateLimit": "1/hour", "logActionRateLimitBurst": 3}))
    lab.apply(logging(rule("Allow", protocol="TCP", destination={"ports": [80]})))
    for _ in range(5):
        lab.expect({(friend, server): "tcp/80"})
    assert logged(lab) == 3
