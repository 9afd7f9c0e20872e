"""The supervisor on real processes: daemons come back, and none outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calipy.node.supervisor import BACKOFF, restart_delay

DAEMON = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(100)"
SCRIPT = f"""
import asyncio, os, sys
from calipy.node.supervisor import Daemon, Supervisor
daemons = [Daemon(name, [sys.executable, "-c", {DAEMON!r}, os.path.join(sys.argv[1], name)]) for name in ("one", "two")]
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
    deadline = time.monotonic() + 15
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
