"""The calculation graph: datastore objects in, what this node must enforce out. Pure, synchronous, single-threaded.

```
on_update ─┬─ WorkloadEndpoint ─┬─ all ──► ipsets (members of needed sets) ◄── scanner ◄─┐
           │                    └─ local ─► active (who is hit, in which order) ─────────┤
           ├─ HostEndpoint: as WorkloadEndpoint                                           │
           ├─ NetworkSet, GlobalNetworkSet ──► ipsets                                     │
           ├─ policies, tiers ─────────────────────────────► active ─────────────────────┘
           ├─ Profile ─► active (rules), ipsets and active (inherited labels)
           ├─ IPPool, Node, blocks ──► nodes, tunnels, routes
           ├─ BGPPeer, BGPConfiguration, local endpoints ──► bgp_peers ─► active
           ├─ FelixConfiguration, own Node ──► config
flush ─────┴──► Changes
```

The output depends on the present state only: order, repetition and splitting of updates do not matter. Existence is
judged by the value alone; an object that is not valid is treated as absent and listed in ``problems``. Before in-sync
updates are only gathered: rules are scanned and sets filled in the first flush after it.

Source: Calico ``felix/calc/calc_graph.go``, ``felix/design/calc-graph.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from calipy.datastore.keys import BlockKey, Key, ResourceKey
from calipy.errors import InvalidInputError
from calipy.felix.config import CLUSTER_ROUTES, FelixConfig
from calipy.felix.graph import endpoints, nodes
from calipy.felix.graph.active import ActiveRules
from calipy.felix.graph.bgp_peers import LocalPeers
from calipy.felix.graph.config import Configuration
from calipy.felix.graph.ipsets import IPSets
from calipy.felix.graph.nodes import Nodes
from calipy.felix.graph.routes import ClusterRoutes, disputes
from calipy.felix.graph.statistics import GraphStatistics
from calipy.felix.graph.tunnels import Tunnels
from calipy.felix.messages import Changes, Encap, Encapsulation
from calipy.net import Family
from calipy.policy.model import POLICY_KINDS

_BGP_DEFAULT: Final = "EnabledNoEncapOnly"


class Graph:
    """See the module. Nothing in here blocks or touches the system.

    Args:
        hostname: this node, as in names of nodes and endpoints.
        environment: variables; ``FELIX_*`` override what the datastore says.

    Attributes:
        problems: key → why its object is treated as absent.
        ignored: key of a local endpoint → what it asks for in vain.
        datastore_ready: ClusterInformation's flag; None when it does not say. Felix must not program anything unless
            it is True.
    """

    def __init__(self, hostname: str, environment: Mapping[str, str] | None = None) -> None:
        self.problems: dict[Key, str] = {}
        self.ignored: dict[Key, str] = {}
        self.datastore_ready: bool | None = None
        self._hostname = hostname
        self._in_sync = False
        self._spoofing_allowed = False
        self._spoofers: dict[ResourceKey, Any] = {}  # local endpoints that ask for more source addresses
        self._sets = IPSets()
        self._peers = LocalPeers(hostname)
        self._active = ActiveRules(self._sets, self._report, self._peers.peer_of)
        self._nodes = Nodes(hostname)
        self._tunnels = Tunnels(hostname)
        self._routes = ClusterRoutes(hostname)
        self._owned = FelixConfig().cluster_routes
        self._bgps = CLUSTER_ROUTES[_BGP_DEFAULT]
        self._config = Configuration(hostname, environment or {}, self._report)
        self._handlers: dict[str, Callable[[ResourceKey, Any], None]] = {
            "WorkloadEndpoint": self._on_workload,
            "HostEndpoint": self._on_host_endpoint,
            "NetworkSet": self._on_network_set,
            "GlobalNetworkSet": self._on_network_set,
            "Profile": self._on_profile,
            "Tier": lambda key, value: self._active.set_tier(key.name, value),
            "IPPool": self._on_pool,
            "Node": self._on_node,
            "BGPConfiguration": self._on_bgp_configuration,
            "BGPPeer": self._on_bgp_peer,
            "FelixConfiguration": lambda key, value: self._config.set_object(key.name, value),
            "ClusterInformation": self._on_cluster,
        } | dict.fromkeys(POLICY_KINDS, self._active.set_policy)

    def on_update(self, key: Key, value: Any) -> None:
        """Take one object, or None when it is gone or cannot be read. Kinds that do not concern Felix are ignored.

        Cost follows what the object can affect; nothing is sent before ``flush``.
        """
        if isinstance(key, ResourceKey):
            handler = self._handlers.get(key.kind)
            if handler is not None:
                handler(key, value)
                if value is None:
                    self._report(key, "")
        elif isinstance(key, BlockKey):
            self._routes.set_block(key, value)

    def on_in_sync(self) -> None:
        """The first complete snapshot has been handed over; from now on ``flush`` speaks."""
        self._in_sync = True

    def flush(self) -> Changes:
        """What changed since the last flush; empty, with ``in_sync`` False, until the first snapshot is complete."""
        changes = Changes(in_sync=self._in_sync)
        if self._in_sync:
            changes.config = self._config.flush()
            if changes.config is not None:
                self._configure(FelixConfig.from_parameters(changes.config))
            self._active.touch_endpoints(self._peers.take_touched())
            self._active.flush(changes)
            self._sets.flush(changes)
            self._nodes.flush(changes)
            tunnels = self._tunnels.flush(changes)
            if changes.config is not None or changes.encapsulation is not None:
                self._routes.own(_owned(self._owned, tunnels))
            self._routes.flush(changes)
        return changes

    def statistics(self) -> GraphStatistics:
        """Sizes, for those who watch the agent. Linear in endpoints, network sets and policies: not for every event."""
        index = self._sets.statistics()
        return GraphStatistics(
            local=self._active.local_statistics() | {"selectors": index.watches},
            cluster=self._active.cluster_statistics()
            | {
                "hosts": self._nodes.host_count,
                "host_endpoints": self._sets.count("HostEndpoint"),
                "workload_endpoints": self._sets.count("WorkloadEndpoint"),
            },
            index=index,
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What configurations and objects say that cannot be meant. O(pools + problems)."""
        absent = (f"{key} is treated as absent: {problem}" for key, problem in self.problems.items())
        ignored = (f"{key}: {what}" for key, what in self.ignored.items())
        return (*disputes(self._tunnels.in_use(), self._owned, self._bgps), *absent, *ignored)

    def _report(self, key: Key, problem: str) -> None:
        if problem:
            self.problems[key] = problem
        elif self.problems:
            self.problems.pop(key, None)

    def _on_workload(self, key: ResourceKey, value: Any) -> None:
        item = local = None
        if value is not None:
            try:
                item = endpoints.workload(key, value)
                local = endpoints.local(key, value, self._hostname)
                self._check_spoofing(key, value, local)
                self._report(key, "")
            except InvalidInputError as error:
                item = local = None
                self._report(key, str(error))
        elif self._spoofers:
            self._spoofers.pop(key, None)
        self._set_endpoint(key, value, item, local)

    def _on_host_endpoint(self, key: ResourceKey, value: Any) -> None:
        item = local = None
        if value is not None:
            try:
                item = endpoints.host(value)
                local = endpoints.local_host(key, value, self._hostname)
                self._report(key, "")
            except InvalidInputError as error:
                item = local = None
                self._report(key, str(error))
        self._set_endpoint(key, value, item, local)

    def _set_endpoint(
        self,
        key: ResourceKey,
        value: Any,
        item: endpoints.Labelled | None,
        local: endpoints.LocalEndpoint | endpoints.LocalHostEndpoint | None,
    ) -> None:
        self._set_member(key, item)
        if local is not None and (ignored := endpoints.ignored(value)):
            self.ignored[key] = ignored
        elif self.ignored:
            self.ignored.pop(key, None)
        if item is None or local is None:
            self._active.remove_endpoint(key)
            self._peers.remove_endpoint(key)
        else:
            self._active.set_endpoint(key, local, item.labels, item.parents)
            if isinstance(local, endpoints.LocalEndpoint):
                self._peers.set_endpoint(key, item.labels, item.parents)

    def _set_member(self, key: ResourceKey, item: endpoints.Labelled | None) -> None:
        if item is None:
            self._sets.remove_item(key)
        else:
            self._sets.set_item(key, item)

    def _check_spoofing(self, key: ResourceKey, value: Any, local: endpoints.LocalEndpoint | None) -> None:
        """An endpoint that may use foreign addresses is not valid unless the node allows that at all."""
        if local is None or not local.spoof_prefixes:
            self._spoofers.pop(key, None)
            return
        self._spoofers[key] = value
        if not self._spoofing_allowed:
            raise InvalidInputError(
                "not allowed on this node",
                field="spec.allowSpoofedSourcePrefixes",
                value=list(local.spoof_prefixes),
                remedy="set workloadSourceSpoofing: Any in the FelixConfiguration",
            )

    def _configure(self, config: FelixConfig) -> None:
        self._allow_spoofing(config.spoofing_allowed)
        self._tunnels.configure(ipip=config.ipip_enabled, vxlan=config.vxlan_enabled, ipv6=config.ipv6_support)
        self._owned = config.cluster_routes

    def _allow_spoofing(self, allowed: bool) -> None:
        if allowed != self._spoofing_allowed:
            self._spoofing_allowed = allowed
            for key, value in list(self._spoofers.items()):
                self._on_workload(key, value)

    def _on_network_set(self, key: ResourceKey, value: Any) -> None:
        item = None
        if value is not None:
            try:
                item = endpoints.network_set(key, value)
                self._report(key, "")
            except InvalidInputError as error:
                self._report(key, str(error))
        self._set_member(key, item)

    def _on_profile(self, key: ResourceKey, value: Any) -> None:
        labels = self._active.set_profile(key.name, value)
        self._sets.set_parent(key.name, labels)
        self._peers.set_parent(key.name, labels)

    def _on_pool(self, key: ResourceKey, value: Any) -> None:
        pool = None
        if value is not None:
            try:
                pool = nodes.pool(value)
                self._report(key, "")
            except InvalidInputError as error:
                self._report(key, str(error))
        for part in (self._nodes, self._tunnels, self._routes):
            part.set_pool(key.name, pool)

    def _on_node(self, key: ResourceKey, value: Any) -> None:
        self._nodes.set_node(key.name, value)
        spec = value.spec if value is not None else None
        self._tunnels.set_node(key.name, spec)
        self._routes.set_node(key.name, spec)
        if key.name == self._hostname:
            self._config.set_node(value)
            self._peers.set_node(value)

    def _on_bgp_configuration(self, key: ResourceKey, value: Any) -> None:
        takers = [lambda: self._peers.set_configuration(key.name, value)]
        if key.name == "default":
            claimed = value.spec.program_cluster_routes if value is not None else ""
            self._bgps = CLUSTER_ROUTES.get(claimed or _BGP_DEFAULT, frozenset())
            takers.append(lambda: self._nodes.set_services(value))
        self._report(key, "; ".join(filter(None, map(_refusal, takers))))

    def _on_bgp_peer(self, key: ResourceKey, value: Any) -> None:
        self._report(key, _refusal(lambda: self._peers.set_peer(key.name, value)))

    def _on_cluster(self, _key: ResourceKey, value: Any) -> None:
        self.datastore_ready = None if value is None else value.spec.datastore_ready
        self._config.set_cluster(value)


def _refusal(take: Callable[[], None]) -> str:
    """Why something cannot be taken, "" if it was."""
    try:
        take()
    except InvalidInputError as error:
        return str(error)
    return ""


def _owned(configured: frozenset[Encap], tunnels: Encapsulation) -> frozenset[tuple[Encap, Family]]:
    """Pools whose routes are Felix's: those with VXLAN always, the others as ProgramClusterRoutes says."""
    found: set[tuple[Encap, Family]] = set()
    if tunnels.vxlan:
        found.add(("vxlan", 4))
    if tunnels.vxlan6:
        found.add(("vxlan", 6))
    if tunnels.ipip and "ipip" in configured:
        found.add(("ipip", 4))
    if "none" in configured:
        found |= {("none", 4), ("none", 6)}
    return frozenset(found)
