"""The agent's own parameters among Felix's: metrics, status reports. They can change while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from calipy import log
from calipy.felix import parsing
from calipy.felix.parsing import Parser, Problem
from calipy.node.metrics_server import MetricsSettings
from calipy.node.settings import RUN_DIR

DEFAULT_WATCHDOG: Final = 90.0
SHORTEST_WATCHDOG: Final = 20.0
CALICO_RUN_DIR: Final = Path("/var/run/calico")


@dataclass(frozen=True, slots=True)
class ReportingSettings:
    """What is told of endpoints and agent, and where. Times in seconds.

    Attributes:
        interval: between heartbeats in the datastore; 0 = none.
        ttl: after which a heartbeat expires.
        endpoints: keep the endpoints' statuses in the datastore, too.
        delay: between two writes of those.
        region: of OpenStack, as in keys.
        path_prefix: where the directory ``endpoint-status`` is kept; "" = nowhere.
    """

    interval: float = 30.0
    ttl: float = 90.0
    endpoints: bool = False
    delay: float = 1.0
    region: str = "no-region"
    path_prefix: str = str(CALICO_RUN_DIR)


@dataclass(frozen=True, slots=True)
class AgentParameters:
    """Effective parameters, and those that could not be used and keep their defaults.

    ``log_level``: of what is written to standard error (LogSeverityScreen); "" leaves it as it is.
    ``watchdog``: seconds after which a Felix that does not get on counts as dead: DataplaneWatchdogTimeout, or what
    HealthTimeoutOverrides says of ``InternalDataplaneMainLoop``.
    """

    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    reporting: ReportingSettings = field(default_factory=ReportingSettings)
    watchdog: float = DEFAULT_WATCHDOG
    log_level: str = ""
    problems: tuple[Problem, ...] = ()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str], *, run_dir: Path = RUN_DIR) -> AgentParameters:
        """Read Felix's merged parameters. Never fails.

        Args:
            parameters: texts by name, in any case.
            run_dir: an agent that keeps its sockets somewhere of its own keeps the endpoints' files there as well.
        """
        values, problems = parsing.read(parameters, _KNOWN)
        if run_dir != _DEFAULT_RUN_DIR:
            values.setdefault("path_prefix", str(run_dir))
        metrics, reporting = _of(MetricsSettings, values), _of(ReportingSettings, values)
        values["watchdog"] = values.get("overrides", {}).get(_MAIN_LOOP, values.get("watchdog", DEFAULT_WATCHDOG))
        own = {name: values[name] for name in ("watchdog", "log_level") if name in values}
        return cls(metrics, reporting, problems=problems, **own)


def _of(kind: Any, values: Mapping[str, Any]) -> Any:
    return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})


def _region(text: str) -> str:
    if "/" in text:
        raise ValueError("expected a name without '/'")
    return f"region-{text}" if text else "no-region"


def _host(text: str) -> str:
    """An empty host is not given; all addresses are asked for by ``0.0.0.0`` or ``::``."""
    return text or "localhost"


def _watchdog(text: str) -> float:
    value = parsing.seconds(text)
    if value < SHORTEST_WATCHDOG:
        raise ValueError(f"expected {SHORTEST_WATCHDOG:g} s or more")
    return value


def _overrides(text: str) -> dict[str, float]:
    """``Reporter=1m30s,Other=20s``."""
    found = {}
    for part in filter(None, text.split(",")):
        name, separator, timeout = part.strip().partition("=")
        if not separator or not parsing.seconds(timeout):
            raise ValueError(f"expected REPORTER=DURATION, not {part!r}")
        found[name] = parsing.seconds(timeout)
    return found


_MAIN_LOOP: Final = "InternalDataplaneMainLoop"
_DEFAULT_RUN_DIR: Final = Path("/run/calipy")
_KNOWN: Final[dict[str, tuple[str, Parser]]] = {
    "PrometheusMetricsEnabled": ("enabled", parsing.boolean),
    "PrometheusMetricsHost": ("host", _host),
    "PrometheusMetricsPort": ("port", parsing.integer(1, 65535)),
    "PrometheusMetricsCertFile": ("cert_file", parsing.text),
    "PrometheusMetricsKeyFile": ("key_file", parsing.text),
    "PrometheusMetricsCAFile": ("ca_file", parsing.text),
    "PrometheusMetricsClientAuth": (
        "client_auth",
        parsing.choice("NoClientCert", "VerifyClientCertIfGiven", "RequireAnyClientCert", "RequireAndVerifyClientCert"),
    ),
    "DataplaneWatchdogTimeout": ("watchdog", _watchdog),
    "HealthTimeoutOverrides": ("overrides", _overrides),
    "LogSeverityScreen": ("log_level", lambda text: parsing.choice(*log.LEVELS)(text or "fatal")),
    "ReportingIntervalSecs": ("interval", parsing.seconds),
    "ReportingTTLSecs": ("ttl", parsing.seconds),
    "EndpointReportingEnabled": ("endpoints", parsing.boolean),
    "EndpointReportingDelaySecs": ("delay", parsing.seconds),
    "EndpointStatusPathPrefix": ("path_prefix", parsing.text),
    "OpenstackRegion": ("region", _region),
}
