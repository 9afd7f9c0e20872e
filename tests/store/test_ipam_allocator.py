"""The allocator on both stores: the checks of Calico's own library, by their numbers in the reference."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from typing import Any

import pytest
from msgspec.structs import replace

from calipy.datastore import codec
from calipy.datastore.ipam import Block, BlockAffinity, IPAMConfig
from calipy.datastore.keys import (
    BlockAffinityKey,
    BlockKey,
    HandleKey,
    IPAMConfigKey,
    IPAMHostKey,
    ResourceKey,
    affinity_prefix,
    path,
)
from calipy.datastore.store import Store
from calipy.errors import InvalidInputError, NotFoundError, UndecodableError
from calipy.ipam import report, snapshot
from calipy.ipam.allocator import CALICO_DEFAULTS, Allocator
from calipy.ipam.errors import (
    AddressNotInPoolError,
    AddressTakenError,
    BadSelectorError,
    BlockLimitError,
    BlockNotEmptyError,
    ClaimConflictError,
    ForeignBlockError,
    HandleNotFoundError,
    NoBlockError,
    NoPoolError,
    NotAllocatedError,
    RefusedConfigError,
    ReleaseConflictError,
    TooSmallError,
    UnknownNodeError,
    UnknownPoolError,
    WrongUseError,
)
from calipy.ipam.releasing import release_affinity
from calipy.ipam.request import ReleaseRequest
from tests.support.ipam import Clock, cluster, read
from tests.support.objects import make

SLASH24 = {"amber": {"cidr": "10.1.0.0/24"}}
TWO_BLOCKS = {"amber": {"cidr": "10.1.0.0/29", "blockSize": 30}}


def calico(store: Store, host: str, **options: Any) -> Allocator:
    """An allocator with Calico's defaults: it borrows."""
    return Allocator(store, host, defaults=CALICO_DEFAULTS, **options)


async def blocks_of(store: Store, host: str) -> list[str]:
    """Keys of a host's affinities."""
    return [kv.key for kv in (await store.list(affinity_prefix(host))).items]


# I1 to I4: how many, and from where


@pytest.mark.parametrize("count", [1, 64, 256])
async def test_i1_as_many_as_asked_for(store: Store, count: int) -> None:
    """I1: a /24 yields up to 256 different addresses."""
    await cluster(store, pools=SLASH24)
    done = await Allocator(store, "n1").auto_assign(num4=count, handle_id="h")
    assert len(set(done.ipv4)) == count
    assert done.complete
    assert done.messages == []


async def test_i1_more_than_there_are(store: Store) -> None:
    """I1: the 257th is missing, with a message that names the pool and no error."""
    await cluster(store, pools=SLASH24)
    done = await Allocator(store, "n1").auto_assign(num4=257, handle_id="h")
    assert len(done.ipv4) == 256
    assert not done.complete
    assert "got 256 of 257" in done.messages[0]
    assert "amber (10.1.0.0/24)" in done.messages[0]


@pytest.mark.parametrize(("cap", "got"), [(1, 64), (2, 128)])
async def test_i1_block_limit_is_an_error_that_carries_the_addresses(store: Store, cap: int, got: int) -> None:
    """I1: at the block limit the request fails and says what it has taken, so that it can be freed."""
    await cluster(store, pools=SLASH24)
    with pytest.raises(BlockLimitError, match=f"may own {cap}") as caught:
        await Allocator(store, "n1").auto_assign(num4=256, handle_id="h", max_blocks=cap)
    assert caught.value.partial is not None
    assert len(caught.value.partial.ipv4) == got


async def test_i2_borrows_the_last_one(store: Store) -> None:
    """I2: with all blocks taken the remainder comes from the other host's block, which keeps its owner."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/25"}})
    one = calico(store, "n1")
    mine = (await one.auto_assign(num4=1, handle_id="a")).ipv4
    await calico(store, "n2").auto_assign(num4=1, handle_id="b")
    done = await one.auto_assign(num4=64, handle_id="c", attributes={"node": "n1"})
    assert len(done.ipv4) == 64
    foreign = [
        a for a, cidr in zip(done.ipv4, done.families[4].blocks, strict=True) if cidr != done.families[4].blocks[0]
    ]
    assert len(foreign) == 1
    assert mine[0] not in done.ipv4
    lent = list(report.borrowed(await snapshot.read(store)))
    assert [(b.address, b.node, b.owner) for b in lent] == [(foreign[0], "n1", "n2")]


async def test_i2_strict_never_borrows(store: Store) -> None:
    """I2: with strict affinity a one-block pool gives its 64 and no more, and the message says why."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/26"}})
    allocator = calico(store, "n1")
    await allocator.set_config(IPAMConfig(strict_affinity=True))
    done = await allocator.auto_assign(num4=256, handle_id="h")
    assert len(done.ipv4) == 64
    assert "strict affinity" in done.messages[0]
    other = await calico(store, "n2").auto_assign(num4=1, handle_id="i")
    assert other.ipv4 == []


async def test_without_settings_calipy_does_not_borrow_and_calico_does(store: Store) -> None:
    """In a store without settings each follows its own default; stored settings bind both."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/30", "blockSize": 30}})
    await calico(store, "n1").auto_assign(num4=1, handle_id="a")
    assert (await Allocator(store, "n2").auto_assign(num4=1, handle_id="b")).ipv4 == []
    assert len((await calico(store, "n2").auto_assign(num4=1, handle_id="c")).ipv4) == 1
    await Allocator(store, "n2").set_config(IPAMConfig(strict_affinity=False))
    assert len((await Allocator(store, "n2").auto_assign(num4=1, handle_id="d")).ipv4) == 1


async def test_i3_two_pools_then_partial(store: Store) -> None:
    """I3: pools are used in order of name, whole; then the result is short. IPv6 alike."""
    await cluster(
        store,
        pools={
            "b": {"cidr": "10.1.0.0/25"},
            "a": {"cidr": "10.2.0.0/25"},
            "six": {"cidr": "fd00::/121"},
        },
    )
    done = await Allocator(store, "n1").auto_assign(num4=300, num6=129, handle_id="h")
    assert len(done.ipv4) == 256
    assert all(address.startswith("10.2.") for address in done.ipv4[:128])
    assert all(address.startswith("10.1.") for address in done.ipv4[128:])
    assert len(done.ipv6) == 128
    assert len(done.messages) == 2


async def test_i4_named_pools(store: Store) -> None:
    """I4: a named pool (by CIDR or name) is used alone; the error for an unknown or disabled one lists the others."""
    await cluster(
        store,
        pools={
            "a": {"cidr": "10.1.0.0/24"},
            "b": {"cidr": "10.2.0.0/24"},
            "off": {"cidr": "10.3.0.0/24", "disabled": True},
        },
    )
    allocator = Allocator(store, "n1")
    assert (await allocator.auto_assign(num4=1, handle_id="h", pools4=["10.2.0.0/24"])).ipv4[0].startswith("10.2.")
    assert (await allocator.auto_assign(num4=1, handle_id="h", pools4=["b"])).ipv4[0].startswith("10.2.")
    with pytest.raises(UnknownPoolError, match=r"10\.9\.0\.0/24.*does not exist.*a \(10\.1"):
        await allocator.auto_assign(num4=1, handle_id="h", pools4=["10.9.0.0/24"])
    with pytest.raises(UnknownPoolError, match="is disabled"):
        await allocator.auto_assign(num4=1, handle_id="h", pools4=["off"])


async def test_i5_selectors_modes_and_uses(store: Store) -> None:
    """I5: nodeSelector, namespaceSelector, Manual and allowedUses decide; the error tells of each pool why not."""
    await cluster(
        store,
        labels={"n1": {"rack": "r1"}},
        pools={
            "node": {"cidr": "10.1.0.0/24", "nodeSelector": "rack == 'r2'"},
            "named": {"cidr": "10.2.0.0/24", "assignmentMode": "Manual"},
            "space": {"cidr": "10.3.0.0/24", "namespaceSelector": "role == 'web'", "allowedUses": ["Workload"]},
            "tunnel": {"cidr": "10.4.0.0/24", "allowedUses": ["Tunnel"]},
        },
    )
    one = Allocator(store, "n1")
    with pytest.raises(WrongUseError, match=r"Workload.*tunnel"):
        await one.auto_assign(num4=1, handle_id="h")
    with pytest.raises(NoPoolError) as caught:
        await one.auto_assign(num6=1, handle_id="h")
    assert "IPv6" in str(caught.value)
    web = {"role": "web"}
    assert (await one.auto_assign(num4=1, handle_id="h", namespace_labels=web)).ipv4[0].startswith("10.3.")
    assert (await one.auto_assign(num4=1, handle_id="h", intended_use="Tunnel")).ipv4[0].startswith("10.4.")
    assert (await one.auto_assign(num4=1, handle_id="h", pools4=["node"])).ipv4[0].startswith("10.1.")
    assert (await one.auto_assign(num4=1, handle_id="h", pools4=["named"])).ipv4[0].startswith("10.2.")
    with pytest.raises(WrongUseError):
        await one.auto_assign(num4=1, handle_id="h", pools4=["tunnel"])
    with pytest.raises(UnknownNodeError, match="n9"):
        await Allocator(store, "n9").auto_assign(num4=1, handle_id="h")
    with pytest.raises(InvalidInputError, match="intended_use"):
        await one.auto_assign(num4=1, handle_id="h", intended_use="")  # type: ignore[arg-type]


async def test_i5_selector_that_cannot_be_parsed(store: Store) -> None:
    """I5: nobody knows whom such a pool is for, so the request fails and names it."""
    client = await cluster(store, pools=SLASH24)
    pool = await client.get("IPPool", "amber")
    assert pool is not None
    broken = replace(pool, spec=replace(pool.spec, node_selector="rack =="))
    await store.put(path(pool.key), codec.encode(broken))
    with pytest.raises(BadSelectorError, match="amber"):
        await Allocator(store, "n1").auto_assign(num4=1, handle_id="h")


async def test_i6_blocks_of_a_pool_that_stops_selecting(store: Store) -> None:
    """I6: empty ones are given up with the next assignment or release, others stay; so do those of another use."""
    client = await cluster(
        store,
        labels={"n1": {"rack": "r1"}},
        pools={
            "a": {"cidr": "10.1.0.0/28", "blockSize": 30, "nodeSelector": "rack == 'r1'"},
            "b": {"cidr": "10.2.0.0/28", "blockSize": 30},
            "t": {"cidr": "10.3.0.0/28", "blockSize": 30, "allowedUses": ["Tunnel"]},
        },
    )
    one = Allocator(store, "n1")
    fifth = (await one.auto_assign(num4=5, handle_id="h", pools4=["a"])).ipv4[4]
    await one.auto_assign(num4=1, handle_id="t", pools4=["t"], intended_use="Tunnel")
    await one.release_by_handle("t")
    first, second = (key for key in await blocks_of(store, "n1") if "10.1." in key)
    pool = await client.get("IPPool", "a")
    assert pool is not None
    await client.update(replace(pool, spec=replace(pool.spec, node_selector="rack == 'r9'")))
    await one.release_ips([fifth])
    left = await blocks_of(store, "n1")
    assert (first in left) != (second in left)
    await one.auto_assign(num4=1, handle_id="i")
    assert any("10.3." in key for key in await blocks_of(store, "n1"))
    await one.release_by_handle("h")
    assert not any("10.1." in key for key in await blocks_of(store, "n1"))


async def test_i7_disabled_and_deleted_pools(store: Store) -> None:
    """I7: nothing new comes from them, what is there can be released, and another block size has to wait for that."""
    client = await cluster(store, pools=TWO_BLOCKS)
    one = Allocator(store, "n1")
    address = (await one.auto_assign(num4=1, handle_id="h")).ipv4[0]
    await client.delete("IPPool", "amber")
    with pytest.raises(NoPoolError):
        await one.auto_assign(num4=1, handle_id="i")
    block = next(iter((await snapshot.read(store)).blocks.values()))
    assert block.affinity is None
    assert (await one.attributes(address)).handle_id == "h"
    with pytest.raises(InvalidInputError):
        await client.create(make("IPPool", "new", {"cidr": "10.1.0.0/28", "blockSize": 29})[1])
    assert await one.release_by_handle("h") == [address]
    assert (await snapshot.read(store)).blocks == {}
    await client.create(make("IPPool", "new", {"cidr": "10.1.0.0/28", "blockSize": 29})[1])


async def test_i8_block_limit(store: Store) -> None:
    """I8: the smaller of the two caps counts; without any it is twenty."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/24", "blockSize": 30}})
    one = Allocator(store, "n1")
    await one.set_config(IPAMConfig(strict_affinity=True, max_blocks_per_host=2))
    await one.auto_assign(num4=8, handle_id="h")
    with pytest.raises(BlockLimitError, match="owns 2 IPv4 blocks of amber"):
        await one.auto_assign(num4=1, handle_id="h")
    await one.set_config(IPAMConfig(strict_affinity=True, max_blocks_per_host=5))
    with pytest.raises(BlockLimitError, match="may own 3"):
        await one.auto_assign(num4=8, handle_id="h", max_blocks=3)
    await one.set_config(IPAMConfig(strict_affinity=True))
    with pytest.raises(BlockLimitError, match="may own 20"):
        await one.auto_assign(num4=100, handle_id="h")


# I10 to I13: release


async def test_i10_cooldown(store: Store) -> None:
    """I10: a released address is not handed out before its time; releasing it again finds nothing."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/30", "blockSize": 30}})
    clock = Clock()
    one = Allocator(store, "n1", now=clock.now, nanoseconds=clock.nanoseconds)
    await one.set_config(IPAMConfig(strict_affinity=True, cooldown_seconds=10))
    await one.auto_assign(num4=4, handle_id="h")
    await one.release_ips(["10.1.0.1"])
    assert (await one.auto_assign(num4=1, handle_id="i")).ipv4 == []
    assert (await one.release_ips(["10.1.0.1"])).unallocated == ("10.1.0.1",)
    with pytest.raises(NotAllocatedError):
        await one.attributes("10.1.0.1")
    clock.forward(seconds=9)
    assert (await one.auto_assign(num4=1, handle_id="i")).ipv4 == []
    clock.forward(seconds=1)
    assert (await one.auto_assign(num4=1, handle_id="i")).ipv4 == ["10.1.0.1"]


async def test_i10_idle_blocks(store: Store) -> None:
    """I10: what has cooled down in a block that nobody writes is freed by a pass; the next pass writes nothing."""
    await cluster(store, pools=TWO_BLOCKS)
    clock = Clock()
    one = Allocator(store, "n1", now=clock.now, nanoseconds=clock.nanoseconds)
    await one.set_config(IPAMConfig(strict_affinity=True, cooldown_seconds=10))
    done = await one.auto_assign(num4=2, handle_id="h")
    await one.release_by_handle("h")
    assert await one.free_cooled() == 0
    clock.forward(seconds=10)
    assert await one.free_cooled() == 1
    assert (await read(store, BlockKey(done.families[4].blocks[0]))).empty
    before = (await store.list("/calico/")).revision
    assert await one.free_cooled() == 0
    assert (await store.list("/calico/")).revision == before


async def test_i11_guarded_release(store: Store) -> None:
    """I11: a wrong handle or an old sequence number frees nothing, also for the same handle and after re-creation."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/30", "blockSize": 30}})
    one = Allocator(store, "n1")
    address = (await one.auto_assign(num4=1, handle_id="h")).ipv4[0]
    block: Block = await read(store, BlockKey("10.1.0.0/30"))
    old = block.sequence_number_for_allocation[0]
    with pytest.raises(ReleaseConflictError, match="handle"):
        await one.release_ips([ReleaseRequest(address, "other")])
    await one.release_by_handle("h")
    await one.release_host_affinities()
    assert await read(store, BlockKey("10.1.0.0/30")) is None
    await one.auto_assign(num4=1, handle_id="h")
    with pytest.raises(ReleaseConflictError, match="sequence number"):
        await one.release_ips([ReleaseRequest(address, "h", old)])
    block = await read(store, BlockKey("10.1.0.0/30"))
    done = await one.release_ips([ReleaseRequest(address, "h", block.sequence_number_for_allocation[0])])
    assert done.unallocated == ()


async def test_i12_many_addresses(store: Store) -> None:
    """I12: over several blocks, with duplicates and free ones; also where no pool is left to find the block by."""
    client = await cluster(store, pools={"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}})
    one = Allocator(store, "n1")
    got = (await one.auto_assign(num4=10, handle_id="h")).ipv4
    done = await one.release_ips([got[0], got[9], got[0], "192.0.2.1"])
    assert done.unallocated == ("192.0.2.1",)
    assert [request.address for request in done.processed] == [got[0], got[9], got[0]]
    assert sorted(await one.ips_by_handle("h")) == sorted(got[1:9])
    await client.delete("IPPool", "amber")
    assert (await one.release_ips([got[5]])).unallocated == ()
    assert (await one.release_ips([got[5]])).unallocated == (got[5],)


async def test_i12_more_handles_than_one_transaction_takes(store: Store) -> None:
    """I12: a block with hundreds of owners can be released in one call."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/24", "blockSize": 24}})
    one = Allocator(store, "n1")
    addresses = [(await one.auto_assign(num4=1, handle_id=f"h{i}")).ipv4[0] for i in range(130)]
    await one.release_ips(addresses)
    assert (await snapshot.read(store, snapshot.EVERYTHING)).handles == {}


async def test_i13_handles(store: Store) -> None:
    """I13: counts go up and down with what is assigned, the handle goes with the last, and is then unknown."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}})
    one = Allocator(store, "n1")
    got = (await one.auto_assign(num4=6, handle_id="h")).ipv4
    handle = await read(store, HandleKey("h"))
    assert sorted(handle.blocks.values()) == [2, 4]
    await one.release_ips(got[:1])
    assert sum((await read(store, HandleKey("h"))).blocks.values()) == 5
    assert sorted(await one.release_by_handle("h")) == sorted(got[1:])
    assert await read(store, HandleKey("h")) is None
    with pytest.raises(HandleNotFoundError):
        await one.release_by_handle("h")
    with pytest.raises(HandleNotFoundError):
        await one.ips_by_handle("h")


async def test_i13_handle_over_many_blocks(store: Store) -> None:
    """I13: more blocks than one transaction takes are released all the same."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/24", "blockSize": 32}})
    one = Allocator(store, "n1")
    await one.set_config(IPAMConfig(strict_affinity=True, max_blocks_per_host=200))
    got = (await one.auto_assign(num4=150, handle_id="h")).ipv4
    assert len(set(got)) == 150
    assert sorted(await one.release_by_handle("h")) == sorted(got)


async def test_i13_handle_with_nonsense_in_it(store: Store) -> None:
    """I13: an entry that is no CIDR, or names no block, does not keep the others from being released."""
    await cluster(store, pools=SLASH24)
    one = Allocator(store, "n1")
    done = await one.auto_assign(num4=1, handle_id="h")
    found = await read(store, HandleKey("h"))
    odd = replace(found, blocks={**found.blocks, "nonsense": 1, "10.9.0.0/26": 1})
    await store.put(path(HandleKey("h")), codec.encode(odd))
    assert await one.ips_by_handle("h") == done.ipv4
    assert await one.release_by_handle("h") == done.ipv4


async def test_i13_handle_ids(store: Store) -> None:
    """I13: what follows a carriage return is cut off; a slash is refused before anything is written."""
    await cluster(store, pools=SLASH24)
    one = Allocator(store, "n1")
    await one.auto_assign(num4=1, handle_id="net.1\r\neth0")
    assert len(await one.ips_by_handle("net.1")) == 1
    with pytest.raises(InvalidInputError, match="handle"):
        await one.auto_assign(num4=1, handle_id="a/b")


# I14 to I16: given addresses, reservations, blocks without addresses


async def test_i14_given_address(store: Store) -> None:
    """I14: in and outside the pool, twice, in another host's block, in a new block, for a wrong use."""
    await cluster(
        store,
        pools={
            "amber": {"cidr": "10.1.0.0/24", "blockSize": 29, "nodeSelector": "no == 'body'"},
            "t": {"cidr": "10.2.0.0/24", "allowedUses": ["Tunnel"]},
        },
        reservations={"kept": ["10.1.0.0/28"]},
    )
    one, two = calico(store, "n1"), calico(store, "n2")
    await one.assign("10.1.0.13", "h", {"node": "n1", "pod": "p", "namespace": "shop"})
    assert (await read(store, BlockKey("10.1.0.8/29"))).affinity == "host:n1"
    with pytest.raises(AddressTakenError, match="pod shop/p on node n1"):
        await two.assign("10.1.0.13", "i")
    await two.assign("10.1.0.14", "i")
    with pytest.raises(AddressNotInPoolError, match=r"192\.0\.2\.1"):
        await one.assign("192.0.2.1", "h")
    with pytest.raises(WrongUseError):
        await one.assign("10.2.0.1", "h", intended_use="Workload")
    await one.set_config(IPAMConfig(strict_affinity=True))
    with pytest.raises(ForeignBlockError, match="host:n1"):
        await two.assign("10.1.0.15", "i")
    with pytest.raises(InvalidInputError, match="address"):
        await one.assign("10.1.0", "h")


async def test_i15_reservations(store: Store) -> None:
    """I15: reserved addresses are passed over, wholly reserved blocks never claimed."""
    await cluster(
        store,
        pools={"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}},
        reservations={"a": ["10.1.0.0/31", "10.1.0.8/30"], "b": ["10.1.0.2/31", "10.1.0.13/32"]},
    )
    done = await Allocator(store, "n1").auto_assign(num4=16, handle_id="h")
    expected = {f"10.1.0.{n}" for n in (4, 5, 6, 7, 12, 14, 15)}
    assert set(done.ipv4) == expected
    assert "reserved by a, b" in done.messages[0]
    assert set((await snapshot.read(store)).blocks) == {"10.1.0.4/30", "10.1.0.12/30"}


async def test_i16_ensure_block(store: Store) -> None:
    """I16: makes a block and assigns nothing; the next call and the next pod find that same block."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/24"}, "six": {"cidr": "fd00::/112"}})
    one = Allocator(store, "n1")
    cidr = await one.ensure_block(4)
    assert await one.ensure_block(4) == cidr
    block = await read(store, BlockKey(cidr))
    assert block.empty
    assert (await one.auto_assign(num4=1, handle_id="h")).families[4].blocks == [cidr]
    assert ipaddress.ip_network(await one.ensure_block(6)).prefixlen == 122
    with pytest.raises(WrongUseError):
        await one.ensure_block(4, intended_use="LoadBalancer")


# I17 to I19: affinities, hosts, settings


async def test_i17_claim_and_release(store: Store) -> None:
    """I17: whole blocks, conflicts, too small, outside, only if empty."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}})
    one, two = Allocator(store, "n1"), Allocator(store, "n2")
    assert await one.claim_affinity("10.1.0.0/29") == (["10.1.0.0/30", "10.1.0.4/30"], [])
    assert await two.claim_affinity("10.1.0.0/28") == (["10.1.0.8/30", "10.1.0.12/30"], ["10.1.0.0/30", "10.1.0.4/30"])
    assert await one.claim_affinity("10.1.0.0/30") == (["10.1.0.0/30"], [])
    with pytest.raises(TooSmallError):
        await one.claim_affinity("10.1.0.0/31")
    with pytest.raises(AddressNotInPoolError):
        await one.claim_affinity("192.0.2.0/28")
    with pytest.raises(InvalidInputError, match="cidr"):
        await one.claim_affinity("10.1.0.1/30")
    await one.assign("10.1.0.1", "h")
    with pytest.raises(BlockNotEmptyError, match="1 addresses"):
        await one.release_affinity("10.1.0.0/29", must_be_empty=True)
    assert await blocks_of(store, "n1") == [path(BlockAffinityKey("n1", "10.1.0.0/30"))]
    await one.release_affinity("10.1.0.0/29")
    assert await blocks_of(store, "n1") == []
    assert (await read(store, BlockKey("10.1.0.0/30"))).affinity is None


@pytest.mark.parametrize("state", ["pending", "pendingDeletion", "confirmed", ""])
async def test_i17_leftovers_of_a_dead_host(store: Store, state: str) -> None:
    """I17: whatever a dead process left of its claim, with or without the block, the next assignment works."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/30", "blockSize": 30}})
    key = BlockAffinityKey("n1", "10.1.0.0/30")
    value = codec.encode(BlockAffinity(state=state)) if state else b""
    await store.put(path(key), value)
    one = Allocator(store, "n1")
    assert (await one.auto_assign(num4=1, handle_id="h")).ipv4 == ["10.1.0.0"]
    assert (await read(store, key)).state == "confirmed"
    await store.put(path(key), value)
    assert (await one.auto_assign(num4=1, handle_id="h")).ipv4 == ["10.1.0.1"]
    assert (await read(store, key)).state == "confirmed"


async def test_i18_hosts_and_pools(store: Store) -> None:
    """I18: giving up all blocks of a host or pool may be repeated, and keeps addresses; the old marker goes."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}})
    one = Allocator(store, "n1")
    await one.auto_assign(num4=5, handle_id="h")
    await store.put(path(IPAMHostKey("n1")), b"")
    admin = Allocator(store, "admin")
    for _ in range(2):
        await admin.remove_host("n1")
        assert await blocks_of(store, "n1") == []
    assert await store.get(path(IPAMHostKey("n1"))) is None
    assert len(await one.ips_by_handle("h")) == 5
    long = "n" * 200
    await cluster(store, nodes=[long])
    await Allocator(store, long).auto_assign(num4=1, handle_id="i")
    await admin.release_pool_affinities("10.1.0.0/28")
    assert await blocks_of(store, long) == []
    await admin.release_pool_affinities("10.1.0.0/28")


async def test_i18_a_name_that_begins_another(store: Store) -> None:
    """I18: removing n1 leaves the blocks of n10 alone."""
    await cluster(store, nodes=["n1", "n10"], pools={"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}})
    await Allocator(store, "n1").auto_assign(num4=1, handle_id="h")
    await Allocator(store, "n10").auto_assign(num4=1, handle_id="i")
    await Allocator(store, "admin").remove_host("n1")
    assert len(await blocks_of(store, "n10")) == 1


async def test_i19_settings(store: Store) -> None:
    """I19: reading gives the defaults and writes nothing; contradictions are refused; a change takes effect at once."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/30", "blockSize": 30}})
    one, two = calico(store, "n1"), calico(store, "n2")
    assert await one.config() == CALICO_DEFAULTS
    assert await store.get(path(IPAMConfigKey())) is None
    with pytest.raises(RefusedConfigError, match="auto_allocate_blocks"):
        await one.set_config(IPAMConfig(auto_allocate_blocks=False))
    with pytest.raises(RefusedConfigError, match="maxBlocksPerHost"):
        await one.set_config(IPAMConfig(max_blocks_per_host=3))
    await one.auto_assign(num4=1, handle_id="h")
    await one.set_config(IPAMConfig(strict_affinity=True))
    assert (await two.auto_assign(num4=1, handle_id="i")).ipv4 == []
    await one.set_config(IPAMConfig())
    assert len((await two.auto_assign(num4=1, handle_id="i")).ipv4) == 1


async def test_i19_settings_that_cannot_be_read(store: Store) -> None:
    """I19: nothing is assigned by guesswork; the error names the key, and storing settings anew mends it."""
    await cluster(store, pools=SLASH24)
    one = Allocator(store, "n1")
    await store.put(path(IPAMConfigKey()), b"nonsense")
    with pytest.raises(UndecodableError, match="/calico/ipam/v2/config"):
        await one.auto_assign(num4=1, handle_id="h")
    assert path(IPAMConfigKey()) in (await snapshot.read(store)).undecodable
    await one.set_config(IPAMConfig(strict_affinity=True))
    assert (await one.auto_assign(num4=1, handle_id="h")).complete


async def test_i19_no_automatic_blocks(store: Store) -> None:
    """I19: without automatic blocks only claimed ones are used, and the error says so."""
    await cluster(store, pools=TWO_BLOCKS)
    one = Allocator(store, "n1")
    await one.set_config(IPAMConfig(strict_affinity=True, auto_allocate_blocks=False))
    with pytest.raises(NoBlockError, match="amber"):
        await one.auto_assign(num4=1, handle_id="h")
    await one.claim_affinity("10.1.0.4/30")
    assert (await one.auto_assign(num4=1, handle_id="h")).ipv4 == ["10.1.0.4"]


# I21 to I24


async def test_i21_utilisation(store: Store) -> None:
    """I21: with reservations, several pools, no blocks and blocks outside all pools."""
    client = await cluster(
        store,
        pools={
            "a": {"cidr": "10.1.0.0/28", "blockSize": 30},
            "b": {"cidr": "10.2.0.0/28", "blockSize": 30},
            "c": {"cidr": "10.3.0.0/28", "blockSize": 30},
        },
        reservations={"kept": ["10.1.0.0/30"]},
    )
    one = Allocator(store, "n1")
    await one.assign("10.1.0.1", "h")
    await one.auto_assign(num4=2, handle_id="h", pools4=["a"])
    await one.auto_assign(num4=1, handle_id="h", pools4=["c"])
    await client.delete("IPPool", "c")
    usage = report.usage(await snapshot.read(store))
    first, second = usage.pools
    assert (first.total, first.in_use, first.reserved, first.available) == (16, 3, 4, 10)
    assert [(b.total, b.in_use, b.reserved, b.available) for b in first.blocks if b.cidr == "10.1.0.0/30"] == [
        (4, 1, 4, 0)
    ]
    assert (second.total, second.in_use, second.available, second.blocks) == (16, 0, 16, [])
    assert [block.in_use for block in usage.orphaned.blocks] == [1]


async def test_i22_many_hosts_for_few_blocks(store: Store) -> None:
    """I22: 32 hosts that race for 16 blocks are all served when they may borrow; each block has one owner."""
    hosts = [f"host{n}" for n in range(32)]
    await cluster(store, nodes=hosts, pools={"amber": {"cidr": "10.1.0.0/26", "blockSize": 30}})
    done = await asyncio.gather(
        *(calico(store, host).auto_assign(num4=1, handle_id=host, attributes={"node": host}) for host in hosts)
    )
    assert len({address for one in done for address in one.ipv4}) == 32
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    owners = {key.cidr: key.host for key, value in picture.affinities.items() if value.state == "confirmed"}
    assert len(owners) == len(picture.affinities) == 16
    assert {block.cidr: block.host() for block in picture.blocks.values()} == owners


async def test_i22_one_host_many_requests(store: Store) -> None:
    """I22: requests of one host, from one process or several, settle on one block."""
    await cluster(store, pools={"amber": {"cidr": "10.1.0.0/24"}})
    allocators = [Allocator(store, "n1") for _ in range(8)]
    done = await asyncio.gather(
        *(a.auto_assign(num4=1, handle_id=f"h{i}.{j}") for i, a in enumerate(allocators) for j in range(3))
    )
    assert len({address for one in done for address in one.ipv4}) == 24
    assert len((await snapshot.read(store)).blocks) == 1


async def test_i22_reclaims_empty_blocks(store: Store) -> None:
    """I22: an empty block of another host is taken over after a minute, not before, and never one in use."""
    await cluster(store, pools=TWO_BLOCKS)
    clock = Clock()
    one = Allocator(store, "n1", now=clock.now, nanoseconds=clock.nanoseconds)
    two = Allocator(store, "n2", now=clock.now, nanoseconds=clock.nanoseconds)
    await one.claim_affinity("10.1.0.0/29")
    await one.assign("10.1.0.5", "h")
    assert (await two.auto_assign(num4=1, handle_id="i")).ipv4 == []
    clock.forward(seconds=60)
    assert (await two.auto_assign(num4=5, handle_id="i")).ipv4 == [f"10.1.0.{n}" for n in range(4)]
    assert await blocks_of(store, "n1") == [path(BlockAffinityKey("n1", "10.1.0.4/30"))]


async def test_i22_release_against_claim(store: Store) -> None:
    """I22: a block given up and wanted at once by many ends with one owner or none, and no lost address."""
    await cluster(store, nodes=[f"n{n}" for n in range(6)], pools=TWO_BLOCKS)
    one = Allocator(store, "n0")
    await one.auto_assign(num4=1, handle_id="h")
    calls = [calico(store, f"n{n}").auto_assign(num4=1, handle_id=f"h{n}") for n in range(1, 6)]
    await asyncio.gather(one.release_host_affinities(), *calls)
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    held = [str(address) for block in picture.blocks.values() for address, _ in block.assignments()]
    assert len(held) == len(set(held)) == 6


async def test_i17_stale_claim_of_another_hosts_block(store: Store) -> None:
    """I17: releasing a claim on somebody else's block deletes the claim only, and says whose the block is."""
    await cluster(store, pools=TWO_BLOCKS)
    await Allocator(store, "n1").claim_affinity("10.1.0.0/30")
    stale = BlockAffinityKey("n2", "10.1.0.0/30")
    await store.put(path(stale), codec.encode(BlockAffinity()))
    async with Allocator(store, "n2")._session(live=False) as session:
        with pytest.raises(ClaimConflictError, match="host:n1"):
            await release_affinity(session, stale, must_be_empty=False)
    assert await read(store, stale) is None
    assert (await read(store, BlockKey("10.1.0.0/30"))).affinity == "host:n1"


async def test_i23_attributes(store: Store) -> None:
    """I23: who holds an address; nobody is an error of its own."""
    await cluster(store, pools=SLASH24)
    one = Allocator(store, "n1")
    address = (await one.auto_assign(num4=1, handle_id="h", attributes={"node": "n1", "pod": "p"})).ipv4[0]
    found = await one.attributes(address)
    assert (found.handle_id, found.secondary) == ("h", {"node": "n1", "pod": "p"})
    with pytest.raises(NotAllocatedError):
        await one.attributes("10.1.0.255")


async def test_i24_quick_with_many_pools(store: Store) -> None:
    """I24: one address of a large cluster within Calico's own bound of five seconds, and far below."""
    pools = {f"p{n:03}": {"cidr": f"10.{n}.0.0/16", "blockSize": 32 if n % 2 else 20} for n in range(60)}
    await cluster(store, pools=pools)
    begin = time.process_time()
    one = Allocator(store, "n1")
    done = await one.auto_assign(num4=64, handle_id="h")
    await one.release_by_handle("h")
    assert len(done.ipv4) == 64
    assert time.process_time() - begin < 5


async def test_node_deletion_gives_everything_back(store: Store) -> None:
    """Deleting a node releases its tunnel addresses and blocks; addresses of others in its blocks stay."""
    client = await cluster(store, pools=TWO_BLOCKS)
    one = calico(store, "n1")
    await one.claim_affinity("10.1.0.0/29")
    tunnel = (await one.auto_assign(num4=1, handle_id="ipip-tunnel-addr-n1", intended_use="Tunnel")).ipv4[0]
    node = await client.get("Node", "n1")
    assert node is not None
    await client.update(replace(node, spec=make("Node", "n1", {"bgp": {"ipv4IPIPTunnelAddr": tunnel}})[1].spec))
    guest = (await calico(store, "n2").auto_assign(num4=1, handle_id="guest")).ipv4[0]
    await client.delete("Node", "n1")
    assert await store.get(path(ResourceKey("Node", "n1"))) is None
    assert await blocks_of(store, "n1") == []
    assert await one.ips_by_handle("guest") == [guest]
    with pytest.raises(HandleNotFoundError):
        await one.ips_by_handle("ipip-tunnel-addr-n1")
    with pytest.raises(NotFoundError):
        await client.delete("Node", "n1")


async def test_virtual_owner(store: Store) -> None:
    """A load balancer's addresses come from its own pools and blocks, without any Node."""
    await cluster(
        store, nodes=(), pools={"lb": {"cidr": "10.1.0.0/28", "blockSize": 30, "allowedUses": ["LoadBalancer"]}}
    )
    lb = Allocator(store, "load-balancer", virtual=True)
    done = await lb.auto_assign(num4=1, handle_id="lb-1", intended_use="LoadBalancer")
    assert (await read(store, BlockKey(done.families[4].blocks[0]))).affinity == "virtual:load-balancer"
    assert len((await store.list(affinity_prefix("load-balancer", affinity_type="virtual"))).items) == 1


async def test_dual_stack_is_two_independent_requests(store: Store) -> None:
    """A family without a pool fails the request; the other family's address comes with the error, to be freed."""
    await cluster(store, pools=SLASH24)
    with pytest.raises(NoPoolError) as caught:
        await Allocator(store, "n1").auto_assign(num4=1, num6=1, handle_id="h")
    assert caught.value.partial is not None
    assert len(caught.value.partial.ipv4) == 1
