"""Health of the agent: ready and live when all is well; a tool that is missing, slow or failing; a hang."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.felix import until
from tests.support.fv import Lab
from tests.support.matrix import PATIENCE
from tests.support.objects import global_policy
from tests.support.scraping import get

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

PORT = 9099


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the agent looks for programs in before all others."""
    return tmp_path_factory.mktemp("tools")


@pytest.fixture(scope="module")
def lab(tools: Path) -> Iterator[Lab]:
    """One node with a pod, and a machine outside."""
    with Lab(PATH=f"{tools}:{os.environ['PATH']}") as lab:
        lab.external()
        lab.pod("web")
        yield lab.settled()


def replace_tools(lab: Lab, directory: Path, script: str) -> None:
    """Put a script in the place of the programs that write rules, for the duration of the test."""
    for name in ("iptables-nft-restore", "ip6tables-nft-restore", "iptables-nft-save", "ip6tables-nft-save"):
        fake = directory / name
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        lab.defer(fake.unlink, missing_ok=True)


def readiness(lab: Lab) -> tuple[int, str]:
    try:
        return get(lab.nodes[0], "/readiness", port=PORT)
    except OSError:
        return 0, ""


def test_ready_and_live_when_all_is_well(lab: Lab) -> None:
    """Both answer 200 with a table of the parts; on localhost alone."""
    [node], [world] = lab.nodes, lab.externals
    until(lambda: readiness(lab)[0] == 200, timeout=PATIENCE)
    status, table = get(node, "/liveness", port=PORT)
    assert status == 200
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["startup", "datastore", "felix", "parameters"]
    with pytest.raises(ConnectionRefusedError):
        get(world, "/liveness", host=node.ip, port=PORT)


def test_a_tool_that_fails_makes_it_unready_until_it_works(lab: Lab, tools: Path) -> None:
    """The reason is told, the agent lives on, and what waited is programmed when the tool is back."""
    [node], [web], [world] = lab.nodes, lab.pods, lab.externals
    until(lambda: readiness(lab)[0] == 200, timeout=PATIENCE)
    pid = node.agent.pid
    replace_tools(lab, tools, "echo broken >&2; exit 3")
    lab.apply(global_policy("shut", selector="all()", types=["Ingress"]), wait=False)
    _, table = until(lambda: (found := readiness(lab))[0] == 503 and found, timeout=PATIENCE)
    assert "broken" in table
    assert get(node, "/liveness", port=PORT)[0] == 200
    for fake in tools.iterdir():
        fake.unlink()
    lab.sync()
    assert until(lambda: readiness(lab)[0] == 200, timeout=PATIENCE)
    lab.expect({(world, web): "!tcp/80"})
    assert node.agent.pid == pid


def test_a_tool_that_is_slow_makes_it_unready_meanwhile(lab: Lab, tools: Path) -> None:
    """A change that does not get into the kernel is not hidden by what was there before."""
    release = tools / "release"
    replace_tools(lab, tools, f'while [ ! -e {release} ]; do sleep 0.05; done; exec /usr/sbin/"${{0##*/}}" "$@"')
    lab.defer(release.unlink, missing_ok=True)
    lab.apply(global_policy("shut", selector="all()", types=["Ingress"]), wait=False)
    try:
        _, table = until(lambda: (found := readiness(lab))[0] == 503 and found, timeout=2 * PATIENCE)
        assert "the kernel has not taken the last changes" in table
        assert get(lab.nodes[0], "/liveness", port=PORT)[0] == 200
    finally:
        release.touch()
    lab.sync()
    until(lambda: readiness(lab)[0] == 200, timeout=PATIENCE)


def test_without_its_tools_it_does_not_start(lab: Lab, tools: Path) -> None:
    """It ends with an error that says what is missing, so that the supervisor starts it again."""
    [node] = lab.nodes
    node.agent.stop()
    lab.defer(node.agent.start)
    lab.defer(node.agent.stop)
    replace_tools(lab, tools, "echo cannot do that >&2; exit 127")
    before = len(node.agent.log.read_text())
    node.agent.start()
    os.waitid(os.P_PID, node.agent.pid, os.WEXITED | os.WNOWAIT)
    said = node.agent.log.read_text()[before:]
    assert "cannot do that" in said
    assert not readiness(lab)[0]


def test_a_port_that_is_taken_is_told_and_tried_again(lab: Lab) -> None:
    """The agent works all the same, says in its status what to do, and answers probes once the port is free."""
    [node] = lab.nodes
    node.agent.stop()
    with node.ns.call(socket.create_server, ("127.0.0.1", PORT)):
        node.agent.start()
        [warning] = until(node.warnings, timeout=PATIENCE)
        assert f"localhost:{PORT}" in warning
        assert "FELIX_HEALTHPORT" in warning
        lab.sync()
    until(lambda: readiness(lab)[0] == 200, timeout=PATIENCE)
    assert node.warnings() == []


def test_a_hang_answers_nobody(lab: Lab) -> None:
    """A process that does not get on does not answer its probe, and is well again when it does."""
    [node] = lab.nodes
    until(lambda: readiness(lab)[0] == 200, timeout=PATIENCE)
    os.kill(node.agent.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OSError):
            get(node, "/liveness", port=PORT, timeout=1)
    finally:
        os.kill(node.agent.pid, signal.SIGCONT)
    until(lambda: readiness(lab)[0] == 200, timeout=PATIENCE)
