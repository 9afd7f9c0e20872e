"""A node that is taken out of service: peers under graceful restart forget its routes at once, and not before."""

from __future__ import annotations

import json
import signal
import time

import pytest
from click.testing import CliRunner

from calipy.bgp.exabgp.process import Paths
from calipy.cli.node import command as node_command
from tests.kernel.test_bgp_mesh import tor
from tests.support.bgp import BgpLab, Pinger, eventually, eventually_is

pytestmark = pytest.mark.kernel


def test_a_drained_node_leaves_nothing_behind(bgp_lab: BgpLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drained, a node's routes are gone at all peers, though they would keep them 120 s for one that ends; own stay."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    for number in (1, 2):
        bgp_lab.block(f"10.244.{number}.0/26", f"n{number}")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    n2.ns.run("ip", "addr", "add", "10.244.2.1/32", "dev", "lo")
    bird = bgp_lab.bird(bgp_lab.fabric, tor({"n1": n1.address, "n2": n2.address}))
    there = {"10.244.2.0/26": (n2.address,)}
    eventually_is("n1's routes", there, n1.gateways)
    eventually_is("n2's routes", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    eventually("bird has both", lambda: all(f"10.244.{i}.0/26" in bird.routes() for i in (1, 2)))
    assert "10.244.1.0/26" not in n1.gateways()
    monkeypatch.setenv("CALIPY_RUN_DIR", str(n1.directory))
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping", interval=0.05)
    began = time.monotonic()
    done = CliRunner().invoke(node_command, ["drain", "-o", "json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"told": [n2.address, "10.77.1.254"], "missed": []})
    eventually("bird has forgotten it", lambda: "10.244.1.0/26" not in bird.routes(), timeout=30)
    eventually_is("n2 has forgotten it", {}, n2.gateways, timeout=30)
    print(f"gone after {time.monotonic() - began:.1f} s")
    assert "10.244.2.0/26" in bird.routes()
    assert n1.exabgp() == 0
    status = n1.status()
    assert (status["drained"], status["ready"]) == (True, False)
    assert "calipy node undrain" in status["reasons"][0]
    # A bgpd that is restarted, or killed, does not announce the node again, and lets the routes be.
    n1.kill(signal.SIGKILL)
    n1.start()
    eventually("it says so", lambda: "undrain" in str(n1.status().get("reasons")))
    again = CliRunner().invoke(node_command, ["drain"])
    assert again.exit_code == 1, "nobody could be told"
    assert n1.exabgp() == 0
    assert n1.gateways() == there
    assert "10.244.1.0/26" not in bird.routes()
    assert CliRunner().invoke(node_command, ["undrain"]).output == "BGP starts again\n"
    eventually("bird has it again", lambda: "10.244.1.0/26" in bird.routes())
    eventually_is("n2 has it again", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    eventually_is("n1's routes", there, n1.gateways)
    assert ping.stop()[1] == 0
    assert CliRunner().invoke(node_command, ["undrain"]).output == "This node was not drained\n"
    assert not Paths(n1.directory / "exabgp").drained.exists()


def test_a_killed_bgpd_drains_nevertheless(bgp_lab: BgpLab) -> None:
    """A bgpd that finds its node marked as drained, and ExaBGP running, has it take leave first."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    bgp_lab.block("10.244.1.0/26", "n1")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    bird = bgp_lab.bird(bgp_lab.fabric, tor({"n1": n1.address}))
    eventually("bird has it", lambda: "10.244.1.0/26" in bird.routes())
    n1.kill()
    assert n1.exabgp()
    Paths(n1.directory / "exabgp").drained.touch()
    n1.start()
    eventually("bird has forgotten it", lambda: "10.244.1.0/26" not in bird.routes(), timeout=60)
    eventually("exabgp has ended", lambda: n1.exabgp() == 0)
