"""Run a program to its end: argument list, no shell, C locale, a deadline, its own words on failure."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from calipy import clock
from calipy.errors import KernelError
from calipy.kernel import netns

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended. Texts are UTF-8, undecodable bytes kept as surrogates.

    ``start_seconds`` is how long it took to start it.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    start_seconds: float = 0.0

    def check(self) -> Completed:
        """Itself, if it succeeded.

        Raises:
            KernelError: it did not; the message has the program and the last of what it said.
        """
        if self.returncode:
            said = (self.stderr or self.stdout).strip()[-2000:] or "no message"
            raise KernelError(f"{' '.join(self.argv[:4])} failed with exit status {self.returncode}: {said}")
        return self


def run(
    argv: Sequence[str], *, stdin: bytes | str = b"", timeout: float = 30.0, netns_fd: int | None = None
) -> Completed:
    """Start ``argv``, feed it ``stdin``, wait for it. Blocks; use ``run_async`` in an event loop.

    Args:
        argv: program (looked up in PATH and the system's directories) and arguments.
        stdin: all of its input.
        timeout: seconds, after which it is killed.
        netns_fd: network namespace to run in, or None for the caller's.

    Raises:
        KernelError: not found (ENOENT), cannot be started, or out of time (ETIMEDOUT).
    """
    if netns_fd is not None:
        return netns.run_in(netns_fd, run, argv, stdin=stdin, timeout=timeout)
    path = os.environ.get("PATH", "")
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{path}:{_SYSTEM_PATH}" if path else _SYSTEM_PATH}
    given = stdin.encode("utf-8", "surrogateescape") if isinstance(stdin, str) else stdin
    pipe = subprocess.PIPE
    began = clock.monotonic()
    try:
        with subprocess.Popen(list(argv), stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as program:
            took = clock.monotonic() - began
            try:
                out, err = program.communicate(given, timeout)
            except BaseException:
                program.kill()
                raise
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{argv[0]} did not end within {timeout:g} s and was killed", code=errno.ETIMEDOUT) from error
    except OSError as error:
        remedy = f"install the package that has {argv[0]}" if isinstance(error, FileNotFoundError) else ""
        raise KernelError(f"cannot run {argv[0]}: {error.strerror}", code=error.errno or 0, remedy=remedy) from error
    return Completed(tuple(argv), program.returncode, _text(out), _text(err), took)


async def run_async(
    argv: Sequence[str], *, stdin: bytes | str = b"", timeout: float = 30.0, netns_fd: int | None = None
) -> Completed:
    """``run`` in a worker thread. A cancelled caller does not stop the program: half a restore would be worse."""
    import asyncio  # noqa: PLC0415 - slow to load, and most programs that use this have no loop

    return await asyncio.to_thread(run, argv, stdin=stdin, timeout=timeout, netns_fd=netns_fd)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
