"""What the kernel has to know of the other nodes, and how large packets may be."""

from __future__ import annotations

import ipaddress

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.messages import VTEP, VTEPID, Encapsulation
from calipy.felix.mtu import FALLBACK, mtus
from calipy.felix.tunnels import Entries, difference, entries
from calipy.kernel.links import Link, Neighbour
from calipy.kernel.vxlan import FDBEntry

N1 = VTEP("66:00:00:00:00:01", "10.65.1.0", "172.31.0.1", local=True)
N2 = VTEP("66:00:00:00:00:02", "10.65.2.0", "172.31.0.2")
N3 = VTEP("66:00:00:00:00:03", "10.65.3.0", "172.31.0.3")


def neighbour(vtep: VTEP) -> Neighbour:
    return Neighbour("vxlan.calico", ipaddress.ip_address(vtep.address), vtep.mac)


def forwarding(vtep: VTEP) -> FDBEntry:
    return FDBEntry(vtep.mac, ipaddress.ip_address(vtep.parent))


def test_every_other_node_has_an_entry_in_each_table() -> None:
    """Its tunnel address has its MAC, its MAC its own address; not this node's, nor the other family's."""
    six = VTEP("66:00:00:00:00:06", "fd65::2", "fd31::2")
    vteps: dict[VTEPID, VTEP] = {("n1", 4): N1, ("n2", 4): N2, ("n3", 4): N3, ("n2", 6): six}
    found = entries(vteps, 4, "vxlan.calico")
    assert found == Entries(frozenset({neighbour(N2), neighbour(N3)}), frozenset({forwarding(N2), forwarding(N3)}))


def test_two_nodes_with_one_tunnel_address() -> None:
    """The first by name has it, whatever the order in which they came."""
    twin = VTEP("66:00:00:00:00:04", N2.address, "172.31.0.4")
    for order in ([("n2", N2), ("n4", twin)], [("n4", twin), ("n2", N2)]):
        found = entries({(name, 4): vtep for name, vtep in order}, 4, "vxlan.calico")
        assert found.neighbours == {neighbour(N2)}


def test_what_is_replaced_is_not_removed() -> None:
    """A tunnel address with a new MAC is one write: removing the old entry after it would remove the new one."""
    changed = VTEP("66:00:00:00:00:99", N2.address, N2.parent)
    desired = entries({("n2", 4): changed}, 4, "vxlan.calico")
    actual = entries({("n2", 4): N2, ("n3", 4): N3}, 4, "vxlan.calico")
    work = difference(desired, actual)
    assert work.set_neighbours == [neighbour(changed)]
    assert work.delete_neighbours == [neighbour(N3)]
    assert work.set_fdb == [forwarding(changed)]
    assert set(work.delete_fdb) == {forwarding(N2), forwarding(N3)}
    assert difference(desired, desired) == ([], [], [], [])


def link(name: str, mtu: int, *, running: bool = True) -> Link:
    return Link(1, name, mtu=mtu, up=running, running=running)


@pytest.mark.parametrize(
    ("uses", "given", "pod"),
    [
        ({}, {}, 1500),
        ({"ipip": True}, {}, 1480),
        ({"vxlan": True}, {}, 1450),
        ({"vxlan": True, "vxlan6": True}, {}, 1430),
        ({"ipip": True, "vxlan": True}, {}, 1450),
        ({"vxlan": True}, {"vxlan_mtu": 8950}, 8950),
        ({"ipip": True, "vxlan": True}, {"vxlan_mtu": 8950}, 1480),
        ({}, {"vxlan_mtu": 1200, "ipip_mtu": 1200}, 1500),
    ],
)
def test_the_pods_mtu(uses: dict[str, bool], given: dict[str, int], pod: int) -> None:
    """The least of the encapsulations in use, by configuration or by what each adds to a packet."""
    config = FelixConfig(encapsulation=Encapsulation(**uses), **given)  # type: ignore[arg-type]
    assert mtus(config, [link("eth0", 1500), link("lo", 65536)]).pod == pod


def test_which_links_count() -> None:
    """Those that look physical and are up; without any, what fits everywhere."""
    config = FelixConfig()
    links = [link("enp3s0", 9000), link("eth1", 1400, running=False), link("cali1", 1300), link("wlan0", 2000)]
    assert mtus(config, links).host == 2000
    assert mtus(config, [link("cali1", 1300), link("docker0", 1200)]).host == FALLBACK
    pattern = FelixConfig.from_parameters({"MTUIfacePattern": "^docker"})
    assert mtus(pattern, [link("eth0", 1500), link("docker0", 1200)]).host == 1200
    broken = FelixConfig.from_parameters({"MTUIfacePattern": "("})
    assert [name for name, _, _ in broken.problems] == ["MTUIfacePattern"]
