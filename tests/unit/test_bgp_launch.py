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
from exabgp.reactor.asynchronous import ASYNC

from calipy.bgp.exabgp import launch
from calipy.bgp.exabgp.launch import Poller

EVENTS = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLNVAL | select.POLLERR


class Lab:
    """A poller of a reactor with an API pipe and one listening socket."""

    def __init__(self) -> None:
        self.api, self.api_far = os.pipe()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.idle = True
        self.reactor = SimpleNamespace(
            asynchronous=SimpleNamespace(ready=lambda: self.idle),
            listener=SimpleNamespace(_sockets={self.server: ("127.0.0.1", 0, "", None)}),
            processes=SimpleNamespace(fds=[self.api]),
        )
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


def test_connections_and_unfinished_commands_end_the_wait(lab: Lab) -> None:
    """A poll without end returns for a connection, which it does not report, and while commands are unfinished."""
    with socket.create_connection(lab.server.getsockname()):
        assert lab.poller.poll(60_000) == []
        lab.server.accept()[0].close()
    lab.idle = False
    assert lab.poller.poll(60_000) == []


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
