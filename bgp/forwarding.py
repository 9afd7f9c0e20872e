"""From the RIB to the kernel: next hops resolved, routes written, drift mended. The kernel is behind ``KernelFib``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from calipy import clock, log
from calipy.bgp import fib
from calipy.bgp.decision import Best
from calipy.bgp.fib import Programming, Resolver
from calipy.bgp.kernel import KernelFib
from calipy.bgp.peering import Session
from calipy.bgp.rib import Change, Rib
from calipy.kernel.monitor import AddressEvent, LinkEvent, Overrun, RouteEvent
from calipy.metrics import REGISTRY
from calipy.net import PROTO_BGP, IPAddress, NextHop, Prefix, Route, host_prefix

logger = log.get("bgp.fib")

_DRIFT: Final = REGISTRY.counter("bgp_fib_drift", "Routes in the kernel that were not as written, and were mended.")

REPAIR_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 0.05
"""Kernel events are collected for this long: a link that goes down brings dozens."""
MAIN_TABLE: Final = 254


class Forwarding:
    """What the RIB and the datastore ask of the kernel.

    Attributes:
        relink: links, addresses or routes have changed, so that next hops must be resolved again.
        repair_at: monotonic time at which the kernel is read again.
    """

    def __init__(self, rib: Rib, kernel: KernelFib) -> None:
        self._rib = rib
        self.kernel = kernel
        self.resolver = Resolver(self._lookup)
        self.programming = Programming()
        self.relink = False
        self.repair_at = 0.0
        self._extra: dict[Prefix, Route] = {}

    def on_kernel_event(self, event: LinkEvent | AddressEvent | RouteEvent | Overrun) -> bool:
        """Take one event of the kernel; whether there is something to do now."""
        if not self._concerns_us(event):
            return False
        self.relink = True
        self.repair_at = min(self.repair_at, clock.monotonic() + SETTLE_SECONDS)
        return True

    def _concerns_us(self, event: LinkEvent | AddressEvent | RouteEvent | Overrun) -> bool:
        """Whether an event may have taken a route of ours away or changed how a next hop is reached."""
        match event:
            case RouteEvent(dst, protocol, table, gone):
                if table != MAIN_TABLE:
                    return False
                if protocol == PROTO_BGP:
                    return gone == (dst in self.kernel.desired)
                return bool(dst in self.kernel.failures or self._supports(dst))
            case LinkEvent() | AddressEvent():
                name = event.name if isinstance(event, LinkEvent) else event.address.interface
                # Pods come and go; few of them are routers.
                return not name.startswith("cali") or name in self.resolver.interfaces()
            case _:
                return True

    def _supports(self, dst: Prefix) -> bool:
        return any(hop in dst for hop in self._rib.next_hops())

    def set_programming(self, programming: Programming) -> None:
        """Other rules for what goes into the kernel. O(change) where only own prefixes came or went."""
        before, self.programming = self.programming, programming
        if programming != before:
            best = self._rib.loc_rib()
            self.relink |= programming.ignored != before.ignored
            if replace(programming, own=before.own) == before:
                best = {prefix: best[prefix] for prefix in programming.own ^ before.own if prefix in best}
            self._want_again(best)

    def want_extra(self, sessions: Iterable[Session], blocks: Iterable[Prefix]) -> bool:
        """Routes that come from the datastore alone: ways to peers, and blackholes of own blocks.

        As with BIRD and Felix, blackholes are the BGP side's where the routes are (``programClusterRoutes``).

        Returns:
            Whether ways to peers have changed, on which our own address towards them may depend.
        """
        extra: dict[Prefix, Route] = {}
        metric = self.programming.metric
        for session in sessions:
            if session.reachable_by is not None:
                dst = host_prefix(session.peer)
                hop = NextHop(session.reachable_by)
                extra[dst] = Route(dst, "unicast", (hop,), PROTO_BGP, metric[dst.version], origin=session.source)
        for block in blocks:
            # A single-address blackhole would shadow the pod's own route.
            if block.prefixlen < block.max_prefixlen and not self.programming.refuses(block):
                extra[block] = Route(block, "blackhole", (), PROTO_BGP, metric[block.version], origin="own block")
        before, self._extra = self._extra, extra
        gone: dict[Prefix, Route | None] = {dst: None for dst in before if dst not in extra}
        self.kernel.want(gone | extra)
        return any(route.kind == "unicast" for route in dict(before.items() ^ extra.items()).values())

    def program(self) -> list[Change]:
        """Write what has changed; the changes of the Loc-RIB.

        O(changed prefixes); after a change of links O(next hops) as well.
        """
        before = self.resolver.hops() if self.relink else {}
        self._rib.set_metrics(self.resolver.refresh(self._rib.next_hops(), again=self.relink))
        if self.relink:
            self.relink = False
            after = self.resolver.hops()
            moved = {hop for hop in before if before[hop] != after.get(hop)}
            if moved:
                self._want_again(
                    {
                        prefix: one
                        for prefix, one in self._rib.loc_rib().items()
                        if any(path.attributes.next_hop in moved for path in one.multipath)
                    }
                )
        changes = self._rib.take_changes()
        if changes:
            self.kernel.want(
                {
                    change.prefix: self.programming.route(change.new, self.resolver) if change.new else None
                    for change in changes
                    if change.prefix not in self._extra
                }
            )
        self.kernel.apply()
        return changes

    def release(self) -> None:
        """Routes found at start that nobody has announced again go."""
        self.kernel.release()
        self.kernel.apply()

    def repair(self, now: float) -> None:
        """Read the kernel and mend it, if it is time. O(routes)."""
        if now >= self.repair_at:
            self.repair_at = now + REPAIR_SECONDS
            if drift := self.kernel.repair():
                logger.info("routes mended", routes=drift)
                _DRIFT.inc(drift)

    def interface(self, prefix: Prefix) -> str:
        """Where a prefix of ours leads to, "" without a route."""
        route = self.kernel.actual.get(prefix)
        return route.next_hops[0].interface if route and route.next_hops else ""

    def _want_again(self, entries: Mapping[Prefix, Best]) -> None:
        self.kernel.want(
            {
                prefix: self.programming.route(best, self.resolver)
                for prefix, best in entries.items()
                if prefix not in self._extra
            }
        )

    def _lookup(self, address: IPAddress) -> Route | None:
        """The route to a next hop, passing over our own recursive ones and what is to be ignored."""
        route = self.kernel.lookup(address)
        if route is None or self._may_support(route):
            return route
        return fib.longest_match(address, [one for one in self.kernel.covering(address) if self._may_support(one)])

    def _may_support(self, route: Route) -> bool:
        return fib.may_support(route, self._rib.best(route.dst)) and not self.programming.ignores(route)
