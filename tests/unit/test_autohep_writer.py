"""Automatic host endpoints in a store: two that write at once, faults, endpoints that came in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace

from calipy.datastore import keys
from calipy.datastore.client import Client
from calipy.datastore.memory import MemoryStore
from calipy.datastore.resources import HostEndpointSpec
from calipy.datastore.store import Compare, Operation, Store, TxnResult
from calipy.datastore.syncer import InSync, Syncer, Update
from calipy.errors import UnavailableError
from calipy.node import autohep_writer
from calipy.node.autohep_writer import AutoHostEndpoints
from tests.support.objects import Object, make
from tests.support.stores import WrappedStore

NAME = "n1-auto-hep"
NODE = make("Node", "n1", {"bgp": {"ipv4Address": "172.16.0.1/24"}})
BY_HAND = make("HostEndpoint", NAME, {"node": "n2", "interfaceName": "eth0"}, labels={"made": "by-hand"})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autohep_writer, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(autohep_writer, "RETRY_SECONDS", 0.01)


class Unreliable(WrappedStore):
    """Does every write but says that it does not know, as long as it is told to."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.failing = False
        self.writes = 0

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        self.writes += 1
        done = await super().txn(compares, then, otherwise)
        if self.failing:
            raise UnavailableError("no answer")
        return done


@contextlib.asynccontextmanager
async def running(store: Store, *, writers: int = 1) -> AsyncIterator[Client]:
    """Writers that follow the store, each on its own; a client for the test."""

    async def follow(writer: AutoHostEndpoints) -> None:
        async for batch in Syncer(store, (keys.RESOURCES,)).run():
            for event in batch:
                if isinstance(event, Update):
                    writer.observe(event)
                elif isinstance(event, InSync):
                    writer.in_sync()

    async with asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(writers):
            writer = AutoHostEndpoints(Client(store, settle=0), "n1")
            tasks += [group.create_task(follow(writer)), group.create_task(writer.run())]
        yield Client(store, settle=0)
        for task in tasks:
            task.cancel()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.005)


def switch(auto: str = "Enabled") -> Object:
    return make(
        "KubeControllersConfiguration", "default", {"controllers": {"node": {"hostEndpoint": {"autoCreate": auto}}}}
    )


async def apply(client: Client, *wanted: Object) -> None:
    for _, resource in wanted:
        assert resource is not None
        await client.apply(replace(resource, revision=0))


async def test_two_that_write_at_once_agree() -> None:
    """Whoever is first, there is one endpoint, one write for each change, and then nobody writes any more."""
    store = Unreliable(MemoryStore())
    async with running(store, writers=3) as client:
        await apply(client, NODE, switch())
        await until(lambda: client.get("HostEndpoint", NAME))
        moved = make("Node", "n1", {"bgp": {"ipv4Address": "172.16.0.2/24"}}, labels={"rack": "r1"})
        await apply(client, moved)

        async def followed() -> bool:
            found = await client.get("HostEndpoint", NAME)
            return found is not None and found.spec.expected_ips == ("172.16.0.2",)

        await until(followed)
        stored = await store.get(keys.path(keys.ResourceKey("HostEndpoint", NAME)))
        assert stored is not None
        assert stored.version == 2
        await asyncio.sleep(0.1)
        writes = store.writes
        await asyncio.sleep(0.1)
        assert store.writes == writes


async def test_writes_of_unknown_outcome_are_looked_at_again() -> None:
    """While the store does not tell whether it has written, nothing is lost nor made twice; then all is well."""
    store = Unreliable(MemoryStore())
    async with running(store) as client:
        await apply(client, NODE)
        store.failing = True
        with pytest.raises(UnavailableError):
            await apply(client, switch())
        await until(lambda: client.get("HostEndpoint", NAME))
        with pytest.raises(UnavailableError):
            await apply(client, switch("Disabled"))

        async def gone() -> bool:
            return await client.get("HostEndpoint", NAME) is None

        await until(gone)
        store.failing = False
        await apply(client, switch())
        await until(lambda: client.get("HostEndpoint", NAME))


async def test_a_name_that_is_taken_is_tried_again() -> None:
    """An endpoint made by hand for another node under the name is left alone; when it goes the automatic one comes."""
    store = Unreliable(MemoryStore())
    async with running(store) as client:
        await apply(client, NODE, BY_HAND, switch())
        before = store.writes

        async def tried() -> bool:
            return store.writes > before + 2

        await until(tried)
        found = await client.get("HostEndpoint", NAME)
        assert found is not None
        assert found.spec == HostEndpointSpec(node="n2", interface_name="eth0")
        await client.delete("HostEndpoint", NAME)
        await until(lambda: client.get("HostEndpoint", NAME))
        found = await client.get("HostEndpoint", NAME)
        assert found is not None
        assert found.spec.node == "n1"
