"""Addresses per second and the time each takes, against plain compare-and-swap on the same etcd in the same run.

One host alone, then 8 and 50 that race for one pool. Hosts are spread over as many processes as there are cores; the
hosts of a process share one watch, as every node has one. Each host assigns from watched state, its own blocks first,
claiming new ones as it goes; then everything is released again. The baseline writes one key per writer, each write
guarded with the revision of the one before and as large as a block that is half in use: the least that any assignment
costs. All six measurements take turns, several rounds of them: a machine that is busy for a while slows each of them.

Bars: alone at least half of plain compare-and-swap; with 50 hosts not less in total than with 8.

    ./run bench ipam [--seconds 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from calipy import clock, log
from calipy.cli.render import table
from calipy.conformance.etcd import running
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.keys import AFFINITIES, BLOCKS, IPAM_CONFIG, resource_prefix
from calipy.datastore.kinds.endpoints import NodeSpec
from calipy.datastore.kinds.pools import IPPoolSpec
from calipy.datastore.syncer import InSync, Syncer, Update
from calipy.ipam import snapshot
from calipy.ipam.allocator import Allocator
from calipy.ipam.audit import audit

WATCHED = (
    resource_prefix("IPPool"),
    resource_prefix("IPReservation"),
    resource_prefix("Node"),
    AFFINITIES,
    BLOCKS,
    IPAM_CONFIG,
)
VALUE = b"x" * 4096
Work = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Measured:
    """What one process measured: seconds of every call, and how long it was at it."""

    latencies: list[float]
    elapsed: float


def host(number: int) -> str:
    return f"node-{number}"


async def repeat(workers: list[Work], seconds: float, start: float) -> Measured:
    """Let every worker call again and again, from a common start on."""
    latencies: list[float] = []
    await asyncio.sleep(max(0.0, start - time.time()))
    begin = time.perf_counter()

    async def one(work: Work) -> None:
        number = 0
        while (now := time.perf_counter()) - begin < seconds:
            await work(number)
            latencies.append(time.perf_counter() - now)
            number += 1

    await asyncio.gather(*(one(work) for work in workers))
    return Measured(latencies, time.perf_counter() - begin)


async def raw(url: str, numbers: list[int], seconds: float, start: float) -> Measured:
    """Writers of one key each."""
    store = EtcdStore([url])
    revisions = {n: await store.put(f"/raw/{n}", VALUE) for n in numbers}

    def writer(n: int) -> Work:
        async def write(_: int) -> None:
            revisions[n] = await store.update(f"/raw/{n}", VALUE, revision=revisions[n])

        return write

    try:
        return await repeat([writer(n) for n in numbers], seconds, start)
    finally:
        await store.close()


async def assign(url: str, numbers: list[int], seconds: float, start: float) -> Measured:
    """Hosts that take one address after the other."""
    store = EtcdStore([url])
    allocators = {n: Allocator(store, host(n)) for n in numbers}
    ready = asyncio.Event()

    async def watch() -> None:
        async with aclosing(Syncer(store, WATCHED).run()) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Update):
                        for allocator in allocators.values():
                            allocator.observe(event)
                    elif isinstance(event, InSync):
                        for allocator in allocators.values():
                            allocator.in_sync()
                        ready.set()

    def taker(n: int) -> Work:
        async def take(number: int) -> None:
            done = await allocators[n].auto_assign(
                num4=1,
                handle_id=f"bench.{n}.{number}",
                attributes={"node": host(n), "pod": f"p{number}"},
                max_blocks=10_000,
            )
            if not done.complete:
                raise SystemExit(f"{host(n)}: {done.messages}")

        return take

    watching = asyncio.create_task(watch())
    try:
        await ready.wait()
        return await repeat([taker(n) for n in numbers], seconds, start)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await store.close()


def in_process(what: str, url: str, numbers: list[int], seconds: float, start: float) -> Measured:
    """Entry point of the processes."""
    log.configure("error")
    return asyncio.run((raw if what == "raw" else assign)(url, numbers, seconds, start))


def measure(what: str, url: str, count: int, seconds: float, processes: int) -> list[Measured]:
    """Run a number of writers or hosts at once; what each process measured."""
    shares = [list(range(count))[first::processes] for first in range(min(processes, count))]
    start = time.time() + 1.5
    with ProcessPoolExecutor(len(shares), mp_context=multiprocessing.get_context("spawn")) as pool:
        return [
            future.result()
            for future in [pool.submit(in_process, what, url, share, seconds, start) for share in shares]
        ]


def row(what: str, count: int, rounds: list[list[Measured]]) -> dict[str, Any]:
    """One line of the table: the mean rate over all rounds, and the latencies of all calls."""
    latencies = sorted(latency for results in rounds for result in results for latency in result.latencies)
    rate = statistics.mean(sum(len(result.latencies) / result.elapsed for result in results) for results in rounds)
    return {
        "what": what,
        "writers": count,
        "calls": len(latencies),
        "per_second": round(rate, 1),
        "p50_ms": round(1000 * statistics.median(latencies), 2),
        "p99_ms": round(1000 * latencies[int(0.99 * (len(latencies) - 1))], 2),
    }


async def prepare(url: str, hosts: int) -> None:
    store = EtcdStore([url])
    client = Client(store)
    await client.create(codec.new("IPPool", "bench", IPPoolSpec(cidr="10.0.0.0/9")))
    for number in range(hosts):
        await client.create(codec.new("Node", host(number), NodeSpec()))
    await store.close()


async def verify(url: str) -> list[str]:
    """What the audit finds apart from addresses without a pod, which these are; everything is released afterwards."""
    store = EtcdStore([url])
    picture = await snapshot.read(store, snapshot.EVERYTHING)
    found = audit(picture, now=clock.wall())
    wrong = [finding.text for finding in found.findings if finding.kind != "leaked address"]
    for prefix in (BLOCKS, AFFINITIES, "/calico/ipam/v2/handle/"):
        for kv in (await store.list(prefix)).items:
            await store.delete(kv.key)
    await store.close()
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each measurement of a round takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured: dict[tuple[str, int], list[list[Measured]]] = defaultdict(list)
    wrong: list[str] = []
    with running() as url:
        asyncio.run(prepare(url, 50))
        for count in (1, 8, 50) * options.rounds:
            for what in ("raw", "assign"):
                measured[what, count].append(measure(what, url, count, options.seconds, options.processes))
            wrong += asyncio.run(verify(url))
    rows = [row(what, count, rounds) for (what, count), rounds in measured.items()]
    by = {(line["what"], line["writers"]): line["per_second"] for line in rows}
    bars = {
        "alone, share of plain compare-and-swap": (by["assign", 1] / by["raw", 1], 0.5),
        "50 hosts, share of 8 hosts": (by["assign", 50] / by["assign", 8], 1.0),
    }
    if options.json:
        print(json.dumps({"rows": rows, "bars": {name: value for name, (value, _) in bars.items()}, "wrong": wrong}))
    else:
        heads = ("what", "writers", "calls", "per_second", "p50_ms", "p99_ms")
        print(table(heads, [[str(line[head]) for head in heads] for line in rows]))
        for name, (value, bar) in bars.items():
            print(f"{name}: {value:.2f} (bar {bar})")
        print("audit: " + ("; ".join(wrong) or "nothing wrong"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
