"""The supervisor on real processes: daemons come back, and none outlives it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calipy.api_client import answers
from calipy.node.supervisor import BACKOFF, daemon_argv, restart_delay
from tests.support.bgp import Program
from tests.support.netns import Namespace

DAEMON = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(100)"
SCRIPT = f"""
import asyncio, os, sys
from pathlib import Path
from calipy.node.supervisor import Daemon, Supervisor
there = Path(sys.argv[1])
daemons = [Daemon(n, [sys.executable, "-c", {DAEMON!r}, str(there / n)], there / (n + ".sock")) for n in ("one", "two")]
sys.exit(asyncio.run(Supervisor(daemons, os.environ).run()))
"""


def _pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path])
    _until(lambda: bool(_pids(tmp_path / "one")) and bool(_pids(tmp_path / "two")))
    yield process
    process.kill()
    process.wait()


def test_a_killed_daemon_comes_back_and_the_other_is_left_alone(
    supervisor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """SIGKILL of one daemon: started again at once, its neighbour keeps its pid."""
    (first,) = _pids(tmp_path / "one")
    os.kill(first, signal.SIGKILL)
    _until(lambda: len(_pids(tmp_path / "one")) == 2)
    assert len(_pids(tmp_path / "two")) == 1
    assert supervisor.poll() is None


def test_sigterm_ends_all_and_succeeds(supervisor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """SIGTERM is passed on; exit status 0; nobody is left."""
    supervisor.terminate()
    assert supervisor.wait(15) == 0
    assert not any(_alive(pid) for name in ("one", "two") for pid in _pids(tmp_path / name))


def test_no_daemon_outlives_a_killed_supervisor(supervisor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """SIGKILL of the supervisor takes the daemons with it, so that a new one never meets a second agent."""
    supervisor.kill()
    supervisor.wait()
    _until(lambda: not any(_alive(pid) for name in ("one", "two") for pid in _pids(tmp_path / name)))


def test_restarts_in_a_row_wait_longer_and_longer() -> None:
    """At once, then by the back-off, whose last step repeats."""
    assert [restart_delay(n) for n in range(6)] == [*BACKOFF, BACKOFF[-1], BACKOFF[-1]]


@pytest.mark.kernel
def test_a_second_node_ends_at_once_and_harms_nothing(netns: Namespace, tmp_path: Path) -> None:
    """Where a daemon answers, `node run` with or without `--only` says so in one sentence, exit status 1."""
    environ = {
        **dict.fromkeys(("CALIPY_RUN_DIR", "CALIPY_LIB_DIR"), str(tmp_path)),
        "NODENAME": "n1",
        "ETCD_ENDPOINTS": "http://127.0.0.1:1",
        "DATASTORE_TYPE": "etcdv3",
    }
    node = [sys.executable, "-m", "calipy.cli.main", "node", "run"]
    agent = tmp_path / "agent.sock"
    first = Program(netns, daemon_argv("agent"), tmp_path / "first.log", **environ)
    try:
        _until(lambda: answers(agent))
        for argv in (node, daemon_argv("agent")):
            second = Program(netns, argv, tmp_path / f"{len(argv)}.log", **environ)
            try:
                assert second.process.wait(40) == 1
            finally:
                second.kill()
            said = second.log.read_text()
            assert said == f"calipy: another daemon already answers at {agent} (stop it first)\n"
        assert first.process.poll() is None
        assert answers(agent)
    finally:
        first.kill()


def test_two_that_come_up_together_leave_one(tmp_path: Path) -> None:
    """A child that ends with 1 in its first life, while another's answers at its socket, ends all: exit status 1."""
    script = SCRIPT.replace("time.sleep(100)", "open(sys.argv[1] + '.go').read(); sys.exit(1)")
    for name in ("one", "two"):
        os.mkfifo(tmp_path / f"{name}.go")
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path])
    try:
        _until(lambda: bool(_pids(tmp_path / "one")))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(tmp_path / "one.sock"))
            other.listen()
            (tmp_path / "one.go").write_text("")
            assert process.wait(40) == 1
        assert len(_pids(tmp_path / "one")) == 1
    finally:
        process.kill()
        process.wait()
