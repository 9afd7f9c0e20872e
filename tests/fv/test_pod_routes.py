"""Routes to a node's own pods: ``routes`` and ``route_sync_disabled``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.felix import until
from tests.support.fv import Lab, Node, Pod
from tests.support.matrix import PATIENCE
from tests.support.objects import make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node with two pods, and a machine outside."""
    with Lab() as lab:
        lab.external()
        lab.pod("one")
        lab.pod("two")
        yield lab.settled()


def interface_of(node: Node, address: str) -> str:
    """Where packets for an address go, "" for nowhere in particular."""
    options = ("-6",) if ":" in address else ()
    found: list[dict[str, Any]] = json.loads(node.ns.run("ip", *options, "-j", "route", "show", address) or "[]")
    return found[0]["dev"] if found else ""


def routed(node: Node, pod: Pod, interface: str | None = None) -> bool:
    wanted = pod.interface if interface is None else interface
    return {interface_of(node, pod.ip), interface_of(node, pod.ip6)} == {wanted}


def errors(node: Node) -> list[str]:
    return [line for line in node.agent.log.read_text().splitlines() if '"level": "error"' in line]


def test_an_interface_that_flaps(lab: Lab) -> None:
    """Its routes come back each time, and nothing of it is an error."""
    [node], [one, _], [world] = lab.nodes, lab.pods, lab.externals
    before = errors(node)
    for _ in range(5):
        node.ns.links.set_down(one.interface)
        node.ns.links.set_up(one.interface)
    until(lambda: routed(node, one), timeout=PATIENCE)
    node.ns.links.set_down(one.interface)
    until(lambda: node.felix()["endpoints"]["fv/one/eth0"]["state"] == "down", timeout=PATIENCE)
    assert routed(node, one, "")
    node.ns.links.set_up(one.interface)
    until(lambda: routed(node, one), timeout=PATIENCE)
    lab.expect({(world, one): "tcp46/80"})
    assert errors(node) == before


def test_an_interface_that_is_renamed(lab: Lab) -> None:
    """Under another name it is no pod's: its routes go; they return with the name. Nothing of it is an error."""
    [node], [one, _] = lab.nodes, lab.pods
    before = errors(node)
    for name, wanted in (("other0", ""), (one.interface, one.interface)):
        old = one.interface if name == "other0" else "other0"
        node.ns.run("ip", "link", "set", old, "down")
        node.ns.run("ip", "link", "set", old, "name", name)
        node.ns.run("ip", "link", "set", name, "up")
        until(lambda wanted=wanted: routed(node, one, wanted), timeout=PATIENCE)
    assert errors(node) == before


def test_two_pods_with_one_address(lab: Lab) -> None:
    """The younger interface (of the higher index) has it; the other takes over when that goes, and gives it back."""
    [node], [one, two] = lab.nodes, lab.pods
    high = max(one, two, key=lambda pod: node.ns.links.get_link(pod.interface).index)
    low = one if high is two else two
    key, resource = high.object()
    spec = replace(resource.spec, ip_networks=(f"{low.ip}/32", f"{low.ip6}/128"))
    lab.apply((key, replace(resource, spec=spec)))
    until(lambda: routed(node, low, high.interface), timeout=PATIENCE)
    node.ns.links.set_down(high.interface)
    until(lambda: routed(node, low, low.interface), timeout=PATIENCE)
    node.ns.links.set_up(high.interface)
    until(lambda: routed(node, low, high.interface), timeout=PATIENCE)
    lab.delete(high.object())
    until(lambda: routed(node, low, low.interface), timeout=PATIENCE)


def test_a_stolen_route_is_taken_back(lab: Lab) -> None:
    """Somebody else's route for a pod's address, or none, does not last; routes elsewhere are left alone."""
    [node], [one, _] = lab.nodes, lab.pods
    node.ns.run("ip", "route", "add", "198.51.100.0/24", "dev", "eth0", "proto", "static")
    lab.defer(node.ns.run, "ip", "route", "del", "198.51.100.0/24")
    node.ns.run("ip", "route", "del", one.ip)
    until(lambda: interface_of(node, one.ip) == one.interface, timeout=PATIENCE)
    node.ns.run("ip", "route", "add", "198.51.100.77/32", "dev", one.interface, "proto", "static")
    until(lambda: not interface_of(node, "198.51.100.77/32"), timeout=PATIENCE)
    assert interface_of(node, "198.51.100.0/24") == "eth0"


def test_no_routes_where_they_are_somebody_elses_business(lab: Lab) -> None:
    """With RouteSyncDisabled none is written, taken away or repaired; policy goes on as ever."""
    [node], [one, _] = lab.nodes, lab.pods
    lab.apply(make("FelixConfiguration", "default", {"routeSyncDisabled": True}))
    node.ns.run("ip", "route", "del", one.ip)
    late = lab.pod("late")
    lab.sync()
    assert any(f"cali-tw-{late.interface}" in rule for rule in node.rules())
    assert interface_of(node, late.ip) == interface_of(node, one.ip) == ""
    assert interface_of(node, one.ip6) == one.interface
    lab.delete(make("FelixConfiguration", "default", {}))
    until(lambda: routed(node, one) and routed(node, late), timeout=PATIENCE)
