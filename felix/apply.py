"""The dataplane as one thing: takes what the graph says, brings the kernel there in an order that never opens a gap.

Order of one cycle: the fast path loses interfaces that have no endpoint any more; ip sets are created, grown and
shrunk; then the rules of all tables; then tunnel devices; then sysctls and routes; then the fast path gets new
interfaces; then sets are destroyed that no rule uses any more. On a kernel without rules the default drop for
workload interfaces goes in before anything else, even before the datastore has been read; apart from that nothing is
written until the first complete snapshot is known. Nothing is taken away when the process ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeVar

from calipy import log
from calipy.errors import KernelError
from calipy.felix import telemetry
from calipy.felix.config import FelixConfig
from calipy.felix.dataplane import backend
from calipy.felix.dataplane.backend import BackendName
from calipy.felix.dataplane.endpoints import Endpoints
from calipy.felix.dataplane.groups import LinkGroups
from calipy.felix.dataplane.hosts import HostEndpoints
from calipy.felix.dataplane.ipsets import IPSets
from calipy.felix.dataplane.iptables import IPTables
from calipy.felix.dataplane.tunnels import Tunnels
from calipy.felix.delta import Difference, Table
from calipy.felix.messages import ActivePolicy, ActiveProfile, Changes, EndpointID, PolicyID, Pool, WorkloadEndpoint
from calipy.felix.ownership import is_workload_interface
from calipy.felix.render import syntax
from calipy.felix.render.names import Direction, host_chain, workload_chain
from calipy.felix.render.renderer import Renderer
from calipy.felix.render.static import TABLES
from calipy.felix.sets import SetTable
from calipy.felix.timers import Backoff, earliest
from calipy.felix.upkeep import Upkeep
from calipy.kernel import sysctl
from calipy.kernel.monitor import AddressEvent, LinkEvent, RouteEvent
from calipy.net import Family

_logger = log.get("felix.dataplane")

_IPV6: Final = Path("/proc/sys/net/ipv6")
_PAUSE_IN_TROUBLE: Final = 1.0
_RETRY_FIRST: Final = 0.1
_RETRY_LONGEST: Final = 10.0
_DRIFT_KEPT: Final = 100
_DIRECTIONS: Final[tuple[Direction, Direction]] = ("ingress", "egress")

_K = TypeVar("_K")
_V = TypeVar("_V")
EndpointState = Literal["up", "down", "error"]


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """State of one local endpoint, as Calico reports it, and why it is not ``up``."""

    state: EndpointState
    cause: str = ""


@dataclass(slots=True)
class ApplyReport:
    """What one ``apply`` did.

    Attributes:
        errors: failures; what they concern is tried again, with growing pauses.
        drift: what was found different without our doing, and has been put right.
        changed: chains and hooks that were written.
        seconds: how long it took.
    """

    errors: list[str] = field(default_factory=list)
    drift: list[Difference] = field(default_factory=list)
    changed: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the kernel is now as it should be."""
        return not self.errors


class Dataplane:
    """The network namespace of this process. One ``apply`` at a time; ``update`` may be called at any time."""

    def __init__(
        self, config: FelixConfig, *, mtu_file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is read or written before ``start``.

        Args:
            config: parameters known so far; later ones come with the changes.
            mtu_file: what to write the pods' MTU into, None for nowhere.
            clock: seconds, for periods and pauses.
        """
        self.config = config
        self._mtu_file = mtu_file
        self.backend: BackendName = "nft"
        self.recent_drift: deque[Difference] = deque(maxlen=_DRIFT_KEPT)
        self.programmed = False  # everything known has been brought into the kernel once, or is known to be refused
        self._clock = clock
        self._pending: list[Changes] = []
        self._in_sync = False
        self._policies: dict[PolicyID, ActivePolicy] = {}
        self._profiles: dict[str, ActiveProfile] = {}
        self._endpoints: dict[EndpointID, WorkloadEndpoint] = {}
        self._pools: dict[str, Pool] = {}
        self._services: tuple[str, ...] = ()
        self._claims: dict[str, set[EndpointID]] = {}
        self._unusable: dict[EndpointID, str] = {}
        self._unapplied: set[EndpointID] = set()
        self._refused: dict[str, str] = {}
        self._set_failures: dict[str, str] = {}
        self._ended = 0.0
        self._first_write = True
        self._fast_path: bool | None = None
        self._iptables: IPTables | None = None
        self._backoff = Backoff(_RETRY_FIRST, _RETRY_LONGEST)
        self._upkeep: Upkeep | None = None
        self.wake: Callable[[], None] = _nobody

    async def start(self) -> None:
        """Choose the iptables backend, see what the kernel holds, and make sure that workload interfaces drop.

        Raises:
            KernelError: iptables or ipset is missing or unusable, or others keep rules in both backends.
        """
        self._set_table = SetTable(self.config.max_ipset_size, self.config.external_nodes)
        self._ipsets = IPSets(self._set_table)
        self._edges = Endpoints(self.config)
        self._groups = LinkGroups()
        self._tunnels = Tunnels(self.config, self._mtu_file)
        self._hosts = HostEndpoints(self.config)
        await self._build()

    def close(self) -> None:
        """Close sockets. The kernel's state stays as it is."""
        if self._iptables is not None:
            self._iptables.close()
        if self._upkeep is not None:
            self._upkeep.close()
        self._ipsets.close()
        self._edges.close()
        self._groups.close()
        self._tunnels.close()
        self._hosts.close()

    def update(self, changes: Changes) -> None:
        """Note what the graph says; cheap, touches nothing. Effective with the next ``apply``."""
        self._pending.append(changes)
        self._unapplied |= changes.endpoints.keys()
        self._in_sync = self._in_sync or changes.in_sync

    def on_event(self, event: LinkEvent | AddressEvent | RouteEvent) -> bool:
        """Note what happened to a link, address or route; True if it calls for ``apply``."""
        now = self._clock()
        if isinstance(event, RouteEvent):
            return self._edges.on_route(event, now)
        of_host = self._hosts.on_event(event, now)
        of_host = self._tunnels.on_event(event, now) or of_host
        if not isinstance(event, LinkEvent):
            return of_host
        regrouped = self._groups.on_link(event)
        return self._edges.on_link(event, now) or regrouped or of_host

    def resync(self) -> None:
        """Events were lost: have the next ``apply`` read links, addresses and routes."""
        self._edges.resync()
        self._groups.resync()
        self._hosts.resync()

    def measure(self) -> None:
        """Set the gauges of rules, sets and routes. Linear in the chains."""
        for family, renderer in self._renderers.items():
            telemetry.show_rules(family, renderer.tables.values())
        self._ipsets.measure()
        self._edges.measure()

    def next_deadline(self) -> float | None:
        """When ``apply`` has something to do without being told, on the constructor's clock."""
        if not self._in_sync:
            return None
        periodic = self._upkeep.deadline if self._upkeep else None
        if self._backoff.deadline is None:
            parts = (self._edges, self._hosts, self._tunnels)
            return earliest(*(part.next_deadline() for part in parts), periodic)
        # What fails early in a cycle leaves the periods that come later overdue: no reason to go round in circles.
        return earliest(self._backoff.deadline, max(periodic or 0.0, self._ended + _PAUSE_IN_TROUBLE))

    async def apply(self) -> ApplyReport:
        """Bring the kernel to what ``update`` said, and put right what has drifted and is due to be looked at.

        Cost follows what changed, and what is due.
        """
        started = self._clock()
        report = ApplyReport()
        try:
            while self._pending:
                await self._take(self._pending[0], started)
                self._pending.pop(0)
            if not self._in_sync:
                return report
            await self._apply(report, started)
        except KernelError as error:
            report.errors.append(str(error))
        now = self._ended = self._clock()
        report.seconds = now - started
        if report.errors:
            if self._backoff.due(started):
                self._backoff.failed(now)
            _logger.error("cannot bring the kernel in line; trying again", errors=report.errors[:5])
        else:
            self._backoff.succeeded()
        if report.drift:
            self.recent_drift.extend(report.drift)
            for difference in report.drift[:20]:
                _logger.warning("drift healed", **difference._asdict())
        return report

    async def _sweep_other_backend(self) -> None:
        """Remove our chains from the iptables backend that is not in use, where an earlier run left them."""
        other: BackendName = "legacy" if self.backend == "nft" else "nft"
        if not (await backend.evidence(other, self._families)).ours:
            return
        swept = IPTables(other, {family: {name: Table(name) for name in TABLES} for family in self._families})
        try:
            report = await swept.write()
            _logger.info("swept our chains from the other backend", backend=other, chains=len(report.changed))
        finally:
            swept.close()

    def endpoint_status(self, identity: EndpointID) -> EndpointStatus | None:
        """State of a local endpoint, None if there is no such endpoint."""
        if unusable := self._unusable.get(identity):
            return EndpointStatus("error", unusable)
        endpoint = self._endpoints.get(identity)
        if endpoint is None:
            return None
        interface = endpoint.interface
        winner = min(self._claims[interface])
        if winner != identity:
            return EndpointStatus("down", f"interface {interface} belongs to {'/'.join(winner)}")
        if problem := self._problem(endpoint):
            return EndpointStatus("error", problem)
        if identity in self._unapplied:
            return EndpointStatus("down", "not programmed yet")
        if not endpoint.admin_up:
            return EndpointStatus("down", "disabled")
        if not self._edges.is_up(interface):
            return EndpointStatus("down", f"interface {interface} is missing or down")
        if not self._edges.is_settled(interface):
            return EndpointStatus("down", "not programmed yet")
        return EndpointStatus("up")

    def endpoint(self, identity: EndpointID) -> WorkloadEndpoint | None:
        """The endpoint as last applied."""
        return self._endpoints.get(identity)

    def endpoints(self) -> dict[EndpointID, EndpointStatus]:
        """State of every local endpoint."""
        known = (*self._endpoints, *self._unusable)
        return {identity: status for identity in known if (status := self.endpoint_status(identity))}

    def host_endpoints(self) -> dict[str, EndpointStatus]:
        """State of every host endpoint of this node."""
        waiting = {name for changes in self._pending for name in changes.host_endpoints}
        return {name: self._host_status(name, waiting) for name in self._hosts.names()}

    @property
    def warnings(self) -> list[str]:
        """What is not wrong in itself but will surprise."""
        ignored = [f"{name} = {value!r} is ignored: {reason}" for name, value, reason in self.config.problems]
        return [*ignored, *self._edges.warnings, *self._hosts.warnings, *self._tunnels.warnings]

    @property
    def _families(self) -> tuple[Family, ...]:
        return (4, 6) if self.config.ipv6_support and _IPV6.exists() else (4,)

    def _problem(self, endpoint: WorkloadEndpoint) -> str:
        interface = endpoint.interface
        if problem := self._edges.problems.get(interface):
            return problem
        return self._refusal({workload_chain(interface, "ingress"), workload_chain(interface, "egress")})

    def _host_status(self, name: str, waiting: set[str]) -> EndpointStatus:
        chains = {
            host_chain(interface, direction, forward=forward)
            for interface, endpoint in self._hosts.interfaces.items()
            if endpoint.name == name
            for direction in _DIRECTIONS
            for forward in (False, True)
        }
        if refusal := self._refusal(chains):
            return EndpointStatus("error", refusal)
        if name in waiting:
            return EndpointStatus("down", "not programmed yet")
        problem = self._hosts.problem(name)
        return EndpointStatus("down", problem) if problem else EndpointStatus("up")

    def _refusal(self, chains: set[str]) -> str:
        """What the kernel refused of these chains and all that they lead to."""
        if not self._refused:
            return ""
        used: set[str] = set()
        for renderer in self._renderers.values():
            for table in renderer.tables.values():
                used |= table.reachable(chains)
        return next((f"{place}: {why}" for place, why in self._refused.items() if place.split()[-1] in used), "")

    async def _take(self, changes: Changes, now: float) -> None:
        if changes.config is not None or changes.encapsulation is not None:
            given = self.config if changes.config is None else FelixConfig.from_parameters(changes.config)
            encapsulation = changes.encapsulation or self.config.encapsulation
            await self._reconfigure(replace(given, encapsulation=encapsulation), now)
        changes = self._without_unusable(changes)
        _merge(self._policies, changes.policies)
        _merge(self._profiles, changes.profiles)
        _merge(self._pools, changes.pools)
        self._services = changes.services if changes.services is not None else self._services
        for renderer in self._renderers.values():
            renderer.update(changes)
        self._set_table.update(changes)
        touched: set[str] = set()
        for identity, endpoint in changes.endpoints.items():
            touched |= self._claim(identity, endpoint)
        for interface in touched:
            claims = self._claims.get(interface)
            endpoint = self._endpoints[min(claims)] if claims else None
            self._edges.set_endpoint(interface, endpoint)
            self._groups.set_endpoint(interface, endpoint)
        self._hosts.update(changes.host_endpoints)
        self._edges.update(changes.routes, changes.vteps)
        self._tunnels.update(changes.hosts, changes.vteps)

    def _without_unusable(self, changes: Changes) -> Changes:
        """Treat endpoints whose interface cannot be a pod's as absent: nothing may be done to the node's own ones."""
        endpoints = dict(changes.endpoints)
        for identity, endpoint in changes.endpoints.items():
            self._unusable.pop(identity, None)
            if endpoint is not None and not is_workload_interface(endpoint.interface, self.config.interface_prefixes):
                prefixes = ", ".join(self.config.interface_prefixes)
                self._unusable[identity] = f"interface {endpoint.interface!r} does not begin with {prefixes}"
                endpoints[identity] = None
        return replace(changes, endpoints=endpoints) if self._unusable else changes

    def _claim(self, identity: EndpointID, endpoint: WorkloadEndpoint | None) -> set[str]:
        touched = set()
        old = self._endpoints.pop(identity, None)
        if old is not None:
            touched.add(old.interface)
            self._claims[old.interface].discard(identity)
            if not self._claims[old.interface]:
                del self._claims[old.interface]
        if endpoint is not None:
            touched.add(endpoint.interface)
            self._endpoints[identity] = endpoint
            self._claims.setdefault(endpoint.interface, set()).add(identity)
        return touched

    async def _reconfigure(self, config: FelixConfig, now: float) -> None:
        old = self.config
        for parameter, value, reason in set(config.problems) - set(old.problems):
            _logger.error("parameter ignored", parameter=parameter, value=value, reason=reason)
        if config == old:
            return
        self.config = config
        if (config.max_ipset_size, config.external_nodes) != (old.max_ipset_size, old.external_nodes):
            self._set_table = self._set_table.resized(config.max_ipset_size, config.external_nodes)
            self._ipsets.set_table(self._set_table)
        self._edges.reconfigure(config, now)
        self._tunnels.reconfigure(config)
        self._hosts.reconfigure(config)
        try:
            await self._build()
        except KernelError:
            self.config = old
            raise

    async def _build(self) -> None:
        """Make everything that depends on the parameters, from what is known so far."""
        self._renderers = {family: Renderer(family, self.config) for family in self._families}
        known = Changes(
            policies=dict(self._policies),
            profiles=dict(self._profiles),
            endpoints=dict(self._endpoints),
            host_endpoints=dict(self._hosts.endpoints),
            pools=dict(self._pools),
            services=self._services,
        )
        for renderer in self._renderers.values():
            renderer.update(known)
            renderer.set_hosts(self._hosts.interfaces)
            renderer.set_fast_path(possible=bool(self._fast_path))
        tables = {family: renderer.tables for family, renderer in self._renderers.items()}
        chosen = await backend.choose(self.config.iptables_backend, self._families)
        if self._iptables is not None and chosen == self.backend and tables.keys() == self._iptables.families:
            self._iptables.set_tables(tables)
        else:
            if self._iptables is not None:
                self._iptables.close()
            self.backend, self._iptables = chosen, IPTables(chosen, tables)
            self._first_write = True
            self._fast_path = None
        if self._upkeep is not None:
            self._upkeep.close()
        self._upkeep = Upkeep(self.config, self._iptables, self._ipsets, now=self._clock(), wake=self.wake)
        if not self._in_sync:
            guarded = await self._iptables.guard()
            _logger.info("workload interfaces drop until policy is known", written=len(guarded.changed))
        self._set_node_parameters()

    async def _apply(self, report: ApplyReport, now: float) -> None:
        assert self._iptables is not None
        assert self._upkeep is not None
        if self._first_write:
            await self._open_fast_path()
        report.drift, report.errors = self._upkeep.take(now)
        if self._refused and self._backoff.due(now):
            for renderer in self._renderers.values():
                for table in renderer.tables.values():
                    table.forgive()
        if self._upkeep.routes_due(now):
            self._set_node_parameters()
            self._edges.recheck()
            self._hosts.resync()
        elif self._upkeep.parameters_due(now):
            self._set_node_parameters()
            self._edges.check_parameters()
        self._hosts.ask_addresses(wanted=self._set_table.marks)
        if await self._hosts.resolve(now):
            for renderer in self._renderers.values():
                renderer.set_hosts(self._hosts.interfaces)
        self._set_table.set_this_host(self._hosts.addresses)
        self._groups.withdraw()
        self._set_failures = await self._ipsets.write()
        report.errors += [f"ip set {name}: {why}" for name, why in self._set_failures.items()]
        written = await self._iptables.write()
        if self._first_write:
            self._first_write = False
            await self._sweep_other_backend()
        self._refused = written.refused
        report.changed = len(written.changed)
        report.errors += [f"{place}: {why}" for place, why in written.refused.items()]
        report.drift += self._tunnels.write(now)
        self._edges.set_nics(self._tunnels.nics, devices_changed=self._tunnels.devices_changed)
        report.errors += self._tunnels.problems
        report.drift += await self._edges.write(now)
        report.errors += self._edges.cluster_problems.values()
        self._groups.admit()
        self._unapplied = {identity for changes in self._pending for identity in changes.endpoints}
        if self._ipsets.unwanted:
            await self._ipsets.destroy_unwanted()
        self._upkeep.wrote(now)
        self.programmed = True

    async def _open_fast_path(self) -> None:
        """Read the tables; have the fast path in them if the kernel knows its match, which it does if it is there."""
        assert self._iptables is not None
        for renderer in self._renderers.values():
            renderer.set_fast_path(possible=True)
        await self._iptables.read()
        if self._fast_path is None:
            in_force = self._iptables.holds("filter", "cali-FORWARD")
            self._fast_path = in_force or await self._iptables.understands(syntax.from_group(4))
        for renderer in self._renderers.values():
            renderer.set_fast_path(possible=self._fast_path)

    def _set_node_parameters(self) -> None:
        """Make the node a router; only once workload interfaces drop what is not known. Have connections counted."""
        wanted = ["net.netfilter.nf_conntrack_acct"]
        if self.config.forwarding:
            wanted.append("net.ipv4.ip_forward")
            if self.config.ipv6_support:
                wanted.append("net.ipv6.conf.all.forwarding")
        for key in wanted:
            try:
                if sysctl.read(key) != "1":
                    sysctl.write(key, 1)
            except KernelError as error:
                _logger.warning("cannot turn on a parameter of the node", key=key, error=str(error))


def _nobody() -> None:
    """There is no loop to wake: ``apply`` is called by hand."""


def _merge(kept: dict[_K, _V], new: Mapping[_K, _V | None]) -> None:
    for key, value in new.items():
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value
