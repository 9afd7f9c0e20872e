"""Host endpoints and the kernel's links and addresses."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.dataplane.hosts import HostEndpoints
from calipy.felix.messages import HostEndpoint
from calipy.kernel.links import Link, LinkAddress
from calipy.kernel.monitor import AddressEvent, LinkEvent
from tests.support.netns import Namespace, connect

pytestmark = [pytest.mark.kernel]

ADDRESS = "192.0.2.7"
MOVED = AddressEvent(LinkAddress("eth0", 2, ipaddress.ip_interface(f"{ADDRESS}/24")), gone=True)
RETURNED = AddressEvent(MOVED.address, gone=False)


@pytest.fixture
def host(make_netns: Callable[..., Namespace]) -> Namespace:
    """A host with the address on eth0."""
    made = make_netns("host")
    connect(made, make_netns("other"), (f"{ADDRESS}/24", "192.0.2.8/24"))
    return made


def edge(host: Namespace, config: FelixConfig | None = None) -> HostEndpoints:
    made: HostEndpoints = host.call(HostEndpoints, config or FelixConfig())
    made.update({"h": HostEndpoint("h", "", (ADDRESS,))})
    return made


def resolved(hosts: HostEndpoints, now: float) -> tuple[bool, list[str]]:
    return asyncio.run(hosts.resolve(now)), list(hosts.interfaces)


def test_an_address_that_is_gone_counts_for_a_moment(host: Namespace) -> None:
    """Taken away and given back within a tenth of a second: policy stays. Later it goes, and comes back at once."""
    hosts = edge(host)
    assert resolved(hosts, 0.0) == (True, ["eth0"])
    assert hosts.next_deadline() is None
    host.run("ip", "address", "del", f"{ADDRESS}/24", "dev", "eth0")
    assert hosts.on_event(MOVED, 1.0)
    assert resolved(hosts, 1.05) == (False, ["eth0"])
    assert hosts.next_deadline() == pytest.approx(1.1)
    assert resolved(hosts, 1.2) == (True, [])
    host.run("ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0")
    assert hosts.on_event(RETURNED, 2.0)
    assert resolved(hosts, 2.0) == (True, ["eth0"])
    hosts.close()


def test_excluded_interfaces_and_those_of_pods_do_not_count(host: Namespace) -> None:
    """InterfaceExclude keeps an interface's addresses out; what happens to pods' interfaces wakes nobody."""
    hosts = edge(host, FelixConfig.from_parameters({"InterfaceExclude": "/^eth/"}))
    assert resolved(hosts, 0.0) == (False, [])
    hosts.reconfigure(FelixConfig())
    assert resolved(hosts, 0.0) == (True, ["eth0"])
    assert not hosts.on_event(LinkEvent(Link(9, "cali1234"), gone=False), 1.0)
    assert hosts.on_event(LinkEvent(Link(9, "eth9"), gone=False), 1.0)
    hosts.update({"h": None})
    assert resolved(hosts, 1.0) == (True, [])
    assert not hosts.on_event(LinkEvent(Link(9, "eth9"), gone=False), 2.0)
    hosts.close()
