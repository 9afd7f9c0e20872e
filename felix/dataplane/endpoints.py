"""Routes of the node, to its pods and in the cluster; what else pods need is in ``interfaces``."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from calipy import clock, log
from calipy.errors import KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.dataplane import conntrack
from calipy.felix.dataplane.interfaces import GONE, Interfaces
from calipy.felix.delta import Difference
from calipy.felix.messages import VTEP, VTEPID, ClusterRoute, WorkloadEndpoint
from calipy.felix.ownership import owns_route
from calipy.felix.routing import Routing
from calipy.kernel.links import Link, Links
from calipy.kernel.monitor import LinkEvent, RouteEvent
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteFailure, RouteTable, matches
from calipy.metrics import REGISTRY
from calipy.net import POD_GATEWAY, PROTO_BGP, Family, Prefix, Route

_logger = log.get("felix.endpoints")

_ROUTES: Final = REGISTRY.gauges("felix_route_table_num_routes", "Routes that Felix manages in a table.", "table")
_INTERFACES: Final = REGISTRY.gauges(
    "felix_route_table_num_ifaces", "Interfaces that Felix watches for the routes of a table.", "table"
)
_READ_SECONDS: Final = REGISTRY.summary("felix_route_table_resync_seconds", "Seconds that it took to read all routes.")
_PARTIAL_READ_SECONDS: Final = REGISTRY.summary(
    "felix_route_table_partial_resync_seconds", "Seconds that it took to read the routes of one interface."
)
_CONNTRACK_SECONDS: Final = REGISTRY.summary(
    "felix_route_table_conntrack_wait_seconds", "Seconds for which routes waited for connections to be forgotten."
)

_GATEWAY: Final = ipaddress.ip_address(POD_GATEWAY)
_PROTO_KERNEL: Final = 2
_MAIN_TABLE: Final = 254
_SOON: Final = 3.0
"""Seconds until all routes are read again because somebody added one that we do not know, or something failed."""
_MANY_INTERFACES: Final = 32
"""Reading all routes is cheaper than reading those of more interfaces than this one by one."""


class Endpoints:
    """Routes, and neighbours and sysctls of local workloads, in the process's network namespace. Calls do not overlap.

    Netlink calls here block the event loop for microseconds each; full reads go through a worker thread.
    """

    def __init__(self, config: FelixConfig) -> None:
        """Open a netlink socket; nothing is read or written yet."""
        self._config = config
        self._socket = NetlinkSocket()
        self._links = Links(self._socket)
        self._table = RouteTable(self._socket)
        self._routing = Routing(config)
        self._interfaces = Interfaces(self._socket, config)
        self._bgp_peers: set[str] = set()
        self._up: dict[str, Link] = {}
        self._actual: dict[Prefix, tuple[Route, ...]] = {}
        self._unread: set[str] = set()
        self._unsettled: set[str] = set()
        self._settling: set[str] = set()
        self.warnings: list[str] = []
        self.cluster_problems: dict[Prefix, str] = {}
        self._own_deletions: Counter[tuple[Prefix, int]] = Counter()
        self._read_at: float | None = float("-inf")
        self._read_before = False
        self._problems: dict[str, tuple[Prefix, str]] = {}

    def close(self) -> None:
        """Close the socket; nothing in the kernel changes."""
        self._socket.close()

    def reconfigure(self, config: FelixConfig, now: float) -> None:
        """Take over new parameters: routes are worked out again, only differences get written."""
        self._config = config
        self._routing = Routing(config, self._routing.cluster)
        self._interfaces.reconfigure(config)
        for endpoint in self._interfaces.endpoints.values():
            self._routing.set_endpoint(endpoint)
        for name, link in self._up.items():
            self._routing.set_link(name, link.index, now)
        self.resync()

    def set_endpoint(self, interface: str, endpoint: WorkloadEndpoint | None) -> None:
        """The endpoint that has the interface now, None for none."""
        if not self._interfaces.set_endpoint(interface, endpoint):
            return
        self._bgp_peers.discard(interface)
        if endpoint is not None and endpoint.bgp_peer is not None:
            self._bgp_peers.add(interface)
        if endpoint is None:
            self._routing.remove_endpoint(interface)
        else:
            self._unread.add(interface)
            self._unsettled.add(interface)
            self._routing.set_endpoint(endpoint)

    def update(self, routes: Mapping[Prefix, ClusterRoute | None], vteps: Mapping[VTEPID, VTEP | None]) -> None:
        """Take in what the graph says of the cluster."""
        for dst, route in routes.items():
            self._routing.set_cluster_route(dst, route)
        for identity, vtep in vteps.items():
            self._routing.set_vtep(identity, vtep)

    def set_nics(self, nics: Mapping[Family, str], *, devices_changed: bool) -> None:
        """Interfaces with this node's addresses; and whether tunnel devices are others, so that routes are gone."""
        if devices_changed:
            self._routing.dirty.update(self._routing.cluster.destinations())
        if self._routing.set_nics(nics) or devices_changed:
            self.resync()

    def on_link(self, event: LinkEvent, now: float) -> bool:
        """Note an event; True if it calls for ``write``."""
        if not self._routing.follows(event.name):
            return False
        old = self._up.get(event.name)
        if event.up and old is not None and (old.index, old.mac) == (event.index, event.link.mac):
            return False
        if not event.up and old is None:
            return False
        self._set_link(event.name, event.link if event.up else None, now)
        return True

    def on_bared(self, interface: str) -> bool:
        """Its routes and neighbours may be gone, as with the last IPv4 address; True if that calls for ``write``."""
        if interface not in self._interfaces.endpoints:
            return False
        self._interfaces.recheck(interface)
        self._unread.add(interface)
        self._unsettled.add(interface)
        return True

    def on_route(self, event: RouteEvent, now: float) -> bool:
        """Note an event; True if it calls for ``write`` at once."""
        if event.table != _MAIN_TABLE or event.protocol in {PROTO_BGP, _PROTO_KERNEL}:
            return False
        if event.gone and self._own_deletions[event.dst, event.protocol]:
            self._own_deletions[event.dst, event.protocol] -= 1
            return False
        want = self._routing.desired(event.dst)
        if event.dst.prefixlen == 0:  # pods need it, see _check_gateway
            self._read_soon(now)
            return False
        if want is None and not event.gone:  # perhaps a stray route to a pod; perhaps the CNI plugin's
            self._read_soon(now)
            return False
        if want is None or (event.protocol == want.protocol and not event.gone) or event.dst in self._routing.dirty:
            return False
        self.resync()
        return True

    def resync(self) -> None:
        """Have the next ``write`` read everything first."""
        self._read_at = float("-inf")

    def recheck(self) -> None:
        """Have the next ``write`` look at everything: routes, and each interface's sysctls and neighbours."""
        self._interfaces.recheck()
        self.resync()

    def check_parameters(self) -> None:
        """Have a glance at the main sysctls of all settled interfaces; ``write`` puts right what is wrong."""
        settled = (name for name in self._interfaces.endpoints.keys() & self._up.keys() if self.is_settled(name))
        self._interfaces.glance({self._up[name].index: name for name in settled})

    def next_deadline(self) -> float | None:
        """When ``write`` has something to do without any event, on the clock of ``now``."""
        deadlines = (self._read_at, self._routing.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def measure(self) -> None:
        """Set the gauges. Linear in the routes."""
        wanted = [prefix for prefix in self._routing.destinations() if self._routing.desired(prefix)]
        for family in (4, 6):
            table = f"IPv{family}:{_MAIN_TABLE}"
            _ROUTES.labels(table).set(sum(prefix.version == family for prefix in wanted))
            _INTERFACES.labels(table).set(len(self._up))

    def is_up(self, interface: str) -> bool:
        """Whether the interface exists and can pass packets."""
        return interface in self._up

    def is_settled(self, interface: str) -> bool:
        """Whether the last ``write`` has dealt with everything that happened to the interface."""
        return interface not in self._unsettled and interface not in self._settling

    def problem(self, interface: str) -> str:
        """Why the endpoint of an interface is not fully set up; "" if it is."""
        if found := self._interfaces.problems.get(interface):
            return found
        return self._problems[interface][1] if interface in self._problems else ""

    async def write(self, now: float) -> list[Difference]:
        """Bring routes, neighbours and sysctls in line. Cost follows what is dirty.

        Returns:
            Drift: what was found different although nobody had asked for a change.

        Raises:
            KernelError: the kernel's tables cannot be read. Single refusals are told by ``problem``.
        """
        self._unread |= self._routing.expire(now)
        if len(self._unread) > _MANY_INTERFACES or (self._read_at is not None and self._read_at <= now):
            drift = await self._read(now)
        else:
            drift = []
            self._read_interfaces()
        self._settling, self._unsettled = self._settling | self._unsettled, set()
        drift += self._interfaces.write(self._up.keys(), self._settling)
        await self._write_routes()
        self._settling = set()
        if self._problems or self.cluster_problems or self._interfaces.waiting(self._up.keys()):
            self._read_soon(now)
        return drift

    def _read_soon(self, now: float) -> None:
        self._read_at = now + _SOON if self._read_at is None else min(now + _SOON, self._read_at)

    async def _read(self, now: float) -> list[Difference]:
        """Read all links and routes; everything becomes dirty."""
        waiting = frozenset(self._routing.dirty)
        began = clock.monotonic()
        links, routes = await asyncio.to_thread(lambda: (self._links.list_links(), self._table.dump()))
        _READ_SECONDS.observe(clock.monotonic() - began)
        self._read_at = None
        self._check_gateway()
        self._unread.clear()
        self._own_deletions.clear()
        self._actual = _by_destination(route for route in routes if self._owns(route))
        up = {link.name: link for link in links if link.running and self._routing.follows(link.name)}
        for name in self._up.keys() - up.keys():
            self._set_link(name, None, now)
        for name, link in up.items():
            if self._up.get(name) != link:
                self._set_link(name, link, now)
        self._unread.clear()
        self._routing.dirty.update(self._routing.destinations(), self._actual)
        if not self._read_before:
            self._read_before = True
            return []
        plan = self._routing.plan(self._actual, matches)
        drift = [Difference("route", str(r.dst), "absent", _shown(r)) for r in plan.delete_first + plan.delete_last]
        drift += [Difference("route", str(r.dst), _shown(r), "absent or different") for r in plan.replace]
        return [difference for difference in drift if ipaddress.ip_network(difference.name) not in waiting]

    def _read_interfaces(self) -> None:
        """Read the routes of interfaces that changed."""
        if not self._unread:
            return
        touched = [p for p, routes in self._actual.items() if any(_interface(r) in self._unread for r in routes)]
        for prefix in touched:
            self._actual[prefix] = tuple(r for r in self._actual[prefix] if _interface(r) not in self._unread)
        for interface in self._unread:
            began = clock.monotonic()
            found = self._table.dump(interface=interface)
            _PARTIAL_READ_SECONDS.observe(clock.monotonic() - began)
            for route in found:
                if self._owns(route):
                    self._actual[route.dst] = (*self._actual.get(route.dst, ()), route)
                    self._routing.dirty.add(route.dst)
        self._routing.dirty.update(touched)
        self._unread.clear()

    def _owns(self, route: Route) -> bool:
        config = self._config
        return owns_route(
            route,
            config.interface_prefixes,
            protocol=config.device_route_protocol,
            remove_external=config.remove_external_routes,
            ipip="ipip" in config.cluster_routes,
            peers=self._bgp_peers,
        )

    def _set_link(self, name: str, link: Link | None, now: float) -> None:
        if link is None:
            self._up.pop(name, None)
        else:
            self._up[name] = link
            self._interfaces.recheck(name)
        # The kernel drops the routes of a link that goes down without telling, and does not bring them back.
        self._unread.add(name)
        self._unsettled.add(name)
        self._routing.set_link(name, link.index if link else None, now)

    async def _write_routes(self) -> None:
        plan = self._routing.plan(self._actual, matches)
        dirty = self._routing.dirty
        self.cluster_problems = {dst: why for dst, why in self.cluster_problems.items() if dst not in dirty}
        self._problems = {name: (dst, why) for name, (dst, why) in self._problems.items() if dst not in dirty}
        self._routing.dirty.clear()
        self._note(self._table.apply(delete=plan.delete_first), plan.delete_first, deleted=True)
        if plan.forget:
            began = clock.monotonic()
            await conntrack.forget(plan.forget)
            _CONNTRACK_SECONDS.observe(clock.monotonic() - began)
        self._note(self._table.apply(replace=plan.replace), plan.replace, deleted=False)
        self._note(self._table.apply(delete=plan.delete_last), plan.delete_last, deleted=True)

    def _note(self, failures: list[RouteFailure], routes: list[Route], *, deleted: bool) -> None:
        """Record what was done; what failed is looked at again with the next event, or at the next refresh."""
        failed = {failure.route: failure for failure in failures}
        for route in routes:
            failure = failed.get(route)
            others = tuple(r for r in self._actual.get(route.dst, ()) if r.key != route.key)
            if deleted and (failure is None or failure.code in GONE):
                self._actual[route.dst] = others
                self._own_deletions[route.dst, route.protocol] += failure is None
            elif failure is None:
                self._actual[route.dst] = (*others, route)
            if not self._actual.get(route.dst, True):
                del self._actual[route.dst]
            if failure is not None and failure.code not in GONE:
                _logger.error("cannot write route", route=_shown(route), error=failure.reason)
                if self._routing.is_workload(_interface(route)):
                    self._problems[_interface(route)] = (route.dst, f"route {route.dst}: {failure.reason}")
                else:
                    self.cluster_problems[route.dst] = f"route {_shown(route)}: {failure.reason}"

    def _check_gateway(self) -> None:
        """Proxy ARP answers for the pods' gateway only if the node has a route for it, normally its default route."""
        self.warnings = []
        if not any(":" not in net for endpoint in self._interfaces.endpoints.values() for net in endpoint.nets):
            return
        try:
            self._table.lookup(_GATEWAY)
        except KernelError:
            self.warnings = [
                f"no route to {_GATEWAY}, so this node does not answer for the pods' gateway: add a default route"
            ]


def _by_destination(routes: Iterable[Route]) -> dict[Prefix, tuple[Route, ...]]:
    found: defaultdict[Prefix, list[Route]] = defaultdict(list)
    for route in routes:
        found[route.dst].append(route)
    return {prefix: tuple(same) for prefix, same in found.items()}


def _interface(route: Route) -> str:
    return route.next_hops[0].interface if route.next_hops else ""


def _shown(route: Route) -> str:
    hop = route.next_hops[0] if route.next_hops else None
    via = f" via {hop.gateway}" if hop and hop.gateway else ""
    via += f" dev {hop.interface}" if hop else ""
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    return f"{kind}{route.dst}{via} proto {route.protocol} metric {route.metric}"
