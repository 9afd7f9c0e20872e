"""Our route reflector: clients that have no session with each other reach each other."""

from __future__ import annotations

import os
import re
import signal

import pytest

from calipy.datastore.resources import NodeBGPSpec, NodeSpec
from tests.support.bgp import BgpLab, Pinger, eventually, eventually_is

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


CLIENT = """
router id 10.77.1.20;
protocol device { scan time 5; }
protocol direct { ipv4; }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol static { ipv4; route 10.244.20.0/26 blackhole; }
template bgp reflector {
  local 10.77.1.20 as 64512;
  graceful restart on;
  passive on;
  ipv4 { import all; export where source = RTS_STATIC; next hop self; };
}
protocol bgp rr1 from reflector { neighbor 10.77.1.5 as 64512; }
protocol bgp rr2 from reflector { neighbor 10.77.1.6 as 64512; }
"""


def test_two_reflectors_of_one_cluster(bgp_lab: BgpLab) -> None:
    """Clients, one of them a BIRD, and a peer that is none: one reflector's whole BGP dies, and nothing is lost."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.configuration(node_to_node_mesh_enabled=False)
    bgp_lab.peer("rr", node_selector="all()", peer_selector="has(rr)")
    for name in ("n1", "n2"):
        bgp_lab.block(f"10.244.{name[1:]}.0/26", name)
    # The BIRD is a node by its resource; another reflector, of a cluster of its own, is no client.
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4_address="10.77.1.20/24"))
    bgp_lab.apply("Node", "client", spec, {"client": "yes"})
    bgp_lab.block("10.244.20.0/26", "client")
    bird = bgp_lab.bird(bgp_lab.namespace("client", "10.77.1.20/24"), CLIENT)
    rr1, rr2 = (
        bgp_lab.node(f"rr{i}", f"10.77.1.{4 + i}/24", labels={"rr": "yes"}, route_reflector_cluster_id="244.0.0.1")
        for i in (1, 2)
    )
    bgp_lab.block("10.244.9.0/26", "n9")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    n9 = bgp_lab.node("n9", "10.77.1.9/24", route_reflector_cluster_id="244.0.0.9")
    n2.ns.run("ip", "addr", "add", "10.244.2.1/32", "dev", "lo")
    where = {
        "10.244.1.0/26": n1.address, "10.244.2.0/26": n2.address,
        "10.244.20.0/26": "10.77.1.20", "10.244.9.0/26": n9.address,
    }  # fmt: skip

    def told() -> dict[str, str]:
        shown = bird.ask("show route primary where source = RTS_BGP")
        return dict(re.findall(r"^(\S+/\d+) .*\n\s+via (\S+) on", shown, re.MULTILINE))

    def all_have_all(what: str) -> None:
        for node in (n1, n2, n9):
            wanted = {cidr: (hop,) for cidr, hop in where.items() if hop != node.address}
            eventually_is(f"{node.name} {what}", wanted, node.gateways, timeout=60)
        eventually_is(f"BIRD {what}", {cidr: hop for cidr, hop in where.items() if hop != "10.77.1.20"}, told)

    all_have_all("at first")
    eventually("both reflectors", lambda: all(n.up(rr1.address, rr2.address) for n in (n1, n2, n9)), timeout=60)
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping", interval=0.02)
    flaps = {n.name: n.peers()[rr2.address]["flaps"] for n in (n1, n2, n9)}
    exabgp = rr1.exabgp()
    rr1.kill()
    os.kill(exabgp, signal.SIGKILL)
    eventually("its sessions are lost", lambda: not any(n.up(rr1.address) for n in (n1, n2, n9)))
    all_have_all("without a reflector")
    where["10.244.12.0/26"] = n2.address
    bgp_lab.block("10.244.12.0/26", "n2")
    all_have_all("with a block that is new")
    rr1.start()
    eventually("it is back", lambda: all(n.up(rr1.address) for n in (n1, n2, n9)), timeout=60)
    where.pop("10.244.12.0/26")
    bgp_lab.unblock("10.244.12.0/26", "n2")
    all_have_all("in the end")
    assert {n.name: n.peers()[rr2.address]["flaps"] for n in (n1, n2, n9)} == flaps
    assert ping.stop()[1] == 0
