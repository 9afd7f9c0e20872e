"""From what the graph says to chains: keeps the desired state of one family and renders what a change touches. Pure.

Cost: a policy renders its own two chains, and the chains of the endpoints that use it only if its grouping changed; an
endpoint renders its own chains, the roots of the dispatch trees and the branches that it is on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TypeVar

from calipy.felix.config import FelixConfig
from calipy.felix.delta import Table
from calipy.felix.messages import ActivePolicy, Changes, EndpointID, PolicyID, WorkloadEndpoint
from calipy.felix.render import static, syntax
from calipy.felix.render.dispatch import Dispatch
from calipy.felix.render.endpoint import EndpointChains, workload_chains
from calipy.felix.render.marks import Marks
from calipy.felix.render.names import policy_chain, profile_chain, workload_chain
from calipy.felix.render.nat import nat_outgoing_chain
from calipy.felix.render.policy import PolicyContext, policy_chains, profile_chains
from calipy.net import Family, family_of

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
            for chain in static.chains(name, family, config, marks):
                table.put(chain)
            self.tables[name] = table
        self._filter = self.tables["filter"]
        self._policies: dict[PolicyID, ActivePolicy] = {}
        self._endpoints: dict[EndpointID, WorkloadEndpoint] = {}
        self._users: defaultdict[PolicyID, set[EndpointID]] = defaultdict(set)
        self._claims: defaultdict[str, set[EndpointID]] = defaultdict(set)
        self._rendered: dict[str, EndpointChains] = {}
        self._group_users: defaultdict[str, set[str]] = defaultdict(set)
        self._spoofing: dict[str, WorkloadEndpoint] = {}
        self._natted_pools: set[str] = set()
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

    def update(self, changes: Changes) -> None:
        """Take in one flush of the graph; the tables' dirty chains grow by what it touched."""
        stale: set[str] = set()
        for policy_id, policy in changes.policies.items():
            stale |= self._put_policy(policy_id, policy)
        for profile_name, profile in changes.profiles.items():
            if profile is None:
                self._filter.drop(profile_chain(profile_name, "ingress"))
                self._filter.drop(profile_chain(profile_name, "egress"))
            else:
                for chain in profile_chains(self._context, profile):
                    self._filter.put(chain)
        for endpoint_id, endpoint in changes.endpoints.items():
            ours = endpoint is not None and any(family_of(net) == self._context.family for net in endpoint.nets)
            stale |= self._put_endpoint(endpoint_id, endpoint if ours else None)
        before = self._rendered.keys() & stale
        for interface in stale:
            self._render_interface(interface)
        self._render_spoofing(stale)
        after = self._rendered.keys() & stale
        if before != after:
            self._render_dispatch(after - before, before - after)
        self._update_pools(changes)

    def _put_policy(self, identity: PolicyID, policy: ActivePolicy | None) -> set[str]:
        """Interfaces whose own chains the change of the policy touches."""
        old = self._policies.get(identity)
        if policy is None:
            self._policies.pop(identity, None)
            self._filter.drop(policy_chain(identity, "ingress"))
            self._filter.drop(policy_chain(identity, "egress"))
        else:
            self._policies[identity] = policy
            for chain in policy_chains(self._context, policy):
                self._filter.put(chain)
        shape = (policy.selector, policy.staged) if policy else None
        old_shape = (old.selector, old.staged) if old else None
        if shape == old_shape:
            return set()
        return {self._endpoints[user].interface for user in self._users.get(identity, ())}

    def _put_endpoint(self, identity: EndpointID, endpoint: WorkloadEndpoint | None) -> set[str]:
        """Record the endpoint; returns the interfaces it has or had."""
        stale = set()
        old = self._endpoints.pop(identity, None)
        if old is not None:
            stale.add(old.interface)
            _discard(self._claims, old.interface, identity)
            for policy in _policies_of(old):
                _discard(self._users, policy, identity)
        if endpoint is not None:
            stale.add(endpoint.interface)
            self._endpoints[identity] = endpoint
            self._claims[endpoint.interface].add(identity)
            for policy in _policies_of(endpoint):
                self._users[policy].add(identity)
        return stale

    def _render_interface(self, interface: str) -> None:
        """Chains of the endpoint on the interface: of several that claim it, the first by id."""
        old = self._rendered.pop(interface, None)
        claims = self._claims.get(interface)
        groups: set[str] = set()
        if claims:
            new = workload_chains(self._context, self._endpoints[min(claims)], self._policies)
            self._rendered[interface] = new
            for group in new.groups:
                groups.add(group.name)
                self._group_users[group.name].add(interface)
                self._filter.put(group)
            self._filter.put(new.to_workload)
            self._filter.put(new.from_workload)
        elif old is not None:
            self._filter.drop(old.to_workload.name)
            self._filter.drop(old.from_workload.name)
        for group in old.groups if old else ():
            if group.name not in groups:
                _discard(self._group_users, group.name, interface)
                if group.name not in self._group_users:
                    self._filter.drop(group.name)

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
            self.tables["nat"].put(
                nat_outgoing_chain(self._context.family, self._context.config, active=bool(self._natted_pools))
            )


def _policies_of(endpoint: WorkloadEndpoint) -> set[PolicyID]:
    return {policy for tier in endpoint.tiers for policy in (*tier.ingress, *tier.egress)}


def _discard(index: defaultdict[_K, set[_V]], key: _K, value: _V) -> None:
    """Take ``value`` out of the set under ``key``, and the key with the last one."""
    index[key].discard(value)
    if not index[key]:
        del index[key]
