"""Throw-away network namespaces for tests: unique names, and gone after the test, whatever happened."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calipy.kernel import netns as kernel_netns
from calipy.kernel import process
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable
from tests.support import owned


class Namespace:
    """A network namespace with lo up, and the means to look into it.

    Attributes:
        path: its name under /run/netns, as a path.
        fd: open descriptor, valid for the whole test.
        netlink, links, routes: working inside it.
    """

    def __init__(self, label: str) -> None:
        self.path = Path("/run/netns", owned.name(label))
        kernel_netns.create(self.path)
        self.fd = kernel_netns.open_fd(self.path)
        self.netlink = NetlinkSocket(netns_fd=self.fd)
        self.links = Links(self.netlink)
        self.routes = RouteTable(self.netlink)
        self.links.set_up("lo")

    def run(self, *argv: str, stdin: str = "", timeout: float = 30) -> str:
        """Standard output of a program run inside; it must succeed."""
        return process.run(argv, stdin=stdin, timeout=timeout, netns_fd=self.fd).check().stdout

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Result of a function called inside (in a worker thread)."""
        return kernel_netns.run_in(self.fd, function, *args, **kwargs)

    def address(self, interface: str, address: str) -> None:
        """Give an interface an address, usable at once, and bring it up."""
        self.links.add_address(interface, ipaddress.ip_interface(address), dad=False)
        self.links.set_up(interface)

    def close(self) -> None:
        self.netlink.close()
        os.close(self.fd)
        kernel_netns.delete(self.path)


def connect(
    one: Namespace, other: Namespace, *addresses: tuple[str, str], names: tuple[str, str] = ("eth0", "eth0")
) -> None:
    """A veth pair between two namespaces, both ends up, with addresses, e.g. ("10.0.0.1/24", "10.0.0.2/24")."""
    with NetlinkSocket() as socket:
        Links(socket).create_veth(VethEnd(names[0], one.fd), VethEnd(names[1], other.fd))
    one.links.set_up(names[0])
    other.links.set_up(names[1])
    for here, there in addresses:
        one.address(names[0], here)
        other.address(names[1], there)


@pytest.fixture
def make_netns() -> Iterator[Callable[..., Namespace]]:
    """A function that makes namespaces: ``make_netns("router")``."""
    made: list[Namespace] = []

    def make(label: str = "ns") -> Namespace:
        made.append(Namespace(label))
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()


@pytest.fixture
def netns(make_netns: Callable[..., Namespace]) -> Namespace:
    """One namespace."""
    return make_netns()
