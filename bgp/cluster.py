"""Routes to the cluster's blocks straight from the datastore, the alternative to telling them by BGP. Pure.

What a node would announce is known from the datastore as well: its blocks with a confirmed affinity, and addresses that
it uses out of other blocks. Here the same rules (``advertise``) are applied to every other node. The outcome enters
the RIB as paths of one more peer, so that next hops are resolved, import is judged, and routes are written and shown in
the one way there is; and a change from this to BGP is a peer that restarts gracefully.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, Literal, TypeAlias

from calipy.bgp.path import NORMAL_LOCAL_PREFERENCE, Attributes, Peer, intern
from calipy.bgp.peering import NodeInfo, router_id
from calipy.bgp.rib import EOR_WAIT, Rib
from calipy.datastore.ipam import Block
from calipy.errors import InvalidInputError
from calipy.net import IPAddress, Prefix, host_prefix

ClusterRoutesMode: TypeAlias = Literal["bgp", "datastore"]

ANNOTATION: Final = "calipy.io/clusterRoutes"
"""On BGPConfiguration ``default``: an annotation, because Calico's own writers drop fields that they do not know."""
VARIABLE: Final = "CALIPY_CLUSTER_ROUTES"

DATASTORE: Final = Peer(IPv4Address(0), 0, 0, IPv4Address(0))
"""The RIB's peer that stands for the datastore; no session can have this address."""
PREFERENCE: Final = NORMAL_LOCAL_PREFERENCE + 1
"""Above what the same nodes announce at normal priority, below what anybody announces at an elevated one."""
MESH_LINGERS: Final = 5.0
"""Seconds for which the mesh stays when routes change to the datastore: others may learn of the change later."""
_NO_LIMIT: Final = 1 << 62


def parse_mode(text: str, source: str) -> ClusterRoutesMode:
    """``bgp`` (also "") or ``datastore``.

    Raises:
        InvalidInputError: anything else; ``source`` is named as the field.
    """
    match text:
        case "" | "bgp":
            return "bgp"
        case "datastore":
            return "datastore"
        case _:
            raise InvalidInputError("unknown way", field=source, value=text, remedy="one of bgp, datastore")


@dataclass(frozen=True, slots=True)
class _Use:
    """A block as routing sees it: its owner, and who uses which ordinals (bit masks: thousands of blocks are kept)."""

    owner: str | None
    users: Mapping[str, int]


@dataclass(slots=True)
class ClusterTable:
    """Which node each block, and each address outside of its node's own blocks, leads to.

    Events cost O(what they carry); ``take`` O(what has changed). While nobody takes, events only mark.
    """

    hostname: str
    _blocks: dict[Prefix, _Use] = field(default_factory=dict)
    _confirmed: dict[Prefix, frozenset[str]] = field(default_factory=dict)
    _nodes: dict[str, NodeInfo] = field(default_factory=dict)
    _node_of: dict[Prefix, str] = field(default_factory=dict)
    _of_node: defaultdict[str, set[Prefix]] = field(default_factory=lambda: defaultdict(set))
    _of_block: dict[Prefix, frozenset[Prefix]] = field(default_factory=dict)
    _contested: set[Prefix] = field(default_factory=set)
    _dirty_blocks: set[Prefix] = field(default_factory=set)
    _dirty_nodes: set[str] = field(default_factory=set)

    def on_block(self, cidr: Prefix, block: Block | None) -> None:
        """A block was written or removed (None)."""
        users: dict[str, int] = {}
        if block is not None:
            first = int(cidr.network_address)
            for address, attribute in block.assignments():
                if attribute.node:
                    users[attribute.node] = users.get(attribute.node, 0) | 1 << (int(address) - first)
        use = _Use(block.host(), users) if block is not None else None
        if use == self._blocks.get(cidr):
            return
        if use is None:
            del self._blocks[cidr]
        else:
            self._blocks[cidr] = use
        self._dirty_blocks.add(cidr)

    def on_affinity(self, host: str, cidr: Prefix, *, confirmed: bool) -> None:
        """A node's claim on a block changed."""
        hosts = self._confirmed.get(cidr, frozenset())
        if confirmed == (host in hosts):
            return
        if hosts := hosts ^ {host}:
            self._confirmed[cidr] = hosts
        else:
            del self._confirmed[cidr]
        if len(hosts) > 1:
            self._contested.add(cidr)
        else:
            self._contested.discard(cidr)
        self._dirty_blocks.add(cidr)

    def contested(self) -> dict[str, str]:
        """Blocks that several nodes claim for good, and may all announce: a fault in IPAM. O(such blocks)."""
        found: dict[str, str] = {}
        for cidr in sorted(self._contested, key=lambda one: (one.version, int(one.network_address))):
            use = self._blocks.get(cidr)
            whose = f"it is {use.owner}'s by the block itself" if use and use.owner else "no block says whose it is"
            nodes = ", ".join(sorted(self._confirmed[cidr]))
            found[f"block {cidr}"] = (
                f"nodes {nodes} have a confirmed affinity each and may all announce it; {whose}; "
                "the kernel's route leads to one of them (calipy ipam check)"
            )
        return found

    def on_node(self, name: str, node: NodeInfo | None) -> None:
        """A node was written or removed (None)."""
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        self._dirty_nodes.add(name)

    def covering(self, prefix: Prefix) -> tuple[Prefix, str | None, bool, str] | None:
        """The block that covers a prefix: its owner, whether its claim is confirmed, and who uses the address.

        The last is "" for a free address, or a prefix that is no single one. O(length of an address).
        """
        for length in range(prefix.prefixlen, -1, -1):
            cidr: Prefix = prefix.supernet(new_prefix=length)
            hosts = self._confirmed.get(cidr, frozenset())
            if (use := self._blocks.get(cidr)) is None and not hosts:
                continue
            use = use or _Use(min(hosts), {})
            bit = 1 << (int(prefix.network_address) - int(cidr.network_address))
            single = prefix.prefixlen == prefix.max_prefixlen
            user = next((name for name, mask in use.users.items() if single and mask & bit), "")
            return cidr, use.owner, use.owner in hosts, user
        return None

    def take(self) -> dict[Prefix, Attributes | None]:
        """What has changed since the last call; None: no route any more."""
        touched: set[Prefix] = set()
        for cidr in self._dirty_blocks:
            leads = dict(self._destinations(cidr))
            old = self._of_block.pop(cidr, frozenset())
            for dst in old - leads.keys():
                self._of_node[self._node_of.pop(dst)].discard(dst)
                touched.add(dst)
            for dst, name in leads.items():
                if (before := self._node_of.get(dst)) != name:
                    if before is not None:
                        self._of_node[before].discard(dst)
                    self._node_of[dst] = name
                    self._of_node[name].add(dst)
                    touched.add(dst)
            if leads:
                self._of_block[cidr] = frozenset(leads)
        for name in self._dirty_nodes:
            touched |= self._of_node.get(name, set())
        self._dirty_blocks.clear()
        self._dirty_nodes.clear()
        return {dst: self._attributes(dst) for dst in touched}

    def routes(self) -> Iterator[tuple[Prefix, Attributes]]:
        """Everything, as of the last ``take``."""
        for dst in self._node_of:
            if (attributes := self._attributes(dst)) is not None:
                yield dst, attributes

    def _destinations(self, cidr: Prefix) -> Iterator[tuple[Prefix, str]]:
        hosts = self._confirmed.get(cidr, frozenset())
        use = self._blocks.get(cidr) or _Use(min(hosts, default=None), {})
        # As in ``advertise.own_blocks``: a claim that is not confirmed may yet be lost, so only addresses count.
        owner = use.owner if use.owner in hosts else None
        if owner is not None and owner != self.hostname:
            yield cidr, owner
        for name, mask in use.users.items():
            if name not in (owner, self.hostname):
                for ordinal in range(mask.bit_length()):
                    if mask >> ordinal & 1:
                        yield host_prefix(cidr.network_address + ordinal), name

    def _attributes(self, dst: Prefix) -> Attributes | None:
        node = self._nodes.get(self._node_of.get(dst, ""))
        address: IPAddress | None = node.address(4 if dst.version == 4 else 6) if node else None
        if node is None or address is None:
            return None
        # As if told by the node itself: a reflector that passes it on names who it came from.
        return intern(Attributes(address, local_preference=PREFERENCE, originator_id=router_id(node)))


class ClusterRoutes:
    """Feeds the datastore's routes into the RIB while they are wanted, and changes over without a gap.

    To the datastore: its routes are there at once, the mesh goes ``MESH_LINGERS`` later. To BGP: they stay as stale
    paths until BGP has the same ones, until every session has told everything (``release``), or for ``EOR_WAIT``.

    Where a node takes its routes from is its own affair; the mesh is the cluster's, for both ends need it: a node that
    reads the datastore among others that do not still has to tell them where its own blocks are.
    """

    def __init__(self, table: ClusterTable, rib: Rib) -> None:
        self._table = table
        self._rib = rib
        self.mode: ClusterRoutesMode | None = None
        self._mesh: bool | None = None
        self._mesh_until: float | None = None
        self._retain_until: float | None = None

    @property
    def retaining(self) -> bool:
        """Whether routes of the datastore stay until BGP has told its own."""
        return self._retain_until is not None

    def choose(self, mode: ClusterRoutesMode, now: float, cluster: ClusterRoutesMode | None = None) -> bool:
        """Want this way; whether the sessions to have may be others now.

        Args:
            mode: where this node takes its routes from.
            now: monotonic.
            cluster: what the cluster as a whole does, None: the same.
        """
        others = self._choose_mesh((cluster or mode) == "bgp", now)
        if mode == self.mode:
            return others
        if mode == "datastore":
            self._retain_until = None
            self._rib.peer_up(DATASTORE, now, limit=_NO_LIMIT)
            self._table.take()
            for dst, attributes in self._table.routes():
                self._rib.announce(DATASTORE.address, dst, attributes)
            for family in (4, 6):
                self._rib.end_of_rib(DATASTORE.address, 4 if family == 4 else 6)
        else:
            self._retain_until = now + EOR_WAIT if self.mode == "datastore" else None
            self._rib.peer_down(DATASTORE.address, now, retain=EOR_WAIT)
        self.mode = mode
        return True

    def mesh(self) -> bool:
        """Whether the node-to-node mesh is to be had, as far as this setting goes."""
        return self._mesh is not False or self._mesh_until is not None

    def _choose_mesh(self, wanted: bool, now: float) -> bool:
        if wanted == self._mesh:
            if self._mesh_until is None or now < self._mesh_until:
                return False
            self._mesh_until = None
            return True
        self._mesh_until = now + MESH_LINGERS if self._mesh and not wanted else None
        self._mesh = wanted
        return True

    def next_deadline(self) -> float | None:
        """When ``choose`` will next have something to do by itself."""
        return self._mesh_until

    def feed(self) -> None:
        """Changes of the datastore, into the RIB. What stays from before only ever becomes less. O(changes)."""
        if self.mode != "datastore" and not self.retaining:
            return
        for dst, attributes in self._table.take().items():
            if attributes is None:
                self._rib.withdraw(DATASTORE.address, dst)
            elif self.mode == "datastore":
                self._rib.announce(DATASTORE.address, dst, attributes)

    def release(self, now: float, *, told: bool) -> bool:
        """Let go of what only the datastore still says, if BGP has told everything or has had its time; whether so."""
        if self._retain_until is None or not (told or now >= self._retain_until):
            return False
        self._rib.remove_peer(DATASTORE.address)
        self._retain_until = None
        return True
