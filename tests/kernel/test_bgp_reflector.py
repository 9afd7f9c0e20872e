"""Our route reflector: clients that have no session with each other reach each other."""

from __future__ import annotations

import pytest

from tests.support.bgp import BgpLab, eventually, eventually_is

pytestmark = pytest.mark.kernel


def test_our_reflector(bgp_lab: BgpLab) -> None:
    """The usual recipe: clients peer with the reflector only, next hops stay those of the clients."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.configuration(node_to_node_mesh_enabled=False)
    bgp_lab.peer("rr", node_selector="all()", peer_selector="has(rr)")
    for number in (1, 2, 3):
        bgp_lab.block(f"10.244.{number}.0/26", f"n{number}")
    reflector = bgp_lab.node("rr", "10.77.1.5/24", labels={"rr": "yes"}, route_reflector_cluster_id="244.0.0.1")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.9/24")
    n3 = bgp_lab.node("n3", "10.77.2.3/24", subnet="b")
    router = "10.77.1.254"
    eventually_is("n1's routes", {"10.244.2.0/26": (n2.address,), "10.244.3.0/26": (router,)}, n1.gateways, timeout=30)
    eventually_is("n2's routes", {"10.244.1.0/26": (n1.address,), "10.244.3.0/26": (router,)}, n2.gateways)
    both = {"10.244.1.0/26": ("10.77.2.254",), "10.244.2.0/26": ("10.77.2.254",)}
    eventually_is("n3's routes", both, n3.gateways)
    assert set(n1.peers()) == {reflector.address}
    bgp_lab.unblock("10.244.3.0/26", "n3")
    eventually_is("withdrawn", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    bgp_lab.block("10.244.4.0/26", "n2")
    eventually("new block", lambda: n1.gateways().get("10.244.4.0/26") == (n2.address,))
    # A client that comes late gets everything.
    bgp_lab.block("10.244.8.0/26", "n8")
    n8 = bgp_lab.node("n8", "10.77.1.8/24")
    late = {"10.244.1.0/26": (n1.address,), "10.244.2.0/26": (n2.address,), "10.244.4.0/26": (n2.address,)}
    eventually_is("late client", late, n8.gateways)
    eventually("others have the late client's block", lambda: "10.244.8.0/26" in n1.gateways())
