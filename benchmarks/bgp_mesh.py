"""A real mesh: every node its own bgpd and ExaBGP, beside a mesh of as many BIRDs, in namespaces on this machine.

Until all routes are everywhere after a start of all at once, one block until it is in every other node's kernel, what a
node costs while nothing happens. Bar: a block's 99th percentile at most 50 ms with 20 nodes.

    ./run bench bgp_mesh [--nodes 20] [--probes 100]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bgp import BIRD, cpu, lab, probe, resident, show
from calipy.datastore import codec, keys
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.ipam import BlockAffinity
from calipy.kernel import netns as kernel_netns
from calipy.kernel.monitor import Monitor
from calipy.net import NextHop, Route, parse_prefix
from tests.support.bgp import ETCD, BgpLab, BgpNode, eventually
from tests.support.netns import Namespace

POOL, BIRDS_POOL = "10.244.0.0/16", "10.245.0.0/16"


def start_nodes(network: BgpLab, count: int) -> list[BgpNode]:
    """All nodes at once, each with a block."""
    network.pool(POOL)
    nodes = [network.node(f"n{i}", f"10.77.1.{i}/24", start=False) for i in range(1, count + 1)]
    for number, node in enumerate(nodes, 1):
        network.block(f"10.244.{number}.0/26", node.name)
    started = time.perf_counter()
    for node in nodes:
        node.start()
    eventually("all routes everywhere", lambda: all(len(node.routes()) == count - 1 for node in nodes), timeout=120)
    eventually("all sessions", lambda: all(len(node.peers()) == count - 1 for node in nodes), timeout=120)
    print(f"  all routes everywhere after {time.perf_counter() - started:.1f} s, processes started", flush=True)
    return nodes


def start_birds(network: BgpLab, count: int) -> list[Namespace]:
    """As many BIRDs in a mesh of their own, up."""
    addresses = [f"10.77.1.{100 + i}" for i in range(1, count + 1)]
    birds = []
    for number, address in enumerate(addresses, 1):
        namespace = network.namespace(f"bird{number}", f"{address}/24")
        sessions = "\n".join(
            f"protocol bgp p{other.rpartition('.')[2]} {{ local {address} as 64512; neighbor {other} as 64512; "
            f"{'passive;' if other > address else ''} ipv4 {{ import all; export where net ~ [ {BIRDS_POOL}+ ]; "
            f"next hop self; }}; }}"
            for other in addresses
            if other != address
        )
        head = BIRD.partition("protocol bgp")[0].format(address=address, pool=BIRDS_POOL)
        birds.append(network.bird(namespace, head + sessions, f"bird{number}"))
    for bird in birds:
        eventually(
            "BIRD's sessions", lambda b=bird: b.ask("show protocols").count("Established") == count - 1, timeout=60
        )
    return [bird.ns for bird in birds]


async def everywhere(
    monitors: list[Monitor], dst: str, act: Callable[[], object], *, gone: bool = False
) -> list[float]:
    """Seconds until each monitor has seen the route."""
    first, *others = monitors
    waiting = [asyncio.create_task(probe(monitor, dst, lambda: None, gone=gone)) for monitor in others]
    await asyncio.sleep(0)
    return [await probe(first, dst, act, gone=gone), *await asyncio.gather(*waiting)]


async def latency(network: BgpLab, nodes: list[BgpNode], birds: list[Namespace], probes: int) -> None:
    """One block at everybody, ours and BIRD's alternating."""
    # gRPC connects from the namespace its first call is made in: this process enters the fabric's.
    kernel_netns.enter(network.fabric.fd)
    store = EtcdStore((ETCD,))
    found: dict[str, list[list[float]]] = {"ours": [], "BIRD": []}
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(Monitor(netns_fd=node.ns.fd)) for node in nodes[1:]]
        theirs = [stack.enter_context(Monitor(netns_fd=namespace.fd)) for namespace in birds[1:]]
        for number in range(probes + 5):
            dst = f"10.244.{100 + (number >> 2)}.{(number & 3) << 6}/26"
            path = keys.path(keys.BlockAffinityKey("n1", dst))
            took = await everywhere(ours, dst, lambda path=path: store.put(path, codec.encode(BlockAffinity())))
            await everywhere(ours, dst, lambda path=path: store.delete(path), gone=True)
            bird_dst = dst.replace("10.244", "10.245")
            route = Route(parse_prefix(bird_dst), "unicast", (NextHop(None, "lo"),), protocol=4, scope="link")
            bird = await everywhere(theirs, bird_dst, lambda route=route: birds[0].routes.apply(add=[route]))
            await everywhere(theirs, bird_dst, lambda route=route: birds[0].routes.apply(delete=[route]), gone=True)
            if number >= 5:
                found["ours"].append(took)
                found["BIRD"].append(bird)
    await store.close()
    for name, rounds in found.items():
        show(f"{name}: at a peer", [one for took in rounds for one in took])
        show(f"{name}: at the last peer", [max(took) for took in rounds])
    ratio = statistics.median(max(took) for took in found["ours"]) / statistics.median(max(t) for t in found["BIRD"])
    print(f"  at the last peer, ours to BIRD's: {ratio:.1f}", flush=True)


def idle(nodes: list[BgpNode]) -> None:
    """What a node costs while nothing happens."""
    time.sleep(3)
    pids = {node.name: (node.bgpd.pid if node.bgpd else 0, node.exabgp()) for node in nodes}
    before = {name: [cpu(pid) for pid in both] for name, both in pids.items()}
    time.sleep(10)
    spent = [
        [(cpu(pid) - past) / 10 for pid, past in zip(both, before[name], strict=True)] for name, both in pids.items()
    ]
    memory = [[resident(pid) for pid in both] for both in pids.values()]
    for place, name in enumerate(("bgpd", "ExaBGP")):
        print(
            f"  {name:<10} {statistics.median(one[place] for one in memory):6.1f} MB"
            f"   idle CPU {statistics.median(one[place] for one in spent):6.1%}",
            flush=True,
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--probes", type=int, default=100)
    options = parser.parse_args()
    print(f"a mesh of {options.nodes} nodes", flush=True)
    with lab() as network:
        nodes = start_nodes(network, options.nodes)
        idle(nodes)
        birds = start_birds(network, options.nodes)
        asyncio.run(latency(network, nodes, birds, options.probes))


if __name__ == "__main__":
    main()
