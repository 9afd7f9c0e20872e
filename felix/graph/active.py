"""Which policies and profiles are active on this node, and what applies to each local endpoint, in which order.

A policy is active if it selects a local endpoint (or asks to be everywhere), a profile if a local endpoint names it.
Rules of policies are normalised and scanned for ip sets only while active. Decisions are made at ``flush`` from the
present state of what was touched since the last one; something is sent only if it differs from what was sent before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from calipy.datastore.keys import ResourceKey
from calipy.datastore.resources import ProfileSpec, Resource, TierSpec
from calipy.errors import InvalidInputError
from calipy.felix.graph.endpoints import LocalEndpoint, LocalHostEndpoint
from calipy.felix.graph.ipsets import IPSets, SetSpec
from calipy.felix.graph.labels import LabelIndex
from calipy.felix.graph.scanner import RuleScanner
from calipy.felix.messages import (
    ActivePolicy,
    ActiveProfile,
    Changes,
    HostEndpoint,
    LocalBGPPeer,
    TierInfo,
    WorkloadEndpoint,
)
from calipy.policy import model
from calipy.policy.order import arrange


class _Policy:
    """What is known of one policy: its head (None = absent or invalid), and what was sent of it."""

    __slots__ = ("head", "key", "matches", "needs", "resource", "sent", "stale")

    def __init__(self, key: ResourceKey) -> None:
        self.key = key
        self.head: model.Policy | None = None
        self.resource: Resource[Any, Any] | None = None
        self.matches = 0  # local endpoints it selects
        self.stale = True  # what was sent does not come from ``resource``
        self.sent: ActivePolicy | None = None
        self.needs: tuple[SetSpec, ...] = ()  # sets that ``sent`` refers to

    @property
    def wanted(self) -> bool:
        return self.head is not None and (self.matches > 0 or self.head.always_active)


class _Profile:
    """What is known of one profile: its rules (None = absent or invalid), and what was sent of it."""

    __slots__ = ("name", "needs", "references", "rules", "sent", "stale")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rules: model.Rules | None = model.ALLOW_ALL if name == model.DEFAULT_ALLOW_PROFILE else None
        self.references = 0  # local endpoints that name it
        self.stale = True
        self.sent: ActiveProfile | None = None
        self.needs: tuple[SetSpec, ...] = ()


class ActiveRules:
    """Policies, profiles and tiers on the one side, local endpoints on the other.

    Args:
        sets: where needed ip sets are acquired and released.
        report: called with a key and why its object is treated as absent ("" = it is all right).
        bgp_peer: what a workload endpoint needs for a BGP session with its node; ``touch_endpoints`` when that changes.
    """

    def __init__(
        self,
        sets: IPSets,
        report: Callable[[ResourceKey, str], None],
        bgp_peer: Callable[[ResourceKey], LocalBGPPeer | None],
    ) -> None:
        self._sets = sets
        self._report = report
        self._bgp_peer = bgp_peer
        self._index: LabelIndex[ResourceKey, _Policy] = LabelIndex(self._started, self._stopped, _ignore)
        self._policies: dict[ResourceKey, _Policy] = {}
        self._profiles: dict[str, _Profile] = {}
        self._tiers: dict[str, model.Tier] = dict(model.BUILT_IN_TIERS)
        self._endpoints: dict[ResourceKey, LocalEndpoint | LocalHostEndpoint] = {}
        self._sent: dict[ResourceKey, WorkloadEndpoint | HostEndpoint] = {}
        self._dirty_policies: dict[ResourceKey, _Policy] = {}
        self._dirty_profiles: dict[str, _Profile] = {}
        self._dirty_endpoints: dict[ResourceKey, None] = {}

    def set_endpoint(
        self,
        key: ResourceKey,
        endpoint: LocalEndpoint | LocalHostEndpoint,
        labels: Mapping[str, str],
        parents: tuple[str, ...],
    ) -> None:
        """Add or replace a local endpoint. O(its labels and the policies filed under them)."""
        old = self._endpoints.get(key)
        self._endpoints[key] = endpoint
        for name in endpoint.profiles:
            self._refer(name, 1)
        for name in old.profiles if old is not None else ():
            self._refer(name, -1)
        self._index.set_item(key, key, labels, parents)
        self._dirty_endpoints[key] = None

    def remove_endpoint(self, key: ResourceKey) -> None:
        """Remove a local endpoint; one that is not there is none removed."""
        old = self._endpoints.pop(key, None)
        if old is None:
            return
        for name in old.profiles:
            self._refer(name, -1)
        self._index.remove_item(key)
        self._dirty_endpoints[key] = None

    def touch_endpoints(self, keys: Iterable[ResourceKey]) -> None:
        """Have the next ``flush`` look at these endpoints."""
        self._dirty_endpoints.update(dict.fromkeys(keys))

    def set_policy(self, key: ResourceKey, resource: Resource[Any, Any] | None) -> None:
        """Add, replace or (None) remove a policy of any kind. O(endpoints selected, if not only rules changed)."""
        policy = self._policies.get(key)
        if policy is None:
            if resource is None:
                return
            policy = self._policies[key] = _Policy(key)
        head = None
        if resource is not None:
            try:
                head = model.policy(key, resource)
                self._report(key, "")
            except InvalidInputError as error:
                self._report(key, str(error))
        policy.resource = resource
        policy.stale = True
        self._dirty_policies[key] = policy
        old, policy.head = policy.head, head
        if old == head:
            return
        if old is None or head is None or old.selector != head.selector:
            if old is not None:
                self._index.remove_watch(key)
            if head is not None:
                self._index.add_watch(key, policy, head.selector)
        else:
            self._dirty_endpoints.update(dict.fromkeys(self._index.matches_of_watch(key)))

    def set_profile(self, name: str, resource: Resource[ProfileSpec, Any] | None) -> dict[str, str]:
        """Add, replace or (None) remove a profile; returns the labels it hands down. O(local endpoints naming it)."""
        labels: dict[str, str] = {}
        if name == model.DEFAULT_ALLOW_PROFILE:
            return labels
        rules = None
        if resource is not None:
            key = ResourceKey("Profile", name)
            try:
                rules = model.profile_rules(resource)
                labels = resource.spec.labels_to_apply
                self._report(key, "")
            except InvalidInputError as error:
                self._report(key, str(error))
        self._index.set_parent(name, labels)
        profile = self._profile(name)
        if profile.rules != rules:
            profile.rules = rules
            profile.stale = True
            self._dirty_profiles[name] = profile
        self._forget(profile)
        return labels

    def set_tier(self, name: str, resource: Resource[TierSpec, Any] | None) -> None:
        """Add, replace or (None) remove a tier; built-in ones stay. O(policies, and endpoints the tier's select)."""
        old = self._tiers.get(name)
        tier = model.BUILT_IN_TIERS.get(name) if resource is None else model.tier(name, resource)
        if tier == old:
            return
        if tier is None:
            del self._tiers[name]
        else:
            self._tiers[name] = tier
        for key, policy in self._policies.items():
            if policy.head is not None and policy.head.tier == name and policy.matches:
                self._dirty_endpoints.update(dict.fromkeys(self._index.matches_of_watch(key)))

    def local_statistics(self) -> dict[str, int]:
        """Sizes of what concerns this node. Linear in the policies."""
        return {
            "endpoints": len(self._endpoints),
            "policies": sum(policy.matches > 0 for policy in self._policies.values()),
        }

    def cluster_statistics(self) -> dict[str, int]:
        """Sizes of what the cluster has. Linear in the policies."""
        return {
            "tiers": len(self._tiers),
            "policies": sum(policy.resource is not None for policy in self._policies.values()),
            "profiles": sum(profile.rules is not None for profile in self._profiles.values()),
        }

    def flush(self, changes: Changes) -> None:
        """Say what changed since the last flush, sets excepted. O(what was touched)."""
        for key, policy in self._dirty_policies.items():
            self._flush_policy(key, policy, changes)
        self._dirty_policies.clear()
        for profile in self._dirty_profiles.values():
            self._flush_profile(profile, changes)
        self._dirty_profiles.clear()
        for key in self._dirty_endpoints:
            self._flush_endpoint(key, changes)
        self._dirty_endpoints.clear()

    def _flush_policy(self, key: ResourceKey, policy: _Policy, changes: Changes) -> None:
        active: ActivePolicy | None = None
        needs: tuple[SetSpec, ...] = ()
        if policy.wanted:
            if policy.sent is not None and not policy.stale:
                return
            active, needs = self._activate(key, policy)
        self._sets.acquire(needs)
        self._sets.release(policy.needs)
        policy.needs = needs
        policy.stale = active is None
        if active != policy.sent:
            ident = active.id if active is not None else policy.sent.id if policy.sent is not None else None
            assert ident is not None
            changes.policies[ident] = active
            policy.sent = active
        if policy.resource is None and policy.matches == 0:
            del self._policies[key]

    def _activate(self, key: ResourceKey, policy: _Policy) -> tuple[ActivePolicy | None, tuple[SetSpec, ...]]:
        head = policy.head
        assert head is not None
        assert policy.resource is not None
        scanner = RuleScanner()
        rules = model.Rules()
        if not head.staged:  # never enforced: shown without rules, so that it costs no ip sets
            try:
                rules = model.policy_rules(key, policy.resource)
            except InvalidInputError as error:
                self._report(key, str(error))
                self._index.remove_watch(key)
                policy.head = None
                return None, ()
        active = ActivePolicy(
            head.id,
            head.tier,
            scanner.rules(rules.inbound),
            scanner.rules(rules.outbound),
            head.selector.canonical,
            head.staged,
            head.do_not_track,
            head.pre_dnat,
            head.always_active,
        )
        return active, scanner.specs

    def _flush_profile(self, profile: _Profile, changes: Changes) -> None:
        active: ActiveProfile | None = None
        needs: tuple[SetSpec, ...] = ()
        if profile.references:
            if profile.sent is not None and not profile.stale:
                return
            scanner = RuleScanner()
            missing = profile.rules is None
            rules = profile.rules if profile.rules is not None else model.DENY_ALL
            active = ActiveProfile(
                profile.name, scanner.rules(rules.inbound), scanner.rules(rules.outbound), missing=missing
            )
            needs = scanner.specs
        self._sets.acquire(needs)
        self._sets.release(profile.needs)
        profile.needs = needs
        profile.stale = active is None
        if active != profile.sent:
            changes.profiles[profile.name] = active
            profile.sent = active
        self._forget(profile)

    def _flush_endpoint(self, key: ResourceKey, changes: Changes) -> None:
        endpoint = self._endpoints.get(key)
        sent = self._sent.get(key)
        if endpoint is None:
            if sent is not None:
                del self._sent[key]
                _tell(changes, sent, present=False)
            return
        heads = [
            policy.head
            for policy in self._index.matches_of_item(key)
            if policy.head is not None and not policy.head.staged
        ]
        message: WorkloadEndpoint | HostEndpoint
        if isinstance(endpoint, LocalHostEndpoint):
            message = self._host_endpoint(endpoint, heads)
        else:
            message = WorkloadEndpoint(
                endpoint.id,
                endpoint.interface,
                endpoint.mac,
                endpoint.nets,
                self._tiers_of(head for head in heads if not (head.do_not_track or head.pre_dnat)),
                endpoint.profiles,
                spoof_prefixes=endpoint.spoof_prefixes,
                dscp=endpoint.dscp,
                bgp_peer=self._bgp_peer(key),
            )
        if message != sent:
            self._sent[key] = message
            _tell(changes, message, present=True)

    def _host_endpoint(self, endpoint: LocalHostEndpoint, heads: list[model.Policy]) -> HostEndpoint:
        """Each policy goes into one of three lists; what also holds for forwarded traffic, into a fourth too."""
        untracked = [head for head in heads if head.do_not_track]
        pre_dnat = [head for head in heads if head.pre_dnat and not head.do_not_track]
        normal = [head for head in heads if not (head.do_not_track or head.pre_dnat)]
        return HostEndpoint(
            endpoint.name,
            endpoint.interface,
            endpoint.expected_ips,
            self._tiers_of(normal),
            self._tiers_of(untracked),
            self._tiers_of(pre_dnat),
            self._tiers_of(head for head in normal if head.apply_on_forward),
            endpoint.profiles,
            endpoint.dscp,
        )

    def _tiers_of(self, heads: Iterable[model.Policy]) -> tuple[TierInfo, ...]:
        return tuple(
            TierInfo(
                tier.name,
                tier.default_action,
                tuple(policy.id for policy in policies if policy.ingress),
                tuple(policy.id for policy in policies if policy.egress),
            )
            for tier, policies in arrange(heads, self._tiers)
        )

    def _profile(self, name: str) -> _Profile:
        found = self._profiles.get(name)
        if found is None:
            found = self._profiles[name] = _Profile(name)
        return found

    def _refer(self, name: str, change: int) -> None:
        profile = self._profile(name)
        profile.references += change
        self._dirty_profiles[name] = profile

    def _forget(self, profile: _Profile) -> None:
        """Drop a profile that does not exist, is named by nobody and was taken back."""
        if not profile.references and profile.rules is None and profile.sent is None:
            self._profiles.pop(profile.name, None)

    def _started(self, policy: _Policy, key: ResourceKey) -> None:
        policy.matches += 1
        self._touch(policy, key)

    def _stopped(self, policy: _Policy, key: ResourceKey) -> None:
        policy.matches -= 1
        self._touch(policy, key)

    def _touch(self, policy: _Policy, key: ResourceKey) -> None:
        self._dirty_policies[policy.key] = policy
        self._dirty_endpoints[key] = None


def _tell(changes: Changes, endpoint: WorkloadEndpoint | HostEndpoint, *, present: bool) -> None:
    if isinstance(endpoint, HostEndpoint):
        changes.host_endpoints[endpoint.name] = endpoint if present else None
    else:
        changes.endpoints[endpoint.id] = endpoint if present else None


def _ignore(*_: Any) -> None:
    """An endpoint's new details change nothing for the policies that select it."""
