"""Clears up behind a process of tests that was killed: ``reaper.py PREFIX``, with the process's end of a pipe as input.

The pipe closes when the process ends, however it ends. What is left then of its namespaces (/run/netns/PREFIX*) goes,
with everything that still runs in them: daemons meant to outlive whoever started them. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

MNT_DETACH = 2


def inhabitants(namespace: Path) -> list[int]:
    """Processes in a network namespace."""
    wanted = namespace.stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == wanted:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def clear(namespace: Path) -> None:
    """End a namespace and what runs in it."""
    for pid in inhabitants(namespace):
        os.kill(pid, signal.SIGKILL)
    ctypes.CDLL(None).umount2(os.fsencode(namespace), MNT_DETACH)
    namespace.unlink(missing_ok=True)


def main() -> None:
    """Wait for the end, then clear up; directories are named by the process, one a line."""
    directories = [line.strip() for line in sys.stdin]
    for namespace in Path("/run/netns").glob(f"{sys.argv[1]}*"):
        clear(namespace)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the tests; their end is what counts
    main()
