"""The kernel's side of the FIB: desired routes against the routes that carry our protocol number. An edge.

Small changes are written at once, by difference against what was last read or written; whatever may have changed
behind our back (somebody deletes a route, a link goes down and the kernel drops its routes without a word) is found by
reading back, on events and once in a while.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Final

from calipy import log
from calipy.bgp.fib import Difference, difference
from calipy.errors import KernelError
from calipy.kernel import routes
from calipy.kernel.routes import RouteFailure, RouteTable
from calipy.net import PROTO_BGP, IPAddress, Prefix, Route

logger = log.get("bgp.fib")

_GONE_ALREADY: Final = (errno.ESRCH, errno.ENODEV)


class KernelFib:
    """The routes of ours in the main table.

    Attributes:
        desired: by destination; change it with ``want``.
        actual: as last read or written.
        stale: destinations found at start that nothing has asked for yet; they stay until ``release``.
        failures: what the kernel refused, by destination; tried again whenever something changes.
    """

    def __init__(self, table: RouteTable) -> None:
        self._table = table
        self.desired: dict[Prefix, Route] = {}
        self.actual: dict[Prefix, Route] = {}
        self.stale: frozenset[Prefix] = frozenset()
        self.failures: dict[Prefix, RouteFailure] = {}
        self._touched: set[Prefix] = set()

    def start(self) -> None:
        """Read what an earlier bgpd left; all of it is stale and stays for now.

        Raises:
            KernelError: the kernel's routes cannot be read.
        """
        self.stale = frozenset(self._read())

    def want(self, changes: Mapping[Prefix, Route | None]) -> None:
        """Change what should be; None = no route. Nothing is written before ``apply``. O(changes)."""
        for dst, route in changes.items():
            if route is None:
                self.desired.pop(dst, None)
            else:
                self.desired[dst] = route
        self._touched |= changes.keys()
        if self.stale:
            self.stale -= {dst for dst, route in changes.items() if route is not None}

    def release(self) -> None:
        """What is still stale goes with the next ``apply``."""
        if self.stale:
            logger.info("stale routes released", routes=len(self.stale))
        self._touched |= self.stale
        self.stale = frozenset()

    def apply(self) -> None:
        """Write what ``want`` has changed, and try failures again. O(changes)."""
        touched = self._touched | self.failures.keys()
        self._touched = set()
        if touched:
            wanted = {dst: self.desired[dst] for dst in touched if dst in self.desired}
            present = [self.actual[dst] for dst in touched if dst in self.actual]
            self._write(difference(wanted, present, routes.matches, keep=self.stale))

    def repair(self) -> int:
        """Read back and mend every difference; how many there were. O(routes).

        Raises:
            KernelError: the kernel's routes cannot be read.
        """
        self._touched = set()
        found = self._read()
        drift = difference(self.desired, found.values(), routes.matches, keep=self.stale)
        self._write(drift)
        return len(drift.delete) + len(drift.replace) + len(drift.add)

    def lookup(self, address: IPAddress) -> Route | None:
        """The route that the kernel matches for an address, None if there is none or it forbids."""
        try:
            return self._table.lookup(address, matched=True)
        except KernelError:
            return None

    def source_for(self, address: IPAddress) -> IPAddress | None:
        """The local address that the kernel would use towards ``address``."""
        try:
            return self._table.lookup(address).source
        except KernelError:
            return None

    def covering(self, address: IPAddress) -> list[Route]:
        """Every route of the main table that covers an address. O(routes of the family)."""
        family = self._table.dump(family=4 if address.version == 4 else 6)
        return [route for route in family if address in route.dst]

    def main_table(self) -> tuple[Route, ...]:
        """Every route of the main table, others' too.

        Raises:
            KernelError: it cannot be read.
        """
        return tuple(self._table.dump())

    def interfaces(self) -> set[str]:
        """Interfaces that our routes use."""
        return {hop.interface for route in self.actual.values() for hop in route.next_hops}

    def _read(self) -> dict[Prefix, Route]:
        # Routes of ours under other metrics are what an earlier configuration left; keep one, so that it is mended.
        self.actual = {route.dst: route for route in self._table.dump(protocol=PROTO_BGP)}
        return self.actual

    def _write(self, todo: Difference) -> None:
        """Replacements and additions first, so that a destination is never without a route in between."""
        failed = self._table.apply(replace=todo.replace, add=todo.add)
        failed += [one for one in self._table.apply(delete=todo.delete) if one.code not in _GONE_ALREADY]
        self._report(failed, todo)
        broken = {one.route.dst for one in failed}
        for route in todo.delete:
            self.actual.pop(route.dst, None)
            self.failures.pop(route.dst, None)
        for route in (*todo.replace, *todo.add):
            if route.dst not in broken:
                self.actual[route.dst] = route
                self.failures.pop(route.dst, None)
        for dst in [dst for dst in self.failures if dst not in self.desired]:
            del self.failures[dst]

    def _report(self, failed: Iterable[RouteFailure], todo: Difference) -> None:
        for one in failed:
            known = self.failures.get(one.route.dst)
            self.failures[one.route.dst] = one
            if known is None or known.code != one.code:
                remedy = "another program has a route of the same metric" if one.code == errno.EEXIST else ""
                logger.warning("route refused", dst=str(one.route.dst), reason=one.reason, remedy=remedy)
        if todo.delete or todo.add or todo.replace:
            logger.debug("routes written", added=len(todo.add), replaced=len(todo.replace), deleted=len(todo.delete))
