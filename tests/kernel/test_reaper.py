"""A process of tests killed at any moment leaves nothing: no process, namespace, directory or lab."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import owned
from tests.support.bgp import ROOT, eventually_is

pytestmark = [pytest.mark.kernel, pytest.mark.lab]

LAB = """
name: NAME
topology: {nodes: {a: {kind: linux, image: "calipy/plain:dev", cmd: sleep 1000}}}
"""

TESTS = """
import os, subprocess, sys
from pathlib import Path
from calipy.containerlab.driver import Lab
from tests.support import owned
from tests.support.etcd import EtcdServer
from tests.support.netns import Namespace

owned.start_reaper()
os.environ["CALIPY_LAB_RUN_DIR"] = str(owned.lab_registry())
print("begun", flush=True)
namespace = Namespace("left")
argv = ["nsenter", f"--net={namespace.path}", "env", "-i", "sleep", "1000"]  # no mark, but our namespace
subprocess.Popen(argv, start_new_session=True)
subprocess.Popen(["sleep", "1000"], start_new_session=True)  # our mark
etcd = EtcdServer()
etcd.start()
file = owned.directory("topology") / "x.clab.yml"
file.write_text(sys.argv[1].replace("NAME", f"reap{os.getpid()}"))
Lab.deploy(file)
print("ready", flush=True)
sys.stdin.read()
"""


def left_of(pid: int) -> list[str]:
    """What still is there of a process of tests."""
    places = (*map(Path, ("/run", "/run/netns", "/tmp", "/dev/shm")),)
    found = [str(path) for place in places for path in place.glob(f"cltest-{pid}-*")]
    found += map(str, Path("/run/netns").glob(f"clab-reap{pid}-*"))
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{owned.MARK}={pid}".encode() in environment or f"cltest-{pid}-" in command or f"reap{pid}" in command:
            found.append(f"{entry.name} {command}")
    return found


@pytest.mark.parametrize("moment", [random.random(), 1.0], ids=["on the way", "all stands"])
def test_nothing_stays(moment: float) -> None:
    """Killed on the way, or when all stands."""
    argv = [sys.executable, "-c", TESTS, LAB]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as tests:
        assert tests.stdout
        assert tests.stdout.readline() == "begun\n"
        if moment == 1:
            assert tests.stdout.readline() == "ready\n"
            assert len(left_of(tests.pid)) > 6
        else:
            time.sleep(moment)
        tests.send_signal(signal.SIGKILL)
    eventually_is("what is left", [], lambda: left_of(tests.pid), 60)
