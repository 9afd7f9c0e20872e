"""Policies, tiers, profiles, network sets. Source: Calico ``api/pkg/apis/projectcalico/v3``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from calipy.datastore.kinds.base import Always, GoStruct, Int32, Length, Unique, enum
from calipy.datastore.kinds.rules import Rule

Types = Annotated[tuple[Annotated[str, enum("Ingress", "Egress")], ...], Length(high=2), Unique()]
Hints = Annotated[tuple[Annotated[str, enum("AssumeNeededOnEveryNode")], ...], Unique()]
Rules = Annotated[tuple[Rule, ...], Length(high=1024)]
Selector = Annotated[str, Length(high=1024)]
StagedAction = Annotated[str, enum("Set", "Delete", "Learn", "Ignore")]


class NetworkPolicySpec(GoStruct, frozen=True, kw_only=True):
    """A policy of one namespace.

    Attributes:
        order: lower first; None is last.
        selector: endpoints of the namespace it applies to; "" means all of them.
        types: ``Ingress`` and ``Egress``: which directions it has a say in.
    """

    tier: str = ""
    order: float | None = None
    ingress: Rules = ()
    egress: Rules = ()
    selector: Selector = ""
    types: Types = ()
    service_account_selector: Selector = ""
    performance_hints: Hints = ()


class GlobalNetworkPolicySpec(GoStruct, frozen=True, kw_only=True):
    """A policy of the whole cluster, host endpoints too."""

    tier: str = ""
    order: float | None = None
    ingress: Rules = ()
    egress: Rules = ()
    selector: Selector = ""
    types: Types = ()
    do_not_track: bool = False
    pre_dnat: bool = msgspec.field(default=False, name="preDNAT")
    apply_on_forward: bool = False
    service_account_selector: Selector = ""
    namespace_selector: Selector = ""
    performance_hints: Hints = ()


class StagedNetworkPolicySpec(GoStruct, frozen=True, kw_only=True):
    """A ``NetworkPolicySpec`` to be, never enforced."""

    staged_action: StagedAction = ""
    tier: str = ""
    order: float | None = None
    ingress: Rules = ()
    egress: Rules = ()
    selector: Selector = ""
    types: Types = ()
    service_account_selector: Selector = ""
    performance_hints: Hints = ()


class StagedGlobalNetworkPolicySpec(GoStruct, frozen=True, kw_only=True):
    """A ``GlobalNetworkPolicySpec`` to be, never enforced."""

    staged_action: StagedAction = ""
    tier: str = ""
    order: float | None = None
    ingress: Rules = ()
    egress: Rules = ()
    selector: Selector = ""
    types: Types = ()
    do_not_track: bool = False
    pre_dnat: bool = msgspec.field(default=False, name="preDNAT")
    apply_on_forward: bool = False
    service_account_selector: Selector = ""
    namespace_selector: Selector = ""
    performance_hints: Hints = ()


class LabelRequirement(GoStruct, frozen=True, kw_only=True):
    """A Kubernetes label selector requirement."""

    key: Annotated[str, Always()] = ""
    operator: Annotated[str, Always()] = ""
    values: tuple[str, ...] = ()


class LabelSelector(GoStruct, frozen=True, kw_only=True):
    """A Kubernetes label selector."""

    match_labels: dict[str, str] = msgspec.field(default_factory=dict)
    match_expressions: tuple[LabelRequirement, ...] = ()


class KubernetesIPBlock(GoStruct, frozen=True, kw_only=True):
    """A CIDR and what is left out of it."""

    cidr: Annotated[str, Always()] = ""
    except_: tuple[str, ...] = msgspec.field(default=(), name="except")


class KubernetesPeer(GoStruct, frozen=True, kw_only=True):
    """Who a Kubernetes rule is about."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: KubernetesIPBlock | None = None


class KubernetesPort(GoStruct, frozen=True, kw_only=True):
    """A port of a Kubernetes rule: number or name."""

    protocol: str | None = None
    port: int | str | None = None
    end_port: Int32 | None = None


class KubernetesIngressRule(GoStruct, frozen=True, kw_only=True):
    """One ``ingress`` entry of a Kubernetes policy."""

    ports: tuple[KubernetesPort, ...] = ()
    from_: tuple[KubernetesPeer, ...] = msgspec.field(default=(), name="from")


class KubernetesEgressRule(GoStruct, frozen=True, kw_only=True):
    """One ``egress`` entry of a Kubernetes policy."""

    ports: tuple[KubernetesPort, ...] = ()
    to: tuple[KubernetesPeer, ...] = ()


class StagedKubernetesNetworkPolicySpec(GoStruct, frozen=True, kw_only=True):
    """A Kubernetes policy to be, never enforced."""

    staged_action: StagedAction = ""
    pod_selector: LabelSelector = LabelSelector()
    ingress: tuple[KubernetesIngressRule, ...] = ()
    egress: tuple[KubernetesEgressRule, ...] = ()
    policy_types: Annotated[tuple[str, ...], Length(high=2)] = ()


class TierSpec(GoStruct, frozen=True, kw_only=True):
    """A tier: lower ``order`` first (None reads as 1,000,000); what happens to packets its policies do not decide."""

    order: float | None = None
    default_action: Annotated[str | None, enum("Deny", "Pass")] = None


class TierStatus(GoStruct, frozen=True, kw_only=True):
    """Written by Calico's own controllers."""

    conditions: tuple[dict[str, Any], ...] = ()


class ProfileSpec(GoStruct, frozen=True, kw_only=True):
    """Rules and labels that endpoints inherit."""

    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    labels_to_apply: dict[str, str] = msgspec.field(default_factory=dict)


class NetworkSetSpec(GoStruct, frozen=True, kw_only=True):
    """Addresses and CIDRs (host bits tolerated) that selectors match by the labels of the object."""

    nets: tuple[str, ...] = ()


class GlobalNetworkSetSpec(GoStruct, frozen=True, kw_only=True):
    """As ``NetworkSetSpec``, for the whole cluster."""

    nets: tuple[str, ...] = ()
