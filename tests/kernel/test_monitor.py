"""The event monitor hears what happens in its namespace, and says so when it missed something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_interface, ip_network

import pytest

from calipy.kernel.links import VethEnd
from calipy.kernel.monitor import AddressEvent, Event, LinkEvent, Monitor, Overrun, RouteEvent
from calipy.net import PROTO_BGP, Route

pytestmark = pytest.mark.kernel


async def until(monitor: Monitor, wanted: Callable[[Event], bool], timeout: float = 30) -> list[Event]:
    """All events up to the first that is wanted."""
    seen: list[Event] = []
    async with asyncio.timeout(timeout):
        async for event in monitor:
            seen.append(event)
            if wanted(event):
                return seen
    raise AssertionError


async def test_the_life_of_a_link_is_told(netns):
    """Created, up with carrier, an address given, gone: each is an event with the name."""
    with Monitor(routes=False, netns_fd=netns.fd) as monitor:
        netns.links.create_veth(VethEnd("cali0"), VethEnd("peer0"))
        await until(monitor, lambda event: isinstance(event, LinkEvent) and event.name == "cali0" and not event.gone)
        netns.links.set_up("cali0")
        netns.links.set_up("peer0")
        await until(monitor, lambda event: isinstance(event, LinkEvent) and event.name == "cali0" and event.up)
        netns.links.add_address("cali0", ip_interface("10.0.0.1/32"))
        seen = await until(
            monitor, lambda event: isinstance(event, AddressEvent) and event.address.address.version == 4
        )
        assert seen[-1].address.interface == "cali0"
        assert not seen[-1].gone
        netns.links.delete_link("cali0")
        seen = await until(monitor, lambda event: isinstance(event, LinkEvent) and event.gone and event.name == "cali0")
        assert not seen[-1].up


async def test_routes_are_told_with_their_writer(netns):
    """Destination, protocol and table of a route, of both families, when written and when deleted."""
    routes = [
        Route(ip_network("10.0.0.0/26"), kind="blackhole", protocol=PROTO_BGP),
        Route(ip_network("fd00::/122"), kind="blackhole", protocol=PROTO_BGP, table=1000),
    ]
    with Monitor(links=False, addresses=False, netns_fd=netns.fd) as monitor:
        netns.routes.apply(replace=routes)
        netns.routes.apply(delete=routes)
        last = RouteEvent(routes[1].dst, PROTO_BGP, 1000, gone=True)
        seen = await until(monitor, lambda event: event == last)
    assert seen == [
        RouteEvent(routes[0].dst, PROTO_BGP, 254, gone=False),
        RouteEvent(routes[1].dst, PROTO_BGP, 1000, gone=False),
        RouteEvent(routes[0].dst, PROTO_BGP, 254, gone=True),
        last,
    ]


async def test_lost_events_are_admitted(netns):
    """More events than the buffer holds: an Overrun is among what is read, and the monitor goes on."""
    with Monitor(links=False, addresses=False, netns_fd=netns.fd, receive_buffer=4096) as monitor:
        routes = [Route(ip_network((0x0B000000 + n, 32)), kind="blackhole") for n in range(2000)]
        netns.routes.apply(replace=routes)
        await until(monitor, lambda event: event == Overrun())
        marker = Route(ip_network("10.9.9.0/24"), kind="blackhole")
        netns.routes.apply(replace=[marker])
        await until(monitor, lambda event: isinstance(event, RouteEvent) and event.dst == marker.dst)


async def test_a_burst_is_heard_whole_and_others_run_meanwhile(netns):
    """10,000 events arrive with the default buffer, and the loop is shared while they are read."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    with Monitor(links=False, addresses=False, netns_fd=netns.fd) as monitor:
        routes = [Route(ip_network((0x0B000000 + n, 32)), kind="blackhole") for n in range(10_000)]
        netns.routes.apply(replace=routes)
        counter = asyncio.ensure_future(count())
        seen = await until(monitor, lambda event: event.dst == routes[-1].dst)
        counter.cancel()
    assert [event.dst for event in seen] == [route.dst for route in routes]
    assert turns > 10


async def test_other_namespaces_are_not_heard(netns, make_netns):
    """Events of another namespace do not arrive."""
    other = make_netns("other")
    with Monitor(netns_fd=netns.fd) as monitor:
        other.links.create_veth(VethEnd("far0"), VethEnd("far1"))
        netns.links.create_veth(VethEnd("near0"), VethEnd("near1"))
        seen = await until(monitor, lambda event: isinstance(event, LinkEvent) and event.name == "near0")
    assert not [event for event in seen if isinstance(event, LinkEvent) and event.name.startswith("far")]
