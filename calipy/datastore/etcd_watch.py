"""One watch stream over several prefixes: opening, silence, fragments, compaction, and an end that is always named.

Several prefixes are watched as one range that spans them, filtered here: within one range etcd promises order, between
ranges it does not. A user who may not read all of the span gets a range per prefix, put in order by ``watch_order``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from grpc.aio import EOF, AioRpcError, StreamStreamCall

from calipy.datastore.etcd_transport import (
    RANGE,
    Endpoint,
    Transport,
    denied,
    is_cancelled,
    refused,
    translate,
)
from calipy.datastore.etcd_wire import event, key_range, raw
from calipy.datastore.etcdpb import rpc_pb2
from calipy.datastore.store import Event, WatchBatch
from calipy.datastore.watch_order import SETTLED, WatchOrder
from calipy.errors import AccessDeniedError, CompactedError, InvalidInputError, UnavailableError

SILENCE = 5.0
"""Seconds without a message before progress is asked for, and as many again before the stream is given up."""

PROGRESS = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())

NO_END = b"\0"
"""As the end of a range: none, to the last key."""

Range = tuple[bytes, bytes]


async def follow(
    transport: Transport, prefixes: Sequence[str], start_revision: int, silence: float = SILENCE
) -> AsyncGenerator[WatchBatch, None]:
    """``Store.watch`` on one gRPC stream. Reads top to bottom as the life of that stream."""
    if not prefixes:
        raise InvalidInputError("a watch needs at least one prefix", field="prefixes", value=prefixes)
    kept = outermost(prefixes)
    wanted = tuple(raw(prefix) for prefix in kept)
    ranges = [key_range(prefix) for prefix in kept]
    stream = await _open(transport, ways(ranges), start_revision, silence)
    try:
        await _check_not_set_back(transport, ranges[0], stream.revision, start_revision)
        yield WatchBatch((), start_revision - 1)
        order = WatchOrder(len(stream.index), start_revision, settled=min(SETTLED, silence))
        fragments: list[Event] = []
        while True:
            response = await stream.read()
            stream.raise_if_cancelled(response)
            now = stream.time()
            if response.events:
                fragments.extend(event(message) for message in response.events if message.kv.key.startswith(wanted))
                if response.fragment:
                    continue
                index = stream.index[response.watch_id]
                if fragments:
                    batch = order.events(index, fragments, now)
                    fragments = []
                else:
                    batch = order.range_progress(index, response.events[-1].kv.mod_revision)
            elif response.watch_id in stream.index:
                batch = order.range_progress(stream.index[response.watch_id], response.header.revision)
            else:
                stream.asked = False
                batch = order.progress(response.header.revision, now)
            if order.waiting and not stream.asked:
                stream.ask()
            if batch is not None:
                yield batch
    finally:
        stream.close()


def outermost(prefixes: Sequence[str]) -> list[str]:
    """The prefixes without those that another one covers, sorted: no event may come twice."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


def ways(ranges: Sequence[Range]) -> list[list[Range]]:
    """What to ask the server for, the best first: one range from the least key to the greatest end, or each range."""
    if len(ranges) == 1:
        return [list(ranges)]
    ends = [end for _, end in ranges]
    return [[(min(key for key, _ in ranges), NO_END if NO_END in ends else max(ends))], list(ranges)]


async def _open(transport: Transport, offers: Sequence[list[Range]], start_revision: int, silence: float) -> _Stream:
    """A stream on which the server has taken on all ranges of the first of the ``offers`` that it permits.

    When it permits none, a new token is tried once: older servers call a token that they have forgotten a lack of
    permission.
    """
    renewed = False
    while True:
        token = ""
        for ranges in offers:
            endpoint, token, call = await transport.open_watch()
            stream = _Stream(transport, endpoint, call, silence)
            try:
                await stream.create(ranges, start_revision)
            except AccessDeniedError as error:
                stream.close()
                refusal = error
            except BaseException:
                stream.close()
                raise
            else:
                return stream
        if renewed or not token:
            raise refusal
        renewed = True
        transport.forget(token)


async def _check_not_set_back(transport: Transport, keys: Range, revision: int, start_revision: int) -> None:
    """Refuse to wait for a future that never comes: a restored or replaced store counts from lower revisions.

    A member that merely lags behind its cluster shows the same sign, so the cluster is asked before the list is redone.
    """
    if revision >= start_revision - 1:
        return
    key, end = keys
    request = rpc_pb2.RangeRequest(key=key, range_end=end, count_only=True)
    present = (await transport.call(RANGE, request, repeatable=True)).header.revision
    if present < start_revision - 1:
        raise CompactedError(f"etcd is at revision {present}, before {start_revision - 1}: it was restored or replaced")


class _Stream:
    """The call, and the watchdog that asks for progress in silence and ends the call when nothing comes of it."""

    def __init__(
        self, transport: Transport, endpoint: Endpoint, call: StreamStreamCall[Any, Any], silence: float
    ) -> None:
        self.index: dict[int, int] = {}
        self.revision = 0
        self.asked = False
        self._transport = transport
        self._endpoint = endpoint
        self._call = call
        self._silence = silence
        self._early: list[rpc_pb2.WatchResponse] = []
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._stalled = False
        self._heard = self._loop.time()
        self._writing: asyncio.Future[None] | None = None
        self._ask_again = False
        self._timer = self._loop.call_later(silence / 4, self._check)

    def time(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    async def create(self, ranges: Sequence[Range], start_revision: int) -> None:
        """Ask for all ranges and wait until the server has announced each; it does so in the order asked."""
        for key, end in ranges:
            request = rpc_pb2.WatchCreateRequest(
                key=key,
                range_end=end,
                start_revision=start_revision,
                progress_notify=True,
                prev_kv=True,
                fragment=True,
            )
            await self._guarded(self._call.write(rpc_pb2.WatchRequest(create_request=request)))
        early = []
        while len(self.index) < len(ranges):
            response = await self.read()
            self.raise_if_cancelled(response)
            if response.created:
                self.index[response.watch_id] = len(self.index)
                self.revision = response.header.revision
            else:
                early.append(response)
        self._early = early[::-1]

    async def read(self) -> rpc_pb2.WatchResponse:
        """The next message. Raises ``UnavailableError`` when the stream broke, stalled or was closed."""
        if self._early:
            return self._early.pop()
        response = await self._guarded(self._call.read())
        if response is EOF:
            self._transport.avoid(self._endpoint)
            raise UnavailableError(f"etcd at {self._endpoint.url} ended the watch")
        assert isinstance(response, rpc_pb2.WatchResponse)
        return response

    def raise_if_cancelled(self, response: rpc_pb2.WatchResponse) -> None:
        """The server gave up one range: by compaction, for lack of rights, or for a reason of its own."""
        if response.compact_revision:
            raise CompactedError(
                f"revisions before {response.compact_revision} are gone", compact_revision=response.compact_revision
            )
        if response.canceled:
            if refused(response.cancel_reason.lower()):
                raise denied(self._endpoint.url, response.cancel_reason)
            raise UnavailableError(f"etcd at {self._endpoint.url} cancelled the watch: {response.cancel_reason}")

    def ask(self) -> None:
        """Send a progress request, without waiting; after the one before if that is still on its way out."""
        self.asked = True
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._call.write(PROGRESS))
            self._writing.add_done_callback(self._written)
        else:
            self._ask_again = True

    def close(self) -> None:
        """End the call."""
        self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()
        self._call.cancel()

    async def _guarded(self, step: Any) -> Any:
        """Await a step of the call under the watchdog, with its errors in our terms."""
        self._heard = self._loop.time()
        self._reading = True
        try:
            return await step
        except AioRpcError as error:
            self._transport.avoid(self._endpoint)
            raise translate(error, self._endpoint.url) from error
        except asyncio.CancelledError:
            # grpc.aio also raises this when the watchdog or Transport.close cancels the call.
            if is_cancelled() or not (self._stalled or self._transport.closed):
                raise
            if self._transport.closed:
                raise UnavailableError("the connection to etcd was closed") from None
            self._transport.avoid(self._endpoint)
            raise UnavailableError(
                f"etcd at {self._endpoint.url} stalled: silent for {2 * self._silence:g} s, though asked for progress"
            ) from None
        finally:
            self._reading = False

    def _written(self, writing: asyncio.Future[None]) -> None:
        # A failed write needs no report: the read beside it fails too, and tells why.
        failed = writing.cancelled() or writing.exception() is not None
        self._writing = None
        if self._ask_again and not failed:
            self._ask_again = False
            self.ask()

    def _check(self) -> None:
        """Runs every quarter of the time of silence. Time in which nobody reads does not count."""
        now = self._loop.time()
        if not self._reading:
            self._heard = now
        quiet = now - self._heard
        if quiet >= 2 * self._silence:
            self._stalled = True
            self._call.cancel()
            return
        if quiet >= self._silence or self.asked:
            self.ask()
        self._timer = self._loop.call_later(self._silence / 4, self._check)
