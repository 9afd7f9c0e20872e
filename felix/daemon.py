"""Felix: policy and routes of this node's pods, from the datastore's events to the kernel.

    on_events ─► Graph (what must hold here) ─► Changes ─► Dataplane (kernel brought there, and kept there)
                                                              ▲
                                link and route events ────────┘

One task does all applying. Events that arrive while it works are gathered and go into the next cycle together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from calipy import log
from calipy.datastore.syncer import InSync, Status, SyncEvent, Update
from calipy.felix import telemetry
from calipy.felix.apply import ApplyReport, Dataplane
from calipy.felix.config import FelixConfig
from calipy.felix.delta import Difference
from calipy.felix.graph.graph import Graph
from calipy.felix.graph.statistics import GraphStatistics
from calipy.felix.messages import Changes, EndpointID, WorkloadEndpoint
from calipy.felix.statuses import EndpointStatus
from calipy.kernel.monitor import AddressEvent, LinkEvent, Monitor, Overrun

_logger = log.get("felix")

SLOW: Final = 5.0
"""Seconds after which a cycle that has not ended makes the agent unready: what waits for it is not in the kernel."""
HOLD: Final = 0.05
"""Seconds for which the removal of a policy is held back: if its replacement follows at once, there is no moment at
which the pods are without either.
"""


class ChangeSource(Protocol):
    """What the daemon needs of the calculation graph."""

    datastore_ready: bool | None

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def on_update(self, key: Any, value: Any) -> None: ...
    def on_in_sync(self) -> None: ...
    def flush(self) -> Changes: ...
    def statistics(self) -> GraphStatistics: ...


@dataclass(frozen=True, slots=True)
class FelixStatus:
    """How the agent stands.

    Attributes:
        in_sync: a complete snapshot of the datastore has been taken in.
        datastore: ``connected``, ``disconnected``, ``resync`` or "" before the first word of the syncer.
        ready: in sync, and the kernel is as it should be.
        reasons: why it is not ready.
        backend: ``nft`` or ``legacy``.
        applied_at: when the last cycle ended, on the monotonic clock; None before the first.
        apply_seconds: how long it took.
        errors: what it could not do; each is tried again.
        endpoints: state of each local endpoint.
        host_endpoints: state of each host endpoint of this node, by name.
        drift: the last differences that others caused in the kernel and that were put right.
        warnings: what is not wrong in itself but will surprise.
        busy_seconds: for how long the present cycle has been under way; 0 while there is nothing to do.
        applied_revision: everything that the datastore held at this revision has been brought into the kernel without
            an error; 0 before the first time.
    """

    in_sync: bool
    datastore: str
    ready: bool
    reasons: tuple[str, ...]
    backend: str
    applied_at: float | None
    apply_seconds: float
    errors: tuple[str, ...]
    endpoints: Mapping[EndpointID, EndpointStatus] = field(default_factory=dict)
    drift: tuple[Difference, ...] = ()
    warnings: tuple[str, ...] = ()
    applied_revision: int = 0
    busy_seconds: float = 0.0
    host_endpoints: Mapping[str, EndpointStatus] = field(default_factory=dict)


class Felix:
    """The node agent's policy and routing part. All methods belong to one event loop.

    Attributes:
        parameters: by Felix's name, merged from all sources as far as they are known.
        reconfigured: set when they change; whoever follows them clears it.
    """

    def __init__(
        self,
        config: Mapping[str, str],
        hostname: str,
        *,
        source: ChangeSource | None = None,
        mtu_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Touches nothing yet.

        Args:
            config: local parameters (environment, file) by Felix's name in any case, without ``FELIX_``.
            hostname: this node's name in the datastore.
            source: instead of the calculation graph.
            mtu_file: what to write the pods' MTU into, for the CNI plugin; None for nowhere.
            clock: seconds.
        """
        environment = {f"FELIX_{name.upper()}": value for name, value in config.items()}
        self._graph: ChangeSource = source or Graph(hostname, environment)
        self._dataplane = Dataplane(FelixConfig.from_parameters(config), mtu_file=mtu_file, clock=clock)
        self._clock = clock
        self._wake = asyncio.Event()
        self._dataplane.wake = self._wake.set
        self._progress = asyncio.Event()
        self.parameters: Mapping[str, str] = config
        self.reconfigured = asyncio.Event()
        self._version = 0
        self._in_sync = False
        self._datastore = ""
        self._reading = True
        self._started = False
        self._received_revision = 0
        self._flushed_revision = 0
        self._applied_revision = 0
        self._batch = telemetry.Batch()
        self._said: frozenset[str] = frozenset()
        self._last: ApplyReport | None = None
        self._applied_at: float | None = None
        self._busy_since: float | None = None

    def on_events(self, events: Iterable[SyncEvent]) -> None:
        """Take a batch from the syncer; returns at once, the kernel follows from ``run``."""
        for event in events:
            if isinstance(event, Update | InSync):
                self._received_revision = max(self._received_revision, event.revision)
            if isinstance(event, Update):
                began = self._clock()
                self._graph.on_update(event.key, event.value)
                telemetry.processed(event.key, self._clock() - began)
            elif isinstance(event, InSync):
                self._graph.on_in_sync()
                self._in_sync = True
                self._reading = False
                telemetry.datastore("in-sync")
            elif isinstance(event, Status):
                self._datastore = event.state
                self._reading = self._reading or event.state == "resync"
                if event.state == "disconnected":
                    telemetry.datastore("wait-for-ready")
                else:
                    telemetry.datastore("resync" if self._reading else "in-sync")
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled. What is in the kernel stays there.

        Raises:
            KernelError: iptables, ipset or netlink cannot be used at all.
        """
        with Monitor() as monitor:
            await self._dataplane.start()
            self._started = True
            watch = asyncio.create_task(self._watch(monitor))
            try:
                await self._work(watch)
            finally:
                watch.cancel()
                self._dataplane.close()

    def status(self) -> FelixStatus:
        """Present state; cost is linear in the local endpoints."""
        errors = tuple(self._last.errors) if self._last else ()
        reasons = []
        if not self._in_sync:
            reasons.append("the datastore has not been read completely yet")
        elif not self._graph.datastore_ready:
            reasons.append("ClusterInformation does not say that the datastore is ready")
        elif self._last is None:
            reasons.append("nothing has been programmed yet")
        busy = self._clock() - self._busy_since if self._busy_since is not None else 0.0
        if busy > SLOW:
            reasons.append(f"the kernel has not taken the last changes for {busy:.0f} s")
        reasons += errors[:3]
        return FelixStatus(
            in_sync=self._in_sync,
            datastore=self._datastore,
            ready=not reasons,
            reasons=tuple(reasons),
            backend=self._dataplane.backend if self._started else "",
            applied_at=self._applied_at,
            apply_seconds=self._last.seconds if self._last else 0.0,
            errors=errors,
            endpoints=self._dataplane.statuses.workloads() if self._started else {},
            drift=tuple(self._dataplane.recent_drift),
            warnings=(*self._graph.warnings, *self._dataplane.warnings) if self._started else (),
            applied_revision=self._applied_revision,
            busy_seconds=busy,
            host_endpoints=self._dataplane.statuses.hosts() if self._started else {},
        )

    def measure(self) -> None:
        """Set the metrics that nobody follows as things happen. Linear in what is known and programmed."""
        telemetry.show_graph(self._graph.statistics())
        if self._started:
            self._dataplane.measure()

    async def wait_programmed(self, endpoint_id: EndpointID, timeout: float, *, nets: Iterable[str] = ()) -> bool:
        """Wait until policy and routes of an endpoint are in the kernel.

        Args:
            endpoint_id: which; it need not be known yet.
            timeout: seconds.
            nets: addresses that the endpoint must have by then; tells a new endpoint from an old one of the same name.

        Returns:
            False when the time is up.
        """
        wanted = frozenset(nets)
        deadline = self._clock() + timeout
        while not self._is_programmed(endpoint_id, wanted):
            remaining = deadline - self._clock()
            if remaining <= 0:
                return False
            if not await _within(remaining, self._progress):
                return self._is_programmed(endpoint_id, wanted)
        return True

    @property
    def programmed(self) -> bool:
        """Whether all that was in the datastore at the start has been brought into the kernel once."""
        return self._dataplane.programmed

    def endpoint(self, identity: EndpointID) -> WorkloadEndpoint | None:
        """A local endpoint as last applied."""
        return self._dataplane.endpoint(identity)

    async def changed_since(self, version: int, timeout: float) -> int:
        """Wait until states of endpoints may have changed.

        Args:
            version: what the last call returned; 0 at first.
            timeout: seconds, after which it returns in any case: what is repaired by itself is not noticed.

        Returns:
            The present version.
        """
        deadline = self._clock() + timeout
        while self._version == version and (remaining := deadline - self._clock()) > 0:
            if not await _within(remaining, self._progress):
                break
        return self._version

    def _is_programmed(self, identity: EndpointID, nets: frozenset[str]) -> bool:
        if not self._started:
            return False
        status, endpoint = self._dataplane.statuses.workload(identity), self._dataplane.endpoint(identity)
        return status is not None and endpoint is not None and status.state == "up" and nets <= set(endpoint.nets)

    async def _work(self, watch: asyncio.Task[None]) -> None:
        while True:
            self._busy_since = None
            await self._wait(self._dataplane.next_deadline())
            self._busy_since = self._clock()
            if watch.done():
                watch.result()
            await self._gather()
            report = await self._dataplane.apply()
            if self._in_sync and self._graph.datastore_ready:
                # Who only looked after the kernel, and found all well, has changed no endpoint's state.
                quiet = self._batch == telemetry.Batch() and report.ok and self._last is not None and self._last.ok
                self._version += not quiet
                if not quiet:
                    self._warn()
                telemetry.applied(self._batch, report.seconds, first=self._last is None, failed=not report.ok)
                self._batch = telemetry.Batch()
                self._last, self._applied_at = report, self._clock()
                if report.ok:
                    self._applied_revision = self._flushed_revision
            self._progress.set()
            self._progress = asyncio.Event()

    async def _gather(self) -> None:
        """Hand over what the graph has; hold it for a moment if pods would lose a policy by it."""
        until: float | None = None
        while True:
            self._wake.clear()
            changes = self._flush()
            if changes is not None:
                self._dataplane.update(changes)
                if until is None and _loosens(changes):
                    until = self._clock() + HOLD
            if until is None or self._clock() >= until:
                return
            await self._wait(until)

    def _flush(self) -> Changes | None:
        """What the graph says; None as long as nothing may be programmed."""
        if not (self._in_sync and self._graph.datastore_ready):
            return None
        self._flushed_revision = self._received_revision
        changes = self._graph.flush()
        if changes.config is not None:
            self.parameters = changes.config
            self.reconfigured.set()
        self._batch.messages += telemetry.flushed(changes)
        return changes

    def _warn(self) -> None:
        """Log what the graph has come to warn of; ``status`` tells it as long as it holds."""
        warnings = frozenset(self._graph.warnings)
        for warning in sorted(warnings - self._said):
            _logger.warning("the datastore asks for what cannot be done", warning=warning)
        self._said = warnings

    async def _wait(self, deadline: float | None) -> None:
        """Wait for news, or until ``deadline``."""
        await _within(None if deadline is None else max(deadline - self._clock(), 0), self._wake)

    async def _watch(self, monitor: Monitor) -> None:
        async for event in monitor:
            self._batch.links += isinstance(event, LinkEvent)
            self._batch.addresses += isinstance(event, AddressEvent)
            if isinstance(event, Overrun):
                self._dataplane.resync()
                self._wake.set()
            elif self._dataplane.on_event(event):
                self._wake.set()


async def _within(seconds: float | None, event: asyncio.Event) -> bool:
    """Wait for an event; False if the time is up before. Python 3.11's ``wait_for`` can lose a cancellation."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _loosens(changes: Changes) -> bool:
    """Whether a policy goes while endpoints stay."""
    endpoints = (*changes.endpoints.values(), *changes.host_endpoints.values())
    return any(policy is None for policy in changes.policies.values()) and any(
        endpoint is not None for endpoint in endpoints
    )
