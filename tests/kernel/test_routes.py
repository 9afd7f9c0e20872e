"""Routes: what is written is what ``ip route`` and pyroute2 see, and what a dump gives back."""

from __future__ import annotations

import errno
import json
from ipaddress import ip_address, ip_network

import pytest

from calipy.kernel.routes import RouteTable, as_kernel, matches
from calipy.net import PROTO_BGP, PROTO_FELIX, PROTO_WORKLOAD, NextHop, Route
from tests.support.netns import Namespace, connect

pytestmark = pytest.mark.kernel


def via(*gateways: str, interface: str = "eth0") -> tuple[NextHop, ...]:
    return tuple(NextHop(ip_address(gateway), interface) for gateway in gateways)


@pytest.fixture
def router(make_netns) -> Namespace:
    """A namespace with eth0 = 10.0.0.1/24, fd00::1/64 towards a neighbour."""
    here, there = make_netns("router"), make_netns("peer")
    connect(here, there, ("10.0.0.1/24", "10.0.0.2/24"), ("fd00::1/64", "fd00::2/64"))
    return here


ROUTES = {
    "via": Route(ip_network("10.1.0.0/26"), next_hops=via("10.0.0.2"), protocol=PROTO_BGP, metric=1024),
    "no interface": Route(ip_network("10.1.0.64/26"), next_hops=(NextHop(ip_address("10.0.0.2")),), protocol=PROTO_BGP),
    "default": Route(ip_network("0.0.0.0/0"), next_hops=via("10.0.0.2"), protocol=PROTO_BGP),
    "ecmp": Route(ip_network("10.2.0.0/26"), next_hops=via("10.0.0.2", "10.0.0.3"), protocol=PROTO_BGP),
    "weights": Route(
        ip_network("10.3.0.0/26"),
        next_hops=(NextHop(ip_address("10.0.0.2"), "eth0", weight=3), NextHop(ip_address("10.0.0.3"), "eth0")),
    ),
    "IPv4 over IPv6": Route(ip_network("10.4.0.0/26"), next_hops=via("fd00::2"), protocol=PROTO_BGP),
    "onlink": Route(ip_network("10.5.0.0/26"), next_hops=(NextHop(ip_address("172.16.0.9"), "eth0", onlink=True),)),
    "pod": Route(
        ip_network("10.6.0.1/32"),
        next_hops=(NextHop(None, "eth0"),),
        protocol=PROTO_WORKLOAD,
        metric=1024,
        scope="link",
        source=ip_address("10.0.0.1"),
    ),
    "blackhole": Route(ip_network("10.7.0.0/26"), kind="blackhole", protocol=PROTO_FELIX),
    "unreachable": Route(ip_network("10.8.0.0/26"), kind="unreachable"),
    "prohibit": Route(ip_network("10.9.0.0/26"), kind="prohibit"),
    "throw": Route(ip_network("10.10.0.0/26"), kind="throw"),
    "other table": Route(ip_network("10.11.0.0/26"), next_hops=via("10.0.0.2"), table=4242),
    "via 6": Route(ip_network("fd01::/122"), next_hops=via("fd00::2"), protocol=PROTO_BGP, metric=1024),
    "default 6": Route(ip_network("::/0"), next_hops=via("fd00::2")),
    "ecmp 6": Route(ip_network("fd02::/122"), next_hops=via("fd00::2", "fd00::3"), protocol=PROTO_BGP),
    "link-local gateway": Route(ip_network("fd03::/122"), next_hops=via("fe80::1"), source=ip_address("fd00::1")),
    "pod 6": Route(ip_network("fd04::1/128"), next_hops=(NextHop(None, "eth0"),), protocol=PROTO_WORKLOAD),
    "blackhole 6": Route(ip_network("fd05::/122"), kind="blackhole"),
    "unreachable 6": Route(ip_network("fd06::/122"), kind="unreachable"),
    "prohibit 6": Route(ip_network("fd07::/122"), kind="prohibit"),
}


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_reads_back_as_written(router, name):
    """replace, dump, replace again (nothing changes), delete: each kind of route survives the round trip."""
    route = ROUTES[name]
    for _ in range(2):
        assert router.routes.apply(replace=[route]) == []
        found = [one for one in router.routes.dump(table=route.table) if one.key == as_kernel(route).key]
        assert len(found) == 1
        assert matches(route, found[0])
        assert found[0].protocol == route.protocol
    assert router.routes.apply(delete=[route]) == []
    assert not [one for one in router.routes.dump(table=route.table) if one.key == as_kernel(route).key]


def test_ip_route_sees_what_was_meant(router):
    """The system's own tool reads gateway, protocol, metric and kind as we wrote them."""
    assert router.routes.apply(replace=ROUTES.values()) == []
    shown = {entry["dst"]: entry for entry in json.loads(router.run("ip", "-j", "-N", "route"))}
    assert shown["10.1.0.0/26"].items() >= {"gateway": "10.0.0.2", "protocol": "82", "metric": 1024}.items()
    assert [hop["gateway"] for hop in shown["10.2.0.0/26"]["nexthops"]] == ["10.0.0.2", "10.0.0.3"]
    assert [hop["weight"] for hop in shown["10.3.0.0/26"]["nexthops"]] == [3, 1]
    assert shown["10.4.0.0/26"]["via"]["host"] == "fd00::2"
    assert shown["10.5.0.0/26"]["flags"] == ["onlink"]
    pod = shown["10.6.0.1"]
    assert (pod["dev"], pod["scope"], pod["prefsrc"], pod["metric"]) == ("eth0", "253", "10.0.0.1", 1024)
    assert "blackhole 10.7.0.0/26" in router.run("ip", "route")


def test_one_bad_route_does_not_stop_the_others(router):
    """Each failure has its own errno; good routes around it are written."""
    good = [ROUTES["via"], ROUTES["pod"], ROUTES["via 6"]]
    off_link = Route(ip_network("10.20.0.0/26"), next_hops=via("192.0.2.1"))
    no_device = Route(ip_network("10.21.0.0/26"), next_hops=via("10.0.0.2", interface="nope0"))
    failures = router.routes.apply(replace=[good[0], off_link, good[1], no_device, good[2]])
    assert {failure.route: failure.reason for failure in failures} == {off_link: "ENETUNREACH", no_device: "ENODEV"}
    have = {route.key for route in router.routes.dump()}
    assert {route.key for route in good} <= have
    assert off_link.key not in have


def test_add_refuses_what_is_there_and_delete_what_is_not(router):
    """EEXIST and ESRCH; nothing changes."""
    route = ROUTES["via"]
    assert router.routes.apply(add=[route]) == []
    assert [failure.code for failure in router.routes.apply(add=[route])] == [errno.EEXIST]
    assert router.routes.apply(delete=[route]) == []
    assert [failure.code for failure in router.routes.apply(delete=[route])] == [errno.ESRCH]


def test_delete_spares_another_writers_route(router):
    """A route of the same destination and metric under another protocol is not ours to delete."""
    foreign = Route(ip_network("10.1.0.0/26"), next_hops=via("10.0.0.2"), protocol=4, metric=1024)
    router.routes.apply(add=[foreign])
    assert [failure.code for failure in router.routes.apply(delete=[ROUTES["via"]])] == [errno.ESRCH]
    assert foreign in router.routes.dump()


def test_deletions_come_before_replacements(router):
    """A pod's route moves from metric 0 to 1024 in one call and is never missing afterwards."""
    first = Route(ip_network("10.6.0.1/32"), next_hops=(NextHop(None, "eth0"),), protocol=3, scope="link")
    router.routes.apply(add=[first])
    assert router.routes.apply(delete=[first], replace=[ROUTES["pod"]]) == []
    assert [route for route in router.routes.dump() if route.dst == first.dst] == [ROUTES["pod"]]


@pytest.mark.parametrize("family", [4, 6])
def test_replace_turns_one_kind_into_another(router, family):
    """Single, several next hops and blackhole replace each other in place."""
    dst = ip_network("10.1.0.0/26" if family == 4 else "fd01::/122")
    one, two = ("10.0.0.2", "10.0.0.3") if family == 4 else ("fd00::2", "fd00::3")
    for wanted in (
        Route(dst, next_hops=via(one), metric=1024),
        Route(dst, next_hops=via(one, two), metric=1024),
        Route(dst, next_hops=via(two), metric=1024),
        Route(dst, kind="blackhole", metric=1024),
        Route(dst, next_hops=via(one), metric=1024),
    ):
        assert router.routes.apply(replace=[wanted]) == []
        found = [route for route in router.routes.dump(protocol=PROTO_FELIX) if route.dst == dst]
        assert len(found) == 1
        assert matches(wanted, found[0])


def test_dump_filters_in_the_kernel(router, make_netns):
    """Protocol, family, interface and table each narrow the list; unknown ones give nothing."""
    connect(router, make_netns("other"), ("10.99.0.1/24", "10.99.0.2/24"), names=("eth1", "eth0"))
    other = Route(ip_network("10.98.0.0/24"), next_hops=via("10.99.0.2", interface="eth1"), protocol=PROTO_BGP)
    assert router.routes.apply(replace=[*ROUTES.values(), other]) == []
    dump = router.routes.dump
    assert {route.protocol for route in dump(protocol=PROTO_BGP)} == {PROTO_BGP}
    assert {route.dst.version for route in dump(family=6)} == {6}
    assert [route for route in dump(interface="eth1", protocol=PROTO_BGP)] == [other]  # noqa: C416 - reads better
    assert ROUTES["ecmp"].dst in {route.dst for route in dump(interface="eth0")}
    assert {route.table for route in dump(table=None)} >= {254, 255, 4242}
    assert dump(table=999) == []
    assert dump(interface="nope0") == []


def test_many_routes_cross_chunks(router):
    """3,000 routes, some of them impossible, in one call: exactly the impossible ones fail, each named."""
    routes = [
        Route(
            ip_network((0x0B000000 + number * 64, 26)),
            next_hops=via("192.0.2.1" if number % 7 == 0 else "10.0.0.2"),
            protocol=PROTO_BGP,
            metric=1024,
        )
        for number in range(3000)
    ]
    failures = router.routes.apply(replace=routes)
    assert [failure.route for failure in failures] == routes[::7]
    assert {failure.code for failure in failures} == {errno.ENETUNREACH}
    assert set(router.routes.dump(protocol=PROTO_BGP)) == set(routes) - set(routes[::7])


def test_lookup_says_what_the_kernel_would_do(router):
    """The answer has gateway, interface and source; no way is an error with its errno."""
    router.routes.apply(replace=[ROUTES["via"], ROUTES["via 6"], ROUTES["unreachable"]])
    found = router.routes.lookup(ip_address("10.1.0.5"))
    assert found.next_hops == via("10.0.0.2")
    assert found.source == ip_address("10.0.0.1")
    assert router.routes.lookup(ip_address("fd01::5")).next_hops == via("fd00::2")
    for address, code in (("10.8.0.1", errno.EHOSTUNREACH), ("203.0.113.1", errno.ENETUNREACH)):
        with pytest.raises(Exception, match=address) as caught:
            router.routes.lookup(ip_address(address))
        assert caught.value.code == code


def test_an_independent_reader_agrees(router):
    """pyroute2, which shares no code with ours, sees the same routes."""
    pyroute2 = pytest.importorskip("pyroute2")
    routes = [ROUTES["via"], ROUTES["pod"], ROUTES["blackhole"], ROUTES["via 6"]]
    router.routes.apply(replace=routes)

    def read() -> set[tuple[str, int, int, int]]:
        with pyroute2.IPRoute() as ip:
            return {
                (
                    f"{one.get_attr('RTA_DST')}/{one['dst_len']}",
                    one["proto"],
                    one.get_attr("RTA_PRIORITY") or 0,
                    one["type"],
                )
                for family in (2, 10)
                for one in ip.get_routes(family=family, table=254)
            }

    kinds = {"unicast": 1, "blackhole": 6}
    assert {(str(r.dst), r.protocol, r.metric, kinds[r.kind]) for r in routes} <= router.call(read)


def test_repeated_dumps_follow_changes_and_renames(router):
    """What is remembered from the last dump never hides a change: of routes, or of an interface's name."""
    table = router.routes
    table.apply(replace=ROUTES.values())
    assert set(table.dump()) == set(table.dump()) == set(RouteTable(router.netlink).dump())
    table.apply(delete=[ROUTES["via"]], replace=[Route(ROUTES["ecmp"].dst, kind="blackhole", protocol=PROTO_BGP)])
    assert set(table.dump()) == set(RouteTable(router.netlink).dump())
    router.run("ip", "link", "set", "eth0", "name", "wan0")
    assert set(table.dump()) == set(RouteTable(router.netlink).dump())
    assert {hop.interface for route in table.dump() for hop in route.next_hops} == {"wan0"}


def test_routes_go_with_their_link(router):
    """The kernel drops routes of a link that goes down: what a dump shows is the truth, not what was written."""
    router.routes.apply(replace=[ROUTES["via"]])
    router.links.set_down("eth0")
    assert ROUTES["via"] not in router.routes.dump()
    assert [failure.reason for failure in router.routes.apply(replace=[ROUTES["via"]])] == ["ENETUNREACH"]


def test_a_table_works_in_the_namespace_of_its_socket(router, netns):
    """Two sockets, two namespaces, no mixing."""
    router.routes.apply(replace=[ROUTES["blackhole"]])
    assert ROUTES["blackhole"] in router.routes.dump()
    assert RouteTable(netns.netlink).dump() == []
