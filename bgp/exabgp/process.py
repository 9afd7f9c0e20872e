"""The ExaBGP process: started in a session of its own, found again by the next bgpd, noticed when it dies.

A pid alone proves nothing (pids come round again), so that the pid file also holds the start time that the kernel
keeps; a process is ours only if both agree.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from calipy import log
from calipy.bgp import relay
from calipy.errors import CalipyError
from calipy.kernel import process as programs

logger = log.get("bgp.exabgp")

EXABGP: Final = (sys.executable, "-I", "-m", "exabgp")
_LAUNCH: Final = (sys.executable, "-I", str(Path(__file__).with_name("launch.py").resolve()))
_LOG_LIMIT: Final = 4 * 1024 * 1024
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TZ", "HOME")
_KILL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Paths:
    """Where everything about ExaBGP lives, in one directory that only root may enter."""

    directory: Path

    @property
    def configuration(self) -> Path:
        """What ExaBGP reads at start and at each reload; holds keys."""
        return self.directory / "exabgp.conf"

    @property
    def reloading(self) -> Path:
        """Exists while the configuration may not be what ExaBGP has loaded."""
        return self.directory / "exabgp.reloading"

    @property
    def drained(self) -> Path:
        """Exists while ExaBGP is not to run: the node is out of service."""
        return self.directory / "drained"

    @property
    def pid(self) -> Path:
        """Who runs, since when, and with which settings."""
        return self.directory / "exabgp.pid"

    @property
    def log(self) -> Path:
        """ExaBGP's own messages, WARNING and above."""
        return self.directory / "exabgp.log"

    @property
    def socket(self) -> Path:
        """Where the relay finds bgpd."""
        return self.directory / "relay.sock"

    def relay_argv(self) -> list[str]:
        """How ExaBGP starts the relay: without site packages, it needs the standard library only."""
        return [sys.executable, "-I", "-S", str(Path(relay.__file__).resolve()), str(self.socket)]

    def prepare(self) -> None:
        """Make the directory. Raises ``OSError``."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)


def start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


class SpeakerProcess:
    """A running ExaBGP, our child or an earlier bgpd's."""

    def __init__(self, pid: int, environment: Mapping[str, str], *, adopted: bool) -> None:
        """Wrap a living process. Raises ``ProcessLookupError`` if it is gone."""
        self.pid = pid
        self.environment = dict(environment)
        self.adopted = adopted
        self._pidfd = os.pidfd_open(pid)
        self._child: asyncio.subprocess.Process | None = None

    @classmethod
    def adopt(cls, paths: Paths) -> SpeakerProcess | None:
        """The ExaBGP that an earlier bgpd started and left running, or None."""
        try:
            stored = json.loads(paths.pid.read_text())
            pid, since, environment = int(stored["pid"]), int(stored["start_time"]), dict(stored["environment"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if start_time(pid) != since:
            return None
        try:
            return cls(pid, environment, adopted=True)
        except OSError:
            return None

    @classmethod
    async def start(cls, paths: Paths, environment: Mapping[str, str]) -> SpeakerProcess:
        """Start ExaBGP with the configuration in place, in a session of its own.

        Raises:
            OSError: it could not be started.
        """
        if paths.log.exists() and paths.log.stat().st_size > _LOG_LIMIT:
            paths.log.replace(paths.log.with_suffix(".log.1"))
        inherited = {name: value for name, value in os.environ.items() if name in _INHERITED}
        with paths.log.open("ab") as output:
            paths.log.chmod(0o600)
            child = await asyncio.create_subprocess_exec(
                *_LAUNCH, "server", str(paths.configuration),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd=paths.directory, env={**inherited, **environment},
            )  # fmt: skip
        speaker = cls(child.pid, environment, adopted=False)
        speaker._child = child
        record = {"pid": child.pid, "start_time": start_time(child.pid), "environment": dict(environment)}
        write_private(paths.pid, json.dumps(record))
        logger.info("exabgp started", pid=child.pid)
        return speaker

    @classmethod
    def runs(cls, paths: Paths) -> bool:
        """Whether there is one that ``adopt`` would find."""
        if (found := cls.adopt(paths)) is None:
            return False
        found.close()
        return True

    def resident(self) -> int:
        """Bytes of memory that it occupies, 0 once it is gone."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        except OSError:
            return 0

    async def wait(self) -> None:
        """Until the process has ended, whoever started it."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def readable() -> None:
            loop.remove_reader(self._pidfd)
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(self._pidfd, readable)
        try:
            await ended
        finally:
            loop.remove_reader(self._pidfd)
        if self._child is not None:
            await self._child.wait()

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait; a process that does not heed ``number`` in a few seconds gets SIGKILL."""
        for attempt in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, attempt)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILL_SECONDS):
                    await self.wait()
                    return
        raise CalipyError(f"ExaBGP (pid {self.pid}) cannot be killed", remedy="look for a hung file system or driver")

    def close(self) -> None:
        """Let go of it without ending it."""
        os.close(self._pidfd)


async def install(paths: Paths, text: str) -> str:
    """Put a configuration in place if ExaBGP finds it valid: write beside it, validate, rename.

    Returns:
        What is wrong with it, or "".
    """
    candidate = paths.configuration.with_suffix(".conf.new")
    if problem := await objection(candidate, text):
        candidate.unlink(missing_ok=True)
        return problem
    candidate.rename(paths.configuration)
    return ""


async def objection(candidate: Path, text: str) -> str:
    """What ExaBGP finds wrong with a configuration, or ""; leaves it in ``candidate``. Takes some 0.2 s.

    Never shows a line with a key.
    """
    write_private(candidate, text)
    checked = await programs.run_async([*EXABGP, "validate", str(candidate)], timeout=60)
    if not checked.returncode:
        return ""
    said = [line.strip() for line in checked.stderr.splitlines() if line.strip() and "md5-password" not in line]
    line = next((line.partition(":")[2].strip() for line in said if line.startswith("line ")), "")
    reason = said[-1] if said else f"exit status {checked.returncode}"
    return f"{reason} (at {line!r})" if line else reason


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
    temporary.rename(path)
