"""The real node agents under test: one process per node, in the node's namespace, for a whole run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from calipy import api_client
from calipy.errors import AgentUnavailableError, CalipyError
from calipy.node.supervisor import daemon_argv

IN_SYNC_TIMEOUT: Final = 15.0
"""Seconds for agents to bring a change into the kernel."""

_POLL: Final = 0.01
_LOG_LINES: Final = 5


class NotInSyncError(CalipyError):
    """An agent did not take in a change, or has ended."""


class Agent:
    """One node's agent."""

    def __init__(
        self, node: str, netns_fd: int, directory: Path, etcd_url: str, backend: str, **variables: str
    ) -> None:
        """Start it. Call from the thread that ends last: the kernel kills the agent with it.

        Args:
            node: its name.
            netns_fd: where it runs.
            directory: for its sockets and its log.
            etcd_url: its datastore, as seen from there.
            backend: of iptables: ``nft``, ``legacy``, "" for its own choice.
            variables: more of its environment.
        """
        self.node = node
        self._run_dir = directory / node
        self.log = directory / f"{node}.log"
        self._argv = ["setpriv", "--pdeathsig", "KILL", "--", "nsenter", f"--net=/proc/self/fd/{netns_fd}", "--"]
        self._argv += daemon_argv("agent")
        self._netns_fd = netns_fd
        self._backend = backend
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "FELIX_"))}
        self._environment = {
            **inherited,
            "NODENAME": node,
            "ETCD_ENDPOINTS": etcd_url,
            "CALICO_NETWORKING_BACKEND": "none",
            "NO_DEFAULT_POOLS": "true",
            "CALIPY_RUN_DIR": str(self._run_dir),
            "CALIPY_LIB_DIR": str(self._run_dir),
            "FELIX_IPTABLESBACKEND": backend or "auto",
            **variables,
        }
        self.start()

    def start(self, **variables: str) -> None:
        """Start it, or start it again, with these variables changed."""
        self._environment.update(variables)
        self._run_dir.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment,
                pass_fds=(self._netns_fd,),
            )

    def stop(self) -> None:
        """End it; rules and routes stay, until the namespace goes."""
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether that process has not ended."""
        return self._process.poll() is None

    def status(self) -> Any:
        """Its answer to ``status``. Blocks.

        Raises:
            AgentUnavailableError: it does not answer, or not yet.
        """
        return api_client.call(self._run_dir / "agent.sock", "status", timeout=10.0)

    async def in_sync(self, revision: int, endpoints: Iterable[str]) -> None:
        """Wait until the kernel has everything up to a revision of the datastore, and these endpoints are up.

        Raises:
            NotInSyncError: the time is up, or the agent has ended; then it has been started again.
        """
        wanted = set(endpoints)
        end = time.monotonic() + IN_SYNC_TIMEOUT
        while True:
            missing = await self._missing(revision, wanted)
            if not missing:
                return
            if (code := self._process.poll()) is not None:
                said = self._last_words()
                self.start()
                raise NotInSyncError(f"the agent of {self.node} has ended with status {code}:\n{said}")
            if time.monotonic() > end:
                raise NotInSyncError(f"{self.node} is not in sync after {IN_SYNC_TIMEOUT:g} s: {missing}")
            await asyncio.sleep(_POLL)

    async def _missing(self, revision: int, wanted: set[str]) -> str:
        try:
            answer = await asyncio.to_thread(self.status)
        except AgentUnavailableError as error:
            return str(error)
        felix: Mapping[str, Any] = answer["felix"]
        if felix["applied_revision"] < revision:
            reasons = "; ".join([*felix["errors"], *answer["reasons"]])
            return f"revision {felix['applied_revision']} of {revision} is in the kernel; {reasons}"
        if self._backend and felix["backend"] != self._backend:
            return f"it uses {felix['backend']}, not {self._backend}"
        states = felix["endpoints"]
        up = {name for name, state in states.items() if state["state"] == "up"}
        if up == wanted == states.keys():
            return ""
        wrong = {name: states.get(name, "unknown") for name in sorted((wanted | states.keys()) - (wanted & up))}
        return f"endpoints: {wrong}"

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
