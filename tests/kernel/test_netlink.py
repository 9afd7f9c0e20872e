"""The socket itself: many requests in one call, replies matched to them, the kernel's words in errors."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from ipaddress import ip_network

import pytest

from calipy.errors import KernelError
from calipy.kernel import netlink
from calipy.kernel.links import VethEnd
from calipy.net import Route

pytestmark = pytest.mark.kernel

RTM_NEWLINK, RTM_GETLINK = 16, 18


def link_message(name: str, kind: int = RTM_NEWLINK, flags: int = 0) -> bytes:
    return netlink.message(kind, flags, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + netlink.text(3, name))


def test_each_request_has_its_own_result(netns):
    """Errors come back at the place of the request that met them, across chunks."""
    good, bad = link_message("lo"), link_message("nope0")
    wanted = [errno.ENODEV if n % 5 == 0 else 0 for n in range(1000)]
    assert netns.netlink.request([bad if code else good for code in wanted]) == wanted
    assert netns.netlink.request([]) == []
    assert netns.netlink.request([bad]) == [errno.ENODEV]


def test_a_request_after_an_error_is_not_confused(netns):
    """Whatever the last exchange left behind, the next one gets its own answer."""
    with pytest.raises(KernelError):
        netns.netlink.execute("poke", link_message("nope0"))
    with pytest.raises(KernelError):
        netns.netlink.dump("list nonsense", netlink.message(RTM_GETLINK, 0, struct.pack("=BxHiII", 0, 0, 7, 0, 0)))
    assert netns.netlink.index_of("lo") == 1
    assert [link.name for link in netns.links.list_links()] == ["lo"]


def test_the_kernels_own_explanation_is_passed_on(netns):
    """Where the kernel says more than a number, the message has it."""
    netns.links.create_veth(VethEnd("a0"), VethEnd("a1"))
    body = struct.pack("=BxHiII", 0, 0, netns.netlink.index_of("a0"), 0, 0) + netlink.attribute_u32(4, 1)
    with pytest.raises(
        KernelError, match=r"cannot shrink a0: Invalid argument \(mtu less than device minimum\)"
    ) as caught:
        netns.netlink.execute("shrink a0", netlink.message(RTM_NEWLINK, 0, body))
    assert caught.value.code == errno.EINVAL


def test_threads_may_share_a_socket(netns):
    """Exchanges of several threads do not mix."""
    routes = [Route(ip_network((0x0B000000 + n * 256, 24)), kind="blackhole") for n in range(400)]
    failures: list[object] = []

    def work(part: list[Route]) -> None:
        for route in part:
            failures.extend(netns.routes.apply(replace=[route]))
            if netns.netlink.index_of("lo") != 1 or netns.links.get_link("nope0") is not None:
                failures.append(route)

    threads = [threading.Thread(target=work, args=(routes[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {route.dst for route in netns.routes.dump(family=4)} == {route.dst for route in routes}


def test_names_and_indexes(netns):
    """Both directions in the namespace of the socket; what is not there is an error, or a made-up name."""
    netns.links.create_veth(VethEnd("cali0"), VethEnd("peer0"))
    index = netns.netlink.index_of("cali0")
    assert netns.netlink.name_of(index) == "cali0"
    assert netns.netlink.name_of(9999) == "if9999"
    netns.links.create_veth(VethEnd("fifteen-letters"), VethEnd("other0"))
    for name in ("nope0", "fifteen-letters-and-more", ""):
        with pytest.raises(KernelError, match=f"find interface {name}") as caught:
            netns.netlink.index_of(name)
        assert caught.value.code == errno.ENODEV
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("cali0")


def test_many_objects_are_listed_whole(netns):
    """A list far beyond one datagram arrives complete."""
    for number in range(60):
        netns.links.create_veth(VethEnd(f"a{number}"), VethEnd(f"b{number}"))
    names = {link.name for link in netns.links.list_links()}
    assert names == {"lo"} | {f"{side}{number}" for side in "ab" for number in range(60)}
