"""In which order tiers and policies are evaluated.

Tiers by order, then name, those that exist before those that are only named. Policies inside a tier by order, then by
the text ``name/namespace/kind`` (``felix/calc/policy_sorter.go``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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


def arrange(policies: Iterable[Policy], tiers: Mapping[str, Tier]) -> list[tuple[Tier, list[Policy]]]:
    """Policies in evaluation order, grouped by tier; tiers without any of them are left out. O(n log n).

    Args:
        policies: those that apply to one endpoint, in any order.
        tiers: by name; a policy of a tier that is not there belongs to one that sorts last and denies.
    """
    grouped: dict[str, list[Policy]] = {}
    for policy in policies:
        grouped.setdefault(policy.tier, []).append(policy)
    found = [
        (tiers.get(name) or Tier(name, math.inf, exists=False), sorted(members, key=policy_sort_key))
        for name, members in grouped.items()
    ]
    return sorted(found, key=lambda pair: tier_sort_key(pair[0]))
