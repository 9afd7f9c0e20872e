"""VXLAN with everything there is: etcd, two agents, IPAM, pods made by the agents; nothing is given but the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from calipy import api_client
from calipy.conformance.netpol_agents import Agent
from calipy.datastore import codec
from calipy.datastore.resources import IPPoolSpec
from calipy.errors import AgentUnavailableError
from tests.support.datastore import Datastore
from tests.support.etcd import EtcdServer
from tests.support.felix import pings, until
from tests.support.netns import Namespace
from tests.support.objects import namespace_profile
from tests.support.tunnels import Cluster, capture

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@dataclass
class Bench:
    """Two nodes on different subnets with agents, and the datastore on the router between them."""

    network: Cluster
    agents: dict[str, Agent]
    datastore: Datastore
    directory: Path
    make: Callable[..., Namespace]

    def ask(self, node: str, method: str, **params: Any) -> dict[str, Any]:
        """An answer of a node's agent, {} while it does not answer."""
        try:
            return dict(api_client.call(self.directory / node / "agent.sock", method, params, timeout=30))
        except AgentUnavailableError:
            return {}

    def pod(self, node: str) -> tuple[Namespace, dict[str, Any]]:
        """A pod on a node: its namespace, and what the agent says of it."""
        namespace = self.make(f"pod-{node}")
        made = self.ask(node, "workload.add", name=f"on-{node}", namespace="shop", netns=str(namespace.path))
        return namespace, made

    def node_spec(self, name: str) -> Any:
        """What the datastore says of a node."""
        return self.datastore.client("get", "Node", name).spec


@pytest.fixture
def bench(make_netns: Callable[..., Namespace], tmp_path: Path) -> Iterator[Bench]:
    network = Cluster(make_netns, ("n1", "n3"))
    with EtcdServer(inside=network.router, address="172.31.1.254") as etcd:
        datastore = Datastore(etcd.url, network.router)
        agents: dict[str, Agent] = {}
        try:
            for name, node in network.nodes.items():
                variables = {"CALICO_NETWORKING_BACKEND": "bird", "IP": f"{node.address}/24"}
                agents[name] = Agent(name, node.ns.fd, tmp_path, etcd.url, "nft", **variables)
            made = Bench(network, agents, datastore, tmp_path, make_netns)
            for name in agents:
                until(lambda name=name: made.ask(name, "status").get("ready"))
            datastore.client("apply", namespace_profile("shop")[1])
            yield made
        finally:
            for agent in agents.values():
                agent.stop()
            datastore.close()


def test_a_pool_with_vxlan_is_all_it_takes(bench: Bench) -> None:
    """Pool created: tunnel addresses, devices, blocks and routes follow, and pods reach each other with the right MTU.

    Pool without VXLAN: all of that is given back.
    """
    n1, n3 = bench.network["n1"], bench.network["n3"]
    pool = codec.new("IPPool", "pool", IPPoolSpec(cidr="10.65.0.0/16", vxlan_mode="CrossSubnet", block_size=26))
    bench.datastore.client("create", pool)
    for node in (n1, n3):
        until(lambda node=node: node.ns.links.get_link("vxlan.calico"))
    tunnels = {name: bench.node_spec(name).ipv4_vxlan_tunnel_addr for name in ("n1", "n3")}
    assert len(set(tunnels.values())) == 2
    (one, made), (_, far) = bench.pod("n1"), bench.pod("n3")
    assert (made["mtu"], far["mtu"]) == (1450, 1450)
    address = far["addresses"][0].split("/")[0]
    with capture(n3.ns) as seen:
        until(lambda: pings(one, address))
    assert seen[f"vxlan {n1.address}"]
    assert not seen[f"{made['addresses'][0].split('/')[0]}>{address}"]
    assert [way for dst in n1.routes() if (way := n1.way(dst)).endswith("vxlan.calico")] == [
        f"{tunnels['n3']} vxlan.calico"
    ]
    assert [dst for dst in n1.routes() if n1.way(dst) == "blackhole"]
    large = ["ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", "1422", address]
    assert ", 0% packet loss" in one.run(*large)

    stored = bench.datastore.client("get", "IPPool", "pool")
    bench.datastore.client("update", replace(stored, spec=replace(stored.spec, vxlan_mode="Never")))
    for name, node in (("n1", n1), ("n3", n3)):
        until(lambda node=node: node.ns.links.get_link("vxlan.calico") is None and not node.routes())
        until(lambda name=name: bench.node_spec(name).ipv4_vxlan_tunnel_addr == "")
