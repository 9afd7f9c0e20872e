"""Routes in bulk: our netlink against ``ip -batch``, in the same run, on the same kernel, in a throw-away namespace.

Prints the best of ``--rounds`` for each way, in milliseconds, and the ratio to ``ip``. Exits 1 if writing takes more
than twice as long as ``ip -batch``. ``dump`` is of a process that has just started, ``dump again`` of one that resyncs;
both filter by protocol in the kernel. Needs root. Run: ``.venv/bin/python benchmarks/routes.py [--count 10000]``.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from calipy.kernel import netns, process
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable
from calipy.net import PROTO_BGP, NextHop, Route

GATEWAY = {4: ipaddress.ip_address("10.0.0.2"), 6: ipaddress.ip_address("fd00::2")}


def main() -> int:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    path = Path(f"/run/netns/calipy-bench-{os.getpid()}")
    netns.create(path)
    fd = netns.open_fd(path)
    try:
        with NetlinkSocket(netns_fd=fd) as socket:
            links = Links(socket)
            links.create_veth(VethEnd("eth0"), VethEnd("peer0"))
            for name in ("eth0", "peer0"):
                links.set_up(name)
            links.add_addresses(
                "eth0", [ipaddress.ip_interface("10.0.0.1/24"), ipaddress.ip_interface("fd00::1/64")], dad=False
            )
            worst = max(compare(socket, fd, family, options.count, options.rounds) for family in (4, 6))
    finally:
        os.close(fd)
        netns.delete(path)
    print(f"\nworst ratio for writing: {worst:.2f} (limit 2)")
    return int(worst > 2)


def compare(socket: NetlinkSocket, fd: int, family: int, count: int, rounds: int) -> float:
    """Time one family; the worst ratio of the writes."""
    table = RouteTable(socket)
    routes = make_routes(family, count)
    text = {verb: "".join(f"route {verb} {line(route)}\n" for route in routes) for verb in ("add", "replace", "del")}
    times: dict[str, tuple[list[float], list[float]]] = {}

    def ours(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, ([], []))[0].append(timed(work))

    def theirs(name: str, *argv: str, stdin: str = "") -> None:
        def work() -> None:
            process.run(["ip", *argv], stdin=stdin, netns_fd=fd, timeout=300).check()

        times.setdefault(name, ([], []))[1].append(timed(work))

    flag = f"-{family}"
    for _ in range(rounds):
        ours("add", lambda: must_be_empty(table.apply(add=routes)))
        ours("replace", lambda: must_be_empty(table.apply(replace=routes)))
        for name, reader in (("dump", RouteTable(socket)), ("dump again", table)):
            ours(name, lambda reader=reader: check_count(len(reader.dump(protocol=PROTO_BGP, family=family)), count))
            theirs(name, flag, "-j", "route", "show", "proto", str(PROTO_BGP))
        ours("delete", lambda: must_be_empty(table.apply(delete=routes)))
        theirs("add", flag, "-batch", "-", stdin=text["add"])
        theirs("replace", flag, "-batch", "-", stdin=text["replace"])
        theirs("delete", flag, "-batch", "-", stdin=text["del"])
    print(f"\n{count} IPv{family} routes        calipy        ip     ratio")
    worst = 0.0
    for name, (mine, their) in times.items():
        ratio = min(mine) / min(their)
        print(f"  {name:20}{min(mine) * 1000:8.1f} ms{min(their) * 1000:8.1f} ms{ratio:8.2f}")
        if not name.startswith("dump"):
            worst = max(worst, ratio)
    return worst


def make_routes(family: int, count: int) -> list[Route]:
    """Blocks as other nodes advertise them: /26 or /122, all through one gateway."""
    bits, first = (
        (26, int(ipaddress.ip_address("11.0.0.0"))) if family == 4 else (122, int(ipaddress.ip_address("fd01::")))
    )
    hop = NextHop(GATEWAY[family], "eth0")
    kind = ipaddress.IPv4Network if family == 4 else ipaddress.IPv6Network
    return [
        Route(kind((first + 64 * number, bits)), next_hops=(hop,), protocol=PROTO_BGP, metric=1024)
        for number in range(count)
    ]


def line(route: Route) -> str:
    """The route in ``ip``'s words."""
    hop = route.next_hops[0]
    return f"{route.dst} via {hop.gateway} dev {hop.interface} proto {route.protocol} metric {route.metric}"


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def must_be_empty(failures: list[object]) -> None:
    """A benchmark of failures would be fast."""
    if failures:
        raise SystemExit(f"routes were refused: {failures[:3]}")


def check_count(found: int, wanted: int) -> None:
    """The dump must be whole."""
    if found != wanted:
        raise SystemExit(f"{found} routes read, {wanted} written")


if __name__ == "__main__":
    sys.exit(main())
