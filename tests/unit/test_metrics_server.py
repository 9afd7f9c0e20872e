"""Metrics are served where they are asked for, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from pathlib import Path

import pytest

from calipy.errors import CalipyError
from calipy.metrics import Registry
from calipy.node.metrics_server import MetricsServer, MetricsSettings, watch_process


async def fetch(port: int, path: str = "/metrics", tls: ssl.SSLContext | None = None) -> bytes:
    reader, writer = await asyncio.open_connection("localhost", port, ssl=tls)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def refused(port: int, tls: ssl.SSLContext) -> bool:
    """Whether the server hangs up; with TLS 1.3 the client may only see that no answer comes."""
    try:
        return await fetch(port, tls=tls) == b""
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.counter("calls", "Calls.").inc(3)
    return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates of a server and a client that it has signed; ``other`` has signed itself."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name in ("localhost", "client"):
        openssl("req", *key[:-2], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}",
                "-addext", f"subjectAltName=DNS:{name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-copy_extensions", "copy", "-out", f"{name}.pem")  # fmt: skip
    return folder


async def test_settings_are_followed(registry: Registry, unused_port: int) -> None:
    """Off by default; on, moved and off again while the process runs."""
    server = MetricsServer(remedy="", registry=registry)
    await server.configure(MetricsSettings())
    with pytest.raises(OSError):
        await fetch(unused_port)
    await server.configure(MetricsSettings(enabled=True, port=unused_port))
    answer = await fetch(unused_port)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in answer
    assert answer.endswith(b"# TYPE calls counter\ncalls 3\n")
    assert b" 404 " in await fetch(unused_port, "/")
    await server.configure(MetricsSettings())
    with pytest.raises(OSError):
        await fetch(unused_port)


async def test_a_taken_port_is_told_and_tried_again(registry: Registry, unused_port: int) -> None:
    """The error names the address and the remedy; the next call succeeds when the port is free."""
    first, second = (MetricsServer(remedy="set the port", registry=registry) for _ in range(2))
    settings = MetricsSettings(enabled=True, port=unused_port)
    await first.configure(settings)
    with pytest.raises(CalipyError, match=rf"localhost:{unused_port}.*\(set the port\)"):
        await second.configure(settings)
    await first.stop()
    await second.configure(settings)
    assert b"calls 3" in await fetch(unused_port)
    await second.stop()


async def test_tls_with_verified_clients(registry: Registry, unused_port: int, certificates: Path) -> None:
    """With a CA only clients whose certificate it signed read the metrics."""
    server = MetricsServer(remedy="", registry=registry)
    settings = MetricsSettings(
        enabled=True,
        port=unused_port,
        cert_file=str(certificates / "localhost.pem"),
        key_file=str(certificates / "localhost.key"),
        ca_file=str(certificates / "ca.pem"),
        client_auth="RequireAndVerifyClientCert",
    )
    await server.configure(settings)
    try:
        client = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        assert await refused(unused_port, client)
        client.load_cert_chain(certificates / "other.pem", certificates / "other.key")
        assert await refused(unused_port, client)
        client.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        assert b"calls 3" in await fetch(unused_port, tls=client)
    finally:
        await server.stop()


async def test_missing_files_are_named(registry: Registry, unused_port: int, tmp_path: Path) -> None:
    """A key that is not there is an error, and nothing is served in the clear instead."""
    server = MetricsServer(remedy="", registry=registry)
    with pytest.raises(CalipyError, match=r"absent\.pem"):
        await server.configure(
            MetricsSettings(enabled=True, port=unused_port, cert_file=str(tmp_path / "absent.pem"), key_file="k")
        )
    with pytest.raises(CalipyError, match="no certificate"):
        await server.configure(MetricsSettings(enabled=True, port=unused_port, key_file=str(tmp_path / "absent.pem")))
    with pytest.raises(OSError):
        await fetch(unused_port)


def test_process_metrics_follow_the_process() -> None:
    """Memory, CPU and descriptors are those of this process."""
    registry = Registry()
    watch_process(registry)

    def read() -> dict[str, float]:
        return {k: float(v) for k, v in (x.split() for x in registry.expose().splitlines() if x[0] != "#")}

    before = read()
    assert 1e6 < before["process_resident_memory_bytes"] < before["process_virtual_memory_bytes"]
    assert before["process_cpu_seconds_total"] > 0
    assert abs(before["process_start_time_seconds"] - Path("/proc/self").stat().st_ctime) < 3600
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    assert read()["process_open_fds"] == before["process_open_fds"] + 3
    for descriptor in descriptors:
        os.close(descriptor)
