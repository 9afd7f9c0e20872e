"""Flows walked through the chains that each node would have: graph, renderer, ip sets and walk, without a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from calipy.conformance.netpol_case import UPLINK, Case, Cluster, Site, parse_probe
from calipy.conformance.netpol_writer import Objects, objects
from calipy.datastore.names import kubernetes_interface
from calipy.felix import hosts
from calipy.felix.config import FelixConfig
from calipy.felix.graph.graph import Graph
from calipy.felix.messages import Changes, Encapsulation, EndpointID, HostEndpoint
from calipy.felix.ownership import link_group
from calipy.felix.render.renderer import Renderer
from calipy.felix.sets import SetTable
from calipy.felix.walk import Packet, Walk, walk
from calipy.net import IPAddress, family_of
from calipy.policy.evaluate import EPHEMERAL_PORT
from calipy.policy.values import ICMP

_ICMP_ANSWERS = {8: 0, 13: 14, 128: 129}


@dataclass(frozen=True, slots=True)
class Settings:
    """What changes rules without changing a verdict.

    Attributes:
        parameters: Felix's, beside those of the case.
        encapsulation: tunnels that the nodes have; their packets are judged before policy.
        fast_path: known connections of pods pass early.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    encapsulation: Encapsulation = field(default_factory=Encapsulation)
    fast_path: bool = False


class WalkedNode:
    """What one node's agent would have in its kernel."""

    def __init__(self, name: str, addresses: frozenset[str], settings: Settings) -> None:
        self.graph = Graph(name)
        self._settings = settings
        self._groups: dict[EndpointID, tuple[str, int]] = {}
        self._addresses = {"lo": frozenset({"127.0.0.1", "::1"}), UPLINK: addresses}
        self._hosts: dict[str, HostEndpoint] = {}
        self._config: FelixConfig | None = None

    def take(self, changes: Changes) -> None:
        """Take one flush of the graph, as the agent's dataplane does. Parameters may come once only."""
        if changes.config is not None:
            assert self._config is None, "a change of parameters is not modelled"
            given = FelixConfig.from_parameters({**changes.config, **self._settings.parameters})
            self._config = replace(given, encapsulation=self._settings.encapsulation)
            self.renderers = {family: Renderer(family, self._config) for family in (4, 6)}
            for renderer in self.renderers.values():
                renderer.set_fast_path(possible=self._settings.fast_path)
            self.sets = SetTable(self._config.max_ipset_size)
        assert self._config is not None
        self.sets.update(changes)
        for renderer in self.renderers.values():
            renderer.update(changes)
        for identity, workload in changes.endpoints.items():
            self._groups.pop(identity, None)
            if workload is not None and workload.admin_up:
                group = link_group({family_of(net) for net in workload.nets})
                self._groups[identity] = (workload.interface, group)
        for name, endpoint in changes.host_endpoints.items():
            if endpoint is None:
                del self._hosts[name]
            else:
                self._hosts[name] = endpoint
        if changes.host_endpoints:
            found = hosts.resolve(self._hosts.values(), self._addresses, self._config.interface_prefixes)
            for renderer in self.renderers.values():
                renderer.set_hosts(found)

    def walk(self, packet: Packet) -> Walk:
        """Lead a packet through the node."""
        placed = replace(packet, groups=dict(self._groups.values()))
        return walk(self.renderers[packet.source.version].tables, self.sets.sets, placed)


@dataclass(frozen=True, slots=True)
class Passage:
    """One node on the way of a request or answer."""

    node: str
    answer: bool
    walk: Walk

    def __str__(self) -> str:
        what = "answer" if self.answer else "request"
        steps = (f"    {step.table} {step.chain} {step.position}: {step.rule.body}" for step in self.walk.steps)
        return "\n".join([f"  {what} at {self.node}: {self.walk.verdict}", *steps])


class WalkedCluster:
    """The nodes of a case, led from state to state."""

    def __init__(self, cluster: Cluster, settings: Settings = Settings()) -> None:
        machines = cluster.machines()
        self._nodes = {
            name: WalkedNode(name, frozenset(map(str, machines[name].addresses.values())), settings)
            for name in cluster.nodes
        }
        self._present: Objects = {}
        self._interfaces: dict[IPAddress, str] = {}

    def move_to(self, cluster: Cluster) -> None:
        """Lead every node from the present state to this one, by differences."""
        self._interfaces = {
            address: kubernetes_interface(*name.split("/"))
            for name, site in cluster.pods().items()
            for address in site.addresses.values()
        }
        new = objects(cluster, self._interfaces)
        for node in self._nodes.values():
            for key in self._present.keys() - new.keys():
                node.graph.on_update(key, None)
            for key, resource in new.items():
                if self._present.get(key) != resource:
                    node.graph.on_update(key, resource)
            node.graph.on_in_sync()
            node.take(node.graph.flush())
        self._present = new

    def travel(self, cluster: Cluster, probe: str, source: str, destination: str) -> list[Passage]:
        """The way of a probe's request and, if it gets there, of the answer; the last walk decides."""
        wanted = parse_probe(probe)
        here, there = cluster.site(source), cluster.site(destination)
        packet = Packet(
            source=here.addresses[wanted.family],
            destination=there.addresses[wanted.family],
            protocol=wanted.protocol,
            source_port=0 if wanted.icmp else wanted.source_port or EPHEMERAL_PORT,
            destination_port=wanted.port,
            icmp=wanted.icmp,
        )
        passages: list[Passage] = []
        for node, placed in self._hops(packet, here, there):
            passages.append(Passage(node, False, self._nodes[node].walk(placed)))
            if not passages[-1].walk.accepted:
                return passages
        tracking = {passage.node for passage in passages if passage.walk.tracked}
        untracked_answer = "new" if packet.protocol == "udp" else "invalid"  # others' answers cannot be first packets
        for node, placed in self._hops(_answer(packet), there, here):
            state = "established" if node in tracking else untracked_answer
            passages.append(Passage(node, True, self._nodes[node].walk(replace(placed, conntrack=state))))
            if not passages[-1].walk.accepted:
                break
        return passages

    def _hops(self, packet: Packet, here: Site, there: Site) -> Iterator[tuple[str, Packet]]:
        """The packet at each node that it passes."""
        comes, leaves = (self._interfaces.get(a, "") for a in (packet.source, packet.destination))
        if here.machine == there.machine:
            yield here.machine, replace(packet, in_interface=comes, out_interface=leaves)
            return
        if here.machine in self._nodes:
            yield here.machine, replace(packet, in_interface=comes, out_interface=UPLINK)
        if there.machine in self._nodes:
            yield there.machine, replace(packet, in_interface=UPLINK, out_interface=leaves)


def mismatches(document: dict[str, Any], settings: Settings = Settings()) -> Iterator[str]:
    """Cells of a case in which the walk does not come to what the tables say, with the way that the packets took."""
    walked: WalkedCluster | None = None
    for state in Case(document["id"], "", "", (), document).states():
        walked = walked or WalkedCluster(state.cluster, settings)
        walked.move_to(state.cluster)
        for probe, source, destination, wanted in state.cells():
            passages = walked.travel(state.cluster, probe, source, destination)
            if all(passage.walk.accepted for passage in passages) != (wanted == "A"):
                way = "\n".join(str(passage) for passage in passages)
                yield f"{document['id']}, {state.name}: {probe} {source} -> {destination}: want {wanted}\n{way}"


def _answer(packet: Packet) -> Packet:
    icmp = packet.icmp
    return replace(
        packet,
        source=packet.destination,
        destination=packet.source,
        source_port=packet.destination_port,
        destination_port=packet.source_port,
        icmp=ICMP(_ICMP_ANSWERS.get(icmp.type, icmp.type), icmp.code) if icmp else None,
    )
