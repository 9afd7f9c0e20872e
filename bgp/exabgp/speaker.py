"""Keeps ExaBGP running, configured and told: three desired states, each compared and brought about. An edge.

    process        adopt the one that runs, or start one; back-off; killed when it hangs
    configuration  validate, rename, reload, read the neighbours back; withdrawn before a neighbour is removed
    adj-rib-out    per peer what it should be told; then End-of-RIB for each that has come up

Each connection of the relay begins with reading back what ExaBGP has: sessions, Adj-RIB-In, Adj-RIB-Out. A bgpd that
has just started, and one that was too slow for the relay, are the same case.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from calipy import clock, log
from calipy.bgp.adj_rib_out import AdjRibOut
from calipy.bgp.exabgp import commands
from calipy.bgp.exabgp.channel import Channel, ChannelClosedError, ChannelServer, SpeakerUnusableError
from calipy.bgp.exabgp.config import SpeakerSession
from calipy.bgp.exabgp.drain import PROBLEM as DRAINED
from calipy.bgp.exabgp.drain import Drain, Farewell
from calipy.bgp.exabgp.events import Event, Neighbour, NeighbourTable, ShownRoute
from calipy.bgp.exabgp.neighbours import Neighbours
from calipy.bgp.exabgp.process import Paths, SpeakerProcess
from calipy.bgp.path import Attributes
from calipy.metrics import REGISTRY
from calipy.net import IPAddress, Prefix

logger = log.get("bgp.speaker")

_STARTS: Final = REGISTRY.counter("bgp_exabgp_starts", "How often ExaBGP was started.")
_RELAYS: Final = REGISTRY.counter("bgp_relay_lost", "How often the relay was lost while ExaBGP ran.")
_RELOADS: Final = REGISTRY.counters("bgp_exabgp_reloads", "Reloads of ExaBGP's configuration.", "result")

BACKOFF: Final = (0.0, 1.0, 2.0, 5.0)
SETTLED: Final = 60.0
CONNECT_SECONDS: Final = 15.0
"""Longest wait for a relay while ExaBGP runs."""
WATCHDOG_SECONDS: Final = 5.0
RELOAD_SECONDS: Final = 5.0
"""Longest wait for a reload to show in the neighbours."""
MEMORY_LIMIT: Final = 1 << 30
"""Bytes that ExaBGP may occupy; it needs some 4 KB per route and peer (100,000 different routes: 0.3 GB)."""
MEMORY_PAUSE: Final = 600.0
"""Seconds between two restarts over memory: if it grows back at once, it is needed."""
READ_PAUSE: Final = 1.0
"""Seconds between two readings of everything: whoever makes them necessary must not make us do nothing else."""
WITHDRAW_SECONDS: Final = 1.0
"""Time for withdrawals to leave before their neighbour is removed."""


class Owner(Protocol):
    """Whom a speaker reports to; all calls come from its event loop."""

    def on_events(self, events: Sequence[Event]) -> None:
        """Events in order."""

    def on_resync(self) -> None:
        """ExaBGP is asked for everything: its table of neighbours comes among the events, then ``on_shown``."""

    def on_shown(self, routes: Iterable[ShownRoute]) -> None:
        """What Adj-RIB-In held when it was asked; events that came meanwhile are newer."""

    def on_speaker_lost(self) -> None:
        """ExaBGP has ended, and with it all sessions."""


class _DrainedError(SpeakerUnusableError):
    """Peers have been told that all routes are gone, and ExaBGP is to end."""


class Speaker:
    """ExaBGP, as one object with desired states.

    Attributes:
        drain: whether it is to run at all.
    """

    def __init__(self, paths: Paths, owner: Owner, *, memory_limit: int = MEMORY_LIMIT) -> None:
        self._memory_limit = memory_limit
        self._memory_restart: float | None = None
        self._paths = paths
        self._owner = owner
        self._out = AdjRibOut()
        self._neighbours = Neighbours(paths)
        self._environment: dict[str, str] = {}
        self._exports: Mapping[IPAddress, Mapping[Prefix, Attributes]] = {}
        self._end_of_rib: set[IPAddress] = set()
        self._wanted = False
        self._wake = asyncio.Event()
        self.drain = Drain(paths.drained, self._wake.set)
        self._process: SpeakerProcess | None = None
        self._reloading = self._unknown = self._leaving = False
        self._read_at = 0.0
        self.synchronised = False
        self.problem = ""

    @property
    def pid(self) -> int:
        """ExaBGP's process id, 0 while it does not run."""
        return self._process.pid if self._process else 0

    def configure(self, sessions: Iterable[SpeakerSession], environment: Mapping[str, str]) -> None:
        """Want these sessions, and ExaBGP run with these settings. Returns at once."""
        wanted = {one.session.peer: one for one in sessions}
        if self._wanted and wanted == self._neighbours.wanted() and environment == self._environment:
            return
        self._unknown |= self._neighbours.want(wanted, clock.monotonic())
        self._environment = dict(environment)
        self._wanted = True
        self._wake.set()

    def _on_events(self, events: Sequence[Event]) -> None:
        """Pass them on; but what ExaBGP says of its sessions while it ends says nothing about the peers."""
        if not self._leaving:
            self._owner.on_events(events)

    def export(self, exports: Mapping[IPAddress, Mapping[Prefix, Attributes]]) -> None:
        """Want peers to be told exactly this. Returns at once."""
        self._exports = exports
        self._wake.set()

    def owe_end_of_rib(self, peer: IPAddress) -> None:
        """The peer's session has come up: End-of-RIB goes out once it has been told everything."""
        self._end_of_rib.add(peer)
        self._wake.set()

    def read_back(self) -> None:
        """Some session is not known well enough: ask ExaBGP for everything again. Returns at once."""
        self._unknown = True
        self._wake.set()

    def owed(self) -> frozenset[IPAddress]:
        """Peers to whom End-of-RIB is due and not yet sent."""
        return frozenset(self._end_of_rib)

    def told(self, peer: IPAddress) -> Mapping[Prefix, Attributes]:
        """Adj-RIB-Out of a peer, as ExaBGP has acknowledged it."""
        return self._out.told(peer)

    def refused(self) -> Mapping[IPAddress, str]:
        """Peers whose sections ExaBGP does not take, so that they are left out, and what it says of each."""
        return self._neighbours.refused()

    async def run(self) -> None:
        """Keep ExaBGP running until cancelled; then leave it running."""
        self._paths.prepare()
        server = ChannelServer(self._paths.socket, self._on_events)
        await server.start()
        failures = 0
        try:
            while True:
                await self._permitted()
                started = clock.monotonic()
                try:
                    await self._run_once(server)
                except _DrainedError:
                    logger.info("drained, exabgp has ended")
                    continue
                except Exception as error:
                    self.problem = str(error)
                    expected = isinstance(error, ChannelClosedError | OSError)
                    logger.warning("exabgp lost", reason=self.problem, exc_info=not expected)
                finally:
                    self.synchronised = False
                failures = 0 if clock.monotonic() - started > SETTLED else failures + 1
                await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF)) - 1] if failures else 0)
        finally:
            await server.close()
            if self._process is not None:
                self._process.close()

    # One life of ExaBGP

    async def _permitted(self) -> None:
        """Until ExaBGP is to run: when sessions are known, and as long as it is not drained, but for its farewell."""
        while True:
            self._wake.clear()
            if self.drain.active and not SpeakerProcess.runs(self._paths):
                self.problem = DRAINED
                self.drain.rest()
            elif self.drain.active or self._wanted:
                return
            await self._wake.wait()

    async def _run_once(self, server: ChannelServer) -> None:
        """Until ExaBGP has ended, by itself or by us."""
        process = SpeakerProcess.adopt(self._paths)
        if process is not None and process.environment != self._environment and not self.drain.active:
            logger.info("exabgp's settings have changed, restarting it", pid=process.pid)
            await process.kill()
            process.close()
            process = None
        self._neighbours.loaded, self._leaving = None, False
        if process is None:
            # Sessions may change while the file is checked: what is loaded is what was written.
            problem, loaded = await self._neighbours.install()
            if problem:
                raise ChannelClosedError(f"ExaBGP refuses its configuration: {problem}")
            self._neighbours.loaded = loaded
            process = await SpeakerProcess.start(self._paths, self._environment)
            self._paths.reloading.unlink(missing_ok=True)
            _STARTS.inc()
        else:
            logger.info("exabgp adopted", pid=process.pid)
        self._process = process
        ended = asyncio.create_task(process.wait())
        try:
            await self._while_alive(server, ended)
        except asyncio.CancelledError:
            raise  # bgpd ends, ExaBGP lives on
        except BaseException as error:
            await process.kill(signal.SIGTERM if isinstance(error, _DrainedError) else signal.SIGKILL)
            process.close()
            self._process = None
            self._out.reset()
            self._owner.on_speaker_lost()
            raise
        finally:
            ended.cancel()

    async def _while_alive(self, server: ChannelServer, ended: asyncio.Task[None]) -> None:
        """One conversation after the other; always ends with ``ChannelClosedError``."""
        while True:
            connection = asyncio.create_task(server.accept())
            await asyncio.wait({connection, ended}, timeout=CONNECT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not connection.done():
                connection.cancel()
                raise ChannelClosedError("ExaBGP has ended" if ended.done() else "no relay has connected")
            channel = connection.result()
            try:
                await self._converse(channel, ended)
            except SpeakerUnusableError:
                raise
            except ChannelClosedError as error:
                if ended.done():
                    raise ChannelClosedError("ExaBGP has ended") from error
                if self._reloading:
                    # A failed reload takes the relay away, and ExaBGP would exit at the next update.
                    raise ChannelClosedError("a reload has failed") from error
                _RELAYS.inc()
                logger.warning("relay lost, waiting for it", reason=str(error))
            finally:
                self.synchronised = self._reloading = False
                await channel.close()

    async def _converse(self, channel: Channel, ended: asyncio.Task[None]) -> None:
        await self._read_back(channel)
        self.synchronised, self.problem = True, ""
        closed = asyncio.create_task(channel.wait_closed())
        asked = clock.monotonic()
        try:
            while True:
                self._wake.clear()
                if self.drain.active:
                    await self._take_leave(channel)
                if self._process is not None and self._process.environment != self._environment:
                    raise SpeakerUnusableError("its settings have changed")
                if self._neighbours.due() and self._neighbours.delay(clock.monotonic()) <= 0:
                    self._reloading = True
                    await self._reload(channel)
                    self._reloading = False
                if self._unknown and clock.monotonic() >= self._read_at:
                    await self._read_back(channel)
                await self._tell(channel)
                pause = self._neighbours.delay(clock.monotonic()) if self._neighbours.due() else WATCHDOG_SECONDS
                if self._unknown:
                    pause = min(pause, self._read_at - clock.monotonic())
                await self._sleep(pause, ended, closed)
                if clock.monotonic() - asked >= WATCHDOG_SECONDS:
                    await channel.ask(commands.VERSION)
                    asked = clock.monotonic()
                    self._check_memory(asked)
        finally:
            closed.cancel()

    def _check_memory(self, now: float) -> None:
        """Restart an ExaBGP that has grown too large, under graceful restart: no route is lost by it."""
        used = self._process.resident() if self._process else 0
        if used <= self._memory_limit:
            return
        if self._memory_restart is None or now - self._memory_restart > MEMORY_PAUSE:
            self._memory_restart = now
            raise SpeakerUnusableError(f"it occupies {used >> 20} MB, more than {self._memory_limit >> 20} MB")

    async def _sleep(self, seconds: float, ended: asyncio.Task[None], closed: asyncio.Task[None]) -> None:
        """Until there is something to do, or the end of the conversation."""
        woken = asyncio.create_task(self._wake.wait())
        await asyncio.wait({woken, ended, closed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()
        if ended.done() or closed.done():
            raise ChannelClosedError("the relay has gone")

    async def _read_back(self, channel: Channel) -> None:
        """What ExaBGP has: sessions, what peers told, what they were told."""
        self._unknown, self._read_at = False, clock.monotonic() + READ_PAUSE
        self._owner.on_resync()
        neighbours = await self._table(channel)
        shown = await channel.ask(commands.SHOW_ADJ_RIB_IN)
        self._owner.on_shown(event for event in shown if isinstance(event, ShownRoute))
        await self._read_told(channel)
        if self._neighbours.loaded is None:
            self._neighbours.find([one.peer for one in neighbours])
        # Whether an earlier bgpd sent End-of-RIB on these sessions cannot be known; twice does no harm.
        self._end_of_rib |= {one.peer for one in neighbours if one.up}

    async def _read_told(self, channel: Channel) -> None:
        """Adj-RIB-Out, as ExaBGP holds it."""
        out = await channel.ask(commands.SHOW_ADJ_RIB_OUT)
        self._out.reset(
            (event.peer, event.route.prefix, event.route.attributes) for event in out if isinstance(event, ShownRoute)
        )

    # Configuration

    async def _reload(self, channel: Channel) -> None:
        loaded = self._neighbours.loaded or {}
        self._paths.reloading.touch(mode=0o600)
        problem, wanted = await self._neighbours.install()
        if problem:
            self.problem = f"ExaBGP refuses its configuration: {problem}"
            logger.error("configuration refused, the old one stays", reason=problem)
            _RELOADS.labels("refused").inc()
            return
        if wanted == loaded:
            self._paths.reloading.unlink()
            return
        removed = [peer for peer in loaded if peer not in wanted and self._out.told(peer)]
        vanishing: dict[IPAddress, dict[Prefix, Attributes]] = {peer: {} for peer in removed}
        if vanishing:
            # ExaBGP says no goodbye to a removed peer; under graceful restart it would keep our routes for minutes.
            await self._send(channel, vanishing)
            await asyncio.sleep(WITHDRAW_SECONDS)
        for _ in range(2):
            await channel.ask(commands.RELOAD)
            if await self._confirmed(channel, wanted):
                break
        else:
            _RELOADS.labels("failed").inc()
            raise SpeakerUnusableError("ExaBGP does not take up its configuration")
        for peer in wanted.keys() ^ loaded.keys():
            self._out.forget(peer)
        if any(wanted[peer] != loaded[peer] for peer in wanted.keys() & loaded.keys()):
            await self._read_told(channel)  # ExaBGP may have kept a changed neighbour's, and would tell it again
        _RELOADS.labels("done").inc()
        logger.info("exabgp reloaded", neighbours=len(wanted))
        self._neighbours.loaded = wanted
        self._paths.reloading.unlink()

    async def _take_leave(self, channel: Channel) -> None:
        """Withdraw everything from everybody, let it leave, and let go of ExaBGP.

        End-of-RIB makes peers forget what they still hold as stale from an earlier life.
        """
        await self._send(channel, {peer: {} for peer in self._neighbours.loaded or {}})
        neighbours = await self._table(channel)
        told = frozenset(one.peer for one in neighbours if one.up)
        await channel.send([commands.end_of_rib(peer, 4 if peer.version == 4 else 6) for peer in told])
        await asyncio.sleep(WITHDRAW_SECONDS)
        self._leaving = True
        self.drain.farewell = Farewell(told, frozenset(one.peer for one in neighbours) - told)
        raise _DrainedError

    async def _confirmed(self, channel: Channel, wanted: Mapping[IPAddress, str]) -> bool:
        deadline = clock.monotonic() + RELOAD_SECONDS
        while clock.monotonic() < deadline:
            if {one.peer for one in await self._table(channel)} == wanted.keys():
                return True
            await asyncio.sleep(0.05)
        return False

    async def _table(self, channel: Channel) -> Sequence[Neighbour]:
        for answer in await channel.ask(commands.SHOW_NEIGHBOURS):
            if isinstance(answer, NeighbourTable):
                return answer.neighbours
        raise SpeakerUnusableError("ExaBGP does not show its neighbours")

    # Announcements

    async def _tell(self, channel: Channel) -> None:
        """Bring Adj-RIB-Out about, then send each End-of-RIB that is due."""
        loaded = self._neighbours.loaded or {}
        exports = {peer: routes for peer, routes in self._exports.items() if peer in loaded}
        incomplete = await self._send(channel, exports)
        due = {peer for peer in self._end_of_rib if peer in exports} - incomplete
        if due:
            self._end_of_rib -= due
            # "error" means that the session is down again; its next coming up makes it due again.
            await channel.send([commands.end_of_rib(peer, 4 if peer.version == 4 else 6) for peer in due])

    async def _send(self, channel: Channel, exports: Mapping[IPAddress, Mapping[Prefix, Attributes]]) -> set[IPAddress]:
        """Tell peers what they should be told and have not been; which of them could not be told everything."""
        incomplete: set[IPAddress] = set()
        for batch in self._out.plan(exports):
            if refused := await channel.send(batch.lines):
                # A neighbour has just been removed, or a bug: not recorded as told, so that it is tried again.
                logger.warning("exabgp refused announcements", refused=refused, commands=len(batch.lines))
                incomplete |= batch.audience
            else:
                self._out.confirm(batch)
        return incomplete
