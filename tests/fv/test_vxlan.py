"""VXLAN pools: pods of nodes on two subnets reach each other, and who else may use the tunnels.

Theme ``vxlan`` of Calico's felix/fv; devices are in ``test_vxlan_device``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest

from calipy.felix.graph.tunnels import vtep_mac
from calipy.kernel import netns as kernel_netns
from calipy.net import NextHop, Route
from tests.support.felix import pings, until
from tests.support.netns import Namespace
from tests.support.objects import block, make
from tests.support.tunnels import Cluster, TunnelNode, capture, entries, pool, reach, running, vxlan

pytestmark = [pytest.mark.kernel]

VXLAN4 = "vxlan.calico"


@pytest.fixture
def cluster(make_netns: Callable[..., Namespace]) -> Iterator[Cluster]:
    with running(make_netns) as made:
        yield made


@pytest.fixture
def pair(make_netns: Callable[..., Namespace]) -> Iterator[Cluster]:
    """Two nodes on different subnets."""
    with running(make_netns, "n1", "n3") as made:
        yield made


def test_pods_reach_each_other_across_subnets(cluster: Cluster) -> None:
    """Always: every packet between nodes is encapsulated. CrossSubnet: only those that cross the router are."""
    n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
    cluster.become(cluster.objects(*vxlan("Always")))
    assert n1.way("10.65.1.0/26") == "blackhole"
    assert n1.way("10.65.2.0/26") == "10.65.2.0 vxlan.calico"
    assert n1.way("10.65.3.0/26") == "10.65.3.0 vxlan.calico"
    assert n1.way("fd65::300/122") == "fd65::300 vxlan-v6.calico"
    for other in (n2, n3):
        with capture(other.ns) as seen:
            reach(n1.pod.ns, other.pod.address, other.pod.address6)
        assert seen["vxlan"] >= 4
        assert not seen[f"{n1.pod.address}>{other.pod.address}"]
        assert not seen[f"{n1.pod.address6}>{other.pod.address6}"]
    cluster.become(cluster.objects(*vxlan("CrossSubnet")))
    assert n1.way("10.65.2.0/26") == f"{n2.address} eth0"
    assert n1.way("fd65::200/122") == f"{n2.address6} eth0"
    assert n1.way("10.65.3.0/26") == "10.65.3.0 vxlan.calico"
    with capture(n2.ns) as seen:
        reach(n1.pod.ns, n2.pod.address, n2.pod.address6)
    assert seen[f"{n1.pod.address}>{n2.pod.address}"]
    assert seen[f"{n1.pod.address6}>{n2.pod.address6}"]
    assert not seen["vxlan"]
    with capture(n3.ns) as seen:
        reach(n1.pod.ns, n3.pod.address, n3.pod.address6)
    assert seen["vxlan"]
    reach(n1.ns, n3.pod.address)
    reach(n3.ns, n1.pod.address6)


def test_a_removed_node_is_dropped(pair: Cluster) -> None:
    """Its routes, entries and set member go, and what it still sends into the tunnel reaches nobody."""
    n1, n3 = pair["n1"], pair["n3"]
    everything = pair.objects(*vxlan("Always"))
    pair.become(everything)
    reach(n3.pod.ns, n1.pod.address)
    assert n1.felix is not None
    gone = [(key, None) for key, _ in everything if getattr(key, "name", "") == "n3" or "10.65.3." in str(key)]
    assert len(gone) == 2
    n1.felix.events(*gone, revision=100)
    until(lambda: n1.felix is not None and n1.felix.status().applied_revision >= 100)
    assert n1.way("10.65.3.0/26") == ""
    assert entries(n1) == ({}, {})
    assert n3.address not in n1.ns.run("ipset", "list", "cali40all-vxlan-net")
    with capture(n1.pod.ns) as seen:
        assert not pings(n3.pod.ns, n1.pod.address)
    assert not seen[f"{n3.pod.address}>{n1.pod.address}"]


def test_external_nodes_may_send_into_the_tunnel(pair: Cluster) -> None:
    """VXLAN from an address that is no node's is dropped, unless ExternalNodesCIDRList has it."""
    n1, n3 = pair["n1"], pair["n3"]
    pair.become(pair.objects(*vxlan("Always")))
    n3.ns.address("eth0", "172.31.2.99/24")
    with capture(n1.pod.ns) as seen:
        for _ in range(3):
            n3.ns.call(_send_vxlan, "172.31.2.99", n1, n3)
        reach(n3.pod.ns, n1.pod.address)
    assert not seen[f"10.65.3.77>{n1.pod.address}"]
    external = make("FelixConfiguration", "default", {"externalNodesList": ["172.31.2.96/27"]})
    pair.become([*pair.objects(*vxlan("Always")), external])
    assert "172.31.2.96/27" in n1.ns.run("ipset", "list", "cali40all-hosts-net")

    def arrives() -> bool:
        with capture(n1.pod.ns) as seen:
            n3.ns.call(_send_vxlan, "172.31.2.99", n1, n3)
            pings(n3.pod.ns, n1.pod.address)
        return bool(seen[f"10.65.3.77>{n1.pod.address}"])

    until(arrives)


def _send_vxlan(source: str, target: TunnelNode, sender: TunnelNode) -> None:
    """An encapsulated UDP packet from 10.65.3.77 to the target's pod."""
    payload = struct.pack("!HHHH", 5000, 5001, 8, 0)
    inner = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0)
    inner += socket.inet_aton("10.65.3.77") + socket.inet_aton(target.pod.address)
    total = sum(struct.unpack("!10H", inner))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    inner = inner[:10] + struct.pack("!H", checksum) + inner[12:]
    macs = bytes.fromhex(vtep_mac("n1", 4).replace(":", "")) + bytes.fromhex(vtep_mac(sender.name, 4).replace(":", ""))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        header = struct.pack("!II", 0x08000000, 4096 << 8)
        sock.sendto(header + macs + b"\x08\x00" + inner + payload, (target.address, 4789))


def test_what_the_node_sends_gets_the_tunnels_address(pair: Cluster) -> None:
    """From another local address into the tunnel: the tunnel's address, and for UDP no port below or at VXLAN's."""
    n1, n3 = pair["n1"], pair["n3"]
    pair.become(pair.objects(*vxlan("Always")))
    with n3.pod.ns.call(_bound, n3.pod.address) as udp:
        port = udp.getsockname()[1]

        def source() -> tuple[str, int] | None:
            n1.ns.call(_send_from, n1.address, (n3.pod.address, port))
            try:
                found: tuple[str, int] = udp.recvfrom(16)[1]
            except TimeoutError:
                return None
            return found

        address, source_port = until(source)
        assert address == "10.65.1.0"
        assert source_port > 4789


def _bound(address: str) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.bind((address, 0))
    found.settimeout(0.5)
    return found


def _send_from(source: str, target: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 2000))
        sock.sendto(b"hello", target)


def test_pods_cannot_send_into_tunnels(pair: Cluster) -> None:
    """A pod that talks VXLAN or IPIP to a node is stopped at its own, unless the configuration allows it."""
    n1, n3 = pair["n1"], pair["n3"]
    pair.become(pair.objects(*vxlan("Always")))
    pod = n1.pod

    def leaks() -> bool:
        with capture(n3.ns) as seen:
            pod.ns.call(_send_plain, n3.address)
            reach(pod.ns, n3.address)
        return bool(seen[f"vxlan {pod.address}"])

    with capture(pod.ns) as sent:
        assert not leaks()
    assert sent["vxlan"]
    allowed = make("FelixConfiguration", "default", {"allowVXLANPacketsFromWorkloads": True})
    pair.become([*pair.objects(*vxlan("Always")), allowed])
    until(leaks)


def _send_plain(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", (address, 4789))


def test_policy_of_the_host_does_not_judge_tunnels(pair: Cluster) -> None:
    """A host endpoint that denies everything stops the node's own traffic and not the pods' encapsulated packets."""
    n1, n3 = pair["n1"], pair["n3"]
    spec = {"node": "n1", "interfaceName": "eth0", "expectedIPs": [n1.address]}
    pair.become([*pair.objects(*vxlan("Always")), make("HostEndpoint", "n1-eth0", spec)])
    assert not pings(n3.ns, n1.address)
    reach(n1.pod.ns, n3.pod.address)
    reach(n3.pod.ns, n1.pod.address)


def test_borrowed_and_single_addresses(cluster: Cluster) -> None:
    """A pod with an address out of another node's block, and a node whose tunnel address is one, are reached."""
    n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
    borrower = cluster.pod("n3", "10.65.2.40")
    single = cluster.pod("n2", "10.66.0.7")
    lends = block("10.65.2.0/26", "n2", _40="n3", _41="n3")
    state = dict(cluster.objects(*vxlan("Always"), pool("10.66.0.0/24", "single", vxlanMode="Always"), n2=lends))
    state |= dict([n3.object(ipv4VXLANTunnelAddr="10.65.2.41"), block("10.66.0.7/32", "n2", _0="n2")])
    cluster.become(state.items())
    assert n1.way("10.65.2.40/32") == "10.65.2.41 vxlan.calico"
    assert n1.way("10.65.2.41/32") == "direct vxlan.calico"
    assert n1.way("10.66.0.7/32") == "10.65.2.0 vxlan.calico"
    assert n2.way("10.65.2.40/32") == "10.65.2.41 vxlan.calico"
    assert n3.way("10.65.2.40/32") == ""
    assert n2.way("10.66.0.7/32") == ""
    reach(n1.pod.ns, borrower.address, single.address)
    reach(n2.pod.ns, borrower.address)
    reach(n3.pod.ns, single.address, n2.pod.address)
    reach(n1.ns, borrower.address)


def test_a_node_whose_address_is_on_its_loopback(pair: Cluster) -> None:
    """As in fabrics where every link is routed: the routes tell by which link encapsulated packets leave."""
    n1, n3 = pair["n1"], pair["n3"]
    n1.ns.address("lo", "172.31.100.1/32")
    pair.router.run("ip", "route", "add", "172.31.100.1/32", "via", n1.address)
    state = dict(pair.objects(*vxlan("CrossSubnet")))
    key, _ = n1.object()
    state[key] = n1.object(bgp={"ipv4Address": "172.31.100.1/32"})[1]
    pair.become(state.items())
    with capture(n3.ns) as seen:
        reach(n1.pod.ns, n3.pod.address)
    assert seen["vxlan 172.31.100.1"]


def test_routes_change_without_loss(cluster: Cluster) -> None:
    """From Always to CrossSubnet and back while pods talk: the routes are replaced in place."""
    n1, n2 = cluster["n1"], cluster["n2"]
    cluster.become(cluster.objects(*vxlan("Always")))
    found = Route(
        ipaddress.ip_network("10.65.2.0/26"),
        next_hops=(NextHop(ipaddress.ip_address("10.65.2.0"), VXLAN4, onlink=True),),
    )
    assert n1.routes()["10.65.2.0/26"] == found
    reach(n1.pod.ns, n2.pod.address)
    argv = ["ping", "-n", "-q", "-i", "0.01", "-c", "150", "-W", "2", n2.pod.address]
    with program(n1.pod.ns, argv) as finish:
        for mode, way in (("CrossSubnet", f"{n2.address6} eth0"), ("Always", "fd65::200 vxlan-v6.calico")) * 2:
            cluster.become(cluster.objects(*vxlan(mode)))
            assert n1.way("fd65::200/122") == way
        printed = finish()
    assert ", 0% packet loss" in printed


@contextlib.contextmanager
def program(namespace: Namespace, argv: list[str]) -> Iterator[Callable[[], str]]:
    """A program inside a namespace; calling the value waits for its end and gives what it printed."""
    process = kernel_netns.run_in(namespace.fd, subprocess.Popen, argv, stdout=subprocess.PIPE, text=True)
    try:
        yield lambda: process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
