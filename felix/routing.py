"""Which routes the node should have, to local workloads and in the cluster, and how to get there. Pure.

Several endpoints may claim one address; the interface with the highest index has it, and when that one goes the next
takes over. Interfaces that are down do not compete, as the kernel would drop their routes. An address that a local
endpoint claims leads to no other node, whatever the cluster says of it.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from calipy.felix.cluster_routing import ClusterRouting
from calipy.felix.config import FelixConfig
from calipy.felix.messages import VTEP, VTEPID, ClusterRoute, WorkloadEndpoint
from calipy.felix.ownership import is_workload_interface
from calipy.net import Family, IPAddress, NextHop, Prefix, Route

Matcher: TypeAlias = Callable[[Route, Route], bool]

GRACE: Final = 10.0
"""Seconds for which the routes of a new workload interface are left alone while its endpoint is not known: the CNI
plugin writes one before the datastore has told us.
"""


@dataclass(slots=True)
class RoutePlan:
    """Changes, in the order in which they are to happen.

    Attributes:
        delete_first: routes of addresses that have left or moved: nothing may follow them any more.
        forget: addresses whose connections the kernel must forget before they have a new route.
        replace: routes to write.
        delete_last: routes of the same address that the new ones replace, such as the CNI plugin's.
    """

    delete_first: list[Route] = field(default_factory=list)
    forget: list[IPAddress] = field(default_factory=list)
    replace: list[Route] = field(default_factory=list)
    delete_last: list[Route] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.delete_first or self.replace or self.delete_last)


class Routing:
    """Desired routes by destination.

    Attributes:
        dirty: destinations that may differ from the kernel.
    """

    def __init__(self, config: FelixConfig, cluster: ClusterRouting | None = None) -> None:
        self.cluster = cluster or ClusterRouting()
        self._config = config
        self.dirty: set[Prefix] = set()
        self._claims: defaultdict[Prefix, dict[str, Route]] = defaultdict(dict)
        self._nets: dict[str, tuple[Prefix, ...]] = {}
        self._indexes: dict[str, int] = {}
        self._grace: dict[str, float] = {}

    def set_endpoint(self, endpoint: WorkloadEndpoint) -> None:
        """A local endpoint is there, or has changed. Cost: its addresses."""
        self.remove_endpoint(endpoint.interface)
        self._grace.pop(endpoint.interface, None)
        if not endpoint.admin_up:
            self._nets[endpoint.interface] = ()
            return
        nets = tuple(ipaddress.ip_network(net) for net in endpoint.nets)
        self._nets[endpoint.interface] = nets
        for net in nets:
            self._claims[net][endpoint.interface] = self._route(net, endpoint.interface)
            self.dirty.add(net)

    def remove_endpoint(self, interface: str) -> None:
        """Nothing uses the interface any more."""
        for net in self._nets.pop(interface, ()):
            del self._claims[net][interface]
            if not self._claims[net]:
                del self._claims[net]
            self.dirty.add(net)

    def set_link(self, interface: str, index: int | None, now: float) -> None:
        """The interface is up, with this index, or is down or gone (None)."""
        if index is None:
            self._indexes.pop(interface, None)
            self._grace.pop(interface, None)
        else:
            known = interface in self._indexes or interface in self._nets
            if not known and self.is_workload(interface):
                self._grace[interface] = now + GRACE
            self._indexes[interface] = index
        self.dirty.update(self._nets.get(interface, ()))
        if self.cluster.leads_through(interface):
            self.dirty.update(self.cluster.destinations())

    def set_cluster_route(self, dst: Prefix, route: ClusterRoute | None) -> None:
        """Where a block or an address of the cluster leads to."""
        self.dirty |= self.cluster.set_route(dst, route)

    def set_vtep(self, identity: VTEPID, vtep: VTEP | None) -> None:
        """A node's end of the VXLAN network."""
        self.dirty |= self.cluster.set_vtep(identity, vtep)

    def set_nics(self, nics: Mapping[Family, str]) -> bool:
        """The interfaces with this node's addresses; True if they are others, or other destinations."""
        touched = self.cluster.set_nics(nics)
        self.dirty |= touched
        return bool(touched)

    def follows(self, interface: str) -> bool:
        """Whether routes may lead through the interface."""
        return self.is_workload(interface) or self.cluster.leads_through(interface)

    def desired(self, prefix: Prefix) -> Route | None:
        """The route that the node should have to exactly this destination."""
        claims = self._claims.get(prefix)
        if claims:
            usable = [interface for interface in claims if interface in self._indexes]
            return claims[max(usable, key=self._indexes.__getitem__)] if usable else None
        route = self.cluster.desired(prefix)
        if route is not None and route.next_hops and _interface(route) not in self._indexes:
            return None
        return route

    def destinations(self) -> Iterable[Prefix]:
        """All destinations that something claims."""
        return {*self._claims, *self.cluster.destinations()}

    def expire(self, now: float) -> set[str]:
        """Interfaces whose grace has ended: their routes are to be looked at again."""
        ended = {interface for interface, until in self._grace.items() if until <= now}
        for interface in ended:
            del self._grace[interface]
        return ended

    def next_deadline(self) -> float | None:
        """When ``expire`` has something to do."""
        return min(self._grace.values(), default=None)

    def plan(self, actual: Mapping[Prefix, tuple[Route, ...]], matches: Matcher) -> RoutePlan:
        """What to do about the dirty destinations. Linear in them.

        Args:
            actual: the routes that are ours (``ownership.owns_route``), by destination.
            matches: whether a desired route and one of the kernel's are the same (``kernel.routes.matches``).
        """
        result = RoutePlan()
        if self._config.route_sync_disabled:
            return result
        for prefix in sorted(self.dirty, key=_order):
            want, have = self.desired(prefix), actual.get(prefix, ())
            found = False
            for route in have:
                if want is not None and matches(want, route):
                    found = True
                elif want is None or self._left_pod(want, route) or _hides_gateway(route, want):
                    if _interface(route) in self._grace:
                        continue
                    result.delete_first.append(route)
                    if prefix.prefixlen == prefix.max_prefixlen and self.is_workload(_interface(route)):
                        result.forget.append(prefix.network_address)
                elif want.key != route.key:
                    result.delete_last.append(route)
            if want is not None and not found:
                result.replace.append(want)
        return result

    def _left_pod(self, want: Route, have: Route) -> bool:
        """Whether a route leads to a pod that does not have the address any more."""
        return self.is_workload(_interface(have)) and _interface(want) != _interface(have)

    def _route(self, net: Prefix, interface: str) -> Route:
        config = self._config
        source = config.device_route_source if net.version == 4 else config.device_route_source_ipv6
        return Route(
            net,
            next_hops=(NextHop(interface=interface),),
            protocol=config.device_route_protocol,
            metric=self._metric(net),
            scope="link",
            source=ipaddress.ip_address(source) if source else None,
            origin="local workload",
        )

    def _metric(self, prefix: Prefix) -> int:
        return self._config.ipv4_route_priority if prefix.version == 4 else self._config.ipv6_route_priority

    def is_workload(self, interface: str) -> bool:
        """Whether the interface is one that pods have."""
        return is_workload_interface(interface, self._config.interface_prefixes)


def _hides_gateway(have: Route, want: Route) -> bool:
    """Whether a route has to go before the wanted one can be: an IPv6 gateway must not be behind another interface.

    That it is onlink does not help (``ip6_route_check_nh_onlink``), and a tunnel's gateway lies in the block that the
    route is for.
    """
    gateway = want.next_hops[0].gateway if want.next_hops else None
    inside = gateway is not None and gateway.version == 6 and gateway in want.dst
    return inside and bool(have.next_hops) and _interface(have) != _interface(want)


def _interface(route: Route) -> str:
    return route.next_hops[0].interface if route.next_hops else ""


def _order(prefix: Prefix) -> tuple[int, int, int]:
    return (prefix.version, int(prefix.network_address), prefix.prefixlen)
