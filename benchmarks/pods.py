"""Pods over the mesh, against plain means in the same run.

* From ``workload add`` to the first packet answered on another node, split by step; baseline: the same namespace, veth,
  address and routes made by ``ip -batch``.
* Throughput and packet rate between pods on different nodes, through both nodes and the router; baseline: the same
  chain of namespaces with plain routes and no rules.

    ./run bench pods [--rounds 10] [--seconds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from calipy import log
from calipy.cli.render import table
from calipy.containerlab.driver import Lab
from calipy.containerlab.mesh import NAMESPACE, TOPOLOGY, Mesh, Pod

PLAIN = """
name: benchplain
topology:
  defaults: {kind: linux, image: "calipy/plain:dev", network-mode: none, sysctls: {net.ipv4.ip_forward: "1"}}
  nodes:
    a: {exec: [ip addr replace 10.88.1.2/24 dev eth1, ip route replace default via 10.88.1.1]}
    n1: {exec: [ip addr replace 10.88.1.1/24 dev eth1, ip addr replace 10.88.2.2/24 dev eth2, ip route replace default via 10.88.2.1]}
    r1: {exec: [ip addr replace 10.88.2.1/24 dev eth1, ip addr replace 10.88.3.1/24 dev eth2, ip route replace 10.88.1.0/24 via 10.88.2.2, ip route replace 10.88.4.0/24 via 10.88.3.2]}
    n3: {exec: [ip addr replace 10.88.3.2/24 dev eth1, ip addr replace 10.88.4.1/24 dev eth2, ip route replace default via 10.88.3.1]}
    b: {exec: [ip addr replace 10.88.4.2/24 dev eth1, ip route replace default via 10.88.4.1]}
  links:
    - {endpoints: ["a:eth1", "n1:eth1"], mtu: 1500}
    - {endpoints: ["n1:eth2", "r1:eth1"], mtu: 1500}
    - {endpoints: ["r1:eth2", "n3:eth1"], mtu: 1500}
    - {endpoints: ["n3:eth2", "b:eth1"], mtu: 1500}
"""  # noqa: E501 - one node a line


@contextlib.contextmanager
def deployed(file: Path) -> Iterator[Lab]:
    """A lab for the time of the benchmark."""
    lab = Lab.deploy(file, reconfigure=True, strict=True)
    try:
        yield lab
    finally:
        lab.destroy(cleanup=True)


def iperf(run: object, address: str, seconds: int, *, small_udp: bool) -> float:
    """Gbit/s of TCP, or received packets/s of 64-byte UDP datagrams."""
    assert callable(run)
    options = ["-u", "-b", "0", "-l", "64"] if small_udp else []
    result = json.loads(run("iperf3", "-J", "-c", address, "-t", str(seconds), *options))
    if small_udp:
        total = result["end"]["sum"]
        return float((total["packets"] - total["lost_packets"]) / total["seconds"])
    return float(result["end"]["sum_received"]["bits_per_second"] / 1e9)


def forwarding(mesh: Mesh, seconds: int) -> list[list[str]]:
    """Rows of the table: what, plain, calipy, ratio."""
    source, target = mesh.add_pod(Pod("left", "n1", "left")), mesh.add_pod(Pod("right", "n3", "right"))
    mesh.in_pod(target, "iperf3", "-s", "-D")
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "benchplain.clab.yml"
        file.write_text(PLAIN)
        with deployed(file) as plain:
            plain.exec("b", ["iperf3", "-s", "-D"])
            for name, small_udp, unit in (("TCP throughput", False, "Gbit/s"), ("64-byte UDP", True, "packets/s")):
                ours, theirs = [], []
                for _ in range(3):  # in turns, so that both meet the same noise
                    theirs.append(
                        iperf(
                            lambda *argv: plain.exec("a", list(argv), timeout=60).check().stdout,
                            "10.88.4.2", seconds, small_udp=small_udp,
                        )
                    )  # fmt: skip
                    ours.append(
                        iperf(lambda *argv: mesh.in_pod(source, *argv), target.address, seconds, small_udp=small_udp)
                    )
                left, right = statistics.median(theirs), statistics.median(ours)
                cost = "" if not small_udp else f"{1e6 / right - 1e6 / left:+.2f} us a packet"
                rows.append([name, f"{left:,.2f} {unit}", f"{right:,.2f} {unit}", f"{right / left:.2f}", cost])
    return rows


def bare_pod(mesh: Mesh) -> float:
    """Milliseconds for a pod's namespace, link and routes by the kernel's own tools."""
    commands = [
        "link add bare0 type veth peer name eth0 netns bare",
        "link set bare0 up",
        "route replace 10.88.9.9/32 dev bare0",
    ]
    inside = ["link set lo up", "addr add 10.88.9.9/32 dev eth0", "link set eth0 up", "route add 169.254.1.1 dev eth0",
              "route add default via 169.254.1.1 dev eth0"]  # fmt: skip
    script = (
        "import subprocess,time\nt=time.perf_counter()\n"
        "subprocess.run(['ip','netns','add','bare'],check=True)\n"
        f"subprocess.run(['ip','-batch','-'],input={chr(10).join(commands)!r}.encode(),check=True)\n"
        f"subprocess.run(['ip','-n','bare','-batch','-'],input={chr(10).join(inside)!r}.encode(),check=True)\n"
        "print((time.perf_counter()-t)*1000)\nsubprocess.run(['ip','netns','del','bare'],check=True)\n"
    )
    return min(float(mesh.must("n2", "python3", "-c", script)) for _ in range(3))


def adding(mesh: Mesh, rounds: int) -> list[dict[str, float]]:
    """For each round: milliseconds by step, ``command`` for the whole command, ``answered`` until the first reply."""
    watcher = mesh.pods["right"]
    results = []
    taken = {pod.address for pod in mesh.pods.values()}
    block = mesh.pods["left"].address.rsplit(".", 1)[0]
    first = int(mesh.pods["left"].address.rsplit(".", 1)[1]) // 64 * 64
    free = [f"{block}.{first + i}" for i in range(63, 20, -1) if f"{block}.{first + i}" not in taken]
    for number, address in zip(range(rounds), free, strict=False):
        waiting = mesh._pool.submit(mesh.probe, watcher, "await", "--to", address, "--timeout", "10")  # noqa: SLF001
        time.sleep(0.5)  # the pinger is under way before the pod exists
        start = time.monotonic()
        added = mesh.json(
            "n1", "calipy", "workload", "add", f"bench{number}", "--namespace", NAMESPACE, "--ip", address, "-o", "json"
        )
        command = (time.monotonic() - start) * 1000
        answered = waiting.result()["answered_at"]
        if answered is None:
            raise SystemExit(f"{address} never answered")
        results.append({**added["milliseconds"], "command": command, "answered": (answered - start) * 1000})
        mesh.must("n1", "calipy", "workload", "del", f"bench{number}", "--namespace", NAMESPACE)
    return results


def main() -> None:
    """Deploy, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=3, help="of each flow; iperf3 takes whole ones")
    arguments = parser.parse_args()
    log.configure("error")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "benchmesh.clab.yml"
        (Path(directory) / "configs").symlink_to(TOPOLOGY.parent / "configs")
        file.write_text(TOPOLOGY.read_text().replace("name: mesh", "name: benchmesh", 1))
        with deployed(file) as lab:
            mesh = Mesh(lab)
            mesh.wait_ready(120.0)
            rows = forwarding(mesh, arguments.seconds)
            bare = bare_pod(mesh)
            rounds = adding(mesh, arguments.rounds)
            mesh.close()
    print(table(["PATH OF THREE ROUTERS", "PLAIN", "CALIPY", "RATIO", "COST"], rows))
    print()
    steps = list(rounds[0])
    shown = [
        [step, f"{statistics.median(r[step] for r in rounds):.1f}", f"{max(r[step] for r in rounds):.1f}"]
        for step in steps
    ]
    print(table(["WORKLOAD ADD: STEP", "MEDIAN MS", "MAX MS"], shown))
    total = statistics.median(r["total"] for r in rounds)
    answered = statistics.median(r["answered"] for r in rounds)
    print(f"\nip -batch for the same links and routes: {bare:.1f} ms")
    print(f"agent's part of ADD / bare: {total / bare:.1f}; first answer / bare: {answered / bare:.1f}")


if __name__ == "__main__":
    main()
