"""What of a machine a lab could leave behind: read before and after, the difference must be empty."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from calipy.kernel.process import run

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
    """Texts by category. Processes count if they are in other namespaces than we, or run calipy."""

    things: dict[str, frozenset[str]]

    @classmethod
    def read(cls) -> HostState:
        """The machine as it is now. Blocks for some tens of milliseconds."""
        things = {name: frozenset(_stable(name, run(argv).stdout)) for name, argv in COMMANDS.items()}
        things["namespace"] = frozenset(_names(Path("/run/netns")))
        things["mount"] = frozenset(
            " ".join(line.split()[i] for i in (3, 4)) for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )
        things["process"] = frozenset(_processes())
        return cls(things)

    def beyond(self, before: HostState) -> list[str]:
        """What is here now and was not before, one line each."""
        return [
            f"{category}: {thing}"
            for category, now in self.things.items()
            for thing in sorted(now - before.things[category])
        ]


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


def _processes() -> list[str]:
    own = _namespaces("self")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            command = b" ".join(words).decode("utf-8", "replace").strip()
            if command and (_namespaces(entry.name) != own or " calipy" in command or "/calipy" in command):
                found.append(f"{entry.name} {command[:100]}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def _namespaces(pid: str) -> tuple[str, ...]:
    return tuple(str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("net", "pid", "mnt"))
