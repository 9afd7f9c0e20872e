"""What ExaBGP still had to say when a session was lost: a peer that comes back is told how things are, not were."""

from __future__ import annotations

import re

import pytest

from calipy.bgp.exabgp.process import Paths
from calipy.datastore.resources import NodeBGPSpec, NodeSpec, PrefixAdvertisement
from tests.kernel.test_bgp_mesh import tor
from tests.support.bgp import BgpLab, Bird, eventually, eventually_is

pytestmark = pytest.mark.kernel

BIRD_NODE = """
router id {address};
protocol device {{}}
protocol direct {{ ipv4; interface "eth0"; }}
protocol bgp n1 {{
    local {address} as 64512;
    neighbor 10.77.1.1 as 64512;
    graceful restart on;
    connect delay time 1;
    connect retry time 1;
    error wait time 1, 2;
    ipv4 {{ import all; export none; }};
}}
"""


def bird_node(lab: BgpLab, name: str, address: str) -> Bird:
    """A node that runs BIRD, and dials n1."""
    lab.apply("Node", name, NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"{address}/24")))
    return lab.bird(lab.namespace(name, f"{address}/24"), BIRD_NODE.format(address=address), name)


def heard(bird: Bird) -> dict[str, list[str]]:
    """Prefixes from n1, each with its communities."""
    found: dict[str, list[str]] = {}
    prefix = ""
    for line in bird.routes().splitlines():
        if "[n1" in line:
            prefix = line.split()[0]
            found[prefix] = []
        elif line.strip().startswith("BGP.community"):
            found[prefix] = re.findall(r"\d+,(\d+)", line)
        elif line and not line[0].isspace():
            prefix = ""
    return found


def test_changes_while_a_peer_is_away_are_told_once_and_the_last_of_each(bgp_lab: BgpLab) -> None:
    """Attributes that change to and fro, a block that changes and goes: ExaBGP's queue knows no order of time."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("10.244.2.0/26", "n1")

    def mark(number: int) -> None:
        advertisement = PrefixAdvertisement(cidr="10.244.0.0/16", communities=(f"64512:{number}",))
        bgp_lab.configuration(prefix_advertisements=(advertisement,))

    mark(1)
    bgp_lab.node("n1", "10.77.1.1/24")
    away, watching = bird_node(bgp_lab, "n8", "10.77.1.8"), bird_node(bgp_lab, "n9", "10.77.1.9")
    everything = {"10.244.1.0/26": ["1"], "10.244.2.0/26": ["1"]}
    for bird in (away, watching):
        eventually_is("all is heard", everything, lambda bird=bird: heard(bird))
    away.program.kill()
    for number in (2, 3, 4, 3, 2):
        mark(number)
        now = {prefix: [str(number)] for prefix in everything}
        eventually_is("ExaBGP has been told", now, lambda: heard(watching))
    bgp_lab.unblock("10.244.2.0/26", "n1")
    eventually_is("withdrawn", {"10.244.1.0/26": ["2"]}, lambda: heard(watching))
    away.start("-R")
    eventually("End-of-RIB", lambda: "Established" in away.ask("show protocols all n1") and heard(away))
    bgp_lab.block("10.244.3.0/26", "n1")  # what is told after everything that was queued
    eventually("told to the end", lambda: "10.244.3.0/26" in heard(away))
    assert heard(away) == {"10.244.1.0/26": ["2"], "10.244.3.0/26": ["2"]}


def test_another_configuration_is_loaded_while_a_peer_is_away(bgp_lab: BgpLab) -> None:
    """What ExaBGP has queued for a peer that does not answer keeps no other session from being changed."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.peer("nobody", peer_ip="10.77.1.99", as_number=64500)
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    bird = bgp_lab.bird(bgp_lab.fabric, tor({"n1": n1.address}).replace("local as", "local 10.77.1.254 as"))
    eventually("session", lambda: n1.up("10.77.1.254"))
    bgp_lab.block("10.244.1.0/26", "n1")
    eventually("told", lambda: "10.244.1.0/26" in bird.routes())
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500, max_restart_time="77s")
    eventually("another session", lambda: "Restart time: 77" in bird.ask("show protocols all n1"))
    eventually("told again", lambda: "10.244.1.0/26" in bird.routes())


def test_a_bgpd_killed_between_writing_a_configuration_and_its_reload(bgp_lab: BgpLab) -> None:
    """The next one finds the right file, and an ExaBGP that has not read it: it is loaded."""
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    bird = bgp_lab.bird(bgp_lab.fabric, tor({"n1": n1.address}).replace("local as", "local 10.77.1.254 as"))
    eventually("session", lambda: n1.up("10.77.1.254"))
    exabgp, paths = n1.exabgp(), Paths(n1.directory / "exabgp")
    assert not paths.reloading.exists()
    n1.kill()
    paths.reloading.touch()
    paths.configuration.write_text(
        paths.configuration.read_text().replace("graceful-restart 120", "graceful-restart 77")
    )
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500, max_restart_time="77s")
    n1.start()
    eventually("loaded", lambda: "Restart time: 77" in bird.ask("show protocols all n1"))
    eventually("done", lambda: not paths.reloading.exists())
    assert n1.exabgp() == exabgp
