"""A real etcd for tests: own ports, own data, gone when the test process is gone, however that ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from calipy.kernel import netns as kernel_netns
from tests.support import owned
from tests.support.netns import Namespace

START_TIMEOUT = 20.0


@dataclass(frozen=True)
class ServerTls:
    """PEM files of the server; clients must then show a certificate signed by ``ca``."""

    ca: Path
    cert: Path
    key: Path


class EtcdServer:
    """One single-member etcd 3.4 or later on 127.0.0.1, or on another address, at etcd's own ports, inside a namespace.
    Start it in a thread that outlives it: the kernel kills etcd with the thread that started it.

    Attributes:
        url: its client URL.
        pid: of the running process.
    """

    def __init__(
        self,
        *,
        tls: ServerTls | None = None,
        name: str = "test",
        arguments: Sequence[str] = (),
        inside: Namespace | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self._tls = tls
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = owned.fast_directory("etcd")
        self._inside = inside
        self._address = address
        self._ports: tuple[int, int, int] | None = (2379, 2380, 2381) if inside else None

    @property
    def url(self) -> str:
        """Where clients find it."""
        assert self._ports
        return f"{'https' if self._tls else 'http'}://{self._address}:{self._ports[0]}"

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again on the same ports with the same data; returns when it serves."""
        for _ in range(5):
            first = self._ports is None
            self._ports = self._ports or _free_ports()
            self._process = self._spawn(*self._ports)
            if self._wait():
                return
            if not first:
                break
            self._ports = None  # another process took a port between our look and etcd's
        raise RuntimeError(f"etcd did not start:\n{(self._directory / 'log').read_text()[-2000:]}")

    def begin(self) -> None:
        """Start it without waiting: a member of a cluster serves only when others do."""
        self._ports = self._ports or _free_ports()
        self._process = self._spawn(*self._ports)

    def wait(self) -> None:
        """Wait until what ``begin`` started serves."""
        if not self._wait():
            raise RuntimeError(f"etcd did not start:\n{(self._directory / 'log').read_text()[-2000:]}")

    @property
    def peer_url(self) -> str:
        """Where other members find it."""
        self._ports = self._ports or _free_ports()
        return f"http://127.0.0.1:{self._ports[1]}"

    def join(self, members: Sequence[EtcdServer]) -> None:
        """Be a member of this cluster, itself included; before its first start."""
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in members)
        self._arguments += ("--initial-cluster", cluster)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP, and wait until every thread stands: connections stay, answers do not come."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        deadline = time.monotonic() + 5
        while any(_state(task) != "T" for task in tasks.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def wipe(self) -> None:
        """Stop it and lose all data; the next start begins at revision 1."""
        self.kill()
        shutil.rmtree(self._directory / "data", ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, client: int, peer: int, metrics: int) -> subprocess.Popen[bytes]:
        peer_url = f"http://127.0.0.1:{peer}"
        argv = [
            # Not a preexec function: that forks a process that may hold gRPC's threads.
            "setpriv", "--pdeathsig", "KILL", "--",
            *(["nsenter", f"--net={self._inside.path}", "--"] if self._inside else []),
            "etcd", "--name", self.name, "--data-dir", str(self._directory / "data"),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
            "--initial-cluster", f"{self.name}={peer_url}",
            "--listen-metrics-urls", f"http://127.0.0.1:{metrics}",
            "--heartbeat-interval", "50", "--election-timeout", "500",
            "--log-level", "warn", "--logger", "zap",
            *self._arguments,
        ]  # fmt: skip
        if self._tls:
            argv += ["--cert-file", str(self._tls.cert), "--key-file", str(self._tls.key)]
            argv += ["--client-cert-auth", "--trusted-ca-file", str(self._tls.ca)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def _wait(self) -> bool:
        assert self._process
        assert self._ports
        give_up = time.monotonic() + START_TIMEOUT
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = f"http://127.0.0.1:{self._ports[2]}/health"

        def healthy() -> bool:
            return b"true" in opener.open(url, timeout=2).read()

        while self._process.poll() is None and time.monotonic() < give_up:
            with contextlib.suppress(OSError):
                if kernel_netns.run_in(self._inside.fd, healthy) if self._inside else healthy():
                    return True
            time.sleep(0.02)
        self.kill()
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            if how is not signal.SIGKILL:
                self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


@contextlib.contextmanager
def etcd_cluster(size: int) -> Iterator[list[EtcdServer]]:
    """A cluster of real members, all serving."""
    with contextlib.ExitStack() as stack:
        members = [EtcdServer(name=f"member{n}") for n in range(size)]
        for member in members:
            stack.callback(member.close)
        for member in members:
            member.join(members)
            member.begin()
        for member in members:
            member.wait()
        yield members


def etcdctl(server: EtcdServer, *arguments: str, user: str = "") -> str:
    """Run the real etcdctl against a server without TLS; its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "http"))}
    argv = ["etcdctl", "--endpoints", server.url, *(["--user", user] if user else []), *arguments]
    done = subprocess.run(
        argv, check=True, capture_output=True, text=True, timeout=30, env=environment | {"ETCDCTL_API": "3"}
    )
    return done.stdout


def _state(task: Path) -> str:
    """State of a thread, as ps shows it."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _free_ports() -> tuple[int, int, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        client, peer, metrics = (each.getsockname()[1] for each in sockets)
        return client, peer, metrics


@pytest.fixture(scope="session")
def _shared_etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
def etcd(_shared_etcd: EtcdServer) -> EtcdServer:
    """A running etcd with no keys; its revision goes on from test to test. Do not stop it."""
    etcdctl(_shared_etcd, "del", "", "--from-key")
    return _shared_etcd


@pytest.fixture
def own_etcd() -> Iterator[EtcdServer]:
    """An etcd for this test alone, which may be killed, stopped, wiped or given users."""
    with EtcdServer() as server:
        yield server
