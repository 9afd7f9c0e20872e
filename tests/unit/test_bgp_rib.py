"""The RIB and the decision: order of arrival does not matter, withdraw undoes announce, time lets go of stale paths."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.bgp.decision import decide
from calipy.bgp.path import Attributes, Path, Peer, Segment
from calipy.bgp.rib import EOR_WAIT, Rib
from calipy.net import Prefix

PREFIXES: list[Prefix] = [ip_network(f"10.0.{i}.0/26") for i in range(3)]
HOPS = [ip_address(f"192.0.2.{i}") for i in range(1, 4)]
PEERS = [
    Peer(ip_address(f"192.0.2.{i}"), 64512 if i < 4 else 65000 + i, 64512, IPv4Address(f"10.9.0.{10 - i}"))
    for i in range(1, 6)
]


def accept(_peer: Peer, _prefix: Prefix, given_: Attributes) -> tuple[str, Attributes]:
    """Import policy that takes everything."""
    return "", given_


def path_of(*numbers: int) -> tuple[Segment, ...]:
    """An AS_PATH of one sequence."""
    return (Segment("sequence", numbers),) if numbers else ()


attributes = st.builds(
    Attributes,
    next_hop=st.sampled_from(HOPS),
    origin=st.sampled_from(["igp", "egp", "incomplete"]),
    as_path=st.sampled_from([(), path_of(65001), path_of(65002), path_of(65001, 65003), (Segment("set", (1, 2, 3)),)]),
    local_preference=st.sampled_from([None, 100, 200]),
    med=st.sampled_from([None, 0, 5, 9]),
    originator_id=st.sampled_from([None, IPv4Address("10.9.9.9")]),
    cluster_list=st.sampled_from([(), (IPv4Address("1.1.1.1"),), (IPv4Address("1.1.1.1"), IPv4Address("2.2.2.2"))]),
)
paths = st.builds(
    Path,
    prefix=st.just(PREFIXES[0]),
    peer=st.sampled_from(PEERS),
    attributes=attributes,
    path_id=st.sampled_from(["", "0.0.0.1"]),
    stale=st.booleans(),
)


def filled(*, metric: int = 0) -> Rib:
    """A RIB whose peers are up and whose next hops are all reachable."""
    rib = Rib(accept)
    for peer in PEERS:
        rib.peer_up(peer, 0.0)
    rib.set_metrics(dict.fromkeys(HOPS, metric))
    return rib


def settle(rib: Rib) -> None:
    """Resolve next hops and decide."""
    rib.set_metrics(dict.fromkeys(rib.next_hops(), 0))
    rib.take_changes()


@given(st.lists(paths, min_size=1, max_size=6, unique_by=lambda path: (path.peer, path.path_id)), st.randoms())
def test_best_path_does_not_depend_on_the_order(found: list[Path], chance: random.Random) -> None:
    """Any order of the same paths gives the same best path, reason and multipath set."""
    shuffled = found[:]
    chance.shuffle(shuffled)
    assert decide(found, lambda _: 0) == decide(shuffled, lambda _: 0)


@given(st.lists(paths, min_size=1, max_size=6, unique_by=lambda path: (path.peer, path.path_id)))
def test_best_path_is_one_of_them_and_leads_its_multipath(found: list[Path]) -> None:
    """The winner is a candidate; all of a multipath set differ in next hop and equal it in what counts."""
    best = decide(found, lambda _: 0)
    assert best
    assert best.path in found
    assert best.multipath[0] == best.path
    assert len({one.attributes.next_hop for one in best.multipath}) == len(best.multipath)
    assert {one.attributes.as_path_length for one in best.multipath} == {best.path.attributes.as_path_length}
    assert not best.path.stale or all(path.stale for path in found)


BASE = Attributes(HOPS[0], local_preference=100)
ORDER = [
    ("higher LOCAL_PREF", {"local_preference": 200}, {"local_preference": 100}, 0, 1),
    ("shorter AS_PATH", {"as_path": path_of(65001)}, {"as_path": path_of(65001, 65002)}, 0, 1),
    ("shorter AS_PATH", {"as_path": (Segment("set", (1, 2, 3)),)}, {"as_path": path_of(1, 2)}, 0, 1),
    ("lower ORIGIN", {"origin": "igp"}, {"origin": "incomplete"}, 0, 1),
    ("lower MED", {"as_path": path_of(65001), "med": 1}, {"as_path": path_of(65001), "med": 2}, 0, 1),
    ("lower router ID", {"as_path": path_of(65002), "med": 9}, {"as_path": path_of(65001), "med": 2}, 1, 0),
    ("eBGP over iBGP", {}, {}, 3, 0),
    ("shorter CLUSTER_LIST", {"cluster_list": ()}, {"cluster_list": (IPv4Address(1),)}, 0, 1),
    ("lower router ID", {}, {}, 1, 0),
    ("lower router ID", {"originator_id": IPv4Address(5)}, {"originator_id": IPv4Address(6)}, 0, 1),
    ("lower peer address", {"originator_id": IPv4Address(5)}, {"originator_id": IPv4Address(5)}, 0, 1),
]


@pytest.mark.parametrize(("reason", "winner", "loser", "peer", "other"), ORDER)
def test_each_step_decides_and_says_so(reason, winner, loser, peer, other) -> None:
    """RFC 4271 9.1.2.2 and RFC 4456 9, step by step; MED counts only within one neighbour AS."""
    changed = [
        Path(PREFIXES[0], PEERS[index], Attributes(**{"next_hop": HOPS[0], "local_preference": 100, **fields}))
        for index, fields in ((peer, winner), (other, loser))
    ]
    best = decide(changed, lambda _: 0)
    assert best
    assert (best.path, best.reason) == (changed[0], reason)


def test_a_nearer_next_hop_wins_and_an_unreachable_one_never() -> None:
    """The kernel's metric to the next hop counts after eBGP over iBGP; unreachable paths take no part."""
    one = Path(PREFIXES[0], PEERS[0], Attributes(HOPS[0]))
    two = Path(PREFIXES[0], PEERS[1], Attributes(HOPS[1]))
    costs = {HOPS[0]: 20, HOPS[1]: 10}
    best = decide([one, two], costs.get)
    assert best
    assert (best.path, best.reason) == (two, "nearer next hop")
    best = decide([one, two], {HOPS[0]: 20}.get)
    assert best
    assert (best.path, best.candidates) == (one, 1)
    assert decide([one, two], lambda _: None) is None


operations = st.lists(
    st.tuples(st.sampled_from(PEERS), st.sampled_from(PREFIXES), st.none() | attributes), min_size=1, max_size=30
)


@given(operations, st.randoms())
def test_only_the_last_word_of_each_peer_counts(told, chance: random.Random) -> None:
    """Interleaving peers differently, or deciding in between, ends in the same Loc-RIB."""
    one, two = filled(), filled()
    for peer, prefix, said in told:
        if said is None:
            one.withdraw(peer.address, prefix)
        else:
            one.announce(peer.address, prefix, said)
    settle(one)
    by_peer = {peer: [entry for entry in told if entry[0] == peer] for peer in PEERS}
    queues = [queue for queue in by_peer.values() if queue]
    while queues:
        queue = chance.choice(queues)
        peer, prefix, said = queue.pop(0)
        if said is None:
            two.withdraw(peer.address, prefix)
        else:
            two.announce(peer.address, prefix, said)
        if chance.random() < 0.3:
            settle(two)
        queues = [queue for queue in queues if queue]
    settle(two)
    assert dict(one.loc_rib()) == dict(two.loc_rib())
    assert one.size() == two.size()


@given(operations)
def test_withdrawing_everything_leaves_nothing(told) -> None:
    """Withdraw undoes announce, down to the next hops; changes taken along the way add up to nothing."""
    rib = filled()
    seen: dict[Prefix, object] = {}
    for peer, prefix, said in told:
        if said is not None:
            rib.announce(peer.address, prefix, said)
        rib.set_metrics(dict.fromkeys(rib.next_hops(), 0))
        for change in rib.take_changes():
            assert seen.get(change.prefix) == (change.old and change.old.multipath)
            seen[change.prefix] = change.new and change.new.multipath
    for peer, prefix, _ in told:
        rib.withdraw(peer.address, prefix)
    for change in rib.take_changes():
        seen[change.prefix] = change.new
    assert not any(seen.values())
    assert rib.size() == (0, 0)
    assert rib.next_hops() == set()


def test_a_silent_restart_keeps_paths_until_end_of_rib() -> None:
    """RFC 4724 4.2: kept while the peer restarts, confirmed by announcing again, swept by End-of-RIB."""
    rib = filled()
    address = PEERS[0].address
    for prefix in PREFIXES:
        rib.announce(address, prefix, BASE)
    settle(rib)
    rib.peer_down(address, 10.0, retain=60.0)
    settle(rib)
    assert set(rib.loc_rib()) == set(PREFIXES)
    assert rib.counts(address) == (3, 3, 0)
    assert rib.next_deadline() == 70.0
    rib.peer_up(PEERS[0], 20.0)
    assert rib.next_deadline() == 20.0 + EOR_WAIT
    rib.announce(address, PREFIXES[0], BASE)
    rib.end_of_rib(address, 4)
    settle(rib)
    assert set(rib.loc_rib()) == {PREFIXES[0]}
    assert rib.next_deadline() is None


@pytest.mark.parametrize("how", ["never back", "no F bit", "other router", "second loss", "no End-of-RIB"])
def test_stale_paths_do_not_outlive_their_reason(how: str) -> None:
    """Each way in which a restart fails ends in the paths going, in bounded time."""
    rib = filled()
    address = PEERS[0].address
    rib.announce(address, PREFIXES[0], BASE)
    rib.peer_down(address, 0.0, retain=60.0)
    match how:
        case "never back":
            rib.expire(59.9)
            assert rib.counts(address)[0] == 1
            rib.expire(60.0)
        case "no F bit":
            rib.peer_up(PEERS[0], 1.0, preserved=())
        case "other router":
            rib.peer_up(Peer(address, 64512, 64512, IPv4Address("10.99.0.1")), 1.0)
        case "second loss":
            rib.peer_up(PEERS[0], 1.0)
            rib.peer_down(address, 2.0, retain=60.0)
        case "no End-of-RIB":
            rib.peer_up(PEERS[0], 1.0)
            rib.expire(1.0 + EOR_WAIT)
    assert rib.counts(address) == (0, 0, 0)


def test_a_failed_attempt_to_return_does_not_start_the_clock_again() -> None:
    """Noise about a session that is down anyway changes nothing."""
    rib = filled()
    address = PEERS[0].address
    rib.announce(address, PREFIXES[0], BASE)
    rib.peer_down(address, 0.0, retain=60.0)
    rib.peer_down(address, 50.0, retain=60.0)
    assert rib.next_deadline() == 60.0


def test_a_fresh_path_beats_a_stale_one_whatever_else() -> None:
    """A restarting peer's better path gives way to any fresh one."""
    rib = filled()
    rib.announce(PEERS[0].address, PREFIXES[0], Attributes(HOPS[0], local_preference=900))
    rib.announce(PEERS[1].address, PREFIXES[0], Attributes(HOPS[1], local_preference=1))
    rib.peer_down(PEERS[0].address, 0.0, retain=60.0)
    settle(rib)
    best = rib.best(PREFIXES[0])
    assert best
    assert (best.path.peer, best.reason) == (PEERS[1], "fresh over stale")


def test_a_peer_at_its_limit_is_not_taken_further() -> None:
    """Beyond the limit new prefixes are counted and dropped; known ones may change, and a withdrawal makes room."""
    rib = Rib(accept)
    rib.peer_up(PEERS[0], 0.0, limit=2)
    address = PEERS[0].address
    assert [rib.announce(address, prefix, BASE) for prefix in PREFIXES] == [True, True, False]
    assert rib.announce(address, PREFIXES[0], Attributes(HOPS[1]))
    assert rib.counts(address) == (2, 0, 1)
    rib.withdraw(address, PREFIXES[0])
    assert rib.announce(address, PREFIXES[2], BASE)


def test_room_that_comes_back_is_noticed() -> None:
    """What was refused at the limit is remembered until taken back or told again; a refresh starts anew."""
    rib = Rib(accept)
    rib.peer_up(PEERS[0], 0.0, limit=2)
    address = PEERS[0].address
    for prefix in PREFIXES[:3]:
        rib.announce(address, prefix, BASE)
    assert rib.with_room() == set()
    rib.withdraw(address, PREFIXES[0])
    assert rib.with_room() == {address}
    rib.withdraw(address, PREFIXES[2])
    assert (rib.with_room(), rib.counts(address)) == (set(), (1, 0, 0))
    rib.announce(address, PREFIXES[0], BASE)
    rib.announce(address, PREFIXES[2], BASE)
    rib.begin_refresh(address, 1.0)
    assert not rib.announce(address, PREFIXES[2], BASE), "what is known already goes first"
    assert rib.announce(address, PREFIXES[0], BASE)
    rib.end_of_rib(address, 4)
    assert rib.with_room() == {address}, "the other one has gone"


def test_stale_paths_do_not_count() -> None:
    """A peer that restarts with other prefixes has its whole limit for them."""
    rib = Rib(accept)
    rib.peer_up(PEERS[0], 0.0, limit=1)
    address = PEERS[0].address
    rib.announce(address, PREFIXES[0], BASE)
    rib.peer_down(address, 1.0, retain=100.0)
    rib.peer_up(PEERS[0], 2.0, limit=1)
    assert rib.announce(address, PREFIXES[1], BASE)
    assert not rib.announce(address, PREFIXES[2], BASE)
    rib.end_of_rib(address, 4)
    assert rib.counts(address) == (1, 0, 1)


def test_a_flood_is_more_than_twice_the_limit() -> None:
    """Different prefixes count, not how often one of them is told."""
    rib = Rib(accept)
    rib.peer_up(PEERS[0], 0.0, limit=1)
    address = PEERS[0].address
    for prefix in (*PREFIXES[:2], PREFIXES[1], PREFIXES[1]):
        rib.announce(address, prefix, BASE)
    assert rib.flooding() == set()
    rib.announce(address, PREFIXES[2], BASE)
    assert rib.flooding() == {address}


def test_refused_paths_stay_known_and_return_when_the_policy_changes() -> None:
    """A refused path is kept with its reason, takes no part, and is judged again by another policy."""
    rib = Rib(lambda _peer, prefix, given_: ("no" if prefix == PREFIXES[0] else "", given_))
    rib.peer_up(PEERS[0], 0.0)
    for prefix in PREFIXES[:2]:
        rib.announce(PEERS[0].address, prefix, BASE)
    settle(rib)
    assert set(rib.loc_rib()) == {PREFIXES[1]}
    assert [path.rejected for path in rib.paths(PREFIXES[0])] == ["no"]
    rib.set_policy(accept)
    settle(rib)
    assert set(rib.loc_rib()) == set(PREFIXES[:2])


def test_a_next_hop_that_comes_and_goes_takes_its_prefixes_along() -> None:
    """Changed reachability decides again exactly where that next hop is used."""
    rib = filled()
    rib.announce(PEERS[0].address, PREFIXES[0], Attributes(HOPS[0]))
    rib.announce(PEERS[1].address, PREFIXES[1], Attributes(HOPS[1]))
    settle(rib)
    rib.set_metrics({HOPS[0]: None})
    assert [(change.prefix, change.new) for change in rib.take_changes()] == [(PREFIXES[0], None)]
    rib.set_metrics({HOPS[0]: 0})
    assert [change.prefix for change in rib.take_changes()] == [PREFIXES[0]]


def test_decided_before_its_next_hop_was_resolved() -> None:
    """A prefix decided too early is decided again when its next hop becomes known."""
    rib = Rib(accept)
    rib.peer_up(PEERS[0], 0.0)
    rib.announce(PEERS[0].address, PREFIXES[0], BASE)
    assert rib.take_changes() == []
    rib.set_metrics({BASE.next_hop: 0})
    assert [change.prefix for change in rib.take_changes()] == [PREFIXES[0]]


def test_every_pair_of_paths_has_one_winner() -> None:
    """Swapping two paths never changes the winner: the last steps tell any two apart."""
    every = [
        Path(PREFIXES[0], peer, Attributes(hop, local_preference=preference), path_id)
        for peer in PEERS[:3]
        for hop in HOPS[:2]
        for preference in (None, 100)
        for path_id in ("", "0.0.0.1")
    ]
    for one, two in itertools.combinations(every, 2):
        if (one.peer, one.path_id) != (two.peer, two.path_id):
            assert decide([one, two], lambda _: 0) == decide([two, one], lambda _: 0)


def test_judging_again_reaches_only_the_prefixes_named() -> None:
    """A policy that differs for one prefix is asked for that prefix alone, and decides as ``set_policy`` would."""
    asked: list[Prefix] = []

    def refuses(prefix: Prefix) -> Callable[[Peer, Prefix, Attributes], tuple[str, Attributes]]:
        def policy(_: Peer, of: Prefix, attributes: Attributes) -> tuple[str, Attributes]:
            asked.append(of)
            return ("own prefix" if of == prefix else ""), attributes

        return policy

    one, two, nothing = ip_network("10.1.0.0/26"), ip_network("10.2.0.0/26"), ip_network("10.3.0.0/26")
    hop = ip_address("10.0.0.2")
    rib = Rib(refuses(nothing))
    rib.peer_up(Peer(hop, 64512, 64512, IPv4Address(2)), 0.0)
    for prefix in (one, two):
        rib.announce(hop, prefix, Attributes(hop))
    rib.set_metrics({hop: 0})
    assert {change.prefix for change in rib.take_changes()} == {one, two}
    asked.clear()
    rib.judge_again(refuses(one), {one, nothing})
    assert asked == [one]
    assert [(change.prefix, change.new) for change in rib.take_changes()] == [(one, None)]
    rib.announce(hop, one, Attributes(hop, med=1))
    assert rib.take_changes() == [], "the new policy holds from now on"
