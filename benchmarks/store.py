"""The etcd client against the bare wire: the same requests as raw bytes over a plain gRPC channel, in the same run.

Prints for each operation the best of ``--rounds`` of both and their ratio. Exits 1 if a ratio passes its limit. Starts
an etcd of its own, with data in memory if there is any. Run: ``.venv/bin/python benchmarks/store.py [--keys 10000]``.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calipy.datastore import codec, keys
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.etcd_transport import CHANNEL_OPTIONS
from calipy.datastore.etcd_wire import key_range
from calipy.datastore.etcdpb import rpc_pb2
from calipy.datastore.store import Put
from calipy.datastore.syncer import InSync, Syncer
from tests.support.etcd import EtcdServer

PREFIX = keys.resource_prefix("WorkloadEndpoint")
VALUE = (
    b'{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"NAME","namespace":"default",'
    b'"uid":"7b7e4f0e-5b0d-4a29-9a0c-2f8c7e1d9a11","creationTimestamp":"2026-08-01T10:00:00Z","labels":{"app":"web",'
    b'"projectcalico.org/namespace":"default","projectcalico.org/orchestrator":"k8s"}},"spec":{"orchestrator":"k8s",'
    b'"node":"node1","containerID":"1337495556942031415926535","pod":"NAME","endpoint":"eth0","ipNetworks":["10.20.0.1/32"],'
    b'"profiles":["kns.default","ksa.default.default"],"interfaceName":"cali0ef24ba","mac":"ca:fe:1d:52:bb:e9"}}'
)


class Wire:
    """Requests as bytes, answers as bytes."""

    def __init__(self, url: str) -> None:
        self.channel = grpc.aio.insecure_channel(url.removeprefix("http://"), options=CHANNEL_OPTIONS)
        self.range = self.channel.unary_unary("/etcdserverpb.KV/Range")
        self.txn = self.channel.unary_unary("/etcdserverpb.KV/Txn")
        self.watch = self.channel.stream_stream("/etcdserverpb.Watch/Watch")


def key_of(number: int) -> str:
    """A workload endpoint's path."""
    return f"{PREFIX}default/node1-k8s-pod{number:06}-eth0"


async def timed(rounds: int, times: int, work: Callable[[], Awaitable[object]], *, cpu: bool = False) -> float:
    """Microseconds for one of ``times``, the best round; CPU of this process if asked."""
    clock = time.process_time if cpu else time.perf_counter
    best = float("inf")
    for _ in range(rounds):
        started = clock()
        await work()
        best = min(best, (clock() - started) / times * 1e6)
    return best


async def compare(url: str, count: int, rounds: int) -> list[tuple[str, float, float, float]]:
    """Rows: what, ours, the wire's, both in microseconds; and the limit of the ratio."""
    store, wire = EtcdStore([url]), Wire(url)
    for start in range(0, count, 100):
        await store.txn([], [Put(key_of(i), VALUE.replace(b"NAME", b"pod%d" % i)) for i in range(start, start + 100)])
    rows = []

    request = rpc_pb2.RangeRequest(key=key_of(7).encode()).SerializeToString()
    times = 500

    async def repeat(call: Callable[[], Awaitable[object]]) -> None:
        for _ in range(times):
            await call()

    ours = await timed(rounds, times, lambda: repeat(lambda: store.get(key_of(7))))
    bare = await timed(rounds, times, lambda: repeat(lambda: wire.range(request)))
    rows.append(("get", ours, bare, 1.5))

    revision = await store.put("/b", b"0")
    ours_at = bare_at = revision

    async def swap_ours() -> None:
        nonlocal ours_at
        ours_at = await store.update("/b", b"1", revision=ours_at)

    async def swap_bare() -> None:
        nonlocal bare_at
        compare = rpc_pb2.Compare(key=b"/w", target=rpc_pb2.Compare.MOD, mod_revision=bare_at)
        put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"/w", value=b"1"))
        answer = await wire.txn(rpc_pb2.TxnRequest(compare=[compare], success=[put]).SerializeToString())
        bare_at = rpc_pb2.TxnResponse.FromString(answer).header.revision

    bare_at = await store.put("/w", b"0")
    ours = await timed(rounds, times, lambda: repeat(swap_ours))
    bare = await timed(rounds, times, lambda: repeat(swap_bare))
    rows.append(("compare and swap", ours, bare, 1.5))

    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"/w", value=b"1"))
    raw_put = rpc_pb2.TxnRequest(success=[put]).SerializeToString()

    async def sixteen(call: Callable[[], Awaitable[object]]) -> None:
        await asyncio.gather(*(repeat(call) for _ in range(16)))

    ours = await timed(rounds, 16 * times, lambda: sixteen(lambda: store.put("/b", b"1")))
    bare = await timed(rounds, 16 * times, lambda: sixteen(lambda: wire.txn(raw_put)))
    rows.append(("put, 16 at a time", ours, bare, 1.6))

    start, end = key_range(PREFIX)
    whole = rpc_pb2.RangeRequest(key=start, range_end=end).SerializeToString()
    ours = await timed(rounds, 1, lambda: store.list(PREFIX))
    bare = await timed(rounds, 1, lambda: wire.range(whole))
    rows.append((f"list of {count} keys", ours, bare, 6))

    since = await store.put("/mark", b"")
    for start_ in range(0, count, 20):
        await store.txn([], [Put(key_of(i), VALUE) for i in range(start_, start_ + 20)])

    async def watch_ours() -> None:
        watch = store.watch([PREFIX], start_revision=since + 1)
        seen = 0
        while seen < count:
            seen += len((await anext(watch)).events)
        await watch.aclose()

    async def watch_bare() -> None:
        call = wire.watch()
        create = rpc_pb2.WatchCreateRequest(key=start, range_end=end, start_revision=since + 1, prev_kv=True)
        await call.write(rpc_pb2.WatchRequest(create_request=create).SerializeToString())
        seen = 0
        while seen < count:
            seen += len(rpc_pb2.WatchResponse.FromString(await call.read()).events)
        call.cancel()

    ours = await timed(rounds, count, watch_ours, cpu=True)
    bare = await timed(rounds, count, watch_bare, cpu=True)
    rows.append(("watch, CPU per event", ours, bare, 6))
    await store.close()
    await wire.channel.close()
    return rows


async def latency(store: EtcdStore, prefixes: list[str], times: int) -> float:
    """Median microseconds from the start of a put to its event."""
    watch = store.watch(prefixes, start_revision=(await store.put("/mark", b"")) + 1)
    await anext(watch)
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await store.put(f"{prefixes[0]}x", b"1")
        while not (await anext(watch)).events:
            pass
        taken.append(time.perf_counter() - started)
        await asyncio.sleep(0.001)
    await watch.aclose()
    return sorted(taken)[times // 2] * 1e6


async def first_sync(store: EtcdStore) -> tuple[float, float]:
    """Milliseconds until a syncer over all endpoints is in sync; of these, decoding alone."""
    listing = await store.list(PREFIX)
    started = time.perf_counter()
    for kv in listing.items:
        key = keys.parse(kv.key)
        assert key is not None
        codec.decode(key, kv.value, kv.mod_revision)
    decoding = time.perf_counter() - started
    started = time.perf_counter()
    events: AsyncGenerator[list[object], None] = Syncer(store, [PREFIX]).run()  # type: ignore[assignment]
    async for batch in events:
        if isinstance(batch[-1], InSync):
            break
    await events.aclose()
    return (time.perf_counter() - started) * 1e3, decoding * 1e3


async def measure(url: str, count: int, rounds: int) -> int:
    """Print everything; the exit code."""
    failed = 0
    print(f"{'microseconds':26} {'calipy':>10} {'wire':>10} {'ratio':>7} {'limit':>6}")
    for what, ours, bare, limit in await compare(url, count, rounds):
        failed += ours / bare > limit
        print(f"{what:26} {ours:10.1f} {bare:10.1f} {ours / bare:7.2f} {limit:6}")
    store = EtcdStore([url])
    for prefixes in (["/l/a/"], ["/l/a/", "/l/b/", "/l/c/"]):
        print(f"put to event, {len(prefixes)} prefix(es): {await latency(store, prefixes, 300):8.0f} us")
    total, decoding = await first_sync(store)
    print(f"syncer in sync with {count} endpoints: {total:.0f} ms, of which decoding {decoding:.0f} ms")
    await store.close()
    return int(failed > 0)


def main() -> int:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with EtcdServer() as server:
        return asyncio.run(measure(server.url, options.keys, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
