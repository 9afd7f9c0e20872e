"""From the Loc-RIB to the kernel routes that should be, and what to change to get there. Pure.

Next hops are resolved through the kernel's own table, as a router resolves a recursive route: a next hop on a
connected subnet is the gateway itself; one behind a router (another rack's node) is reached through that router's
address. The kernel would accept neither a gateway that is not on a link, nor notice when the way there changes, so that
the routes carry what the next hop resolves to, and are made again when the answer changes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from calipy.bgp.cluster import DATASTORE
from calipy.bgp.decision import Best
from calipy.net import NORMAL_METRIC, PROTO_BGP, IPAddress, NextHop, Prefix, Route

_PROTO_KERNEL: Final = 2


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a BGP next hop is reached.

    Attributes:
        hops: the way out: the next hop itself on a connected subnet, else the router before it.
        metric: of the route that leads there.
    """

    hops: tuple[NextHop, ...]
    metric: int


def resolve(next_hop: IPAddress, route: Route | None) -> Resolution | None:
    """Resolve a next hop by the route that leads to it; None (unreachable) without one, or if it is no way out."""
    if route is None or route.kind != "unicast" or not route.next_hops:
        return None
    hops = tuple(
        NextHop(hop.gateway or next_hop, hop.interface, onlink=hop.onlink, weight=hop.weight) for hop in route.next_hops
    )
    return Resolution(hops, route.metric)


def may_support(route: Route, best: Best | None) -> bool:
    """Whether next hops may be resolved through a route: always, unless it is ours and itself recursive.

    A recursive route (its BGP next hop is not its gateway) supporting others, or itself, could keep itself alive or
    flap for ever; routers exclude them as well.
    """
    if route.protocol != PROTO_BGP:
        return True
    return best is not None and {best.path.attributes.next_hop} == {hop.gateway for hop in route.next_hops}


def longest_match(address: IPAddress, routes: Iterable[Route]) -> Route | None:
    """The route that the kernel would choose out of these: longest prefix, then lowest metric. O(routes)."""
    covering = [route for route in routes if route.dst.version == address.version and address in route.dst]
    return max(covering, key=lambda route: (route.dst.prefixlen, -route.metric), default=None)


class Resolver:
    """All next hops in use and their resolutions.

    Args:
        lookup: the route that leads to an address, None if there is none.
    """

    def __init__(self, lookup: Callable[[IPAddress], Route | None]) -> None:
        self._lookup = lookup
        self._resolved: dict[IPAddress, Resolution | None] = {}

    def refresh(self, next_hops: set[IPAddress], *, again: bool = False) -> dict[IPAddress, int | None]:
        """Resolve next hops: those not known yet, or all.

        Args:
            next_hops: those in use; others are forgotten.
            again: links or routes have changed, look all of them up.

        Returns:
            For each that was looked up what it costs, None for an unreachable one.
        """
        for gone in self._resolved.keys() - next_hops:
            del self._resolved[gone]
        wanted = next_hops if again else next_hops - self._resolved.keys()
        for hop in wanted:
            self._resolved[hop] = resolve(hop, self._lookup(hop))
        return {hop: found.metric if (found := self._resolved[hop]) else None for hop in wanted}

    def get(self, next_hop: IPAddress) -> Resolution | None:
        """The resolution as last looked up."""
        return self._resolved.get(next_hop)

    def interfaces(self) -> set[str]:
        """Interfaces that lead to next hops. O(next hops)."""
        return {hop.interface for found in self._resolved.values() if found for hop in found.hops}

    def hops(self) -> dict[IPAddress, tuple[NextHop, ...]]:
        """How each next hop is reached now, to see what a refresh has changed."""
        return {hop: found.hops for hop, found in self._resolved.items() if found}


@dataclass(frozen=True, slots=True)
class Programming:
    """Which prefixes of the Loc-RIB go into the kernel, and which may have several next hops.

    Attributes:
        own: this node's blocks and addresses, which the agent routes.
        refused: prefixes (and all inside) that others program: pools with an overlay, service ranges announced
            from here.
        single: ranges where two paths mean two owners, which is a fault to report and not to balance over.
        metric: of the routes, by family.
        ignored: patterns of interfaces whose subnets lead to no next hop (``ignoredInterfaces``).
    """

    own: frozenset[Prefix] = frozenset()
    refused: tuple[Prefix, ...] = ()
    single: tuple[Prefix, ...] = ()
    metric: Mapping[int, int] = field(default_factory=lambda: {4: NORMAL_METRIC, 6: NORMAL_METRIC})
    ignored: tuple[str, ...] = ()

    def ignores(self, route: Route) -> bool:
        """Whether it is the subnet of an interface that does not count: BIRD does not learn it from there either."""
        connected = route.protocol == _PROTO_KERNEL and all(hop.gateway is None for hop in route.next_hops)
        return connected and any(
            fnmatch.fnmatchcase(hop.interface, pattern) for hop in route.next_hops for pattern in self.ignored
        )

    def refuses(self, prefix: Prefix) -> bool:
        """Whether somebody else programs it."""
        return _within(prefix, self.refused)

    def route(self, best: Best, resolver: Resolver) -> Route | None:
        """The kernel route of a Loc-RIB entry, None if there should be none."""
        prefix = best.path.prefix
        if prefix in self.own or self.refuses(prefix):
            return None
        paths = best.multipath if not _within(prefix, self.single) else best.multipath[:1]
        hops: dict[tuple[IPAddress | None, str], NextHop] = {}
        for path in paths:
            resolution = resolver.get(path.attributes.next_hop)
            for hop in resolution.hops if resolution else ():
                hops.setdefault((hop.gateway, hop.interface), hop)
        if not hops:
            return None
        chosen = tuple(hops.values())
        if len(chosen) == 1:
            chosen = (NextHop(chosen[0].gateway, chosen[0].interface, onlink=chosen[0].onlink),)
        source = "datastore" if best.path.peer == DATASTORE else f"BGP {best.path.peer.address}"
        origin = f"{source}: {best.reason}"
        return Route(prefix, "unicast", chosen, PROTO_BGP, self.metric[prefix.version], origin=origin)


def _within(prefix: Prefix, ranges: Iterable[Prefix]) -> bool:
    return any(prefix.version == one.version and prefix.subnet_of(one) for one in ranges)  # type: ignore[arg-type]  # same family


@dataclass(frozen=True, slots=True)
class Difference:
    """What to do to the kernel.

    Attributes:
        delete: routes of ours that should not be.
        replace: routes of ours that should be other than they are.
        add: routes that are missing; the kernel refuses (EEXIST) where somebody else's has the same place.
    """

    delete: tuple[Route, ...] = ()
    replace: tuple[Route, ...] = ()
    add: tuple[Route, ...] = ()


def difference(
    desired: Mapping[Prefix, Route],
    actual: Iterable[Route],
    same: Callable[[Route, Route], bool],
    *,
    keep: frozenset[Prefix] = frozenset(),
) -> Difference:
    """Compare what should be with our own routes as the kernel has them. O(desired + actual).

    Args:
        desired: by destination.
        actual: the kernel's routes of our protocol number, all tables and metrics of ours.
        same: whether the kernel's route is what the first asks for.
        keep: destinations that stay although nothing asks for them: found at start and not yet confirmed.
    """
    delete: list[Route] = []
    replace: list[Route] = []
    present: set[Prefix] = set()
    for route in actual:
        wanted = desired.get(route.dst)
        if wanted is None:
            if route.dst not in keep:
                delete.append(route)
        elif wanted.metric != route.metric or route.dst in present:
            delete.append(route)
        else:
            present.add(route.dst)
            if not same(wanted, route):
                replace.append(wanted)
    add = [route for dst, route in desired.items() if dst not in present]
    return Difference(tuple(delete), tuple(replace), tuple(add))
