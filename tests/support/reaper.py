"""Clears up behind a process of tests: ``reaper.py PID MARK PREFIX``, with that process's end of a pipe as input.

The pipe closes when the process ends, however it ends. What is left then of what it started goes: processes that bear
its mark in their environment or live in its namespaces (daemons are meant to outlive whoever started them), labs,
namespaces, directories. Nothing but the standard library, for it starts with each process of tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("/run", "/tmp", "/dev/shm")  # where tests make directories, under a prefix of their own
TEMPORARY = re.compile(rb"(?:/tmp|/dev/shm)/calipy-[a-z]+-\w+")
"""Directories of our own programs, as their children's command lines and environments tell them."""
MNT_DETACH = 2
PATIENCE = 20.0


def survivors(mark: bytes, namespaces: list[Path]) -> Iterator[int]:
    """Processes with the mark, or in one of the namespaces."""
    inodes = set()
    for namespace in namespaces:
        with contextlib.suppress(OSError):
            inodes.add(namespace.stat().st_ino)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has gone meanwhile
                if (entry / "ns/net").stat().st_ino in inodes or mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def end(mark: bytes, namespaces: list[Path]) -> set[bytes]:
    """Kill them until none is left: one may be starting another. Gives the temporary directories they worked in."""
    give_up = time.monotonic() + PATIENCE
    directories: set[bytes] = set()
    while (left := list(survivors(mark, namespaces))) and time.monotonic() < give_up:
        for pid in left:
            with contextlib.suppress(OSError):
                for file in ("cmdline", "environ"):
                    directories.update(TEMPORARY.findall(Path("/proc", str(pid), file).read_bytes()))
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return directories


def forget_labs(registry: Path) -> None:
    """Remove what labs have outside of their namespaces; their supervisors are dead."""
    argv = [sys.executable, "-m", "calipy.cli.main", "lab", "destroy", "--all", "--yes", "--cleanup"]
    environ = {**os.environ, "CALIPY_LAB_RUN_DIR": str(registry)}
    environ.pop("CALIPY_TESTS", None)
    subprocess.run(argv, env=environ, cwd=ROOT, timeout=60, check=False, capture_output=True)


def main() -> None:
    """Wait for the end, then clear up."""
    mark, prefix = sys.argv[1].encode(), sys.argv[2]
    sys.stdin.read()
    namespaces = list(Path("/run/netns").glob(f"{prefix}*"))
    temporary = end(mark, namespaces)
    for registry in Path("/run").glob(f"{prefix}labs*"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            forget_labs(registry)
    for namespace in namespaces:
        ctypes.CDLL(None).umount2(os.fsencode(namespace), MNT_DETACH)
        namespace.unlink(missing_ok=True)
    for place in PLACES:
        for directory in Path(place).glob(f"{prefix}*"):
            shutil.rmtree(directory, ignore_errors=True)
    for left in temporary:
        shutil.rmtree(left, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the tests; their end is what counts
    main()
