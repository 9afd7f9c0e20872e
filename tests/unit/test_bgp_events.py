"""ExaBGP's lines: real ones are read correctly, and no line whatever raises."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calipy.bgp.exabgp.events import (
    Ack,
    Announced,
    EndOfRib,
    Malformed,
    NeighbourTable,
    NotificationEvent,
    OpenEvent,
    RefreshEvent,
    Resync,
    ShownRoute,
    StateEvent,
    Text,
    UpdateEvent,
    parse,
)
from calipy.bgp.path import Attributes, Segment

PEER = ip_address("10.77.0.2")
HEAD = (
    '{ "exabgp": "5.0.0", "time": 1795520247.27, "host" : "vm", "pid" : 1, "ppid" : 1, "counter": 1, "type": "%s", '
    '"neighbor": { "address": { "local": "10.77.0.1", "peer": "10.77.0.2" }, "asn": { "local": 64512, "peer": 64500 }, '
    '"router-id": "10.77.0.1" , %s } }'
)


def event(kind: str, body: str) -> bytes:
    """A line as ExaBGP 5.0.15 writes it."""
    return (HEAD % (kind, body)).encode()


UPDATE = event(
    "update",
    '"direction": "receive", "message": { "update": { "attribute": { "origin": "igp", '
    '"as-path": {"0": {"element": "as-sequence", "value": [64500, 65010]}, "1": {"element": "as-set", "value": [7]}}, '
    '"med": 5, "local-preference": 2147482623, "community": [ [ 64500, 7 ] ], '
    '"large-community": [ [ 64500, 1 , 2 ] ], "originator-id": "10.77.0.4", "cluster-list": [ "10.77.0.3" ], '
    '"attribute-0x63-0xC0": "0x01" }, '
    '"announce": { "ipv4 unicast": { "10.77.0.3": [ { "nlri": "192.0.2.0/24" }, '
    '{ "nlri": "10.2.0.0/26", "path-information": "0.0.0.7" } ] }, "ipv4 multicast": { "10.77.0.3": [ {} ] } }, '
    '"withdraw": { "ipv4 unicast": [ { "nlri": "10.99.0.64/26" } ] } } }',
)
OPEN = event(
    "open",
    '"direction": "receive", "open": { "version": 4, "asn": 23456, "hold_time": 240, "router_id": "10.77.0.3", '
    '"capabilities": { "1": { "name": "multiprotocol", "families": [ "ipv4/unicast" ] }, '
    '"64": { "name": "graceful restart", "time": 120, "address-family-flags": { "ipv4/unicast": [ "restart" ] , '
    '"ipv6/unicast": [ ] }, "restart-flags": [ "forwarding" ]  }, "65": { "name": "asn4", "asn4": 4200000000 } } }',
)


def test_update() -> None:
    """Withdrawals, announcements of both next hops' paths, every attribute; other families are passed over."""
    attributes = Attributes(
        next_hop=ip_address("10.77.0.3"),
        as_path=(Segment("sequence", (64500, 65010)), Segment("set", (7,))),
        local_preference=2147482623,
        med=5,
        communities=((64500, 7),),
        large_communities=((64500, 1, 2),),
        originator_id=IPv4Address("10.77.0.4"),
        cluster_list=(IPv4Address("10.77.0.3"),),
    )
    assert parse(UPDATE) == UpdateEvent(
        PEER,
        ((ip_network("10.99.0.64/26"), ""),),
        (
            Announced(ip_network("192.0.2.0/24"), attributes),
            Announced(ip_network("10.2.0.0/26"), attributes, "0.0.0.7"),
        ),
    )


def test_the_global_next_hop_of_two() -> None:
    """A next hop with a link-local address besides makes one announcement, by the global one, in whichever order."""
    hops = ["2001:db8::1", "fe80::1"]
    for first, second in (hops, hops[::-1], hops[:1] * 2, hops[1:] * 2):
        nlri = {hop: [{"nlri": "2001:db8:1::/48"}] for hop in (first, second)}
        body = {"update": {"attribute": {}, "announce": {"ipv6 unicast": nlri}}}
        update = parse(event("update", f'"direction": "receive", "message": {json.dumps(body)}'))
        assert isinstance(update, UpdateEvent)
        expected = hops[0] if hops[0] in nlri else hops[1]
        assert [str(one.attributes.next_hop) for one in update.announced] == [expected]


def test_open_knows_which_graceful_restart_flag_is_which() -> None:
    """ExaBGP names the F bit ``restart`` and the R bit ``forwarding``; the AS comes from capability 65."""
    assert parse(OPEN) == OpenEvent(
        PEER,
        4200000000,
        64512,
        IPv4Address("10.77.0.3"),
        240,
        restart_time=120,
        restarted=True,
        preserved=frozenset({4}),
        graceful=frozenset({4, 6}),
    )


def test_the_other_events() -> None:
    """State, End-of-RIB, refresh, notification."""
    assert parse(event("state", '"state": "down", "reason": "notification received (6,2)"')) == StateEvent(
        PEER, "down", "notification received (6,2)"
    )
    eor = '"direction": "receive", "message": { "eor": { "afi" : "ipv6", "safi" : "unicast" } }'
    assert parse(event("update", eor)) == EndOfRib(PEER, 6)
    refresh = '"direction": "receive", "route-refresh": { "afi": "ipv4", "safi": "unicast", "subtype": "begin" }'
    assert parse(event("refresh", refresh)) == RefreshEvent(PEER, 4, "begin")
    notification = (
        '"direction": "receive", "notification": { "code": 6, "subcode": 2, "data": "0x", "message": "bye" } '
    )
    assert parse(event("notification", notification)) == NotificationEvent(PEER, 6, 2, "bye")


def test_answers_and_acknowledgements() -> None:
    """What stands between the events: acks, texts, the relay's greeting, shown routes."""
    assert parse(b"done") == Ack(ok=True)
    assert parse(b"error") == Ack(ok=False)
    assert parse(b"exabgp 5.0.15") == Text("exabgp 5.0.15")
    assert parse(b'{"relay": 7, "exabgp": 6, "outstanding": 3}') == Resync(7, 6, 3)
    assert parse(b'{"relay": 7, "exabgp": 6, "outstanding": 3, "dropped": 9}') == Resync(7, 6, 3, 9)
    shown = (
        b'{"peer": {"address": "10.77.0.2"}, "route": {"nlri": {"prefix": "10.3.0.0/26", "nexthop": "10.77.0.2", '
        b'"family": {"afi": "ipv4", "safi": "unicast"}}, "attributes": {"origin": "igp", "med": 5, '
        b'"community": ["64512:7", "no-export"], "large-community": ["64500:1:2"]}}}'
    )
    attributes = Attributes(PEER, med=5, communities=((64512, 7), (65535, 65281)), large_communities=((64500, 1, 2),))
    assert parse(shown) == ShownRoute(PEER, Announced(ip_network("10.3.0.0/26"), attributes))


def neighbour(**changes: Any) -> dict[str, Any]:
    """An entry of ``show neighbor json``, as far as it is read."""
    return {
        "state": "up",
        "duration": 5,
        "fsm": "ESTABLISHED",
        "local": {"address": "10.77.0.1", "as": 64512, "id": "10.77.0.1", "hold": 90},
        "peer": {"capabilities": {"graceful-restart": True}, "address": "10.77.0.2", "as": 64512, "id": "10.77.0.2"},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "up", "seconds"),
    [
        ({}, True, 5),
        ({"state": "down", "duration": 77}, True, 0),
        ({"state": "down", "duration": 3, "fsm": "IDLE"}, False, 0),
    ],
)
def test_a_neighbour_is_up_when_its_state_machine_says_so(changes: dict[str, Any], up: bool, seconds: int) -> None:
    """In its first second an established session shows ``state: down`` and how long it had been down."""
    table = parse(json.dumps([neighbour(**changes)]).encode())
    assert isinstance(table, NeighbourTable)
    assert (table.neighbours[0].up, table.neighbours[0].seconds) == (up, seconds)


WRONG = [
    UPDATE.replace(b'"10.2.0.0/26"', b'"10.2.0.1/26"'),
    UPDATE.replace(b'"10.2.0.0/26"', b'"fd00::/64"'),
    UPDATE.replace(b'"10.2.0.0/26"', b"7"),
    UPDATE.replace(b"2147482623", b"-1"),
    UPDATE.replace(b"2147482623", b"true"),
    UPDATE.replace(b"2147482623", b"99999999999"),
    UPDATE.replace(b'"igp"', b'"nonsense"'),
    UPDATE.replace(b"[ 64500, 7 ]", b"[ 64500, 7, 8 ]"),
    UPDATE.replace(b'"as-set"', b'"as-x"'),
    UPDATE.replace(b'"10.77.0.4"', b'"fe80::1"'),
    UPDATE[:-4],
    b"{}",
    b"[]x",
    b"[1]",
    b'{"route": 1}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    event("other", '"x": 1'),
]


@pytest.mark.parametrize("line", WRONG)
def test_a_line_that_is_not_right_is_malformed_as_a_whole(line: bytes) -> None:
    """Nothing of a broken line is used; that it was broken is said."""
    assert isinstance(parse(line), Malformed)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_no_bytes_raise(line: bytes) -> None:
    """Total: arbitrary bytes give some event."""
    parse(line)


@given(st.data())
@settings(max_examples=500)
def test_no_mutation_of_a_real_line_raises(data: st.DataObject) -> None:
    """Total: real lines with some bytes changed, removed or doubled give some event."""
    line = bytearray(data.draw(st.sampled_from([UPDATE, OPEN, json.dumps([neighbour()]).encode()])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(line) - 1))
        line[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    parse(bytes(line))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["10.0.0.0/26", "10.0.0.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=300)
def test_no_wrong_type_raises(data: st.DataObject) -> None:
    """Total: any member of a real event replaced by any JSON value gives some event."""
    message = json.loads(data.draw(st.sampled_from([UPDATE, OPEN])))
    node: Any = message
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(json_values)
        break
    parse(json.dumps(message).encode())


def test_a_shown_link_local_next_hop_is_the_speakers() -> None:
    """Of a next hop's two addresses (RFC 2545) ExaBGP shows the link-local one: the peer's own stands for it."""
    nlri = {"family": {"afi": "ipv6", "safi": "unicast"}, "nexthop": "fe80::1", "prefix": "::/0"}
    shown = {"peer": {"address": "fd77:1::200"}, "route": {"nlri": nlri, "attributes": {"origin": "igp"}}}
    found = parse(json.dumps(shown).encode())
    assert isinstance(found, ShownRoute)
    assert found.route.attributes.next_hop == ip_address("fd77:1::200")
