"""Pods as BGP peers of their node: real agents, bgpd and ExaBGP on two nodes, BIRD in pods, packets through it all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calipy import api_client
from calipy.bgp.daemon import stop_speaker
from calipy.datastore import codec
from calipy.datastore.ipam import BlockAffinity
from calipy.datastore.keys import BlockAffinityKey, path
from calipy.errors import CalipyError
from calipy.net import PROTO_BGP
from tests.support import objects
from tests.support.bgp import Bird, Program, eventually, eventually_is
from tests.support.fv import Lab, Node, Pod
from tests.support.netns import Namespace
from tests.support.routers import need, watch_kernel

pytestmark = pytest.mark.kernel

HERE4, HERE6 = "169.254.0.179", "fd12:3456::179"
KEY = "s3cr3t"

IN_POD = """
router id {pod.ip};
protocol device {{ }}
protocol static {{ ipv4; {routes4} }}
protocol static {{ ipv6; {routes6} }}
template bgp to_node {{
  local as 65401;
  multihop; graceful restart on; password "{key}"; connect delay time 1; connect retry time 1; error wait time 1, 2;
}}
protocol bgp node4 from to_node {{
  source address {pod.ip}; neighbor {here4} as 64512;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
protocol bgp node6 from to_node {{
  source address {pod.ip6}; neighbor {here6} as 64512;
  ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"""


class Cluster:
    """A lab whose nodes run bgpd as well."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.programs: list[Program] = []
        self.bgpd: dict[str, Program] = {}
        for number, node in enumerate(lab.nodes, 1):
            self.block(f"10.65.{number}.0/26", node.name)
            (self.run_dir(node) / "secrets" / "bgp").mkdir(parents=True)
            (self.run_dir(node) / "secrets" / "bgp" / "pods").write_text(KEY)
            self.start(node)

    def run_dir(self, node: Node) -> Path:
        """Of its daemons: here the agent keeps its status files, too."""
        return node.agent.log.parent / node.name

    def start(self, node: Node) -> None:
        """Start its bgpd."""
        argv = (sys.executable, "-m", "tests.support.bgpd_process", node.name, str(self.run_dir(node)))
        self.bgpd[node.name] = self.run(node.ns, *argv, label=f"bgpd-{node.name}", ETCD_ENDPOINTS=self.lab.etcd.url)

    def run(self, namespace: Namespace, *argv: str, label: str, **environ: str) -> Program:
        """Start a program that ends with the cluster."""
        self.programs.append(Program(namespace, argv, self.directory / f"{label}.log", **environ))
        return self.programs[-1]

    def block(self, cidr: str, host: str) -> None:
        """A block of a node."""
        key, block = objects.block(cidr, host)
        self.lab.datastore.store("put", path(key), codec.encode(block))
        affinity = BlockAffinity(state="confirmed")
        self.lab.datastore.store("put", path(BlockAffinityKey(host, cidr)), codec.encode(affinity))

    def peers(self, node: Node) -> dict[str, dict[str, Any]]:
        """Sessions by address, {} while bgpd does not answer."""
        with contextlib.suppress(CalipyError):
            status = api_client.call(self.run_dir(node) / "bgpd.sock", "status", timeout=5)
            return {peer["address"]: peer for peer in status["peers"]}
        return {}

    def problems(self, node: Node) -> str:
        """What its bgpd complains of."""
        with contextlib.suppress(CalipyError):
            return str(api_client.call(self.run_dir(node) / "bgpd.sock", "status", timeout=5)["problems"])
        return ""

    def up(self, node: Node, *addresses: str) -> bool:
        """Whether sessions are up."""
        peers = self.peers(node)
        return all(address in peers and peers[address]["state"] == "up" for address in addresses)

    def routes(self, node: Node) -> dict[str, str]:
        """Routes of bgpd and where they lead: gateway and interface."""
        found = node.ns.routes.dump(protocol=PROTO_BGP)
        return {
            str(route.dst): f"{route.next_hops[0].gateway} {route.next_hops[0].interface}"
            for route in found
            if route.next_hops
        }

    def bird(self, pod: Pod, routes4: tuple[str, ...], routes6: tuple[str, ...]) -> Bird:
        """BIRD in a pod, which announces these prefixes."""
        text = self.configuration(pod, routes4, routes6)
        return Bird(self, pod.ns, text, f"bird-{pod.name}")  # type: ignore[arg-type]  # has what it needs of a lab

    def configuration(self, pod: Pod, routes4: tuple[str, ...], routes6: tuple[str, ...], *, here4: str = HERE4) -> str:
        """BIRD's configuration in a pod."""
        four, six = (" ".join(f"route {one} blackhole;" for one in routes) for routes in (routes4, routes6))
        return IN_POD.format(pod=pod, routes4=four, routes6=six, here4=here4, here6=HERE6, key=KEY)

    def close(self) -> None:
        """End everything."""
        for program in reversed(self.programs):
            program.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    need("BIRD")
    with Lab(nodes=2, FELIX_DEFAULTENDPOINTTOHOSTACTION="DROP") as lab:
        made = Cluster(lab, tmp_path)
        try:
            yield made
        finally:
            made.close()
            for node in lab.nodes:
                asyncio.run(stop_speaker(made.run_dir(node)))  # ExaBGP outlives bgpd


def peer(**spec: Any) -> objects.Object:
    """The BGPPeer that selects red pods."""
    common = {
        "localWorkloadSelector": "color == 'red'",
        "asNumber": 65401,
        "password": {"secretKeyRef": {"name": "bgp", "key": "pods"}},
        "filters": ["child"],
    }
    return objects.make("BGPPeer", "red", {**common, **spec})


CHILD = objects.make(
    "BGPFilter",
    "child",
    {
        "importV4": [{"action": "Accept", "matchOperator": "In", "cidr": "10.66.0.0/16"}, {"action": "Reject"}],
        "importV6": [{"action": "Accept", "matchOperator": "In", "cidr": "fd66::/16"}, {"action": "Reject"}],
    },
)
POOLS = [
    objects.make("IPPool", name, {"cidr": cidr, "blockSize": size, "natOutgoing": False})
    for name, cidr, size in (("child4", "10.66.0.0/16", 26), ("pool6", "fd65::/16", 122), ("child6", "fd66::/16", 122))
]


def addresses(here4: str = HERE4) -> objects.Object:
    """The node's addresses towards its pods."""
    spec = {"localWorkloadPeeringIPV4": here4, "localWorkloadPeeringIPV6": HERE6}
    return objects.make("BGPConfiguration", "default", spec)


def reaches(source: Namespace, address: str) -> bool:
    """Whether a packet comes back."""
    with contextlib.suppress(CalipyError):
        return " 0% packet loss" in source.run("ping", "-c1", "-W1", address)
    return False


def test_a_pod_announces_a_prefix_and_packets_find_it(cluster: Cluster) -> None:
    """The pod's own node and the mesh reach what a selected pod announces and a filter permits, as long as it lives."""
    lab = cluster.lab
    n1, n2 = lab.nodes
    red, blue = lab.pod("red", color="red"), lab.pod("blue", color="blue")
    far = lab.pod("far", n2)
    for address in ("10.66.1.1/32", "fd66:1::1/128"):
        red.ns.address("lo", address)
    lab.apply(*POOLS, CHILD, peer())
    eventually("the missing address is said", lambda: "localWorkloadPeeringIPV4" in cluster.problems(n1))
    lab.apply(addresses())
    bird = cluster.bird(red, ("10.66.1.0/28", "10.99.0.0/24"), ("fd66:1::/64", "fd99::/64"))
    other = cluster.bird(blue, ("10.66.2.0/28",), ())
    eventually("sessions", lambda: cluster.up(n1, red.ip, red.ip6, n2.ip), timeout=60)
    told = cluster.peers(n1)[red.ip]
    assert (told["type"], told["source"], told["local_address"]) == ("local workload", "BGPPeer(red)", HERE4)
    assert cluster.problems(n1) == "{}"

    # What it announces, as far as it may: here, at the other node, and packets from there, of a pod's, too.
    here = {"10.66.1.0/28": f"{red.ip} {red.interface}", "fd66:1::/64": f"{red.ip6} {red.interface}"}
    eventually_is("n1", here | {"10.65.2.0/26": f"{n2.ip} eth0"}, lambda: cluster.routes(n1))
    there = {"10.66.1.0/28": f"{n1.ip} eth0", "fd66:1::/64": f"{n1.ip6} eth0", "10.65.1.0/26": f"{n1.ip} eth0"}
    eventually_is("n2", there, lambda: cluster.routes(n2))
    for source in (n1, n2, far):
        for address in ("10.66.1.1", "fd66:1::1"):
            eventually(f"{source.name} reaches {address}", lambda s=source, a=address: reaches(s.ns, a))

    # What it is told: blocks of both nodes, by way of its own.
    heard = bird.ask("show route protocol node4")
    assert "10.65.1.0/26" in heard
    assert "10.65.2.0/26" in heard

    # A pod that nobody selected has no session, and its interface no address.
    assert "Established" not in other.ask("show protocols node4")
    assert blue.ip not in cluster.peers(n1)
    assert HERE4 in n1.ns.run("ip", "address", "show", "dev", red.interface)
    assert HERE4 not in n1.ns.run("ip", "address", "show", "dev", blue.interface)

    # The agent reads the kernel anew, bgpd adopts ExaBGP: nothing is lost.
    watch = watch_kernel(cluster, n1.ns)  # type: ignore[arg-type]  # has what it needs of a lab
    n1.stop()
    cluster.bgpd["n1"].kill(signal.SIGKILL)
    n1.start()
    cluster.start(n1)
    lab.sync()
    eventually("up again", lambda: cluster.up(n1, red.ip, red.ip6))
    assert here.items() <= cluster.routes(n1).items()
    assert cluster.peers(n1)[red.ip]["flaps"] == 0
    assert reaches(far.ns, "10.66.1.1")
    assert watch.stop("10.66.1.0/28", "fd66:1::/64") == []

    # Another peering address; then nobody is selected any more, which concerns nothing but the session.
    lab.apply(addresses("169.254.0.180"))
    bird.configure(cluster.configuration(red, ("10.66.1.0/28",), ("fd66:1::/64",), here4="169.254.0.180"))
    eventually("up at another address", lambda: cluster.up(n1, red.ip, red.ip6), timeout=60)
    eventually("the route again", lambda: reaches(far.ns, "10.66.1.1"))
    n1.ns.run("ip", "address", "del", "169.254.0.180/32", "dev", red.interface)  # and with it the pod's routes
    eventually("the address again", lambda: "169.254.0.180" in n1.ns.run("ip", "address", "show", "dev", red.interface))
    eventually("the pod again", lambda: reaches(far.ns, red.ip) and reaches(far.ns, "10.66.1.1"))
    lab.delete(peer())
    eventually("no session", lambda: red.ip not in cluster.peers(n1))
    assert reaches(far.ns, red.ip)
    assert "169.254" not in n1.ns.run("ip", "address", "show", "dev", red.interface)
    lab.apply(peer())
    eventually("up once more", lambda: cluster.up(n1, red.ip, red.ip6), timeout=60)
    eventually_is("n1 once more", here | {"10.65.2.0/26": f"{n2.ip} eth0"}, lambda: cluster.routes(n1))

    # The pod goes, and with it session and routes, everywhere.
    lab.delete(red.object())
    n1.ns.links.delete_link(red.interface)
    eventually("no session", lambda: cluster.peers(n1).keys() == {n2.ip, n2.ip6})
    eventually_is("n1 without the pod", {"10.65.2.0/26": f"{n2.ip} eth0"}, lambda: cluster.routes(n1))
    eventually_is("n2 without the pod", {"10.65.1.0/26": f"{n1.ip} eth0"}, lambda: cluster.routes(n2))
