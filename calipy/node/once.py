"""Start-up work done once and ended, for ``calipy node startup`` and ``allocate-tunnel-addrs``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from calipy.datastore.client import Client
from calipy.datastore.connect import connect
from calipy.ipam.allocator import Allocator
from calipy.node import host, tunnels
from calipy.node import startup as node_startup
from calipy.node.settings import NodeSettings, etcd_config


@asynccontextmanager
async def _client(config_file: str | None) -> AsyncIterator[Client]:
    store = connect(etcd_config(config_file))
    try:
        yield Client(store)
    finally:
        await store.close()


async def startup(settings: NodeSettings, config_file: str | None) -> None:
    """Write the node and the default objects. Raises what ``startup.start`` does."""
    async with _client(config_file) as client:
        await node_startup.start(client, settings, host.read())


async def allocate_tunnel_addresses(settings: NodeSettings, config_file: str | None) -> None:
    """Bring the tunnel addresses in line. Raises what ``tunnels.ensure`` does."""
    async with _client(config_file) as client:
        await tunnels.ensure(client, Allocator(client.store, settings.name), settings.name)
