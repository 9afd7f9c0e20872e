"""What is mended in ExaBGP as it is started: its poller, the time between attempts, options of sockets."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from exabgp.bgp.fsm import FSM
from exabgp.reactor.asynchronous import ASYNC

from calipy.bgp.exabgp import launch
from calipy.bgp.exabgp.launch import Poller, Turns

EVENTS = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLNVAL | select.POLLERR


class Lab:
    """A poller of a reactor with an API pipe and one listening socket."""

    def __init__(self) -> None:
        self.api, self.api_far = os.pipe()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.reactor = SimpleNamespace(
            _peers={},
            asynchronous=SimpleNamespace(worked=False),
            listener=SimpleNamespace(_sockets={self.server: ("127.0.0.1", 0, "", None)}),
            processes=SimpleNamespace(fds=[self.api]),
        )
        self.reactor.turns = Turns(self.reactor)
        self.poller = Poller(self.reactor)
        self.poller.register(self.api, EVENTS)


@pytest.fixture
def lab() -> Lab:
    """The lab."""
    return Lab()


def test_a_dead_descriptor_is_let_go(lab: Lab) -> None:
    """A closed descriptor wakes the poller once at most, is never reported, and does not hide what else is there."""
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    lab.poller.register(number, EVENTS)
    ours.close()
    os.write(lab.api_far, b"x")
    assert lab.poller.poll(0) == [(lab.api, select.POLLIN)]
    os.read(lab.api, 1)
    assert lab.poller.poll(0) == []
    with pytest.raises(KeyError):
        lab.poller._poll.unregister(number)
    theirs.close()


def test_a_number_with_another_owner_is_let_go(lab: Lab) -> None:
    """A socket that is not connected reports a hang-up for ever: one that nobody registers again is forgotten."""
    fresh = socket.socket()
    lab.poller.register(fresh.fileno(), EVENTS)
    assert lab.poller.poll(0) == []
    with pytest.raises(KeyError):
        lab.poller._poll.unregister(fresh.fileno())
    fresh.close()


def test_what_can_be_read_is_reported_until_it_is_read(lab: Lab) -> None:
    """Of a peer's socket, which the reactor registers in each turn, and of the API's pipe, which it does not."""
    ours, theirs = socket.socketpair()
    theirs.send(b"x")
    os.write(lab.api_far, b"x")
    for _ in range(3):
        lab.poller.register(ours.fileno(), EVENTS)
        assert sorted(lab.poller.poll(0)) == sorted([(ours.fileno(), select.POLLIN), (lab.api, select.POLLIN)])
    ours.close()
    theirs.close()


def test_connections_and_commands_end_the_wait(lab: Lab) -> None:
    """A poll without end returns for a connection, which it does not report, and after commands have been worked on."""
    lab.reactor._peers["unconnected"] = peer(fsm=FSM.IDLE)
    lab.reactor.turns.choose({"unconnected"}, 0.0)
    with socket.create_connection(lab.server.getsockname()):
        assert lab.poller.poll(60_000) == []
        lab.server.accept()[0].close()
    lab.reactor.asynchronous.worked = True
    assert lab.poller.poll(60_000) == []


def peer(fsm: object = FSM.ESTABLISHED, descriptor: int = -1, **changes: object) -> SimpleNamespace:
    """A peer of the reactor."""
    outgoing = SimpleNamespace(pending=lambda: bool(changes.get("pending")))
    neighbor = {name: changes.get(name, ()) for name in ("eor", "refresh", "messages")}
    return SimpleNamespace(
        fsm=fsm,
        socket=lambda: descriptor,
        neighbor=SimpleNamespace(rib=SimpleNamespace(outgoing=outgoing), **neighbor),
        _teardown=changes.get("teardown"),
        _neighbor=changes.get("reconfigured"),
    )


class Round:
    """A reactor with two established sessions, both of which have had a turn and want no other."""

    def __init__(self) -> None:
        self.peers = {"a": peer(descriptor=7), "b": peer(descriptor=8)}
        self.turns = Turns(SimpleNamespace(_peers=self.peers))
        assert self.choose() == {"a", "b"}
        assert self.turns.patience(25, worked=False) == launch.CALM_MS
        assert self.choose() == set()

    def choose(self, now: float = 0.0) -> set[str]:
        """Who has a turn."""
        return self.turns.choose(set(self.peers), now)


def test_an_established_session_rests_until_something_happens() -> None:
    """On its socket, or in the course of time; its neighbour rests on."""
    reactor = Round()
    reactor.turns.woken = frozenset({8})
    assert reactor.choose() == {"b"}
    reactor.turns.woken = frozenset()
    assert reactor.choose() == set()
    had = [reactor.choose(step / 10) for step in range(1, 51)]
    assert [sum(name in chosen for chosen in had) for name in reactor.peers] == [10, 10]


@pytest.mark.parametrize("what", ["pending", "eor", "refresh", "messages", "teardown", "reconfigured"])
def test_what_is_to_be_done_on_a_session_gives_it_a_turn(what: str) -> None:
    """Routes, markers and messages to send, a teardown, another configuration: in the next round."""
    reactor = Round()
    reactor.peers["a"] = peer(**{what: [1]})
    assert reactor.choose() == {"a"}


def test_who_has_more_to_do_has_another_turn() -> None:
    """The reactor does not wait after a turn that was not the last: who had it has one again, the others do not."""
    reactor = Round()
    reactor.turns.woken = frozenset({7})
    assert reactor.choose() == {"a"}
    reactor.turns.woken = frozenset()
    for _ in range(3):
        assert reactor.turns.patience(0, worked=False) == 0
        assert reactor.choose() == {"a"}
    assert reactor.turns.patience(25, worked=False) == launch.CALM_MS
    assert reactor.choose() == set()


def test_sessions_that_are_not_established_have_every_turn() -> None:
    """While one connects the reactor looks as often as it wants to; also when it was lost in the very last turn."""
    reactor = Round()
    reactor.peers["a"] = peer(fsm=FSM.OPENSENT)
    assert reactor.choose() == {"a"}
    assert reactor.turns.patience(25, worked=False) == 25
    reactor.peers["a"] = peer(pending=True)
    assert reactor.choose() == {"a"}
    reactor.peers["a"].fsm = FSM.IDLE
    assert reactor.turns.patience(25, worked=False) == 25


def test_attempts_to_reach_a_peer_do_not_become_rare() -> None:
    """However often it has failed, the next attempt is at most as far away as Calico's."""
    script = (
        f"import sys; sys.path.insert(0, {str(Path(launch.__file__).parent)!r})\n"
        "import launch; launch.mend()\n"
        "delay = launch.Delay()\n"
        "for _ in range(50): delay.increase()\n"
        "print(delay._next)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == launch.RETRY_LONGEST


def test_commands_are_worked_on_without_an_event_loop() -> None:
    """Generators run in order, 50 steps a turn, as with ExaBGP's own way; what is unfinished stays."""
    done: list[int] = []

    def command(number: int, steps: int) -> Iterator[None]:
        for _ in range(steps):
            yield
        done.append(number)

    queue = ASYNC()
    for number, steps in ((1, 3), (2, 60), (3, 1)):
        queue._async.append((str(number), command(number, steps)))  # schedule() wants a logger set up
    assert launch.run_without_loop(queue) is True
    assert done == [1]
    assert launch.run_without_loop(queue) is False
    assert done == [1, 2, 3]
    assert queue.ready()


SHARING = """
import sys; sys.path.insert(0, {folder!r})
import launch
from types import SimpleNamespace
launch.mend()
neighbor = launch.Neighbor()
neighbor.ip_self = lambda afi: SimpleNamespace(pack=lambda: b"")
def change(own):
    return SimpleNamespace(nlri=SimpleNamespace(afi=1, nexthop=SimpleNamespace(SELF=own)), attributes={{}})
explicit, own = change(False), change(True)
print(neighbor.remove_self(explicit) is explicit, neighbor.remove_self(own) is own, own.nlri.nexthop.SELF)
"""


def test_peers_share_what_they_are_told() -> None:
    """A route with an explicit next hop is not copied for each peer; one with the peer's own is, and stays itself."""
    script = SHARING.format(folder=str(Path(launch.__file__).parent))
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]
