"""G8: addresses of load balancers, as far as the allocator goes; who watches Services calls it like this."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from calipy.datastore.keys import BlockKey, affinity_prefix
from calipy.datastore.store import Store
from calipy.ipam.allocator import Allocator
from calipy.ipam.errors import HandleNotFoundError, NoPoolError, WrongUseError
from tests.support.ipam import cluster, read
from tests.support.objects import make

LB4 = {"cidr": "10.1.0.0/28", "blockSize": 30, "allowedUses": ["LoadBalancer"]}
LB6 = {"cidr": "fd00:1::/122", "blockSize": 124, "allowedUses": ["LoadBalancer"]}
HANDLE = "lb-1f6o2r7service"


def balancer(store: Store) -> Allocator:
    return Allocator(store, "load-balancer", virtual=True)


async def give(
    store: Store, handle: str = HANDLE, *, num4: int = 1, num6: int = 0, pools4: tuple[str, ...] = ()
) -> list[str]:
    attributes = {"service": "web", "namespace": "shop", "type": "loadBalancer"}
    done = await balancer(store).auto_assign(
        num4=num4, num6=num6, handle_id=handle, attributes=attributes, pools4=pools4, intended_use="LoadBalancer"
    )
    return [*done.ipv4, *done.ipv6]


async def test_g8_assign_on_create(store: Store) -> None:
    """G8: an address from a load balancer's pool only, in a block of the virtual owner, without any Node."""
    await cluster(store, nodes=(), pools={"a-pods": {"cidr": "10.0.0.0/28", "blockSize": 30}, "lb": LB4})
    (address,) = await give(store)
    assert address.startswith("10.1.0.")
    (kv,) = (await store.list(affinity_prefix("load-balancer", affinity_type="virtual"))).items
    assert kv.key.startswith("/calico/ipam/v2/virtual/load-balancer/ipv4/block/10.1.0.")
    attribute = await balancer(store).attributes(address)
    assert (attribute.handle_id, attribute.attributes["service"]) == (HANDLE, "web")
    with pytest.raises(WrongUseError):
        await balancer(store).auto_assign(num4=1, pools4=["a-pods"], handle_id="x", intended_use="LoadBalancer")
    await cluster(store, nodes=("n1",))
    with pytest.raises(WrongUseError):
        await Allocator(store, "n1").auto_assign(num4=1, pools4=["lb"], handle_id="pod")


async def test_g8_kept_on_restart_and_freed_on_delete(store: Store) -> None:
    """G8: a new process finds the address by the Service's handle; deleting the Service frees it, twice is no harm."""
    await cluster(store, nodes=(), pools={"lb": LB4})
    addresses = await give(store)
    assert await balancer(store).ips_by_handle(HANDLE) == addresses
    other = await give(store, "lb-other")
    assert await balancer(store).release_by_handle(HANDLE) == addresses
    with pytest.raises(HandleNotFoundError):
        await balancer(store).release_by_handle(HANDLE)
    assert await balancer(store).ips_by_handle("lb-other") == other


async def test_g8_pool_added_later(store: Store) -> None:
    """G8: without a pool the request fails and leaves nothing behind; when a pool comes, the same request succeeds."""
    client = await cluster(store, nodes=(), pools={})
    with pytest.raises(NoPoolError):
        await give(store)
    with pytest.raises(HandleNotFoundError):
        await balancer(store).ips_by_handle(HANDLE)
    await client.create(make("IPPool", "lb", LB4)[1])
    assert len(await give(store)) == 1


async def test_g8_changed_request_moves_the_address(store: Store) -> None:
    """G8: a Service that names another pool gets an address there, and the old one is free again."""
    await cluster(store, nodes=(), pools={"lb": LB4, "other": {**LB4, "cidr": "10.2.0.0/28"}})
    (old,) = await give(store)
    await balancer(store).release_by_handle(HANDLE)
    (new,) = await give(store, pools4=("other",))
    assert new.startswith("10.2.0.")
    await balancer(store).assign(old, "lb-next", intended_use="LoadBalancer")
    assert await balancer(store).ips_by_handle("lb-next") == [old]


async def test_g8_dual_stack(store: Store) -> None:
    """G8: one address of each family under one handle; one family alone is told from both."""
    client = await cluster(store, nodes=(), pools={"lb": LB4})
    with pytest.raises(NoPoolError) as caught:
        await give(store, num6=1)
    assert caught.value.partial is not None
    assert len(caught.value.partial.ipv4) == 1
    await balancer(store).release_by_handle(HANDLE)
    await client.create(make("IPPool", "lb6", LB6)[1])
    four, six = await give(store, num6=1)
    assert (":" in four, ":" in six) == (False, True)
    assert sorted(await balancer(store).ips_by_handle(HANDLE)) == sorted([four, six])
    assert len(await balancer(store).release_by_handle(HANDLE)) == 2


async def test_g8_manual_pools_only_when_named(store: Store) -> None:
    """G8: a Manual pool serves those who name it, and nobody else."""
    client = await cluster(store, nodes=(), pools={"lb": {**LB4, "assignmentMode": "Manual"}})
    with pytest.raises(NoPoolError, match="only when named"):
        await give(store)
    (address,) = await give(store, pools4=("lb",))
    found = await client.get("IPPool", "lb")
    assert found is not None
    await client.update(replace(found, spec=replace(found.spec, assignment_mode="Automatic")))
    assert len(await give(store, "lb-two")) == 1
    block = next(kv for kv in (await store.list("/calico/ipam/v2/assignment/ipv4/")).items)
    assert (await read(store, BlockKey(block.key.rpartition("/")[2].replace("-", "/")))).affinity == (
        "virtual:load-balancer"
    )
    assert address.startswith("10.1.0.")
