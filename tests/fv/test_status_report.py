"""Statuses of endpoints and agent in the datastore, where the configuration asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from tests.support.felix import until
from tests.support.fv import Lab
from tests.support.matrix import PATIENCE
from tests.support.objects import Object, gone, make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

WORKLOADS = "/calico/felix/v2/no-region/host/n1/workload/"
HOSTS = "/calico/felix/v1/host/n1/endpoint/"
STALE = f"{WORKLOADS}k8s/fv%2fgone/endpoint/eth0"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node with a pod; nothing is reported yet, but an earlier agent has left something."""
    with Lab() as lab:
        lab.pod("web")
        lab.datastore.store("put", STALE, b'{"status":"up"}')
        yield lab.settled()


def configuration(**spec: object) -> Object:
    return make("FelixConfiguration", "default", {"reportingInterval": "0s", **spec})


REPORTING = {"endpointReportingEnabled": True, "endpointReportingDelay": "100ms"}


def stored(lab: Lab, prefix: str) -> Mapping[str, object]:
    """Statuses under a prefix, by what comes after it."""
    listing = lab.datastore.store("list", prefix)
    return {item.key.removeprefix(prefix): json.loads(item.value) for item in listing.items}


def test_nothing_is_reported_unless_asked_for(lab: Lab) -> None:
    """By default the datastore is left alone, stale statuses too."""
    lab.sync()
    assert stored(lab, "/calico/felix/").keys() == {STALE.removeprefix("/calico/felix/")}


def test_statuses_follow_the_endpoints(lab: Lab) -> None:
    """Up once programmed, down with the interface, error for what cannot be, gone with the endpoint; stale ones go."""
    [node], [web] = lab.nodes, lab.pods
    lab.apply(configuration(**REPORTING), lab.host_endpoint(node, interface="eth0"))
    key = "k8s/fv%2fweb/endpoint/eth0"
    until(lambda: stored(lab, WORKLOADS) == {key: {"status": "up"}}, timeout=PATIENCE)
    until(lambda: stored(lab, HOSTS) == {"n1-eth0": {"status": "up"}}, timeout=PATIENCE)

    node.ns.links.set_down(web.interface)
    until(lambda: stored(lab, WORKLOADS) == {key: {"status": "down"}}, timeout=PATIENCE)
    node.ns.links.set_up(web.interface)
    until(lambda: stored(lab, WORKLOADS) == {key: {"status": "up"}}, timeout=PATIENCE)

    lab.apply(web.object(interface="eth0"))
    until(lambda: stored(lab, WORKLOADS) == {key: {"status": "error"}}, timeout=PATIENCE)

    lab.delete(gone(web.object()), lab.host_endpoint(node, interface="eth0"))
    until(lambda: not stored(lab, WORKLOADS), timeout=PATIENCE)
    until(lambda: not stored(lab, HOSTS), timeout=PATIENCE)


def test_the_agent_says_that_it_lives(lab: Lab) -> None:
    """A report that expires, and one that stays; the first after the start is marked."""
    lab.apply(configuration(reportingInterval="200ms", reportingTTL="2s"))
    base = "/calico/felix/v2/no-region/host/n1/"

    def beat() -> Mapping[str, object]:
        found = stored(lab, base)
        return found if found.keys() >= {"status", "last_reported_status"} else {}

    first = until(beat, timeout=PATIENCE)["last_reported_status"]
    assert isinstance(first, dict)
    assert first.keys() == {"time", "uptime", "first_update"}
    later = until(lambda: (found := beat()["last_reported_status"]) != first and found, timeout=PATIENCE)
    assert later["uptime"] > first["uptime"] > 0
    assert not later["first_update"]
    lab.apply(configuration())
    until(lambda: "status" not in stored(lab, base), timeout=PATIENCE)
    assert "last_reported_status" in stored(lab, base)
