"""BGP beside BIRD, in namespaces on this machine: latency of one block, 10,000 routes, one node with many sessions.

* ``block``: a block's affinity written to etcd → its route in the other node's kernel (etcd watch, bgpd, ExaBGP,
  ExaBGP, bgpd, netlink), against a kernel route → BIRD → BIRD → its route in the other's kernel (written by a netlink
  message, and by ``ip route add``, from the start of that program on), and against the way in which Calico gives BIRD a
  block: a static blackhole in its file, ``birdc configure`` → BIRD → the other's kernel (without etcd and confd, which
  come before that in Calico).
* ``table``: BIRD sends 10,000 routes of one origin; until the last is in our kernel, against BIRD's own.
* ``sessions``: a node whose 100 mesh peers are one ExaBGP with 100 addresses, each announcing a block: time until all
  are Established and all routes in the kernel; memory of ExaBGP and bgpd; CPU while nothing happens.
* ``reflect``: a node as reflector of 50, 100 and 200 clients, each of which announces a block: from its start until
  every client has all blocks; memory; one new block until all others have it; against BIRD.

Bars: reflect at most 4 s with 100 clients, 10 s with 200; block median at most 3 x BIRD's plus one etcd write, 99th
percentile at most 50 ms; table at most 1 s; sessions all up in 5 s, ExaBGP at most 60 MB, idle CPU at most 6 %
of a core.

    ./run bench bgp [block|table|sessions|reflect …] [--probes 200] [--peers 100]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _reflect import reflect

from calipy.datastore import codec, keys
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.ipam import BlockAffinity
from calipy.datastore.resources import NodeBGPSpec, NodeSpec
from calipy.kernel import netns as kernel_netns
from calipy.kernel.monitor import Monitor, RouteEvent
from calipy.net import NextHop, Route, parse_prefix
from tests.support.bgp import ETCD, BgpNode, Program, eventually
from tests.support.bgp import network as lab
from tests.support.netns import Namespace

ROUTES, PEERS = 10_000, 100
"""Sizes that the bars are for."""

BIRD = """
router id {address};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; }}
protocol kernel {{ learn; ipv4 {{ import where net ~ [ {pool}+ ]; export where source = RTS_BGP; }}; }}
protocol bgp peer {{ local {address} as 64512; neighbor {other} as 64512; {passive}
  ipv4 {{ import all; export where net ~ [ {pool}+ ]; next hop self; }}; }}
{more}
"""


FAR = """
neighbor 10.77.1.1 {{
  router-id {address}; local-address {address}; local-as 64512; peer-as 64512; passive false;
  family {{ ipv4 unicast; }}
  static {{ route 10.244.{number}.0/26 next-hop {address}; }}
}}
"""


def show(name: str, samples: list[float]) -> None:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(samples)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"  {name:<44} median {statistics.median(ordered) * 1e3:7.2f} ms   p99 {p99 * 1e3:7.2f} ms", flush=True)


def bar(what: str, value: float, limit: float, unit: str) -> None:
    """Whether a bar is met."""
    print(f"  bar: {what} at most {limit:g} {unit}: {'met' if value <= limit else f'MISSED ({value:.1f})'}", flush=True)


async def probe(monitor: Monitor, dst: str, act: Callable[[], object], *, gone: bool = False) -> float:
    """Seconds from the start of ``act`` until the route's event."""
    wanted = parse_prefix(dst)
    started = time.perf_counter()
    result = act()
    if asyncio.iscoroutine(result):
        await result
    async with asyncio.timeout(10):
        async for event in monitor:
            if isinstance(event, RouteEvent) and event.dst == wanted and event.gone == gone:
                return time.perf_counter() - started
    raise AssertionError


async def block_latency(probes: int) -> None:
    """One block, ours and BIRD's, alternating so that both meet the same load."""
    print("block announced -> route in the peer's kernel", flush=True)
    with lab() as network:
        network.pool("10.244.0.0/16")
        one, two = network.node("n1", "10.77.1.1/24"), network.node("n2", "10.77.1.2/24")
        a, b = network.namespace("bird-a", "10.77.1.101/24"), network.namespace("bird-b", "10.77.1.102/24")
        text = {"pool": "10.245.0.0/16", "more": ""}
        plain = BIRD.format(address="10.77.1.101", other="10.77.1.102", passive="", **text)
        sender = network.bird(a, plain, "bird-a")
        network.bird(b, BIRD.format(address="10.77.1.102", other="10.77.1.101", passive="passive;", **text), "bird-b")
        eventually("sessions", lambda: one.up(two.address) and two.up(one.address))
        # gRPC connects from the namespace its first call is made in: this process enters the fabric's.
        kernel_netns.enter(network.fabric.fd)
        store = EtcdStore((ETCD,))
        ours: list[float] = []
        writes: list[float] = []
        birds: list[float] = []
        programs: list[float] = []
        files: list[float] = []
        with Monitor(netns_fd=two.ns.fd) as at_two, Monitor(netns_fd=b.fd) as at_b:
            for number in range(probes + 20):
                dst = f"10.244.{number >> 2 & 255}.{(number & 3) << 6}/26"
                path = keys.path(keys.BlockAffinityKey("n1", dst))
                took = await probe(at_two, dst, lambda path=path: store.put(path, codec.encode(BlockAffinity())))
                await probe(at_two, dst, lambda path=path: store.delete(path), gone=True)
                started = time.perf_counter()
                await store.put("/benchmark", b"x")
                write = time.perf_counter() - started
                route = Route(
                    parse_prefix(dst.replace("10.244", "10.245")),
                    "unicast",
                    (NextHop(None, "lo"),),
                    protocol=4,
                    scope="link",
                )
                bird = await probe(at_b, str(route.dst), lambda route=route: a.routes.apply(add=[route]))
                await probe(at_b, str(route.dst), lambda route=route: a.routes.apply(delete=[route]), gone=True)
                argv = ["ip", "route", "add", str(route.dst), "dev", "lo", "scope", "link", "protocol", "static"]
                started_ip: list[subprocess.Popen[bytes]] = []
                program = await probe(
                    at_b,
                    str(route.dst),
                    lambda argv=argv, into=started_ip: into.append(kernel_netns.run_in(a.fd, subprocess.Popen, argv)),
                )
                assert started_ip[0].wait() == 0
                await probe(at_b, str(route.dst), lambda route=route: a.routes.apply(delete=[route]), gone=True)
                static = f"{plain}protocol static {{ ipv4; route {route.dst} blackhole; }}\n"
                file = await probe(at_b, str(route.dst), lambda static=static: sender.configure(static))
                await probe(at_b, str(route.dst), lambda: sender.configure(plain), gone=True)
                if number >= 20:
                    files.append(file)
                    ours.append(took)
                    writes.append(write)
                    birds.append(bird)
                    programs.append(program)
        await store.close()
        show("etcd -> bgpd -> ExaBGP -> bgpd -> kernel", ours)
        show("  of which the etcd write itself", writes)
        show("kernel -> BIRD -> BIRD -> kernel", birds)
        show("as above by `ip route add`, start included", programs)
        show("file -> birdc configure -> BIRD -> BIRD", files)
        own = statistics.median(ours) - statistics.median(writes)
        print("  ours without the etcd write, in multiples of the medians above:", flush=True)
        for name, theirs in (
            ("kernel -> BIRD -> BIRD -> kernel", birds),
            ("as above by `ip route add`, start included", programs),
            ("file -> birdc configure -> BIRD -> BIRD", files),
        ):
            print(f"  {name:<44}        {own / statistics.median(theirs):7.1f}", flush=True)
        bar("median without the etcd write", own / statistics.median(birds), 3, "x BIRD's, kernel to kernel")
        bar("99th percentile", sorted(ours)[int(len(ours) * 0.99)] * 1e3, 50, "ms")


def full_table(routes: int) -> None:
    """Many routes with one set of attributes."""
    print(f"{routes} routes of one origin -> kernel", flush=True)
    with lab() as network:
        network.peer("tor", peer_ip="10.77.1.101", as_number=64512)
        node = network.node("n1", "10.77.1.1/24")
        b = network.namespace("bird-b", "10.77.1.102/24")
        sender = network.namespace("bird-a", "10.77.1.101/24")
        statics = "\n".join(f"route 20.{i >> 8}.{i & 255}.0/24 via 10.77.1.101;" for i in range(routes))
        sessions = "".join(
            f"protocol bgp p{number} {{ local 10.77.1.101 as 64512; neighbor {address} as 64512; passive; "
            f"ipv4 {{ import none; export where source = RTS_STATIC; next hop self; }}; }}\n"
            for number, address in enumerate(("10.77.1.1", "10.77.1.102"))
        )
        text = (
            "router id 10.77.1.101; protocol device { scan time 1; } protocol direct { ipv4; }\n"
            f"protocol static many {{ disabled; ipv4; {statics} }}\n{sessions}"
        )
        bird = network.bird(sender, text, "bird-a")
        options = {"address": "10.77.1.102", "other": "10.77.1.101", "pool": "10.245.0.0/16", "passive": ""}
        network.bird(b, BIRD.format(**options, more=""), "bird-b")
        eventually("sessions", lambda: node.up("10.77.1.101") and "Established" in bird.ask("show protocols p1"))
        started = time.perf_counter()
        bird.ask("enable many")
        at: dict[str, float] = {}
        while len(at) < 2:
            for name, namespace, protocol in (("ours", node.ns, 82), ("BIRD", b, 12)):
                if name not in at and len(namespace.routes.dump(protocol=protocol, family=4)) >= routes:
                    at[name] = time.perf_counter() - started
            assert time.perf_counter() - started < 60
        for name, seconds in at.items():
            print(f"  {name:<44} {seconds:7.2f} s", flush=True)
        if routes == ROUTES:
            bar("ours", at["ours"], 1, "s")


def many_sessions(peers: int) -> None:
    """One node in a mesh of many."""
    print(f"a node with {peers} sessions", flush=True)
    with lab() as network:
        network.pool("10.244.0.0/16")
        others = [f"10.77.1.{10 + i}" if i < 240 else f"10.77.3.{i - 240}" for i in range(peers)]
        for number, address in enumerate(others):
            network.apply("Node", f"p{number}", NodeSpec(bgp=NodeBGPSpec(ipv4_address=f"{address}/16")))
        far = network.namespace("far")
        for address in others:
            far.links.add_address("eth0", ip_interface(f"{address}/16"))
        far.links.set_up("eth0")
        # Not BIRD: it keeps all but the first of several protocols towards one address idle.
        file = network.directory / "far.conf"
        file.write_text("".join(FAR.format(address=one, number=i) for i, one in enumerate(others)))
        settings = {"exabgp.daemon.user": "root", "exabgp.api.cli": "false", "exabgp.log.level": "ERROR"}
        node = network.node("n1", "10.77.1.1/16", start=False)
        with contextlib.closing(Speaker(far, file, network.directory / "far.log", settings)):
            measure_sessions(node, others, peers)


class Speaker:
    """A plain ExaBGP, as somebody else's router."""

    def __init__(self, namespace: Namespace, file: Path, output: Path, settings: dict[str, str]) -> None:
        argv = [sys.executable, "-m", "exabgp", "server", str(file)]
        self._program = Program(namespace, argv, output, **settings)

    def close(self) -> None:
        """End it."""
        self._program.kill()


def measure_sessions(node: BgpNode, others: list[str], peers: int) -> None:
    """From the start of bgpd on."""
    node.start()
    started = time.perf_counter()
    eventually("all up", lambda: len(node.peers()) == peers and node.up(*others), timeout=60)
    up = time.perf_counter() - started
    eventually("all routes", lambda: len(node.routes()) == peers, timeout=60)
    print(f"  all up after {up:.1f} s, all routes after {time.perf_counter() - started:.1f} s", flush=True)
    time.sleep(2)
    assert node.bgpd
    pids = {"bgpd": node.bgpd.pid, "ExaBGP": node.exabgp()}
    before = {name: cpu(pid) for name, pid in pids.items()}
    time.sleep(5)
    idle = {name: (cpu(pid) - before[name]) / 5 for name, pid in pids.items()}
    for name, pid in pids.items():
        print(f"  {name:<10} {resident(pid):6.1f} MB   idle CPU {idle[name]:6.1%}", flush=True)
    if peers == PEERS:
        bar("all up", up, 5, "s")
        bar("ExaBGP", resident(pids["ExaBGP"]), 60, "MB")
        bar("idle CPU of ExaBGP", idle["ExaBGP"] * 100, 6, "% of a core")


def cpu(pid: int) -> float:
    """Seconds of CPU so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[], help="block, table, sessions, reflect; all of them by default")
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--routes", type=int, default=ROUTES)
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--clients", type=int, nargs="*", default=[50, 100, 200])
    options = parser.parse_args()
    chosen = options.what or ["table", "sessions", "reflect", "block"]
    if "table" in chosen:
        full_table(options.routes)
    if "sessions" in chosen:
        many_sessions(options.peers)
    if "reflect" in chosen:
        for clients in options.clients:
            reflect(clients, resident)
    if "block" in chosen:  # last: it changes this process's namespace
        asyncio.run(block_latency(options.probes))


if __name__ == "__main__":
    main()
