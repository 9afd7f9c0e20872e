"""CalicoNodeStatus: what this node tells of itself in the datastore, and when. Pure.

Calico's shape, with BIRD's words: sessions by BIRD's states, routes as BIRD's table would show them (``FIB``: chosen
and in the kernel, ``RIB``: known). Source: Calico ``node/pkg/status``.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Final, TypeAlias

from msgspec.structs import replace

from calipy import clock
from calipy.bgp.cluster import DATASTORE
from calipy.bgp.peering import SessionType
from calipy.bgp.rib import Rib
from calipy.bgp.sessions import SessionState
from calipy.datastore.kinds.cluster import (
    BGPDaemonStatus,
    CalicoNodeStatusSpec,
    CalicoNodeStatusStatus,
    LearnedFrom,
    NodeAgentStatus,
    NodeBGPStatus,
    NodePeer,
    NodeRoute,
    NodeRoutesStatus,
)
from calipy.datastore.resources import Resource
from calipy.net import PROTO_BGP, Family, IPAddress, Prefix, Route

NodeStatusResource: TypeAlias = Resource[CalicoNodeStatusSpec, CalicoNodeStatusStatus]

_PEER_TYPES: Final[Mapping[SessionType, str]] = {
    "node-to-node mesh": "NodeMesh",
    "node specific": "NodePeer",
    "global": "GlobalPeer",
}
"""Sessions with workloads have no type there, and are left out as by Calico."""
NOT_APPLICABLE: Final = "N/A"
"""Gateway of a route that has none, as BIRD's parser in Calico says it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a report is made of.

    Attributes:
        ready: by family: whether the speaker runs and the node has an address of it.
        started, reconfigured: wall clock times of bgpd's start and of its last configuration.
        kernel: the main table.
    """

    version: str
    router_id: IPv4Address | None
    started: datetime.datetime
    reconfigured: datetime.datetime
    ready: Mapping[Family, bool]
    sessions: Mapping[IPAddress, SessionState]
    rib: Rib
    kernel: tuple[Route, ...]


def report(classes: Iterable[str], facts: Facts, wall: datetime.datetime) -> CalicoNodeStatusStatus:
    """The status for the classes asked for; the others stay empty. O(sessions + paths + kernel routes)."""
    status = CalicoNodeStatusStatus(last_updated=clock.rfc3339(wall))
    if "Agent" in classes:
        status = replace(status, agent=NodeAgentStatus(bird_v4=_daemon(facts, 4), bird_v6=_daemon(facts, 6)))
    if "BGP" in classes:
        status = replace(status, bgp=_sessions(facts))
    if "Routes" in classes:
        routes = NodeRoutesStatus(routes_v4=tuple(_routes(facts, 4)), routes_v6=tuple(_routes(facts, 6)))
        status = replace(status, routes=routes)
    return status


def _daemon(facts: Facts, family: Family) -> BGPDaemonStatus:
    if not facts.ready[family]:
        return BGPDaemonStatus(state="NotReady")
    return BGPDaemonStatus(
        state="Ready",
        version=facts.version,
        router_id=str(facts.router_id or ""),
        last_boot_time=clock.rfc3339(facts.started),
        last_reconfiguration_time=clock.rfc3339(facts.reconfigured),
    )


def _sessions(facts: Facts) -> NodeBGPStatus:
    peers: dict[Family, list[NodePeer]] = {4: [], 6: []}
    up: dict[Family, int] = {4: 0, 6: 0}
    for peer, state in sorted(facts.sessions.items(), key=lambda item: (item[0].version, int(item[0]))):
        kind = _PEER_TYPES.get(state.session.type)
        if kind is None:
            continue
        family = state.session.family
        up[family] += state.up
        peers[family].append(
            NodePeer(
                peer_ip=str(peer),
                type=kind,
                # A passive end waits in Active too (RFC 4271 8.2.2); ExaBGP tells no step between.
                state="Established" if state.up else "Active",
                since=clock.rfc3339(state.since),
            )
        )
    return NodeBGPStatus(
        number_established_v4=up[4],
        number_not_established_v4=len(peers[4]) - up[4],
        number_established_v6=up[6],
        number_not_established_v6=len(peers[6]) - up[6],
        peers_v4=tuple(peers[4]),
        peers_v6=tuple(peers[6]),
    )


def _routes(facts: Facts, family: Family) -> Iterator[NodeRoute]:
    in_kernel = {route.dst: route for route in facts.kernel if route.protocol == PROTO_BGP}
    prefixes = (prefix for prefix in facts.rib.prefixes() if prefix.version == family)
    for prefix in sorted(prefixes, key=_order):
        best = facts.rib.best(prefix)
        chosen = best.multipath if best and prefix in in_kernel else ()
        for path in facts.rib.paths(prefix):
            if path.rejected:
                continue
            state = facts.sessions.get(path.peer.address)
            if path.peer == DATASTORE:
                learned = LearnedFrom(source_type="Static")
            else:
                mesh = state is not None and state.session.type == "node-to-node mesh"
                learned = LearnedFrom(source_type="NodeMesh" if mesh else "BGPPeer", peer_ip=str(path.peer.address))
            route = in_kernel.get(prefix)
            yield NodeRoute(
                type="FIB" if path in chosen else "RIB",
                destination=str(prefix),
                gateway=str(path.attributes.next_hop),
                interface=route.next_hops[0].interface if path in chosen and route and route.next_hops else "",
                learned_from=learned,
            )
    others = (route for route in facts.kernel if route.dst.version == family)
    for route in sorted(others, key=lambda route: (_order(route.dst), route.metric)):
        if route.protocol == PROTO_BGP and facts.rib.paths(route.dst):
            continue
        for gateway, interface in _hops(route):
            yield NodeRoute(
                type="FIB",
                destination=str(route.dst),
                gateway=gateway,
                interface=interface,
                learned_from=LearnedFrom(source_type=_source(route)),
            )


def _order(prefix: Prefix) -> tuple[int, int]:
    return int(prefix.network_address), prefix.prefixlen


def _hops(route: Route) -> list[tuple[str, str]]:
    if not route.next_hops:
        return [(NOT_APPLICABLE, route.kind)]
    return [(str(hop.gateway or NOT_APPLICABLE), hop.interface) for hop in route.next_hops]


_PROTO_KERNEL: Final = 2


def _source(route: Route) -> str:
    if route.protocol == PROTO_BGP:
        return "Static"  # own blocks, and ways to peers
    connected = route.protocol == _PROTO_KERNEL and all(hop.gateway is None for hop in route.next_hops)
    return "Direct" if connected else "Kernel"


@dataclass(slots=True)
class Schedule:
    """Which objects ask this node, and when each is due.

    An object is due when it appears or its spec changes, then every ``updatePeriodSeconds``; with 0 only once: one that
    has a report when it appears is left alone.
    """

    hostname: str
    _objects: dict[str, NodeStatusResource] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def on_update(self, name: str, resource: Resource[Any, Any] | None, now: float) -> bool:
        """Take one change; whether something is due sooner than before. Our own reports come back this way too."""
        spec = resource.spec if resource else None
        if resource is None or not isinstance(spec, CalicoNodeStatusSpec) or spec.node != self.hostname:
            self._objects.pop(name, None)
            self._due.pop(name, None)
            return False
        known = self._objects.get(name)
        self._objects[name] = resource
        if known is not None and known.spec == spec:
            return False
        told = isinstance(resource.status, CalicoNodeStatusStatus) and resource.status.last_updated is not None
        if known is None and told and not spec.update_period_seconds:
            return False
        self._due[name] = now
        return True

    def take(self, now: float) -> list[NodeStatusResource]:
        """The objects that are due; each is then due again after its period."""
        due = [name for name, at in self._due.items() if at <= now]
        for name in due:
            del self._due[name]
            if period := self._objects[name].spec.update_period_seconds:
                self._due[name] = now + period
        return [self._objects[name] for name in due]

    def again(self, name: str, at: float) -> None:
        """A report could not be written: it is due again at ``at``."""
        if name in self._objects:
            self._due[name] = min(at, self._due.get(name, at))

    def next_due(self) -> float | None:
        """When ``take`` will next have something, None for never."""
        return min(self._due.values(), default=None)


FactsSource: TypeAlias = Callable[[], Facts]
