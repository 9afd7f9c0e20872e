"""A network of BGP nodes in one process, for pure tests: peering, RIBs, export policies; no sockets, no clocks.

Nodes hand each other what their export policies say until nothing changes; the order in which they speak is the
test's to choose.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_network

from calipy.bgp import peering
from calipy.bgp.advertise import Originated, Pools
from calipy.bgp.exporting import ExportPolicy
from calipy.bgp.importing import ImportPolicy
from calipy.bgp.path import Attributes, Peer
from calipy.bgp.peering import NodeInfo, PeeringInputs
from calipy.bgp.rib import Rib
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, NodeBGPSpec, NodeSpec
from calipy.net import IPAddress, Prefix

RECIPE = {"rr": BGPPeerSpec(node_selector="all()", peer_selector="has(rr)")}
"""Calico's usual recipe: everybody peers with the reflectors."""
POOLS = Pools((ip_network("10.244.0.0/14"),))


class Network:
    """Nodes with one /26 each.

    Args:
        given: nodes and what they peer by.
    """

    def __init__(self, given: PeeringInputs) -> None:
        self.addresses = {one.address(4): one.name for one in given.nodes.values()}
        self.blocks: dict[str, Prefix] = {
            name: ip_network((0x0AF40000 + 64 * i, 26)) for i, name in enumerate(given.nodes)
        }
        self.sessions = {name: peering.plan(name, given).sessions for name in given.nodes}
        self.ribs: dict[str, Rib] = {}
        self.policies: dict[str, ExportPolicy] = {}
        self._told: dict[tuple[str, str], Mapping[Prefix, Attributes]] = {}
        for name, one in given.nodes.items():
            own = frozenset({self.blocks[name]})
            address = one.address(4)
            assert isinstance(address, IPv4Address)
            # A session that only one end wants never comes up.
            sessions = {
                peer: far for peer, far in self.sessions[name].items() if address in self.sessions[self.addresses[peer]]
            }
            policy = ImportPolicy(sessions, address, one.cluster_id, frozenset({address}), own, own, pools=POOLS)
            self.ribs[name] = Rib(policy)
            self.policies[name] = ExportPolicy(Originated(own), sessions, one.cluster_id, lambda _: True)
            for peer, far in sessions.items():
                self.ribs[name].peer_up(Peer(peer, far.peer_as, far.local_as, IPv4Address(int(peer))), 0)

    def converge(self, chance: random.Random) -> int:
        """Rounds until quiet, nodes speaking in random order."""
        for number in range(20):
            changed = [self._speak(name) for name in chance.sample(list(self.ribs), len(self.ribs))]
            if not any(changed):
                return number
        raise AssertionError("does not converge")

    def fail(self, names: Iterable[str]) -> None:
        """Nodes disappear; their peers lose their sessions."""
        for name in names:
            address = next(address for address, one in self.addresses.items() if one == name)
            assert address
            del self.ribs[name]
            for rib in self.ribs.values():
                rib.peer_down(address, 0)
            self._told = {pair: said for pair, said in self._told.items() if name not in pair}

    def _speak(self, name: str) -> bool:
        rib = self.ribs[name]
        rib.set_metrics(dict.fromkeys(rib.next_hops(), 0))
        changed = bool(rib.take_changes())
        for peer, routes in self.policies[name].exports(rib.loc_rib(), lambda one: one.local).items():
            other = self.addresses[peer]
            before = self._told.get((name, other), {})
            if other not in self.ribs or before == routes:
                continue
            changed = True
            self._told[name, other] = routes
            mine = self.sessions[name][peer].local
            assert mine
            for prefix in before.keys() - routes.keys():
                self.ribs[other].withdraw(mine, prefix)
            for prefix, attributes in routes.items():
                if before.get(prefix) != attributes:
                    self.ribs[other].announce(mine, prefix, attributes)
        return changed

    def table(self, name: str) -> dict[Prefix, IPAddress]:
        """Loc-RIB as prefix → next hop."""
        return {prefix: best.path.attributes.next_hop for prefix, best in self.ribs[name].loc_rib().items()}


def cluster(size: int, reflectors: int = 0) -> dict[str, NodeInfo]:
    """Nodes by name, the first ones reflectors with cluster IDs of their own and the label ``rr``."""
    return {
        f"n{i}": NodeInfo(
            f"n{i}",
            {"rr": "yes"} if i < reflectors else {},
            NodeSpec(
                bgp=NodeBGPSpec(
                    ipv4_address=f"10.1.{i >> 8}.{i & 255}/16",
                    route_reflector_cluster_id=f"244.0.0.{i + 1}" if i < reflectors else "",
                )
            ),
        )
        for i in range(size)
    }


def mesh(size: int) -> PeeringInputs:
    """A node-to-node mesh."""
    return PeeringInputs(cluster(size), {}, BGPConfigurationSpec())


def reflected(size: int, reflectors: int) -> PeeringInputs:
    """The recipe: no mesh, everybody with the reflectors, which are among the ``size``."""
    return PeeringInputs(cluster(size, reflectors), RECIPE, BGPConfigurationSpec(node_to_node_mesh_enabled=False))
