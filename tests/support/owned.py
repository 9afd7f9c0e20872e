"""What a process of tests makes bears its number, and goes with it, however it ends.

Names begin with ``cltest-PID-``, processes inherit ``CALIPY_TESTS=PID``; ``reaper.py`` waits for the end and clears up
what is left of them.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

MARK = "CALIPY_TESTS"
_CANDIDATES = (Path("/dev/shm"), Path("/tmp"))  # memory if there is any


def start_reaper() -> None:
    """From now on what this process starts and names goes with it; nothing happens the second time."""
    _reaper(os.getpid())


def name(label: str) -> str:
    """A name for something, unique on this machine."""
    start_reaper()
    return f"{_prefix()}{label}-{uuid.uuid4().hex[:8]}"


def directory(label: str, *, within: str = "/tmp") -> Path:  # a fresh one, and short: sockets are in it
    """A fresh directory, open to root only."""
    start_reaper()
    return Path(tempfile.mkdtemp(prefix=f"{_prefix()}{label}-", dir=within))


def fast_directory(label: str) -> Path:
    """The same, in memory if there is any."""
    within = next(str(one) for one in _CANDIDATES if os.access(one, os.W_OK))
    return directory(label, within=within)


def lab_registry() -> Path:
    """Where the labs of this process are registered, so that the reaper finds them; made by whoever needs it."""
    start_reaper()
    return Path("/run", f"{_prefix()}labs")


def _prefix() -> str:
    return f"cltest-{os.getpid()}-"


@functools.cache
def _reaper(pid: int) -> subprocess.Popen[bytes]:
    os.environ[MARK] = str(pid)
    argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), f"{MARK}={pid}", _prefix()]
    environ = {key: value for key, value in os.environ.items() if key != MARK}
    return subprocess.Popen(argv, stdin=subprocess.PIPE, env=environ, start_new_session=True)
