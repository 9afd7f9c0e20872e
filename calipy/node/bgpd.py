"""bgpd as a process of this node: configuration in; ``calipy.bgp.daemon`` does the work."""

from __future__ import annotations

from calipy.bgp import daemon
from calipy.bgp.router import Options
from calipy.datastore.connect import connect
from calipy.node.settings import NodeSettings, etcd_config


async def run(settings: NodeSettings, config_file: str | None) -> int:
    """Run until SIGTERM or SIGINT: 0. Routes, and ExaBGP with its sessions, stay for the next bgpd.

    Raises:
        CalipyError: a bad configuration, or another bgpd runs.
    """
    store = connect(etcd_config(config_file))
    options = Options(router_id=settings.router_id, cluster_routes=settings.cluster_routes)
    return await daemon.main(store, settings.name, options)
