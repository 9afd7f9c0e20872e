"""The ip set edge: one ``ipset restore`` a flush, reading back, and destroying what no rule uses any more.

The kernel tells nobody of changes to sets. Their sizes can be had in one netlink exchange (6 us a set), so that
missing sets, flushes and lost members are noticed within seconds; reading all members is for the refresh.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from dataclasses import dataclass
from typing import Final

from calipy import log
from calipy.errors import KernelError
from calipy.felix.dataplane import programs
from calipy.felix.dataplane.nfnetlink import HEADER_SIZE, NetfilterSocket
from calipy.felix.delta import Difference
from calipy.felix.sets import (
    KernelSet,
    SetTable,
    compare_sets,
    parse_save,
    plan_sets,
    record_sets,
    unwanted_sets,
)
from calipy.kernel import netlink
from calipy.metrics import REGISTRY

_logger = log.get("felix.ipsets")

_CALLS: Final = REGISTRY.counter("felix_ipset_calls", "Calls of ipset.")
_ERRORS: Final = REGISTRY.counter("felix_ipset_errors", "Calls of ipset that failed.")
_LINES: Final = REGISTRY.counter("felix_ipset_lines_executed", "Lines given to ipset.")
_OF_FAMILY: Final = REGISTRY.gauges("felix_ipsets_calico", "Active ip sets of ours.", "ip_version")
_TOTAL: Final = REGISTRY.gauge("felix_ipsets_total", "Ip sets of ours in the kernel.")

_ATTEMPTS: Final = 10
_FIRST_DELAY: Final = 0.001
_LIST: Final = 6 << 8 | 7
_PROTOCOL: Final = netlink.attribute(1, b"\x06")
_HEADERS_ONLY: Final = netlink.attribute(6, struct.pack("!I", 4))
_SETNAME: Final = 2
_DATA: Final = 7
_ELEMENTS: Final = 24
_ERROR_LINE: Final = re.compile(r"Error in line (\d+)")


@dataclass(frozen=True, slots=True)
class Reading:
    """All sets of ours as they were read, and the names of those that we have written since it began."""

    sets: dict[str, KernelSet]
    touched: set[str]


class IPSets:
    """The sets of the process's network namespace. Calls do not overlap."""

    def __init__(self, table: SetTable) -> None:
        """Nothing is read or written yet; the owner changes ``table`` between calls."""
        self._table = table
        self._actual: dict[str, KernelSet] | None = None
        self._touched: set[str] = set()
        self._unsurprising: frozenset[bytes] = frozenset()  # what the kernel said of all sets when it was as we know it
        self._socket = NetfilterSocket()

    def close(self) -> None:
        """Close the netlink socket; nothing in the kernel changes."""
        self._socket.close()

    def others_wrote(self) -> bool:
        """Whether a set of ours is missing, or has another number of members than we gave it.

        Linear in the sets, but for those about which the kernel says what it said the last time: 6 us each, nearly all
        of it the kernel's.

        Raises:
            KernelError: the kernel refused.
        """
        if self._actual is None:
            return False
        headers = self._socket.dump("list ip sets", _LIST, socket.AF_INET, _PROTOCOL + _HEADERS_ONLY)
        if headers and len(headers) == len(self._unsurprising) and self._unsurprising.issuperset(headers):
            return False
        sizes: dict[bytes, int] = {}
        for body in headers:
            found = netlink.attributes(body, HEADER_SIZE)
            size = netlink.attributes(found[_DATA])[_ELEMENTS]
            sizes[found[_SETNAME][:-1]] = int.from_bytes(size, "big")
        differ = any(sizes.get(name.encode()) != len(known.members) for name, known in self._actual.items())
        self._unsurprising = frozenset() if differ else frozenset(headers)
        return differ

    def measure(self) -> None:
        """Set the gauges. Linear in the sets."""
        for family in (4, 6):
            number = sum(wanted.family == family for wanted in self._table.sets.values())
            _OF_FAMILY.labels(str(family)).set(number)
        _TOTAL.set(len(self._actual or ()))

    def set_table(self, table: SetTable) -> None:
        """Exchange the desired state as a whole."""
        self._table = table

    async def read(self) -> list[Difference]:
        """Read all sets; what differs becomes dirty. Linear in all members; waits for a process.

        Returns:
            Differences in what was not waiting to be written anyway; empty at the first read.

        Raises:
            KernelError: ipset is missing or refused.
        """
        return self.adopt(await self.begin_reading())

    async def begin_reading(self) -> Reading:
        """Read all sets and change nothing here: may run beside ``write``.

        Raises:
            KernelError: ipset is missing or refused.
        """
        touched = self._touched = set()
        saved = (await programs.run(["ipset", "save"], calls=_CALLS, errors=_ERRORS)).check()
        return Reading(await asyncio.to_thread(parse_save, saved.stdout), touched)

    def adopt(self, reading: Reading) -> list[Difference]:
        """Take a reading as what the kernel holds, except for sets that we have written meanwhile. As for ``read``."""
        if reading.touched is not self._touched:
            return []  # a later one is under way
        found = reading.sets
        for name in reading.touched:
            known = (self._actual or {}).get(name)
            if known is None:
                found.pop(name, None)
            else:
                found[name] = known
        first = self._actual is None
        self._actual = found
        self._unsurprising = frozenset()
        differing = compare_sets(self._table, found)
        drift = [
            Difference("ipset", name, f"{len(self._table.sets[name].members)} members", _shown(found.get(name)))
            for name in sorted(differing - self._table.dirty.keys())
        ]
        self._table.dirty.update(dict.fromkeys(differing))
        return [] if first else drift

    async def write(self) -> dict[str, str]:
        """Create, fill and shrink what is dirty. Cost follows the members that change.

        Returns:
            Sets that the kernel did not take as they should be → why. They stay dirty.

        Raises:
            KernelError: it did not succeed after ten attempts.
        """
        if self._actual is None:
            await self.read()
        assert self._actual is not None
        if not self._table.dirty:
            return {}
        failed: dict[str, str] = {}
        suspect = error = ""
        delay = _FIRST_DELAY
        attempts = 0
        while attempts < _ATTEMPTS:
            without = frozenset(failed)
            plan = plan_sets(self._table, self._actual, without)
            number, error = await self._restore(plan.lines)
            self._touched.update(plan.owners)
            self._unsurprising = frozenset()
            if not error:
                record_sets(self._table, self._actual, without)
                return failed
            culprit = plan.owners[number - 1] if 0 < number <= len(plan.owners) else ""
            _logger.warning("ipset restore failed", set=culprit, error=error)
            if culprit and culprit == suspect:
                failed[culprit] = error
                attempts, suspect = 0, ""
            else:
                attempts, suspect = attempts + 1, culprit
            await asyncio.sleep(delay)
            delay = min(delay * 2, 0.5)
            await self.read()
        raise KernelError(f"cannot write the ip sets after {_ATTEMPTS} attempts: {error}")

    async def destroy_unwanted(self) -> list[str]:
        """Destroy our sets that nothing asks for. Call it after the rules that used them are gone.

        Returns:
            Sets that are still in use; they are tried again at the next call.
        """
        if self._actual is None:
            return []
        waiting = unwanted_sets(self._table, self._actual)
        kept: list[str] = []
        while waiting:
            number, error = await self._restore(tuple(f"destroy {name}" for name in waiting))
            done = len(waiting) if not error else max(number - 1, 0)
            self._touched.update(waiting)
            self._unsurprising = frozenset()
            for name in waiting[:done]:
                del self._actual[name]
            if error:
                if "does not exist" in error:
                    self._actual.pop(waiting[done], None)
                else:
                    kept.append(waiting[done])
                done += 1
            waiting = waiting[done:]
        return kept

    @property
    def unwanted(self) -> bool:
        """Whether sets of ours are waiting to be destroyed."""
        return bool(self._actual and unwanted_sets(self._table, self._actual))

    async def _restore(self, lines: tuple[str, ...]) -> tuple[int, str]:
        """Number of the line that failed (0: not told) and the error, "" for success."""
        if not lines:
            return 0, ""
        text = "\n".join([*lines, "COMMIT", ""])
        done = await programs.run(["ipset", "restore", "-exist"], stdin=text, calls=_CALLS, errors=_ERRORS)
        _LINES.inc(len(lines))
        if done.returncode == 0:
            return 0, ""
        error = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        found = _ERROR_LINE.search(error)
        return (int(found[1]) if found else 0), error


def _shown(found: KernelSet | None) -> str:
    return "absent" if found is None else f"{len(found.members)} members"
