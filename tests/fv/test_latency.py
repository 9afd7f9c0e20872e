"""Theme ``latency``: what a packet costs does not depend on how many addresses a policy speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.support.fv import Lab, Pod
from tests.support.objects import Object, global_policy, network_set, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

MEMBERS = 10_000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two pods on one node."""
    with Lab() as lab:
        for name in ("one", "two"):
            lab.pod(name)
        yield lab.settled()


def allowing(**source: str) -> Object:
    """A policy of all pods that allows what comes from a source."""
    return global_policy("allow", selector="all()", types=["Ingress"], ingress=[rule("Allow", source=source)])


def round_trip(source: Pod, address: str) -> float:
    """The shortest of a hundred echoes, in milliseconds: a busy machine delays some, not all."""
    said = source.ns.run("ping", "-n", "-q", "-c", "100", "-i", "0.002", address)
    found = re.search(r"= ([0-9.]+)/", said)
    assert found, said
    return float(found[1])


@pytest.mark.parametrize("family", [4, 6])
def test_round_trips_stay_as_short_as_without_policy(lab: Lab, family: int) -> None:
    """Allow-all, ``all()`` and a set of 10,000 members: the same handful of rules, the same order of round trip."""
    one, two = lab.pods
    node = lab.nodes[0]
    target = str(two.addresses[family])
    bare = round_trip(one, target)
    base = int(ip_address("fd99::" if family == 6 else "10.99.0.0"))
    crowd = [str(ip_address(base + 2 * n)) for n in range(1, MEMBERS)]
    own = str(one.addresses[family])
    lab.apply(network_set("crowd", own, *crowd, crowd="yes"))
    for policy in (allowing(), allowing(selector="all()"), allowing(selector="crowd == 'yes'")):
        lab.apply(policy)
        rules = [line for line in node.rules(family=family) if "cali-pi-gnp/allow " in line]
        assert len(rules) == 1, rules
        ping = "ping6" if family == 6 else "ping"
        lab.expect({(one, two): ping})
        assert round_trip(one, target) < 10 * bare + 1
    lab.expect({(two, one): f"!{ping}"})
    sets = re.findall(r"Number of entries: ([0-9]+)", node.ns.run("ipset", "list", "-t"))
    assert str(MEMBERS) in sets
