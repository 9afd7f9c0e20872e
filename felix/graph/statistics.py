"""Sizes of the graph's parts and the work of its index, for those who watch the agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class IndexStatistics:
    """A label index: its size, and what it has done since it was made.

    Attributes:
        items: endpoints and network sets in it.
        watches: selectors in it.
        unfiled: those that must be evaluated for every item that changes.
        evaluated: evaluations of a selector for an item.
        matched: those that came out true.
        strategies: how the items for a new selector were found → times. ``endpoint-`` by the items' own labels,
            ``parent-`` by inherited ones; then ``single-value``, ``multi-value``, ``label-name`` or ``full-scan``.
    """

    items: int = 0
    watches: int = 0
    unfiled: int = 0
    evaluated: int = 0
    matched: int = 0
    strategies: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GraphStatistics:
    """What the graph knows of, by kind: of this node (``endpoints``, ``policies``, ``selectors``) and of the cluster
    (``hosts``, ``host_endpoints``, ``workload_endpoints``, ``tiers``, ``policies``, ``profiles``).
    """

    local: Mapping[str, int]
    cluster: Mapping[str, int]
    index: IndexStatistics
