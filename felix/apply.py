"""The dataplane as one thing: takes what the graph says, brings the kernel there in an order that never opens a gap.

Order of one cycle: the fast path loses interfaces that have no endpoint any more; ip sets are created, grown and
shrunk; then the rules of all tables; then tunnel devices; then addresses, sysctls and routes; then the fast path gets
new interfaces; then sets are destroyed that no rule uses any more. On a kernel without rules the default drop for
workload interfaces goes in before anything else, even before the datastore has been read; apart from that nothing is
written until the first complete snapshot is known. Nothing is taken away when the process ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from calipy import log
from calipy.errors import KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.dataplane.endpoints import Endpoints
from calipy.felix.dataplane.groups import LinkGroups
from calipy.felix.dataplane.hosts import HostEndpoints
from calipy.felix.dataplane.ipsets import IPSets
from calipy.felix.dataplane.peering import PeeringAddresses
from calipy.felix.dataplane.tunnels import Tunnels
from calipy.felix.delta import Difference
from calipy.felix.known import Known
from calipy.felix.messages import Changes, EndpointID, WorkloadEndpoint
from calipy.felix.ruleset import Ruleset
from calipy.felix.sets import SetTable
from calipy.felix.statuses import Statuses
from calipy.felix.timers import Backoff, earliest
from calipy.felix.upkeep import Upkeep
from calipy.kernel import sysctl
from calipy.kernel.monitor import AddressEvent, LinkEvent, RouteEvent

_logger = log.get("felix.dataplane")

_PAUSE_IN_TROUBLE: Final = 1.0
_RETRY_FIRST: Final = 0.1
_RETRY_LONGEST: Final = 10.0
_DRIFT_KEPT: Final = 100


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
        """Nothing is read or written before ``start``, which also makes ``statuses``.

        Args:
            config: parameters known so far; later ones come with the changes.
            mtu_file: what to write the pods' MTU into, None for nowhere.
            clock: seconds, for periods and pauses.
        """
        self.config = config
        self._mtu_file = mtu_file
        self.recent_drift: deque[Difference] = deque(maxlen=_DRIFT_KEPT)
        self.programmed = False  # everything known has been brought into the kernel once, or is known to be refused
        self._clock = clock
        self._known = Known()
        self._rules = Ruleset()
        self._ended = 0.0
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
        self._peering = PeeringAddresses(self.config)
        self.statuses = Statuses(self._known, self._edges, self._hosts, self._rules)
        await self._build()

    def close(self) -> None:
        """Close sockets. The kernel's state stays as it is."""
        if self._upkeep is not None:
            self._upkeep.close()
        self._rules.close()
        self._ipsets.close()
        self._edges.close()
        self._groups.close()
        self._tunnels.close()
        self._hosts.close()
        self._peering.close()

    def update(self, changes: Changes) -> None:
        """Note what the graph says; cheap, touches nothing. Effective with the next ``apply``."""
        self._known.expect(changes)

    def on_event(self, event: LinkEvent | AddressEvent | RouteEvent) -> bool:
        """Note what happened to a link, address or route; True if it calls for ``apply``."""
        now = self._clock()
        if isinstance(event, RouteEvent):
            return self._edges.on_route(event, now)
        of_host = self._hosts.on_event(event, now)
        of_host = self._tunnels.on_event(event, now) or of_host
        of_host = self._peering.on_event(event) or of_host
        if isinstance(event, AddressEvent):
            bared = event.gone and event.address.address.version == 4
            return (bared and self._edges.on_bared(event.address.interface)) or of_host
        regrouped = self._groups.on_link(event)
        return self._edges.on_link(event, now) or regrouped or of_host

    def resync(self) -> None:
        """Events were lost: have the next ``apply`` read links, addresses and routes."""
        self._edges.resync()
        self._groups.resync()
        self._hosts.resync()
        self._peering.resync()

    def measure(self) -> None:
        """Set the gauges of rules, sets and routes. Linear in the chains."""
        self._rules.measure()
        self._ipsets.measure()
        self._edges.measure()

    def next_deadline(self) -> float | None:
        """When ``apply`` has something to do without being told, on the constructor's clock."""
        if not self._known.in_sync:
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
            while self._known.pending:
                await self._take(self._known.pending[0], started)
                self._known.pending.popleft()
            if not self._known.in_sync:
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

    @property
    def backend(self) -> str:
        """Which iptables is used: ``nft`` or ``legacy``."""
        return self._rules.backend

    def endpoint(self, identity: EndpointID) -> WorkloadEndpoint | None:
        """The endpoint as last applied."""
        return self._known.endpoints.get(identity)

    @property
    def warnings(self) -> list[str]:
        """What is not wrong in itself but will surprise."""
        ignored = [f"{name} = {value!r} is ignored: {reason}" for name, value, reason in self.config.problems]
        return [
            *ignored,
            *self._edges.warnings,
            *self._hosts.warnings,
            *self._tunnels.warnings,
            *self._peering.warnings,
        ]

    async def _take(self, changes: Changes, now: float) -> None:
        if changes.config is not None or changes.encapsulation is not None:
            given = self.config if changes.config is None else FelixConfig.from_parameters(changes.config)
            encapsulation = changes.encapsulation or self.config.encapsulation
            await self._reconfigure(replace(given, encapsulation=encapsulation), now)
        changes, touched = self._known.take(changes, self.config.interface_prefixes)
        self._rules.update(changes)
        self._set_table.update(changes)
        for interface in touched:
            holder = self._known.holder(interface)
            endpoint = self._known.endpoints[holder] if holder else None
            self._edges.set_endpoint(interface, endpoint)
            self._groups.set_endpoint(interface, endpoint)
            self._peering.set_endpoint(interface, endpoint)
        self._hosts.update(changes.host_endpoints)
        self._edges.update(changes.routes, changes.vteps)
        self._tunnels.update(changes.hosts, changes.vteps)

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
        self._peering.reconfigure(config)
        try:
            await self._build()
        except KernelError:
            self.config = old
            raise

    async def _build(self) -> None:
        """Make everything that depends on the parameters, from what is known so far."""
        known = replace(self._known.sum(), host_endpoints=dict(self._hosts.endpoints))
        await self._rules.build(self.config, known, self._hosts.interfaces)
        if self._upkeep is not None:
            self._upkeep.close()
        self._upkeep = Upkeep(self.config, self._rules.edge, self._ipsets, now=self._clock(), wake=self.wake)
        if not self._known.in_sync:
            await self._rules.guard()
        self._set_node_parameters()

    async def _apply(self, report: ApplyReport, now: float) -> None:
        assert self._upkeep is not None
        await self._rules.prepare()
        report.drift, report.errors = self._upkeep.take(now)
        if self._backoff.due(now):
            self._rules.forgive()
        if self._upkeep.routes_due(now):
            self._set_node_parameters()
            self._edges.recheck()
            self._hosts.resync()
            self._peering.resync()
        elif self._upkeep.parameters_due(now):
            self._set_node_parameters()
            self._edges.check_parameters()
        self._hosts.ask_addresses(wanted=self._set_table.marks)
        if await self._hosts.resolve(now):
            self._rules.set_hosts(self._hosts.interfaces)
        self._set_table.set_this_host(self._hosts.addresses)
        self._groups.withdraw()
        failures = await self._ipsets.write()
        report.errors += [f"ip set {name}: {why}" for name, why in failures.items()]
        written = await self._rules.write()
        report.changed = len(written.changed)
        report.errors += [f"{place}: {why}" for place, why in written.refused.items()]
        report.drift += self._tunnels.write(now)
        self._edges.set_nics(self._tunnels.nics, devices_changed=self._tunnels.devices_changed)
        report.errors += self._tunnels.problems
        report.drift += self._peering.write()
        report.errors += self._peering.problems.values()
        for interface in self._peering.bared:
            self._edges.on_bared(interface)
        report.drift += await self._edges.write(now)
        report.errors += self._edges.cluster_problems.values()
        self._groups.admit()
        self._known.applied()
        if self._ipsets.unwanted:
            await self._ipsets.destroy_unwanted()
        self._upkeep.wrote(now)
        self.programmed = True

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
