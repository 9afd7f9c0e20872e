"""A node for tests of pods: a namespace of its own with a real etcd, client, allocator and pod networks inside."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable
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
    """Run a scenario on a fresh node, all in one thread inside the namespace, event loop and etcd included."""
    host = make_netns("node")

    def inside() -> None:
        with EtcdServer() as etcd:
            asyncio.run(_run(host, etcd, make_netns, scenario, pool4))

    host.call(inside)


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
