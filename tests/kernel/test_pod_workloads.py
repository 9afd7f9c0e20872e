"""Workloads over the local API and by the command, end to end on one node."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from calipy import api_client
from calipy.api import Client, Server
from calipy.api_client import ApiError
from calipy.cni import workloads
from calipy.cni.records import Record, Records
from calipy.cni.workloads import Workloads
from calipy.errors import NotFoundError, UnavailableError
from calipy.kernel import netns, process
from calipy.kernel.netns import NAMED
from tests.support.podnode import PodNode, on_node

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@dataclass
class Bench:
    """A node whose workloads can be asked for over its socket."""

    node: PodNode
    run_dir: Path
    namespace: str
    workloads: Workloads
    records: Records

    async def call(self, method: str, **params) -> object:
        params.setdefault("namespace", self.namespace)
        return await Client(self.run_dir / "agent.sock").call(method, params)

    async def command(self, *argv: str, fails: bool = False) -> process.Completed:
        """Run ``calipy`` as a program on the node."""
        script = "import sys; from calipy.cli.main import main; main()"
        environment = f"CALIPY_RUN_DIR={self.run_dir}"
        done = await process.run_async(["env", environment, sys.executable, "-c", script, *argv])
        return done if fails else done.check()

    def netns(self, name: str) -> Path:
        return NAMED / f"cali-{self.namespace}-{name}"

    def restart(self) -> Workloads:
        """The workloads of a new agent on this node."""
        return Workloads(self.node.pods, self.node.client, "node-1", records=self.records)


def on_bench(make_netns, tmp_path, scenario):
    namespace = f"t{os.getpid()}-{uuid.uuid4().hex[:6]}"

    async def with_server(node: PodNode) -> None:
        records = Records(tmp_path / "workloads")
        made = Workloads(node.pods, node.client, "node-1", records=records)
        async with Server(tmp_path / "agent.sock", made.handlers()):
            await scenario(Bench(node, tmp_path, namespace, made, records))

    try:
        on_node(make_netns, with_server)
    finally:
        for left in NAMED.glob(f"cali-{namespace}-*"):
            netns.delete(left)


def test_add_list_and_delete(make_netns, tmp_path):
    """A workload gets a namespace of its own, is listed with its labels, and goes without a trace."""

    async def scenario(bench):
        added = await bench.call("workload.add", name="web", labels={"app": "web"})
        assert added["netns"] == str(bench.netns("web"))
        assert added["programmed"]
        fd = netns.open_fd(added["netns"])
        try:
            shown = json.loads((await process.run_async(["ip", "-j", "addr"], netns_fd=fd)).check().stdout)
        finally:
            os.close(fd)
        links = {link["ifname"]: link for link in shown}
        assert "UP" in links["lo"]["flags"]
        assert [entry["local"] for entry in links["eth0"]["addr_info"] if entry["family"] == "inet"] == added[
            "addresses"
        ]
        assert await bench.call("workload.list") == [
            {
                "name": "web",
                "namespace": bench.namespace,
                "node": "node-1",
                "netns": added["netns"],
                "interface": added["interface"],
                "addresses": added["addresses"],
                "labels": {"app": "web"},
                "state": "ready",
            }
        ]
        await bench.call("workload.del", name="web")
        assert await bench.call("workload.list") == []
        assert not bench.netns("web").exists()
        assert bench.records.all() == []
        assert (bench.node.interfaces(), await bench.node.allocated()) == ([], set())

    on_bench(make_netns, tmp_path, scenario)


def test_names_are_unique_and_removal_of_nothing_says_so(make_netns, tmp_path):
    """A second workload of a name is refused and the first lives on; the same name in another namespace is another."""

    async def scenario(bench):
        first = await bench.call("workload.add", name="web")
        with pytest.raises(ApiError, match="exists already") as caught:
            await bench.call("workload.add", name="web")
        assert caught.value.code == api_client.CONFLICT
        assert [one["addresses"] for one in await bench.call("workload.list")] == [first["addresses"]]
        with pytest.raises(ApiError, match="no workload") as caught:
            await bench.call("workload.del", name="other")
        assert caught.value.code == api_client.NOT_FOUND

    on_bench(make_netns, tmp_path, scenario)


def test_a_given_namespace_is_used_and_left(make_netns, tmp_path):
    """--netns PATH: the interface appears there, and the namespace survives the workload."""

    async def scenario(bench):
        pod = make_netns("own")
        await bench.call("workload.add", name="box", netns=str(pod.path))
        assert pod.links.get_link("eth0").running
        await bench.call("workload.del", name="box")
        assert pod.links.get_link("eth0") is None
        assert pod.path.exists()

    on_bench(make_netns, tmp_path, scenario)


def test_a_namespace_that_is_not_ours_is_not_taken(make_netns, tmp_path):
    """A namespace of the name we would use exists: refused, and neither used nor deleted."""

    async def scenario(bench):
        netns.create(bench.netns("web"))
        with pytest.raises(ApiError, match="not ours"):
            await bench.call("workload.add", name="web")
        assert bench.netns("web").exists()
        assert await bench.node.allocated() == set()

    on_bench(make_netns, tmp_path, scenario)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "name"),
        ({"name": "Web"}, "name = 'Web'"),
        ({"name": "w" * 250, "namespace": "shop"}, "too long"),
        ({"name": "web", "labels": {"a": 1}}, "labels"),
        ({"name": "web", "lables": {}}, "lables"),
        ({"name": "web", "netns": "relative/path"}, "absolute"),
        ({"name": "web", "ips": ["10.65.0.300"]}, r"10\.65\.0\.300"),
        ({"name": "web", "ips": ["10.65.0.3", "10.65.0.4"]}, "one address of each family"),
        ({"name": "web", "mtu": 10}, "mtu = 10"),
        ({"name": "web", "ports": [{"name": "http", "port": 0}]}, "ports"),
        ({"name": "web", "ipv4": False}, "at least one"),
    ],
)
async def test_bad_parameters_are_named(params, message):
    """Nothing is asked of datastore or kernel before the request is understood."""
    nobody = Workloads(SimpleNamespace(), SimpleNamespace(), "node-1", records=Records(Path("/nonexistent")))
    from calipy.errors import InvalidInputError

    with pytest.raises(InvalidInputError, match=message):
        await nobody.add(params)


def test_a_failed_add_leaves_nothing(make_netns, tmp_path, monkeypatch):
    """No namespace, record, address or endpoint after an error in the middle."""

    async def scenario(bench):
        bench.node.felix.error = UnavailableError("boom")
        with pytest.raises(ApiError, match="boom"):
            await bench.call("workload.add", name="web")
        assert not bench.netns("web").exists()
        assert bench.records.all() == []
        assert (bench.node.interfaces(), await bench.node.allocated(), await bench.node.endpoints()) == ([], set(), {})

    on_bench(make_netns, tmp_path, scenario)


def test_what_a_killed_agent_left_is_found_again(make_netns, tmp_path):
    """Half made (record, namespace, address, interface, no endpoint): shown, and removed by start, del or add alike."""

    async def scenario(bench):
        async def half_made() -> Record:
            container = uuid.uuid4().hex
            record = Record(bench.namespace, "web", container, str(bench.netns("web")), created=True)
            bench.records.put(record)
            workloads._create_namespace(record.netns)
            request = workloads.AddParams(name="web", namespace=bench.namespace).request(container)
            await bench.node.pods.add(request)
            await bench.node.client.delete("WorkloadEndpoint", request.endpoint_name("node-1"), bench.namespace)
            return record

        async def nothing_left() -> bool:
            return (
                not bench.netns("web").exists()
                and bench.records.all() == []
                and bench.node.interfaces() == []
                and await bench.node.allocated() == set()
            )

        await half_made()
        assert [one["state"] for one in await bench.call("workload.list")] == ["unfinished"]
        await bench.restart().recover()
        assert await nothing_left()

        await half_made()
        await bench.call("workload.del", name="web")
        assert await nothing_left()

        await half_made()
        added = await bench.call("workload.add", name="web")
        assert await bench.node.allocated() == set(added["addresses"])

    on_bench(make_netns, tmp_path, scenario)


def test_workloads_outlive_their_agent(make_netns, tmp_path):
    """A new agent lists and deletes what the old one made; recovery leaves what is whole alone."""

    async def scenario(bench):
        await bench.call("workload.add", name="web")
        successor = bench.restart()
        await successor.recover()
        assert [one["state"] for one in await successor.list({})] == ["ready"]
        await successor.delete({"name": "web", "namespace": bench.namespace})
        assert not bench.netns("web").exists()

    on_bench(make_netns, tmp_path, scenario)


def test_a_workload_lost_in_a_reboot_can_be_removed(make_netns, tmp_path):
    """Records and namespaces gone, endpoint and address still stored: listed as lost, and removable."""

    async def scenario(bench):
        await bench.call("workload.add", name="web")
        netns.delete(bench.netns("web"))
        bench.records.remove(bench.namespace, "web")
        from calipy.cni import veth

        veth.remove((await bench.call("workload.list"))[0]["interface"])
        assert [one["state"] for one in await bench.call("workload.list")] == ["lost"]
        await bench.call("workload.del", name="web")
        assert (await bench.node.endpoints(), await bench.node.allocated()) == ({}, set())
        with pytest.raises(NotFoundError):
            await bench.workloads.delete({"name": "web", "namespace": bench.namespace})

    on_bench(make_netns, tmp_path, scenario)


def test_the_command(make_netns, tmp_path):
    """add, list, exec (with its exit status) and del as a user types them; two workloads reach each other."""

    async def scenario(bench):
        ns = ("--namespace", bench.namespace)
        said = await bench.command("workload", "add", "one", *ns, "--label", "app=web", "--port", "http=tcp:80")
        assert f"workload {bench.namespace}/one has 10.65.0." in said.stdout
        two = json.loads((await bench.command("workload", "add", "two", *ns, "-o", "json")).stdout)
        listed = (await bench.command("workload", "list")).stdout.splitlines()
        assert [line.split()[:2] for line in listed] == [
            ["NAMESPACE", "NAME"],
            [bench.namespace, "one"],
            [bench.namespace, "two"],
        ]
        assert "app=web" in listed[1]
        pong = await bench.command("workload", "exec", "one", *ns, "--", "ping", "-c1", "-W2", two["addresses"][0])
        assert "1 received" in pong.stdout
        failed = await bench.command("workload", "exec", "one", *ns, "--", "sh", "-c", "exit 7", fails=True)
        assert failed.returncode == 7
        missing = await bench.command("workload", "exec", "one", *ns, "--", "no-such-program", fails=True)
        assert (missing.returncode, "no-such-program" in missing.stderr) == (127, True)
        await bench.command("workload", "del", "one", *ns)
        gone = await bench.command("workload", "del", "one", *ns, fails=True)
        assert gone.returncode == 1
        assert "no workload" in gone.stderr
        assert "calipy workload list" in gone.stderr

    on_bench(make_netns, tmp_path, scenario)


def test_without_an_agent_the_command_says_what_to_do(tmp_path):
    """Exit status 1 and the remedy, no traceback."""
    script = "from calipy.cli.main import main; main()"
    argv = ["env", f"CALIPY_RUN_DIR={tmp_path}", sys.executable, "-c", script, "workload", "add", "web"]
    done = process.run(argv)
    assert done.returncode == 1
    assert "calipy node run" in done.stderr
    assert "Traceback" not in done.stderr


def test_requests_of_one_name_wait_for_each_other(make_netns, tmp_path):
    """Two simultaneous adds of one name: exactly one succeeds."""

    async def scenario(bench):
        outcomes = await asyncio.gather(
            *(bench.call("workload.add", name="web") for _ in range(3)), return_exceptions=True
        )
        assert sum(isinstance(outcome, dict) for outcome in outcomes) == 1
        assert len(await bench.node.allocated()) == 1
        assert len(bench.node.interfaces()) == 1

    on_bench(make_netns, tmp_path, scenario)
