"""In which order tiers and policies are evaluated.

Tiers by order, then name, those that exist before those that are only named. Policies inside a tier by order, then by
the text ``name/namespace/kind`` (``felix/calc/policy_sorter.go``).
"""

from __future__ import annotations

from typing import TypeAlias

from calipy.policy.model import Policy, Tier

TierSortKey: TypeAlias = tuple[bool, float, str]
PolicySortKey: TypeAlias = tuple[float, str]


def tier_sort_key(tier: Tier) -> TierSortKey:
    """Sort key of a tier; lower is evaluated first."""
    return (not tier.exists, tier.order, tier.name)


def policy_sort_key(policy: Policy) -> PolicySortKey:
    """Sort key of a policy inside its tier; lower is evaluated first."""
    return (policy.order, f"{policy.id.name}/{policy.id.namespace}/{policy.id.kind}")
