"""One node's BGP: every part of it, and the pass that brings them into agreement.

    View ─┬─► peering ─► Speaker (configuration)            ┐
          ├─► originated ─► Speaker (adj-rib-out)           ├─ ExaBGP ─ peers
    Speaker (events) ─► Sessions ─► Rib ◄─ import policy    ┘
                                    Rib ─► Forwarding ─► kernel

Events only mark what has to be done; one pass (``work``) does it, so that a burst of updates costs one decision per
prefix and one netlink exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from calipy import api_client, clock, log
from calipy.bgp import keyfiles
from calipy.bgp.cluster import ClusterRoutes
from calipy.bgp.exabgp.config import SpeakerSession, environment
from calipy.bgp.exabgp.events import Event, ShownRoute
from calipy.bgp.exabgp.process import Paths
from calipy.bgp.exabgp.speaker import MEMORY_LIMIT, Speaker
from calipy.bgp.exporting import ExportPolicy
from calipy.bgp.forwarding import Forwarding
from calipy.bgp.importing import ImportPolicy
from calipy.bgp.kernel import KernelFib
from calipy.bgp.keyfiles import KeyFiles
from calipy.bgp.peering import Peering, Session
from calipy.bgp.rib import EOR_WAIT, MAX_PREFIXES, Rib
from calipy.bgp.sessions import Sessions
from calipy.bgp.status_directory import StatusDirectory
from calipy.bgp.view import View
from calipy.net import IPAddress

logger = log.get("bgpd")

DEFER_SECONDS: Final = 5.0
DEFER_LONGEST: Final = 60.0
"""A starting reflector begins to reflect when all peers have told everything, or none has come up for
``DEFER_SECONDS``, or after ``DEFER_LONGEST``: telling each prefix once is several times faster than as they come."""
POLL_SECONDS: Final = 0.5
"""While something is waited for that no event tells of."""
REFETCH_SECONDS: Final = 30.0
"""Between two readings of everything for the sake of peers that are below their limit again."""
HOLD_OFF_SECONDS: Final = 60.0
"""For which a peer that told more than twice its limit gets no session: ExaBGP keeps all that it is told."""
LOOK_SECONDS: Final = 1.0
"""Between two looks at the endpoints' status files, while a BGPPeer selects workloads."""


@dataclass(frozen=True, slots=True)
class Options:
    """What does not come from the datastore.

    Attributes:
        run_dir: for the socket; ExaBGP's files are in ``exabgp`` below it.
        secrets_dir: passwords of sessions: ``<secrets_dir>/<secret name>/<key>``, as Kubernetes mounts Secrets.
        router_id: an IPv4 address, ``hash``, or "" for the node's address.
        cluster_routes: ``bgp``, ``datastore``, or "" for what the BGPConfiguration's annotation says.
        memory_limit: bytes beyond which ExaBGP is restarted.
        log_level: goes before what the datastore says; "" for that.
        status_prefix: where the agent keeps the directory ``endpoint-status``.
    """

    run_dir: Path = field(default_factory=api_client.run_dir)
    secrets_dir: Path = Path("/etc/calipy/secrets")
    router_id: str = ""
    cluster_routes: str = ""
    memory_limit: int = MEMORY_LIMIT
    log_level: str = ""
    status_prefix: Path = Path("/var/run/calico")


class Router:
    """Every part of one node's BGP. Works in the network namespace of its process.

    Args:
        view: the datastore; fed by the owner, read here.
        kernel: the node's routes.
        wake: called when there is something to do: ``work`` is then to be called soon.

    Attributes:
        problems: sessions that could not be had, by the resource that asks for them.
        reconfigured: wall clock time of the last change of sessions.
        dead: nodes known to be dead; the owner looks at those that are ``awaited``.
    """

    def __init__(self, view: View, kernel: KernelFib, options: Options, wake: Callable[[], None]) -> None:
        self.view = view
        self.options = options
        self.started_at = clock.monotonic()
        self.since = self.reconfigured = clock.wall()
        self._wake = wake
        self._policy = ImportPolicy()
        self.rib = Rib(self._policy)
        self.cluster = ClusterRoutes(view.cluster, self.rib)
        self.sessions = Sessions(self.rib)
        self.forwarding = Forwarding(self.rib, kernel)
        self.peering = Peering({}, {})
        self.paths = Paths(options.run_dir / "exabgp")
        self.speaker = Speaker(self.paths, self, memory_limit=options.memory_limit)
        self.problems: dict[str, str] = {}
        self.dead: frozenset[str] = frozenset()
        self.export_policy = ExportPolicy()
        self._reflecting = False
        self._exports_changed = False
        self._owed: set[IPAddress] = set()
        self._depends_on_host = False
        self._hold_until = 0.0
        self._workloads = StatusDirectory(options.status_prefix)
        self._look_at = 0.0
        self._keys = KeyFiles(options.secrets_dir)
        self._keys_at = 0.0
        self._refetch_at = 0.0
        self._held_off: dict[IPAddress, float] = {}
        self._log_level = ""

    # From the speaker: see ``speaker.Owner``

    def on_events(self, events: Sequence[Event]) -> None:
        """Events in order."""
        now, wall = clock.monotonic(), clock.wall()
        for event in events:
            self.sessions.on_event(event, now, wall)
        if self.sessions.take_unknown():
            self.speaker.read_back()
        self._wake()

    def on_resync(self) -> None:
        """Everything is about to be told again."""
        self.sessions.expect_resync()

    def on_shown(self, routes: Iterable[ShownRoute]) -> None:
        """Everything has been told."""
        self.sessions.end_resync(routes)
        self._wake()

    def on_speaker_lost(self) -> None:
        """ExaBGP has ended."""
        cause = {"cause": "this node is drained"} if self.speaker.drain.active else {}
        self.sessions.speaker_lost(clock.monotonic(), clock.wall(), **cause)
        self._wake()

    # The pass

    def hold_stale(self, now: float) -> None:
        """The datastore has been read: from now on routes found at start wait for their peers, within bounds."""
        self._hold_until = now + EOR_WAIT

    def retry(self, now: float) -> None:
        """A pass has failed half-way: everything is to be looked at again soon."""
        self.view.peering_changed = self.forwarding.relink = True
        self.forwarding.repair_at = now + 1.0

    def next_deadline(self) -> float:
        """When ``work`` has something to do by itself, monotonic."""
        deadlines = [self.forwarding.repair_at]
        if (expiry := self.rib.next_deadline()) is not None:
            deadlines.append(expiry)
        if (linger := self.cluster.next_deadline()) is not None:
            deadlines.append(linger)
        if self.view.asks_for_workloads:
            deadlines.append(self._look_at)
        if self._keys.watched:
            deadlines.append(self._keys_at)
        deadlines += self._held_off.values()
        if self.rib.with_room():
            deadlines.append(self._refetch_at)
        if self._waiting():
            deadlines.append(clock.monotonic() + POLL_SECONDS)
        return min(deadlines)

    def work(self, now: float) -> None:
        """One pass: from everything that has been marked to what ExaBGP and the kernel should do. O(what changed).

        Raises:
            KernelError: the kernel's routes cannot be read.
        """
        forwarding = self.forwarding
        self._look_for_workloads(now)
        self._look_for_keys(now)
        self._mind_limits(now)
        if self._depends_on_host and (forwarding.relink or now >= forwarding.repair_at):
            self.view.peering_changed = True
        own = self.view.cluster_routes(self.options.cluster_routes)
        if self.cluster.choose(own, now, cluster=self.view.cluster_routes()):
            self.view.peering_changed = True
        if self.view.peering_changed:
            self.view.peering_changed = False
            self.view.routes_changed = True
            self._apply_peering()
        if self.view.routes_changed:
            self.view.routes_changed = False
            self._apply_originated()
        self.cluster.feed()
        if self.speaker.drain.active:
            # Pods that are still here go on reaching others as they did.
            self._hold_until = now + EOR_WAIT
            self.rib.prolong(self._hold_until)
        self.rib.expire(now)
        self._program()
        self._owed |= self.sessions.take_came_up()
        if not self._deferring(now):
            if self._exports_changed:
                self._apply_exports()
            for peer in self._owed:
                self.speaker.owe_end_of_rib(peer)
            self._owed.clear()
        if forwarding.kernel.stale and (now >= self._hold_until or self._all_told(now)):
            forwarding.release()
        if self.cluster.retaining and self.cluster.release(now, told=self._all_told(now)):
            self._program()
        forwarding.repair(now)

    def _look_for_workloads(self, now: float) -> None:
        """Which pods of this node are to have sessions, as long as a BGPPeer asks for any."""
        if not self.view.asks_for_workloads:
            self.view.set_workloads(())
            self._look_at = 0.0
        elif now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self.view.set_workloads(self._workloads.read())

    def _look_for_keys(self, now: float) -> None:
        """Whether the keys of sessions are still those that were read."""
        if self._keys.watched and now >= self._keys_at:
            self._keys_at = now + keyfiles.LOOK_SECONDS
            self.view.peering_changed |= self._keys.changed()

    def _mind_limits(self, now: float) -> None:
        """Peers far above their limit are held off; of those below it again everything is fetched. O(peers)."""
        over = [peer for peer, until in self._held_off.items() if now >= until]
        for peer in over:
            del self._held_off[peer]
        flooding = self.rib.flooding()
        for peer in flooding:
            logger.warning("peer held off, it told more than twice its limit", peer=str(peer))
            self._held_off[peer] = now + HOLD_OFF_SECONDS
        self.view.peering_changed |= bool(over or flooding)
        if now >= self._refetch_at and (peers := self.rib.with_room()):
            self._refetch_at = now + REFETCH_SECONDS
            self.sessions.read_again(peers)
            self.speaker.read_back()

    def _program(self) -> None:
        if self.forwarding.program():
            self._exports_changed |= self.export_policy.follows_loc_rib

    def _apply_peering(self) -> None:
        """Sessions, from the datastore to ExaBGP's configuration."""
        if (level := self.options.log_level or self.view.log_level()) not in ("", self._log_level):
            log.configure(level)
            self._log_level = level
        self.peering = self.view.peering(self.options.router_id, mesh=self.cluster.mesh())
        known, self.problems = self.problems, dict(self.peering.problems)
        self._depends_on_host = False
        self._keys.start()
        resolved = {peer: self._resolve(session) for peer, session in self.peering.sessions.items()}
        speaking = [one for one in resolved.values() if isinstance(one, SpeakerSession)]
        missing = {peer: one for peer, one in resolved.items() if isinstance(one, str)}
        for source, reason in self.problems.items():
            if known.get(source) != reason:
                logger.warning("peering problem", source=source, reason=reason)
        self.sessions.want(self.peering.sessions, clock.wall(), missing)
        bind = self.view.listen_addresses()
        self.reconfigured = clock.wall()
        self.speaker.configure(speaking, environment(bind=bind, port=self.peering.port))

    def _resolve(self, session: Session) -> SpeakerSession | str:
        """Fill in what only this host knows; why the session cannot be had yet, which is a problem as well."""
        self._depends_on_host |= session.local is None
        if session.peer in self._held_off:
            return f"held off for {HOLD_OFF_SECONDS:.0f} s: told more than twice the {MAX_PREFIXES} prefixes it may"
        local = self.local_address(session)
        if local is None:
            problem = f"no route to {session.peer}, so no source address for its session"
            self.problems[session.source] = problem
            return problem
        if session.password is None:
            return SpeakerSession(session, local)
        found = self._keys.get(*session.password)
        if found.problem:
            self.problems[session.source] = found.problem
        return SpeakerSession(session, local, found.key) if found.key else found.problem

    def _apply_originated(self) -> None:
        """What this node announces, refuses from others, and leaves out of the kernel."""
        originated = self.view.originated()
        sessions = {peer: state.session for peer, state in self.sessions.states().items()}
        self.export_policy = ExportPolicy(
            originated=originated,
            sessions=sessions,
            cluster_id=self.view.cluster_id,
            passes_on=self.view.passes_on(),
            filters=self.view.filters,
            interface=self.forwarding.interface,
        )
        self._exports_changed = True
        self._set_import_policy(
            ImportPolicy(
                sessions=sessions,
                router_id=self.peering.router_id,
                cluster_id=self.view.cluster_id,
                own_addresses=self.view.own_addresses(),
                own_prefixes=originated.prefixes() | self.view.own_prefixes(),
                own_blocks=frozenset(self.view.own_blocks()),
                pools=self.view.pools(),
                services=self.view.service_ranges().every,
                filters=dict(self.view.filters),
            )
        )
        self.forwarding.set_programming(self.view.programming())
        ways_changed = self.forwarding.want_extra(self.peering.sessions.values(), self.view.own_blocks())
        if ways_changed and self._depends_on_host:
            self.view.peering_changed = True  # in another pass: this one writes them
            self._wake()

    def _set_import_policy(self, policy: ImportPolicy) -> None:
        """Import by new rules: only what they may judge differently is judged again."""
        old, self._policy = self._policy, policy
        if policy == old:
            return
        prefixes = policy.judged_differently(old)
        if prefixes is None:
            self.rib.set_policy(policy)
        else:
            self.rib.judge_again(policy, prefixes)

    def _apply_exports(self) -> None:
        """Adj-RIB-Out of every session."""
        self._exports_changed = False
        self.speaker.export(self.export_policy.exports(self.rib.loc_rib(), self.local_address))

    def owed(self) -> frozenset[IPAddress]:
        """Peers whose session is up and who wait for our End-of-RIB."""
        up = {peer for peer, state in self.sessions.states().items() if state.up}
        return frozenset(up & (self._owed | self.speaker.owed()))

    def local_address(self, session: Session) -> IPAddress | None:
        """Our end of a session, None while the kernel knows none."""
        return session.local or self.forwarding.kernel.source_for(session.peer)

    def _deferring(self, now: float) -> bool:
        """Whether a reflector still collects: it tells each prefix once, when its peers have told theirs."""
        if self.export_policy.cluster_id is None or self._reflecting:
            return False
        states = self.sessions.states()
        up = [state.up_at for state in states.values() if state.up]
        collected = bool(up) and self._settled(now)
        waited = bool(up) and now - max(up) > DEFER_SECONDS
        self._reflecting = collected or waited or now - self.started_at > DEFER_LONGEST
        return not self._reflecting

    def _all_told(self, now: float) -> bool:
        """Whether every session there should be is up and has told everything."""
        return self.speaker.synchronised and self._settled(now)

    def _settled(self, now: float) -> bool:
        """Whether every session has told everything, but for those that are down with their node."""
        states = self.sessions.states().items()
        return all(
            self.sessions.settled(peer, now) or (not state.up and state.session.node in self.dead)
            for peer, state in states
        )

    def _waiting(self) -> bool:
        """Whether something is left as it is until all peers have told everything."""
        deferring = self.export_policy.cluster_id is not None and not self._reflecting
        return bool(self.forwarding.kernel.stale) or self.cluster.retaining or deferring

    def awaited(self) -> frozenset[str]:
        """Nodes that are waited for although their sessions are down."""
        if not self._waiting():
            return frozenset()
        states = self.sessions.states().values()
        return frozenset(state.session.node for state in states if not state.up and state.session.node)
