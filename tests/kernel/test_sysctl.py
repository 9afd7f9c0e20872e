"""Kernel parameters are read and written in the namespace of the caller."""

from __future__ import annotations

import errno

import pytest

from calipy.errors import InvalidInputError, KernelError
from calipy.kernel import sysctl
from calipy.kernel.links import VethEnd

pytestmark = pytest.mark.kernel


def test_a_parameter_reads_back_in_its_namespace(netns):
    """Both notations name the same parameter; the namespace outside keeps its own value."""
    outside = sysctl.read("net.ipv4.ip_forward")
    inside = "0" if outside == "1" else "1"
    netns.call(sysctl.write, "net.ipv4.ip_forward", inside)
    assert netns.call(sysctl.read, "net/ipv4/ip_forward") == inside
    assert sysctl.read("net.ipv4.ip_forward") == outside


def test_interface_names_may_have_dots(netns):
    """The notation with slashes reaches an interface such as eth0.100."""
    netns.links.create_veth(VethEnd("eth0.100"), VethEnd("peer0"))
    netns.call(sysctl.write, "net/ipv4/conf/eth0.100/proxy_arp", 1)
    assert netns.call(sysctl.read, "net/ipv4/conf/eth0.100/proxy_arp") == "1"


def test_what_is_not_there_is_an_error(netns):
    """The errno tells a missing interface from a refused value."""
    with pytest.raises(KernelError, match="nope0") as caught:
        netns.call(sysctl.write, "net.ipv4.conf.nope0.forwarding", 1)
    assert caught.value.code == errno.ENOENT
    with pytest.raises(KernelError) as caught:
        netns.call(sysctl.write, "net.ipv4.ip_forward", "many")
    assert caught.value.code == errno.EINVAL


@pytest.mark.parametrize("key", ["", "net/../kernel/hostname", "net..ipv4", "/net/ipv4/ip_forward"])
def test_a_key_cannot_leave_its_tree(key):
    """Names that would lead elsewhere are refused."""
    with pytest.raises(InvalidInputError):
        sysctl.read(key)
