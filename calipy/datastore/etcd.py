"""The edge to etcd v3: ``EtcdStore``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from calipy.datastore.cas import CompareAndSwap
from calipy.datastore.etcd_transport import (
    CALL_TIMEOUT,
    CONNECT_TIMEOUT,
    LEASE_GRANT,
    RANGE,
    TXN,
    Tls,
    Transport,
)
from calipy.datastore.etcd_watch import SILENCE, follow
from calipy.datastore.etcd_wire import key_range, key_value, raw
from calipy.datastore.etcdpb import rpc_pb2
from calipy.datastore.store import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Listing,
    Operation,
    Put,
    TxnResult,
    WatchBatch,
)
from calipy.errors import CompactedError, DatastoreError

PAGE = 2000
"""Keys per page: bounds one message to a few MB and one stop of the event loop to some milliseconds."""

RELISTS = 5
"""Times that a listing starts over because its revision was compacted between two pages."""


class EtcdStore(CompareAndSwap):
    """etcd v3 over gRPC; the ``Store`` protocol. Belongs to one event loop; never fork after its first call.

    Making one does not block nor connect. Reads are linearizable. With several endpoints it stays with one while that
    works. A read that gets no answer is asked again, elsewhere if possible; a write is not, its outcome being unknown.

    Args:
        endpoints: ``http://`` or ``https://`` URLs with a port.
        tls: authorities and client certificate for https endpoints.
        username: user of etcd's own authentication, "" for none.
        password: the user's password.
        call_timeout: seconds for one unary call on one endpoint.
        connect_timeout: seconds to wait for an endpoint to accept a connection.
        silence: seconds without a message after which a watch asks for progress, and after as many again gives up.
        page: keys per page of a listing.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        username: str = "",
        password: str = "",
        call_timeout: float = CALL_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        silence: float = SILENCE,
        page: int = PAGE,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._transport = Transport(
            endpoints,
            tls=tls,
            username=username,
            password=password,
            call_timeout=call_timeout,
            connect_timeout=connect_timeout,
        )
        self._silence = silence
        self._page = page

    def __repr__(self) -> str:
        return f"EtcdStore({', '.join(self._endpoints)})"

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """See ``Store.get``."""
        request = rpc_pb2.RangeRequest(key=raw(key), revision=revision)
        response = await self._transport.call(RANGE, request, repeatable=True)
        return key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        """See ``Store.list``. A listing of the present starts over when a page's revision is compacted meanwhile."""
        for _ in range(RELISTS):
            try:
                return await self._list_at(prefix, revision)
            except CompactedError:
                if revision:
                    raise
        raise CompactedError(f"{prefix} was compacted {RELISTS} times while it was read")

    async def _list_at(self, prefix: str, revision: int) -> Listing:
        items: list[KeyValue] = []
        key, end = key_range(prefix)
        while True:
            request = rpc_pb2.RangeRequest(key=key, range_end=end, revision=revision, limit=self._page)
            response = await self._transport.call(RANGE, request, repeatable=True)
            revision = revision or response.header.revision
            items.extend(map(key_value, response.kvs))
            if not response.more:
                return Listing(tuple(items), revision)
            key = response.kvs[-1].key + b"\0"

    def watch(self, prefixes: Sequence[str], *, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See ``Store.watch``. The first batch is empty and comes when the server has taken on the watch."""
        return follow(self._transport, prefixes, start_revision, self._silence)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> TxnResult:
        """See ``Store.txn``."""
        request = rpc_pb2.TxnRequest(
            compare=[
                rpc_pb2.Compare(
                    key=raw(compare.key),
                    target=rpc_pb2.Compare.MOD,
                    result=rpc_pb2.Compare.EQUAL,
                    mod_revision=compare.mod_revision,
                )
                for compare in compares
            ],
            success=map(_request_op, then),
            failure=map(_request_op, otherwise),
        )
        writes = any(not isinstance(operation, Get) for operation in (*then, *otherwise))
        response = await self._transport.call(TXN, request, repeatable=not writes)
        return TxnResult(
            succeeded=response.succeeded,
            revision=response.header.revision,
            reads=tuple(
                key_value(op.response_range.kvs[0]) if op.response_range.kvs else None
                for op in response.responses
                if op.WhichOneof("response") == "response_range"
            ),
        )

    async def grant_lease(self, ttl: int) -> int:
        """See ``Store.grant_lease``. etcd rounds very short times up, to about two seconds."""
        # A lease that was granted without our knowing simply expires, so asking again is harmless.
        response = await self._transport.call(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(TTL=ttl), repeatable=True)
        if response.error:
            raise DatastoreError(f"etcd granted no lease: {response.error}")
        return response.ID

    async def close(self) -> None:
        """See ``Store.close``."""
        await self._transport.close()


def _request_op(operation: Operation) -> rpc_pb2.RequestOp:
    key = raw(operation.key)
    match operation:
        case Put(_, value, lease):
            return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease))
        case Delete():
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))
        case Get():
            return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))
