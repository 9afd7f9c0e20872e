"""Links, addresses and neighbours: written by us, seen by ``ip``."""

from __future__ import annotations

import errno
import json
import os
from ipaddress import ip_address, ip_interface

import pytest

from calipy.errors import InvalidInputError, KernelError
from calipy.kernel.links import Links, Neighbour, VethEnd, format_mac, parse_mac
from calipy.kernel.netlink import NetlinkSocket
from calipy.net import HOST_MAC
from tests.support.netns import connect

pytestmark = pytest.mark.kernel


def test_one_message_creates_a_pair_in_two_namespaces(make_netns):
    """Both ends appear under their final names, MACs and MTU, in the namespaces named, never in a third one."""
    one, two, third = make_netns("one"), make_netns("two"), make_netns("third")
    third.links.create_veth(
        VethEnd("eth0", one.fd, mac="02:00:00:00:00:01", mtu=1400), VethEnd("cali0", two.fd, mac=HOST_MAC, mtu=1400)
    )
    here, there = one.links.get_link("eth0"), two.links.get_link("cali0")
    assert (here.mac, here.mtu, here.kind, here.up) == ("02:00:00:00:00:01", 1400, "veth", False)
    assert (there.mac, there.mtu, there.kind) == (HOST_MAC, 1400, "veth")
    assert here.peer_index == there.index
    assert [link.name for link in third.links.list_links()] == ["lo"]


def test_a_pair_is_created_whole_or_not_at_all(make_netns):
    """When one name is taken, neither end appears."""
    one, two = make_netns("one"), make_netns("two")
    two.links.create_veth(VethEnd("cali0"), VethEnd("other0"))
    with pytest.raises(KernelError) as caught:
        one.links.create_veth(VethEnd("eth0"), VethEnd("cali0", two.fd))
    assert caught.value.code == errno.EEXIST
    assert one.links.get_link("eth0") is None


def test_a_forked_child_can_do_the_same(make_netns):
    """No thread or loop hides in the way to the kernel: it works after a plain fork."""
    one, two = make_netns("one"), make_netns("two")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with NetlinkSocket() as socket:
                Links(socket).create_veth(VethEnd("eth0", one.fd), VethEnd("eth0", two.fd))
            with NetlinkSocket(netns_fd=one.fd) as socket:
                Links(socket).set_up("eth0")
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert one.links.get_link("eth0").up


def test_up_down_and_carrier(make_netns):
    """``running`` needs both ends up."""
    one, two = make_netns("one"), make_netns("two")
    one.links.create_veth(VethEnd("eth0"), VethEnd("eth0", two.fd))
    one.links.set_up("eth0")
    assert (one.links.get_link("eth0").up, one.links.get_link("eth0").running) == (True, False)
    two.links.set_up("eth0")
    assert one.links.get_link("eth0").running
    one.links.set_down("eth0")
    assert not one.links.get_link("eth0").up


def test_changes_of_a_link(make_netns):
    """Alternative name, MAC and namespace can be changed; either name finds the link."""
    one, two = make_netns("one"), make_netns("two")
    links = one.links
    links.create_veth(VethEnd("a0"), VethEnd("a1"))
    one.run("ip", "link", "set", "a0", "name", "b0", "mtu", "1300")
    links.set_mac("b0", "02:00:00:00:00:07")
    links.add_alternative_name("b0", "a-name-longer-than-fifteen")
    found = links.get_link("a-name-longer-than-fifteen")
    assert (found.name, found.mtu, found.mac) == ("b0", 1300, "02:00:00:00:00:07")
    assert found.alternative_names == ("a-name-longer-than-fifteen",)
    links.move("b0", two.fd, new_name="c0")
    assert links.get_link("b0") is None
    assert two.links.get_link("c0").mac == "02:00:00:00:00:07"


def test_a_bridge_joins_its_ports(make_netns):
    """Two namespaces on one bridge reach each other."""
    switch, one, two = make_netns("switch"), make_netns("one"), make_netns("two")
    switch.links.create_bridge("br0", mtu=1450)
    switch.links.set_up("br0")
    for port, end, address in (("p1", one, "10.0.0.1/24"), ("p2", two, "10.0.0.2/24")):
        switch.links.create_veth(VethEnd(port), VethEnd("eth0", end.fd))
        switch.links.set_master(port, "br0")
        switch.links.set_up(port)
        end.address("eth0", address)
    assert switch.links.get_link("p1").master == switch.links.get_link("br0").index
    assert "1 received" in one.run("ping", "-c1", "-W5", "10.0.0.2")
    switch.links.set_master("p1", None)
    assert switch.links.get_link("p1").master == 0


def test_deleting_takes_the_other_end_along_and_is_repeatable(make_netns):
    """A veth has no half; deleting nothing says so without an error."""
    one, two = make_netns("one"), make_netns("two")
    connect(one, two)
    assert one.links.delete_link("eth0")
    assert not one.links.delete_link("eth0")
    assert two.links.get_link("eth0") is None


def test_addresses_are_what_ip_shows(make_netns):
    """Prefix length, broadcast and the absence of duplicate detection; adding twice changes nothing."""
    one = make_netns("one")
    connect(one, make_netns("two"))
    for _ in range(2):
        one.links.add_address("eth0", ip_interface("10.0.0.1/24"))
        one.links.add_addresses("eth0", [ip_interface("10.6.0.1/32"), ip_interface("fd00::1/128")], dad=False)
    shown = json.loads(one.run("ip", "-j", "addr", "show", "dev", "eth0"))[0]["addr_info"]
    globals_ = {(entry["local"], entry["prefixlen"]): entry for entry in shown if entry["scope"] == "global"}
    assert set(globals_) == {("10.0.0.1", 24), ("10.6.0.1", 32), ("fd00::1", 128)}
    assert globals_["10.0.0.1", 24]["broadcast"] == "10.0.0.255"
    assert globals_["fd00::1", 128].get("nodad")
    assert not globals_["fd00::1", 128].get("tentative")
    ours = one.links.list_addresses(interface="eth0")
    assert {str(entry.address) for entry in ours if entry.scope == 0} == {"10.0.0.1/24", "10.6.0.1/32", "fd00::1/128"}
    assert {entry.interface for entry in one.links.list_addresses()} == {"lo", "eth0"}
    assert {entry.address.version for entry in one.links.list_addresses(family=6)} == {6}
    assert one.links.delete_address("eth0", ip_interface("10.6.0.1/32"))
    assert not one.links.delete_address("eth0", ip_interface("10.6.0.1/32"))


def test_neighbours_in_bulk(make_netns):
    """Permanent entries are written and replaced; one for a missing interface fails alone."""
    one = make_netns("one")
    connect(one, make_netns("two"), ("10.0.0.1/24", "10.0.0.2/24"))
    good = Neighbour("eth0", ip_address("10.0.0.9"), "02:00:00:00:00:09")
    lost = Neighbour("nope0", ip_address("10.0.0.8"), "02:00:00:00:00:08")
    six = Neighbour("eth0", ip_address("fd00::9"), "02:00:00:00:00:09")
    assert one.links.set_neighbours([good, lost, six]) == [0, errno.ENODEV, 0]
    assert {good, six} <= set(one.links.list_neighbours(interface="eth0"))
    assert "10.0.0.9 lladdr 02:00:00:00:00:09 PERMANENT" in one.run("ip", "neigh", "show", "dev", "eth0")
    moved = Neighbour("eth0", ip_address("10.0.0.9"), "02:00:00:00:00:0a")
    assert one.links.set_neighbours([moved]) == [0]
    assert good not in one.links.list_neighbours()


def test_errors_explain_themselves(netns):
    """What was tried, on what; bad names and MACs before anything is sent."""
    netns.links.create_veth(VethEnd("a0"), VethEnd("a1"))
    with pytest.raises(KernelError, match="nope0") as caught:
        netns.links.set_up("nope0")
    assert caught.value.code == errno.ENODEV
    for name in ("", "a/b", "sixteen-letters-", "..", "a b"):
        with pytest.raises(InvalidInputError):
            netns.links.create_veth(VethEnd(name), VethEnd("b1"))
    with pytest.raises(InvalidInputError, match="ee:ee"):
        netns.links.set_mac("a0", "ee:ee")


def test_macs_round_trip():
    """Text to bytes and back."""
    assert format_mac(parse_mac("0A:00:00:00:00:ff")) == "0a:00:00:00:00:ff"
    assert format_mac(b"") == ""
