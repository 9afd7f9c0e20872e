"""Events get lost with a bgpd that dies or is slow: whenever that is, we end with what ExaBGP has, and lose nothing."""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from calipy.bgp.exabgp.events import (
    Announced,
    EndOfRib,
    Event,
    Neighbour,
    NeighbourTable,
    OpenEvent,
    Resync,
    ShownRoute,
    StateEvent,
    UpdateEvent,
)
from calipy.bgp.path import Attributes
from calipy.bgp.peering import Session
from calipy.bgp.rib import Rib
from calipy.bgp.sessions import NO_EOR_WAIT, SETTLED, Sessions
from calipy.net import IPAddress, Prefix

ME = IPv4Address("10.0.0.1")
PEERS: tuple[IPAddress, ...] = (ip_address("10.0.0.2"), ip_address("10.0.0.3"))
SESSIONS = {peer: Session(peer, "node-to-node mesh", 64512, 64512, ME, ME) for peer in PEERS}
BLOCKS: tuple[Prefix, ...] = tuple(ip_network(f"10.244.{number}.0/26") for number in range(3))
WALL = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)
REASONS = ("closing connection", "notification received (6,4)")

Move = tuple[str, int, int]
"""What happens, to which peer, and which of its variants."""


Told = tuple[IPAddress, IPv4Address, Prefix, Attributes]
"""A route and who told it: a peer of this address and router ID."""


@dataclass
class Far:
    """A peer, as ExaBGP sees it: ``idle``, ``confirm`` (OPEN read), ``established`` (not announced yet), ``up``."""

    stage: str = "idle"
    router_id: IPv4Address = ME
    graceful: bool = True
    established: float = 0.0
    ended: bool = False
    told: dict[Prefix, Attributes] = field(default_factory=dict)


class World:
    """ExaBGP with its peers, the relay, and a bgpd that follows; each step of it is one move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.far = {peer: Far() for peer in PEERS}
        self.steady: set[Told] = set()
        self.readings = 0
        self._begin()

    def _begin(self) -> None:
        """Another bgpd."""
        self.rib = Rib(lambda _peer, _prefix, attributes: ("", attributes))
        self.sessions = Sessions(self.rib)
        self.sessions.want(SESSIONS, WALL)
        self.connected = self.asked = self.unknown = False
        self.listing: list[ShownRoute] | None = None
        self.steady.clear()

    def say(self, event: Event) -> None:
        """A line of ExaBGP, which is lost without a connection."""
        if self.connected:
            self.sessions.on_event(event, self.now, WALL)
            self.unknown |= self.sessions.take_unknown()

    # What happens at the peers

    def advance(self, peer: IPAddress, variant: int) -> None:
        """A session makes its next step."""
        far = self.far[peer]
        if far.stage == "idle":
            far.stage, far.graceful = "confirm", variant % 2 == 0
            far.router_id = IPv4Address(int(peer) + 100 * (variant // 3))
            families = frozenset({4}) if far.graceful else frozenset()
            restart = 60 if far.graceful else None
            self.say(OpenEvent(peer, 64512, 64512, far.router_id, 90, restart, preserved=families, graceful=families))
        elif far.stage == "confirm":
            far.stage, far.established = "established", self.now
        elif far.stage == "established":
            far.stage, far.ended = "up", False
            far.told.clear()
            self.say(StateEvent(peer, "up"))

    def announce(self, peer: IPAddress, variant: int) -> None:
        """A route, by one of two sets of attributes."""
        if self.far[peer].stage == "up":
            prefix, attributes = BLOCKS[variant % 3], Attributes(peer, med=variant // 3)
            self.far[peer].told[prefix] = attributes
            self.say(UpdateEvent(peer, (), (Announced(prefix, attributes),)))

    def withdraw(self, peer: IPAddress, variant: int) -> None:
        """A route is gone."""
        if self.far[peer].stage == "up":
            prefix = BLOCKS[variant % 3]
            self.far[peer].told.pop(prefix, None)
            self.say(UpdateEvent(peer, ((prefix, ""),), ()))

    def end(self, peer: IPAddress, _variant: int) -> None:
        """End-of-RIB."""
        if self.far[peer].stage == "up":
            self.far[peer].ended = True
            self.say(EndOfRib(peer, 4))

    def down(self, peer: IPAddress, variant: int) -> None:
        """A session is lost, or does not even come up; ExaBGP goes on showing its routes."""
        if self.far[peer].stage != "idle":
            self.far[peer].stage = "idle"
            self.steady = {one for one in self.steady if one[0] != peer}
            self.say(StateEvent(peer, "down", REASONS[variant % 2]))

    # What happens to us

    def lose(self, _peer: IPAddress, _variant: int) -> None:
        """bgpd was too slow, or the relay is another."""
        self.connected = self.asked = False
        self.listing = None

    def die(self, _peer: IPAddress, _variant: int) -> None:
        """bgpd dies, and another is started."""
        self._begin()

    def speaker_dies(self, _peer: IPAddress, _variant: int) -> None:
        """ExaBGP dies, and another is started."""
        self.lose(PEERS[0], 0)
        self.sessions.speaker_lost(self.now, WALL)
        self.far = {peer: Far() for peer in PEERS}
        self.steady.clear()

    def connect(self, _peer: IPAddress, _variant: int) -> None:
        """The relay finds bgpd."""
        if not self.connected:
            self.connected = self.unknown = True
            self.say(Resync(1, 2, 0))

    def rewant(self, peer: IPAddress, _variant: int) -> None:
        """A session is taken away and wanted again before ExaBGP has noticed."""
        self.sessions.want({one: session for one, session in SESSIONS.items() if one != peer}, WALL)
        self.sessions.want(SESSIONS, WALL)
        self.steady = {one for one in self.steady if one[0] != peer}
        self.unknown = True

    # Reading back, in three steps

    def ask(self, _peer: IPAddress, _variant: int) -> None:
        """ExaBGP is asked, and answers with its neighbours."""
        if not self.connected or self.asked:
            return
        self.asked, self.unknown = True, False
        self.readings += 1
        self.sessions.expect_resync()
        table = []
        for peer, far in self.far.items():
            up = far.stage in ("established", "up")
            seconds = int(self.now - far.established) if up else 0
            known = far.router_id if far.stage != "idle" else None
            table.append(Neighbour(peer, ME, up, seconds, 64512, 64512, known, graceful=far.graceful))
        self.say(NeighbourTable(tuple(table)))

    def show(self, _peer: IPAddress, _variant: int) -> None:
        """It looks at what it has."""
        if self.asked and self.listing is None:
            self.listing = [
                ShownRoute(peer, Announced(prefix, attributes))
                for peer, far in self.far.items()
                for prefix, attributes in far.told.items()
            ]

    def shown(self, _peer: IPAddress, _variant: int) -> None:
        """All of it has been heard."""
        if self.listing is not None:
            self.sessions.end_resync(self.listing)
            self.asked, self.listing = False, None

    def wait(self, _peer: IPAddress, variant: int) -> None:
        """Time passes, less than what a peer is waited for."""
        self.now += (0.5, 4.0, SETTLED)[variant % 3]

    # What must hold

    def step(self, move: Move) -> None:
        """One move; what was known and stays true stays known."""
        name, number, variant = move
        before = self.sessions
        getattr(self, name)(PEERS[number], variant)
        truth = self.truth()
        self.steady &= truth
        held = self.held()
        assert self.steady <= held, f"{move}: routes lost that were never gone"
        if before is self.sessions:
            self.steady |= self.fresh() & truth

    def truth(self) -> set[Told]:
        """What peers that are up have told."""
        up = [(peer, far) for peer, far in self.far.items() if far.stage == "up"]
        return {(peer, far.router_id, *route) for peer, far in up for route in far.told.items()}

    def held(self, *, stale: bool = True) -> set[Told]:
        """What bgpd has of them."""
        paths = [path for peer in PEERS for path in self.rib.adj_rib_in(peer) if stale or not path.stale]
        return {(path.peer.address, path.peer.router_id, path.prefix, path.attributes) for path in paths}

    def fresh(self) -> set[Told]:
        """What bgpd holds for confirmed."""
        return self.held(stale=False)

    def settle(self) -> None:
        """Nothing happens any more but what is under way."""
        for number, peer in enumerate(PEERS):
            if self.far[peer].stage == "established":
                self.step(("advance", number, 0))
        for name in ("connect", "show", "shown"):
            self.step((name, 0, 0))
        before = self.readings
        while self.unknown:
            for name in ("ask", "show", "shown"):
                self.step((name, 0, 0))
        assert self.readings <= before + 2, "it asks again and again"


WEIGHTS = {
    "idle": {"advance": 6},
    "confirm": {"advance": 6, "down": 1},
    "established": {"advance": 4, "down": 1},
    "up": {"announce": 8, "withdraw": 3, "end": 2, "down": 3},
}
"""What a peer does next, by the stage of its session."""


def possible(world: World) -> list[tuple[str, int]]:
    """What can happen next and to whom; what is likely stands here more than once."""
    moves = [
        (name, number)
        for number, peer in enumerate(PEERS)
        for name, weight in WEIGHTS[world.far[peer].stage].items()
        for _ in range(weight)
    ]
    if not world.connected:
        ours = {"connect": 2, "wait": 1, "die": 1}
    elif not world.asked:
        ours = {"ask": 6, "lose": 2, "wait": 1, "die": 1, "speaker_dies": 1, "rewant": 1}
    elif world.listing is None:
        ours = {"show": 4, "lose": 1, "speaker_dies": 1}
    else:
        ours = {"shown": 4, "lose": 1, "wait": 1}
    return moves + [(name, which % 2) for name, weight in ours.items() for which in range(weight)]


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(10, 80))
def test_whatever_is_lost_the_end_is_the_truth(seed: int, length: int) -> None:
    """Whenever events are lost, sessions flap or are read back: all that was told is held, and no more, in the end."""
    world = World()
    chance = random.Random(seed)
    for _ in range(length):
        move = (*chance.choice(possible(world)), chance.randrange(6))
        note(f"{world.now} {move}")
        world.step(move)
    world.settle()
    states = world.sessions.states()
    assert {peer: states[peer].up for peer in PEERS} == {peer: far.stage == "up" for peer, far in world.far.items()}
    assert world.fresh() <= world.truth()
    world.now += NO_EOR_WAIT
    world.rib.expire(world.now)
    for number, peer in enumerate(PEERS):
        if world.far[peer].ended and world.far[peer].stage == "up":
            told, truth = ({one for one in which if one[0] == peer} for which in (world.held(), world.truth()))
            assert told == truth, "its End-of-RIB is not waited for again"
        world.step(("end", number, 0))
    assert world.fresh() == world.truth()
    world.rib.expire(world.now + 1000.0)
    assert world.held() == world.truth()


@pytest.mark.parametrize("lost", range(1, 3))
def test_a_session_whose_open_went_to_a_bgpd_that_is_gone(lost: int) -> None:
    """ExaBGP's table comes between an OPEN that nobody heard and the session's coming up: it is read once more."""
    world = World()
    for _ in range(lost):
        world.step(("advance", 0, 0))
    for move in ("connect", "ask", "show", "shown"):
        world.step((move, 0, 0))
    for _ in range(3 - lost):
        world.step(("advance", 0, 0))
    world.step(("announce", 0, 1))
    assert world.unknown == (lost == 1)
    world.settle()
    assert world.held() == world.truth() != set()
    assert world.readings == (2 if lost == 1 else 1)
