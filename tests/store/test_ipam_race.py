"""Hosts in processes of their own race for a small pool of a real etcd, some killed at any moment.

``CALIPY_RACE_HOSTS`` sets another number than 50.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from calipy import clock
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.ipam import IPAMConfig
from calipy.ipam import block as blocks
from calipy.ipam import snapshot
from calipy.ipam.allocator import Allocator
from calipy.ipam.audit import audit
from calipy.ipam.errors import HandleNotFoundError
from tests.support.ipam import cluster

pytestmark = pytest.mark.etcd

HOSTS = int(os.environ.get("CALIPY_RACE_HOSTS", "50"))

# Assigns until the pool is exhausted, then releases half, again and again; says of each address what became of it.
HOST = """
import asyncio, json, random, sys
from calipy.datastore.etcd import EtcdStore
from calipy.errors import CalipyError
from calipy.ipam.allocator import Allocator

async def main(url, host, seed):
    chance = random.Random(seed)
    store = EtcdStore([url])
    allocator = Allocator(store, host)
    mine = {}
    def say(**what):
        print(json.dumps(what), flush=True)
    for round in range(3):
        for number in range(12):
            handle = f"{host}.{round}.{number}"
            say(begin=handle)
            try:
                count = chance.choice([1, 1, 2])
                done = await allocator.auto_assign(num4=count, handle_id=handle, attributes={"node": host})
            except CalipyError as error:
                say(failed=str(error))
                break
            if done.ipv4:
                mine[handle] = done.ipv4
                say(got=handle, addresses=done.ipv4)
            if not done.complete:
                say(short=handle)
                break
        for handle in chance.sample(sorted(mine), len(mine) // 2):
            say(release=handle)
            await allocator.release_by_handle(handle)
            del mine[handle]
            say(released=handle)
    say(end=host)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def spoken(output: str) -> list[dict[str, Any]]:
    """Whole lines a host has said; a killed one may have stopped within a line."""
    return [json.loads(line) for line in output.splitlines() if line.endswith("}")]


async def run_hosts(url: str, hosts: list[str], chance: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Run all hosts; every fourth is killed somewhere on the way."""
    processes = {
        host: await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOST, url, host, str(chance.randrange(10**9)), stdout=subprocess.PIPE
        )
        for host in hosts
    }

    async def follow(number: int, process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        dies_after = chance.randrange(3, 25) if number % 4 == 1 else 0
        lines: list[bytes] = []
        async for line in process.stdout:
            lines.append(line)
            if dies_after and len(lines) == dies_after:
                await asyncio.sleep(chance.random() * 0.005)
                process.send_signal(signal.SIGKILL)
        code = await process.wait()
        assert code == 0 or dies_after, f"a host failed with {code}"
        return b"".join(lines).decode()

    try:
        outputs = await asyncio.gather(*(follow(n, p) for n, p in enumerate(processes.values())))
    finally:
        for process in processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
    return {host: spoken(output) for host, output in zip(hosts, outputs, strict=True)}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("strict", [True, False])
async def test_hosts_race_to_exhaustion_and_back(etcd: Any, strict: bool) -> None:
    """No address is with two hosts, everything promised is stored, and what the dead left can be released."""
    store = EtcdStore([etcd.url])
    hosts = [f"host{number}" for number in range(HOSTS)]
    # About one block of four addresses for each host, which wants more than that: the pool runs out.
    size = 30 - max(1, (HOSTS - 1).bit_length())
    await cluster(store, nodes=hosts, pools={"amber": {"cidr": f"10.7.0.0/{size}", "blockSize": 30}})
    await Allocator(store, "admin").set_config(IPAMConfig(strict_affinity=strict))
    said = await run_hosts(etcd.url, hosts, random.Random(7))

    picture = await snapshot.read(store, snapshot.EVERYTHING)
    held: dict[str, str | None] = {}
    for block in picture.blocks.values():
        assert blocks.problems(block, now=clock.wall()) == []
        for address, attribute in block.assignments():
            held[str(address)] = attribute.handle_id
    promised: dict[str, str] = {}
    unclear: set[str] = set()
    for words in said.values():
        mine: dict[str, list[str]] = {}
        for word in words:
            if "got" in word:
                mine[word["got"]] = word["addresses"]
            unclear |= {word[what] for what in ("begin", "release") if what in word}
            if "released" in word:
                del mine[word["released"]]
        for handle, addresses in mine.items():
            for address in addresses:
                assert address not in promised, f"{address} is with {promised[address]} and {handle}"
                promised[address] = handle
    assert promised, "nobody got an address"
    assert any("short" in word for words in said.values() for word in words), "the pool was never exhausted"
    begun = Counter(word.get("release") for words in said.values() for word in words if "release" in word)
    for address, handle in promised.items():
        assert held.get(address) == handle or begun[handle], f"{address} of {handle} is with {held.get(address)}"
    assert set(held.values()) <= unclear | set(promised.values())
    findings = {finding.kind for finding in audit(picture, now=clock.wall()).findings}
    assert findings <= {"leaked address"}, "killed between two transactions, yet nothing may be half done"

    admin = Allocator(store, "admin")
    for handle in {handle for handle in held.values() if handle is not None}:
        try:
            await admin.release_by_handle(handle)
        except HandleNotFoundError:
            raise AssertionError(f"{handle} holds addresses, but is not there") from None
    for host in hosts:
        await admin.remove_host(host)
    left = await snapshot.read(store, snapshot.EVERYTHING)
    assert (left.blocks, left.affinities, left.handles) == ({}, {}, {})
    await store.close()
