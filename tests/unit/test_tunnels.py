"""Which pools ask for a tunnel address, and what is written for it; on the store in memory."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from calipy.datastore.client import Client
from calipy.datastore.codec import new
from calipy.datastore.memory import MemoryStore
from calipy.datastore.resources import IPPoolSpec, NodeBGPSpec, NodeSpec
from calipy.errors import NotFoundError
from calipy.ipam.allocator import Allocator
from calipy.ipam.errors import HandleNotFoundError
from calipy.node import tunnels
from calipy.node.tunnels import IPIP, VXLAN_V4, VXLAN_V6


def _pool(name: str, cidr: str, **spec: object) -> object:
    return new("IPPool", name, IPPoolSpec(cidr=cidr, node_selector="all()", **spec))  # type: ignore[arg-type]


def test_only_enabled_pools_with_the_encapsulation_that_select_the_node_count() -> None:
    """Mode, family, use, selector and the disabled flag each rule a pool out."""
    pools = [
        _pool("a", "10.1.0.0/16", ipip_mode="Always"),
        _pool("b", "10.2.0.0/16", ipip_mode="Always", disabled=True),
        _pool("c", "10.3.0.0/16", vxlan_mode="CrossSubnet"),
        _pool("d", "fd00:4::/48", vxlan_mode="Always"),
        _pool("e", "10.5.0.0/16", ipip_mode="Always", allowed_uses=("Workload",)),
        new("IPPool", "f", IPPoolSpec(cidr="10.6.0.0/16", ipip_mode="Always", node_selector="rack == 'r1'")),
        _pool("g", "10.7.0.0/16", ipip_mode="Never"),
    ]
    assert tunnels.usable_pools(pools, IPIP, {}) == ["10.1.0.0/16"]  # type: ignore[arg-type]
    assert tunnels.usable_pools(pools, IPIP, {"rack": "r1"}) == ["10.1.0.0/16", "10.6.0.0/16"]  # type: ignore[arg-type]
    assert tunnels.usable_pools(pools, VXLAN_V4, {}) == ["10.3.0.0/16"]  # type: ignore[arg-type]
    assert tunnels.usable_pools(pools, VXLAN_V6, {}) == ["fd00:4::/48"]  # type: ignore[arg-type]


async def _cluster() -> tuple[MemoryStore, Client, Allocator]:
    store = MemoryStore()
    allocator = Allocator(store, "n1")
    client = Client(store, addresses=allocator, settle=0)
    await client.ensure_initialised()
    await client.create(new("Node", "n1", NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.1/24"))))
    return store, client, allocator


async def test_address_comes_with_the_pool_and_goes_with_it() -> None:
    """Assigned when a pool asks, kept by a second look, given back when no pool asks any more."""
    _, client, allocator = await _cluster()
    await client.create(new("IPPool", "p", IPPoolSpec(cidr="10.1.0.0/24", ipip_mode="Always")))
    await tunnels.ensure(client, allocator, "n1")
    node = await client.get("Node", "n1")
    assert node is not None
    address = node.spec.bgp.ipv4_ipip_tunnel_addr
    assert address.startswith("10.1.0.")
    await tunnels.ensure(client, allocator, "n1")
    again = await client.get("Node", "n1")
    assert again is not None
    assert again.revision == node.revision
    pool = await client.get("IPPool", "p")
    assert pool is not None
    await client.update(replace(pool, spec=replace(pool.spec, ipip_mode="Never")))
    await tunnels.ensure(client, allocator, "n1")
    node = await client.get("Node", "n1")
    assert node is not None
    assert node.spec.bgp.ipv4_ipip_tunnel_addr == ""
    with pytest.raises(HandleNotFoundError):
        await allocator.ips_by_handle("ipip-tunnel-addr-n1")


async def test_an_address_of_somebody_else_is_not_taken_away() -> None:
    """A stored tunnel address that a pod holds by now: the node gets another one, the pod keeps its own."""
    _, client, allocator = await _cluster()
    await client.create(new("IPPool", "p", IPPoolSpec(cidr="10.1.0.0/24", ipip_mode="Always")))
    pod = (await allocator.auto_assign(num4=1, handle_id="k8s-pod-network.x", attributes={"node": "n1"})).ipv4[0]
    address = pod.split("/")[0]
    node = await client.get("Node", "n1")
    assert node is not None
    await client.update(replace(node, spec=tunnels.with_address(node.spec, IPIP, address)))
    await tunnels.ensure(client, allocator, "n1")
    node = await client.get("Node", "n1")
    assert node is not None
    assert node.spec.bgp.ipv4_ipip_tunnel_addr not in ("", address)
    assert [a.split("/")[0] for a in await allocator.ips_by_handle("k8s-pod-network.x")] == [address]


async def test_without_a_node_there_is_nothing_to_do() -> None:
    """The Node resource comes first."""
    _, client, allocator = await _cluster()
    with pytest.raises(NotFoundError, match="n9"):
        await tunnels.ensure(client, allocator, "n9")
