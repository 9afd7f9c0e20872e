"""VXLAN devices and what belongs to them, as the kernel and ``ip`` see them; and Felix's edge to them."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json

import pytest

from calipy.errors import KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.dataplane.tunnels import Tunnels
from calipy.felix.messages import VTEP, Encapsulation, Host
from calipy.kernel.links import Neighbour
from calipy.kernel.vxlan import VXLAN, FDBEntry, VXLANs
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel]

MAC, FAR_MAC = "66:00:00:00:00:01", "66:00:00:00:00:02"


@pytest.fixture
def uplink(netns: Namespace) -> int:
    netns.links.create_bridge("eth0")
    netns.address("eth0", "172.31.0.1/24")
    return netns.netlink.index_of("eth0")


@pytest.mark.parametrize("local", ["172.31.0.1", "fd31::1"])
def test_a_device_is_what_was_asked_for(netns: Namespace, uplink: int, local: str) -> None:
    """VNI, port, parent, local address, MAC and MTU, without learning: read back by us and by ``ip``."""
    devices = VXLANs(netns.netlink)
    wanted = VXLAN(4096, 4789, uplink, ipaddress.ip_address(local), MAC)
    devices.create("vxlan.calico", wanted, mtu=1430)
    assert devices.get("vxlan.calico") == wanted
    (shown,) = json.loads(netns.run("ip", "-j", "-d", "link", "show", "dev", "vxlan.calico"))
    data = shown["linkinfo"]["info_data"]
    found = (data["id"], data["port"], data["link"], data.get("local") or data["local6"], data["learning"])
    assert found == (4096, 4789, "eth0", local, False)
    assert (shown["mtu"], shown["address"]) == (1430, MAC)
    netns.links.set_mtu("vxlan.calico", 1400)
    link = netns.links.get_link("vxlan.calico")
    assert link is not None
    assert link.mtu == 1400


def test_what_is_no_vxlan_device(netns: Namespace, uplink: int) -> None:
    """Neither a missing interface nor one of another kind; and a name cannot be taken twice."""
    devices = VXLANs(netns.netlink)
    assert devices.get("vxlan.calico") is None
    assert devices.get("eth0") is None
    with pytest.raises(KernelError) as refused:
        devices.create("eth0", VXLAN(4096, 4789, uplink, None, MAC), mtu=1450)
    assert refused.value.code == errno.EEXIST


def test_entries_of_both_tables_come_and_go(netns: Namespace, uplink: int) -> None:
    """An FDB entry of a MAC is replaced, not doubled; what is not there any more says so."""
    devices = VXLANs(netns.netlink)
    devices.create("vxlan.calico", VXLAN(4096, 4789, uplink, None, MAC), mtu=1450)
    netns.links.set_up("vxlan.calico")
    first, second = (FDBEntry(FAR_MAC, ipaddress.ip_address(f"172.31.0.{n}")) for n in (2, 3))
    assert devices.set_fdb("vxlan.calico", [first]) == [0]
    assert devices.set_fdb("vxlan.calico", [second]) == [0]
    assert devices.list_fdb("vxlan.calico") == [second]
    assert devices.delete_fdb("vxlan.calico", [second, second]) == [0, errno.ENOENT]
    assert devices.list_fdb("vxlan.calico") == []
    neighbour = Neighbour("vxlan.calico", ipaddress.ip_address("10.65.2.0"), FAR_MAC)
    assert netns.links.set_neighbours([neighbour]) == [0]
    assert neighbour in netns.links.list_neighbours(interface="vxlan.calico")
    assert netns.links.delete_neighbours([neighbour, neighbour]) == [0, errno.ENOENT]
    assert neighbour not in netns.links.list_neighbours(interface="vxlan.calico")


def felixs_tunnels(netns: Namespace) -> Tunnels:
    """Felix's edge, with the device of a node made."""
    tunnels: Tunnels = netns.call(Tunnels, FelixConfig(encapsulation=Encapsulation(vxlan=True)), None)
    vtep = VTEP(MAC, "10.65.1.0", "172.31.0.1", local=True)
    tunnels.update({"n1": Host("n1", "172.31.0.1", local=True)}, {("n1", 4): vtep})
    tunnels.write(0)
    assert tunnels.devices_changed
    assert netns.links.get_link("vxlan.calico")
    return tunnels


@pytest.mark.usefixtures("uplink")
def test_a_device_goes_before_the_rules_that_guard_it(netns: Namespace) -> None:
    """New parameters without VXLAN remove it at once; rules are written after that, and could not let anybody in."""
    with contextlib.closing(felixs_tunnels(netns)) as tunnels:
        tunnels.reconfigure(FelixConfig())
        assert netns.links.get_link("vxlan.calico") is None


@pytest.mark.usefixtures("uplink")
def test_an_address_that_is_gone_for_a_moment_changes_nothing(netns: Namespace) -> None:
    """The device stays with its parent until another interface has the node's address, or the parent is gone."""
    with contextlib.closing(felixs_tunnels(netns)) as tunnels:
        before = VXLANs(netns.netlink).get("vxlan.calico")
        netns.links.delete_address("eth0", ipaddress.ip_interface("172.31.0.1/24"))
        tunnels.resync()
        tunnels.write(1)
        assert (tunnels.nics, tunnels.warnings) == ({4: "eth0"}, [])
        assert VXLANs(netns.netlink).get("vxlan.calico") == before
        netns.links.delete_link("eth0")
        tunnels.resync()
        tunnels.write(2)
        assert tunnels.nics == {}
        assert "no interface has the node's address 172.31.0.1" in tunnels.warnings[0]
