"""100,000 lines that no speaker should write: through the parser, the sessions and the RIB, which stay consistent."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calipy.bgp.exabgp.events import Malformed, ShownRoute, UpdateEvent, parse
from calipy.bgp.importing import ImportPolicy
from calipy.bgp.peering import Session
from calipy.bgp.rib import Rib
from calipy.bgp.sessions import Sessions
from calipy.net import IPAddress
from tests.support.bgp_network import POOLS

LINES = 200
ROUNDS = 500
ME = IPv4Address("10.77.0.1")
PEERS: tuple[IPAddress, ...] = tuple(ip_address(text) for text in ("10.77.0.2", "10.77.0.3", "fd00::2"))
LIMIT = 40
WALL = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)

Value = Any
WORDS = (
    "10.244.0.0/26", "10.244.0.64/26", "10.244.9.9/32", "10.0.0.0/8", "0.0.0.0/0", "fd00:1::/122", "10.77.0.2",
    "fd00::2", "igp", "egp", "incomplete", "as-sequence", "as-set", "restart", "forwarding", "ipv4 unicast",
    "ipv6 unicast", "", "\ud800", "up", "down", "connected", "notification received (6,2)", "closing connection", "1e9",
    "-1",
)  # fmt: skip
NUMBERS = (0, -1, 1, 64512, 64500, 1 << 32, 1 << 64, 4.5, True, None)


def an_update(chance: random.Random) -> Value:
    """An UPDATE's body, right in form."""
    blocks = [
        {"nlri": f"10.244.{chance.randrange(3)}.{chance.randrange(4) * 64}/26"} for _ in range(chance.randint(0, 4))
    ]
    hop = chance.choice(["10.77.0.2", "10.77.0.3", "10.77.0.9", "10.77.0.1", "0.0.0.0"])
    attribute = {
        "origin": "igp",
        "as-path": {"0": {"element": "as-sequence", "value": [chance.choice([64500, 64512])]}},
        "local-preference": chance.choice([100, 200]),
        "community": [[64512, 2]],
        "originator-id": "10.77.0.4",
        "cluster-list": ["10.77.0.3"],
    }
    kept = {name: value for name, value in attribute.items() if chance.random() < 0.7}
    update: Value = {"attribute": kept, "announce": {"ipv4 unicast": {hop: blocks}}}
    if chance.random() < 0.4:
        update["withdraw"] = {"ipv4 unicast": blocks[:1]}
    return {"update": update}


BODIES: tuple[tuple[str, Callable[[random.Random], Value]], ...] = (
    ("update", lambda chance: {"direction": "receive", "message": an_update(chance)}),
    ("update", lambda _: {"direction": "receive", "message": {"eor": {"afi": "ipv4", "safi": "unicast"}}}),
    ("state", lambda chance: {"state": chance.choice(["up", "up", "up", "down"]), "reason": chance.choice(WORDS)}),
    (
        "open",
        lambda chance: {
            "direction": "receive",
            "open": {
                "version": 4, "asn": 64512, "hold_time": 90, "router_id": "10.77.0.2",
                "capabilities": {"64": {"name": "graceful restart", "time": chance.choice([0, 120, 4095]),
                "address-family-flags": {"ipv4/unicast": chance.choice([["restart"], []])}, "restart-flags": []}},
            },
        },
    ),
    ("refresh", lambda chance: {"direction": "receive", "route-refresh": {"afi": "ipv4", "safi": "unicast",
        "subtype": chance.choice(["begin", "end", "query"])}}),
    ("notification", lambda _: {"direction": "receive",
        "notification": {"code": 6, "subcode": 2, "data": "0x", "message": ""}}),
)  # fmt: skip


def spoiled(chance: random.Random, value: Value) -> Value:
    """The value with one member somewhere replaced, removed, doubled or moved."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        rest = {name: one for name, one in value.items() if name != key}
        match chance.randrange(6):
            case 0:
                return rest
            case 1:
                return rest | {chance.choice(WORDS): value[key]}
            case _:
                return value | {key: spoiled(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], *([spoiled(chance, value[at])] * chance.randrange(3)), *value[at + 1 :]]
    return chance.choice([*WORDS, *NUMBERS, [], {}, [value], {"x": value}])


def line(chance: random.Random) -> bytes:
    """One line: a right one, one with wrong members, one with wrong bytes, or noise."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.randrange(200))
    kind, body = BODIES[0] if chance.random() < 0.6 else chance.choice(BODIES)
    peer = chance.choice([*PEERS, "10.99.0.1"])
    neighbor = {"address": {"local": str(ME), "peer": str(peer)}, "asn": {"local": 64512, "peer": 64512}}
    message: Value = {"exabgp": "5.0.0", "type": kind, "neighbor": neighbor | body(chance)}
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
        message = spoiled(chance, message)
    text = json.dumps(message).encode()
    if chance.random() < 0.1 and text:
        at = chance.randrange(len(text))
        text = text[:at] + chance.randbytes(chance.randrange(4)) + text[at + chance.randrange(6) :]
    return text


def policy() -> ImportPolicy:
    """What a node with these sessions takes."""
    sessions = {peer: Session(peer, "node-to-node mesh", 64512, 64512, ME, ME) for peer in PEERS}
    return ImportPolicy(sessions, ME, None, frozenset({ME}), frozenset(), POOLS)


def consistent(rib: Rib, chance: random.Random) -> None:
    """Every table agrees with every other one."""
    rib.set_metrics({hop: chance.choice([0, 10, None]) for hop in rib.next_hops()})
    rib.take_changes()
    held = [path for peer in PEERS for path in rib.adj_rib_in(peer)]
    assert rib.size() == (len(held), len(rib.loc_rib()))
    assert {path.prefix for path in held} == rib.prefixes()
    assert {path.attributes.next_hop for path in held} == rib.next_hops()
    for prefix, best in rib.loc_rib().items():
        assert best.path in rib.paths(prefix)
        assert not best.path.rejected
    for peer in PEERS:
        paths, stale, _ = rib.counts(peer)
        assert 0 <= stale <= paths


@given(st.integers(0, (1 << 64) - 1))
@settings(max_examples=ROUNDS, deadline=None)
@pytest.mark.timeout(600)
def test_a_hundred_thousand_lines(seed: int) -> None:
    """Nothing raises, tables agree with each other, and when all peers are removed nothing is left."""
    chance = random.Random(seed)
    rib = Rib(policy())
    sessions = Sessions(rib)
    sessions.want({peer: Session(peer, "node-to-node mesh", 64512, 64512, ME, ME) for peer in PEERS}, WALL)
    seen = {"right": 0, "malformed": 0}
    for now in range(LINES):
        event = parse(line(chance))
        seen["malformed" if isinstance(event, Malformed) else "right"] += 1
        if isinstance(event, ShownRoute):
            continue
        sessions.on_event(event, float(now), WALL)
        if isinstance(event, UpdateEvent) and chance.random() < 0.1:
            consistent(rib, chance)
        if chance.random() < 0.02:
            rib.expire(float(now))
    consistent(rib, chance)
    assert min(seen.values()) > LINES // 20, "the lines are neither all right nor all wrong"
    sessions.want({}, WALL)
    rib.take_changes()
    assert (rib.size(), rib.prefixes(), rib.next_hops()) == ((0, 0), set(), set())
