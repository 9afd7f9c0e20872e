"""Why a node that was killed is not gone: what keeps its PID namespace. Edge: reads /proc.

The first process of a PID namespace ends last. It waits for processes that the kernel cannot end yet, and for ended
ones whose parent outside of the namespace (``nsenter``) does not collect them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def reasons(first: int) -> list[str]:
    """Each process that keeps the PID namespace of ``first``, and what to do about it. O(processes of the machine)."""
    try:
        namespace = (_PROC / str(first) / "ns/pid").readlink()
    except OSError:
        return []  # it is gone
    found = []
    for pid in sorted(int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()):
        try:
            if pid == first or (_PROC / str(pid) / "ns/pid").readlink() != namespace:
                continue
            status = _status(pid)
            tracer, parent = int(status["TracerPid"]), int(status["PPid"])
            if (holder := tracer or parent) != first or status["State"][0] != "Z":  # what is its own it collects
                found.append(_reason(pid, status, holder, first))
        except (OSError, KeyError):
            continue  # it has just ended
    return found or [f"process {first} is in state {_status(first).get('State', 'unknown')}"]


def _reason(pid: int, status: dict[str, str], holder: int, first: int) -> str:
    who = f"process {pid} ({status['Name']})"
    if status["State"][0] == "Z":
        holding = f"{holder} ({_status(holder).get('Name', 'unknown')})"
        return f"{who} has ended, but process {holding} does not collect it: end that one (kill -KILL {holder})"
    if status["State"][0] == "D":
        try:
            place = (_PROC / str(pid) / "wchan").read_text(encoding="ascii", errors="replace")
        except OSError:
            place = "unknown"
        return (
            f"{who} waits in the kernel ({place}) and cannot be killed: what it waits for has to answer "
            "(a network file system, a device, a frozen cgroup)"
        )
    traced = f", held by process {holder} ({_status(holder).get('Name', 'unknown')})" if holder != first else ""
    return f"{who} is in state {status['State']}{traced}"


def _status(pid: int) -> dict[str, str]:
    """The members of /proc/PID/status; {} for a process that is gone."""
    try:
        text = (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
