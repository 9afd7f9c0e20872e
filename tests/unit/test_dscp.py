"""Code points of what leaves the cluster: from annotations to chains, sets and a walk through them."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.graph.graph import Graph
from calipy.felix.messages import Changes, EndpointID, HostEndpoint, Pool, WorkloadEndpoint
from calipy.felix.render.renderer import Renderer
from calipy.felix.sets import SetTable
from calipy.felix.walk import Packet, WalkError, walk
from calipy.felix.walk.reading import read_target
from calipy.net import Family
from calipy.policy import dscp
from calipy.policy.kubernetes_qos import qos_controls
from tests.support.objects import make

WEB = EndpointID("k8s", "shop/web", "eth0")
LEAVING = (
    '-m comment --comment "set dscp for traffic leaving cluster." '
    "-m set --match-set cali{0}0dscp-src-net src -m set ! --match-set cali{0}0network-ip-pools dst"
    " -m set ! --match-set cali{0}0this-host dst --jump cali-egress-dscp"
)


def pod(value: int | None, *nets: str, identity: EndpointID = WEB) -> Changes:
    endpoint = WorkloadEndpoint(identity, "cali1", "", nets or ("10.65.0.2/32", "fd65::2/128"), (), (), dscp=value)
    return Changes(endpoints={identity: endpoint})


def chain(renderer: Renderer, name: str) -> list[str]:
    """Rules of a chain of the mangle table; a chain that nothing leads to is not in the kernel."""
    found = renderer.tables["mangle"].content(name)
    return [rule.body for rule in found.rules] if found else []


@pytest.mark.parametrize(
    ("text", "kept", "value"),
    [
        ("0", 0, 0),
        ("46", 46, 46),
        ("063", 63, 63),
        ("64", None, None),
        ("-1", None, None),
        ("²", None, None),
        ("EF", "EF", 46),
        ("af11", "AF11", 10),
        ("AF43", "AF43", 38),
        (" cs6 ", " cs6 ", 48),
        ("DF", "DF", 0),
        ("CS7", None, None),
        ("AF44", None, None),
        ("", None, None),
    ],
)
def test_values(text: str, kept: int | str | None, value: int | None) -> None:
    """Numbers from 0 to 63 and the names that Calico knows, in any case; anything else is none."""
    assert dscp.stored(text) == kept
    assert dscp.number(text) == value
    found = qos_controls({dscp.ANNOTATION: text})
    assert (found.dscp if found else None) == kept


def test_numbers_in_a_stored_spec() -> None:
    """A number that others have stored counts only where it is a code point."""
    assert dscp.number(46) == 46
    assert dscp.number(64) is None


@pytest.mark.parametrize(
    ("qos", "annotations", "value"),
    [
        ({"dscp": "EF"}, {}, 46),
        ({"dscp": 10}, {dscp.ANNOTATION: "EF"}, 10),
        (None, {dscp.ANNOTATION: "AF11"}, 10),
        ({"dscp": "nonsense"}, {}, None),
        (None, {}, None),
    ],
)
def test_a_pods_endpoint_says_it(qos: dict[str, Any] | None, annotations: dict[str, str], value: int | None) -> None:
    """The spec decides, else the annotation; a change of it reaches the dataplane."""
    spec = {"orchestrator": "k8s", "node": "n1", "pod": "web", "endpoint": "eth0", "interfaceName": "cali1"}
    spec |= {"ipNetworks": ["10.65.0.2/32"]}
    given = spec if qos is None else {**spec, "qosControls": qos}
    name = "n1-k8s-web-eth0"
    key, endpoint = make("WorkloadEndpoint", name, given, namespace="shop", annotations=annotations)
    graph = Graph("n1")
    graph.on_update(key, endpoint)
    graph.on_in_sync()
    [sent] = graph.flush().endpoints.values()
    assert sent is not None
    assert sent.dscp == value
    graph.on_update(*make("WorkloadEndpoint", name, {**spec, "qosControls": {"dscp": 1}}, namespace="shop"))
    [sent] = graph.flush().endpoints.values()
    assert sent is not None
    assert sent.dscp == 1


def test_a_value_that_is_none_is_warned_of_where_it_stands() -> None:
    """Calico takes it: so the endpoint is in force, and the node it is on says which field to mend, until it is."""
    graph = Graph("n1")
    graph.on_in_sync()
    spec = {"orchestrator": "k8s", "pod": "web", "endpoint": "eth0", "interfaceName": "cali1"}
    spec |= {"ipNetworks": ["10.65.0.2/32"]}
    bad = {**spec, "qosControls": {"dscp": 64}}
    here = make("WorkloadEndpoint", "n1-k8s-web-eth0", {**bad, "node": "n1"}, namespace="shop")
    there = make("WorkloadEndpoint", "n2-k8s-web-eth0", {**bad, "node": "n2"}, namespace="shop")
    host_spec = {"node": "n1", "interfaceName": "eth0"}
    host = make("HostEndpoint", "h", host_spec, annotations={dscp.ANNOTATION: "AF99"})
    for key, value in (here, there, host):
        graph.on_update(key, value)
    assert graph.flush().endpoints
    pod, uplink = graph.warnings
    assert "n1-k8s-web-eth0" in pod
    assert "spec.qosControls.dscp = 64 is ignored" in pod
    assert f"metadata.annotations[{dscp.ANNOTATION}] = 'AF99' is ignored" in uplink
    assert "0 to 63" in pod
    graph.on_update(*make("WorkloadEndpoint", "n1-k8s-web-eth0", {**spec, "node": "n1"}, namespace="shop"))
    graph.on_update(host[0], None)
    assert not graph.warnings


def test_a_host_endpoint_says_it_by_annotation() -> None:
    """So do host endpoints; a change of the annotation alone reaches the dataplane."""
    graph = Graph("n1")
    graph.on_in_sync()
    for text, value in (("CS1", 8), ("none of them", None)):
        spec = {"node": "n1", "interfaceName": "eth0", "expectedIPs": ["172.16.0.1"]}
        graph.on_update(*make("HostEndpoint", "h", spec, annotations={dscp.ANNOTATION: text}))
        [sent] = graph.flush().host_endpoints.values()
        assert sent is not None
        assert sent.dscp == value


def test_rules_are_felixs_and_only_there_while_needed() -> None:
    """One rule for each source in order; the jump stands first in POSTROUTING while there is a source of the family."""
    renderer = Renderer(4, FelixConfig())
    assert chain(renderer, "cali-POSTROUTING") == []
    db = EndpointID("k8s", "shop/db", "eth0")
    renderer.update(pod(46))
    renderer.update(pod(10, "10.65.0.1/32", identity=db))
    assert chain(renderer, "cali-egress-dscp") == [
        "--source 10.65.0.1 --jump DSCP --set-dscp 10",
        "--source 10.65.0.2 --jump DSCP --set-dscp 46",
    ]
    assert chain(renderer, "cali-POSTROUTING") == [LEAVING.format(4)]
    host = HostEndpoint("h", "eth0", ("172.16.0.1", "fd00::1"), dscp=0)
    renderer.update(Changes(host_endpoints={"h": host}))
    renderer.set_hosts({"eth0": host})
    assert chain(renderer, "cali-egress-dscp")[-1] == "--source 172.16.0.1 --jump DSCP --set-dscp 0"
    assert chain(renderer, "cali-POSTROUTING")[0] == LEAVING.format(4)
    assert len(chain(renderer, "cali-POSTROUTING")) > 1
    renderer.set_hosts({})
    for gone in (Changes(host_endpoints={"h": None}), pod(None), Changes(endpoints={db: None})):
        renderer.update(gone)
    assert chain(renderer, "cali-POSTROUTING") == chain(renderer, "cali-egress-dscp") == []


@pytest.mark.parametrize(
    ("family", "leaving", "sources"),
    [
        (4, "rjggb5FqJG-Y25Bt", ["4LDeCXtMm54_kwBl", "pEWRhT2aNQd9Agp2"]),
        (6, "z6FfUAi9uFnS9WQe", ["OqXeIZdP_KDQvqux", "vanmHyQZlQ6l8lhU"]),
    ],
)
def test_hashes_are_felixs(family: Family, leaving: str, sources: list[str]) -> None:
    """Read from a kernel that the real Felix has programmed for a pod with EF and a host endpoint with CS1."""
    renderer = Renderer(family, FelixConfig())
    host = HostEndpoint("uplink", "eth0", ("172.20.0.11", "fd20::11"), dscp=8)
    renderer.update(pod(46, "10.65.1.2/32", "fd65:1::2/128"))
    renderer.update(Changes(host_endpoints={"uplink": host}))
    for name, hashes in (("cali-POSTROUTING", [leaving]), ("cali-egress-dscp", sources)):
        found = renderer.tables["mangle"].content(name)
        assert found is not None
        assert list(found.hashes) == hashes


def test_each_family_has_its_sources() -> None:
    """IPv6 rules name IPv6 sources and sets; a pod without IPv6 brings none."""
    renderer = Renderer(6, FelixConfig())
    renderer.update(pod(46, "10.65.0.2/32"))
    assert chain(renderer, "cali-POSTROUTING") == []
    renderer.update(pod(46))
    assert chain(renderer, "cali-egress-dscp") == ["--source fd65::2 --jump DSCP --set-dscp 46"]
    assert chain(renderer, "cali-POSTROUTING") == [LEAVING.format(6)]


def test_sets_follow_their_owners() -> None:
    """Sources enter and leave with their endpoints, an address of two with the last; the node's addresses are a set."""
    sets = SetTable(1000)
    twin = EndpointID("k8s", "shop/twin", "eth0")
    assert not sets.marks
    sets.update(pod(46))
    sets.update(pod(10, "10.65.0.2/32", identity=twin))
    assert sets.marks
    assert sets.sets["cali40dscp-src-net"].members == {"10.65.0.2"}
    assert sets.sets["cali60dscp-src-net"].members == {"fd65::2"}
    sets.update(pod(None))
    assert sets.sets["cali40dscp-src-net"].members == {"10.65.0.2"}
    assert sets.sets["cali60dscp-src-net"].members == set()
    sets.set_this_host(["172.16.0.1", "fd00::1"])
    sets.set_this_host(["172.16.0.2", "fd00::1"])
    grown = sets.resized(5000, ())
    for table in (sets, grown):
        assert table.sets["cali40this-host"].type == "hash:ip"
        assert table.sets["cali40this-host"].members == {"172.16.0.2"}
        assert table.sets["cali60this-host"].members == {"fd00::1"}
    assert grown.marks
    grown.update(Changes(endpoints={twin: None}))
    assert not grown.marks
    assert grown.sets["cali40dscp-src-net"].members == set()


@pytest.mark.parametrize(
    ("source", "destination", "value"),
    [
        ("10.65.0.2", "192.0.2.1", 46),
        ("10.65.0.2", "10.65.1.7", None),
        ("10.65.0.2", "172.16.0.1", None),
        ("10.65.0.3", "192.0.2.1", None),
        ("fd65::2", "2001:db8::1", 46),
        ("fd65::2", "fd65::7", None),
    ],
)
def test_a_walk_tells_the_code_point(source: str, destination: str, value: int | None) -> None:
    """Marked is what a source sends to the outside, not what it sends to pods or to its node; nobody else's."""
    family: Family = 6 if ":" in source else 4
    renderer, sets = Renderer(family, FelixConfig()), SetTable(1000)
    pools = Changes(pools={"10.65.0.0/16": Pool("10.65.0.0/16", False), "fd65::/64": Pool("fd65::/64", False)})
    for changes in (pools, pod(46)):
        renderer.update(changes)
        sets.update(changes)
    sets.set_this_host(["172.16.0.1"])
    packet = Packet(
        source=ipaddress.ip_address(source),
        destination=ipaddress.ip_address(destination),
        protocol="udp",
        destination_port=53,
        in_interface="eth1",
        out_interface="eth0",
    )
    found = walk(renderer.tables, sets.sets, packet)
    assert found.accepted
    assert found.dscp == value


def test_code_points_that_are_none_are_refused() -> None:
    """The walk raises where the kernel would."""
    with pytest.raises(WalkError):
        read_target("--jump DSCP --set-dscp 64")
