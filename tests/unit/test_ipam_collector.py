"""Collecting what leaked: patience, and never an address in use. G1 to G6 of the reference."""

from __future__ import annotations

import datetime
import time

from msgspec.structs import replace

from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.ipam import Handle, IPAMConfig
from calipy.datastore.keys import BlockKey, HandleKey, ResourceKey, affinity_prefix, path
from calipy.datastore.memory import MemoryStore
from calipy.ipam import snapshot
from calipy.ipam.allocator import Allocator
from calipy.ipam.audit import audit
from calipy.ipam.collector import LeakTracker, collect
from tests.support.ipam import NOW, Clock, cluster, read
from tests.support.objects import make, pod

POOLS = {"amber": {"cidr": "10.1.0.0/24", "blockSize": 30}, "six": {"cidr": "fd00::/112", "blockSize": 126}}
GRACE = datetime.timedelta(minutes=15)


class Cluster:
    """A cluster, its clock and a collector."""

    def __init__(self, client: Client, grace: datetime.timedelta, scope: str | None) -> None:
        self.client = client
        self.store = client.store
        self.clock = Clock()
        self.tracker = LeakTracker(grace, scope=scope)

    def on(self, host: str) -> Allocator:
        return Allocator(self.store, host, now=self.clock.now, nanoseconds=self.clock.nanoseconds)

    async def pod(self, name: str, host: str = "n1", *, six: bool = False) -> list[str]:
        attributes = {"node": host, "pod": name, "namespace": "shop"}
        done = await self.on(host).auto_assign(num4=1, num6=int(six), handle_id=f"net.{name}", attributes=attributes)
        return done.ipv4 + done.ipv6

    async def passes(self, **step: float) -> list[str]:
        """Let time go by, then one pass; what it released."""
        self.clock.forward(**step)
        return (await collect(self.store, self.on("admin"), self.tracker, now=self.clock.now)).released


async def make_cluster(grace: datetime.timedelta = GRACE, *, scope: str | None = None) -> Cluster:
    return Cluster(await cluster(MemoryStore(), pools=POOLS), grace, scope)


async def test_g1_only_after_the_grace_period() -> None:
    """G1: not at first sight, not before its time, then at once."""
    world = await make_cluster()
    address = await world.pod("gone")
    assert await world.passes() == []
    assert world.tracker.candidates == 1
    assert await world.passes(minutes=14, seconds=59) == []
    assert await world.passes(seconds=1) == address


async def test_g1_grace_of_nothing_only_marks() -> None:
    """G1: with a grace of 0 nothing is ever released."""
    world = await make_cluster(datetime.timedelta(0))
    await world.pod("gone")
    assert await world.passes() == []
    assert await world.passes(hours=100) == []
    assert world.tracker.candidates == 1


async def test_g1_an_endpoint_that_comes_back_starts_the_clock_anew() -> None:
    """G1: used once in between, the address waits a whole grace period again."""
    world = await make_cluster()
    address = await world.pod("slow")
    await world.passes()
    key, endpoint = pod("slow", address[0])
    await world.client.create(endpoint)
    assert await world.passes(minutes=20) == []
    assert world.tracker.candidates == 0
    await world.client.delete("WorkloadEndpoint", key.name, key.namespace)
    assert await world.passes() == []
    assert await world.passes(minutes=15) == address


async def test_g1_an_address_handed_out_anew_starts_anew() -> None:
    """G1: the same address under the same handle, but of another allocation, is not the one that leaked."""
    world = await make_cluster()
    await world.pod("again")
    await world.passes()
    await world.on("n1").release_by_handle("net.again")
    for _ in range(4):
        await world.pod("again")
    assert await world.passes(minutes=20) == []
    assert len(await world.passes(minutes=15)) == 4


async def test_g2_all_of_an_owner_or_none() -> None:
    """G2: one address in use keeps both families of a pod; both unused go together."""
    world = await make_cluster()
    four, six = await world.pod("dual", six=True)
    key, endpoint = pod("dual", six)
    await world.client.create(endpoint)
    await world.passes()
    assert await world.passes(minutes=30) == []
    await world.client.delete("WorkloadEndpoint", key.name, key.namespace)
    await world.passes()
    assert sorted(await world.passes(minutes=15)) == sorted([four, six])


async def test_g3_a_node_that_is_gone() -> None:
    """G3: its leaked addresses and tunnels go in one pass, then its blocks; live pods' addresses never."""
    world = await make_cluster()
    await world.pod("a", "n2")
    await world.on("n2").auto_assign(
        num4=1, handle_id="ipip-tunnel-addr-n2", attributes={"node": "n2", "type": "ipipTunnelAddress"}
    )
    assert await world.passes(hours=1) == []
    await world.store.delete(path(ResourceKey("Node", "n2")))
    assert len(await world.passes()) == 2
    await world.passes()
    assert (await world.store.list(affinity_prefix("n2"))).items == ()


async def test_g3_a_tunnel_stays_while_a_pod_of_its_node_lives() -> None:
    """G3: a missing Node whose pods still run keeps its tunnel address and its blocks."""
    world = await make_cluster()
    live = await world.pod("live", "n2")
    await world.client.create(pod("live", live[0], node="n2")[1])
    await world.on("n2").auto_assign(
        num4=1, handle_id="vxlan-tunnel-addr-n2", attributes={"node": "n2", "type": "vxlanTunnelAddress"}
    )
    await world.store.delete(path(ResourceKey("Node", "n2")))
    assert await world.passes(hours=1) == []
    await world.passes(hours=1)
    assert len((await world.store.list(affinity_prefix("n2"))).items) == 1


async def test_g4_empty_blocks_but_the_last() -> None:
    """G4: seen empty twice, a grace period apart; a host keeps one."""
    world = await make_cluster()
    await world.on("n1").claim_affinity("10.1.0.0/28")
    await world.passes()
    assert len((await world.store.list(affinity_prefix("n1"))).items) == 4
    await world.passes(minutes=14)
    assert len((await world.store.list(affinity_prefix("n1"))).items) == 4
    await world.passes(minutes=1)
    assert len((await world.store.list(affinity_prefix("n1"))).items) == 1
    await world.passes(hours=1)
    assert len((await world.store.list(affinity_prefix("n1"))).items) == 1


async def test_g4_a_block_used_in_between_starts_anew() -> None:
    """G4: empty, used, and empty again within the grace period is not unused."""
    world = await make_cluster()
    await world.on("n1").claim_affinity("10.1.0.0/29")
    await world.passes()
    used = await world.pod("short")
    await world.client.create(pod("short", used[0])[1])
    await world.passes(minutes=10)
    await world.on("n1").release_by_handle("net.short")
    await world.passes(minutes=10)
    assert len((await world.store.list(affinity_prefix("n1"))).items) == 1


async def test_unknown_owners_are_never_released() -> None:
    """Addresses without a handle, without a pod or without a node in their attributes may be anybody's."""
    world = await make_cluster()
    one = world.on("n1")
    await one.auto_assign(num4=1)
    await one.auto_assign(num4=1, handle_id="a", attributes={"node": "n1"})
    await one.auto_assign(num4=1, handle_id="b", attributes={"pod": "p"})
    await world.passes()
    assert await world.passes(hours=100) == []


async def test_scope_leaves_other_living_nodes_alone() -> None:
    """A node that collects for itself does not touch what another node has to judge."""
    world = await make_cluster(scope="n1")
    mine = await world.pod("mine", "n1")
    await world.pod("theirs", "n2")
    await world.passes()
    assert await world.passes(minutes=15) == mine


async def test_an_endpoint_that_comes_at_the_last_moment_wins() -> None:
    """Users are read again between the decision and the release."""
    world = await make_cluster()
    address = await world.pod("late")
    await world.passes()

    original, calls = world.store.list, 0

    async def listing(prefix: str, *, revision: int = 0) -> object:
        nonlocal calls
        calls += 1
        result = await original(prefix, revision=revision)
        if calls == len(snapshot.EVERYTHING):
            await world.client.create(pod("late", address[0])[1])
        return result

    world.store.list = listing  # type: ignore[method-assign,assignment]
    assert await world.passes(minutes=15) == []
    assert (await world.on("n1").attributes(address[0])).handle_id == "net.late"


async def test_an_unreadable_endpoint_stops_the_pass() -> None:
    """It may be the user of any address."""
    world = await make_cluster()
    await world.pod("gone")
    await world.passes()
    await world.store.put(path(make("WorkloadEndpoint", "odd", {}, namespace="shop")[0]), b"nonsense")
    assert await world.passes(hours=1) == []


async def test_g6_an_unreadable_block_does_not_stop_the_others() -> None:
    """G6: it is left alone; everything else goes on."""
    world = await make_cluster()
    address = await world.pod("gone")
    await world.store.put(path(BlockKey("10.1.0.252/30")), b"nonsense")
    await world.passes()
    assert await world.passes(minutes=15) == address


async def test_released_addresses_cool_down() -> None:
    """A collected address is quarantined like any other."""
    world = await make_cluster()
    await world.on("n1").set_config(IPAMConfig(strict_affinity=True, cooldown_seconds=60))
    await world.pod("gone")
    await world.passes()
    await world.passes(minutes=15)
    block = next(iter((await snapshot.read(world.store)).blocks.values()))
    assert not block.empty
    assert (await read(world.store, BlockKey(block.cidr))).attributes[0].cooling


async def test_g5_thousand_nodes() -> None:
    """G5: one look at 1000 nodes with 5 pods each within Calico's bound of five seconds."""
    world = await make_cluster()
    await world.pod("gone")
    picture = await snapshot.read(world.store, snapshot.EVERYTHING)
    block = next(iter(b for b in picture.blocks.values() if b.allocations[0] is not None))
    picture.nodes = [make("Node", f"n{n}", {})[1] for n in range(1000)]
    picture.blocks = {
        (cidr := f"10.{n // 256}.{n % 256}.0/30"): replace(block, cidr=cidr, affinity=f"host:n{n}") for n in range(1250)
    }
    begin = time.process_time()
    LeakTracker().observe(picture, now=NOW)
    audit(picture, now=NOW)
    assert time.process_time() - begin < 5


async def test_handles_without_addresses() -> None:
    """A handle without an address for the grace period goes; one written meanwhile, or with an address, stays."""
    world = await make_cluster()
    await world.pod("one")
    for name in ("ghost", "busy"):
        await world.store.put(path(HandleKey(name)), codec.encode(Handle(blocks={"10.1.0.0/30": 1})))
    await world.passes()
    await world.passes(minutes=14)
    assert await read(world.store, HandleKey("ghost")) is not None
    await world.store.put(path(HandleKey("busy")), codec.encode(Handle(blocks={"10.1.0.0/30": 2})))
    await world.client.create(pod("one", *(await world.on("n1").ips_by_handle("net.one")))[1])
    await world.passes(minutes=1)
    assert await read(world.store, HandleKey("ghost")) is None
    assert await read(world.store, HandleKey("busy")) is not None
    assert await read(world.store, HandleKey("net.one")) is not None
