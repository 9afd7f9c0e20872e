"""Repair with proof and undo, and how long pools last."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from calipy.cli import ipam as commands
from calipy.datastore import codec
from calipy.datastore.ipam import AllocationAttribute, BlockAffinity, Handle
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, path
from calipy.datastore.memory import MemoryStore
from calipy.ipam import repair, snapshot
from calipy.ipam.allocator import Allocator
from calipy.ipam.audit import audit
from calipy.ipam.capacity import capacity
from tests.support.ipam import NOW, cluster, read
from tests.support.objects import make, pod

POOLS = {"amber": {"cidr": "10.1.0.0/28", "blockSize": 30}}
NONE = datetime.timedelta(0)


async def broken(store: MemoryStore) -> str:
    """One address in use, and around it every fault that repair knows; the address in use."""
    client = await cluster(store, pools=POOLS)
    one = Allocator(store, "n1")
    live = (await one.auto_assign(num4=1, handle_id="live", attributes={"node": "n1", "pod": "p"})).ipv4[0]
    await client.create(pod("p", live)[1])
    await one.auto_assign(num4=5, handle_id="leaked", attributes={"node": "n1", "pod": "gone"})
    await store.put(path(HandleKey("ghost")), codec.encode(Handle(blocks={"10.1.0.0/30": 2})))
    await store.put(path(HandleKey("live")), codec.encode(Handle(blocks={"10.1.0.0/30": 9})))
    await store.put(path(BlockAffinityKey("n2", "10.1.0.0/30")), codec.encode(BlockAffinity(state="pending")))
    cidr = min((await snapshot.read(store)).blocks)
    await store.put(path(BlockAffinityKey("n1", cidr)), codec.encode(BlockAffinity(state="pendingDeletion")))
    for key in list((await snapshot.read(store, snapshot.EVERYTHING)).affinities):
        if key.host == "n1" and key.cidr != cidr:
            await store.delete(path(key))
    block = await read(store, BlockKey(cidr))
    odd = replace(
        block,
        unallocated=(*block.unallocated, *block.unallocated[:1], 77),
        attributes=(*block.attributes, AllocationAttribute(handle_id="nobody")),
    )
    await store.put(path(BlockKey(cidr)), codec.encode(odd))
    return live


async def problems(store: MemoryStore) -> list[str]:
    return [f.text for f in audit(await snapshot.read(store, snapshot.EVERYTHING), now=NOW).findings]


async def state(store: MemoryStore) -> dict[str, bytes]:
    return {kv.key: kv.value for kv in (await store.list("/calico/ipam/")).items}


async def test_repair_leaves_nothing_to_find_and_can_be_undone() -> None:
    """All faults are mended, the address in use stays with its pod, and undo brings back every byte."""
    store = MemoryStore()
    live = await broken(store)
    before = await state(store)
    assert len(await problems(store)) > 6
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    steps = repair.plan(picture, now=NOW, cooldown=NONE)
    assert all(step.proof for step in steps)
    assert not any(live in step.frees for step in steps)
    assert await state(store) == before
    outcome = await repair.apply(store, picture, steps)
    assert outcome.skipped == []
    assert await problems(store) == []
    assert await Allocator(store, "n1").ips_by_handle("live") == [live]
    assert repair.plan(await snapshot.read(store, snapshot.EVERYTHING), now=NOW, cooldown=NONE) == []
    undone = await repair.undo(store, outcome.journal)
    assert undone.skipped == []
    assert await state(store) == before


async def test_an_address_that_is_used_by_now_is_not_freed() -> None:
    """Between plan and step a pod has come: the step is skipped, and says who uses the address."""
    store = MemoryStore()
    client = await cluster(store, pools=POOLS)
    address = (await Allocator(store, "n1").auto_assign(num4=1, handle_id="h")).ipv4[0]
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    steps = repair.plan(picture, now=NOW, cooldown=NONE)
    await client.create(pod("late", address)[1])
    outcome = await repair.apply(store, picture, steps)
    assert "Workload(shop/n1-k8s-late-eth0)" in outcome.skipped[0][1]
    assert (await Allocator(store, "n1").attributes(address)).handle_id == "h"


async def test_a_block_that_changed_meanwhile_is_left_alone() -> None:
    """A step rests on what the plan saw: a later write of anybody keeps it from being done."""
    store = MemoryStore()
    await cluster(store, pools=POOLS)
    one = Allocator(store, "n1")
    await one.auto_assign(num4=1, handle_id="h")
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    steps = repair.plan(picture, now=NOW, cooldown=NONE)
    await one.auto_assign(num4=1, handle_id="i")
    outcome = await repair.apply(store, picture, steps)
    assert all("meanwhile" in why for _, why in outcome.skipped)
    assert outcome.done == []


async def test_undo_does_not_overwrite_others() -> None:
    """What somebody has written since is not taken back."""
    store = MemoryStore()
    await cluster(store, pools=POOLS)
    one = Allocator(store, "n1")
    await one.auto_assign(num4=1, handle_id="h")
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    outcome = await repair.apply(store, picture, repair.plan(picture, now=NOW, cooldown=NONE))
    assert outcome.done
    got = (await one.auto_assign(num4=1, handle_id="new")).ipv4
    undone = await repair.undo(store, outcome.journal)
    assert any("block" in text for text, _ in undone.skipped)
    assert await one.ips_by_handle("new") == got


async def test_command_line(tmp_path: Path) -> None:
    """Plan shows steps and proofs and writes nothing; apply writes a private journal first; undo reads it."""
    store = MemoryStore()
    await broken(store)
    before = await state(store)
    place = commands.Place(store, now=lambda: NOW)
    shown = await commands.invoke(place, ["repair"])
    assert "proof:" in shown.text
    assert await state(store) == before
    journal = tmp_path / "journal.json"
    done = await commands.invoke(place, ["repair", "--apply", "--journal", str(journal), "-o", "json"])
    assert (done.exit_code, done.document["skipped"]) == (0, [])
    assert journal.stat().st_mode & 0o777 == 0o600
    assert len(journal.read_text().splitlines()) == len(done.document["done"])
    assert json.loads(journal.read_text().splitlines()[0])["text"]
    assert (await commands.invoke(place, ["repair"])).text == "nothing to repair"
    assert (await commands.invoke(place, ["repair", "--undo", str(journal)])).exit_code == 0
    assert await state(store) == before


async def test_capacity_names_who_fails_first() -> None:
    """Blocks and addresses left, and the node that will be refused next, with the reason."""
    store = MemoryStore()
    client = await cluster(
        store, pools={"amber": {"cidr": "10.1.0.0/29", "blockSize": 30}}, reservations={"r": ["10.1.0.7/32"]}
    )
    one = Allocator(store, "n1")

    async def amber() -> tuple[int, int, str]:
        found = capacity(await snapshot.read(store, snapshot.EVERYTHING), max_blocks_per_host=0)[0]
        return found.unclaimed, found.free, found.verdict

    assert await amber() == (2, 7, "every node can still get 2 blocks, if no other takes them")
    await one.claim_affinity("10.1.0.0/30")
    assert (await amber())[:2] == (1, 7)
    assert "not every node" in (await amber())[2]
    await one.claim_affinity("10.1.0.4/30")
    assert await amber() == (0, 7, "node n2 gets no address any more (no block left)")
    await one.auto_assign(num4=7, handle_id="h")
    assert (await amber())[1] == 0
    pool = await client.get("IPPool", "amber")
    assert pool is not None
    await client.update(replace(pool, spec=replace(pool.spec, disabled=True)))
    assert "is disabled" in (await amber())[2]


async def test_capacity_knows_the_block_limit() -> None:
    """A node at its limit fails although blocks are left."""
    store = MemoryStore()
    await cluster(store, nodes=["n1"], pools=POOLS)
    await Allocator(store, "n1").auto_assign(num4=4, handle_id="h")
    found = capacity(await snapshot.read(store, snapshot.EVERYTHING), max_blocks_per_host=1)[0]
    assert (found.unclaimed, found.verdict) == (3, "node n1 gets no address any more (block limit)")


async def test_capacity_of_a_vast_pool() -> None:
    """Nothing is counted one by one."""
    store = MemoryStore()
    await cluster(store, nodes=["n1"], pools={"six": {"cidr": "fd00::/48"}}, reservations={"r": ["fd00::/64"]})
    found = capacity(await snapshot.read(store, snapshot.EVERYTHING), max_blocks_per_host=0)[0]
    assert found.free == 2**80 - 2**64
    output = await commands.invoke(commands.Place(store), ["capacity"])
    assert output.rows[0][0] == "six"


@pytest.mark.parametrize("kind", ["WorkloadEndpoint", "Node"])
async def test_an_unreadable_user_keeps_addresses_from_being_freed(kind: str) -> None:
    """An object that cannot be read may use the address: nothing is freed until a person has looked."""
    store = MemoryStore()
    await cluster(store, pools=POOLS)
    address = (await Allocator(store, "n1").auto_assign(num4=1, handle_id="h")).ipv4[0]
    key, _ = make(kind, "odd", {}, namespace="shop" if kind == "WorkloadEndpoint" else "")
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    steps = repair.plan(picture, now=NOW, cooldown=NONE)
    await store.put(path(key), b"nonsense")
    outcome = await repair.apply(store, picture, steps)
    assert any(path(key) in why for _, why in outcome.skipped)
    assert (await Allocator(store, "n1").attributes(address)).handle_id == "h"
