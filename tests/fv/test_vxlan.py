"""VXLAN pools: pods of nodes on two subnets reach each other, and devices, entries, routes, rules are what they should.

Theme ``vxlan`` of Calico's felix/fv.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from calipy.felix.graph.tunnels import vtep_mac
from calipy.kernel import netns as kernel_netns
from calipy.kernel.links import Neighbour
from calipy.kernel.vxlan import VXLAN, FDBEntry, VXLANs
from calipy.net import NextHop, Route
from tests.support.felix import pings, until
from tests.support.netns import Namespace
from tests.support.objects import block, make
from tests.support.tunnels import Cluster, TunnelNode, capture, pool, vxlan

pytestmark = [pytest.mark.kernel]

VXLAN4 = "vxlan.calico"


@pytest.fixture
def cluster(make_netns: Callable[..., Namespace]) -> Iterator[Cluster]:
    with running(make_netns, "n1", "n2", "n3") as made:
        yield made


@pytest.fixture
def pair(make_netns: Callable[..., Namespace]) -> Iterator[Cluster]:
    """Two nodes on different subnets."""
    with running(make_netns, "n1", "n3") as made:
        yield made


@contextlib.contextmanager
def running(make_netns: Callable[..., Namespace], *names: str) -> Iterator[Cluster]:
    made = Cluster(make_netns, names)
    try:
        for name in names:
            made.pod(name)
            made[name].start()
        yield made
    finally:
        made.close()


def reach(source: Namespace, *addresses: str) -> None:
    """All addresses answer, at the latest when neighbours have been found."""
    for address in addresses:
        assert until(lambda address=address: pings(source, address)), address


def device(node: TunnelNode, name: str = VXLAN4) -> dict[str, Any]:
    """A device as ``ip`` shows it, {} if there is none."""
    found = [link for link in json.loads(node.ns.run("ip", "-j", "-d", "link", "show")) if link["ifname"] == name]
    return dict(found[0]) if found else {}


def entries(node: TunnelNode) -> tuple[dict[str, str], dict[str, str]]:
    """Permanent neighbours of the IPv4 device, and its forwarding entries."""
    neighbours = node.ns.links.list_neighbours(interface=VXLAN4)
    fdb = VXLANs(node.ns.netlink).list_fdb(VXLAN4)
    found = {str(entry.address): entry.mac for entry in neighbours if entry.state == 0x80}
    return found, {entry.mac: str(entry.address) for entry in fdb}


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


def test_the_device_is_what_felix_makes(pair: Cluster) -> None:
    """VNI, port, parent, address, MAC, no learning, MTU; configured values; an entry per node in each table."""
    n1, n3 = pair["n1"], pair["n3"]
    pair.become(pair.objects(*vxlan("Always")))
    for name, family, mtu, local in ((VXLAN4, 4, 1450, n1.address), ("vxlan-v6.calico", 6, 1430, n1.address6)):
        shown = device(n1, name)
        data = shown["linkinfo"]["info_data"]
        assert (shown["mtu"], shown["address"]) == (mtu, vtep_mac("n1", 4 if family == 4 else 6))
        assert (data["id"], data["port"], data["link"], data["learning"]) == (4096, 4789, "eth0", False)
        assert data.get("local", data.get("local6")) == local
    own = [str(found.address) for found in n1.ns.links.list_addresses(family=4, interface=VXLAN4)]
    assert own == ["10.65.1.0/32"]
    assert entries(n1) == ({"10.65.3.0": vtep_mac("n3", 4)}, {vtep_mac("n3", 4): n3.address})
    settings = make("FelixConfiguration", "default", {"vxlanVNI": 99, "vxlanPort": 4799, "vxlanMTU": 1300})
    routes = n1.routes()
    pair.become([*pair.objects(*vxlan("Always")), settings])
    assert n1.routes() == routes  # the kernel dropped them with the old device
    shown = device(n1)
    data = shown["linkinfo"]["info_data"]
    assert (data["id"], data["port"], shown["mtu"]) == (99, 4799, 1300)
    reach(n1.pod.ns, n3.pod.address)


def test_damage_is_healed_and_told(pair: Cluster) -> None:
    """A device deleted, made otherwise, taken down; addresses and entries removed or added: all as it was."""
    n1, n3 = pair["n1"], pair["n3"]
    assert n1.felix is not None
    pair.become(pair.objects(*vxlan("Always")))
    whole, routes = entries(n1), n1.routes()
    n1.ns.links.delete_link(VXLAN4)
    until(lambda: device(n1) and entries(n1) == whole and n1.routes() == routes)
    n1.ns.links.delete_link(VXLAN4)
    index = n1.ns.netlink.index_of("eth0")
    with contextlib.suppress(Exception):  # Felix may be faster
        VXLANs(n1.ns.netlink).create(VXLAN4, VXLAN(7, 4789, index, None, "66:00:00:00:00:01"), mtu=1400)
    until(lambda: device(n1).get("linkinfo", {}).get("info_data", {}).get("id") == 4096 and n1.routes() == routes)
    far = Neighbour(VXLAN4, ipaddress.ip_address("10.65.3.0"), vtep_mac("n3", 4))
    n1.ns.links.delete_neighbours([far])
    n1.ns.links.set_neighbours([Neighbour(VXLAN4, ipaddress.ip_address("10.65.9.0"), "66:00:00:00:00:09")])
    VXLANs(n1.ns.netlink).set_fdb(VXLAN4, [FDBEntry("66:00:00:00:00:09", ipaddress.ip_address("172.31.1.9"))])
    n1.ns.run("ip", "address", "flush", "dev", VXLAN4)
    n1.ns.run("ip", "address", "add", "10.65.1.99/32", "dev", VXLAN4)
    n1.ns.links.set_down(VXLAN4)
    until(lambda: entries(n1) == whole and n1.routes() == routes)
    until(lambda: [str(a.address) for a in n1.ns.links.list_addresses(family=4, interface=VXLAN4)] == ["10.65.1.0/32"])
    reach(n1.pod.ns, n3.pod.address)
    told = {(difference.place, difference.name) for difference in n1.felix.status().drift}
    assert ("interface", VXLAN4) in told


def test_another_networks_device_is_in_the_way(pair: Cluster) -> None:
    """A foreign device with our VNI and port: the node is not ready, says why, and goes on when it is gone."""
    n1 = pair["n1"]
    assert n1.felix is not None
    foreign = VXLAN(4096, 4789, n1.ns.netlink.index_of("eth0"), None, "66:00:00:00:00:01")
    VXLANs(n1.ns.netlink).create("flannel.1", foreign, mtu=1400)
    pair.become(pair.objects(*vxlan("Always")), to=["n3"])
    n1.felix.events(*pair.objects(*vxlan("Always")), revision=60)
    felix = n1.felix
    until(lambda: any(VXLAN4 in reason for reason in felix.status().reasons))
    n1.ns.links.delete_link("flannel.1")
    until(lambda: felix.status().ready and felix.status().applied_revision >= 60)
    reach(n1.pod.ns, pair["n3"].pod.address)


def test_everything_goes_with_the_mode(pair: Cluster) -> None:
    """Pools without encapsulation: devices, routes, blackholes, rules are gone; also what an earlier agent left."""
    n1 = pair["n1"]
    pair.become(pair.objects(*vxlan("Always")))
    raw = n1.ns.run("iptables-nft-save", "-t", "raw").splitlines()
    untracked = [line.split()[1] for line in raw if "--dport 4789" in line and line.endswith("-j NOTRACK")]
    assert untracked == ["cali-OUTPUT", "cali-PREROUTING"]
    assert "vxlan.calico" in n1.ns.run("iptables-nft-save", "-t", "nat")
    pair.become(pair.objects(pool(), pool("fd65::/112", "pool6")))
    assert not device(n1)
    assert not device(n1, "vxlan-v6.calico")
    assert not n1.routes()
    for family in ("iptables", "ip6tables"):
        for table in ("filter", "raw", "nat"):
            rules = n1.ns.run(f"{family}-nft-save", "-t", table).splitlines()
            assert not [line for line in rules if "vxlan" in line.lower() and "originating in workloads" not in line]
    pair.become(pair.objects(*vxlan("Always")))
    assert n1.felix is not None
    n1.felix.kill()
    assert device(n1)
    n1.start()
    pair.become(pair.objects(pool(), pool("fd65::/112", "pool6")), to=["n3"])
    pair.tell("n1")
    assert not device(n1)
    assert not n1.routes()


def test_the_node_moves_to_another_interface(cluster: Cluster) -> None:
    """Its address on another NIC (a bond, say): the device has a new parent, and same-subnet routes move along."""
    n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
    cluster.become(cluster.objects(*vxlan("CrossSubnet")))
    cluster.connect(n1, "bond0", 1)
    n1.ns.run("ip", "address", "del", f"{n1.address}/24", "dev", "eth0")
    n1.ns.run("ip", "-6", "address", "del", f"{n1.address6}/64", "dev", "eth0")
    n1.ns.address("bond0", f"{n1.address}/24")
    n1.ns.address("bond0", f"{n1.address6}/64")
    n1.ns.run("ip", "route", "add", "default", "via", "172.31.1.254")
    n1.ns.run("ip", "-6", "route", "replace", "default", "via", "fd31:1::fe")
    until(lambda: n1.way("10.65.2.0/26") == f"{n2.address} bond0")
    until(lambda: n1.way("fd65::200/122") == f"{n2.address6} bond0")
    until(lambda: device(n1).get("linkinfo", {}).get("info_data", {}).get("link") == "bond0")
    until(lambda: n1.way("10.65.3.0/26") == "10.65.3.0 vxlan.calico")
    n1.ns.links.delete_link("eth0")
    n2.ns.run("ip", "neigh", "flush", "all")
    reach(n1.pod.ns, n2.pod.address, n3.pod.address, n2.pod.address6, n3.pod.address6)


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


def test_the_device_of_the_real_felix_is_taken_over(make_netns: Callable[..., Namespace]) -> None:
    """Device and entries as Felix made them stay as they are; its routes become ours, without a gap."""
    made = Cluster(make_netns, ("n1", "n3"))
    n1, n3 = made["n1"], made["n3"]
    for name in ("n1", "n3"):
        made.pod(name)
    uplink = n1.ns.netlink.index_of("eth0")
    devices = VXLANs(n1.ns.netlink)
    devices.create(VXLAN4, VXLAN(4096, 4789, uplink, ipaddress.ip_address(n1.address), vtep_mac("n1", 4)), mtu=1450)
    n1.ns.address(VXLAN4, "10.65.1.0/32")
    n1.ns.run("ip", "route", "add", "10.65.3.0/26", "via", "10.65.3.0", "dev", VXLAN4, "onlink", "mtu", "1450")
    n1.ns.run("ip", "route", "add", "10.65.77.0/26", "via", "10.65.77.0", "dev", VXLAN4, "onlink")
    n1.ns.run("ip", "route", "add", "blackhole", "10.65.1.0/26", "proto", "80")
    index = n1.ns.netlink.index_of(VXLAN4)
    try:
        n1.start()
        n3.start()
        made.become(made.objects(*vxlan("Always")))
        assert n1.ns.netlink.index_of(VXLAN4) == index
        assert n1.way("10.65.3.0/26") == "10.65.3.0 vxlan.calico"
        assert n1.way("10.65.1.0/26") == "blackhole"
        assert "10.65.77.0/26" not in n1.routes(protocol=None)
        reach(n1.pod.ns, n3.pod.address)
    finally:
        made.close()


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
    argv = ["ping", "-n", "-q", "-i", "0.01", "-c", "300", "-W", "2", n2.pod.address]
    with kernel_netns_process(n1.pod.ns, argv) as finish:
        for mode, way in (("CrossSubnet", f"{n2.address6} eth0"), ("Always", "fd65::200 vxlan-v6.calico")) * 2:
            cluster.become(cluster.objects(*vxlan(mode)))
            assert n1.way("fd65::200/122") == way
        printed = finish()
    assert ", 0% packet loss" in printed


@contextlib.contextmanager
def kernel_netns_process(namespace: Namespace, argv: list[str]) -> Iterator[Callable[[], str]]:
    """A program inside a namespace; calling the value waits for its end and gives what it printed."""
    process = kernel_netns.run_in(namespace.fd, subprocess.Popen, argv, stdout=subprocess.PIPE, text=True)
    try:
        yield lambda: process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
