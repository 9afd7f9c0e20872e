"""Files that tell a CNI plugin which pods are set up, so that a pod can wait for its policy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.felix import until
from tests.support.fv import POD_NAMESPACE, Lab, Pod
from tests.support.matrix import PATIENCE
from tests.support.objects import global_policy, gone

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files will be."""
    return tmp_path_factory.mktemp("calico") / "endpoint-status"


@pytest.fixture(scope="module")
def lab(directory: Path) -> Iterator[Lab]:
    """One node with a pod."""
    with Lab(FELIX_ENDPOINTSTATUSPATHPREFIX=str(directory.parent)) as lab:
        lab.pod("web")
        yield lab.settled()


def name(pod: Pod) -> str:
    return f"k8s {POD_NAMESPACE}%2F{pod.name} eth0"


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def test_a_file_says_that_a_pod_is_set_up(lab: Lab, directory: Path) -> None:
    """It comes when policy and routes are in the kernel, tells which interface and addresses, and goes with the pod."""
    [web] = lab.pods
    until(lambda: files(directory) == {name(web)}, timeout=PATIENCE)
    told = json.loads((directory / name(web)).read_text())
    assert told == {"ifaceName": web.interface, "ipv4Nets": [f"{web.ip}/32"], "ipv6Nets": [f"{web.ip6}/128"]}

    late = lab.pod("late", endpoint=False)
    lab.sync()
    assert files(directory) == {name(web)}
    lab.apply(late.object(), wait=False)
    until(lambda: files(directory) == {name(web), name(late)}, timeout=PATIENCE)
    [node] = lab.nodes
    assert any(f"cali-tw-{late.interface}" in rule for rule in node.rules())
    assert late.ip in node.ns.run("ip", "route", "show", "dev", late.interface)
    lab.delete(gone(late.object()), wait=False)
    until(lambda: files(directory) == {name(web)}, timeout=PATIENCE)


def test_a_pod_that_is_not_up_has_no_file(lab: Lab, directory: Path) -> None:
    """It goes when the interface goes down, and comes back with it."""
    [node], web = lab.nodes, lab.pods[0]
    until(lambda: files(directory) == {name(web)}, timeout=PATIENCE)
    node.ns.links.set_down(web.interface)
    until(lambda: not files(directory), timeout=PATIENCE)
    node.ns.links.set_up(web.interface)
    until(lambda: files(directory) == {name(web)}, timeout=PATIENCE)


def test_files_stay_until_it_is_known_what_is_up(lab: Lab, directory: Path, tmp_path: Path) -> None:
    """An agent that cannot yet bring the kernel in line takes no file away: what an earlier one programmed holds."""
    [node], web = lab.nodes, lab.pods[0]
    until(lambda: files(directory) == {name(web)}, timeout=PATIENCE)
    fake = tmp_path / "ipset"
    fake.write_text('#!/bin/sh\n[ "$1" = restore ] && { echo broken >&2; exit 1; }\nexec /usr/sbin/ipset "$@"\n')
    fake.chmod(0o755)
    node.stop()
    ingress = [{"action": "Allow", "source": {"selector": "has(friend)"}}]
    lab.apply(global_policy("needs-a-set", selector="all()", types=["Ingress"], ingress=ingress), wait=False)
    node.agent.start(PATH=f"{tmp_path}:{os.environ['PATH']}")
    try:
        until(lambda: any("broken" in error for error in node.felix().get("errors", ())), timeout=PATIENCE)
        status = node.agent.status()["felix"]["endpoints"]["fv/web/eth0"]
        assert status["state"] == "down"
        assert files(directory) == {name(web)}
    finally:
        fake.unlink()
        node.stopped = False
    lab.sync()
    assert files(directory) == {name(web)}


def test_files_outlive_the_agent(lab: Lab, directory: Path) -> None:
    """While it is away and when it is back they stay as they are, not written anew; what became stale goes."""
    [node], web = lab.nodes, lab.pods[0]
    until(lambda: files(directory) == {name(web)}, timeout=PATIENCE)
    node.agent.stop()
    before = (directory / name(web)).stat().st_ino
    (directory / f"k8s {POD_NAMESPACE}%2Fold eth0").write_text("{}")
    node.agent.start()
    until(lambda: files(directory) == {name(web)}, timeout=PATIENCE)
    assert (directory / name(web)).stat().st_ino == before
