"""Every session's state, and what its events mean for the RIB: the receiving side of graceful restart. Pure.

ExaBGP reports that a session is lost and keeps nothing of what that means. RFC 4724 4.2 is here: which losses keep the
peer's paths, for how long, and which of them a returning peer confirms.

Events get lost: while there is no bgpd, and when it is too slow for the relay. So each session is either *complete*,
all of it since its OPEN having been heard (or made up for), or to be read back from ExaBGP. A gap in the stream makes
every session incomplete; a table of neighbours and Adj-RIB-In make them complete again; and a session that comes up
without its OPEN having been heard asks for another reading (``take_unknown``).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from calipy.bgp.causes import explain_loss, explain_notification
from calipy.bgp.exabgp.events import (
    EndOfRib,
    Event,
    Malformed,
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
from calipy.bgp.path import Peer
from calipy.bgp.peering import Session
from calipy.bgp.rib import EOR_WAIT, Rib
from calipy.net import Family, IPAddress, Prefix

SETTLED: Final = 10.0
"""Seconds after which an adopted session counts as having told everything."""
NO_EOR_WAIT: Final = 30.0
"""Seconds for which stale paths of a peer stay once it is back, if it sends no End-of-RIB, or that may be lost."""

_ROUNDING: Final = 2.0
"""Seconds by which the age of a session in ExaBGP's table may differ from ours."""

_SILENT_CLOSE: Final = ("closing connection", "graceful restarted negotiated")
"""Reasons of ``down`` that a restarting peer leaves behind; every other one ends forwarding too."""


@dataclass(slots=True)
class SessionState:
    """Where a session stands.

    Attributes:
        since: wall clock time of the last change between up and down.
        up_at: monotonic time of coming up, 0 while down.
        cause: why it is not up, for people; "" while up.
        open: the peer's OPEN of this session; of the last one while it is down.
        heard: an OPEN whose session is not up yet.
        complete: it is up, and all that it has told has been heard or read back.
        adopted: it was up when we came, so that its End-of-RIB may have gone to an earlier bgpd.
        ours: it was lost because our own speaker ended, so that the peer's forwarding is not in doubt.
        flaps: how often it was lost.
        missing: why the speaker is not even asked for it, "" if it is.
    """

    session: Session
    since: datetime.datetime
    up: bool = False
    up_at: float = 0.0
    cause: str = ""
    reached: bool = False
    open: OpenEvent | None = None
    heard: OpenEvent | None = None
    complete: bool = False
    adopted: bool = False
    ours: bool = False
    flaps: int = 0
    missing: str = ""

    @property
    def info(self) -> str:
        """FSM state as the protocol names it, and why it is not further."""
        if self.up:
            return "Established"
        if self.missing:
            return f"Idle: {self.missing}"
        state = "Passive" if self.session.passive else "Active"
        return f"{state}: {self.cause}" if self.cause else state


@dataclass(slots=True)
class _Resync:
    """While ExaBGP is asked for everything.

    Attributes:
        begun: its table of neighbours has come.
        told: what UPDATEs have touched since, of sessions that are being read back.
        ended: peers whose End-of-RIB has come: it counts when the rest of what they told is here as well.
        telling: peers whose session is so young that they may not have told everything.
    """

    begun: bool = False
    told: set[tuple[IPAddress, Prefix, str]] = field(default_factory=set)
    ended: set[IPAddress] = field(default_factory=set)
    telling: set[IPAddress] = field(default_factory=set)


class Sessions:
    """All sessions, and the RIB that they fill."""

    def __init__(self, rib: Rib) -> None:
        self._rib = rib
        self._states: dict[IPAddress, SessionState] = {}
        self._came_up: set[IPAddress] = set()
        self._resyncing: _Resync | None = None
        self._unknown = False
        self.malformed = 0

    def states(self) -> Mapping[IPAddress, SessionState]:
        """By peer, live; do not change it."""
        return self._states

    def want(
        self,
        sessions: Mapping[IPAddress, Session],
        wall: datetime.datetime,
        missing: Mapping[IPAddress, str] | None = None,
    ) -> None:
        """Have these sessions; paths of peers no longer wanted go.

        Args:
            sessions: by peer.
            wall: now.
            missing: those of them that cannot be had now, and why; their paths go as well.
        """
        for peer in [peer for peer in self._states if peer not in sessions]:
            self._rib.remove_peer(peer)
            del self._states[peer]
            self._came_up.discard(peer)
        for peer, session in sessions.items():
            state = self._states.get(peer)
            if state is None:
                cause = "waiting for the peer to connect" if session.passive else "not connected yet"
                self._states[peer] = SessionState(session, wall, cause=cause)
            else:
                state.session = session
        for peer, state in self._states.items():
            state.missing = (missing or {}).get(peer, "")
            if state.missing:
                if state.up:
                    self._leave(state, "", wall)
                self._rib.remove_peer(peer)

    def take_came_up(self) -> set[IPAddress]:
        """Peers whose sessions have come up since the last call: they are owed an End-of-RIB."""
        came_up, self._came_up = self._came_up, set()
        return came_up

    def take_unknown(self) -> bool:
        """Whether, since the last call, a session came up of which too little was heard: ExaBGP must be read again.

        At most once for each coming up.
        """
        unknown, self._unknown = self._unknown, False
        return unknown

    def on_event(self, event: Event, now: float, wall: datetime.datetime) -> None:
        """Take one event. O(what it carries)."""
        match event:
            case UpdateEvent(peer):
                if (state := self._states.get(peer)) and state.up:
                    self._update(event, state)
            case StateEvent(peer, "up"):
                if (state := self._states.get(peer)) is not None:
                    self._on_up(state, now, wall)
            case StateEvent(peer, "down", reason):
                if (state := self._states.get(peer)) is not None:
                    state.heard = None
                    self._down(state, reason, now, wall)
            case StateEvent(peer, "connected"):
                if (state := self._states.get(peer)) is not None:
                    state.reached = True
            case OpenEvent(peer):
                if (state := self._states.get(peer)) is not None:
                    state.heard = event
            case EndOfRib(peer, family) | RefreshEvent(peer, family, "end"):
                self._end_of_rib(peer, family)
            case NeighbourTable(neighbours):
                if self._resyncing is not None and not self._resyncing.begun:
                    self._resyncing.begun = True
                    self._begin_resync(neighbours, self._resyncing, now, wall)
            case RefreshEvent(peer, _, "begin"):
                self._rib.begin_refresh(peer, now)
            case NotificationEvent(peer, code, subcode, text):
                if (state := self._states.get(peer)) is not None:
                    state.cause = explain_notification("the peer says", code, subcode, text)
            case Resync():
                self._lose_events()
            case Malformed():
                self.malformed += 1
            case _:
                pass

    def speaker_lost(self, now: float, wall: datetime.datetime, cause: str = "our BGP speaker is restarting") -> None:
        """Our own ExaBGP ended: sessions are gone, peers and their forwarding are not."""
        for state in self._states.values():
            if state.up:
                self._leave(state, cause, wall)
                state.ours = True
                self._rib.peer_down(state.session.peer, now, retain=float(state.session.restart_time))
        self._lose_events()
        self._resyncing = None

    def expect_resync(self) -> None:
        """ExaBGP is being asked for everything: first its neighbours, whose table comes among the events."""
        if self._resyncing is None or self._resyncing.begun:
            self._resyncing = _Resync()

    def end_resync(self, routes: Iterable[ShownRoute]) -> None:
        """Adj-RIB-In as ExaBGP showed it: what is not in it, and was not told meanwhile, is gone.

        Events that came after the table of neighbours are newer than what is shown, wherever they stand in the stream.
        """
        resync, self._resyncing = self._resyncing, None
        if resync is None or not resync.begun:
            return
        read_back = {peer: state for peer, state in self._states.items() if state.up and not state.complete}
        for shown in routes:
            # ExaBGP still shows the routes of a peer that is down, and what a session had told before it came up anew.
            if (shown.peer, shown.route.prefix, shown.route.path_id) not in resync.told and shown.peer in read_back:
                self._rib.announce(shown.peer, shown.route.prefix, shown.route.attributes, shown.route.path_id)
        for peer, state in read_back.items():
            state.complete = True
            # A session that has just come up is still telling; its own End-of-RIB, or time, ends it.
            if peer in resync.ended or peer not in resync.telling:
                self._rib.end_of_rib(peer, state.session.family)

    def read_again(self, peers: Iterable[IPAddress]) -> None:
        """Of these sessions not all that was told has been kept: the next reading back is to make up for it."""
        for peer in peers:
            if (state := self._states.get(peer)) is not None:
                state.complete = False

    def _lose_events(self) -> None:
        """A gap in the stream: what is known of each session may be out of date."""
        for state in self._states.values():
            state.complete, state.heard = False, None
        self._resyncing = _Resync()

    def _begin_resync(
        self, neighbours: Sequence[Neighbour], resync: _Resync, now: float, wall: datetime.datetime
    ) -> None:
        seen = {one.peer: one for one in neighbours}
        for peer, state in self._states.items():
            neighbour = seen.get(peer)
            if neighbour is None or not neighbour.up or neighbour.router_id is None:
                self._down(state, _SILENT_CLOSE[0] if state.up else "", now, wall)
                continue
            if state.complete or state.heard:
                continue  # nothing is missing; or it counts as up in ExaBGP, which is about to say so
            if not state.up or _is_another(neighbour, state, now):
                state.flaps += state.up
                since = wall - datetime.timedelta(seconds=neighbour.seconds)
                self._up(state, _assumed_open(neighbour, state.session), now, since, keep=True)
                state.up_at, state.adopted = now - neighbour.seconds, True
            if neighbour.seconds < SETTLED and not self._rib.has_end_of_rib(peer, state.session.family):
                resync.telling.add(peer)
            # Its End-of-RIB may be what was lost: like a peer that sends none, it is not waited for as long.
            self._rib.begin_refresh(peer, now, wait=NO_EOR_WAIT)

    def settled(self, peer: IPAddress, now: float) -> bool:
        """Whether a peer has told everything: End-of-RIB seen, or, from peers without it, time enough."""
        state = self._states[peer]
        if not state.up:
            return False
        if self._rib.has_end_of_rib(peer, state.session.family):
            return True
        if state.adopted:
            return now - state.up_at > SETTLED
        graceful = state.open is not None and state.session.family in state.open.graceful
        return now - state.up_at > (EOR_WAIT if graceful else NO_EOR_WAIT)

    def _on_up(self, state: SessionState, now: float, wall: datetime.datetime) -> None:
        """A session has come up: by its OPEN, if that was heard."""
        resync = self._resyncing
        opened, state.heard = state.heard, None
        if opened is None and resync is not None and not resync.begun:
            return  # the table that is to come tells of it
        if opened is None and not state.up:
            self._unknown = True
            return
        if opened is not None:
            if state.up:
                self._down(state, _SILENT_CLOSE[0], now, wall)  # its loss was not heard
            self._up(state, opened, now, wall)
        else:
            # ExaBGP's table had it as up already, for a moment ExaBGP itself knew nothing yet of what it tells.
            self._rib.begin_refresh(state.session.peer, now)
        state.complete = True

    def _up(
        self, state: SessionState, opened: OpenEvent, now: float, wall: datetime.datetime, *, keep: bool = False
    ) -> None:
        session = state.session
        peer = Peer(session.peer, opened.remote_as, opened.local_as, opened.router_id)
        graceful = session.family in opened.graceful
        preserved = opened.preserved if graceful else frozenset()
        if state.ours or keep:
            preserved = frozenset({session.family})
        self._rib.peer_up(peer, now, preserved=preserved, wait=EOR_WAIT if graceful else NO_EOR_WAIT)
        state.open, state.up, state.up_at, state.since, state.cause = opened, True, now, wall, ""
        state.adopted = state.ours = False
        self._came_up.add(session.peer)

    def _down(self, state: SessionState, reason: str, now: float, wall: datetime.datetime) -> None:
        session = state.session
        if not state.up:
            if reason and not state.cause.startswith("the peer says"):
                state.cause = explain_loss(reason, state.session, was_up=state.up)
            return
        opened = state.open
        retain = 0.0
        if reason.startswith(_SILENT_CLOSE) and opened and opened.restart_time and session.family in opened.graceful:
            retain = float(min(opened.restart_time, session.restart_time))
        cause = state.cause or explain_loss(reason, state.session, was_up=state.up)
        self._leave(state, cause, wall)
        self._rib.peer_down(session.peer, now, retain=retain)

    def _leave(self, state: SessionState, cause: str, wall: datetime.datetime) -> None:
        state.up, state.up_at, state.since, state.cause, state.reached = False, 0.0, wall, cause, False
        state.flaps += 1
        state.complete = False
        self._came_up.discard(state.session.peer)

    def _end_of_rib(self, peer: IPAddress, family: Family) -> None:
        state = self._states.get(peer)
        if self._resyncing is not None and state is not None and not state.complete:
            self._resyncing.ended.add(peer)
        else:
            self._rib.end_of_rib(peer, family)

    def _update(self, event: UpdateEvent, state: SessionState) -> None:
        if (resync := self._resyncing) is not None and not state.complete:
            if not resync.begun:
                return  # it will be shown; and whose it is, the table tells
            resync.told |= {(event.peer, prefix, path_id) for prefix, path_id in event.withdrawn}
            resync.told |= {(event.peer, route.prefix, route.path_id) for route in event.announced}
        for prefix, path_id in event.withdrawn:
            self._rib.withdraw(event.peer, prefix, path_id)
        for route in event.announced:
            self._rib.announce(event.peer, route.prefix, route.attributes, route.path_id)


def _is_another(neighbour: Neighbour, state: SessionState, now: float) -> bool:
    """Whether the session that ExaBGP has is not the one that was up when events were lost."""
    opened = state.open
    known = opened and (opened.remote_as, opened.local_as, opened.router_id)
    if known != (neighbour.remote_as, neighbour.local_as, neighbour.router_id):
        return True
    return neighbour.seconds + _ROUNDING < now - state.up_at


def _assumed_open(neighbour: Neighbour, session: Session) -> OpenEvent:
    """An adopted session's OPEN, as far as ExaBGP still knows it."""
    families = frozenset({session.family}) if neighbour.graceful else frozenset()
    assert neighbour.router_id is not None
    return OpenEvent(
        neighbour.peer,
        neighbour.remote_as,
        neighbour.local_as,
        neighbour.router_id,
        session.hold_time,
        session.restart_time if neighbour.graceful else None,
        graceful=families,
        preserved=families,
    )
