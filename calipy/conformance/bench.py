"""What cases run on: a real etcd, the ``calipy`` command in this process, and every event of every step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from click.testing import CliRunner

from calipy.cli.main import calipy
from calipy.cli.session import Session, open_client
from calipy.datastore.client import Client
from calipy.datastore.keys import ROOT, ResourceKey, path
from calipy.datastore.store import Delete, Event, KeyValue, Put, Store
from calipy.errors import CalipyError

T = TypeVar("T")

START_KEYS: Final = tuple(
    path(ResourceKey(kind, name))
    for kind, name in (
        ("ClusterInformation", "default"),
        ("Tier", "default"),
        ("Tier", "kube-admin"),
        ("Tier", "kube-baseline"),
    )
)
"""Objects that every store has."""

_WRITES: Final = 100
"""Operations per transaction; etcd takes 128."""


@dataclass(frozen=True, slots=True)
class Options:
    """How cases are to be run.

    Attributes:
        evaluate: network-policy cases through the evaluator.
        packets: network-policy cases with packets.
        no_packets: why there can be none, "" if there can.
        backend: iptables backend of the agents under test: ``nft``, ``legacy``, "" for their own choice.
    """

    evaluate: bool = True
    packets: bool = False
    no_packets: str = ""
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did: exit code, its output, and its error in words ("" for none)."""

    exit_code: int
    output: str
    error: str


class Bench:
    """One store for all cases of a run; ``reset`` before each. Belongs to one event loop.

    Attributes:
        stack: what suites open once and the bench closes in the end.
        shared: what suites keep from file to file, by name.
    """

    def __init__(self, store: Store, options: Options = Options()) -> None:
        self.store = store
        self.options = options
        self.stack = AsyncExitStack()
        self.shared: dict[str, Any] = {}
        self.client: Client = open_client(store, settle=0)
        self._events: list[Event] = []
        self._seen = 0
        self._news = asyncio.Event()
        self._start: dict[str, bytes] = {}
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the start objects and follow the store."""
        await self.client.ensure_initialised()
        listing = await self.store.list(ROOT)
        self._start = {item.key: item.value for item in listing.items}
        self._seen = listing.revision
        self._watching = asyncio.create_task(self._watch(listing.revision + 1))

    async def close(self) -> None:
        """Close what suites have opened, and stop following."""
        await self.stack.aclose()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self, revision: int) -> None:
        async for batch in self.store.watch([ROOT], start_revision=revision):
            self._events.extend(batch.events)
            self._seen = max(self._seen, batch.revision)
            self._news.set()

    async def reset(self, *, empty: bool = False) -> None:
        """Nothing is stored but the start objects, or with ``empty`` nothing at all."""
        present = (await self.store.list(ROOT)).items
        operations: list[Delete | Put] = [Delete(item.key) for item in present if empty or item.key not in self._start]
        if not empty:
            operations += [Put(key, value) for key, value in self._start.items()]
        for first in range(0, len(operations), _WRITES):
            await self.store.txn([], operations[first : first + _WRITES])
        await self.take_events()

    async def take_events(self) -> list[Event]:
        """Every event since the last call, in order, up to the store's present revision."""
        revision = (await self.store.list(ROOT + "\uffff")).revision
        while self._seen < revision:
            self._news.clear()
            if self._watching is not None and self._watching.done():
                self._watching.result()
            await asyncio.wait_for(self._news.wait(), 10)
        events, self._events = self._events, []
        return events

    async def stored(self) -> dict[str, KeyValue]:
        """Everything that is stored."""
        return {item.key: item for item in (await self.store.list(ROOT)).items}

    async def command(self, arguments: Sequence[str], stdin: str | None = None) -> Outcome:
        """Run ``calipy`` with these arguments, as a shell would."""
        session = _BenchSession(self.client, asyncio.get_running_loop())

        def invoke() -> Outcome:
            result = CliRunner().invoke(calipy, list(arguments), input=stdin, obj=session)
            error = result.stderr
            if isinstance(result.exception, CalipyError):
                error += str(result.exception)
            elif result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return Outcome(result.exit_code, result.stdout, error)

        return await asyncio.to_thread(invoke)


class _BenchSession(Session):
    """Gives commands the client of the bench."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._client = client
        self._loop = loop

    def run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """See ``Session.run``."""

        async def main() -> T:
            return await work(self._client)

        return asyncio.run_coroutine_threadsafe(main(), self._loop).result()


def parsed(value: bytes) -> Any:
    """Stored JSON; what is none as ``{"$raw": text}``."""
    try:
        return json.loads(value)
    except ValueError:
        return {"$raw": value.decode(errors="replace")}
