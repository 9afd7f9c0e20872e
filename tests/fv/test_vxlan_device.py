"""VXLAN devices: made, mended, moved, removed, and taken over from the real Felix.

Theme ``vxlan`` of Calico's felix/fv.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from calipy.errors import KernelError
from calipy.felix.graph.tunnels import vtep_mac
from calipy.kernel.links import Neighbour
from calipy.kernel.vxlan import VXLAN, FDBEntry, VXLANs
from tests.support.felix import until
from tests.support.netns import Namespace
from tests.support.objects import make
from tests.support.tunnels import Cluster, TunnelNode, entries, pool, reach, running, vxlan

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


def device(node: TunnelNode, name: str = VXLAN4) -> dict[str, Any]:
    """A device as ``ip`` shows it, {} if there is none."""
    found = [link for link in json.loads(node.ns.run("ip", "-j", "-d", "link", "show")) if link["ifname"] == name]
    return dict(found[0]) if found else {}


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
    with contextlib.suppress(KernelError):  # Felix may be faster
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
