"""bgpd as a process of this node: configuration in; ``calipy.bgp.daemon`` does the work."""

from __future__ import annotations

import os
from pathlib import Path

from calipy.bgp import daemon
from calipy.bgp.router import Options
from calipy.datastore.connect import connect
from calipy.node.metrics_server import MetricsServer, MetricsSettings, watch_process
from calipy.node.parameters import CALICO_RUN_DIR, AgentParameters
from calipy.node.settings import NodeSettings, etcd_config


async def run(settings: NodeSettings, config_file: str | None) -> int:
    """Run until SIGTERM or SIGINT: 0. Routes, and ExaBGP with its sessions, stay for the next bgpd.

    Raises:
        CalipyError: a bad configuration, or another bgpd runs.
    """
    store = connect(etcd_config(config_file))
    # Under Calico's name, and where this node's agent keeps them unless the datastore tells it otherwise.
    prefix = os.environ.get("CALICO_ENDPOINT_STATUS_PATH_PREFIX")
    prefix = prefix or AgentParameters.from_parameters(settings.felix).reporting.path_prefix
    options = Options(
        router_id=settings.router_id,
        cluster_routes=settings.cluster_routes,
        log_level=settings.felix.get("logseverityscreen", ""),
        status_prefix=Path(prefix or CALICO_RUN_DIR),
    )
    metrics = MetricsServer(remedy="set CALIPY_BGP_METRICS_HOST and CALIPY_BGP_METRICS_PORT to what is free here")
    watch_process()
    host, port = settings.bgp_metrics_host, settings.bgp_metrics_port
    await metrics.configure(MetricsSettings(enabled=port > 0, host=host, port=port))
    try:
        return await daemon.main(store, settings.name, options)
    finally:
        await metrics.stop()
