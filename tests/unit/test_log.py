"""A daemon outlives its log."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, sys
from calipy import log
log.configure("info", json=True)
logger = log.get("test")
logger.info("before")
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
logger.info("nobody reads this")
logger.info("nor this")
sys.stdout.write(f"{log.SINK.failures > 0}\\n")
"""


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    """When the reader of standard error has gone, logging fails in silence and is counted."""
    argv = [sys.executable, "-c", SCRIPT]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        assert '"before"' in process.stderr.readline()
        process.stderr.close()
        process.stderr = None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True\n"
    assert process.returncode == 0
