"""The means of this ring themselves: what a matrix says is what packets do, and a wrong one is noticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.fv import Lab, Pod, Site
from tests.support.matrix import both_ways
from tests.support.objects import global_policy

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

EVERYTHING = "tcp46/80 udp46/80 sctp46/80 ping46 icmp/13"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes, a pod on each, and one machine outside."""
    with Lab(nodes=2) as lab:
        lab.external()
        for node in lab.nodes:
            lab.pod(f"pod-{node}", node)
        yield lab.settled()


@pytest.fixture
def sites(lab: Lab) -> tuple[Pod, Pod, Site]:
    """The pods and the machine outside."""
    one, two = lab.pods
    return one, two, lab.externals[0]


def test_everything_reaches_everything_without_policy(lab: Lab, sites: tuple[Pod, Pod, Site]) -> None:
    """Every kind of probe, both families: pods on two nodes, the nodes themselves, a machine outside."""
    one, two, world = sites
    here, there = lab.nodes
    lab.expect(
        {
            **both_ways(one, two, EVERYTHING),
            **both_ways(one, world, EVERYTHING),
            **both_ways(here, there, EVERYTHING),
            (here, one): EVERYTHING,
            (here, two): EVERYTHING,
        }
    )


@pytest.mark.parametrize("probe", ["tcp/80", "tcp6/80", "udp/80", "udp6/80", "sctp/80", "sctp6/80", "ping", "ping6"])
def test_a_wrong_expectation_is_noticed(lab: Lab, sites: tuple[Pod, Pod, Site], probe: str) -> None:
    """Open where it should be shut, shut where it should be open: the failure names the cell and what came."""
    one, two, world = sites
    with pytest.raises(AssertionError, match=r"pod-n1 → pod-n2 .*: open, not shut"):
        lab.expect({(one, two): f"!{probe}", (world, two): probe}, within=0)
    lab.apply(global_policy("shut", selector="all()", types=["Ingress"]))
    with pytest.raises(AssertionError, match=r"pod-n1 → pod-n2 .*: shut, not open$"):
        lab.expect({(one, two): probe, (world, two): f"!{probe}"}, within=0)


def test_a_missing_listener_is_no_denial(lab: Lab, sites: tuple[Pod, Pod, Site]) -> None:
    """A refusal is neither open nor shut, so a forgotten listener cannot pass for a policy at work."""
    one, two, _ = sites
    for sign in ("", "!"):
        with pytest.raises(AssertionError, match="refused"):
            lab.expect({(one, two.ip): f"{sign}tcp/81 {sign}udp/81"}, within=0)
    lab.expect({(one, two.ip): "~tcp/81 ~udp/81"})


def test_it_waits_for_what_comes_late(lab: Lab, sites: tuple[Pod, Pod, Site]) -> None:
    """A matrix that becomes true while it is awaited is met, whichever way it changes."""
    one, two, _ = sites
    shut = global_policy("shut", selector="all()", types=["Ingress"])
    for change, probe in ((lab.apply, "!tcp/80"), (lab.delete, "tcp/80")):
        assert lab.wrong({(one, two): probe})
        later = threading.Timer(0.5, change, (shut,))
        later.start()
        lab.expect({(one, two): probe})
        later.join()


def test_what_flaps_does_not_hold(lab: Lab, sites: tuple[Pod, Pod, Site]) -> None:
    """Connections of which every second one passes hold neither as open nor as shut."""
    one, two, _ = sites
    lab.rule(two, "INPUT", *every(2), "-p", "tcp", "--syn", "-j", "DROP")
    for probe in ("tcp/80", "!tcp/80"):
        with pytest.raises(AssertionError, match="tcp/80"):
            lab.expect({(one, two): probe}, within=0.8)


def test_lost_packets_of_a_stream_are_counted(lab: Lab, sites: tuple[Pod, Pod, Site]) -> None:
    """A stream of datagrams knows how many were not answered: none on a good path, every fourth where that is lost."""
    one, two, _ = sites
    with lab.stream(one, two, 5000) as stream:
        stream.run(200)
    assert stream.lost == 0
    lab.rule(two, "INPUT", *every(4), "-p", "udp", "-j", "DROP")
    with lab.stream(one, two, 5001) as stream:
        stream.run(200)
    assert stream.sent == 200
    assert stream.lost == 50


def test_a_lab_is_taken_back(lab: Lab, sites: tuple[Pod, Pod, Site]) -> None:
    """``reset`` deletes what came, restores what was changed or deleted, and undoes what was deferred."""
    one, two, world = sites
    lab.apply(global_policy("shut", selector="all()", types=["Ingress"]))
    lab.apply(one.object(profiles=()))
    lab.delete(two.object())
    lab.rule(world, "OUTPUT", "-j", "DROP")
    lab.expect({(world, one): "!ping46", (world, two): "!ping46"})
    lab.reset()
    lab.expect({(world, one): "ping46", (world, two): "ping46"})


def every(number: int) -> tuple[str, ...]:
    """An iptables match of one packet of so many."""
    return ("-m", "statistic", "--mode", "nth", "--every", str(number), "--packet", "0")
