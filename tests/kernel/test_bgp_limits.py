"""ExaBGP's hard limits: we stay clear of them, and heal where something else ran into them."""

from __future__ import annotations

import base64
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from calipy.bgp.exabgp.process import Paths
from calipy.datastore.resources import BGPPassword
from calipy.datastore.resources import SecretKeySelector as Secret
from tests.kernel.test_bgp_mesh import tor
from tests.kernel.test_bgp_restart import pair
from tests.support.bgp import BgpLab, BgpNode, Pinger, eventually, eventually_is

pytestmark = pytest.mark.kernel


def relay_of(node: BgpNode) -> int:
    """Process id of the relay, 0 if there is none."""
    children = Path(f"/proc/{node.exabgp()}/task/{node.exabgp()}/children").read_text().split()
    return int(children[0]) if children else 0


def test_a_killed_relay_costs_nothing(bgp_lab: BgpLab) -> None:
    """ExaBGP starts the relay again, bgpd reads everything back, and no session notices."""
    n1, n2 = pair(bgp_lab)
    exabgp, relay = n1.exabgp(), relay_of(n1)
    os.kill(relay, signal.SIGKILL)
    eventually("another relay", lambda: relay_of(n1) not in (0, relay))
    bgp_lab.block("10.244.3.0/26", "n2")
    bgp_lab.block("10.244.4.0/26", "n1")
    eventually("n1 still learns", lambda: "10.244.3.0/26" in n1.gateways())
    eventually("n1 still tells", lambda: "10.244.4.0/26" in n2.gateways())
    assert n1.exabgp() == exabgp
    assert (n1.peers()[n2.address]["flaps"], n2.peers()[n1.address]["flaps"]) == (0, 0)


def test_a_hung_exabgp_is_replaced(bgp_lab: BgpLab) -> None:
    """The watchdog notices an ExaBGP that does not answer and starts another; packets go on."""
    n1, n2 = pair(bgp_lab)
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping", interval=0.05)
    exabgp = n1.exabgp()
    os.kill(exabgp, signal.SIGSTOP)
    eventually("another ExaBGP", lambda: n1.exabgp() not in (0, exabgp), timeout=30)
    eventually("session is back", lambda: n1.up(n2.address) and n2.up(n1.address))
    eventually_is("routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    assert ping.stop()[1] == 0


def test_a_configuration_somebody_broke_is_mended(bgp_lab: BgpLab) -> None:
    """A reload of a broken file takes ExaBGP's API away; bgpd gets it back with the right file and all routes."""
    n1, n2 = pair(bgp_lab)
    file = Paths(n1.directory / "exabgp").configuration
    file.write_text("nonsense {\n")
    os.kill(n1.exabgp(), signal.SIGUSR1)
    bgp_lab.block("10.244.3.0/26", "n2")
    eventually("n1 learns again", lambda: "10.244.3.0/26" in n1.gateways(), timeout=40)
    eventually("session is back", lambda: n1.up(n2.address) and n1.status()["ready"])
    assert file.read_text().startswith("process api")
    assert file.stat().st_mode & 0o777 == 0o600


def test_another_listen_port_needs_another_exabgp(bgp_lab: BgpLab) -> None:
    """The port is a setting of the process: it is restarted, and peers dial the new port."""
    n1, n2 = pair(bgp_lab)
    before = n1.exabgp()
    bgp_lab.configuration(listen_port=1790)
    eventually("another ExaBGP", lambda: n1.exabgp() not in (0, before), timeout=30)
    eventually("sessions on the new port", lambda: n1.up(n2.address) and n2.up(n1.address), timeout=60)
    assert ":1790" in n1.ns.run("ss", "-Htn", "state", "established")


def test_md5(bgp_lab: BgpLab) -> None:
    """With the right key the session comes up, without a key file it is not even tried, and the key is never shown."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    secret = BGPPassword(secret_key_ref=Secret(name="bgp", key="tor"))
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500, password=secret)
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    key = 'p"w;{}'
    configuration = tor({"n1": n1.address}).replace("local as 64500;", "local 10.77.1.254 as 64500;")
    bird = bgp_lab.bird(bgp_lab.fabric, configuration.replace("multihop 2;", 'multihop 2; password "p\'w;{}";'))
    eventually("the missing file is named", lambda: "secrets/bgp/tor" in str(n1.status().get("problems")))
    assert n1.peers()["10.77.1.254"]["info"].startswith("Idle: password: cannot read ")
    eventually("not ready for it", lambda: "password: cannot read" in str(n1.status().get("reasons")))
    secrets = n1.directory / "secrets" / "bgp"
    secrets.mkdir(parents=True)
    (secrets / "tor").write_text(key.replace('"', "'") + "\n")
    eventually("session with a key", lambda: n1.up("10.77.1.254"))
    eventually("bird has the block", lambda: "10.244.1.0/26" in bird.routes())
    assert key not in n1.told() + str(n1.status())


def test_a_rotated_key(bgp_lab: BgpLab) -> None:
    """Another key in both ends' files is taken up; a file that is empty or gone for a while takes nothing down."""
    bgp_lab.configuration(node_mesh_password=BGPPassword(secret_key_ref=Secret(name="bgp", key="mesh")))
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.2.0/26", "n2")
    nodes = [bgp_lab.node(f"n{i}", f"10.77.1.{i}/24", start=False) for i in (1, 2)]
    n1, n2 = nodes
    files = [node.directory / "secrets" / "bgp" / "mesh" for node in nodes]
    for node, file in zip(nodes, files, strict=True):
        file.parent.mkdir(parents=True)
        file.write_text("")
        node.start()
    eventually("an empty file is named", lambda: "0 bytes" in n1.peers().get(n2.address, {}).get("info", ""))
    for file in files:
        file.write_text("first")
    eventually_is("routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    flaps = n1.peers()[n2.address]["flaps"]
    files[0].unlink()
    eventually("the missing file is named", lambda: "stays in force" in str(n1.status().get("problems")))
    bgp_lab.block("10.244.3.0/26", "n2")
    eventually("the session goes on", lambda: "10.244.3.0/26" in n1.gateways())
    assert n1.peers()[n2.address]["flaps"] == flaps
    for file in files:
        file.write_text("second")
    for node in nodes:
        eventually(
            "loaded", lambda node=node: b64("second") in Paths(node.directory / "exabgp").configuration.read_text()
        )
    eventually("session with the new key", lambda: n1.up(n2.address) and n2.up(n1.address))
    assert n1.status()["problems"] == {}


def b64(text: str) -> str:
    """As ExaBGP's configuration has keys."""
    return base64.b64encode(text.encode()).decode()


def test_a_flood_of_routes_meets_its_limit(bgp_lab: BgpLab) -> None:
    """A peer above its limit is cut off there, and has all of its routes when it is below; far above it is held off."""
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    n1, n2 = pair(bgp_lab)

    def flood(first: int, last: int) -> str:
        static = "\n".join(
            f"route {20 + (i >> 16)}.{i >> 8 & 255}.{i & 255}.0/24 blackhole;" for i in range(first, last)
        )
        there = tor({"n1": n1.address}, export="where source = RTS_STATIC", static=static)
        return there.replace("local as 64500;", "local 10.77.1.254 as 64500;")

    def of_tor() -> dict[str, Any]:
        return n1.peers().get("10.77.1.254", {})

    bird = bgp_lab.bird(bgp_lab.fabric, flood(0, 60_000))
    eventually("the limit is met", lambda: of_tor().get("refused_by_limit", 0) > 0, timeout=60)
    eventually("no more than the limit", lambda: of_tor().get("paths") == 50_000, timeout=30)
    bird.configure(flood(30_000, 60_000))
    eventually_is("all of them", 30_001, lambda: of_tor().get("paths"), timeout=90)
    assert of_tor()["refused_by_limit"] == 0
    bird.configure(flood(0, 101_000))
    eventually("held off", lambda: of_tor()["info"].startswith("Idle: held off"), timeout=60)
    assert (n1.up(n2.address), n1.peers()[n2.address]["flaps"]) == (True, 0)
    assert "10.244.2.0/26" in n1.gateways()


def test_a_session_that_exabgp_refuses_is_left_out(bgp_lab: BgpLab) -> None:
    """One section that ExaBGP does not take is named with the reason; the others are loaded, then and later."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.2.0/26", "n2")
    bgp_lab.block("10.244.3.0/26", "n3")
    bgp_lab.peer("odd", peer_ip="fe80::1%eth0", as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24", address6="fd77:1::1/64")
    n2 = bgp_lab.node("n2", "10.77.1.2/24")
    eventually_is("routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    odd = n1.peers()["fe80::1%eth0"]
    assert odd["info"].startswith("Idle: left out, ExaBGP refuses it: ")
    assert "invalid IP address" in odd["cause"]
    n3 = bgp_lab.node("n3", "10.77.1.3/24")
    eventually_is("reloaded", {"10.244.2.0/26": (n2.address,), "10.244.3.0/26": (n3.address,)}, n1.gateways)
    assert n1.peers()[n2.address]["flaps"] == 0
    exabgp = n1.exabgp()
    bgp_lab.peer("odd", peer_ip="10.77.1.254", as_number=64500)
    eventually("mended", lambda: set(n1.peers()) == {n2.address, n3.address, "10.77.1.254"})
    bird = bgp_lab.bird(bgp_lab.fabric, tor({"n1": n1.address}).replace("local as 64500", "local 10.77.1.254 as 64500"))
    eventually("its session", lambda: n1.up("10.77.1.254"), timeout=40)
    assert "Established" in bird.ask("show protocols n1")
    assert n1.exabgp() == exabgp


def test_an_exabgp_that_has_grown_too_large_is_restarted_once(bgp_lab: BgpLab) -> None:
    """Above its memory limit ExaBGP is restarted without losing a packet; not again if it grows back at once."""
    n1, n2 = pair(bgp_lab)
    ping = Pinger(n1.ns, "10.244.2.1", bgp_lab.directory / "ping", interval=0.05)
    exabgp = n1.exabgp()
    n1.kill()
    n1.start(BGPD_MEMORY_LIMIT="1000000")
    eventually("another ExaBGP", lambda: n1.exabgp() not in (0, exabgp))
    eventually("session is back", lambda: n1.up(n2.address) and n2.up(n1.address))
    eventually_is("routes", {"10.244.2.0/26": (n2.address,)}, n1.gateways)
    replaced = n1.exabgp()
    time.sleep(6)  # the watchdog looks every 5 s
    assert n1.exabgp() == replaced
    assert "occupies" in n1.told()
    assert ping.stop()[1] == 0


def test_ttl_security_on_a_session_that_the_peer_dials(bgp_lab: BgpLab) -> None:
    """With ttlSecurity a router that sends another TTL gets no session, though it is the one that dials."""
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500, ttl_security=1)
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    # Nobody answers what we dial: the session can only be BIRD's.
    bgp_lab.fabric.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "179", "-j", "DROP")
    dialing = tor({"n1": n1.address}).replace("local as 64500", "local 10.77.1.254 as 64500")
    dialing = dialing.replace("passive on;", "connect delay time 1; connect retry time 1; error wait time 1,2;")
    bird = bgp_lab.bird(bgp_lab.fabric, dialing)
    eventually("the session is wanted", lambda: "10.77.1.254" in n1.peers())
    time.sleep(6)  # BIRD dials every second or two; nothing may come of it
    assert not n1.up("10.77.1.254")
    bird.configure(dialing.replace("multihop 2;", "multihop 1; ttl security on;"))
    eventually("with the right TTL", lambda: n1.up("10.77.1.254"), timeout=40)


def test_what_is_withdrawn_while_its_peer_is_changed_goes(bgp_lab: BgpLab) -> None:
    """ExaBGP keeps what it has to tell a neighbour whose settings a reload changes, and tells it again."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500, keepalive_time="30s")
    n1 = bgp_lab.node("n1", "10.77.1.1/24")
    bird = bgp_lab.bird(bgp_lab.fabric, tor({"n1": n1.address}))
    for number, pause in enumerate((0.3, 0.45, 0.6, 0.75)):
        cidr = f"10.244.{10 + number}.0/26"
        bgp_lab.block(cidr, "n1")
        eventually("told", lambda cidr=cidr: cidr in bird.routes())
        bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500, keepalive_time=f"{31 + number}s")
        time.sleep(pause)
        bgp_lab.unblock(cidr, "n1")
        eventually("withdrawn", lambda cidr=cidr: cidr not in bird.routes())
        # Told after all that: what is still to be told again would have been by now.
        bgp_lab.block(f"10.244.{20 + number}.0/26", "n1")
        eventually("changed", lambda number=number: f"10.244.{20 + number}.0/26" in bird.routes())
    eventually("the session stays", lambda: n1.up("10.77.1.254"))
    routes = bird.routes()
    assert [number for number in range(4) if f"10.244.{10 + number}.0/26" in routes] == []
