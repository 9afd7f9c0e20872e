"""bgpd as a process of this node: configuration in; ``calipy.bgp.daemon`` does the work."""

from __future__ import annotations

import os

from calipy.bgp import daemon
from calipy.datastore.connect import connect
from calipy.node.settings import NodeSettings, etcd_config
from calipy.node.supervisor import SUPERVISED


async def run(settings: NodeSettings, config_file: str | None) -> int:
    """Run until SIGTERM or SIGINT: 0. Routes, and ExaBGP with its sessions, stay for the next bgpd.

    Raises:
        CalipyError: a bad configuration, or another bgpd runs.
    """
    store = connect(etcd_config(config_file))
    # Alone beside a real Felix nobody else writes the blackholes of our blocks: BIRD did, so we do.
    options = daemon.Options(router_id=settings.router_id, blackholes=SUPERVISED not in os.environ)
    return await daemon.main(store, settings.name, options)
