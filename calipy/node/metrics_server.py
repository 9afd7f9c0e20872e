"""Serves the metrics of this process to Prometheus, where and as the configuration asks."""

from __future__ import annotations

import os
import resource
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from calipy import log
from calipy.errors import CalipyError
from calipy.httpd import HttpServer, Page
from calipy.metrics import CONTENT_TYPE, REGISTRY, Registry

logger = log.get("metrics")

ClientAuth = Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAnyClientCert", "RequireAndVerifyClientCert"]

_VERIFY: Final[dict[ClientAuth, ssl.VerifyMode]] = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    # OpenSSL knows no certificate that is asked for and not verified: the strict way out.
    "RequireAnyClientCert": ssl.CERT_REQUIRED,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where metrics are served: Calico's ``PrometheusMetrics…`` parameters.

    Attributes:
        host: address to listen on. Calico's default is every address; ours is localhost, for nothing of calipy listens
            to the network unless somebody names the address.
        cert_file, key_file: PEM files; either makes it HTTPS.
        ca_file: PEM file of those who sign clients' certificates.
    """

    enabled: bool = False
    host: str = "localhost"
    port: int = 9091
    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    client_auth: ClientAuth = "NoClientCert"

    @property
    def secure(self) -> bool:
        return bool(self.cert_file or self.key_file)


class MetricsServer:
    """Serves ``/metrics`` of a registry. All methods belong to one event loop."""

    def __init__(self, *, remedy: str, registry: Registry = REGISTRY) -> None:
        """``remedy`` says what to change where it cannot be served as asked."""
        self._registry = registry
        self._remedy = remedy
        self._settings = MetricsSettings()
        self._server: HttpServer | None = None

    async def configure(self, settings: MetricsSettings) -> None:
        """Serve as these settings say from now on; nothing happens if they are the present ones.

        Raises:
            CalipyError: the address or the port cannot be used, or a file of TLS. Nothing is served then, and the next
                call tries again.
        """
        if settings == self._settings:
            return
        await self.stop()
        if settings.enabled:
            server = HttpServer(
                {"/metrics": lambda: Page(self._registry.expose(), content_type=CONTENT_TYPE)},
                host=settings.host,
                port=settings.port,
                purpose="metrics",
                remedy=self._remedy,
                tls=self._tls(settings) if settings.secure else None,
            )
            await server.start()
            self._server = server
            logger.info("serving metrics", host=settings.host, port=settings.port, tls=settings.secure)
        self._settings = settings

    async def stop(self) -> None:
        """Serve nothing more."""
        self._settings = MetricsSettings()
        if self._server is not None:
            await self._server.stop()
            self._server = None

    def _tls(self, settings: MetricsSettings) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        files = f"{settings.cert_file or 'no certificate'}, {settings.key_file or 'no key'}"
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file)
            if settings.ca_file:
                files = settings.ca_file
                context.load_verify_locations(settings.ca_file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CalipyError(f"cannot serve metrics over TLS: {files}: {reason}", remedy=self._remedy) from error
        context.verify_mode = _VERIFY[settings.client_auth]
        return context


def watch_process(registry: Registry = REGISTRY) -> None:
    """Add the ``process_…`` metrics that every Prometheus client has, read from ``/proc`` when asked."""
    cpu = registry.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
    resident = registry.gauge("process_resident_memory_bytes", "Resident memory size in bytes.")
    virtual = registry.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")
    opened = registry.gauge("process_open_fds", "Number of open file descriptors.")
    registry.gauge("process_max_fds", "Maximum number of open file descriptors.").set(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )
    started = registry.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
    booted = next(
        int(line.split()[1]) for line in Path("/proc/stat").read_text("ascii").splitlines() if line.startswith("btime ")
    )

    def read() -> None:
        # The program's name, in parentheses, may hold anything.
        fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        cpu.value = (int(fields[11]) + int(fields[12])) / _TICKS
        started.set(booted + int(fields[19]) / _TICKS)
        virtual.set(int(fields[20]))
        resident.set(int(fields[21]) * _PAGE)
        opened.set(len(os.listdir("/proc/self/fd")) - 1)  # noqa: PTH208 - one descriptor is our own reading

    registry.before_exposing(read)
