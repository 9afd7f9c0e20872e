"""Nodes that run bgpd: they peer, their blocks become kernel routes at the others, and go when they should."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest
from click.testing import CliRunner

from calipy.bgp.path import NORMAL_LOCAL_PREFERENCE
from calipy.cli.bgp import command as bgp_command
from calipy.datastore import keys
from tests.support.bgp import BgpLab, eventually, eventually_is

pytestmark = pytest.mark.kernel

BIRD_TOR = """
router id 10.77.9.1;
protocol device {{ scan time 5; }}
protocol direct {{ ipv4; }}
protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol static {{ ipv4; route 192.0.2.0/24 blackhole; {static} }}
template bgp node {{
  local as 64500;
  multihop 2;
  passive on;
  graceful restart on;
  hold time 90;
  ipv4 {{ import all; export {export}; }};
}}
{sessions}
"""


def tor(nodes: dict[str, str], *, export: str = "none", static: str = "") -> str:
    """A BIRD that peers with nodes as a top-of-rack switch does."""
    sessions = "\n".join(f"protocol bgp {n} from node {{ neighbor {a} as 64512; }}" for n, a in nodes.items())
    return BIRD_TOR.format(export=export, static=static, sessions=sessions)


def test_two_nodes_exchange_blocks(bgp_lab: BgpLab) -> None:
    """A block announced by one node is a route at the other, with that node as gateway; withdrawn, it is gone."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    n2 = bgp_lab.node("n2", "10.77.1.2/24")
    eventually("sessions up", lambda: n1.up(n2.address) and n2.up(n1.address))
    eventually_is("n2 has n1's block", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    assert n1.gateways() == {}
    bgp_lab.block("10.244.2.0/26", "n2")
    eventually_is("n1 has n2's block", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    bgp_lab.unblock("10.244.1.0/26", "n1")
    eventually_is("n2 has lost n1's block", {}, n2.gateways)
    eventually("ready", lambda: n1.status()["ready"] and n2.status()["ready"])


def test_pending_hidden_and_foreign_blocks_stay_home(bgp_lab: BgpLab) -> None:
    """Only confirmed affinities of blocks in exported pools are announced; a borrowed address goes by itself."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.pool("10.99.0.0/16", "hidden", disable_bgp_export=True)
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("10.244.2.0/26", "n1", state="pending")
    bgp_lab.block("10.99.1.0/26", "n1")
    bgp_lab.block("172.30.0.0/26", "n1")
    bgp_lab.block("10.244.3.0/26", "n2", used={5: "n1", 6: "n2"})
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    n2 = bgp_lab.node("n2", "10.77.1.2/24")
    n3 = bgp_lab.node("n3", "10.77.1.3/24")
    both = {"10.244.1.0/26": (n1.address,), "10.244.3.5/32": (n1.address,)}
    eventually_is("n2's routes", both, n2.gateways)
    eventually_is("n3's routes", both | {"10.244.3.0/26": (n2.address,)}, n3.gateways)
    bgp_lab.block("10.244.2.0/26", "n1", state="confirmed")
    eventually("confirmed block", lambda: "10.244.2.0/26" in n2.gateways())


def test_ipv6_blocks_travel_over_ipv6_sessions(bgp_lab: BgpLab) -> None:
    """Each family has sessions of its own, and its blocks get its next hops."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.pool("fd00:10::/48", "pool6")
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("fd00:10:0:1::/122", "n1")
    bgp_lab.node("n1", "10.77.1.1/24", address6="fd77:1::1/64")
    n2 = bgp_lab.node("n2", "10.77.1.2/24", address6="fd77:1::2/64")
    eventually_is("both families", {"10.244.1.0/26": ("10.77.1.1",), "fd00:10:0:1::/122": ("fd77:1::1",)}, n2.gateways)
    assert n2.up("10.77.1.1", "fd77:1::1")


def test_a_node_behind_a_router_is_reached_through_it(bgp_lab: BgpLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A next hop on another subnet is resolved through the router; paths that come back with our AS are refused."""
    bgp_lab.pool("10.244.0.0/16")
    for number in (1, 2, 3):
        bgp_lab.block(f"10.244.{number}.0/26", f"n{number}")
    bgp_lab.fabric.links.add_address("lo", ip_interface("10.77.9.1/32"))
    bgp_lab.peer("fabric", peer_ip="10.77.9.1", as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    n2 = bgp_lab.node("n2", "10.77.1.2/24")
    n3 = bgp_lab.node("n3", "10.77.2.3/24", subnet="b")
    nodes = {node.name: node.address for node in (n1, n2, n3)}
    bird = bgp_lab.bird(bgp_lab.fabric, tor(nodes, export="where source ~ [RTS_STATIC, RTS_BGP]"))
    router_a, router_b = "10.77.1.254", "10.77.2.254"
    foreign = "192.0.2.0/24"
    eventually_is(
        "n1's routes", {"10.244.2.0/26": (n2.address,), "10.244.3.0/26": (router_a,), foreign: (router_a,)}, n1.gateways
    )
    eventually_is(
        "n3's routes", {"10.244.1.0/26": (router_b,), "10.244.2.0/26": (router_b,), foreign: (router_b,)}, n3.gateways
    )
    eventually("the router has all blocks", lambda: all(f"10.244.{i}.0/26" in bird.routes() for i in (1, 2, 3)))
    table = bgp_lab.fabric.run("ip", "route")
    assert "10.244.1.0/26 via 10.77.1.1" in table
    assert "10.244.3.0/26 via 10.77.2.3" in table
    assert str(NORMAL_LOCAL_PREFERENCE) not in bird.routes(), "LOCAL_PREF must not leave the AS"
    eventually("all up and ready", lambda: n1.status()["ready"] and n1.up("10.77.9.1", n2.address, n3.address))
    assert n1.peers()["10.77.9.1"]["type"] == "global"
    monkeypatch.setenv("CALIPY_RUN_DIR", str(n1.directory))
    peers = CliRunner().invoke(bgp_command, ["peers"]).output
    assert "Established" in next(line for line in peers.splitlines() if "10.77.9.1" in line)
    shown = CliRunner().invoke(bgp_command, ["routes", "10.244.3.7"]).output.splitlines()
    assert len(shown) == 3, "one prefix, a path from its node and one from the router"
    assert any("best: only path" in line and f"via {router_a} dev eth0" in line for line in shown)
    assert any("refused: own AS 64512 in AS_PATH" in line for line in shown)
    # The router forgets a node: only routes of that node's session go, the mesh still has the block.
    bird.configure(tor({"n1": n1.address}, export="where source ~ [RTS_STATIC, RTS_BGP]"))
    eventually("n2 lost the fabric", lambda: foreign not in n2.gateways())
    assert n2.gateways()["10.244.3.0/26"] == (router_a,)


def test_what_cannot_be_read_takes_nothing_down(bgp_lab: BgpLab) -> None:
    """Objects that somebody broke leave sessions and routes as they were, and are named; mended ones count again."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.configuration(node_to_node_mesh_enabled=False)
    bgp_lab.peer("all", peer_selector="all()")
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("10.244.2.0/26", "n2")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    eventually_is("routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    broken = {
        kind: keys.ResourceKey(kind, name) for kind, name in (("BGPPeer", "all"), ("Node", "n1"), ("IPPool", "pool"))
    }
    for key in broken.values():
        bgp_lab.garble(key)
    names = {f"{kind}({key.name})" for kind, key in broken.items()}
    eventually("they are named", lambda: names <= n1.status().get("problems", {}).keys())
    bgp_lab.block("10.244.3.0/26", "n2")
    eventually("work goes on", lambda: "10.244.3.0/26" in n1.gateways())
    assert n1.up(n2.address)
    assert n1.peers()[n2.address]["flaps"] == 0
    bgp_lab.peer("all", peer_selector="none == 'x'")
    bgp_lab.pool("10.244.0.0/16")
    eventually("a mended one counts", lambda: n1.peers() == {})
    assert n1.status()["problems"].keys() & names == {"Node(n1)"}
