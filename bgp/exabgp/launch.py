"""Starts ExaBGP 5.0 with nine things mended that cost a router dear.

* It polls its descriptors with a timeout of ``reactor.speed`` x 10 ms, then gives every peer a turn. A descriptor whose
  session has ended stays registered: from then on every poll returns at once, and ExaBGP sleeps the timeout without
  listening, until the number has an owner again. What commands of more than 50 steps have to say, and connections on
  the listening sockets, wait for the timeout as well. With ``Poller`` the timeout only matters to sessions that are
  not established yet.
* It gives each peer a turn whenever it wakes, and for each message of a peer one to all the others: with a hundred
  peers a millisecond each time. With ``Turns`` an established session has one when there is something to do on it, and
  otherwise twice a second for its timers.
* It keeps a copy of its own of each route for each peer that is told it, some 4 KB, and spends more time on copying
  than on all the rest. Peers that are told the same share it: nobody changes it, unless its next hop is ``self``.
* It waits ever longer, up to a minute, between attempts to reach a peer; nothing shortens that when the peer is back.
  With ``RETRY_LONGEST`` it is Calico's time, and a SYN that nobody answers is repeated no longer than that either.
* It queues changes for a peer by their attributes, and sends them in the order in which these were first seen. Of
  several changes of one prefix, made while the peer is away for example, the last to be sent need not be the last
  one; and a withdrawal takes the place of the latest announcement only, and is then left out on a new session, so that
  the peer hears of a route that is gone. With ``keep_last`` the queue has the last change of each prefix only.
* It forgets a reload while something is queued, as for a dialed peer that is away. That was for routes in its
  configuration, of which we have none.
* It does not check the TTL of sessions that the peer has dialed (``incoming-ttl``, RFC 5082).
* It makes a new event loop for each command that it works on, though nothing in its commands waits.
* It sends small messages late on sessions that it has dialed (Nagle's algorithm).

Run as ``python -I launch.py server FILE``: imports the standard library and ExaBGP only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import Any, Final

from exabgp.application.main import main
from exabgp.bgp.fsm import FSM
from exabgp.bgp.neighbor import Neighbor
from exabgp.reactor import listener
from exabgp.reactor.asynchronous import ASYNC
from exabgp.reactor.delay import Delay
from exabgp.reactor.loop import Reactor
from exabgp.reactor.network.outgoing import Outgoing
from exabgp.reactor.network.tcp import nagle, set_minimum_ttl
from exabgp.rib.outgoing import OutgoingRIB

RETRY_LONGEST: Final = 5
"""Seconds between attempts to reach a peer (BIRD's ``connect retry time`` in Calico)."""
SYN_RETRIES: Final = 2
"""A connection is given up, and a new one begun, after 1 + 2 + 4 s without an answer."""
READABLE: Final = select.POLLIN | select.POLLPRI
TURN_SECONDS: Final = 0.5
"""Between two turns of a session on which nothing happens; ExaBGP's timers count whole seconds."""
CALM_MS: Final = 250
"""Longest wait for events while every session is established."""


class Turns:
    """Which peers have a turn. What wakes a session: its socket, something to send, a change of its configuration.

    Attributes:
        woken: descriptors on which something had happened at the last poll.
    """

    def __init__(self, reactor: Any) -> None:
        self._peers: dict[str, Any] = reactor._peers  # noqa: SLF001 - what this file is for
        self.woken: frozenset[int] = frozenset()
        self._hurried = True
        self._had: dict[str, int] = {}  # period of the last turn of each
        self._last: set[str] = set()  # who had one in the last round

    def choose(self, active: set[str], now: float) -> set[str]:
        """Those of the active peers that have a turn now. O(peers), a microsecond each."""
        chosen: set[str] = set()
        had: dict[str, int] = {}
        for name in active:
            peer = self._peers[name]
            # Turns for timers are spread over the time, so that they do not come all at once.
            had[name] = period = int(now / TURN_SECONDS + hash(name) % 64 / 64)
            if self._had.get(name) != period or self._awake(name, peer):
                chosen.add(name)
        self._had, self._last = had, chosen
        return chosen

    def _awake(self, name: str, peer: Any) -> bool:
        neighbor = peer.neighbor
        return bool(
            peer.fsm != FSM.ESTABLISHED
            or (self._hurried and name in self._last)
            or neighbor.rib.outgoing.pending()
            or (self.woken and peer.socket() in self.woken)
            or neighbor.eor
            or neighbor.refresh
            or neighbor.messages
            or peer._teardown  # noqa: SLF001 - what this file is for
            or peer._neighbor  # noqa: SLF001 - likewise
        )

    def patience(self, timeout: float, *, worked: bool) -> float:
        """How long the reactor may wait for events, in milliseconds, where it would have waited for ``timeout``.

        Args:
            timeout: 0 if a peer that had a turn has more to do.
            worked: whether this round has worked on commands: what they lead to must not wait.
        """
        self._hurried = not timeout
        if worked or not timeout:
            return 0
        established = all(self._peers[name].fsm == FSM.ESTABLISHED for name in self._last if name in self._peers)
        return CALM_MS if established else timeout


class Poller:
    """``select.poll`` for a reactor, which registers the sockets of peers again when they have had a turn."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._poll = select.poll()
        self._listening: set[int] = set()

    def register(self, descriptor: int, events: int) -> None:
        """Watch a descriptor; of a peer's socket, until it is dead."""
        self._poll.register(descriptor, events)

    def unregister(self, descriptor: int) -> None:
        """Watch it no more."""
        with contextlib.suppress(KeyError):
            self._poll.unregister(descriptor)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """What can be read; ``timeout`` in milliseconds, as the reactor would have it."""
        self._listen()
        turns = self._reactor.turns
        ready = self._poll.poll(turns.patience(timeout, worked=self._reactor.asynchronous.worked))
        turns.woken = frozenset([descriptor for descriptor, _ in ready])
        for descriptor, event in ready:
            # Whoever still has it registers it again; if nobody does, it must not wake us for ever.
            if not event & READABLE:
                self.unregister(descriptor)
        return [(one, event) for one, event in ready if event & READABLE and one not in self._listening]

    def _listen(self) -> None:
        """Wake for connections as well; the reactor accepts them by itself."""
        sockets = self._reactor.listener._sockets if self._reactor.listener else ()  # noqa: SLF001 - no other way
        wanted = {sock.fileno() for sock in sockets}
        for descriptor in self._listening - wanted:
            self.unregister(descriptor)
        for descriptor in wanted - self._listening:
            self._poll.register(descriptor, select.POLLIN)
        self._listening = wanted


def run_without_loop(asynchronous: Any) -> bool:
    """``ASYNC.run`` of callbacks that are generators: its coroutine never waits, so that one step is all of it."""
    work = asynchronous._run_async()  # noqa: SLF001 - what this file is for
    try:
        work.send(None)
    except StopIteration as done:
        return bool(done.value)
    raise RuntimeError("a command of ExaBGP waits for an event loop")


def keep_last(queue: Any, change: Any) -> None:
    """Before ``change`` is queued: take out the change of the same prefix that is queued already. O(1)."""
    if (last := queue._new_nlri.get(change.index())) is not None:  # noqa: SLF001 - what this file is for
        by_family = queue._new_attr_af_nlri.get(last.attributes.index(), {})  # noqa: SLF001 - likewise
        by_family.get(last.nlri.family().afi_safi(), {}).pop(change.index(), None)


def mend() -> None:
    """Replace the functions in question, in this process."""
    initialise, active, remove_self, run, increase, accepted, setup = (
        Reactor.__init__,
        Reactor.active_peers,
        Neighbor.remove_self,
        ASYNC.run,
        Delay.increase,
        listener.set_accepted_ttl,
        Outgoing._setup,  # noqa: SLF001 - what this file is for
    )

    def with_poller(reactor: Any, configuration: Any) -> None:
        initialise(reactor, configuration)
        reactor._poller = Poller(reactor)  # noqa: SLF001 - likewise
        reactor.turns = Turns(reactor)

    def chosen(reactor: Any) -> set[str]:
        return set(reactor.turns.choose(active(reactor), time.time()))

    def shared(neighbor: Any, change: Any) -> Any:
        return remove_self(neighbor, change) if change.nlri.nexthop.SELF else change

    enqueue = OutgoingRIB._update_rib  # noqa: SLF001 - likewise

    def replacing(queue: Any, change: Any) -> None:
        keep_last(queue, change)
        enqueue(queue, change)

    def directly(asynchronous: Any) -> Any:
        queue = asynchronous._async  # noqa: SLF001 - likewise
        asynchronous.worked = bool(queue)
        if any(asynchronous._is_coroutine(callback) for _, callback in queue):  # noqa: SLF001 - likewise
            return run(asynchronous)
        return run_without_loop(asynchronous) if queue else False

    def bounded(delay: Any) -> None:
        increase(delay)
        delay._next = min(delay._next, RETRY_LONGEST)  # noqa: SLF001 - likewise

    def checked(connection: Any, neighbor: Any) -> None:
        accepted(connection, neighbor)
        if connection.io is not None:
            set_minimum_ttl(connection.io, connection.afi, connection.peer, neighbor["incoming-ttl"])

    def prompt(connection: Any) -> Any:
        problem = setup(connection)
        if problem is None:
            nagle(connection.io, connection.peer)
            connection.io.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, SYN_RETRIES)
        return problem

    Reactor.__init__ = with_poller
    Reactor.active_peers = chosen
    Neighbor.remove_self = shared
    OutgoingRIB._update_rib = replacing  # noqa: SLF001 - likewise
    Reactor._pending_adjribout = lambda _reactor: False  # noqa: SLF001 - likewise
    ASYNC.run = directly
    Delay.increase = bounded
    listener.set_accepted_ttl = checked
    Outgoing._setup = prompt  # noqa: SLF001 - likewise


if __name__ == "__main__":
    mend()
    main()
