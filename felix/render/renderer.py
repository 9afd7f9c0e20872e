"""From what the graph says to chains: keeps the desired state of one family and renders what a change touches. Pure.

Cost: a policy renders its own two chains, and the chains of the endpoints that use it only if its grouping changed; an
endpoint renders its own chains, the roots of the dispatch trees and the branches that it is on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from calipy.felix.config import FelixConfig
from calipy.felix.delta import Table
from calipy.felix.messages import (
    ActivePolicy,
    ActiveProfile,
    Changes,
    EndpointID,
    HostEndpoint,
    PolicyID,
    TierInfo,
    WorkloadEndpoint,
)
from calipy.felix.render import dscp, static, syntax
from calipy.felix.render.dispatch import Dispatch
from calipy.felix.render.endpoint import workload_chains
from calipy.felix.render.host import POLICY_TABLES, HostPlan, PolicyTable, host_chains
from calipy.felix.render.marks import Marks
from calipy.felix.render.names import ANY_INTERFACE, workload_chain
from calipy.felix.render.nat import nat_outgoing_chain
from calipy.felix.render.offers import Offers
from calipy.felix.render.policy import PolicyContext, policy_chains, profile_chains
from calipy.felix.render.rule import Chain
from calipy.net import Family, family_of

_HOSTS = "host endpoints"

_K = TypeVar("_K")
_V = TypeVar("_V")


class Renderer:
    """Desired chains of one family, kept in ``tables`` (by name, for ``felix.delta``).

    An endpoint without an address of the family has no chains in it: its interface is unknown there, and drops. Felix
    renders them all the same; leaving them out halves the work where pods have IPv4 only.
    """

    def __init__(self, family: Family, config: FelixConfig) -> None:
        """Start with the static chains and empty dispatch chains: every workload interface drops.

        Raises:
            InvalidInputError: the mark mask is too small.
        """
        marks = Marks.from_mask(config.mark_mask)
        self._context = PolicyContext(family, config, marks)
        self.tables: dict[static.TableName, Table] = {}
        for name in static.TABLES:
            table = Table(name)
            for hook in static.hooks(name, config, marks):
                table.set_hook(hook)
            self.tables[name] = table
        self._contexts: dict[PolicyTable, PolicyContext] = {
            # REJECT is for the filter table only.
            table: self._context
            if table == "filter" or config.filter_deny_action == "DROP"
            else replace(self._context, config=replace(config, filter_deny_action="DROP"))
            for table in POLICY_TABLES
        }
        self._offers = {table: Offers(self.tables[table]) for table in POLICY_TABLES}
        self._filter = self.tables["filter"]
        self._policies: dict[PolicyID, ActivePolicy] = {}
        self._endpoints: dict[EndpointID, WorkloadEndpoint] = {}
        self._users: defaultdict[PolicyID, set[EndpointID]] = defaultdict(set)
        self._claims: defaultdict[str, set[EndpointID]] = defaultdict(set)
        self._hosts: Mapping[str, HostEndpoint] = {}
        self._host_policies: set[PolicyID] = set()
        self._spoofing: dict[str, WorkloadEndpoint] = {}
        self._peers: dict[str, tuple[str, ...]] = {}
        self._natted_pools: set[str] = set()
        self._services: tuple[str, ...] = ()
        self._marked: dict[EndpointID | str, tuple[dscp.Source, ...]] = {}
        self._fast_path = False
        self._present: static.Present | None = None
        end = static.unknown_interface(config)
        self._dispatch = (
            Dispatch(
                static.FROM_WORKLOAD_DISPATCH,
                match=syntax.from_interface,
                target=lambda interface: workload_chain(interface, "egress"),
                end=end,
            ),
            Dispatch(
                static.TO_WORKLOAD_DISPATCH,
                match=syntax.to_interface,
                target=lambda interface: workload_chain(interface, "ingress"),
                end=end,
            ),
        )
        self._render_dispatch(set(), set())
        self._render_hosts()
        self.tables["raw"].put(static.rpf_skip_chain(()))
        self._render_services()
        self._render_pools()
        self._render_marked()
        self._render_static()

    def update(self, changes: Changes) -> None:
        """Take in one flush of the graph; the tables' dirty chains grow by what it touched."""
        stale: set[str] = set()
        reshaped: set[PolicyID] = set()
        for policy_id, policy in changes.policies.items():
            if self._put_policy(policy_id, policy):
                reshaped.add(policy_id)
        for policy_id in reshaped:
            stale |= {self._endpoints[user].interface for user in self._users.get(policy_id, ())}
        for profile_name, profile in changes.profiles.items():
            self._put_profile(profile_name, profile)
        for endpoint_id, endpoint in changes.endpoints.items():
            ours = endpoint is not None and any(family_of(net) == self._context.family for net in endpoint.nets)
            stale |= self._put_endpoint(endpoint_id, endpoint if ours else None)
        offers = self._offers["filter"]
        before = {interface for interface in stale if interface in offers}
        for interface in stale:
            self._render_interface(interface)
        self._render_spoofing(stale)
        self._note_peers(stale)
        after = {interface for interface in stale if interface in offers}
        if before != after:
            self._render_dispatch(after - before, before - after)
        if not self._host_policies.isdisjoint(reshaped):
            self._render_hosts()
        self._update_pools(changes)
        if changes.services is not None:
            self._services = tuple(changes.services)
            self._render_services()
        self._update_marked(changes)
        self._render_static()

    def set_hosts(self, interfaces: Mapping[str, HostEndpoint]) -> None:
        """Where host endpoints are now: interface, or ``names.ANY_INTERFACE``, → which. O(their policies)."""
        self._hosts = dict(interfaces)
        self._host_policies = {
            policy
            for endpoint in self._hosts.values()
            for tiers in (endpoint.tiers, endpoint.untracked, endpoint.pre_dnat)
            for policy in _policies_of(tiers)
        }
        self._render_hosts()
        self._render_static()

    def set_fast_path(self, *, possible: bool) -> None:
        """Whether the kernel can match link groups: then known connections of endpoints pass early in FORWARD."""
        self._fast_path = possible
        self._render_static()

    def _put_policy(self, identity: PolicyID, policy: ActivePolicy | None) -> bool:
        """Offer or withdraw the policy's chains; True if chains that jump to it may have to change."""
        old = self._policies.get(identity)
        user = str(identity)
        if policy is None:
            self._policies.pop(identity, None)
        else:
            self._policies[identity] = policy
        before, after = self._pinned(old), self._pinned(policy)
        self.tables["filter"].pin(after)
        for table, chains in self._placed(policy).items():
            self._offers[table].replace(user, chains)
        self.tables["filter"].unpin(before)
        shape = (policy.selector, policy.staged) if policy else None
        old_shape = (old.selector, old.staged) if old else None
        return shape != old_shape

    def _pinned(self, policy: ActivePolicy | None) -> tuple[str, ...]:
        """Chains of a policy that is to be ready on every node."""
        if policy is None or not policy.everywhere:
            return ()
        return tuple(chain.name for chain in self._placed(policy)["filter"])

    def _placed(self, policy: ActivePolicy | None) -> dict[PolicyTable, tuple[Chain, ...]]:
        """The policy's chains by table: where it can be jumped to."""
        placed: dict[PolicyTable, tuple[Chain, ...]] = dict.fromkeys(POLICY_TABLES, ())
        if policy is None:
            return placed
        if policy.untracked or policy.pre_dnat:
            table: PolicyTable = "raw" if policy.untracked else "mangle"
            placed[table] = policy_chains(self._contexts[table], policy)
            return placed
        placed["filter"] = policy_chains(self._context, policy)
        placed["mangle"] = self._in_mangle(placed["filter"], lambda context: policy_chains(context, policy))
        return placed

    def _put_profile(self, name: str, profile: ActiveProfile | None) -> None:
        chains = profile_chains(self._context, profile) if profile else ()
        self._offers["filter"].replace(f"profile {name}", chains)
        in_mangle = self._in_mangle(chains, lambda context: profile_chains(context, profile) if profile else ())
        self._offers["mangle"].replace(f"profile {name}", in_mangle)

    def _in_mangle(
        self, in_filter: tuple[Chain, ...], render: Callable[[PolicyContext], tuple[Chain, ...]]
    ) -> tuple[Chain, ...]:
        """The outbound chain, for what the node itself sends and DNAT redirects."""
        context = self._contexts["mangle"]
        return (in_filter if context is self._context else render(context))[1:]

    def _put_endpoint(self, identity: EndpointID, endpoint: WorkloadEndpoint | None) -> set[str]:
        """Record the endpoint; returns the interfaces it has or had."""
        stale = set()
        old = self._endpoints.pop(identity, None)
        if old is not None:
            stale.add(old.interface)
            _discard(self._claims, old.interface, identity)
            for policy in _policies_of(old.tiers):
                _discard(self._users, policy, identity)
        if endpoint is not None:
            stale.add(endpoint.interface)
            self._endpoints[identity] = endpoint
            self._claims[endpoint.interface].add(identity)
            for policy in _policies_of(endpoint.tiers):
                self._users[policy].add(identity)
        return stale

    def _render_interface(self, interface: str) -> None:
        """Chains of the endpoint on the interface: of several that claim it, the first by id."""
        claims = self._claims.get(interface)
        chains: tuple[Chain, ...] = ()
        if claims:
            new = workload_chains(self._context, self._endpoints[min(claims)], self._policies)
            chains = (*new.groups, new.to_workload, new.from_workload)
        self._offers["filter"].replace(interface, chains)

    def _render_hosts(self) -> None:
        plan = HostPlan(self._hosts, self._policies)
        for table, context in self._contexts.items():
            self._offers[table].replace(_HOSTS, host_chains(table, context, plan))

    def _render_spoofing(self, stale: set[str]) -> None:
        """Who may use other source addresses than its own (WorkloadSourceSpoofing=Any)."""
        before = dict(self._spoofing)
        for interface in stale:
            self._spoofing.pop(interface, None)
            claims = self._claims.get(interface)
            endpoint = self._endpoints[min(claims)] if claims else None
            if endpoint is not None and self._context.config.spoofing_allowed:
                own = tuple(net for net in endpoint.spoof_prefixes if family_of(net) == self._context.family)
                if own:
                    self._spoofing[interface] = replace(endpoint, spoof_prefixes=own)
        if before != self._spoofing:
            self.tables["raw"].put(static.rpf_skip_chain(self._spoofing[name] for name in sorted(self._spoofing)))

    def _note_peers(self, stale: set[str]) -> None:
        """Whose packets to the BGP speaker are let through; rendered with the static chains."""
        for interface in stale:
            self._peers.pop(interface, None)
            claims = self._claims.get(interface)
            peer = self._endpoints[min(claims)].bgp_peer if claims else None
            if peer is not None:
                self._peers[interface] = static.bgp_peer(interface, peer, self._context.family)

    def _render_dispatch(self, added: set[str], removed: set[str]) -> None:
        for tree in self._dispatch:
            chains, gone = tree.update(added, removed)
            for chain in chains:
                self._filter.put(chain)
            for name in gone:
                self._filter.drop(name)

    def _update_pools(self, changes: Changes) -> None:
        had = bool(self._natted_pools)
        for cidr, pool in changes.pools.items():
            if family_of(cidr) != self._context.family:
                continue
            if pool is not None and pool.nat_outgoing:
                self._natted_pools.add(cidr)
            else:
                self._natted_pools.discard(cidr)
        if had != bool(self._natted_pools):
            self._render_pools()

    def _render_pools(self) -> None:
        active = bool(self._natted_pools)
        self.tables["nat"].put(nat_outgoing_chain(self._context.family, self._context.config, active=active))

    def _render_services(self) -> None:
        self._filter.put(static.cidr_block_chain(self._context.family, self._context.config, self._services))

    def _update_marked(self, changes: Changes) -> None:
        """Whose packets are marked when they leave the cluster; renders only if that has become different."""
        stale = False
        for workload, endpoint in changes.endpoints.items():
            nets = endpoint.nets if endpoint else ()
            stale |= self._mark(workload, nets, endpoint.dscp if endpoint else None)
        for name, host in changes.host_endpoints.items():
            stale |= self._mark(name, host.expected_ips if host else (), host.dscp if host else None)
        if stale:
            self._render_marked()

    def _mark(self, owner: EndpointID | str, nets: tuple[str, ...], value: int | None) -> bool:
        """Note the code point of an endpoint; True if that changes anything."""
        old = self._marked.pop(owner, ())
        new: tuple[dscp.Source, ...] = ()
        if value is not None:
            new = tuple(
                dscp.Source(net.partition("/")[0], value) for net in nets if family_of(net) == self._context.family
            )
        if new:
            self._marked[owner] = new
        return new != old

    def _render_marked(self) -> None:
        self.tables["mangle"].put(dscp.chain(source for own in self._marked.values() for source in own))

    def _render_static(self) -> None:
        """Chains that depend on what there is at all; constant cost unless that changes."""
        family, config, marks = self._context.family, self._context.config, self._context.marks
        hosts = self._hosts.items()
        present = static.Present(
            hosts=bool(hosts),
            untracked=any(endpoint.untracked for interface, endpoint in hosts if interface != ANY_INTERFACE),
            pre_dnat=any(endpoint.pre_dnat for _, endpoint in hosts),
            spoofing=bool(self._spoofing),
            services=bool(static.cidr_block_chain(family, config, self._services).rules),
            marked=bool(self._marked),
            fast_path=self._fast_path,
            peers=tuple(match for _, matches in sorted(self._peers.items()) for match in matches),
        )
        if present != self._present:
            self._present = present
            for name, table in self.tables.items():
                for chain in static.chains(name, family, config, marks, present):
                    table.put(chain)


def _policies_of(tiers: tuple[TierInfo, ...]) -> set[PolicyID]:
    return {policy for tier in tiers for policy in (*tier.ingress, *tier.egress)}


def _discard(index: defaultdict[_K, set[_V]], key: _K, value: _V) -> None:
    """Take ``value`` out of the set under ``key``, and the key with the last one."""
    index[key].discard(value)
    if not index[key]:
        del index[key]
