"""The demonstration mesh, deployed once: each thing that `./run demo` shows, as a test that fails when it is not so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from calipy.containerlab import demo
from calipy.containerlab.driver import Lab
from calipy.containerlab.mesh import (
    NODES,
    POLICY,
    TOPOLOGY,
    Mesh,
    Pod,
    wait_until,
    wrong_cells,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


def everybody(_a: Pod, _b: Pod, _protocol: str) -> bool:
    return True


def only_the_client_to_web(a: Pod, b: Pod, protocol: str) -> bool:
    return b.name != "web" or (a.name == "client" and protocol == "tcp")


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped topology under a name of this process's own."""
    name = f"meshtest{os.getpid()}"
    directory = tmp_path_factory.mktemp("mesh")
    (directory / "configs").symlink_to(TOPOLOGY.parent / "configs")
    text = TOPOLOGY.read_text().replace("name: mesh", f"name: {name}", 1)
    file = directory / f"{name}.clab.yml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def mesh(topology: Path) -> Iterator[Mesh]:
    """It runs, its nodes are ready, its pods are there and routed everywhere."""
    lab = Lab.deploy(topology, reconfigure=True, strict=True)
    deployed = Mesh(lab)
    try:
        deployed.wait_ready(90.0)
        deployed.add_pods()
        wait_until(lambda: not demo.unrouted(deployed), 20.0, lambda: "; ".join(demo.unrouted(deployed)))
        yield deployed
    finally:
        deployed.close()
        lab.destroy(cleanup=True)


def test_every_node_is_established_with_every_peer(mesh: Mesh) -> None:
    """Two mesh sessions and one with the router on each node, all Established, none of them unexpected."""
    for node in NODES:
        peers = mesh.peers(node)
        assert sorted(p["type"] for p in peers) == ["global", "node-to-node mesh", "node-to-node mesh"]
        assert {p["info"] for p in peers} == {"Established"}
    assert "Established" in mesh.must("n1", "calipy", "node", "status")


def test_routes_lead_over_the_right_next_hops(mesh: Mesh) -> None:
    """Own pods as /32 to their veth, other nodes' blocks via the node or the router, a blackhole for the own block."""
    assert demo.wrong_next_hops(mesh) == []
    for node in NODES:
        routes = mesh.routes(node)
        own = [r for r in routes if r.get("type") == "blackhole"]
        assert [r["dst"].split("/")[1] for r in own] == ["26"]
        local = [r for r in routes if r.get("dev", "").startswith("cali")]
        assert sorted(r["dst"] for r in local) == sorted(p.address for p in mesh.pods.values() if p.node == node)
        learned = [r for r in routes if r.get("protocol") in ("82", "calipy-bgp") and r not in own]
        assert len(learned) == len(NODES) - 1


def test_all_pods_reach_all_pods_as_themselves(mesh: Mesh) -> None:
    """ICMP, TCP and UDP; the server sees the client's own address; TTL falls by the routed hops."""
    assert wrong_cells(mesh.matrix(), mesh.pods, everybody) == []


def test_nothing_is_wrapped_around_the_packets(mesh: Mesh) -> None:
    """A capture between router and node shows the pods' own packets and nothing else."""
    assert demo.encapsulated(demo.Story(), mesh) == []


def test_policy_cuts_what_it_should_and_established_flows_survive(mesh: Mesh) -> None:
    """A Kubernetes NetworkPolicy: allowed pairs work, denied ones do not, a held connection goes on; and it can go."""
    held = mesh.hold(mesh.pods["client"], mesh.pods["web"], 6.0)
    mesh.must("n1", "calipy", "apply", "-f", str(POLICY))
    try:
        wait_until(
            lambda: not wrong_cells(mesh.matrix(0.5), mesh.pods, only_the_client_to_web),
            20.0,
            lambda: "; ".join(wrong_cells(mesh.matrix(), mesh.pods, only_the_client_to_web)),
        )
        result = held.result()
        assert result["broken"] == ""
        assert result["exchanges"] > 20
    finally:
        mesh.must("n1", "calipy", "delete", "-f", str(POLICY))
    wait_until(
        lambda: not wrong_cells(mesh.matrix(0.5), mesh.pods, everybody),
        20.0,
        lambda: "; ".join(wrong_cells(mesh.matrix(), mesh.pods, everybody)),
    )


def test_a_moved_pod_is_reachable_and_its_old_address_is_gone(mesh: Mesh) -> None:
    """Deleted on one node and added on another: the new address answers, no route or set knows the old one."""
    old = mesh.delete_pod("db")
    new = mesh.add_pod(Pod("db", "n3", "db"))
    cron = mesh.pods["cron"]
    wait_until(lambda: bool(mesh.check(cron, new, 0.5)["tcp"]), 15.0, lambda: f"{new.address} does not answer")
    wait_until(lambda: not demo.remains(mesh, old), 5.0, lambda: "; ".join(demo.remains(mesh, old)))
    mesh.delete_pod("db")
    mesh.add_pod(Pod("db", "n2", "db"))


@pytest.mark.parametrize("daemon", ["agent", "bgpd"])
def test_a_killed_daemon_loses_no_packet(mesh: Mesh, daemon: str) -> None:
    """SIGKILL under a constant stream: it is back and ready, every packet was answered."""
    stream = mesh.stream(mesh.pods["cron"], mesh.pods["batch"], 8.0)
    killed = mesh.kill_daemon("n1", daemon)
    wait_until(
        lambda: mesh.daemon_pid("n1", daemon) not in (0, killed) and mesh.readiness("n1")[0],
        30.0,
        lambda: mesh.readiness("n1")[1],
    )
    result = stream.result()
    assert result["received"] == result["sent"]
    assert not mesh.unready()


def test_an_absent_datastore_loses_no_packet_and_readiness_says_so(mesh: Mesh) -> None:
    """etcd hangs: traffic goes on, nodes become not ready with the reason, and ready again when it is back."""
    stream = mesh.stream(mesh.pods["cron"], mesh.pods["batch"], 16.0)
    demo.stop_etcd(mesh)
    try:
        wait_until(lambda: not mesh.readiness("n1")[0], 30.0, lambda: "n1 still claims to be ready")
        assert "datastore" in mesh.readiness("n1")[1]
    finally:
        demo.start_etcd(mesh)
    wait_until(lambda: mesh.readiness("n1")[0], 60.0, lambda: mesh.readiness("n1")[1])
    result = stream.result()
    assert result["received"] == result["sent"]


def test_deploying_again_changes_nothing(mesh: Mesh, topology: Path) -> None:
    """A second deploy of the same file is a no-op; the pods still answer."""
    again = Lab.deploy(topology)
    assert again.plan is not None
    assert [action for action, _ in again.plan] in ([], ["no changes"])
    assert wrong_cells(mesh.matrix(), mesh.pods, everybody) == []
