"""Sessions: what each loss and each return means for the peer's paths; what a resync takes from where."""

from __future__ import annotations

import datetime
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.bgp import status
from calipy.bgp.exabgp.events import (
    Announced,
    EndOfRib,
    Event,
    Neighbour,
    NeighbourTable,
    NotificationEvent,
    OpenEvent,
    RefreshEvent,
    Resync,
    ShownRoute,
    StateEvent,
    UpdateEvent,
)
from calipy.bgp.path import Attributes
from calipy.bgp.peering import Session
from calipy.bgp.rib import EOR_WAIT, Rib
from calipy.bgp.sessions import NO_EOR_WAIT, SETTLED, Sessions
from calipy.net import IPAddress, Prefix

PEER, OTHER = ip_address("10.0.0.2"), ip_address("10.0.0.3")
ME = IPv4Address("10.0.0.1")
WALL = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)
BLOCKS: list[Prefix] = [ip_network(f"10.244.{i}.0/26") for i in range(4)]
SESSION = Session(PEER, "node-to-node mesh", 64512, 64512, ME, ME)


def opened(peer: IPAddress = PEER, *, graceful: bool = True, preserved: bool = True, **fields: Any) -> OpenEvent:
    """An OPEN with or without graceful restart."""
    return OpenEvent(
        peer,
        64512,
        64512,
        IPv4Address(int(peer)),
        90,
        restart_time=fields.get("restart_time", 60) if graceful else None,
        graceful=frozenset({4}) if graceful else frozenset(),
        preserved=frozenset({4}) if graceful and preserved else frozenset(),
    )


def update(*announced: Prefix, withdrawn: tuple[Prefix, ...] = (), peer: IPAddress = PEER) -> UpdateEvent:
    """An UPDATE."""
    return UpdateEvent(
        peer, tuple((one, "") for one in withdrawn), tuple(Announced(one, Attributes(peer)) for one in announced)
    )


class Bench:
    """Sessions and their RIB, driven by hand."""

    def __init__(self, *sessions: Session) -> None:
        self.rib = Rib(lambda _peer, _prefix, given_: ("", given_))
        self.sessions = Sessions(self.rib)
        self.sessions.want({one.peer: one for one in sessions or (SESSION,)}, WALL)

    def feed(self, *events: Event, now: float = 0.0) -> None:
        """Events in order."""
        for event in events:
            self.sessions.on_event(event, now, WALL)

    def held(self, peer: IPAddress = PEER) -> set[Prefix]:
        """Prefixes in the peer's adj-rib-in."""
        return {path.prefix for path in self.rib.adj_rib_in(peer)}

    def stale(self, peer: IPAddress = PEER) -> int:
        """How many of them are stale."""
        return self.rib.counts(peer)[1]


def established(**fields: Any) -> Bench:
    """A session that is up and has told two blocks."""
    bench = Bench()
    bench.feed(opened(**fields), StateEvent(PEER, "up"), update(*BLOCKS[:2]), EndOfRib(PEER, 4))
    return bench


def test_up_owes_an_end_of_rib_once() -> None:
    """Each coming up is told once; a session that is down again is not owed anything."""
    bench = established()
    assert bench.sessions.take_came_up() == {PEER}
    assert bench.sessions.take_came_up() == set()
    bench.feed(StateEvent(PEER, "down", "x"), StateEvent(PEER, "up"), StateEvent(PEER, "down", "x"))
    assert bench.sessions.take_came_up() == set()


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("closing connection", True),
        ("graceful restarted negotiated, closing without sending any notification", True),
        ("notification received (6,2)", False),
        ("notification sent (4,0)", False),
        ("stop, message [removed]", False),
    ],
)
def test_which_losses_keep_paths(reason: str, kept: bool) -> None:
    """Only a silent close can be a restart; every word of the peer or of ours ends its paths (RFC 4724 4.2)."""
    bench = established()
    bench.feed(StateEvent(PEER, "down", reason), now=10.0)
    assert (bench.held(), bench.stale()) == (set(BLOCKS[:2]), 2) if kept else (set(), 0)
    if kept:
        assert bench.rib.next_deadline() == 70.0


def test_without_graceful_restart_nothing_is_kept() -> None:
    """A peer whose OPEN does not list the capability, or has it without our family, is not waited for."""
    bench = established(graceful=False)
    bench.feed(StateEvent(PEER, "down", "closing connection"))
    assert bench.held() == set()


def test_the_restart_time_is_capped_by_ours() -> None:
    """A peer cannot make us keep its paths longer than maxRestartTime."""
    bench = established(restart_time=4000)
    bench.feed(StateEvent(PEER, "down", "closing connection"), now=0.0)
    assert bench.rib.next_deadline() == SESSION.restart_time == 120


def test_a_peer_that_returns_without_its_forwarding_state() -> None:
    """No F bit in the new OPEN: what it told before is gone at once."""
    bench = established()
    bench.feed(StateEvent(PEER, "down", "closing connection"), opened(preserved=False), StateEvent(PEER, "up"))
    assert bench.held() == set()


def test_a_peer_that_returns_confirms_and_drops() -> None:
    """Stale paths are confirmed one by one, and the rest goes at End-of-RIB."""
    bench = established()
    bench.feed(StateEvent(PEER, "down", "closing connection"), opened(), StateEvent(PEER, "up"))
    assert bench.stale() == 2
    bench.feed(update(BLOCKS[1]), EndOfRib(PEER, 4))
    assert (bench.held(), bench.stale()) == ({BLOCKS[1]}, 0)


@pytest.mark.parametrize(("graceful", "wait"), [(True, EOR_WAIT), (False, NO_EOR_WAIT)])
def test_our_own_speaker_dies(graceful: bool, wait: float) -> None:
    """Paths of all peers stay, also of those without graceful restart or F bit, which did not restart at all."""
    bench = established(graceful=graceful)
    bench.sessions.speaker_lost(0.0, WALL)
    assert bench.stale() == 2
    bench.feed(StateEvent(PEER, "down", "closing connection"), now=1.0)
    assert bench.stale() == 2, "a refused attempt of the new speaker is no second loss"
    bench.feed(opened(graceful=graceful, preserved=False), StateEvent(PEER, "up"), now=2.0)
    assert bench.rib.next_deadline() == 2.0 + wait
    bench.feed(update(BLOCKS[0]), now=3.0)
    bench.rib.expire(2.0 + wait)
    assert bench.held() == {BLOCKS[0]}


def test_enhanced_refresh_brackets() -> None:
    """RFC 7313: what is not told again between begin and end is gone."""
    bench = established()
    bench.feed(RefreshEvent(PEER, 4, "begin"), update(BLOCKS[0]), RefreshEvent(PEER, 4, "end"))
    assert bench.held() == {BLOCKS[0]}


def test_an_unwanted_peer_is_forgotten_with_its_paths() -> None:
    """Removing a session removes its paths; late events about it are ignored."""
    bench = established()
    bench.sessions.want({}, WALL)
    bench.feed(update(BLOCKS[2]), StateEvent(PEER, "down", "stop, message [removed]"), opened(), EndOfRib(PEER, 4))
    assert bench.rib.size() == (0, 0)
    assert bench.sessions.states() == {}


# Resync


def neighbour(peer: IPAddress = PEER, *, up: bool = True, seconds: int = 99) -> Neighbour:
    """One entry of the table."""
    return Neighbour(peer, ME, up, seconds, 64512, 64512, IPv4Address(int(peer)) if up else None, graceful=True)


def shown(*prefixes: Prefix, peer: IPAddress = PEER) -> list[ShownRoute]:
    """Lines of ``show adj-rib in``."""
    return [ShownRoute(peer, Announced(prefix, Attributes(peer))) for prefix in prefixes]


def test_a_new_bgpd_takes_sessions_and_routes_from_exabgp() -> None:
    """Adoption: sessions that are up count as up since then, their routes are taken, those of down peers are not."""
    bench = Bench(SESSION, Session(OTHER, "global", 64512, 64512, ME, ME))
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(), neighbour(OTHER, up=False))), now=1000.0)
    bench.sessions.end_resync([*shown(*BLOCKS[:2]), *shown(BLOCKS[2], peer=OTHER)])
    assert (bench.held(), bench.held(OTHER)) == (set(BLOCKS[:2]), set())
    state = bench.sessions.states()[PEER]
    assert (state.up, state.since) == (True, WALL - datetime.timedelta(seconds=99))
    assert bench.sessions.settled(PEER, 1000.0)
    assert bench.sessions.take_came_up() == {PEER}


def test_events_are_newer_than_what_is_shown() -> None:
    """What comes after the table wins over the listing, whether told or withdrawn."""
    bench = Bench()
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(),)), update(BLOCKS[3], withdrawn=(BLOCKS[0],)))
    bench.sessions.end_resync(shown(BLOCKS[0], BLOCKS[1]))
    assert bench.held() == {BLOCKS[1], BLOCKS[3]}


def test_a_reconnected_relay_shows_what_went_missing() -> None:
    """What was withdrawn while nobody listened is not in the listing, and goes."""
    bench = established()
    bench.feed(Resync(1, 2, 0))
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(),)))
    assert bench.held() == set(BLOCKS[:2]), "kept until the listing is complete"
    bench.sessions.end_resync(shown(BLOCKS[1]))
    assert (bench.held(), bench.stale()) == ({BLOCKS[1]}, 0)


def test_a_session_that_came_up_anew_is_not_mixed_with_its_past() -> None:
    """Lines shown of a session that went down and up during the listing are of its past."""
    bench = Bench()
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(),)), StateEvent(PEER, "down", "notification received (6,4)"))
    bench.feed(opened(), StateEvent(PEER, "up"), update(BLOCKS[2]))
    bench.sessions.end_resync(shown(*BLOCKS[:2]))
    assert bench.held() == {BLOCKS[2]}


def test_a_young_session_is_still_telling() -> None:
    """Whether an earlier bgpd saw its End-of-RIB is unknown: it settles when it sends one, or with time."""
    bench = Bench()
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(seconds=2),)), now=100.0)
    bench.sessions.end_resync(shown(BLOCKS[0]))
    assert not bench.sessions.settled(PEER, 101.0)
    assert bench.sessions.settled(PEER, 98.1 + SETTLED)
    bench.feed(EndOfRib(PEER, 4))
    assert bench.sessions.settled(PEER, 101.0)


def test_an_up_event_before_the_table_is_not_undone_by_it() -> None:
    """The table counts where it stands in the stream."""
    bench = Bench()
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(up=False),)), opened(), StateEvent(PEER, "up"), update(BLOCKS[0]))
    bench.sessions.end_resync([])
    assert bench.sessions.states()[PEER].up
    assert bench.held() == {BLOCKS[0]}


def test_an_end_of_rib_that_comes_before_the_table_is_not_forgotten() -> None:
    """It counts once everything has been read back; the relay's greeting, not the question, is where a gap ends."""
    bench = established()
    bench.feed(Resync(1, 2, 0), EndOfRib(PEER, 4))
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(seconds=1),)), now=100.0)
    assert bench.held() == set(BLOCKS[:2])
    bench.sessions.end_resync(shown(BLOCKS[1]))
    assert (bench.held(), bench.sessions.settled(PEER, 100.0)) == ({BLOCKS[1]}, True)


def test_paths_of_a_session_that_flapped_unheard_wait_for_the_listing() -> None:
    """Whoever comes back without graceful restart has told its routes again by then: they do not leave the kernel."""
    bench = established(graceful=False)
    bench.feed(Resync(1, 2, 0), now=50.0)
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(seconds=20),)), now=50.0)
    assert bench.held() == set(BLOCKS[:2])
    assert bench.sessions.states()[PEER].flaps == 1
    bench.sessions.end_resync(shown(BLOCKS[1]))
    assert bench.held() == {BLOCKS[1]}


@pytest.mark.parametrize("seconds", [48, 50])
def test_a_session_that_outlived_a_gap_is_the_same(seconds: int) -> None:
    """ExaBGP counts its age in whole seconds; nothing but the routes is read back."""
    bench = established()
    before = bench.sessions.states()[PEER].open
    bench.feed(Resync(1, 2, 0), now=50.0)
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(seconds=seconds),)), now=50.0)
    state = bench.sessions.states()[PEER]
    assert (state.flaps, state.open, state.up_at) == (0, before, 0.0)


def test_a_loss_while_everything_is_read_back_keeps_paths_that_are_not_shown_yet() -> None:
    """Stale for being read back is not stale for having been lost before."""
    bench = established()
    bench.feed(Resync(1, 2, 0))
    bench.sessions.expect_resync()
    bench.feed(NeighbourTable((neighbour(),)))
    bench.sessions.speaker_lost(10.0, WALL)
    assert (bench.held(), bench.stale()) == (set(BLOCKS[:2]), 2)
    assert bench.rib.next_deadline() == 10.0 + SESSION.restart_time


# What people are told


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "not connected yet"),
        ([StateEvent(PEER, "connected"), StateEvent(PEER, "down", "closing connection")], "does it listen on port 179"),
        ([StateEvent(PEER, "down", "notification received (2,2)")], "AS numbers of the two ends do not match"),
        ([StateEvent(PEER, "down", "notification sent (2,2)")], "we said: bad peer AS"),
        (
            [NotificationEvent(PEER, 6, 5, "no session"), StateEvent(PEER, "down", "closing connection")],
            "does not know us",
        ),
        (
            [opened(), StateEvent(PEER, "up"), StateEvent(PEER, "down", "notification sent (4,0)")],
            "we said: hold timer expired",
        ),
    ],
)
def test_the_cause_of_a_session_that_is_not_up(events: list[Event], words: str) -> None:
    """Each session that is not up says why, in words that lead somewhere."""
    bench = Bench()
    bench.feed(*events)
    assert words in bench.sessions.states()[PEER].info


def test_readiness() -> None:
    """calico/node's rule: all peers in the first 30 s, one later; and never without datastore or speaker."""
    bench = Bench(SESSION, Session(OTHER, "global", 64500, 64512, ME, ME))
    states = bench.sessions.states()
    assert "datastore" in status.reasons(status.Condition(5, in_sync=False), states)[0]
    assert "speaker" in status.reasons(status.Condition(5, in_sync=True, speaker="x"), states)[0]
    bench.feed(opened(), StateEvent(PEER, "up"))
    (reason,) = status.reasons(status.Condition(5, in_sync=True), states)
    assert "10.0.0.3" in reason
    assert status.reasons(status.Condition(31, in_sync=True), states) == []
    bench.feed(StateEvent(PEER, "down", "x"))
    assert "none of 2" in status.reasons(status.Condition(31, in_sync=True), states)[0]
    assert status.reasons(status.Condition(5, in_sync=True), {}) == []
    assert status.reasons(status.Condition(5, in_sync=True, restarting=True), {}) == ["graceful restart in progress"]


def test_end_of_rib_during_a_resync_sweeps_only_until_the_listing() -> None:
    """Told before the table, End-of-RIB after it, then shown: the paths are there in the end."""
    bench = Bench()
    bench.sessions.expect_resync()
    bench.feed(opened(preserved=False), StateEvent(PEER, "up"), update(*BLOCKS[:2]))
    bench.feed(NeighbourTable((neighbour(seconds=0),)), EndOfRib(PEER, 4))
    bench.sessions.end_resync(iter(shown(*BLOCKS[:2])))
    assert (bench.held(), bench.stale()) == (set(BLOCKS[:2]), 0)


steps = st.lists(
    st.tuples(st.sampled_from(["announce", "withdraw", "flap", "end of rib"]), st.integers(0, 3)), max_size=12
)


@given(steps, steps, steps, steps, st.integers(0, 30))
def test_a_resync_in_the_middle_of_anything_ends_in_the_truth(before, asked, listed, after, seconds: int) -> None:
    """However updates, flaps and End-of-RIBs fall around the table and the listing, we hold what the peer has told."""
    bench = Bench()
    bench.feed(opened(), StateEvent(PEER, "up"))
    truth: set[Prefix] = set()

    def play(moves: list[tuple[str, int]]) -> None:
        for move, number in moves:
            match move:
                case "announce":
                    truth.add(BLOCKS[number])
                    bench.feed(update(BLOCKS[number]))
                case "withdraw":
                    truth.discard(BLOCKS[number])
                    bench.feed(update(withdrawn=(BLOCKS[number],)))
                case "flap":
                    truth.clear()
                    bench.feed(
                        StateEvent(PEER, "down", "notification received (6,4)"), opened(), StateEvent(PEER, "up")
                    )
                case "end of rib":
                    bench.feed(EndOfRib(PEER, 4))

    play(before)
    bench.sessions.expect_resync()
    play(asked)
    bench.feed(NeighbourTable((neighbour(seconds=seconds),)))
    play(listed)
    listing = shown(*truth)
    play(after)
    bench.sessions.end_resync(listing)
    bench.feed(EndOfRib(PEER, 4))
    assert bench.held() == truth
    assert bench.stale() == 0
