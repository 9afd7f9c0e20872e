"""Packets for a service that nobody translated do not go in circles between the node and its router."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.matrix import Site
from tests.support.objects import Object, make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

RANGES = {
    "serviceClusterIPs": ("10.96.0.0/16", "fd96::/112"),
    "serviceExternalIPs": ("10.97.0.0/16", "fd97::/112"),
    "serviceLoadBalancerIPs": ("10.98.0.0/16", "fd98::/112"),
}
ADDRESSES = (("10.96.0.7", "fd96::7"), ("10.97.0.7", "fd97::7"), ("10.98.0.7", "fd98::7"))
PROBES = "udp46/80"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A node between a machine that asks and one that its default route leads to: there, service addresses answer."""
    with Lab() as lab:
        [node] = lab.nodes
        asking, beyond = lab.external("asking"), lab.external("beyond")
        lab.pod("web")
        for four, six in ADDRESSES:
            beyond.ns.address("lo", f"{four}/32")
            beyond.ns.address("lo", f"{six}/128")
            for machine, target in ((asking, node), (node, beyond)):
                machine.ns.run("ip", "route", "add", four, "via", target.ip)
                machine.ns.run("ip", "-6", "route", "add", six, "via", target.ip6)
        yield lab.settled()


def bgp(**ranges: tuple[str, ...]) -> Object:
    spec = {name: [{"cidr": cidr} for cidr in cidrs] for name, cidrs in ranges.items()}
    return make("BGPConfiguration", "default", spec)


def felix(action: str) -> Object:
    return make("FelixConfiguration", "default", {"serviceLoopPrevention": action})


def places(lab: Lab) -> list[Site]:
    beyond = lab.externals[1]
    return [beyond.at(*addresses) for addresses in ADDRESSES]


def test_ranges_of_services_are_not_forwarded(lab: Lab) -> None:
    """By default packets for them are dropped, in both families; when the ranges go they pass again."""
    asking = lab.externals[0]
    everywhere = {(asking, place): PROBES for place in places(lab)}
    lab.expect(everywhere)
    lab.apply(bgp(**RANGES))
    lab.expect({(asking, place): "!udp46/80" for place in places(lab)})
    lab.delete(bgp())
    lab.expect(everywhere)


def test_each_range_stands_alone(lab: Lab) -> None:
    """A change of the ranges is followed."""
    asking = lab.externals[0]
    cluster, external, balancer = places(lab)
    lab.apply(bgp(serviceExternalIPs=RANGES["serviceExternalIPs"]))
    lab.expect({(asking, cluster): PROBES, (asking, external): "!udp46/80", (asking, balancer): PROBES})


def test_they_can_be_refused_instead(lab: Lab) -> None:
    """With Reject whoever asks is told."""
    asking = lab.externals[0]
    lab.apply(bgp(**RANGES), felix("Reject"))
    lab.expect({(asking, place): "~udp46/80" for place in places(lab)})


def test_or_left_alone(lab: Lab) -> None:
    """With Disabled nothing is done about them."""
    asking = lab.externals[0]
    lab.apply(bgp(**RANGES), felix("Disabled"))
    lab.expect({(asking, place): PROBES for place in places(lab)})


def test_a_translated_service_is_reached(lab: Lab) -> None:
    """What kube-proxy, or whoever does its work, translates is not concerned."""
    [node], [web], asking = lab.nodes, lab.pods, lab.externals[0]
    lab.apply(bgp(**RANGES))
    lab.listen(web, "tcp/8080")
    lab.translate(node, "10.96.0.7", 80, web, 8080)
    lab.expect({(asking, "10.96.0.7"): "tcp/80"})
