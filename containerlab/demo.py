"""``./run demo``: deploys the mesh, shows the main job of calipy, and checks each thing that it shows.

Exit status 0 only if everything was so. Leaves nothing behind (``--keep`` keeps the lab).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator

from calipy import log
from calipy.cli.render import table
from calipy.containerlab.driver import Lab
from calipy.containerlab.leftovers import HostState, namespaces_of
from calipy.containerlab.mesh import (
    NODES,
    PODS,
    POLICY,
    ROUTER,
    TOPOLOGY,
    Matrix,
    Mesh,
    Pod,
    wait_until,
    wrong_cells,
)
from calipy.errors import CalipyError

LAB = "mesh"
LOCK = "/run"
MOVE_SECONDS = 2.0
OUTAGE_SECONDS = 10.0
STREAM_SECONDS = 12.0
COLOURS = ("\033[1m", "\033[32m", "\033[31m", "\033[2m", "\033[0m") if sys.stdout.isatty() else [""] * 5
BOLD, GREEN, RED, DIM, RESET = COLOURS


class Story:
    """Prints chapters and check marks, and counts what failed."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.failed: list[str] = []
        self.passed = 0

    def chapter(self, title: str) -> None:
        print(f"\n{BOLD}[{time.monotonic() - self.start:5.1f} s] {title}{RESET}", flush=True)

    def show(self, text: str) -> None:
        print("".join(f"    {line}\n" for line in text.rstrip().splitlines()), end="", flush=True)

    def check(self, what: str, problems: list[str] | str = "") -> None:
        """One thing that must be so: ``problems`` empty means that it is."""
        found = [problems] if isinstance(problems, str) and problems else list(problems)
        if not found:
            self.passed += 1
            print(f"  {GREEN}✓{RESET} {what}", flush=True)
            return
        self.failed.append(what)
        print(f"  {RED}✗ {what}{RESET}", flush=True)
        self.show("\n".join(found[:10] + ([f"… and {len(found) - 10} more"] if len(found) > 10 else [])))

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A check that is so if its body raises nothing."""
        try:
            yield
        except CalipyError as error:
            self.check(what, str(error))
        else:
            self.check(what)


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; the exit status."""
    parser = argparse.ArgumentParser(prog="./run demo", description="Show and check calipy's main job in a lab.")
    parser.add_argument("--keep", action="store_true", help="leave the lab running")
    arguments = parser.parse_args(argv)
    log.configure("warning")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _alone():
            return _tell(keep=arguments.keep)
    except CalipyError as error:
        print(f"{RED}calipy: {error}{RESET}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{'' if arguments.keep else '; the lab is taken down'}", file=sys.stderr)
        return 128 + signal.SIGINT


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the demonstration's lock: a second one would take the lab away from the first."""
    file = os.open(LOCK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # leaves no file behind
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CalipyError("a demonstration is running on this machine", remedy="wait for its end") from None
        yield
    finally:
        os.close(file)


def _tell(*, keep: bool) -> int:
    """The whole story; the exit status."""
    story = Story()
    before = HostState.read(LAB)
    story.chapter(f"deploying {TOPOLOGY.name}: three nodes, two subnets, one router, etcd")
    lab = Lab.deploy(TOPOLOGY, reconfigure=True, report=lambda _level, text: story.show(text))
    mesh = Mesh(lab)
    try:
        for act in (peering, connectivity, policy, moving, faults):
            act(story, mesh)
    except CalipyError as error:
        story.check("the demonstration runs to its end", str(error))
    finally:
        mesh.close()
        if not keep:
            leaving(story, lab, before)
    print()
    if story.failed:
        total = story.passed + len(story.failed)
        print(f"{RED}{len(story.failed)} of {total} checks failed{RESET}: {'; '.join(story.failed)}")
        return 1
    print(f"{GREEN}all {story.passed} checks passed{RESET} in {time.monotonic() - story.start:.0f} s")
    if keep:
        print(look_around())
    return 0


def look_around() -> str:
    """What to type next, from where the user is: by this checkout's ``run``, or an installed ``calipy``."""
    file = TOPOLOGY.resolve()  # not by way of the link calipy/containerlab
    topology, run = (os.path.relpath(path) for path in (file, file.parents[1] / "run"))
    calipy = f"{shlex.quote(run if '/' in run else f'./{run}')} calipy" if os.access(run, os.X_OK) else "calipy"
    lab = f"-t {shlex.quote(topology)}"
    return f"""the lab is running; look around with
  {calipy} lab inspect {lab}
  {calipy} lab exec {lab} --label clab-node-name=n1 --cmd 'calipy node status'
and take it down with
  {calipy} lab destroy -c {lab}"""


def peering(story: Story, mesh: Mesh) -> None:
    """BGP sessions, as the nodes themselves tell it."""
    story.chapter("BGP: a full mesh of nodes, each also peering with the router (BIRD)")
    with story.attempt("every node is ready and Established with every other node and with the router"):
        mesh.wait_ready()
    for node in NODES:
        story.show(f"{DIM}{node}# calipy node status{RESET}")
        story.show(mesh.must(node, "calipy", "node", "status"))


def connectivity(story: Story, mesh: Mesh) -> None:
    """Pods, routes, and every pod reaching every pod without NAT or encapsulation."""
    story.chapter("pods: two on each node")
    mesh.add_pods(PODS)
    story.show(table(["POD", "NODE", "ADDRESS"], [[p.name, p.node, p.address] for p in mesh.pods.values()]))
    everyone = {p.address for p in mesh.pods.values()}
    story.check("six pods with six addresses", "" if len(everyone) == len(PODS) else f"addresses: {sorted(everyone)}")
    with story.attempt("every block is routed on every node and on the router"):
        wait_until(lambda: not unrouted(mesh), 15.0, lambda: "; ".join(unrouted(mesh)))
    for node in ("n1", "n3"):
        story.show(f"{DIM}{node}# ip route{RESET}")
        story.show(mesh.must(node, "ip", "route"))
    story.check("routes: local pods as /32, remote blocks via the right next hop", wrong_next_hops(mesh))

    story.chapter("every pod to every pod: ICMP, TCP, UDP")
    matrix = mesh.matrix()
    story.show(picture(matrix, mesh))
    story.check(
        "all reach all; servers see the pod's own address (no NAT); TTL falls by the routed hops",
        wrong_cells(matrix, mesh.pods, lambda _a, _b, _p: True),
    )
    story.check("on the wire: the pods' own packets, nothing around them", encapsulated(story, mesh))


def unrouted(mesh: Mesh) -> list[str]:
    """Pods for which a node or the router has no route more specific than its default one."""
    problems = []
    for place in (*NODES, ROUTER):
        for pod in mesh.pods.values():
            route = mesh.json(place, "ip", "-json", "route", "get", pod.address)[0]
            default = mesh.json(place, "ip", "-json", "route", "show", "match", pod.address)
            if "dev" not in route or all(r["dst"] == "default" for r in default):
                problems.append(f"{place} has no route to {pod.name} ({pod.address})")
    return problems


NEXT_HOPS = {
    ("n1", "n2"): "10.10.1.12",
    ("n2", "n1"): "10.10.1.11",
    ("n1", "n3"): "10.10.1.1",
    ("n2", "n3"): "10.10.1.1",
    ("n3", "n1"): "10.10.2.1",
    ("n3", "n2"): "10.10.2.1",
}
"""On the same subnet the node itself, else the router."""


def wrong_next_hops(mesh: Mesh) -> list[str]:
    """What differs from: own pods straight to their veth, others' through the node or the router."""
    problems = []
    for node in NODES:
        for pod in mesh.pods.values():
            route = mesh.json(node, "ip", "-json", "route", "get", pod.address)[0]
            if pod.node == node:
                if not route["dev"].startswith("cali") or "gateway" in route:
                    problems.append(f"{node}: own pod {pod.name} is routed {route}")
            elif route.get("gateway") != NEXT_HOPS[node, pod.node]:
                problems.append(f"{node}: {pod.name} on {pod.node} goes via {route.get('gateway')}")
    return problems


def encapsulated(story: Story, mesh: Mesh) -> list[str]:
    """Capture on the router's link to n3 while n1's pod pings n3's; anything but plain ICMP between the two pods."""
    source, target = mesh.pods["web"], mesh.pods["cache"]
    capture = mesh._pool.submit(  # noqa: SLF001 - the demo's own mesh
        mesh.run, ROUTER, "timeout", "8", "tcpdump", "-nn", "-l", "-i", "eth3", "-c", "6",
        "not port 179 and not arp and not port 2379 and not icmp6",
    )  # fmt: skip
    pinging = mesh.in_pod(source, "ping", "-i", "0.2", "-c", "12", "-w", "8", target.address)
    captured = capture.result()
    lines = [line for line in captured.stdout.splitlines() if " IP" in line]
    story.show(f"{DIM}r1# tcpdump -ni eth3{RESET}\n" + "\n".join(lines[:4]))
    there, back = f"{source.address} > {target.address}", f"{target.address} > {source.address}"
    ours = f"{there}: ICMP echo request", f"{back}: ICMP echo reply"
    problems = [line for line in lines if not any(text in line for text in ours)]
    if len(lines) < 4:
        problems.append(f"only {len(lines)} packets seen: {captured.stderr.strip()}; {pinging.splitlines()[-1:]}")
    return problems


def picture(matrix: Matrix, mesh: Mesh) -> str:
    """A matrix as people read it: one letter per protocol that got through, ``-`` for one that did not."""
    names = list(mesh.pods)

    def cell(a: str, b: str) -> str:
        if a == b:
            return "."
        return "".join(letter if matrix[a][b][p] else "-" for letter, p in (("I", "icmp"), ("T", "tcp"), ("U", "udp")))

    rows = [[f"{a} ({mesh.pods[a].node})", *(cell(a, b) for b in names)] for a in names]
    return table(["FROM \\ TO", *names], rows) + "\nI = ICMP, T = TCP, U = UDP, - = no answer"


def policy(story: Story, mesh: Mesh) -> None:
    """A Kubernetes NetworkPolicy cuts what it should and nothing else."""
    story.chapter("policy: only client may talk to web, and only TCP 8080")
    story.show(POLICY.read_text())
    web, client = mesh.pods["web"], mesh.pods["client"]
    held = mesh.hold(client, web, 8.0)
    mesh.must("n1", "calipy", "apply", "-f", str(POLICY))

    def allowed(a: Pod, b: Pod, protocol: str) -> bool:
        return b.name != "web" or (a.name == "client" and protocol == "tcp")

    with story.attempt("the policy is enforced: allowed pairs work, denied pairs do not"):
        wait_until(
            lambda: not wrong_cells(mesh.matrix(0.4), mesh.pods, allowed), 20.0,
            lambda: "; ".join(wrong_cells(mesh.matrix(), mesh.pods, allowed)),
        )  # fmt: skip
    story.show(picture(mesh.matrix(0.4), mesh))
    result = held.result()
    story.show(f"held connection client → web: {result['exchanges']} exchanges")
    story.check(
        "an established connection of the allowed pair survived",
        result["broken"] or ("" if result["exchanges"] > 20 else f"only {result['exchanges']} exchanges"),
    )


def moving(story: Story, mesh: Mesh) -> None:
    """A pod goes away and comes back elsewhere."""
    story.chapter("moving db from n2 to n3")
    old = mesh.delete_pod("db")
    start = time.monotonic()
    new = mesh.add_pod(Pod("db", "n3", "db"))
    cron = mesh.pods["cron"]
    reached = wait_until(
        lambda: bool(mesh.check(cron, new, timeout=0.5)["tcp"]),
        15.0,
        lambda: f"{new.address} does not answer cron",
        poll=0.0,
    )
    took = time.monotonic() - start
    story.show(f"{old.address} on n2 → {new.address} on n3")
    story.show(f"answered {took:.2f} s after the start of ADD, {reached:.2f} s after its end")
    story.check(f"reachable within {MOVE_SECONDS:.0f} s of ADD", "" if took <= MOVE_SECONDS else f"took {took:.2f} s")
    story.check("its old address is gone everywhere", remains(mesh, old))


def remains(mesh: Mesh, old: Pod) -> list[str]:
    """Where a /32 of an address that nobody has any more is still routed, or still counted as a set member."""
    problems = []
    for place in (*NODES, ROUTER):
        if mesh.must(place, "ip", "route", "show", f"{old.address}/32"):
            problems.append(f"{place} still has a /32 route to {old.address}")
        if place != ROUTER and old.address in mesh.must(place, "ipset", "list").split():
            problems.append(f"{place} still has {old.address} in an ip set")
    return problems


def faults(story: Story, mesh: Mesh) -> None:
    """Daemons killed, etcd gone: the traffic does not notice."""
    cron, batch = mesh.pods["cron"], mesh.pods["batch"]
    for daemon in ("agent", "bgpd"):
        story.chapter(f"SIGKILL of n1's {daemon} under 100 packets/s from n1 to n3")
        stream = mesh.stream(cron, batch, STREAM_SECONDS)
        time.sleep(1.0)  # let the stream run before the fault
        killed = mesh.kill_daemon("n1", daemon)
        with story.attempt(f"{daemon} (pid {killed}) is back and ready"):
            wait_until(
                lambda d=daemon, k=killed: mesh.daemon_pid("n1", d) not in (0, k) and mesh.readiness("n1")[0],  # type: ignore[misc]
                20.0,
                lambda: mesh.readiness("n1")[1],
            )
        told(story, stream.result())
    story.chapter(f"etcd stopped for {OUTAGE_SECONDS:.0f} s under 100 packets/s")
    stream = mesh.stream(cron, batch, OUTAGE_SECONDS + 8.0)
    time.sleep(1.0)
    stop_etcd(mesh)
    stopped = time.monotonic()
    try:
        with story.attempt("readiness says that the datastore is away"):
            wait_until(lambda: not mesh.readiness("n1")[0], OUTAGE_SECONDS, lambda: "n1 still claims to be ready")
        story.show(mesh.readiness("n1")[1])
        time.sleep(max(0.0, stopped + OUTAGE_SECONDS - time.monotonic()))
    finally:
        start_etcd(mesh)
    with story.attempt("ready again once etcd is back"):
        wait_until(lambda: mesh.readiness("n1")[0], 30.0, lambda: mesh.readiness("n1")[1])
    told(story, stream.result())


def told(story: Story, result: dict[str, object]) -> None:
    """Show a stream's count; nothing may be lost."""
    story.show(f"{result['sent']} sent, {result['received']} answered, longest gap {result['longest_gap_ms']} ms")
    story.check("0 packets lost", "" if result["sent"] == result["received"] else f"lost: {result['lost']}")


def stop_etcd(mesh: Mesh) -> None:
    """Freeze etcd: it holds its connections and answers nothing, the nastier way of being away."""
    mesh.must("etcd", "pkill", "-STOP", "-x", "etcd")


def start_etcd(mesh: Mesh) -> None:
    mesh.must("etcd", "pkill", "-CONT", "-x", "etcd")


def leaving(story: Story, lab: Lab, before: HostState) -> None:
    """The lab goes and leaves nothing."""
    story.chapter("destroying the lab")
    namespaces = namespaces_of(LAB)
    lab.destroy(cleanup=True)

    def left() -> list[str]:
        return HostState.read(LAB, namespaces).beyond(before)

    with story.attempt("no process, namespace, interface, mount, route or rule is left"):
        wait_until(lambda: not left(), 10.0, lambda: "; ".join(left()))


if __name__ == "__main__":
    sys.exit(main())
