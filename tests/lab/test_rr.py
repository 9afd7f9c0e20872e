"""The lab with reflectors of four makes: each of them alone is enough for every pod to reach every pod."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from calipy.cli.routers import other_router
from calipy.containerlab.driver import Lab
from calipy.containerlab.mesh import TOPOLOGY, Matrix, Mesh, Pod, wait_until
from tests.support.routers import FRR

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

HERE = TOPOLOGY.parent
NODES = ("n1", "n2", "n3", "n4")
PEERS = {
    document["metadata"]["name"]: yaml.safe_dump(document)
    for document in yaml.safe_load_all((HERE / "configs" / "rr-peers.yaml").read_text())
    if document["kind"] == "BGPPeer" and document["metadata"]["name"] != "router"
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The shipped topology under a name of this process's own, one pod on each node."""
    missing = [one for one in ("bird", "gobgpd", str(FRR / "bgpd")) if shutil.which(one) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    name = f"rrtest{os.getpid()}"
    directory = tmp_path_factory.mktemp("rr")
    (directory / "configs").symlink_to(HERE / "configs")
    file: Path = directory / f"{name}.clab.yml"
    file.write_text((HERE / "rr.clab.yml").read_text().replace("name: rr\n", f"name: {name}\n", 1))
    lab = Lab.deploy(file, reconfigure=True, strict=True)
    deployed = Mesh(lab)
    try:
        wait_until(lambda: all(established(deployed, node) == 4 for node in NODES), 90.0, lambda: "no sessions")
        deployed.add_pods([Pod(f"p{node}", node, "pod") for node in NODES])
        yield deployed
    finally:
        deployed.close()
        lab.destroy(cleanup=True)


def established(mesh: Mesh, node: str) -> int:
    """How many sessions are up."""
    return sum(peer["info"] == "Established" for peer in mesh.peers(node))


def learned(mesh: Mesh, node: str) -> list[str]:
    """What BGP has told a node."""
    return sorted(
        route["dst"]
        for route in mesh.routes(node)
        if route.get("protocol") in ("82", "calipy-bgp") and "gateway" in route
    )


def unreached(matrix: Matrix) -> list[str]:
    """Pairs that did not reach each other by every protocol."""
    return [
        f"{source} > {target}"
        for source, row in matrix.items()
        for target, cell in row.items()
        if not (cell["icmp"] and cell["tcp"] and cell["udp"])
    ]


@pytest.mark.parametrize("reflector", sorted(PEERS))
def test_each_reflector_alone(mesh: Mesh, reflector: str) -> None:
    """Without reflectors nobody knows a route; with any one of them every pod reaches every pod."""
    mesh.run("n1", "calipy", "delete", "bgppeers", *PEERS)
    wait_until(lambda: not any(learned(mesh, node) for node in NODES), 30.0, lambda: "routes stayed")
    mesh.lab.exec("n1", ["calipy", "apply", "-f", "-"], stdin=PEERS[reflector].encode())
    wait_until(lambda: all(len(learned(mesh, node)) == 3 for node in NODES), 60.0, lambda: str(mesh.peers("n1")))
    assert [established(mesh, node) for node in NODES] == [1] * 4
    wait_until(lambda: not unreached(mesh.matrix()), 30.0, lambda: "; ".join(unreached(mesh.matrix())))


@pytest.mark.parametrize("router", ["rr1", "rr2", "rr3"])
def test_other_routers_are_named(mesh: Mesh, router: str) -> None:
    """Where another daemon speaks BGP, calipy says which, and how to ask it: with a command that works there."""
    for asked in (("bgp", "peers"), ("node", "status")):
        done = mesh.run(router, "calipy", *asked)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert "start the node" not in said, said
        command = said.partition("(pid ")[2].partition("): ")[2].strip()
        answer = mesh.run(router, *shlex.split(command))
        assert answer.returncode == 0, (command, answer)
        assert "10.10.0.1" in answer.stdout or "Established" in answer.stdout, answer.stdout  # the session with r1


def test_a_labs_routers_are_not_the_machines(mesh: Mesh) -> None:
    """Routers in other network namespaces, seen in the same /proc, do not speak BGP for this host."""
    assert other_router() == ""
