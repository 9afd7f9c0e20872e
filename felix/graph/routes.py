"""Where each block, and each address outside of its node's own blocks, leads to: the routes that Felix itself owns.

A block leads to the node that it is affine to, an address out of it that another node uses (borrowed) to that node, as
its owner wrote; so does a node's tunnel address, unless a block that leads there covers it. The pool around a
destination says how packets travel; what lies in no pool has no route, nor has an address that is a node's own.

Source: Calico ``felix/calc/l3_route_resolver.go``; local workloads have their part in ``felix.routing``.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from calipy.datastore.ipam import Block
from calipy.datastore.keys import BlockKey
from calipy.datastore.resources import NodeSpec
from calipy.felix.graph.nodes import addresses
from calipy.felix.messages import Changes, ClusterRoute, Encap, Pool
from calipy.net import Family, IPInterface, Prefix, host_prefix

_OFF: Final = ("", "Never")


def encapsulation(pool: Pool) -> Encap:
    """How packets of a pool travel between nodes; where both are set, VXLAN goes first, as in Felix."""
    if pool.vxlan_mode not in _OFF:
        return "vxlan"
    return "ipip" if pool.ipip_mode not in _OFF else "none"


def disputes(in_use: AbstractSet[Encap], felix: AbstractSet[Encap], bgp: AbstractSet[Encap]) -> tuple[str, ...]:
    """Kinds of pools in use whose routes both sides claim, or neither, in words for people."""
    names: dict[Encap, str] = {"none": "pools without encapsulation", "ipip": "IPIP pools"}
    found = []
    for encap, name in names.items():
        sides = (encap in felix) + (encap in bgp)
        if encap in in_use and sides != 1:
            who = "both FelixConfiguration and BGPConfiguration claim" if sides else "nobody claims"
            found.append(f"programClusterRoutes: {who} the routes of {name}")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Block:
    """The node that a block is affine to, and its addresses that others use."""

    host: str | None
    lent: dict[Prefix, str]


@dataclass(frozen=True, slots=True)
class _Node:
    """Addresses of a node. ``vxlan`` and ``ipip``: host prefixes of its tunnel devices."""

    addresses: dict[Family, IPInterface]
    vxlan: frozenset[Prefix]
    ipip: frozenset[Prefix]

    @property
    def tunnels(self) -> frozenset[Prefix]:
        return self.vxlan | self.ipip

    @property
    def own(self) -> set[Prefix]:
        return {host_prefix(address.ip) for address in self.addresses.values()}


_NOBODY: Final = _Node({}, frozenset(), frozenset())


class ClusterRoutes:
    """Routes by destination. An event costs what it changes; a pool, or this node's own subnet, all destinations."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._owned: frozenset[tuple[Encap, Family]] = frozenset()
        self._pools: dict[str, Pool] = {}  # by resource name
        self._by_prefix: dict[Prefix, Pool] = {}
        self._blocks: dict[Prefix, _Block] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()  # family and prefix length of blocks
        self._lent: dict[Prefix, str] = {}
        self._nodes: dict[str, _Node] = {}
        self._tunnels: defaultdict[Prefix, set[str]] = defaultdict(set)
        self._numbers: dict[Family, dict[int, Prefix]] = {4: {}, 6: {}}  # tunnel addresses
        self._addresses: defaultdict[Prefix, set[str]] = defaultdict(set)
        self._of_node: defaultdict[str, set[Prefix]] = defaultdict(set)
        self._dirty: set[Prefix] = set()
        self._sent: dict[Prefix, ClusterRoute] = {}

    def own(self, encapsulations: frozenset[tuple[Encap, Family]]) -> None:
        """Whose pools' routes are Felix's from now on."""
        if encapsulations != self._owned:
            self._owned = encapsulations
            self._mark_all()

    def set_pool(self, name: str, pool: Pool | None) -> None:
        """Add, replace or (None) remove a pool."""
        if pool == self._pools.get(name):
            return
        if pool is None:
            del self._pools[name]
        else:
            self._pools[name] = pool
        # Two pools of one CIDR: the lowest name wins.
        found = sorted(self._pools.items(), reverse=True)
        self._by_prefix = {ipaddress.ip_network(pool.cidr): pool for _, pool in found}
        self._mark_all()

    def set_block(self, key: BlockKey, block: Block | None) -> None:
        """Add, replace or (None) remove a block. O(its owners); O(its size) if it has lent addresses."""
        cidr = ipaddress.ip_network(key.cidr)
        old = self._blocks.pop(cidr, None)
        new = _Block(block.host(), dict(_lent(block))) if block is not None else None
        if new is not None:
            self._blocks[cidr] = new
        if new == old:
            return
        self._lengths[cidr.version, cidr.prefixlen] += (new is not None) - (old is not None)
        before, after = old or _Block(None, {}), new or _Block(None, {})
        if before.host != after.host:
            self._move(cidr, before.host, after.host)
            self._dirty.update(self._tunnels_in(cidr))
        for prefix in before.lent.keys() | after.lent.keys():
            node = after.lent.get(prefix)
            self._move(prefix, before.lent.get(prefix), node)
            if node is None:
                self._lent.pop(prefix, None)
            else:
                self._lent[prefix] = node

    def set_node(self, name: str, spec: NodeSpec | None) -> None:
        """Add, replace or (None) remove a node. O(its destinations)."""
        old, new = self._nodes.get(name, _NOBODY), _node(spec) if spec is not None else _NOBODY
        if new == old:
            return
        if new == _NOBODY:
            del self._nodes[name]
        else:
            self._nodes[name] = new
        for index, before, after in (
            (self._tunnels, old.tunnels, new.tunnels),
            (self._addresses, old.own, new.own),
        ):
            for prefix in before - after:
                index[prefix].discard(name)
                if not index[prefix]:
                    del index[prefix]
            for prefix in after - before:
                index[prefix].add(name)
            self._dirty |= before | after
        for prefix in old.tunnels | new.tunnels:
            numbers, number = self._numbers[prefix.version], int(prefix.network_address)
            if prefix in self._tunnels:
                numbers[number] = prefix
            else:
                numbers.pop(number, None)
        self._dirty |= self._of_node.get(name, set())
        if name == self._hostname and old.addresses != new.addresses:
            self._mark_all()

    def flush(self, changes: Changes) -> None:
        """Say what changed since the last flush. O(what events have touched)."""
        for prefix in self._dirty:
            new = self._route(prefix)
            if new == self._sent.get(prefix):
                continue
            changes.routes[prefix] = new
            if new is None:
                del self._sent[prefix]
            else:
                self._sent[prefix] = new
        self._dirty = set()

    def _route(self, dst: Prefix) -> ClusterRoute | None:
        node = self._leads_to(dst)
        pool = self._pool(dst) if node is not None else None
        if node is None or pool is None or (encap := encapsulation(pool), dst.version) not in self._owned:
            return None
        single = dst.prefixlen == dst.max_prefixlen
        borrowed = dst not in self._blocks
        if node == self._hostname:
            return None if single else ClusterRoute(encap, node, local=True)
        there = self._nodes.get(node, _NOBODY)
        address = there.addresses.get(dst.version)
        here = self._nodes.get(self._hostname, _NOBODY).addresses.get(dst.version)
        # Without encapsulation only who is on the subnet can be reached at all: routers know nothing of pods.
        crosses = encap == "none" or (pool.vxlan_mode if encap == "vxlan" else pool.ipip_mode) == "CrossSubnet"
        return ClusterRoute(
            encap,
            node,
            str(address.ip) if address else "",
            same_subnet=crosses and address is not None and here is not None and address.ip in here.network,
            borrowed=borrowed,
            tunnel=dst in there.vxlan,
        )

    def _leads_to(self, dst: Prefix) -> str | None:
        """The node behind a destination. Of several that claim an address the first by name."""
        if dst.prefixlen == dst.max_prefixlen:
            if dst in self._addresses:
                return None
            if claims := self._tunnels.get(dst):
                node = min(claims)
                covered = dst not in self._blocks and dst not in self._lent and self._owner(dst) == node
                return None if covered else node
            if dst in self._lent:
                return self._lent[dst]
        block = self._blocks.get(dst)
        return block.host if block is not None else None

    def _owner(self, dst: Prefix) -> str | None:
        """The node of the block around an address."""
        for version, length in self._lengths:
            if version == dst.version and length < dst.prefixlen:
                block = self._blocks.get(dst.supernet(new_prefix=length))
                if block is not None:
                    return block.host
        return None

    def _pool(self, dst: Prefix) -> Pool | None:
        around = [
            prefix
            for prefix in self._by_prefix
            if prefix.version == dst.version and dst.subnet_of(prefix)  # type: ignore[arg-type]  # same family
        ]
        return self._by_prefix[max(around, key=lambda prefix: prefix.prefixlen)] if around else None

    def _tunnels_in(self, cidr: Prefix) -> Iterator[Prefix]:
        """Tunnel addresses inside a block. O(its size), or O(nodes) if they are fewer."""
        found, first = self._numbers[cidr.version], int(cidr.network_address)
        if cidr.num_addresses < len(found):
            yield from (found[number] for number in range(first, first + cidr.num_addresses) if number in found)
        else:
            yield from (prefix for prefix in found.values() if prefix.network_address in cidr)

    def _move(self, dst: Prefix, old: str | None, new: str | None) -> None:
        if old is not None:
            self._of_node[old].discard(dst)
            if not self._of_node[old]:
                del self._of_node[old]
        if new is not None:
            self._of_node[new].add(dst)
        self._dirty.add(dst)

    def _mark_all(self) -> None:
        self._dirty.update(self._blocks, self._lent, self._tunnels)


def _lent(block: Block) -> Iterator[tuple[Prefix, str]]:
    host = block.host()
    if all(attribute.node in {None, "", host} for attribute in block.attributes):
        return
    for address, attribute in block.assignments():
        if attribute.node and attribute.node != host:
            yield host_prefix(address), attribute.node


def _node(spec: NodeSpec) -> _Node:
    ipip = spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp is not None else ""
    vxlan = (spec.ipv4_vxlan_tunnel_addr, spec.ipv6_vxlan_tunnel_addr)
    return _Node(addresses(spec), frozenset(_host_prefixes(*vxlan)), frozenset(_host_prefixes(ipip)))


def _host_prefixes(*texts: str) -> Iterator[Prefix]:
    for text in texts:
        try:
            yield host_prefix(ipaddress.ip_address(text))
        except ValueError:
            continue
