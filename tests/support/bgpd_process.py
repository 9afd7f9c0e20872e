"""One bgpd as a process of its own, for tests and benchmarks: ``NODE RUN_DIR``."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from calipy import log
from calipy.bgp.daemon import main
from calipy.bgp.exabgp.speaker import MEMORY_LIMIT
from calipy.bgp.router import Options
from calipy.datastore.connect import EtcdConfig, connect


async def _run(node: str, directory: str) -> int:
    store = connect(EtcdConfig.from_environment(os.environ))
    run_dir = Path(directory)
    options = Options(
        run_dir=run_dir,
        secrets_dir=run_dir / "secrets",
        status_prefix=run_dir,
        cluster_routes=os.environ.get("CALIPY_CLUSTER_ROUTES", ""),
        memory_limit=int(os.environ.get("BGPD_MEMORY_LIMIT", MEMORY_LIMIT)),
    )
    return await main(store, node, options)


if __name__ == "__main__":
    log.configure("debug" if os.environ.get("BGPD_DEBUG") else "info")
    sys.exit(asyncio.run(_run(*sys.argv[1:])))
