"""What a node writes when it starts (``node-and-felix/startup.json``): run in a namespace built as the case describes.

The host of a case has ``eth0`` with the case's addresses and one bare interface ``uplink``. Address management joins in
one transaction what Calico writes in several steps, so IPAM keys are compared by their values after the step; all
other writes are compared one by one, in order. Which free block the node takes is told to the allocator.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from calipy.conformance.bench import START_KEYS, Bench, parsed
from calipy.conformance.report import CaseResult
from calipy.conformance.steps import recorded
from calipy.conformance.volatile import Matcher, Mismatch
from calipy.datastore.codec import read_document
from calipy.datastore.keys import IPAM, BlockAffinityKey, parse
from calipy.errors import CalipyError
from calipy.ipam.allocator import CALICO_DEFAULTS, Allocator
from calipy.ipam.pools import Pool
from calipy.kernel import netns
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.node import host, startup, tunnels
from calipy.node.settings import NodeSettings

STARTUP: Final = "node startup"
TUNNELS: Final = "node allocate-tunnel-addrs --run-once"


def detect(_path: Path, document: Any) -> bool:
    """A JSON file of cases whose steps are starts of a node."""
    cases = document.get("cases") if isinstance(document, dict) else None
    if not isinstance(cases, list) or not cases:
        return False
    return all({step.get("do") for step in case.get("steps", ())} <= {STARTUP, TUNNELS, "etcd-put"} for case in cases)


async def run(name: str, document: Any, bench: Bench) -> list[CaseResult]:
    """Run all cases of a file."""
    if os.geteuid() != 0:
        return [CaseResult(name, case["id"], "skipped", (), "needs root") for case in document["cases"]]
    return [await run_case(name, case, bench) for case in document["cases"]]


async def run_case(name: str, case: dict[str, Any], bench: Bench) -> CaseResult:
    """Run one case on an emptied store, in a namespace of its own."""
    themes = (case["theme"],) if case.get("theme") else ()
    matcher = Matcher()
    with _machine(case) as (machine, lib_dir):
        await bench.reset(empty=not case.get("setup") or case.get("start") == "empty")
        try:
            for document in case.get("setup", ()):
                await bench.client.create(read_document(document, document["kind"]))
            await bench.take_events()
            for number, step in enumerate(case["steps"], 1):
                await _step(case, step, bench, matcher, machine, lib_dir, number=number)
        except (Mismatch, CalipyError) as difference:
            return CaseResult(name, case["id"], "failed", themes, str(difference))
    return CaseResult(name, case["id"], "passed", themes)


async def _step(
    case: dict[str, Any],
    step: dict[str, Any],
    bench: Bench,
    matcher: Matcher,
    machine: int,
    lib_dir: Path,
    *,
    number: int,
) -> None:
    if step["do"] == "etcd-put":
        await bench.store.put(step["key"], str(step.get("text", step.get("value"))).encode())
        await bench.take_events()
        return
    error = ""
    try:
        settings = NodeSettings.from_environment(step.get("env", {}), lib_dir=lib_dir)
        if step["do"] == STARTUP:
            await startup.start(bench.client, settings, await asyncio.to_thread(_host, machine), lib_dir=lib_dir)
        else:
            allocator = Allocator(bench.store, settings.name, defaults=CALICO_DEFAULTS, start=_choice(case))
            await tunnels.ensure(bench.client, allocator, settings.name)
    except CalipyError as failure:
        error = str(failure)
    if bool(error) != bool(step["exit"]):
        raise Mismatch(f"step {number}: expected exit {step['exit']}, got {error or 'success'}")
    events = await bench.take_events()
    where = f"step {number}: "
    plain = [one for one in map(recorded, events) if not one["key"].startswith(IPAM)]
    wanted = [one for one in step.get("writes", ()) if not one["key"].startswith(IPAM)]
    keys = [f"{one['op']} {one['key']}" for one in plain]
    if keys != [f"{one['op']} {one['key']}" for one in wanted]:
        raise Mismatch(f"{where}writes: expected {[one['key'] for one in wanted]}, got {keys}")
    for left, right in zip(wanted, plain, strict=True):
        compared = {name: left[name] for name in ("was", "value") if name in left}
        matcher.check(compared, {name: right.get(name) for name in compared}, f"{where}{left['key']}")
    await _check_state(step, bench, matcher, where=where)


async def _check_state(step: dict[str, Any], bench: Bench, matcher: Matcher, *, where: str) -> None:
    stored = {key: parsed(item.value) for key, item in (await bench.stored()).items()}
    final: dict[str, Any] = {}
    for write in step.get("writes", ()):
        final[write["key"]] = write.get("value") if write["op"] == "put" else None
    for key, value in final.items():
        if key.startswith(IPAM):
            matcher.check(value, stored.get(key), f"{where}{key}")
    if "store" in step:
        everything = any(key in step["store"] for key in START_KEYS)
        shown = {key: value for key, value in stored.items() if everything or key not in START_KEYS}
        matcher.check(step["store"], shown, f"{where}store")


def _choice(case: dict[str, Any]) -> Any:
    """The search for a free block begins where the recorded node found its first one."""
    claimed = [
        ipaddress.ip_network(key.cidr)
        for step in case["steps"]
        for write in step.get("writes", ())
        if isinstance(key := parse(write["key"]), BlockAffinityKey)
    ]

    def start(_owner: str, pool: Pool) -> int:
        for block in claimed:
            if block.version == pool.network.version and block.network_address in pool.network:
                size: int = 2 ** (block.max_prefixlen - pool.block_size)
                return (int(block.network_address) - int(pool.network.network_address)) // size
        return 0

    return start


@contextlib.contextmanager
def _machine(case: dict[str, Any]) -> Iterator[tuple[int, Path]]:
    """A namespace with the case's interfaces, as an open file, and a directory for the node's files."""
    path = netns.NAMED / f"calipy-startup-{os.getpid()}"
    netns.create(path)
    fd = netns.open_fd(path)
    try:
        with tempfile.TemporaryDirectory(prefix="calipy-startup-") as directory:
            netns.run_in(fd, _furnish, case)
            yield fd, Path(directory)
    finally:
        os.close(fd)
        netns.delete(path)


def _furnish(case: dict[str, Any]) -> None:
    """In the namespace: eth0 with its addresses, uplink without. Their other ends count as excluded interfaces."""
    with NetlinkSocket() as sock:
        links = Links(sock)
        for name, peer in ((case.get("interface", "eth0"), "veth0"), ("uplink", "veth1")):
            links.create_veth(VethEnd(name), VethEnd(peer))
            links.set_up(peer)
            links.set_up(name)
        for member in ("address4", "address6"):
            if case.get(member):
                links.add_address(case.get("interface", "eth0"), ipaddress.ip_interface(case[member]), dad=False)


def _host(machine: int) -> startup.Host:
    found = netns.run_in(machine, host.read)
    return startup.Host(
        found.interfaces,
        lambda target, family: netns.run_in(machine, host.source_towards, target, family),
        ipv6=found.ipv6,
    )
