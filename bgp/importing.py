"""What is refused on import, and why: the checks that ExaBGP leaves out, and the limits of trust. Pure.

ExaBGP hands over whatever a peer says, our own AS in the path included. Peers that the administrator named (BGPPeer)
may send any prefix, as in Calico ("trust the ToR"); nodes of the mesh only what nodes have to say: prefixes in
pools that cover no block of ours, and service ranges. Wider ones than blocks are needed: pods announce such (BGPPeer
``localWorkloadSelector``), and their nodes pass them on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from calipy.bgp import filters
from calipy.bgp.advertise import Pools, inside
from calipy.bgp.cluster import DATASTORE
from calipy.bgp.path import Attributes, Peer, intern
from calipy.bgp.peering import Session
from calipy.datastore.resources import BGPFilterSpec
from calipy.net import IPAddress, Prefix


@dataclass(frozen=True, slots=True)
class ImportPolicy:
    """Everything that import depends on; callable as ``rib.ImportPolicy``.

    Attributes:
        sessions: by peer address.
        router_id: ours.
        cluster_id: ours if this node is a route reflector.
        own_addresses: addresses of this node, which cannot be a next hop.
        own_prefixes: what this node originates.
        own_blocks: blocks of this node, in which others may have single addresses only.
        pools: the cluster's pools.
        services: service ranges.
        filters: BGPFilters by name.
    """

    sessions: Mapping[IPAddress, Session] = field(default_factory=dict)
    router_id: IPv4Address | None = None
    cluster_id: IPv4Address | None = None
    own_addresses: frozenset[IPAddress] = frozenset()
    own_prefixes: frozenset[Prefix] = frozenset()
    own_blocks: frozenset[Prefix] = frozenset()
    pools: Pools = field(default_factory=Pools)
    services: frozenset[Prefix] = frozenset()
    filters: Mapping[str, BGPFilterSpec] = field(default_factory=dict)

    def __call__(self, peer: Peer, prefix: Prefix, attributes: Attributes) -> tuple[str, Attributes]:
        """Why the path is refused, or ""; and its attributes after filters. O(length of AS path + pools + rules)."""
        if peer == DATASTORE:
            return self._from_datastore(prefix), attributes
        session = self.sessions.get(peer.address)
        if session is None:
            return "no such session", attributes
        if prefix.version != session.family:
            return f"IPv{prefix.version} prefix in an IPv{session.family} session", attributes
        if prefix.is_multicast or prefix.is_link_local or (prefix.is_loopback and prefix.prefixlen):
            return "prefix is not routable", attributes
        attributes = _of_this_as(peer, attributes)
        impossible = self._loop(peer, session, attributes) or self._next_hop(attributes)
        impossible = impossible or self._ours(session, prefix)
        if impossible:
            return impossible, attributes
        verdict = filters.judge(self.filters, session, "import", prefix, attributes, learned=True)
        if verdict.action == "Reject":
            return verdict.rule, attributes
        return "" if verdict.action else self._untrusted(session, prefix), verdict.attributes

    def _from_datastore(self, prefix: Prefix) -> str:
        if prefix in self.own_prefixes:
            return "own prefix"
        return "" if self.pools.contain(prefix) else "in no IP pool"

    def _loop(self, peer: Peer, session: Session, attributes: Attributes) -> str:
        if attributes.count_as(peer.local_as) > session.allowed_local_as:
            return f"own AS {peer.local_as} in AS_PATH"
        if peer.external:
            if not attributes.as_path or attributes.neighbour_as != peer.remote_as:
                return f"AS_PATH does not begin with the peer's AS {peer.remote_as}"
            return ""
        if attributes.originator_id is not None and attributes.originator_id == self.router_id:
            return "own router ID in ORIGINATOR_ID"
        if self.cluster_id is not None and self.cluster_id in attributes.cluster_list:
            return "own cluster ID in CLUSTER_LIST"
        return ""

    def _next_hop(self, attributes: Attributes) -> str:
        hop = attributes.next_hop
        if hop in self.own_addresses:
            return "next hop is this node"
        if hop.is_unspecified or hop.is_multicast or hop.is_loopback:
            return f"next hop {hop} cannot be a router"
        return ""

    def _ours(self, session: Session, prefix: Prefix) -> str:
        """What is this node's own, whole or in part; nodes may use single addresses out of our blocks (borrowed)."""
        if prefix in self.own_prefixes:
            return "own prefix"
        of_node = session.type != "local workload" and (session.client or session.node != "")
        if of_node and prefix.prefixlen < prefix.max_prefixlen and inside(prefix, self.own_blocks):
            return "part of an own block"
        return ""

    def _untrusted(self, session: Session, prefix: Prefix) -> str:
        if session.type != "node-to-node mesh" or inside(prefix, self.services):
            return ""
        if not self.pools.contain(prefix):
            return "neither in an IP pool nor in a service range"
        if any(inside(block, (prefix,)) for block in self.own_blocks):
            return "covers an own block"
        return ""

    def judged_differently(self, old: ImportPolicy) -> Iterable[Prefix] | None:
        """Which prefixes this policy may judge differently from another, None if it may be any.

        Own addresses and blocks come and go all the time, and concern no others. O(addresses of changed blocks).
        """
        if replace(self, own_prefixes=old.own_prefixes, own_blocks=old.own_blocks) != old:
            return None
        return self._changed(old)

    def _changed(self, old: ImportPolicy) -> Iterator[Prefix]:
        yield from self.own_prefixes ^ old.own_prefixes
        for block in self.own_blocks ^ old.own_blocks:
            yield from (block.supernet(new_prefix=length) for length in range(block.prefixlen))
            for length in range(block.prefixlen, block.max_prefixlen):
                yield from block.subnets(new_prefix=length)


def _of_this_as(peer: Peer, attributes: Attributes) -> Attributes:
    """Without what only peers of this AS may say: preference is ours to give, and reflection is ours to count.

    RFC 4271 5.1.5; RFC 7606 7.5, 7.9 and 7.10. A filter may still give a preference of its own.
    """
    if not peer.external:
        return attributes
    return intern(replace(attributes, local_preference=None, originator_id=None, cluster_list=()))
