"""A real etcd for one run of the cases: own ports, data in memory where possible, gone when the run ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calipy.errors import UnavailableError

START_TIMEOUT = 20.0


@contextmanager
def running(url: str = "") -> Iterator[str]:
    """Start etcd; yields its client URL. Blocks until it serves.

    Args:
        url: where it is to serve clients, "" for a free port of localhost.

    Raises:
        UnavailableError: there is no etcd program, or it does not start.
    """
    program = shutil.which("etcd", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin:/usr/local/bin")
    if program is None:
        raise UnavailableError("there is no etcd program", remedy="install etcd-server (./run install)")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a private directory inside
    with tempfile.TemporaryDirectory(prefix="calipy-conformance-", dir=memory) as directory:
        client, peer = _free_ports()
        url = url or f"http://127.0.0.1:{client}"
        argv = [
            "setpriv", "--pdeathsig", "KILL", "--",
            program, "--name", "conformance", "--data-dir", f"{directory}/data",
            "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"conformance=http://127.0.0.1:{peer}", "--log-level", "error",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        log = Path(directory, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        try:
            _wait(process, url, log)
            yield url
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < give_up:
        try:
            if b"true" in opener.open(f"{url}/health", timeout=2).read():
                return
        except OSError:
            time.sleep(0.02)
    raise UnavailableError(f"etcd does not start: {log.read_text(errors='replace')[-500:]}")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
