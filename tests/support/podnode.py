"""A node for tests of pods: a namespace of its own with a real etcd, client, allocator and pod networks inside."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calipy.cni.pod import PodNetwork
from calipy.cni.request import PodRequest
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.connect import EtcdConfig, connect
from calipy.datastore.keys import BLOCKS
from calipy.datastore.resources import IPPoolSpec, NodeSpec
from calipy.datastore.store import Store
from calipy.ipam.allocator import Allocator
from tests.support.etcd import EtcdServer
from tests.support.netns import Namespace

NODE = "node-1"
POOL4, POOL6 = "10.65.0.0/26", "fd65::/120"


@dataclass
class Enforcer:
    """Stands in for Felix: remembers what was waited for, and answers as told."""

    answer: bool = True
    error: Exception | None = None
    blocks: bool = False
    waited: list[tuple[Any, tuple[str, ...]]] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_programmed(self, endpoint_id, timeout, *, nets=()) -> bool:
        self.waited.append((endpoint_id, tuple(nets)))
        self.waiting.set()
        if self.blocks:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return self.answer


@dataclass
class PodNode:
    """What a scenario runs with; all of it lives in the node's namespace."""

    host: Namespace
    etcd: EtcdServer
    store: Store
    client: Client
    allocator: Allocator
    felix: Enforcer
    pods: PodNetwork
    make_netns: Callable[..., Namespace]
    count: int = 0

    def request(self, pod: Namespace, name: str = "web", **more: Any) -> PodRequest:
        """A request for a pod in that namespace, under a fresh container id unless one is given."""
        self.count += 1
        more.setdefault("container_id", f"c{self.count:02d}0ffee0ff1ce")
        return PodRequest(netns=str(pod.path), name=name, **more)

    async def keys(self, prefix: str = "/calico/") -> set[str]:
        """Keys in the store, without the objects the set-up wrote."""
        return {item.key for item in (await self.store.list(prefix)).items}

    async def allocated(self) -> set[str]:
        """Addresses that are assigned, over all blocks."""
        found: set[str] = set()
        for item in (await self.store.list(BLOCKS)).items:
            block = json.loads(item.value)
            network = ipaddress.ip_network(block["cidr"])
            found |= {str(network[n]) for n, slot in enumerate(block["allocations"]) if slot is not None}
        return found

    async def handles(self) -> set[str]:
        return {key.rsplit("/", 1)[1] for key in await self.keys("/calico/ipam/v2/handle/")}

    async def endpoints(self) -> dict[str, Any]:
        return {endpoint.name: endpoint for endpoint in await self.client.list("WorkloadEndpoint")}

    def interfaces(self) -> list[str]:
        """The host's ends of pods."""
        return [link.name for link in self.host.links.list_links() if link.name.startswith("cali")]


def on_node(
    make_netns: Callable[..., Namespace], scenario: Callable[[PodNode], Awaitable[None]], *, pool4: str = POOL4
) -> None:
    """Run a scenario on a fresh node, in one thread inside the namespace.

    etcd is the machine's, and its port is the namespace's too: gRPC connects from threads of its own, which may have
    been started in either.
    """
    host = make_netns("node")
    with EtcdServer() as etcd:
        port = int(etcd.url.rpartition(":")[2])
        with _forwarding(host.call(_listen, port), port):
            host.call(lambda: asyncio.run(_run(host, etcd, make_netns, scenario, pool4)))


def _listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=64)


@contextlib.contextmanager
def _forwarding(listener: socket.socket, port: int) -> Iterator[None]:
    """Pass connections of a socket of another namespace on to a port of this one."""
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async def serve() -> None:
        async with await asyncio.start_server(connected, sock=listener):
            await stop.wait()

    async def main() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await serve()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        if not thread.is_alive():
            loop.close()


async def _run(host, etcd, make_netns, scenario, pool4) -> None:
    store = connect(EtcdConfig.from_variables({"ETCD_ENDPOINTS": etcd.url}))
    try:
        client = Client(store)
        await client.ensure_initialised()
        await client.create(codec.new("Node", NODE, NodeSpec()))
        await client.create(
            codec.new("IPPool", "pool4", IPPoolSpec(cidr=pool4, block_size=max(26, int(pool4.rpartition("/")[2]))))
        )
        await client.create(codec.new("IPPool", "pool6", IPPoolSpec(cidr=POOL6, block_size=122)))
        allocator = Allocator(store, NODE)
        felix = Enforcer()
        pods = PodNetwork(client, allocator, felix, NODE, lib_dir=Path(f"/nonexistent-{os.getpid()}"))
        await scenario(PodNode(host, etcd, store, client, allocator, felix, pods, make_netns))
    finally:
        await store.close()
