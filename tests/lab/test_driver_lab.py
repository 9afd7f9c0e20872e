"""The embedded lab driver on small labs: what runs inside, what comes and goes, and that nothing stays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calipy.containerlab import driver, reading, registry
from calipy.containerlab.driver import CommandFailedError, Lab
from calipy.containerlab.errors import LabError, TopologyError
from calipy.containerlab.leftovers import HostState, namespaces_of

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

PAIR = """
name: NAME
topology:
  defaults: {kind: linux, image: "calipy/plain:dev"}
  nodes:
    a:
      exec: [ip addr add 10.0.0.1/24 dev eth1, "sh -c 'echo ran >> /tmp/count'"]
      cmd: sh -c 'echo hello; exec sleep 1000'
    b: {exec: [ip addr add 10.0.0.2/24 dev eth1]}
  links:
    - endpoints: ["a:eth1", "b:eth1"]
"""

Make = Callable[[str], Path]


def eventually(condition: Callable[[], bool], what: str, timeout: float = 45.0) -> None:
    """Wait for a condition, which must come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Writes topologies under unique lab names and takes the labs away afterwards."""
    names: list[str] = []

    def write(text: str) -> Path:
        name = f"drv{os.getpid()}x{uuid.uuid4().hex[:6]}"
        names.append(name)
        file = tmp_path / f"{name}.clab.yml"
        file.write_text(text.replace("NAME", name))
        return file

    yield write
    for name in names:
        Lab(name).destroy(cleanup=True)


def supervisor_of(lab: Lab) -> int:
    """Pid of the lab's supervisor: the parent of each node's first process."""
    pid = lab.containers()[0]["pid"]
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def nothing_is_left(name: str, before: HostState, namespaces: frozenset[str]) -> None:
    """The machine is as before."""
    eventually(lambda: not HostState.read(name, namespaces).beyond(before), "something is left")


def test_a_lab_does_what_its_file_says_and_leaves_nothing(make: Make) -> None:
    """Deploy, reach each other, inspect, destroy: the machine is as before."""
    file = make(PAIR)
    name = file.name.removesuffix(".clab.yml")
    before = HostState.read(name)
    lab = Lab.deploy(file)
    assert (lab.plan, lab.failed) == (None, 0)
    assert lab.exec("a", ["ping", "-c1", "-W2", "10.0.0.2"]).returncode == 0
    assert lab.exec("a", ["getent", "hosts", f"clab-{name}-b"]).returncode == 0
    link = json.loads(lab.exec("a", ["ip", "-j", "-d", "link", "show", "eth1"]).stdout)[0]
    assert (link["mtu"], link["address"][:8], link["operstate"]) == (9500, "aa:c1:ab", "UP")
    assert any(re.fullmatch("clab-o-[0-9a-f]{16}", alias) for alias in link["altnames"])
    states = {container["node"]: container["state"] for container in lab.containers()}
    assert states == {"a": "running", "b": "running"}
    done = subprocess.run(
        ["ip", "netns", "exec", f"clab-{name}-a", "ip", "-br", "addr"], capture_output=True, text=True, check=True
    )
    assert "10.0.0.1/24" in done.stdout
    assert (file.parent / f"clab-{name}" / "a" / "log").read_text() == "hello\n"
    data = json.loads((file.parent / f"clab-{name}" / "topology-data.json").read_text())
    assert data["nodes"]["a"]["mgmt-ipv4-address"] == "172.20.20.2"
    namespaces = namespaces_of(name)
    assert namespaces
    assert lab.destroy(cleanup=True)
    assert not lab.destroy()
    nothing_is_left(name, before, namespaces)
    assert not (file.parent / f"clab-{name}").exists()


def test_a_node_has_a_machine_of_its_own(make: Make) -> None:
    """Own processes, hostname, /run, /tmp, devices and files over the machine's, which stays as it is."""
    lab = Lab.deploy(make(PAIR))

    def say(*argv: str, node: str = "a") -> str:
        return lab.exec(node, argv).check().stdout.strip()

    assert say("hostname") == "a"
    assert say("find", "/run", "-mindepth", "1") == ""
    # A checkout below /tmp shows through, read-only; nothing else of the machine's does.
    shown = Path(driver.__file__).parents[1].parts[2:3] if driver.__file__.startswith("/tmp/") else ()
    assert set(say("ls", "-A", "/tmp").split()) == {"count", *shown}
    assert int(say("sh", "-c", "ls -d /proc/[0-9]* | wc -l")) < 8
    assert say("sh", "-c", "test -c /dev/null && echo x > /dev/null && echo yes") == "yes"
    say("sh", "-c", "echo mine > /etc/only-here; echo mine > /usr/only-here; rm /etc/hostname")
    assert lab.exec("b", ["cat", "/etc/only-here"]).returncode == 1
    assert not Path("/etc/only-here").exists()
    assert not Path("/usr/only-here").exists()
    assert Path("/etc/hostname").exists()
    assert say("cat", "/proc/sys/net/ipv4/ip_forward") == "0"


def test_a_calipy_node_finds_this_calipy_and_an_etcd(make: Make) -> None:
    """The checkout is visible read-only, route protocols have names, a datastore comes along where none is stated."""
    lab = Lab.deploy(make("name: NAME\ntopology: {nodes: {n: {kind: linux, image: calipy/node:dev, cmd: sleep 1000}}}"))
    assert lab.exec("n", ["python3", "-c", "import calipy.net; print(calipy.net.PROTO_BGP)"]).stdout == "82\n"
    lab.exec("n", ["ip", "route", "add", "blackhole", "10.9.9.0/24", "proto", "82"]).check()
    assert "proto calipy-bgp" in lab.exec("n", ["ip", "route"]).stdout
    assert lab.exec("n", ["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"
    endpoint = lab.exec("n", ["printenv", "ETCD_ENDPOINTS"]).stdout.strip()
    assert endpoint == "http://172.20.20.1:2379"
    fetch = f"import urllib.request; print(urllib.request.urlopen('{endpoint}/health').read())"
    assert "true" in lab.exec("n", ["python3", "-c", fetch]).stdout
    package = driver.__file__.rsplit("/", 1)[0]
    assert lab.exec("n", ["touch", f"{package}/x"]).returncode == 1


def test_an_etcd_node_serves_its_neighbours_and_keeps_its_data(make: Make) -> None:
    """Image calipy/etcd listens on all addresses; its data survives a redeploy."""
    file = make("""
name: NAME
topology:
  nodes:
    store: {kind: linux, image: "calipy/etcd:dev"}
    user: {kind: linux, image: "calipy/plain:dev", env: {ETCDCTL_API: "3"}}
""")
    lab = Lab.deploy(file)
    ctl = ["etcdctl", "--endpoints", "http://store:2379"]
    eventually(lambda: lab.exec("user", [*ctl, "put", "k", "v"]).returncode == 0, "etcd does not answer")
    lab.destroy()
    lab = Lab.deploy(file)
    eventually(lambda: lab.exec("user", [*ctl, "get", "k"]).stdout == "k\nv\n", "the data is gone")


def test_commands_get_input_deadlines_and_plain_errors(make: Make) -> None:
    """stdin arrives whole, a slow program is killed, a missing one and a missing node are told apart."""
    lab = Lab.deploy(make(PAIR))
    text = b"x" * 1_000_000
    assert lab.exec("a", ["cat"], stdin=text).stdout == text.decode()
    assert lab.exec("a", ["sh", "-c", "echo out; echo err >&2; exit 4"]).returncode == 4
    with pytest.raises(TimeoutError):
        lab.exec("a", ["sleep", "987"], timeout=0.2)
    eventually(lambda: "987" not in lab.exec("a", ["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout, "it still runs")
    with pytest.raises(CommandFailedError, match="nosuchprogram"):
        lab.exec("a", ["nosuchprogram"])
    with pytest.raises(LabError, match="no node zz"):
        lab.exec("zz", ["true"])
    # A process that it leaves behind with its output open does not hold the command up.
    assert lab.exec("a", ["sh", "-c", "sleep 1000 & echo started"], timeout=10).stdout == "started\n"


def test_commands_run_from_many_threads_at_once(make: Make) -> None:
    """The API is for programs with threads."""
    lab = Lab.deploy(make(PAIR))
    results: list[str] = []

    def work(number: int) -> None:
        results.extend(lab.exec("ab"[number % 2], ["echo", str(number)]).stdout.strip() for _ in range(5))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(str(number) for number in range(8) for _ in range(5))


def test_deploying_twice_changes_nothing_and_reconfigure_starts_anew(make: Make) -> None:
    """Same containers, same counts; then new ones."""
    file = make(PAIR)
    lab = Lab.deploy(file)
    first = [container["id"] for container in lab.containers()]
    lab = Lab.deploy(file)
    assert lab.plan == [("no changes", "-")]
    assert [container["id"] for container in lab.containers()] == first
    assert lab.exec("a", ["cat", "/tmp/count"]).stdout == "ran\n"
    lab = Lab.deploy(file, reconfigure=True)
    assert lab.plan is None
    assert [container["id"] for container in lab.containers()] != first


def test_a_changed_file_changes_what_it_must(make: Make) -> None:
    """A new node and link, a recreated node that keeps its links, a node that goes; the rest is not touched."""
    file = make(PAIR)
    lab = Lab.deploy(file)
    lab.exec("b", ["touch", "/tmp/mark"])
    text = file.read_text().replace("    b: {exec", "    c: {}\n    b: {exec")
    file.write_text(text.replace("exec sleep 1000", "exec sleep 2000") + '    - endpoints: ["b:eth2", "c:eth2"]\n')
    lab = Lab.deploy(file)
    assert lab.plan == [
        ("added nodes", "c"),
        ("recreated nodes", "a (config drift: Cmd)"),
        ("added links", "b:eth2 -- c:eth2"),
    ]
    lab.exec("b", ["ls", "/tmp/mark"]).check()
    assert lab.exec("a", ["ping", "-c1", "-W2", "10.0.0.2"]).returncode == 0
    lab.exec("c", ["ip", "link", "show", "eth2"]).check()
    file.write_text(text.split("  links:")[0].replace("    c: {}\n", ""))
    lab = Lab.deploy(file)
    assert ("deleted nodes", "c") in (lab.plan or [])
    assert lab.exec("b", ["ip", "link", "show", "eth1"]).returncode == 1


def test_nodes_stop_and_start(make: Make) -> None:
    """State and exit code show; interfaces come back without addresses; processes do not survive."""
    lab = Lab.deploy(make(PAIR))
    lab.exec("a", ["sh", "-c", "sleep 999 >/dev/null 2>&1 &"])
    lab.stop("a")
    container = lab.containers()[0]
    assert (container["state"], container["ipv4"]) == ("exited", "N/A")
    with pytest.raises(LabError, match="not running"):
        lab.exec("a", ["true"])
    lab.start("a")
    # The kernel ends killed processes, and tells of a link's carrier, a moment later on a busy machine.
    commands = ["sh", "-c", "cat /proc/[0-9]*/cmdline"]
    eventually(lambda: "999" not in lab.exec("a", commands).stdout, "a process survives")
    shown = lab.exec("a", ["ip", "-br", "-4", "addr"]).stdout
    assert "172.20.20.2/24" in shown
    assert "10.0.0.1" not in shown
    eventually(lambda: " UP " in lab.exec("a", ["ip", "-br", "link", "show", "eth1"]).stdout, "eth1 is not up")


def test_a_main_process_that_crashes_is_restarted_in_the_same_namespace(make: Make) -> None:
    """Better than a container: links stay; with policy "no" it stays down and says so."""
    lab = Lab.deploy(
        make("""
name: NAME
topology:
  defaults: {kind: linux, image: "calipy/plain:dev"}
  nodes:
    crash: {cmd: "sh -c 'echo x >> /tmp/n; sleep 0.1; exit 3'"}
    once: {cmd: "sh -c 'exit 3'", restart-policy: "no"}
  links: [{endpoints: ["crash:eth1", "once:eth1"]}]
""")
    )
    eventually(lambda: len(lab.exec("crash", ["cat", "/tmp/n"]).stdout.split()) >= 2, "it is not started again")
    lab.exec("crash", ["ip", "link", "show", "eth1"]).check()
    eventually(lambda: lab.containers()[1]["state"] == "exited", "it does not end")
    assert lab.containers()[1]["exit_code"] == 3


def test_killing_the_supervisor_takes_everything_along(make: Make) -> None:
    """kill -9: no process, mount, namespace or interface stays; destroy clears the names, a deploy works at once."""
    file = make(PAIR)
    name = file.name.removesuffix(".clab.yml")
    before = HostState.read(name)
    lab = Lab.deploy(file)
    namespaces = namespaces_of(name)
    lab.exec("a", ["sh", "-c", "sleep 1000 >/dev/null 2>&1 &"])
    os.kill(supervisor_of(lab), signal.SIGKILL)
    eventually(lambda: not lab.runs, "its lock is held")
    eventually(
        lambda: all(line.startswith("namespace:") for line in HostState.read(name, namespaces).beyond(before)),
        "something survives the supervisor",
    )
    assert lab.destroy(cleanup=True)
    nothing_is_left(name, before, namespaces)
    lab = Lab.deploy(file)
    assert lab.exec("a", ["ping", "-c1", "-W2", "10.0.0.2"]).returncode == 0
    os.kill(supervisor_of(lab), signal.SIGKILL)
    eventually(lambda: not lab.runs, "its lock is held")
    assert Lab.deploy(file).plan is None


def test_killing_the_supervisor_in_the_middle_of_a_deploy(make: Make) -> None:
    """At whatever step it dies, nothing of it stays after a destroy."""
    file = make(PAIR.replace("exec: [ip addr add 10.0.0.2/24 dev eth1]", 'exec: ["sleep 100"]'))
    name = file.name.removesuffix(".clab.yml")
    before = HostState.read(name)
    failures: list[Exception] = []

    def deploy() -> None:
        try:
            Lab.deploy(file)
        except LabError as error:
            failures.append(error)

    thread = threading.Thread(target=deploy)
    thread.start()
    lab = Lab(name)
    eventually((Path("/run/netns") / f"clab-{name}-b").exists, "the deploy does not begin")
    os.kill(supervisor_of(lab), signal.SIGKILL)
    thread.join(timeout=30)
    assert failures
    lab.destroy(cleanup=True, directory=str(file.parent / f"clab-{name}"))
    nothing_is_left(name, before, frozenset())


def test_two_labs_side_by_side_do_not_see_each_other(make: Make) -> None:
    """Equal node names, interfaces and addresses."""
    one, two = Lab.deploy(make(PAIR)), Lab.deploy(make(PAIR))
    two.exec("b", ["ip", "link", "set", "eth1", "down"]).check()
    assert one.exec("a", ["ping", "-c1", "-W2", "10.0.0.2"]).returncode == 0
    assert two.exec("a", ["ping", "-c1", "-W1", "10.0.0.2"]).returncode == 1
    assert one.containers()[0]["ipv4"] == two.containers()[0]["ipv4"]
    one.destroy()
    assert two.exec("a", ["true"]).returncode == 0


def test_a_first_deploy_that_fails_is_undone(make: Make) -> None:
    """A program that is not there, an unknown sysctl: the error names it, nothing stays, not even the directory."""
    for definition, word in (
        ("cmd: nosuchprogram", "nosuchprogram"),
        ("sysctls: {net.ipv4.nosuch: 1}", "net.ipv4.nosuch"),
    ):
        file = make(
            'name: NAME\ntopology: {defaults: {kind: linux, image: "calipy/plain:dev"}, '
            f"nodes: {{a: {{}}, b: {{{definition}}}}}}}"
        )
        name = file.name.removesuffix(".clab.yml")
        before = HostState.read(name)
        with pytest.raises(LabError, match=word):
            Lab.deploy(file)
        assert not Lab(name).runs
        assert not (file.parent / f"clab-{name}").exists()
        nothing_is_left(name, before, frozenset())


def test_the_user_of_the_main_process_is_not_that_of_commands(make: Make) -> None:
    """As in Docker: /proc/1 belongs to the user, commands run as root."""
    lab = Lab.deploy(
        make(
            'name: NAME\ntopology: {nodes: {n: {kind: linux, image: "calipy/plain:dev", '
            'user: "65534", cmd: sleep 1000}}}'
        )
    )
    assert lab.exec("n", ["stat", "-c", "%u", "/proc/1"]).stdout == "65534\n"
    assert lab.exec("n", ["id", "-u"]).stdout == "0\n"
    pid = lab.exec("n", ["pidof", "sleep"]).stdout.strip()
    assert lab.exec("n", ["stat", "-c", "%u", f"/proc/{pid}"]).stdout == "65534\n"


def test_binds_tmpfs_and_sysctls(make: Make, tmp_path: Path) -> None:
    """Read-only binds are, others reach the machine; a link in the target's path leads inside the node."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "f").write_text("machine\n")
    file = make("""
name: NAME
topology:
  nodes:
    n:
      kind: linux
      image: calipy/plain:dev
      binds: ["conf:/opt/rw", "conf/f:/etc/f:ro", "conf/f:/var/run/deep/er/f"]
      tmpfs: {/scratch: "size=1m"}
      sysctls: {net.ipv4.tcp_keepalive_time: 333}
      shm-size: 8m
""")
    lab = Lab.deploy(file)
    assert lab.exec("n", ["sh", "-c", "echo x >> /etc/f"]).returncode == 2
    lab.exec("n", ["sh", "-c", "echo node >> /opt/rw/f"]).check()
    assert (tmp_path / "conf" / "f").read_text() == "machine\nnode\n"
    assert lab.exec("n", ["cat", "/run/deep/er/f"]).stdout == "machine\nnode\n"
    assert not Path("/run/deep").exists()
    assert lab.exec("n", ["sh", "-c", "df -k --output=size /scratch /dev/shm"]).stdout.split()[1:] == ["1024", "8192"]
    assert lab.exec("n", ["cat", "/proc/sys/net/ipv4/tcp_keepalive_time"]).stdout == "333\n"


def test_stages_and_links_to_nodes_that_come_later(make: Make, tmp_path: Path) -> None:
    """A node that waits is linked when it comes; the other one has its interface before."""
    (tmp_path / "log").mkdir()
    lab = Lab.deploy(
        make("""
name: NAME
topology:
  defaults: {kind: linux, image: "calipy/plain:dev", binds: ["log:/log"]}
  nodes:
    first:
      exec: [ip addr add 10.0.0.1/24 dev eth1]
      stages: {configure: {exec: [{command: "sh -c 'sleep 0.3; echo first >> /log/order'"}]}}
    then:
      exec: [ip addr add 10.0.0.2/24 dev eth1, ping -c1 -W2 10.0.0.1, "sh -c 'echo then >> /log/order'"]
      stages: {create: {wait-for: [{node: first, stage: configure}]}}
  links: [{endpoints: ["first:eth1", "then:eth1"]}]
"""),
        strict=True,
    )
    assert (tmp_path / "log" / "order").read_text() == "first\nthen\n"
    assert lab.failed == 0


def test_a_node_in_anothers_namespace_and_a_bridge_inside_a_node(make: Make) -> None:
    """Same network and hostname; the bridge forwards."""
    lab = Lab.deploy(
        make("""
name: NAME
topology:
  defaults: {kind: linux, image: "calipy/plain:dev"}
  nodes:
    sw: {}
    "br0|sw": {kind: bridge, network-mode: "container:sw"}
    side: {network-mode: "container:sw"}
    h1: {exec: [ip addr add 10.1.0.1/24 dev eth1]}
    h2: {exec: [ip addr add 10.1.0.2/24 dev eth1]}
  links:
    - endpoints: ["h1:eth1", "br0|sw:p1"]
    - endpoints: ["h2:eth1", "br0|sw:p2"]
""")
    )
    assert lab.exec("h1", ["ping", "-c1", "-W2", "10.1.0.2"]).returncode == 0
    assert lab.exec("side", ["hostname"]).stdout == "sw\n"
    assert (
        "br0"
        in lab.exec("side", ["ip", "-br", "link", "show", "master", "br0"]).stdout
        + lab.exec("side", ["ip", "-br", "link", "show", "br0"]).stdout
    )
    assert next(c for c in lab.containers() if c["node"] == "side")["ipv4"] == "N/A"


def test_a_bridge_of_the_lab_and_links_to_its_host(make: Make) -> None:
    """--create-bridges makes them in the lab's own host; the machine has none of it."""
    file = make("""
name: NAME
topology:
  defaults: {kind: linux, image: "calipy/plain:dev"}
  nodes:
    drvlan0: {kind: bridge}
    h1: {exec: [ip addr add 10.1.0.1/24 dev eth1]}
    h2: {exec: [ip addr add 10.1.0.2/24 dev eth1]}
    box: {kind: host, exec: [ip addr add 10.2.0.1/24 dev drvhost0]}
  links:
    - endpoints: ["h1:eth1", "drvlan0:drvp1"]
    - endpoints: ["h2:eth1", "drvlan0:drvp2"]
    - endpoints: ["h1:eth2", "host:drvhost0"]
""")
    with pytest.raises(LabError, match="drvlan0"):
        Lab.deploy(file)
    lab = Lab.deploy(file, create_bridges=True)
    assert lab.exec("h1", ["ping", "-c1", "-W2", "10.1.0.2"]).returncode == 0
    assert not Path("/sys/class/net/drvlan0").exists()
    assert not Path("/sys/class/net/drvhost0").exists()
    lab.destroy()


def test_a_name_that_is_taken_is_refused(make: Make) -> None:
    """By another lab, or by a namespace of somebody else; neither is touched."""
    first = make('name: NAME\nprefix: ""\ntopology: {nodes: {drvtaken: {kind: linux, image: "calipy/plain:dev"}}}')
    Lab.deploy(first)
    second = make('name: NAME\nprefix: ""\ntopology: {nodes: {drvtaken: {kind: linux, image: "calipy/plain:dev"}}}')
    with pytest.raises(LabError, match=r"drvtaken.*taken by lab"):
        Lab.deploy(second)
    third = make(PAIR)
    name = f"clab-{third.name.removesuffix('.clab.yml')}-a"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with pytest.raises(LabError, match=name):
            Lab.deploy(third)
        assert (Path("/run/netns") / name).exists()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_what_is_recorded_is_all_that_is_cleaned(tmp_path: Path) -> None:
    """A record of a dead lab whose name in /run/netns is another's now: that one stays."""
    entry = registry.Entry(f"drv{os.getpid()}dead")
    lock = entry.lock()
    assert lock is not None
    link = registry.NETNS / f"clab-{entry.lab}-n"
    registry.NETNS.mkdir(exist_ok=True)
    link.symlink_to("/proc/self/ns/net")
    try:
        entry.record({"lab": entry.lab, "netns": {link.name: "/proc/999999/ns/net"}})
        os.close(lock)
        assert registry.clean(entry)
        assert link.is_symlink()
        assert not entry.path.exists()
    finally:
        link.unlink()


def test_topologies_are_found_as_containerlab_finds_them(tmp_path: Path) -> None:
    """The file, the only one in a directory, else an error that names the place."""
    with pytest.raises(TopologyError, match="none"):
        reading.find_topology(tmp_path)
    (tmp_path / "x.clab.yml").touch()
    assert reading.find_topology(tmp_path) == tmp_path / "x.clab.yml"
    (tmp_path / "y.clab.yaml").touch()
    with pytest.raises(TopologyError, match=r"x\.clab\.yml, y\.clab\.yaml"):
        reading.find_topology(tmp_path)
    with pytest.raises(TopologyError, match="nosuch"):
        reading.find_topology(tmp_path / "nosuch")


def test_what_keeps_a_node_from_ending_is_told(make: Make) -> None:
    """A PID namespace that cannot end: progress after a second, then an error that names the process and the remedy."""
    lab = Lab.deploy(make(PAIR), strict=True)
    first = next(node["pid"] for node in lab.containers() if node["node"] == "a")
    inside = ["nsenter", "--target", str(first), "--pid", "sh", "-c", "echo in; exec sleep 1000"]
    with subprocess.Popen(inside, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "in\n"
            holder.send_signal(signal.SIGSTOP)  # it does not collect what it has started
            told: list[str] = []
            lab.destroy(nodes=["b"])
            with pytest.raises(LabError) as caught:
                lab.destroy(report=lambda _level, text: told.append(text), timeout=1.5)
            assert len(told) == 1
            assert told[0].startswith("node a is still ending: process ")
            assert f"process {holder.pid} (nsenter) does not collect it" in str(caught.value)
            assert f"kill -KILL {holder.pid}" in str(caught.value)
            assert f"calipy lab destroy --name {lab.name}" in str(caught.value)
            assert [node["node"] for node in lab.containers()] == ["a"], (
                "the rest is gone, and the lab can be destroyed"
            )
        finally:
            holder.kill()
    assert lab.destroy(cleanup=True)
    assert not lab.runs
