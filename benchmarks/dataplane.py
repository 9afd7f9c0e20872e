"""Felix's dataplane against the kernel's own tools, in the same run and in a network namespace of its own.

Feeds ``felix.apply.Dataplane`` with what the graph would say for a node with ``--local`` pods: 8 global policies and 2
of the pod's namespace apply to each, 800 ip sets of 42 members. Prints milliseconds, the bare tools' beside them, and
the ratio. Needs root. Run: ``.venv/bin/python benchmarks/dataplane.py [--local 1500] [--backend legacy]``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from calipy import log
from calipy.felix.apply import Dataplane
from calipy.felix.config import FelixConfig
from calipy.felix.messages import (
    ActivePolicy,
    ActiveProfile,
    Changes,
    EndpointID,
    IPSet,
    IPSetDelta,
    Match,
    PolicyID,
    PortRange,
    Rule,
    TierInfo,
    WorkloadEndpoint,
)

SETS = 800
MEMBERS = 42
NAMESPACES = 50
GLOBAL = 8
NAMESPACED = 950
ROUNDS = 20


def set_id(number: int) -> str:
    return f"s:{number % SETS:023d}"


def policy(number: int, namespace: str) -> ActivePolicy:
    identity = PolicyID("NetworkPolicy" if namespace else "GlobalNetworkPolicy", namespace, f"p{number}")
    rules = tuple(
        Rule(
            "allow",
            protocol="tcp",
            src=Match(ip_sets=(set_id(number * 3 + k),)),
            dst=Match(ports=(PortRange(1000 + k, 1000 + k),)),
        )
        for k in range(4)
    )
    return ActivePolicy(identity, "default", rules, rules[:2], selector=f"app == 'a{number}'")


class Cluster:
    """What the graph would say."""

    def __init__(self, local: int) -> None:
        self.everywhere = [policy(number, "") for number in range(GLOBAL)]
        self.namespaced = [policy(100 + number, f"ns{number % NAMESPACES}") for number in range(NAMESPACED)]
        self.local = local

    def endpoint(self, number: int) -> WorkloadEndpoint:
        namespace = f"ns{number % NAMESPACES}"
        own = self.namespaced[number % NAMESPACES :: NAMESPACES][:2]
        ids = tuple(item.id for item in (*self.everywhere, *own))
        return WorkloadEndpoint(
            EndpointID("k8s", f"{namespace}/p{number}", "eth0"),
            f"cali{number * 2654435761 % 2**44:011x}",
            "",
            (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32",),
            (TierInfo("default", "Deny", ids, ids),),
            (f"kns.{namespace}",),
        )

    def everything(self) -> Changes:
        generator = random.Random(1)
        endpoints = [self.endpoint(number) for number in range(self.local)]
        used = {item for endpoint in endpoints for tier in endpoint.tiers for item in tier.ingress}
        policies = {item.id: item for item in (*self.everywhere, *self.namespaced) if item.id in used}
        allow = (Rule("allow"),)
        return Changes(
            ip_sets={
                set_id(number): IPSet(
                    set_id(number),
                    "net",
                    frozenset(f"10.{generator.randrange(4)}.{generator.randrange(256)}.{k}" for k in range(MEMBERS)),
                )
                for number in range(SETS)
            },
            policies=dict(policies),
            profiles={f"kns.ns{n}": ActiveProfile(f"kns.ns{n}", allow, allow) for n in range(NAMESPACES)},
            endpoints={endpoint.id: endpoint for endpoint in endpoints},
            in_sync=True,
        )


def p50(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


def line(name: str, ours: list[float], bare: list[float] | None = None, cpu: float = 0.0) -> None:
    text = f"{name:34} p50 {p50(ours):9.1f} ms  max {max(ours) * 1000:9.1f}  own CPU {cpu * 1000:6.1f}"
    if bare:
        text += f"   bare {p50(bare):8.1f}   ratio {p50(ours) / p50(bare):5.2f}"
    print(text, flush=True)


def timed(argv: list[str], text: str) -> float:
    started = time.perf_counter()
    subprocess.run(argv, input=text.encode(), check=True, capture_output=True)
    return time.perf_counter() - started


class Bare:
    """The same work by the kernel's tools alone."""

    def __init__(self, backend: str, cluster: Cluster) -> None:
        self._restore = [f"iptables-{backend}-restore", "--noflush"]
        self._saved = subprocess.run(
            [f"iptables-{backend}-save", "-t", "filter"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        interface = cluster.endpoint(5).interface
        self._pod = [f"cali-tw-{interface}", f"cali-fw-{interface}"]

    def replace_chain(self, chain: str) -> float:
        rules = [rule for rule in self._saved if rule.startswith(f"-A {chain} ")]
        return timed(self._restore, "\n".join(["*filter", f":{chain} - -", *rules, "COMMIT", ""]))

    def add_pod(self, number: int) -> float:
        names = {old: f"cali-bare{number}{old[5:7]}" for old in self._pod}
        rules = [rule.replace(old, new) for old, new in names.items() for rule in self._saved if f"-A {old} " in rule]
        return timed(
            self._restore, "\n".join(["*filter", *(f":{n} - -" for n in names.values()), *rules, "COMMIT", ""])
        )

    @staticmethod
    def add_member(number: int) -> float:
        return timed(["ipset", "restore", "-exist"], f"add cali40{set_id(0)} 192.0.2.{number}\n")

    def from_nothing(self) -> float:
        """In a namespace of its own, so that it starts from as little as we did."""
        sets = subprocess.run(["ipset", "save"], check=True, capture_output=True).stdout
        chains = [text for text in self._saved if not text.startswith("#")]
        fresh = ["unshare", "--net"]
        script = 'head -c "$1" | ipset restore && iptables-nft-restore'
        if "legacy" in self._restore[0]:
            script = script.replace("nft", "legacy")
        payload = sets + "\n".join([*chains, ""]).encode()
        empty = timed([*fresh, "true"], "")
        started = time.perf_counter()
        subprocess.run(
            [*fresh, "sh", "-c", script, "sh", str(len(sets))], input=payload, check=True, capture_output=True
        )
        return time.perf_counter() - started - empty


async def measure(local: int, backend: str) -> None:
    cluster = Cluster(local)
    everything = cluster.everything()
    dataplane = Dataplane(FelixConfig.from_parameters({"IptablesBackend": backend}))
    await dataplane.start()

    async def apply(changes: Changes) -> float:
        started = time.perf_counter()
        dataplane.update(changes)
        report = await dataplane.apply()
        assert report.ok, report.errors
        return time.perf_counter() - started

    async def repeat(changes: Callable[[int], Changes]) -> tuple[list[float], float]:
        cpu = time.process_time()
        taken = [await apply(changes(number)) for number in range(ROUNDS)]
        return taken, (time.process_time() - cpu) / ROUNDS

    cpu = time.process_time()
    cold = await apply(everything)
    cold_cpu = time.process_time() - cpu
    bare = Bare(backend, cluster)
    rules = sum(text.startswith("-A") for text in bare._saved)  # noqa: SLF001 - a script
    print(f"{local} local pods, {rules} rules in IPv4's filter table, {len(everything.ip_sets)} sets, {backend}")
    line("cold start", [cold], [bare.from_nothing()], cold_cpu)

    changing = next(item for item in cluster.namespaced if item.id in everything.policies)
    chain = f"cali-pi-np/{changing.id.namespace}/{changing.id.name}"

    def new_port(number: int) -> Changes:
        last = replace(changing.inbound[3], dst=Match(ports=(PortRange(5000 + number, 5000 + number),)))
        return Changes(policies={changing.id: replace(changing, inbound=(*changing.inbound[:3], last))}, in_sync=True)

    def new_member(number: int) -> Changes:
        added = frozenset({f"192.0.2.{number + 100}"})
        return Changes(ip_sets={set_id(1): IPSetDelta(set_id(1), added, frozenset())}, in_sync=True)

    def pods(numbers: Iterator[int] | range, *, gone: bool = False) -> Changes:
        found = [cluster.endpoint(local + number) for number in numbers]
        return Changes(endpoints={item.id: None if gone else item for item in found}, in_sync=True)

    ours, cpu = await repeat(new_port)
    line("a policy's port", ours, [bare.replace_chain(chain) for _ in range(ROUNDS)], cpu)
    ours, cpu = await repeat(new_member)
    line("a set's member", ours, [bare.add_member(number) for number in range(ROUNDS)], cpu)
    ours, cpu = await repeat(lambda number: pods(range(number, number + 1)))
    line("one more pod", ours, [bare.add_pod(number) for number in range(ROUNDS)], cpu)
    ours, cpu = await repeat(lambda number: pods(range(number, number + 1), gone=True))
    line("one pod less", ours, None, cpu)
    line("30 more pods at once", [await apply(pods(range(100, 130)))])
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    dataplane.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", type=int, default=200)
    parser.add_argument("--backend", choices=["nft", "legacy"], default="nft")
    given = parser.parse_args()
    if os.environ.get("CALIPY_BENCH_INSIDE") != "1":
        os.environ["CALIPY_BENCH_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    log.configure("error")
    asyncio.run(measure(given.local, given.backend))


if __name__ == "__main__":
    main()
