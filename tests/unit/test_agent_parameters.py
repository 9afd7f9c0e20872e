"""The agent's own parameters, read from Felix's."""

from __future__ import annotations

from pathlib import Path

from calipy.node.metrics_server import MetricsSettings
from calipy.node.parameters import AgentParameters, ReportingSettings

DEFAULT = Path("/run/calipy")


def test_defaults() -> None:
    """As Calico's, but that metrics are served to nobody outside unless an address is named."""
    parameters = AgentParameters.from_parameters({}, run_dir=DEFAULT)
    assert parameters == AgentParameters()
    assert (parameters.metrics.enabled, parameters.metrics.host, parameters.metrics.port) == (False, "localhost", 9091)
    reporting = parameters.reporting
    assert (reporting.interval, reporting.ttl, reporting.endpoints, reporting.delay) == (30, 90, False, 1)
    assert reporting.path_prefix == "/var/run/calico"


def test_values_are_read_in_any_case() -> None:
    """From FelixConfiguration's names as from the environment's."""
    parameters = AgentParameters.from_parameters(
        {
            "PrometheusMetricsEnabled": "true",
            "PROMETHEUSMETRICSHOST": "0.0.0.0",
            "prometheusmetricsport": "9999",
            "PrometheusMetricsCertFile": "/c",
            "PrometheusMetricsKeyFile": "/k",
            "PrometheusMetricsCAFile": "/a",
            "PrometheusMetricsClientAuth": "requireandverifyclientcert",
            "PrometheusGoMetricsEnabled": "false",
            "DataplaneWatchdogTimeout": "30",
            "LogSeverityScreen": "Warning",
            "ReportingIntervalSecs": "0",
            "ReportingTTLSecs": "1m30s",
            "EndpointReportingEnabled": "true",
            "EndpointReportingDelaySecs": "0.5",
            "EndpointStatusPathPrefix": "/x",
            "OpenstackRegion": "eu",
        },
        run_dir=DEFAULT,
    )
    assert parameters.metrics == MetricsSettings(True, "0.0.0.0", 9999, "/c", "/k", "/a", "RequireAndVerifyClientCert")
    assert parameters.reporting == ReportingSettings(0, 90, True, 0.5, "region-eu", "/x")
    assert (parameters.watchdog, parameters.log_level) == (30, "warning")
    assert not parameters.problems


def test_a_time_out_by_its_reporters_name_comes_first() -> None:
    """HealthTimeoutOverrides names Felix's main loop; other reporters are none of ours."""
    given = {
        "DataplaneWatchdogTimeout": "30",
        "HealthTimeoutOverrides": "CalculationGraph=5s,InternalDataplaneMainLoop=2m",
    }
    assert AgentParameters.from_parameters(given).watchdog == 120
    bad = AgentParameters.from_parameters({"DataplaneWatchdogTimeout": "30", "HealthTimeoutOverrides": "soon"})
    assert bad.watchdog == 30
    assert [name for name, _, _ in bad.problems] == ["HealthTimeoutOverrides"]


def test_no_host_is_localhost() -> None:
    """All addresses are listened on only where they are named."""
    parameters = AgentParameters.from_parameters({"PrometheusMetricsHost": "none"})
    assert parameters.metrics.host == "localhost"


def test_bad_values_keep_the_default_and_are_told() -> None:
    """One bad value does not spoil the others."""
    parameters = AgentParameters.from_parameters(
        {
            "PrometheusMetricsEnabled": "true",
            "PrometheusMetricsPort": "70000",
            "ReportingTTLSecs": "soon",
            "DataplaneWatchdogTimeout": "1",
        }
    )
    assert (parameters.metrics.enabled, parameters.metrics.port, parameters.reporting.ttl) == (True, 9091, 90)
    assert [(name, value) for name, value, _ in parameters.problems] == [
        ("PrometheusMetricsPort", "70000"),
        ("DataplaneWatchdogTimeout", "1"),
        ("ReportingTTLSecs", "soon"),
    ]


def test_files_go_where_the_sockets_are() -> None:
    """An agent with a directory of its own does not meddle with another's; a given place, or none, counts."""
    own = Path("/tmp/own")
    assert AgentParameters.from_parameters({}, run_dir=own).reporting.path_prefix == "/tmp/own"
    given = {"EndpointStatusPathPrefix": "none"}
    assert AgentParameters.from_parameters(given, run_dir=own).reporting.path_prefix == ""
