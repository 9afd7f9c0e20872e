"""The datastore as BGP sees it: what Calico's confd watches, and the blocks. Pure.

Events go in, values for the other modules come out. Blocks are not kept whole: who owns each, and which of its
addresses this node uses, is all that routing asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

from calipy.bgp import advertise, peering
from calipy.bgp.advertise import Communities, Originated, Pools
from calipy.bgp.cluster import ANNOTATION, VARIABLE, ClusterRoutesMode, ClusterTable, parse_mode
from calipy.bgp.fib import Programming
from calipy.bgp.peering import NodeInfo, Peering, PeeringInputs
from calipy.bgp.peering_model import WorkloadPeer
from calipy.datastore import codec, keys
from calipy.datastore.ipam import CONFIRMED, Block, BlockAffinity
from calipy.datastore.resources import BGPConfigurationSpec, BGPFilterSpec, BGPPeerSpec, IPPoolSpec, NodeSpec, Resource
from calipy.errors import InvalidInputError, UndecodableError
from calipy.net import NORMAL_METRIC, Family, IPAddress, Prefix, host_prefix, parse_prefix

_NODE_PREFIX = "node."


def prefixes() -> tuple[str, ...]:
    """What to follow in the datastore."""
    kinds = ("BGPConfiguration", "BGPFilter", "BGPPeer", "CalicoNodeStatus", "IPPool", "Node")
    return (
        *(keys.resource_prefix(kind) for kind in kinds),
        keys.AFFINITIES,
        keys.BLOCKS_V4,
        keys.BLOCKS_V6,
    )


@dataclass(slots=True)
class View:
    """Present state of everything that ``prefixes`` covers.

    Attributes:
        hostname: this node.
        peering_changed, routes_changed: set by ``on_update``, reset by the reader.
        problems: what in the datastore cannot be used, by resource.
        unreadable: what in the datastore cannot be decoded, by resource: the last value that could be holds.
        filters: BGPFilters by name, live.
        cluster: where every other node's blocks and addresses are.
        workloads: those of this node that are to peer with it; change it with ``set_workloads``.
    """

    hostname: str
    peering_changed: bool = True
    routes_changed: bool = True
    problems: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    filters: dict[str, BGPFilterSpec] = field(default_factory=dict)
    cluster: ClusterTable = field(init=False)
    workloads: tuple[WorkloadPeer, ...] = ()
    _nodes: dict[str, NodeInfo] = field(default_factory=dict)
    _peers: dict[str, BGPPeerSpec] = field(default_factory=dict)
    _configurations: dict[str, BGPConfigurationSpec] = field(default_factory=dict)
    _pools: dict[str, IPPoolSpec] = field(default_factory=dict)
    _affinities: dict[Prefix, BlockAffinity] = field(default_factory=dict)
    _owners: dict[Prefix, str | None] = field(default_factory=dict)
    _in_use: dict[Prefix, frozenset[IPAddress]] = field(default_factory=dict)
    _cluster_routes: str = ""
    _last_mode: ClusterRoutesMode = "bgp"

    def __post_init__(self) -> None:
        self.cluster = ClusterTable(self.hostname)

    def on_update(self, key: keys.Key, value: codec.Value | None, error: UndecodableError | None = None) -> None:
        """Take one change; None is a deletion, unless there is an ``error``. O(1), for a block O(its size)."""
        name = f"{key.kind}({key.name})" if isinstance(key, keys.ResourceKey) else keys.path(key)
        if error is not None:
            # Somebody's slip must not take sessions and routes down: that is for a deletion to do.
            self.unreadable[name] = f"cannot be decoded, what was read before stays in force: {error}"
            return
        self.unreadable.pop(name, None)
        match key:
            case keys.BlockKey(cidr):
                self._on_block(parse_prefix(cidr), value if isinstance(value, Block) else None)
            case keys.BlockAffinityKey(host, cidr, "host"):
                affinity = value if isinstance(value, BlockAffinity) else None
                confirmed = affinity is not None and affinity.state == CONFIRMED
                self.cluster.on_affinity(host, parse_prefix(cidr), confirmed=confirmed)
                if host == self.hostname:
                    self.routes_changed |= _store(self._affinities, parse_prefix(cidr), affinity)
            case keys.ResourceKey(kind, name):
                self._on_resource(kind, name, value if isinstance(value, Resource) else None)
            case _:
                pass

    def _on_block(self, cidr: Prefix, block: Block | None) -> None:
        self.cluster.on_block(cidr, block)
        if block is None:
            self.routes_changed |= cidr in self._owners
            self._owners.pop(cidr, None)
            self._in_use.pop(cidr, None)
            return
        owner, used = block.host(), advertise.addresses_in_use(block, self.hostname)
        # Blocks change with every pod of the cluster; routes only with owners, and with our own addresses.
        self.routes_changed |= self._owners.get(cidr, "") != owner
        self._owners[cidr] = owner
        self.routes_changed |= _store(self._in_use, cidr, used or None)

    def _on_resource(self, kind: str, name: str, resource: Resource[Any, Any] | None) -> None:
        spec = resource.spec if resource else None
        match kind:
            case "Node":
                info = (
                    NodeInfo(name, resource.metadata.labels, spec) if resource and isinstance(spec, NodeSpec) else None
                )
                changed = _store(self._nodes, name, info)
                if changed:
                    self.cluster.on_node(name, info)
                self.peering_changed |= changed
                self.routes_changed |= changed and name == self.hostname
            case "BGPPeer":
                self.peering_changed |= _store(self._peers, name, spec if isinstance(spec, BGPPeerSpec) else None)
            case "BGPConfiguration":
                configuration = spec if isinstance(spec, BGPConfigurationSpec) else None
                if _store(self._configurations, name, configuration):
                    self.peering_changed = self.routes_changed = True
                if name == "default":
                    self._cluster_routes = (resource.metadata.annotations or {}).get(ANNOTATION, "") if resource else ""
            case "BGPFilter":
                self.routes_changed |= _store(self.filters, name, spec if isinstance(spec, BGPFilterSpec) else None)
            case "IPPool":
                self.routes_changed |= _store(self._pools, name, spec if isinstance(spec, IPPoolSpec) else None)
            case _:
                pass

    def set_workloads(self, workloads: tuple[WorkloadPeer, ...]) -> None:
        """What the agent says of workloads of this node that are to peer with it."""
        self.peering_changed |= workloads != self.workloads
        self.workloads = workloads

    # What follows from it

    @property
    def node(self) -> NodeInfo | None:
        """This node."""
        return self._nodes.get(self.hostname)

    @property
    def asks_for_workloads(self) -> bool:
        """Whether any BGPPeer selects workloads. O(BGPPeers)."""
        return any(spec.local_workload_selector for spec in self._peers.values())

    @property
    def configuration(self) -> BGPConfigurationSpec:
        """The cluster's configuration."""
        return self._configurations.get("default") or BGPConfigurationSpec()

    def cluster_routes(self, own: str = "") -> ClusterRoutesMode:
        """Where routes to other nodes' blocks come from: this node's own setting, else the cluster's annotation."""
        source = VARIABLE if own else f"BGPConfiguration(default) {ANNOTATION}"
        try:
            mode = parse_mode(own or self._cluster_routes, source)
        except InvalidInputError as error:
            self.problems["clusterRoutes"] = f"{error}; until then as before: {self._last_mode}"
            return self._last_mode
        self.problems.pop("clusterRoutes", None)
        if not own:
            self._last_mode = mode
        return mode

    def peering(self, router_id: str = "", *, mesh: bool = True) -> Peering:
        """The sessions to have."""
        return peering.plan(
            self.hostname,
            PeeringInputs(
                nodes=self._nodes,
                peers=self._peers,
                configuration=self.configuration,
                node_configurations={
                    name.removeprefix(_NODE_PREFIX): spec
                    for name, spec in self._configurations.items()
                    if name.startswith(_NODE_PREFIX)
                },
                router_id=router_id,
                mesh=mesh,
                workloads=self.workloads,
            ),
        )

    def log_level(self) -> str:
        """How much is to be logged, "" where nobody says so."""
        own = self._configurations.get(f"{_NODE_PREFIX}{self.hostname}")
        level = (own.log_severity_screen if own else "") or self.configuration.log_severity_screen
        return level.lower()

    def listen_addresses(self) -> tuple[IPAddress, ...]:
        """What the speaker listens on: all addresses of the families that are spoken, or the node's own alone."""
        own = sorted(self.own_addresses(), key=lambda address: address.version)
        if self.configuration.bind_mode == "NodeIP":
            return tuple(own)
        versions = {address.version for address in own}
        versions |= {4} if self.configuration.local_workload_peering_ipv4 else set()
        versions |= {6} if self.configuration.local_workload_peering_ipv6 else set()
        return (IPv4Address(0),) * (4 in versions) + (IPv6Address(0),) * (6 in versions)

    def _metric(self) -> dict[int, int]:
        return {
            4: self.configuration.ipv4_normal_route_priority or NORMAL_METRIC,
            6: self.configuration.ipv6_normal_route_priority or NORMAL_METRIC,
        }

    def other_nodes(self, family: Family) -> dict[str, IPAddress]:
        """The other nodes with a BGP address of a family."""
        found = {name: one.address(family) for name, one in self._nodes.items() if name != self.hostname}
        return {name: address for name, address in found.items() if address is not None}

    def own_addresses(self) -> frozenset[IPAddress]:
        """The node's BGP addresses."""
        if self.node is None:
            return frozenset()
        found = (self.node.address(4), self.node.address(6))
        return frozenset(address for address in found if address is not None)

    def pools(self) -> Pools:
        """The pools as prefixes."""
        return Pools.of(self._valid_pools())

    def service_ranges(self) -> advertise.ServiceRanges:
        """Service ranges as this node handles them."""
        return advertise.service_ranges(self.configuration, self.node.labels if self.node else {})

    def originated(self) -> Originated:
        """What to announce. O(own blocks x pools)."""
        pools = self.pools()
        own = advertise.own_blocks(self._affinities, self._owners, self.hostname)
        try:
            communities = Communities.of(self.configuration, self._configurations.get(f"{_NODE_PREFIX}{self.hostname}"))
            self.problems.pop("BGPConfiguration communities", None)
        except ValueError as error:
            self.problems["BGPConfiguration communities"] = str(error)
            communities = Communities()
        lent = advertise.borrowed(self._in_use, own)
        return Originated(
            blocks=frozenset(block for block in own if pools.exports(block)),
            borrowed=frozenset(one for one in lent if pools.exports(one)),
            hidden=frozenset(one for one in own | lent if not pools.exports(one)),
            services=self.service_ranges().announced,
            communities=communities,
            metric=self._metric(),
        )

    @property
    def cluster_id(self) -> IPv4Address | None:
        """This node's route reflector cluster ID, None if it is no reflector."""
        return self.node.cluster_id if self.node else None

    def passes_on(self) -> Callable[[Prefix], bool]:
        """Which learned prefixes are passed on without a filter's word: in pools, by a reflector services as well."""
        pools = self.pools()
        services = self.service_ranges().every if self.cluster_id is not None else frozenset()
        return lambda prefix: pools.exports(prefix) or advertise.inside(prefix, services)

    def own_prefixes(self) -> frozenset[Prefix]:
        """Blocks and addresses that are this node's own, announced or not."""
        blocks = advertise.own_blocks(self._affinities, self._owners, self.hostname)
        return frozenset(blocks) | {host_prefix(address) for used in self._in_use.values() for address in used}

    def own_blocks(self) -> set[Prefix]:
        """Confirmed own blocks."""
        return advertise.own_blocks(self._affinities, self._owners, self.hostname)

    def programming(self) -> Programming:
        """Which learned routes go into the kernel.

        Complementary to Felix's ``programClusterRoutes``: routes of VXLAN pools are always the agent's; those of
        IPIP pools too, since BGP's part in them is deprecated in Calico; those of pools without encapsulation ours
        unless the setting leaves them out.
        """
        mode = self.configuration.program_cluster_routes or "EnabledNoEncapOnly"
        ours = mode in ("Enabled", "EnabledNoEncapOnly")
        key = "BGPConfiguration programClusterRoutes"
        if mode in ("Enabled", "EnabledIPIPOnly"):
            self.problems[key] = f"{mode}: routes of IPIP pools are programmed by the agent, not by BGP"
        else:
            self.problems.pop(key, None)
        pools = list(self._valid_pools())
        overlay = [pool for pool in pools if _encapsulated(pool)]
        refused = overlay if ours else pools
        return Programming(
            own=self.own_prefixes(),
            refused=(*(advertise.parse_cidr(pool.cidr) for pool in refused), *self.service_ranges().unprogrammed),
            single=tuple(advertise.parse_cidr(pool.cidr) for pool in pools),
            metric=self._metric(),
            ignored=self.configuration.ignored_interfaces,
        )

    def _valid_pools(self) -> Iterable[IPPoolSpec]:
        for name, spec in self._pools.items():
            try:
                advertise.parse_cidr(spec.cidr)
            except ValueError as error:
                self.problems[f"IPPool({name})"] = f"spec.cidr: {error}"
            else:
                self.problems.pop(f"IPPool({name})", None)
                yield spec


def _encapsulated(pool: IPPoolSpec) -> bool:
    return pool.vxlan_mode not in ("", "Never") or pool.ipip_mode not in ("", "Never")


_K = TypeVar("_K")
_V = TypeVar("_V")


def _store(table: dict[_K, _V], key: _K, value: _V | None) -> bool:
    """Put or remove (None); whether that changed anything."""
    if table.get(key) == value:
        return False
    if value is None:
        del table[key]
    else:
        table[key] = value
    return True
