"""``calipy lab`` as a user types it: what goes to stdout, what to stderr, and the exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from calipy.cli.lab import command as lab_command
from calipy.containerlab.errors import LabError
from tests.support import owned

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

PAIR = """
name: NAME
topology:
  defaults: {kind: linux, image: "calipy/plain:dev"}
  nodes:
    a: {labels: {role: left}, exec: [ip addr add 10.0.0.1/24 dev eth1]}
    b: {labels: {role: right}}
  links: [{endpoints: ["a:eth1", "b:eth1"], mtu: 1500}]
"""


class Cli:
    """Runs the command with a registry of its own, so that ``--all`` means the labs of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.registry = Path("/run", owned.name("labs"))
        self.name = f"cli{os.getpid()}x{uuid.uuid4().hex[:6]}"
        self.file = directory / "x.clab.yml"
        self.write(PAIR)

    def write(self, text: str) -> None:
        self.file.write_text(text.replace("NAME", self.name))

    def __call__(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "CALIPY_LAB_RUN_DIR": str(self.registry)}
        command = [sys.executable, "-m", "calipy.cli.main", "lab", *argv]
        return subprocess.run(
            command, cwd=self.directory, env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    def ok(self, *argv: str, stdin: str = "") -> str:
        """Standard output of a command that has to succeed."""
        done = self(*argv, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Cli]:
    """The command, and nothing left of it afterwards."""
    cli = Cli(tmp_path)
    yield cli
    cli.ok("destroy", "--all", "--yes", "--cleanup")
    subprocess.run(["rm", "-rf", str(cli.registry)], check=True)


def test_deploy_inspect_exec_destroy(lab: Cli) -> None:
    """The summary is a table; JSON has containerlab's keys; plain results of exec are on stderr."""
    shown = lab.ok("deploy", "-t", "x.clab.yml")
    assert "│ Name" in shown.replace("   ", " ") or "Name" in shown
    assert f"clab-{lab.name}-a" in shown
    entries = json.loads(lab.ok("inspect", "-f", "json"))[lab.name]
    assert list(entries[0]) == [
        *("lab_name", "labPath", "absLabPath", "name", "container_id", "image", "kind", "state", "status"),
        *("ipv4_address", "ipv6_address"),
    ]
    assert (entries[0]["labPath"], entries[0]["ipv4_address"]) == ("x.clab.yml", "172.20.20.2/24")
    rows = list(csv.reader(io.StringIO(lab.ok("ins", "-f", "csv"))))
    assert (rows[0][-1], len(rows), rows[1][-1]) == ("owner", 3, "")
    plain = lab("exec", "--label", "role=left", "--cmd", "echo visible")
    assert (plain.returncode, plain.stdout) == (0, "")
    assert f"clab-{lab.name}-a" in plain.stderr
    assert "visible" in plain.stderr
    found = json.loads(lab.ok("exec", "--label", "role=left", "--cmd", "sh -c 'echo 12; exit 3'", "-f", "json"))
    assert found == {
        f"clab-{lab.name}-a": [{"cmd": ["sh", "-c", "echo 12; exit 3"], "return-code": 3, "stdout": 12, "stderr": ""}]
    }
    interfaces = json.loads(lab.ok("inspect", "interfaces", "-f", "json", "-n", f"clab-{lab.name}-a"))
    assert [entry["name"] for entry in interfaces[0]["interfaces"]] == ["eth0", "eth1", "lo"]
    again = lab.ok("deploy", "-t", "x.clab.yml")
    assert "no changes" in again
    lab.ok("destroy", "-t", "x.clab.yml", "--cleanup")
    assert not (lab.directory / f"clab-{lab.name}").exists()
    assert json.loads(lab.ok("inspect", "--all", "-f", "json")) == {}


def test_a_command_on_the_terminal(lab: Cli) -> None:
    """Streams are the caller's, the exit status is the command's, 126 stands for a missing program."""
    lab.ok("deploy")
    done = lab("exec", "a", "--", "sh", "-c", "cat; echo err >&2; exit 5", stdin="typed")
    assert (done.returncode, done.stdout, done.stderr) == (5, "typed", "err\n")
    assert lab("exec", "a", "sh", "-c", "exit 7").returncode == 7
    assert lab("exec", "a", "nosuchprogram").returncode == 126
    assert lab("exec", "a").returncode == 1
    assert lab("exec", "zz", "true").returncode == 1


def test_the_host_of_a_running_lab_cannot_be_changed(lab: Cli) -> None:
    """It is said, not ignored."""
    lab.ok("deploy")
    done = lab("deploy", "--host-netns")
    assert done.returncode == 1
    assert "--reconfigure" in done.stderr


MACHINE = """
mount -t tmpfs none /run/netns && ip link set lo up || exit 9
lab() { "$PYTHON" -m calipy.cli.main lab --host-netns "$@"; }
state() { ip -o link; ls -A /run/netns; }
for name in $FIRST $SECOND; do sed "s/NAME/$name/" x.clab.yml > $name.clab.yml; done
state > before
lab deploy -t $FIRST.clab.yml > first & first=$!
lab deploy -t $SECOND.clab.yml > second || exit 1
wait $first || exit 2
test $(ip -o link show type bridge | wc -l) = 1 || exit 3
lab inspect --all -f json > inspect || exit 4
pid=$(lab inspect --name $FIRST --details -f json | grep -m1 '"Pid"' | tr -dc 0-9)
for address in $(grep -o '172[.][.0-9]*' inspect); do ping -c1 -W2 $address > /dev/null || exit 5; done
kill -9 $(awk '{print $4}' /proc/$pid/stat)
lab destroy --name $FIRST || exit 6
test $(ip -o link show type bridge | wc -l) = 1 || exit 7
lab destroy --name $SECOND || exit 8
state > after
"""


def test_labs_share_the_bridge_of_the_machine(lab: Cli) -> None:
    """Deployed at once they take different addresses; the last one takes the bridge away, whoever made it."""
    lab.file.write_text(PAIR)
    env = {
        **os.environ,
        "CALIPY_LAB_RUN_DIR": str(lab.registry),
        "PYTHON": sys.executable,
        "FIRST": f"{lab.name}p",
        "SECOND": f"{lab.name}q",
    }
    isolated = ["unshare", "--mount", "--net", "--propagation", "private", "bash", "-c", MACHINE]
    done = subprocess.run(
        isolated, cwd=lab.directory, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    addresses = [
        entry["ipv4_address"]
        for entries in json.loads((lab.directory / "inspect").read_text()).values()
        for entry in entries
    ]
    assert len(set(addresses)) == 4
    assert (lab.directory / "after").read_text() == (lab.directory / "before").read_text()


def test_strict_makes_failed_commands_count(lab: Cli) -> None:
    """Without it a failed exec is exit status 0, as in containerlab."""
    lab.write(PAIR.replace("ip addr add 10.0.0.1/24 dev eth1", "sh -c 'exit 7'"))
    assert lab("deploy").returncode == 0
    assert lab("exec", "--cmd", "false").returncode == 0
    assert lab("exec", "--cmd", "false", "--strict").returncode == 1
    assert lab("deploy", "--reconfigure", "--strict").returncode == 1
    assert lab("inspect").returncode == 0


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("frobnicate",), "frobnicate"),
        (("deploy", "--nosuchflag"), "nosuchflag"),
        (("inspect", "-f", "yaml"), "yaml"),
        (("exec",), "--cmd"),
        (("exec", "--cmd", "id"), "does not run"),
        (("exec", "--cmd", "'open"), "closed"),
        (("deploy", "-t", "nosuch.clab.yml"), "nosuch.clab.yml"),
        (("destroy", "--name", "neverwas"), "neverwas"),
        (("destroy", "--all", "--name", "x"), "--all"),
        (("destroy", "--node-filter", "a", "--cleanup"), "--cleanup"),
        (("inspect",), "does not run"),
        (("deploy", "--node-filter", "zz"), "zz"),
        (("deploy", "--runtime", "docker"), "docker"),
        (("deploy", "--vars", "x.yml"), "template"),
        (("graph",), "--mermaid"),
        (("graph", "--mermaid", "--mermaid-direction", "XX"), "XX"),
    ],
)
def test_wrong_command_lines_are_exit_status_1(lab: Cli, argv: tuple[str, ...], word: str) -> None:
    """With a message on stderr that names what is wrong, and nothing on stdout."""
    done = lab(*argv)
    assert (done.returncode, done.stdout) == (1, "")
    assert word in done.stderr


def test_a_refused_file_names_its_line_and_creates_nothing(lab: Cli) -> None:
    """No lab, no directory, no supervisor."""
    lab.write(PAIR.replace("mtu: 1500", "mtu: jumbo"))
    done = lab("deploy")
    assert done.returncode == 1
    assert "x.clab.yml:8: topology.links[0].mtu" in done.stderr
    assert "jumbo" in done.stderr
    assert sorted(path.name for path in lab.directory.iterdir()) == ["x.clab.yml"]
    assert not lab.registry.exists() or not [p for p in lab.registry.iterdir() if not p.name.startswith(".")]


def test_a_topology_may_come_from_standard_input(lab: Cli) -> None:
    """And is then known by its name."""
    name = f"{lab.name}in"
    lab.ok("deploy", "-t", "-", stdin=PAIR.replace("NAME", name))
    assert name in json.loads(lab.ok("inspect", "--name", name, "-f", "json"))
    lab.ok("destroy", "--name", name, "--cleanup")


def test_parts_of_a_lab(lab: Cli) -> None:
    """A filter deploys and destroys some nodes; inspect with the file then misses the others."""
    lab.ok("deploy", "--node-filter", "a")
    assert lab("inspect").returncode == 1
    assert [entry["name"] for entry in json.loads(lab.ok("inspect", "--all", "-f", "json"))[lab.name]] == [
        f"clab-{lab.name}-a"
    ]
    lab.ok("deploy")
    lab.ok("destroy", "--node-filter", "b")
    assert len(json.loads(lab.ok("inspect", "--all", "-f", "json"))[lab.name]) == 1


def test_flags_may_come_from_the_environment_and_before_the_command(lab: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """``CLAB_TOPO`` stands for ``-t``."""
    monkeypatch.setenv("CLAB_TOPO", str(lab.file))
    assert "valid" in lab("validate").stderr
    monkeypatch.delenv("CLAB_TOPO")
    assert lab("-t", str(lab.file), "validate").returncode == 0
    assert "│ deploy lab │" in lab.ok("deploy", "--dry-run")
    lab.ok("graph", "--dot")
    assert "a--b[ color=black ];" in (lab.directory / f"clab-{lab.name}" / "graph" / "x.clab.dot").read_text()


def test_lifecycle(lab: Cli) -> None:
    """stop, start, restart and redeploy; unknown nodes are named."""
    lab.ok("deploy")
    lab.ok("stop", "-n", "a")
    states = {e["name"]: e["state"] for e in json.loads(lab.ok("inspect", "-f", "json"))[lab.name]}
    assert states == {f"clab-{lab.name}-a": "exited", f"clab-{lab.name}-b": "running"}
    lab.ok("start", "-n", "a")
    lab.ok("restart", "-n", "a,b")
    done = lab("stop", "-n", "nosuch")
    assert done.returncode == 1
    assert "nosuch" in done.stderr
    lab.ok("redeploy")
    assert "exited" not in lab.ok("inspect")


@pytest.mark.parametrize("name", ["../precious", "..", ".", ".stage", "a/../../precious", "/precious"])
@pytest.mark.parametrize("command", [["destroy", "--cleanup"], ["inspect"], ["exec", "--cmd", "true"], ["stop"]])
def test_a_lab_name_is_no_path(name: str, command: list[str], tmp_path: Path) -> None:
    """The place of a lab is removed with it: a name that leads elsewhere is refused, and what is there stays."""
    registry, precious = tmp_path / "labs", tmp_path / "precious"
    (registry / ".stage").mkdir(parents=True)
    precious.mkdir()
    (precious / "file").touch()
    command = [*command, "--name", str(precious) if name == "/precious" else name]
    done = CliRunner().invoke(lab_command, command, env={"CALIPY_LAB_RUN_DIR": str(registry)})
    assert isinstance(done.exception, LabError)
    assert "is no name of a lab" in str(done.exception)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".stage", "file", "labs", "precious"]


def test_a_registry_without_a_place(tmp_path: Path) -> None:
    """A registry that cannot be made is one sentence that names it."""
    (tmp_path / "file").touch()
    (tmp_path / "x.clab.yml").write_text(PAIR.replace("NAME", "x"))
    command = [sys.executable, "-m", "calipy.cli.main", "lab", "deploy", "-t", str(tmp_path)]
    env = {**os.environ, "CALIPY_LAB_RUN_DIR": str(tmp_path / "file" / "labs")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr
