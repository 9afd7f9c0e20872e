"""The check, and the commands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from calipy.cli import ipam as commands
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.ipam import BlockAffinity, Handle
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, path
from calipy.datastore.memory import MemoryStore
from calipy.ipam import snapshot
from calipy.ipam.allocator import Allocator
from calipy.ipam.audit import audit
from tests.support.ipam import NOW, cluster, read
from tests.support.objects import make, pod

POOLS = {"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}}


async def kinds(store: MemoryStore) -> dict[str, str]:
    """Kind of each finding and its text."""
    found = audit(await snapshot.read(store, snapshot.EVERYTHING), now=NOW)
    return {finding.kind: finding.text for finding in found.findings}


async def start(store: MemoryStore) -> tuple[Client, Allocator]:
    client = await cluster(store, pools=POOLS)
    return client, Allocator(store, "n1")


async def test_nothing_wrong() -> None:
    """An address with its handle, endpoint, block and affinity gives no finding."""
    store = MemoryStore()
    client, one = await start(store)
    address = (await one.auto_assign(num4=1, handle_id="h", attributes={"node": "n1", "pod": "p"})).ipv4[0]
    await client.create(pod("p", address)[1])
    assert await kinds(store) == {}


async def test_each_finding_tells_its_evidence() -> None:
    """What Calico's check finds, and what it does not look at, in words with names and places."""
    store = MemoryStore()
    client, one = await start(store)
    await one.auto_assign(num4=1, handle_id="h", attributes={"node": "n1", "pod": "gone", "namespace": "shop"})
    await client.create(pod("p", "10.1.0.15")[1])
    await client.create(pod("q", "192.0.2.7")[1])
    await store.put(path(HandleKey("ghost")), codec.encode(Handle(blocks={"10.1.0.0/30": 2})))
    await store.put(path(BlockAffinityKey("n2", "10.1.0.0/30")), codec.encode(BlockAffinity(state="pending")))
    await store.put(path(BlockAffinityKey("n2", "10.1.0.4/30")), codec.encode(BlockAffinity()))
    await store.put(path(BlockKey("10.2.0.0/30")), b"nonsense")
    found = await kinds(store)
    assert "pod shop/gone on node n1" in found["leaked address"]
    assert "10.1.0.15" in found["used but not allocated"]
    assert "192.0.2.7" in found["used outside all pools"]
    assert "ghost" in found["handle without address"]
    assert "n2 on 10.1.0.0/30 is pending" in found["unfinished affinity"]
    assert "10.1.0.4/30" in found["affinity and block disagree"]
    assert "10.2.0.0-30" in found["unreadable object"]


async def test_handles_and_blocks_that_disagree() -> None:
    """A handle that is missing or counts too little, a block without its affinity, outside pools, overlapping."""
    store = MemoryStore()
    client, one = await start(store)
    cidr = (await one.auto_assign(num4=2, handle_id="h")).families[4].blocks[0]
    await store.put(path(HandleKey("h")), codec.encode(Handle(blocks={cidr: 1})))
    assert "counts 1" in (await kinds(store))["handle counts too little"]
    await store.delete(path(HandleKey("h")))
    assert "2 addresses" in (await kinds(store))["address without handle"]
    await store.delete(path(BlockAffinityKey("n1", cidr)))
    assert "host:n1" in (await kinds(store))["block without affinity"]
    block = await read(store, BlockKey(cidr))
    half = replace(block, cidr=cidr.replace("/30", "/31"), allocations=(None, None), unallocated=(0, 1), attributes=())
    await store.put(path(BlockKey(half.cidr)), codec.encode(half))
    assert "overlap" in (await kinds(store))["blocks overlap"]
    await client.delete("IPPool", "amber")
    assert "no pool" in (await kinds(store))["block outside all pools"]


async def test_disabled_pools_are_none_for_addresses_that_nobody_holds() -> None:
    """As with Calico: what is held in a disabled pool is fine, what is not lies outside; the pool is not counted."""
    store = MemoryStore()
    client, one = await start(store)
    address = (await one.auto_assign(num4=1, handle_id="h", attributes={"node": "n1"})).ipv4[0]
    await client.create(pod("p", address)[1])
    await client.create(pod("q", "10.1.0.15")[1])
    pool = await client.get("IPPool", "amber")
    assert pool is not None
    await client.update(replace(pool, spec=replace(pool.spec, disabled=True)))
    result = audit(await snapshot.read(store, snapshot.EVERYTHING), now=NOW)
    assert (result.summary["pools"], result.summary["used_outside_pools"], result.summary["problems"]) == (0, 1, 1)


async def test_tunnels_of_both_families_use_addresses() -> None:
    """An IPv6 tunnel address counts as used as well."""
    store = MemoryStore()
    client = await cluster(store, nodes=(), pools={"six": {"cidr": "fd00::/112"}})
    spec = {"ipv6VXLANTunnelAddr": "fd00::5"}
    await client.create(make("Node", "n1", spec)[1])
    await Allocator(store, "n1").assign("fd00::5", "vxlan-v6-tunnel-addr-n1", {"node": "n1"})
    assert await kinds(store) == {}


# The commands


async def say(store: MemoryStore, *arguments: str) -> commands.Output:
    return await commands.invoke(commands.Place(store, now=lambda: NOW), arguments)


async def test_show() -> None:
    """Tables as calicoctl draws them, and the same figures as JSON."""
    store = MemoryStore()
    _, one = await start(store)
    await one.auto_assign(num4=2, handle_id="h", attributes={"node": "n1", "pod": "p", "namespace": "shop"})
    output = await say(store, "show", "--show-blocks")
    assert output.rows[0] == ("IP Pool", "10.1.0.0/28", "16", "2 (12%)", "0 (0%)", "14 (88%)")
    assert output.rows[1][0] == "Block"
    lines = output.shown("table").splitlines()
    assert lines[0].startswith("+---")
    assert len({len(line) for line in lines}) == 1
    document: Any = json.loads(output.shown("json"))
    assert document[0]["blocks"][0] | {"cidr": ""} == {
        "cidr": "", "affinity": "host:n1", "total": 4, "inUse": 2, "reserved": 0, "free": 2,
    }  # fmt: skip


async def test_show_address() -> None:
    """Who has it, in which block; nobody is an answer, nonsense is an error."""
    store = MemoryStore()
    _, one = await start(store)
    got = (await one.auto_assign(num4=1, handle_id="h", attributes={"node": "n1", "pod": "p"})).ipv4[0]
    assert "pod: p" in (await say(store, "show", "--ip", got)).text
    assert "not assigned" in (await say(store, "show", "--ip", "10.1.0.1")).text
    assert (await say(store, "show", "--ip", "10.1")).exit_code == 1


async def test_vast_pools_are_shown_in_powers_of_ten() -> None:
    """As calicoctl does."""
    store = MemoryStore()
    await cluster(store, pools={"six": {"cidr": "fd00::/48"}})
    assert (await say(store, "show")).rows[0][2] == "1.2089e+24"


@pytest.mark.parametrize("arguments", [(), ("--strictaffinity=maybe",), ("--max-blocks-per-host=many",)])
async def test_configure_refuses_what_says_nothing(arguments: tuple[str, ...]) -> None:
    """Without a setting, or with one that is no value, nothing is written."""
    store = MemoryStore()
    await start(store)
    before = (await store.list("/calico/")).revision
    assert (await say(store, "configure", *arguments)).exit_code == 1
    assert (await store.list("/calico/")).revision == before


@pytest.mark.parametrize("argument", ["--max-blocks-per-host=-1", "--ip-cooldown-seconds=1201"])
async def test_configure_tells_what_is_out_of_range(argument: str) -> None:
    """Numbers out of range are stored, as by Calico, and said to be so."""
    store = MemoryStore()
    await start(store)
    await say(store, "configure", "--strictaffinity=true")
    output = await say(store, "configure", argument)
    assert output.exit_code == 0
    assert f"{argument} is outside" in output.text


async def test_configure_keeps_what_it_is_not_told() -> None:
    """Settings, and fields of newer releases, survive."""
    store = MemoryStore()
    await start(store)
    await store.put("/calico/ipam/v2/config", b'{"strict_affinity":true,"auto_allocate_blocks":true,"newer":1}')
    assert (await say(store, "configure", "--max-blocks-per-host=3")).exit_code == 0
    kv = await store.get("/calico/ipam/v2/config")
    assert kv is not None
    assert json.loads(kv.value) == {
        "strict_affinity": True, "auto_allocate_blocks": True, "maxBlocksPerHost": 3, "newer": 1,
        "kubeVirtVMAddressPersistence": "Enabled",
    }  # fmt: skip
    output = await say(store, "show", "--show-configuration")
    assert ("MaxBlocksPerHost", "3") in output.rows


async def test_release_and_check() -> None:
    """A leaked address is found, released, and gone."""
    store = MemoryStore()
    _, one = await start(store)
    got = (await one.auto_assign(num4=1, handle_id="h")).ipv4[0]
    assert "leaked address" in (await say(store, "check", "--show-all-ips")).text
    assert (await say(store, "release", "--ip", got)).exit_code == 0
    assert (await say(store, "release", "--ip", got)).exit_code == 1
    assert (await say(store, "check", "-o", "json")).document["summary"]["problems"] == 0


async def test_split_is_all_or_nothing() -> None:
    """Needs the lock, a power of two and parts no smaller than a block; then whole and parts change places at once."""
    store = MemoryStore()
    client, one = await start(store)
    await one.auto_assign(num4=1, handle_id="h")
    before = await store.get("/calico/resources/v3/projectcalico.org/ippools/amber")
    assert (await say(store, "split", "2", "--name", "amber")).exit_code == 1
    information = await client.get("ClusterInformation", "default")
    assert information is not None
    await client.update(replace(information, spec=replace(information.spec, datastore_ready=False)))
    for number in ("3", "8", "0"):
        assert (await say(store, "split", number, "--cidr", "10.1.0.0/28")).exit_code == 1
    assert await store.get("/calico/resources/v3/projectcalico.org/ippools/amber") == before
    place = commands.Place(store, now=lambda: NOW, settle=0)
    assert (await commands.invoke(place, ["split", "4", "--name", "amber"])).exit_code == 0
    assert [p.spec.cidr for p in await client.list("IPPool")] == [f"10.1.0.{n}/30" for n in (0, 4, 8, 12)]
    assert len((await one.auto_assign(num4=4, handle_id="h")).ipv4) == 4
