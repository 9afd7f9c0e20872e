"""bgpd: the datastore and the peers in, announcements and kernel routes out. Wiring, in the order of the flow.

    etcd ─► Syncer ─► View ─┬─► peering ─► Speaker (configuration)          ┐
                            ├─► originated ─► Speaker (adj-rib-out)         ├─ ExaBGP ─ peers
    peers ─► ExaBGP ─► relay ─► Speaker (events) ─► Sessions ─► Rib ◄─ import policy
                                                     Rib ─► Resolver ─► KernelFib ─► kernel
    kernel ─► Monitor ─► Resolver, KernelFib (repair)

Events only mark what has to be done; one pass (``_work``) does it, so that a burst of updates costs one decision per
prefix and one netlink exchange. Nothing is touched before the datastore has been read completely: until then routes,
ExaBGP and its sessions stay as an earlier bgpd left them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from calipy import api_client, clock, log
from calipy.api import Handler, Server
from calipy.bgp import explain, fib, nodestatus, status, view
from calipy.bgp.cluster import ClusterRoutes
from calipy.bgp.decision import Best
from calipy.bgp.exabgp.config import SpeakerSession, checked_key, environment
from calipy.bgp.exabgp.events import Event, ShownRoute
from calipy.bgp.exabgp.process import Paths, SpeakerProcess
from calipy.bgp.exabgp.speaker import Speaker
from calipy.bgp.explain import Origin
from calipy.bgp.exporting import ExportPolicy
from calipy.bgp.fib import Resolver
from calipy.bgp.importing import ImportPolicy
from calipy.bgp.kernel import KernelFib
from calipy.bgp.peering import Peering, Session
from calipy.bgp.reporting import Reporter
from calipy.bgp.rib import EOR_WAIT, Rib
from calipy.bgp.sessions import Sessions
from calipy.datastore import keys
from calipy.datastore.resources import Resource
from calipy.datastore.store import Store
from calipy.datastore.syncer import InSync, Status, Syncer, SyncEvent, Update
from calipy.errors import InvalidInputError, KernelError
from calipy.kernel.monitor import AddressEvent, LinkEvent, Monitor, Overrun, RouteEvent
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable
from calipy.net import PROTO_BGP, IPAddress, NextHop, Prefix, Route, host_prefix, parse_prefix

logger = log.get("bgpd")

REPAIR_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 0.05
"""Kernel events are collected for this long: a link that goes down brings dozens."""
MAIN_TABLE: Final = 254
DEFER_SECONDS: Final = 5.0
DEFER_LONGEST: Final = 60.0
"""A starting reflector begins to reflect when all peers have told everything, or none has come up for
``DEFER_SECONDS``, or after ``DEFER_LONGEST``: telling each prefix once is several times faster than as they come."""


@dataclass(frozen=True, slots=True)
class Options:
    """What does not come from the datastore.

    Attributes:
        run_dir: for the socket; ExaBGP's files are in ``exabgp`` below it.
        secrets_dir: passwords of sessions: ``<secrets_dir>/<secret name>/<key>``, as Kubernetes mounts Secrets.
        router_id: an IPv4 address, ``hash``, or "" for the node's address.
        blackholes: write the blackholes of own blocks, as BIRD does beside Felix; not where Felix has them
            (``programClusterRoutes``).
        cluster_routes: ``bgp``, ``datastore``, or "" for what the BGPConfiguration's annotation says.
    """

    run_dir: Path = field(default_factory=api_client.run_dir)
    secrets_dir: Path = Path("/etc/calipy/secrets")
    router_id: str = ""
    blackholes: bool = False
    cluster_routes: str = ""


class Bgpd:
    """One node's BGP. Works in the network namespace of its process."""

    def __init__(self, store: Store, hostname: str, options: Options | None = None) -> None:
        self.hostname = hostname
        self.options = options or Options()
        self.started_at = clock.monotonic()
        self.since = clock.wall()
        self._view = view.View(hostname)
        self._reporter = Reporter(store, hostname, self._facts)
        self._reconfigured = self.since
        self._ready = asyncio.Event()
        self._syncer = Syncer(store, view.prefixes())
        self._in_sync = False
        self._datastore_problem = ""
        self._policy = ImportPolicy()
        self._rib = Rib(self._policy)
        self._cluster = ClusterRoutes(self._view.cluster, self._rib)
        self.sessions = Sessions(self._rib)
        self._netlink = NetlinkSocket()
        self._kernel = KernelFib(RouteTable(self._netlink))
        self._resolver = Resolver(self._lookup)
        self._programming = fib.Programming()
        self._peering = Peering({}, {})
        self._paths = Paths(self.options.run_dir / "exabgp")
        self._speaker = Speaker(self._paths, self)
        self._problems: dict[str, str] = {}
        self._export_policy = ExportPolicy()
        self._reflecting = False
        self._exports_changed = False
        self._owed: set[IPAddress] = set()
        self._depends_on_host = False
        self._wake = asyncio.Event()
        self._relink = False
        self._repair_at = 0.0
        self._extra: dict[Prefix, Route] = {}
        self._hold_until = 0.0

    async def run(self) -> None:
        """Work until cancelled; routes and ExaBGP then stay as they are.

        Raises:
            CalipyError: another bgpd runs, or the kernel's routes cannot be read.
        """
        self._paths.prepare()
        self._kernel.start()
        handlers: dict[str, Handler] = {"status": self.status, "routes": self.routes, "explain": self.explain}
        server = Server(self.options.run_dir / "bgpd.sock", handlers)
        with Monitor() as monitor:
            async with server, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_datastore())
                tasks.create_task(self._follow_kernel(monitor))
                tasks.create_task(self._speaker.run())
                tasks.create_task(self._work_for_ever())
                tasks.create_task(self._reporter.run(self._ready))

    # Inputs: each marks what is to be done

    async def _follow_datastore(self) -> None:
        async for batch in self._syncer.run():
            self._on_datastore(batch)

    def _on_datastore(self, batch: Sequence[SyncEvent]) -> None:
        for event in batch:
            match event:
                case Update(key, value):
                    self._view.on_update(key, value)
                    if isinstance(key, keys.ResourceKey) and key.kind == "CalicoNodeStatus":
                        self._reporter.on_update(key.name, value if isinstance(value, Resource) else None)
                case InSync():
                    if not self._in_sync:
                        logger.info("datastore read", revision=event.revision)
                        self._hold_until = clock.monotonic() + EOR_WAIT
                    self._in_sync = True
                case Status(state, detail):
                    self._datastore_problem = detail if state == "disconnected" else ""
        self._wake.set()

    async def _follow_kernel(self, monitor: Monitor) -> None:
        async for event in monitor:
            if self._concerns_us(event):
                self._relink = True
                self._repair_at = min(self._repair_at, clock.monotonic() + SETTLE_SECONDS)
                self._wake.set()

    def _concerns_us(self, event: LinkEvent | AddressEvent | RouteEvent | Overrun) -> bool:
        """Whether an event may have taken a route of ours away or changed how a next hop is reached."""
        match event:
            case RouteEvent(dst, protocol, table, gone):
                if table != MAIN_TABLE:
                    return False
                if protocol == PROTO_BGP:
                    return gone == (dst in self._kernel.desired)
                return bool(dst in self._kernel.failures or self._supports(dst))
            case LinkEvent() | AddressEvent():
                name = event.name if isinstance(event, LinkEvent) else event.address.interface
                return not name.startswith("cali")  # pods come and go; no router is behind their interfaces
            case _:
                return True

    def _supports(self, dst: Prefix) -> bool:
        return any(hop in dst for hop in self._rib.next_hops())

    def on_events(self, events: Sequence[Event]) -> None:
        """From the speaker: see ``speaker.Owner``."""
        now, wall = clock.monotonic(), clock.wall()
        for event in events:
            self.sessions.on_event(event, now, wall)
        self._wake.set()

    def on_resync(self) -> None:
        """From the speaker."""
        self.sessions.expect_resync()

    def on_shown(self, routes: Iterable[ShownRoute]) -> None:
        """From the speaker."""
        self.sessions.end_resync(routes)
        self._wake.set()

    def on_speaker_lost(self) -> None:
        """From the speaker."""
        self.sessions.speaker_lost(clock.monotonic(), clock.wall())
        self._wake.set()

    # The pass

    async def _work_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._next_deadline() - clock.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            if not self._in_sync:
                continue
            try:
                self._work(clock.monotonic())
                self._ready.set()
            except Exception as error:
                # Whatever it is, routes and sessions are better kept up by trying again than by ending.
                known = isinstance(error, KernelError)
                logger.warning("a pass has failed, trying again", reason=str(error), exc_info=not known)
                self._view.peering_changed = self._relink = True
                self._repair_at = clock.monotonic() + 1.0

    def _next_deadline(self) -> float:
        if not self._in_sync:
            return clock.monotonic() + REPAIR_SECONDS
        deadlines = [self._repair_at]
        if (expiry := self._rib.next_deadline()) is not None:
            deadlines.append(expiry)
        if (linger := self._cluster.next_deadline()) is not None:
            deadlines.append(linger)
        if self._kernel.stale or self._cluster.retaining or (self._export_policy.cluster_id and not self._reflecting):
            deadlines.append(clock.monotonic() + 0.5)
        return min(deadlines)

    def _work(self, now: float) -> None:
        if self._depends_on_host and (self._relink or now >= self._repair_at):
            self._view.peering_changed = True
        if self._cluster.choose(self._view.cluster_routes(self.options.cluster_routes), now):
            self._view.peering_changed = True
        if self._view.peering_changed:
            self._view.peering_changed = False
            self._view.routes_changed = True
            self._apply_peering()
        if self._view.routes_changed:
            self._view.routes_changed = False
            self._apply_originated()
        self._cluster.feed()
        self._rib.expire(now)
        self._program()
        self._owed |= self.sessions.take_came_up()
        if not self._deferring(now):
            if self._exports_changed:
                self._apply_exports()
            for peer in self._owed:
                self._speaker.owe_end_of_rib(peer)
            self._owed.clear()
        if self._kernel.stale and self._restart_over(now):
            self._kernel.release()
            self._kernel.apply()
        if self._cluster.retaining and self._cluster.release(now, told=self._all_told(now)):
            self._program()
        if now >= self._repair_at:
            self._repair_at = now + REPAIR_SECONDS
            drift = self._kernel.repair()
            if drift:
                logger.info("routes mended", routes=drift)

    def _apply_peering(self) -> None:
        """Sessions, from the datastore to ExaBGP's configuration."""
        self._peering = self._view.peering(self.options.router_id, mesh=self._cluster.mesh())
        known, self._problems = self._problems, dict(self._peering.problems)
        self._depends_on_host = False
        speaking: list[SpeakerSession] = []
        for session in self._peering.sessions.values():
            resolved = self._resolve_session(session)
            if resolved is not None:
                speaking.append(resolved)
        sessions = {one.session.peer: one.session for one in speaking}
        for source, reason in self._problems.items():
            if known.get(source) != reason:
                logger.warning("peering problem", source=source, reason=reason)
        self.sessions.want(sessions, clock.wall())
        addresses = self._view.own_addresses()
        if self._view.configuration.bind_mode == "NodeIP":
            bind: list[IPAddress] = sorted(addresses, key=lambda address: address.version)
        else:
            versions = {address.version for address in addresses}
            bind = [IPv4Address(0)] * (4 in versions) + [IPv6Address(0)] * (6 in versions)
        self._reconfigured = clock.wall()
        self._speaker.configure(speaking, environment(bind=bind, port=self._peering.port))

    def _resolve_session(self, session: Session) -> SpeakerSession | None:
        """Fill in what only this host knows; None (and a problem) if it cannot be had yet."""
        self._depends_on_host |= session.local is None
        local = self._local_address(session)
        if local is None:
            self._problems[session.source] = f"no route to {session.peer}, so no source address for its session"
            return None
        if session.password is None:
            return SpeakerSession(session, local)
        name, key = session.password
        path = self.options.secrets_dir / Path(name).name / Path(key).name
        try:
            return SpeakerSession(session, local, checked_key(path.read_bytes(), str(path)))
        except OSError as error:
            self._depends_on_host = True
            self._problems[session.source] = f"password: cannot read {path}: {error.strerror}"
        except InvalidInputError as error:
            self._problems[session.source] = str(error)
        return None

    def _apply_originated(self) -> None:
        """What this node announces, refuses from others, and leaves out of the kernel."""
        originated = self._view.originated()
        states = self.sessions.states()
        self._export_policy = ExportPolicy(
            originated=originated,
            sessions={peer: state.session for peer, state in states.items()},
            cluster_id=self._view.cluster_id,
            passes_on=self._view.passes_on(),
            filters=self._view.filters,
            interface=self._interface,
        )
        self._exports_changed = True
        policy = ImportPolicy(
            sessions={peer: state.session for peer, state in states.items()},
            router_id=self._peering.router_id,
            cluster_id=self._view.cluster_id,
            own_addresses=self._view.own_addresses(),
            own_prefixes=originated.prefixes() | self._view.own_prefixes(),
            pools=self._view.pools(),
            services=frozenset(self._view.service_ranges()[1]),
            filters=dict(self._view.filters),
        )
        programming = self._view.programming()
        self._judge_again(policy, programming)
        self._want_extra()

    def _judge_again(self, policy: ImportPolicy, programming: fib.Programming) -> None:
        """Import and kernel by new rules. Own prefixes come and go all the time and concern no others: O(change)."""
        old, self._policy = self._policy, policy
        if policy != old:
            if replace(policy, own_prefixes=old.own_prefixes) == old:
                self._rib.judge_again(policy, policy.own_prefixes ^ old.own_prefixes)
            else:
                self._rib.set_policy(policy)
        before, self._programming = self._programming, programming
        if programming != before:
            best = self._rib.loc_rib()
            if replace(programming, own=before.own) == before:
                best = {prefix: best[prefix] for prefix in programming.own ^ before.own if prefix in best}
            self._want_again(best)

    def _apply_exports(self) -> None:
        """Adj-RIB-Out of every session."""
        self._exports_changed = False
        self._speaker.export(self._export_policy.exports(self._rib.loc_rib(), self._local_address))

    def _local_address(self, session: Session) -> IPAddress | None:
        return session.local or self._kernel.source_for(session.peer)

    def _interface(self, prefix: Prefix) -> str:
        route = self._kernel.actual.get(prefix)
        return route.next_hops[0].interface if route and route.next_hops else ""

    def _deferring(self, now: float) -> bool:
        """Whether a reflector still collects: it tells each prefix once, when its peers have told theirs."""
        if self._export_policy.cluster_id is None or self._reflecting:
            return False
        states = self.sessions.states()
        up = [state.up_at for state in states.values() if state.up]
        collected = bool(up) and all(self.sessions.settled(peer, now) for peer in states)
        waited = bool(up) and now - max(up) > DEFER_SECONDS
        self._reflecting = collected or waited or now - self.started_at > DEFER_LONGEST
        return not self._reflecting

    def _want_extra(self) -> None:
        """Routes that come from the datastore alone: ways to peers, and own blackholes if they are ours."""
        extra: dict[Prefix, Route] = {}
        metric = self._programming.metric
        for session in self._peering.sessions.values():
            if session.reachable_by is not None:
                dst = host_prefix(session.peer)
                hop = NextHop(session.reachable_by)
                extra[dst] = Route(dst, "unicast", (hop,), PROTO_BGP, metric[dst.version], origin=session.source)
        if self.options.blackholes:
            for block in self._view.own_blocks():
                # A single-address blackhole would shadow the pod's own route.
                if block.prefixlen < block.max_prefixlen and not self._programming.refuses(block):
                    extra[block] = Route(block, "blackhole", (), PROTO_BGP, metric[block.version], origin="own block")
        gone: dict[Prefix, Route | None] = {dst: None for dst in self._extra if dst not in extra}
        self._extra = extra
        self._kernel.want(gone | extra)

    def _program(self) -> None:
        """From the RIB to the kernel. O(changed prefixes); after a change of links O(next hops) as well."""
        before = self._resolver.hops() if self._relink else {}
        self._rib.set_metrics(self._resolver.refresh(self._rib.next_hops(), again=self._relink))
        if self._relink:
            self._relink = False
            after = self._resolver.hops()
            moved = {hop for hop in before if before[hop] != after.get(hop)}
            if moved:
                best = self._rib.loc_rib()
                self._want_again(
                    {
                        prefix: one
                        for prefix, one in best.items()
                        if any(path.attributes.next_hop in moved for path in one.multipath)
                    }
                )
        changes = self._rib.take_changes()
        if changes:
            self._exports_changed |= self._export_policy.follows_loc_rib
            self._kernel.want(
                {
                    change.prefix: self._programming.route(change.new, self._resolver) if change.new else None
                    for change in changes
                    if change.prefix not in self._extra
                }
            )
        self._kernel.apply()

    def _want_again(self, entries: Mapping[Prefix, Best]) -> None:
        self._kernel.want(
            {
                prefix: self._programming.route(best, self._resolver)
                for prefix, best in entries.items()
                if prefix not in self._extra
            }
        )

    def _lookup(self, address: IPAddress) -> Route | None:
        """The route to a next hop, passing over our own recursive ones."""
        route = self._kernel.lookup(address)
        if route is None or fib.may_support(route, self._rib.best(route.dst)):
            return route
        usable = [one for one in self._kernel.covering(address) if fib.may_support(one, self._rib.best(one.dst))]
        return fib.longest_match(address, usable)

    def _restart_over(self, now: float) -> bool:
        """Whether routes found at start that nobody has announced again may go."""
        return now >= self._hold_until or self._all_told(now)

    def _all_told(self, now: float) -> bool:
        """Whether every session there should be is up and has told everything."""
        states = self.sessions.states()
        return self._speaker.synchronised and all(self.sessions.settled(peer, now) for peer in states)

    def _facts(self) -> nodestatus.Facts:
        """For CalicoNodeStatus."""
        families = {address.version for address in self._view.own_addresses()}
        running = self._speaker.synchronised
        return nodestatus.Facts(
            version=f"calipy {version('calipy')}, ExaBGP {version('exabgp')}",
            router_id=self._peering.router_id,
            started=self.since,
            reconfigured=self._reconfigured,
            ready={4: running and 4 in families, 6: running and 6 in families},
            sessions=self.sessions.states(),
            rib=self._rib,
            kernel=self._kernel.main_table(),
        )

    # Answers

    async def status(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to ``status``."""
        states = self.sessions.states()
        now = clock.monotonic()
        speaker = "" if self._speaker.synchronised else self._speaker.problem or "starting"
        condition = status.Condition(
            age=now - self.started_at,
            in_sync=self._in_sync,
            datastore=self._datastore_problem,
            speaker=speaker,
            restarting=bool(self._kernel.stale),
        )
        why = status.reasons(condition, states)
        paths, prefixes = self._rib.size()
        return {
            "pid": os.getpid(),
            "exabgp_pid": self._speaker.pid,
            "since": clock.rfc3339(self.since),
            "router_id": str(self._peering.router_id or ""),
            "as_number": self._peering.local_as,
            "cluster_routes": self._cluster.mode or "",
            "peers": status.peers(states, self._rib),
            "rib": {"paths": paths, "prefixes": prefixes, "malformed_events": self.sessions.malformed},
            "fib": {
                "routes": len(self._kernel.actual),
                "wanted": len(self._kernel.desired),
                "stale": len(self._kernel.stale),
                "failures": [
                    {"dst": str(dst), "reason": failure.reason} for dst, failure in self._kernel.failures.items()
                ],
            },
            "problems": {**self._problems, **self._view.problems},
            "ready": not why,
            "reasons": why,
        }

    async def routes(self, params: dict[str, Any]) -> list[Any]:
        """The answer to ``routes``: RIB and kernel, of all prefixes or of those that cover ``prefix``."""
        only = _prefix(params["prefix"]) if params.get("prefix") else None
        failures = {dst: failure.reason for dst, failure in self._kernel.failures.items()}
        return status.routes(self._rib, self._kernel.actual, failures, only)

    async def explain(self, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``explain``: the chain from a prefix's origin to this kernel's route."""
        asked = _prefix(params.get("prefix"))
        origin = Origin(*(self._view.cluster.covering(asked) or ()))
        originated, loc_rib = self._export_policy.originated, self._rib.loc_rib()
        known = self._rib.prefixes() | originated.prefixes() | originated.hidden | self._kernel.actual.keys()
        target = explain.destination(asked, origin, known)
        states = self.sessions.states()

        def kept_back(peer: IPAddress) -> str:
            session = states[peer].session
            return self._export_policy.kept_back(session, target, loc_rib, self._local_address(session))

        failure = self._kernel.failures.get(target)
        facts = explain.Facts(
            asked=asked,
            target=target,
            hostname=self.hostname,
            from_datastore=self._cluster.mode == "datastore",
            origin=origin,
            originated=originated,
            sessions=explain.tellings(
                {peer: (state.session.node, state.up, state.info) for peer, state in states.items()},
                self._export_policy.exports(loc_rib, self._local_address),
                self._speaker.told,
                target,
                kept_back,
            ),
            paths=tuple(self._rib.paths(target)),
            best=self._rib.best(target),
            resolve=self._resolver.get,
            programming=self._programming,
            kernel=self._kernel.actual.get(target),
            failure=failure.reason if failure else "",
        )
        return explain.explain(facts).as_json()


def _prefix(text: object) -> Prefix:
    try:
        return parse_prefix(str(text or ""))
    except ValueError as error:
        raise InvalidInputError("not a prefix", field="prefix", value=text, remedy="e.g. 10.244.0.0/26") from error


async def main(store: Store, hostname: str, options: Options | None = None) -> int:
    """Run bgpd until SIGTERM or SIGINT; 0. Kernel routes and ExaBGP stay: see ``stop_speaker``.

    Raises:
        CalipyError: another bgpd runs, or the kernel's routes cannot be read.
    """
    running = asyncio.ensure_future(Bgpd(store, hostname, options).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logger.info("stopping, routes and sessions stay")
    except BaseExceptionGroup as group:
        # A task group wraps what one of its tasks ran into.
        raise group.exceptions[0] from group
    finally:
        await store.close()
    return 0


async def stop_speaker(run_dir: Path) -> bool:
    """End the ExaBGP that a bgpd has left running; whether there was one. Kernel routes stay."""
    running = SpeakerProcess.adopt(Paths(run_dir / "exabgp"))
    if running is None:
        return False
    await running.kill()
    running.close()
    return True
