"""CalicoNodeStatus in etcd: filled in by the node it names, kept up to date, left alone with period 0."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calipy.datastore import keys
from calipy.datastore.kinds.cluster import CalicoNodeStatusSpec
from tests.support.bgp import BgpLab, eventually, eventually_is

pytestmark = pytest.mark.kernel


def test_a_node_reports(bgp_lab: BgpLab) -> None:
    """Sessions, routes and daemon of the node, in Calico's form; again every period; with 0 once."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.2.0/26", "n2")
    for name, period in (("always", 1), ("once", 0)):
        classes = ("Agent", "BGP", "Routes")
        spec = CalicoNodeStatusSpec(node="n1", classes=classes, update_period_seconds=period)
        bgp_lab.apply("CalicoNodeStatus", name, spec)
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")

    def status(name: str = "always") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(bgp_lab.stored(keys.ResourceKey("CalicoNodeStatus", name)))
        assert found["spec"]["node"] == "n1"
        return found["status"] or {}

    eventually_is("route", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    eventually("reported", lambda: status().get("bgp", {}).get("numberEstablishedV4") == 1 and status()["routes"])
    found = status()
    assert found["agent"]["birdV4"]["state"] == "Ready"
    assert found["agent"]["birdV4"]["routerID"] == n1.address
    assert found["agent"]["birdV6"] == {"state": "NotReady"}
    [peer] = found["bgp"]["peersV4"]
    assert (peer["peerIP"], peer["type"], peer["state"]) == (n2.address, "NodeMesh", "Established")
    learned = {"sourceType": "NodeMesh", "peerIP": n2.address}
    route = {"type": "FIB", "destination": "10.244.2.0/26", "gateway": n2.address, "interface": "eth0"}
    eventually("route reported", lambda: route | {"learnedFrom": learned} in status()["routes"]["routesV4"])
    once = status("once")["lastUpdated"]
    before = status()["lastUpdated"]
    eventually("again", lambda: status()["lastUpdated"] > before)
    assert status("once")["lastUpdated"] == once
