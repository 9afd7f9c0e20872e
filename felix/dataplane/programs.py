"""Runs the kernel's tools, and counts for Prometheus how that goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from calipy.kernel import process
from calipy.kernel.process import Completed
from calipy.metrics import REGISTRY, Counter

_TIMEOUT: Final = 60.0
_START_MICROS: Final = REGISTRY.summary("felix_exec_time_micros", "Microseconds that it took to start a program.")


async def run(argv: Sequence[str], *, calls: Counter, errors: Counter, stdin: str = "") -> Completed:
    """Run a program to its end, in a worker thread. Counts a call, and an error if it fails or cannot be run.

    Raises:
        KernelError: not found, cannot be started, or out of time. Its exit status is the caller's business.
    """
    calls.inc()
    try:
        done = await process.run_async(argv, stdin=stdin, timeout=_TIMEOUT)
    except BaseException:
        errors.inc()
        raise
    if done.returncode:
        errors.inc()
    _START_MICROS.observe(done.start_seconds * 1e6)
    return done
