"""What of a machine a lab could leave behind: read before and after, the difference must be empty.

The host's interfaces, addresses, routes and rules are compared as a whole. Processes, mounts and namespaces come and go
on a busy machine, so of those only the lab's own count: what bears its name, its label, or lives in one of the
namespaces that its nodes had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calipy.kernel.process import run

LABEL = b"CLAB_LABEL_CONTAINERLAB="

COMMANDS = {
    "interface": ["ip", "-o", "link", "show"],
    "address": ["ip", "-o", "address", "show", "scope", "global"],
    "route": ["ip", "route", "show", "table", "all"],
    "IPv6 route": ["ip", "-6", "route", "show", "table", "all"],
    "policy rule": ["ip", "rule", "show"],
    "nftables rule": ["nft", "-s", "list", "ruleset"],
    "ip set": ["ipset", "list", "-name"],
}


@dataclass(frozen=True, slots=True)
class HostState:
    """Texts by category."""

    things: dict[str, frozenset[str]]

    @classmethod
    def read(cls, lab: str, namespaces: frozenset[str] = frozenset()) -> HostState:
        """The machine as it is now. Blocks for some tens of milliseconds.

        Args:
            lab: name of the lab.
            namespaces: those of its nodes while it ran, from ``namespaces_of``.
        """
        things = {name: frozenset(_stable(name, run(argv).stdout)) for name, argv in COMMANDS.items()}
        marks = (f"clab-{lab}-", f"clab-{lab}/", *namespaces)
        things["namespace"] = frozenset(name for name in _names(Path("/run/netns")) if name.startswith(f"clab-{lab}-"))
        things["mount"] = frozenset(
            line.split(" ", 3)[3]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if any(mark in line for mark in marks)
        )
        things["process"] = frozenset(
            f"{pid} {command[:100]}"
            for pid, command, spaces, label in _processes()
            if label == lab or spaces & namespaces or any(mark in command for mark in marks)
        )
        return cls(things)

    def beyond(self, before: HostState) -> list[str]:
        """What is here now and was not before, one line each."""
        return [
            f"{category}: {thing}"
            for category, now in self.things.items()
            for thing in sorted(now - before.things[category])
        ]


def namespaces_of(lab: str) -> frozenset[str]:
    """Namespaces (``net:[4026…]``) of a running lab's nodes, without those that it shares with this process."""
    spaces = [spaces for _, _, spaces, label in _processes() if label == lab]
    return frozenset().union(*spaces) - _namespaces("self")


def _stable(name: str, output: str) -> list[str]:
    """Lines without what changes by itself: counters and states of links."""
    if name == "interface":
        return [line.split(":")[1].strip() for line in output.splitlines()]
    return [line.strip() for line in output.splitlines() if "expires" not in line]


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []


def _processes() -> Iterator[tuple[str, str, frozenset[str], str]]:
    """Of every other process: pid, command line, namespaces, and the lab its environment says it belongs to."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            variables = (entry / "environ").read_bytes().split(b"\0")
            spaces = _namespaces(entry.name)
        except OSError:
            continue  # gone in the meantime
        label = next((v[len(LABEL) :].decode() for v in variables if v.startswith(LABEL)), "")
        if command:
            yield entry.name, command, spaces, label


def _namespaces(pid: str) -> frozenset[str]:
    return frozenset(str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("net", "pid", "mnt"))
