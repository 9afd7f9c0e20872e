"""Theme ``netsets``: addresses that are nobody's endpoint, selected by the labels of their sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.objects import Object, global_policy, namespace_profile, network_policy, network_set, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A server, and clients as pods of both nodes and as machines outside."""
    with Lab(nodes=2) as lab:
        here, there = lab.nodes
        lab.external("alpha")
        lab.external("bravo")
        for name, node in (("server", here), ("near", here), ("far", there)):
            lab.pod(name, node, app=name)
        yield lab.settled()


def from_sets(selector: str = "net == 'yes'", **more: str) -> Object:
    """The server's policy: what selected sets contain may come."""
    allow = rule("Allow", source={"selector": selector, **more})
    return global_policy("nets", selector="app == 'server'", types=["Ingress"], ingress=[allow])


def members(lab: Lab, *nets: str) -> Object:
    """The set of the tests, written."""
    item = network_set("nets", *nets, net="yes")
    lab.apply(item)
    return item


OPEN = "tcp46/80 ping46"
SHUT = "!tcp46/80 !ping46"


def test_no_set_and_an_empty_set_let_nobody_in(lab: Lab) -> None:
    """A selector that finds no set, or one without networks, matches nothing at all."""
    server, near, far = lab.pods
    alpha, bravo = lab.externals
    lab.apply(from_sets())
    matrix = {(one, server): SHUT for one in (near, far, alpha, bravo)}
    lab.expect(matrix)
    members(lab)
    lab.expect(matrix)


def test_single_addresses_of_both_families(lab: Lab) -> None:
    """Addresses of pods and of machines outside alike, and each family on its own."""
    server, near, far = lab.pods
    alpha, bravo = lab.externals
    lab.apply(from_sets())
    members(lab, alpha.ip, f"{far.ip6}/128")
    lab.expect(
        {
            (alpha, server): "tcp/80 !tcp6/80",
            (bravo, server): SHUT,
            (far, server): "tcp6/80 !tcp/80",
            (near, server): SHUT,
        }
    )


def test_overlapping_and_repeated_networks(lab: Lab) -> None:
    """The same network twice, in one set or two, and one within another: it is in as long as anybody names it."""
    server, near, far = lab.pods
    alpha, bravo = lab.externals
    lab.apply(from_sets())
    outside = ("172.20.0.0/24", "fd20::/64")
    members(lab, *outside, *outside, f"{alpha.ip}/32", f"{alpha.ip6}/128", "172.20.0.0/25")
    lab.apply(network_set("again", *outside, net="yes"))
    both = {(alpha, server): OPEN, (bravo, server): OPEN, (near, server): SHUT, (far, server): SHUT}
    lab.expect(both)
    members(lab, f"{alpha.ip}/32", f"{alpha.ip6}/128")
    lab.expect(both)
    lab.delete(network_set("again"))
    lab.expect({**both, (bravo, server): SHUT})
    lab.apply(network_set("nets", *outside, net="no"))
    lab.expect({**both, (alpha, server): SHUT, (bravo, server): SHUT})


def test_everything(lab: Lab) -> None:
    """0.0.0.0/0 and ::/0 are everybody of their family, come and go, and an excluded set is out of them."""
    server, near, far = lab.pods
    alpha, bravo = lab.externals
    every = (near, far, alpha, bravo)
    lab.apply(from_sets())
    members(lab, "0.0.0.0/0")
    lab.expect({(one, server): "tcp/80 ping !tcp6/80" for one in every})
    members(lab, "0.0.0.0/0", "::/0", alpha.ip)
    lab.expect({(one, server): OPEN for one in every})
    lab.apply(network_set("excluded", alpha.ip, alpha.ip6, "10.65.2.0/24", excluded="yes"))
    lab.apply(from_sets(notSelector="excluded == 'yes'"))
    lab.expect({(alpha, server): SHUT, (bravo, server): OPEN, (near, server): OPEN, (far, server): "tcp6/80 !tcp/80"})
    members(lab, alpha.ip)
    lab.apply(from_sets())
    lab.expect({(alpha, server): "tcp/80 !tcp6/80", (bravo, server): SHUT, (near, server): SHUT})


def test_namespaced_sets(lab: Lab) -> None:
    """A namespaced policy's selector finds its own namespace's sets; others' by ``namespaceSelector`` only."""
    server, *_ = lab.pods
    alpha, bravo = lab.externals
    lab.apply(namespace_profile("other", team="b"))
    lab.apply(
        network_set("own", alpha.ip, namespace="fv", net="yes"),
        network_set("theirs", bravo.ip, namespace="other", net="yes"),
    )

    def policy(**source: str) -> Object:
        allow = rule("Allow", source={"selector": "net == 'yes'", **source})
        return network_policy("nets", namespace="fv", selector="app == 'server'", types=["Ingress"], ingress=[allow])

    lab.apply(policy())
    lab.expect({(alpha, server): "tcp/80", (bravo, server): "!tcp/80"})
    lab.apply(policy(namespaceSelector="team == 'b'"))
    lab.expect({(alpha, server): "!tcp/80", (bravo, server): "tcp/80"})
    lab.apply(policy(namespaceSelector="global()"))
    lab.expect({(alpha, server): "!tcp/80", (bravo, server): "!tcp/80"})


def test_a_set_and_pods_by_one_selector(lab: Lab) -> None:
    """Labels of sets and of endpoints are one thing to a selector, in egress as well."""
    server, near, far = lab.pods
    alpha, bravo = lab.externals
    members(lab, alpha.ip)
    lab.apply(near.object(net="yes"))
    to = rule("Allow", destination={"selector": "net == 'yes'"})
    lab.apply(global_policy("nets", selector="app == 'server'", types=["Egress"], egress=[to]))
    lab.expect({(server, near): OPEN, (server, far): SHUT, (server, alpha): "tcp/80 !tcp6/80", (server, bravo): SHUT})


def test_members_that_come_and_go_all_the_time(lab: Lab) -> None:
    """After many changes in a row the last one is what holds, and one that stayed was never shut out."""
    server, *_ = lab.pods
    alpha, bravo = lab.externals
    lab.apply(from_sets())
    members(lab, alpha.ip)
    lab.expect({(alpha, server): "tcp/80", (bravo, server): "!tcp/80"})
    crowd = [f"198.51.{a}.{b}" for a in range(4) for b in range(250)]
    with lab.stream(alpha, server, 5000) as stream:
        stream.begin()
        for turn in range(20):
            nets = [bravo.ip] if turn % 2 == 0 else crowd[turn::3]
            lab.apply(network_set("nets", alpha.ip, *nets, net="yes"), wait=False)
        lab.sync()
        stream.end()
    assert stream.lost == 0
    lab.expect({(alpha, server): "tcp/80", (bravo, server): "!tcp/80"})
    members(lab, bravo.ip)
    lab.expect({(alpha, server): "!tcp/80", (bravo, server): "tcp/80"})
