"""bgpd's metrics, as Prometheus gets them from the process that a node runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kernel.test_bgp_mesh import tor
from tests.support.bgp import ETCD, BgpLab, BgpNode, Program, eventually

pytestmark = pytest.mark.kernel


def scrape(node: BgpNode) -> dict[str, float]:
    """Values by series, {} while nothing is served."""
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9190/metrics', timeout=5).read().decode())"
    argv = ["nsenter", f"--net={node.ns.path}", sys.executable, "-I", "-c", script]
    text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {series: float(value) for series, _, value in lines}


def test_what_prometheus_gets(bgp_lab: BgpLab) -> None:
    """Mesh sessions are only counted, other peers have their own series; RIB, kernel, ExaBGP and drift follow."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.2.0/26", "n2")
    bgp_lab.peer("tor", peer_ip="10.77.1.254", as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24", start=False)
    n1.ns.run("ip", "link", "set", "lo", "up")
    argv = [sys.executable, "-m", "calipy.cli.main", "node", "run", "--only", "bgpd"]
    directory = str(n1.directory)
    n1.bgpd = Program(
        n1.ns, argv, n1.directory / "bgpd.log", NODENAME="n1", ETCD_ENDPOINTS=ETCD, DATASTORE_TYPE="etcdv3",
        CALIPY_RUN_DIR=directory, CALIPY_LIB_DIR=directory, CALIPY_BGP_METRICS_PORT="9190",
    )  # fmt: skip
    n2 = bgp_lab.node("n2", "10.77.1.2/24")
    text = tor({"n1": n1.address}).replace("local as 64500", "local 10.77.1.254 as 64500")
    bgp_lab.bird(bgp_lab.fabric, text.replace("export none", "export where source = RTS_STATIC"))
    eventually("sessions", lambda: n1.up(n2.address, "10.77.1.254") and len(n1.routes()) == 2, timeout=40)
    n1.ns.run("ip", "route", "del", "10.244.2.0/26")
    found = eventually("drift", lambda: values if (values := scrape(n1)).get("bgp_fib_drift") else None)
    assert found['bgp_peers{type="node-to-node mesh",ip_version="4",state="up"}'] == 1
    assert found['bgp_peers{type="global",ip_version="4",state="up"}'] == 1
    assert {name for name in found if name.startswith("bgp_peer_up")} == {
        'bgp_peer_up{peer="10.77.1.254",type="global"}'
    }
    assert found['bgp_peer_paths{peer="10.77.1.254",type="global"}'] == 1
    assert (found["bgp_rib_paths"], found["bgp_rib_prefixes"], found["bgp_fib_routes"]) == (2, 2, 2)
    eventually("nobody waits for End-of-RIB", lambda: scrape(n1)["bgp_end_of_rib_owed"] == 0)
    assert found["bgp_exabgp_starts"] == 1
    assert found["bgp_relay_dropped_bytes"] >= 0
    assert found["bgp_exabgp_ack_seconds_count"] > 0
    assert found["process_resident_memory_bytes"] > 1e6
