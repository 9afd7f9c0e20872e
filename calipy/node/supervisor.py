"""Runs a node's daemons as child processes and starts each again when it ends, independently of the others.

The children die with the supervisor only if it is told to stop (SIGTERM, SIGINT): then they get SIGTERM, and routes,
rules and pods stay as they are. A killed supervisor takes its children with it (PR_SET_PDEATHSIG), so that a new one
never meets a second agent; ExaBGP is in a session of its own and lives on.

Where a daemon runs already, another's, none is started: a second one could only fail for as long as the first lives.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from calipy import api_client, clock, log

logger = log.get("supervisor")

BACKOFF = (0.0, 1.0, 2.0, 5.0)
"""Seconds before the n-th restart in a row; the last one repeats. A child that ran for ``SETTLED`` starts afresh."""
SETTLED = 30.0
STOP_SECONDS = 20.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Daemon:
    """A child: its name, how to start it, and the socket at which it answers."""

    name: str
    argv: Sequence[str]
    socket: Path


def restart_delay(failures: int) -> float:
    """Seconds to wait before the start that follows ``failures`` short lives in a row (pure)."""
    return BACKOFF[min(failures, len(BACKOFF) - 1)]


class Supervisor:
    """Keeps daemons running until stopped."""

    def __init__(self, daemons: Sequence[Daemon], environ: Mapping[str, str]) -> None:
        self._daemons = daemons
        self._environ = dict(environ)
        self._stopping = asyncio.Event()
        self._taken = False

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT: 0; 1 if another's daemon took the place of one while ours came up. Blocks.

        Raises:
            CalipyError: another's daemon answers already; nothing was started.
        """
        for daemon in self._daemons:
            api_client.refuse_taken(daemon.socket)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await asyncio.gather(*(self._keep(daemon) for daemon in self._daemons))
        return 1 if self._taken else 0

    async def _keep(self, daemon: Daemon) -> None:
        failures = 0
        first = True
        while not self._stopping.is_set():
            started = clock.monotonic()
            child = await asyncio.create_subprocess_exec(
                *daemon.argv, env=self._environ, preexec_fn=partial(_die_with, os.getpid())
            )
            logger.info("started", daemon=daemon.name, pid=child.pid)
            code = await self._until_end(child)
            if self._stopping.is_set():
                return
            if first and code == 1 and api_client.answers(daemon.socket):
                # It has said so itself. A later life must not end its neighbour: there it is tried again.
                self._taken = True
                self._stopping.set()
                return
            first = False
            failures = 0 if clock.monotonic() - started >= SETTLED else failures + 1
            delay = restart_delay(failures - 1) if failures else 0.0
            logger.warning("ended, starting again", daemon=daemon.name, code=code, seconds=delay)
            try:
                await asyncio.wait_for(self._stopping.wait(), delay)
            except TimeoutError:
                continue

    async def _until_end(self, child: asyncio.subprocess.Process) -> int:
        ended = asyncio.ensure_future(child.wait())
        stop = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not ended.done():
            child.terminate()
            try:
                await asyncio.wait_for(asyncio.shield(ended), STOP_SECONDS)
            except TimeoutError:
                child.kill()
        return await ended


def _die_with(supervisor: int) -> None:
    """In the child, before exec: end when the supervisor does. The supervisor has no threads, so forking is safe."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        # It died between fork and here, and as an orphan nobody would ever stop us.
        os._exit(1)


def daemon_argv(name: str, *, config_file: str = "") -> list[str]:
    """Command line of one daemon of this installation, run by the same interpreter."""
    argv = [sys.executable, "-m", "calipy.cli.main", "node", "run", "--only", name]
    return [*argv, "--config", config_file] if config_file else argv
