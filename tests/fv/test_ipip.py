"""IPIP pools: routes, rules, and tunnels where the kernel has them. Theme ``ipip`` of Calico's felix/fv."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from calipy.errors import KernelError
from calipy.kernel.links import Links
from calipy.kernel.netlink import NetlinkSocket
from tests.support.felix import until
from tests.support.netns import Namespace
from tests.support.objects import make
from tests.support.tunnels import Cluster, capture, pool, reach, running

pytestmark = [pytest.mark.kernel]

ALWAYS, CROSS = pool(ipipMode="Always"), pool(ipipMode="CrossSubnet")


def _driver(netns: Namespace) -> str:
    """Why the kernel cannot make IPIP tunnels, "" if it can."""
    with NetlinkSocket(netns_fd=netns.fd) as netlink:
        try:
            Links(netlink).create_ipip("tunl0")
        except KernelError as error:
            return str(error)
    return ""


@pytest.fixture
def cluster(make_netns: Callable[..., Namespace]) -> Iterator[Cluster]:
    with running(make_netns) as made:
        yield made


@pytest.fixture
def tunnels(netns: Namespace) -> None:
    if reason := _driver(netns):
        pytest.skip(f"no IPIP on this kernel: {reason}")


@pytest.mark.usefixtures("tunnels")
def test_pods_reach_each_other_across_subnets(cluster: Cluster) -> None:
    """Always: every packet between nodes is encapsulated. CrossSubnet: only those that cross the router are."""
    n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
    cluster.become(cluster.objects(ALWAYS))
    for other in (n2, n3):
        assert n1.way(f"10.65.{other.name[1:]}.0/26") == f"{other.address} tunl0"
        with capture(other.ns) as seen:
            reach(n1.pod.ns, other.pod.address)
        assert seen["ipip"]
        assert not seen[f"{n1.pod.address}>{other.pod.address}"]
    link = n1.ns.links.get_link("tunl0")
    assert link is not None
    assert link.mtu == 1480
    assert [str(a.address) for a in n1.ns.links.list_addresses(family=4, interface="tunl0")] == ["10.65.1.0/32"]
    cluster.become(cluster.objects(CROSS))
    with capture(n2.ns) as seen:
        reach(n1.pod.ns, n2.pod.address)
    assert not seen["ipip"]
    cluster.become(cluster.objects(pool()))
    assert not n1.ns.links.list_addresses(family=4, interface="tunl0")


def test_on_one_subnet_no_driver_is_needed(cluster: Cluster) -> None:
    """CrossSubnet: nodes on the subnet are reached directly, own blocks are blackholes, with or without tunnels."""
    n1, n2 = cluster["n1"], cluster["n2"]
    cluster.become(cluster.objects(CROSS))
    assert n1.way("10.65.2.0/26") == f"{n2.address} eth0"
    assert n1.way("10.65.1.0/26") == "blackhole"
    with capture(n2.ns) as seen:
        reach(n1.pod.ns, n2.pod.address)
    assert seen[f"{n1.pod.address}>{n2.pod.address}"]
    assert not seen["ipip"]
    cluster.become(
        [*cluster.objects(CROSS), make("FelixConfiguration", "default", {"programClusterRoutes": "Disabled"})]
    )
    assert not n1.routes()


def test_the_device_gets_what_routes_need(cluster: Cluster) -> None:
    """Address, MTU, up, and routes by the other nodes' addresses; a bridge of the device's name shows that anywhere."""
    n1, n3 = cluster["n1"], cluster["n3"]
    if n1.ns.links.get_link("tunl0") is None:
        n1.ns.links.create_bridge("tunl0")
        n1.ns.address("tunl0", "10.65.1.77/32")
    cluster.become([*cluster.objects(ALWAYS), make("FelixConfiguration", "default", {"ipipMTU": 1400})])
    assert [str(a.address) for a in n1.ns.links.list_addresses(family=4, interface="tunl0")] == ["10.65.1.0/32"]
    link = n1.ns.links.get_link("tunl0")
    assert link is not None
    assert (link.mtu, link.up) == (1400, True)
    if link.kind == "bridge":  # without a port it does not run, and routes wait for that
        cluster.connect(n1, "port0", 1)
        n1.ns.links.set_master("port0", "tunl0")
    until(lambda: n1.way("10.65.3.0/26") == f"{n3.address} tunl0")
    assert n1.way("10.65.2.0/26") == f"{cluster['n2'].address} tunl0"


def test_without_the_driver_the_node_says_so(cluster: Cluster, netns: Namespace) -> None:
    """A kernel without IPIP: nothing is written that cannot work, nothing fails, and the status tells why."""
    if not _driver(netns):
        pytest.skip("this kernel has IPIP")
    n1 = cluster["n1"]
    cluster.become(cluster.objects(ALWAYS))
    assert n1.felix is not None
    status = n1.felix.status()
    assert status.ready
    assert any("IPIP" in warning for warning in status.warnings)
    assert n1.way("10.65.2.0/26") == ""
    assert n1.way("10.65.1.0/26") == "blackhole"
    cluster.become(cluster.objects(pool()))
    assert not n1.felix.status().warnings


def test_only_nodes_may_send(cluster: Cluster) -> None:
    """Protocol 4 is accepted from nodes of the cluster and external ones, dropped from others; gone with the mode."""
    n1 = cluster["n1"]
    external = make("FelixConfiguration", "default", {"externalNodesList": ["172.31.2.96/27"]})
    cluster.become([*cluster.objects(ALWAYS), external])
    rules = n1.ns.run("iptables-nft-save", "-t", "filter")
    assert "Allow IPIP packets from Calico hosts" in rules
    assert "Drop IPIP packets from non-Calico hosts" in rules
    members = n1.ns.run("ipset", "list", "cali40all-hosts-net")
    for member in (*(node.address for node in cluster.nodes.values()), "172.31.2.96/27"):
        assert member in members
    cluster.become([*cluster.objects(ALWAYS), make("FelixConfiguration", "default", {"ipipEnabled": False})])
    assert "IPIP packets from" not in n1.ns.run("iptables-nft-save", "-t", "filter")
    assert not n1.routes()
