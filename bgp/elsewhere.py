"""What is known here of a prefix on other nodes: from the routes that they publish in CalicoNodeStatus. Pure.

Nothing is guessed: a node whose routes nobody asks for is unknown, and so is one whose report says nothing of routes.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from calipy.datastore.kinds.cluster import CalicoNodeStatusSpec, CalicoNodeStatusStatus, NodeRoute
from calipy.datastore.resources import Resource
from calipy.net import IPAddress, Prefix, parse_prefix


@dataclass(frozen=True, slots=True)
class Report:
    """The routes that a node has published, by the object ``name``, at ``at``."""

    name: str
    at: datetime.datetime
    routes: tuple[NodeRoute, ...]


@dataclass(slots=True)
class Reports:
    """The CalicoNodeStatus objects of all nodes that hold routes."""

    _objects: dict[str, tuple[str, Report]] = field(default_factory=dict)

    def on_update(self, name: str, resource: Resource[Any, Any] | None) -> None:
        """An object was written or removed (None)."""
        self._objects.pop(name, None)
        if resource is None or not isinstance(resource.spec, CalicoNodeStatusSpec):
            return
        status = resource.status
        if not isinstance(status, CalicoNodeStatusStatus) or status.routes is None or not status.last_updated:
            return
        try:
            at = datetime.datetime.fromisoformat(status.last_updated)
        except ValueError:
            return
        if at.tzinfo is None:
            at = at.replace(tzinfo=datetime.UTC)
        routes = (*(status.routes.routes_v4 or ()), *(status.routes.routes_v6 or ()))
        self._objects[name] = (resource.spec.node, Report(name, at, tuple(routes)))

    def latest(self, node: str) -> Report | None:
        """A node's newest report. O(objects)."""
        return max(
            (one for owner, one in self._objects.values() if owner == node), key=lambda one: one.at, default=None
        )


def elsewhere(
    reports: Reports, target: Prefix, nodes: Mapping[str, IPAddress], home: str, wall: datetime.datetime
) -> dict[str, Any]:
    """What other nodes do with a prefix.

    Args:
        reports: what they publish.
        target: the prefix.
        nodes: the other nodes and their addresses of the prefix's family.
        home: the node that the datastore says the prefix leads to, "" for none.
        wall: the time now.

    Returns:
        ``nodes``: one text for each that is known of; ``unknown``: the others' names; ``remedy``: how to know of them.
    """
    found, unknown = [], []
    for name, address in sorted(nodes.items()):
        report = reports.latest(name)
        if report is None:
            unknown.append(name)
            continue
        age = max(0, round((wall - report.at).total_seconds()))
        said = _says(report.routes, target, at_home=name == home, expected=nodes.get(home))
        found.append(
            {
                "node": name,
                "address": str(address),
                "text": f"{said}, as of {age} s ago (CalicoNodeStatus {report.name})",
            }
        )
    remedy = "a CalicoNodeStatus with spec.node of the node and classes [Routes] makes it tell" if unknown else ""
    return {"nodes": found, "unknown": unknown, "remedy": remedy}


def _says(routes: Iterable[NodeRoute], target: Prefix, *, at_home: bool, expected: IPAddress | None) -> str:
    covering = [(prefix, route) for route in routes if (prefix := _covers(route, target)) is not None]
    fib = [(prefix, route) for prefix, route in covering if route.type == "FIB"]
    if not fib:
        heard = ", but has heard of it" if covering else ""
        return f"has no route to {target}{heard}"
    length = max(prefix.prefixlen for prefix, _ in fib)
    chosen = [route for prefix, route in fib if prefix.prefixlen == length]
    ways = sorted({route.gateway if route.gateway != "N/A" else route.interface for route in chosen})
    text = f"has {chosen[0].destination} via {', '.join(ways)}"
    if at_home:
        return f"{text}; it is the node that it leads to"
    if expected is not None and str(expected) not in ways and length == target.prefixlen:
        return f"{text}, not via {expected} where the block is"
    return text


def _covers(route: NodeRoute, target: Prefix) -> Prefix | None:
    try:
        prefix = parse_prefix(route.destination)
    except ValueError:
        return None
    same = prefix.version == target.version
    return prefix if same and target.subnet_of(prefix) else None  # type: ignore[arg-type]  # same family
