"""G7: the check finds everything, writes it down, and what it wrote is released with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from calipy.cli import ipam as commands
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.ipam import AllocationAttribute, Block, BlockAffinity, Handle
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, path
from calipy.datastore.memory import MemoryStore
from calipy.ipam.allocator import Allocator
from calipy.ipam.errors import NotAllocatedError
from tests.support.ipam import cluster, read
from tests.support.objects import pod

POOLS = {"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}}


async def say(store: MemoryStore, *arguments: str) -> commands.Output:
    return await commands.invoke(commands.Place(store), arguments)


async def start() -> tuple[MemoryStore, Client, Allocator]:
    store = MemoryStore()
    client = await cluster(store, pools=POOLS)
    await client.ensure_initialised()
    return store, client, Allocator(store, "n1")


async def lock(client: Client, *, locked: bool = True) -> None:
    found = await client.get("ClusterInformation", "default")
    assert found is not None
    await client.update(replace(found, spec=replace(found.spec, datastore_ready=not locked)))


async def held(allocator: Allocator, address: str) -> bool:
    try:
        await allocator.attributes(address)
    except NotAllocatedError:
        return False
    return True


async def put(store: MemoryStore, key: Any, value: Any) -> None:
    await store.put(path(key), codec.encode(value))


async def test_g7_check_finds_every_kind(tmp_path: Path) -> None:
    """G7: every rule of a block, of the users, of handles, affinities and pools, broken by hand, is found and told."""
    store, client, one = await start()
    leaked = (await one.auto_assign(num4=1, handle_id="h", attributes={"node": "n1", "pod": "gone"})).ipv4[0]
    await client.create(pod("inside", "10.1.0.15")[1])
    await client.create(pod("outside", "192.0.2.7")[1])
    await put(store, HandleKey("ghost"), Handle(blocks={"10.1.0.0/30": 2}))
    empty = Block(cidr="10.3.0.0/30", allocations=(None,) * 4, unallocated=(0, 1, 2, 3))
    owner = AllocationAttribute(handle_id="nobody")
    broken = {
        "10.3.0.0/30": {"allocations": (5, None, None, None), "unallocated": (1, 2, 3)},
        "10.3.0.4/30": {"attributes": (owner,)},
        "10.3.0.8/30": {
            "allocations": (0, None, None, None),
            "unallocated": (1, 2, 3),
            "attributes": (AllocationAttribute(released_at="2999-01-01T00:00:00Z"),),
        },
        "10.3.0.12/30": {"unallocated": (0, 1, 2, 3, 7)},
        "10.3.0.16/30": {"unallocated": (0, 1, 1, 2, 3)},
        "10.3.0.20/30": {"allocations": (0, None, None, None), "attributes": (owner,)},
        "10.3.0.24/30": {"unallocated": (1, 2, 3)},
    }
    for cidr, change in broken.items():
        await put(store, BlockKey(cidr), replace(empty, cidr=cidr, affinity="host:n2", **change))
    overlapping = replace(empty, cidr="10.3.0.0/29", allocations=(None,) * 8, unallocated=tuple(range(8)))
    await put(store, BlockKey("10.3.0.0/29"), overlapping)
    await put(store, BlockAffinityKey("n2", "10.1.0.0/30"), BlockAffinity(state="pending"))
    await put(store, BlockAffinityKey("n2", "10.1.0.4/30"), BlockAffinity())
    second = (await one.auto_assign(num4=1, handle_id="low", attributes={"node": "n1"})).families[4].blocks[0]
    await put(store, HandleKey("low"), Handle(blocks={second: 0, "10.3.0.0/30": 1}))
    await store.put(path(BlockKey("10.2.0.0/30")), b"nonsense")

    file = tmp_path / "report.json"
    output = await say(store, "check", "-o", str(file))
    assert output.exit_code == 0
    document = output.document
    kinds = {finding["kind"] for finding in document["findings"]}
    assert kinds == {
        "invalid block", "leaked address", "used but not allocated", "used outside all pools", "handle without address",
        "address without handle", "handle counts too little", "affinity and block disagree", "block without affinity",
        "unfinished affinity", "block outside all pools", "blocks overlap", "unreadable object",
    }  # fmt: skip
    texts = [finding["text"] for finding in document["findings"] if finding["kind"] == "invalid block"]
    for words in (
        "points to attribute 5", "is used by no address", "lies in the future", "is outside the block",
        "in the free list 2 times", "both free and allocated", "neither free nor allocated",
    ):  # fmt: skip
        assert any(words in text for text in texts), words
    report = json.loads(file.read_text())
    assert report["clusterGUID"]
    assert not report["allocations"][leaked][0]["inUse"]
    assert "ghost" in {handle["ID"] for handle in report["leakedHandles"]}


async def test_g7_release_of_what_all_reports_say(tmp_path: Path) -> None:
    """G7: what two reports agree on is released, guarded; what only one says, or what is in use by now, stays."""
    store, client, one = await start()
    attributes = {"node": "n1", "pod": "gone", "namespace": "shop"}
    stays, goes, used, again = [
        (await one.auto_assign(num4=1, handle_id=f"h{n}", attributes=attributes)).ipv4[0] for n in range(4)
    ]
    lb = Allocator(store, "load-balancer", virtual=True)
    service = (await lb.auto_assign(num4=1, handle_id="lb", attributes={"service": "web", "namespace": "shop"})).ipv4[0]
    await client.create(pod("stays", stays)[1])
    await put(store, HandleKey("ghost"), Handle(blocks={"10.1.0.0/30": 1}))
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    await say(store, "check", "-o", str(first))
    await client.delete("WorkloadEndpoint", "n1-k8s-stays-eth0", "shop")
    await lock(client)
    await say(store, "check", "-o", str(second))
    await client.create(pod("used", used)[1])
    await one.release_by_handle("h3")
    await one.assign(again, "h3", attributes)

    output = await say(store, "release", "--from-report", str(first), "--from-report", str(second))
    assert output.exit_code == 0, output.text
    assert f"released {goes}" in output.text
    assert "deleted handle ghost" in output.text
    assert await read(store, HandleKey("ghost")) is None
    assert not await held(one, goes)
    for address in (stays, used, again, service):
        assert await held(one, address), output.text
    assert f"left alone: {again}" in output.text
    assert "1 addresses and 1 handles released" in output.text


async def test_g7_reports_that_are_refused(tmp_path: Path) -> None:
    """G7: another cluster, another version, no lock, an older lock, or no report at all: nothing is released."""
    store, client, one = await start()
    address = (await one.auto_assign(num4=1, handle_id="h", attributes={"node": "n1", "pod": "gone"})).ipv4[0]
    file = tmp_path / "report.json"
    await say(store, "check", "-o", str(file))
    good = json.loads(file.read_text())

    async def refused(words: str, *more: str, **change: Any) -> None:
        file.write_text(json.dumps({**good, **change}))
        output = await say(store, "release", "--from-report", str(file), *more)
        assert output.exit_code == 1
        assert words in output.text, output.text
        assert await held(one, address)

    await refused("is not locked")
    await lock(client)
    await refused("under the present lock")
    await refused("is of cluster", "--force", clusterGUID="0123")
    await refused("was made by version", version="v3.30.0")
    await refused("is no report", allocations=7)
    file.write_text(json.dumps(good))
    assert (await say(store, "release", "--ip", address, "--from-report", str(file))).exit_code == 1
    await lock(client, locked=False)
    output = await say(store, "release", "--from-report", str(file), "--force")
    assert output.exit_code == 0
    assert not await held(one, address)


async def test_repair_leaves_addresses_of_services_alone() -> None:
    """Their users are not in the datastore: that nobody is seen to use them is no proof."""
    store, _, _ = await start()
    lb = Allocator(store, "load-balancer", virtual=True)
    await lb.auto_assign(num4=1, handle_id="lb-1", attributes={"service": "web"})
    assert (await say(store, "repair")).text == "nothing to repair"
