"""What a change of resources does to the peering graph: all sessions before and after, and who is cut off. Pure.

A session between nodes exists if both ends have it. Nodes that cannot tell each other their blocks over such sessions
are islands (``bgp.islands``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from calipy.bgp import peering
from calipy.bgp.cluster import ANNOTATION, ClusterRoutesMode, parse_mode
from calipy.bgp.islands import islands
from calipy.bgp.peering import NodeInfo, PeeringInputs, Session
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, NodeSpec, Resource
from calipy.net import Family

KINDS: Final = ("Node", "BGPPeer", "BGPConfiguration")
"""What the graph depends on."""
_NODE_PREFIX: Final = "node."
_FAMILIES: Final[tuple[Family, Family]] = (4, 6)

ResourceKey: TypeAlias = tuple[str, str]
Resources: TypeAlias = Mapping[ResourceKey, Resource[Any, Any]]
"""By kind and name."""


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """A session, seen from neither end: ``near`` and ``far`` are nodes in order of name, or ``far`` is an address.

    Attributes:
        family: of its addresses.
    """

    near: str
    far: str
    family: Family


@dataclass(frozen=True, slots=True)
class Graph:
    """The sessions of a cluster.

    Attributes:
        links: what each end wants of each session, by the name of the end.
        one_sided: links that only one end wants; they never come up.
        islands: groups of nodes that cannot tell each other their blocks; one group or none: everybody can.
        problems: resources that cannot be used.
    """

    links: Mapping[Link, Mapping[str, Session]]
    one_sided: frozenset[Link]
    islands: Mapping[Family, tuple[frozenset[str], ...]]
    problems: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference of two graphs; ``changed`` sessions are those that go down and come back with other settings."""

    before: Graph
    after: Graph
    added: tuple[Link, ...] = ()
    removed: tuple[Link, ...] = ()
    changed: tuple[Link, ...] = ()
    kept: tuple[Link, ...] = ()
    refusals: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For ``-o json``."""
        return {
            **{
                name: [_link(link, self.after if name != "removed" else self.before) for link in links]
                for name, links in (("added", self.added), ("removed", self.removed), ("changed", self.changed))
            },
            "kept": len(self.kept),
            "oneSided": [_link(link, self.after) for link in sorted(self.after.one_sided)],
            "islands": {
                f"IPv{family}": [sorted(group) for group in groups]
                for family, groups in self.after.islands.items()
                if len(groups) > 1
            },
            "problems": dict(self.after.problems),
            "refused": list(self.refusals),
        }


def _link(link: Link, graph: Graph) -> dict[str, Any]:
    sources = {session.source for session in graph.links[link].values()}
    return {"near": link.near, "far": link.far, "family": link.family, "because": sorted(sources)}


def inputs(resources: Resources) -> tuple[PeeringInputs, ClusterRoutesMode]:
    """What peering depends on.

    Raises:
        InvalidInputError: the cluster-routes annotation is neither ``bgp`` nor ``datastore``.
    """
    nodes: dict[str, NodeInfo] = {}
    peers: dict[str, BGPPeerSpec] = {}
    configurations: dict[str, BGPConfigurationSpec] = {}
    mode: ClusterRoutesMode = "bgp"
    for (_, name), resource in resources.items():
        match resource.spec:
            case NodeSpec() as spec:
                nodes[name] = NodeInfo(name, resource.metadata.labels or {}, spec)
            case BGPPeerSpec() as spec:
                peers[name] = spec
            case BGPConfigurationSpec() as spec:
                configurations[name] = spec
                if name == "default":
                    annotation = (resource.metadata.annotations or {}).get(ANNOTATION, "")
                    mode = parse_mode(annotation, f"BGPConfiguration(default) {ANNOTATION}")
            case _:
                pass
    found = PeeringInputs(
        nodes=nodes,
        peers=peers,
        configuration=configurations.get("default") or BGPConfigurationSpec(),
        node_configurations={
            name.removeprefix(_NODE_PREFIX): spec
            for name, spec in configurations.items()
            if name.startswith(_NODE_PREFIX)
        },
    )
    return found, mode


def graph(resources: Resources) -> Graph:
    """The graph that resources lead to. O(nodes^2), the size of a mesh.

    Raises:
        InvalidInputError: see ``inputs``.
    """
    given, mode = inputs(resources)
    given = replace(given, mesh=mode == "bgp")
    links: defaultdict[Link, dict[str, Session]] = defaultdict(dict)
    problems: dict[str, str] = {}
    for name in given.nodes:
        found = peering.plan(name, given)
        problems |= {source: reason for source, reason in found.problems.items() if reason not in problems.values()}
        for session in found.sessions.values():
            near, far = sorted((name, session.node)) if session.node else (name, str(session.peer))
            links[Link(near, far, session.family)][name] = session
    one_sided = frozenset(link for link, ends in links.items() if link.far in given.nodes and len(ends) == 1)
    both = {link: ends for link, ends in links.items() if link not in one_sided}
    found_islands = (
        {} if mode == "datastore" else {family: islands(given, both.values(), family) for family in _FAMILIES}
    )
    return Graph(dict(links), one_sided, found_islands, problems)


def plan(before: Resources, after: Resources) -> Plan:
    """What a change leads to, and why it is refused, if it is: it would leave nodes without each other's routes.

    Islands that are there before, and not made worse, are shown and not refused.

    Raises:
        InvalidInputError: see ``inputs``.
    """
    old, new = graph(before), graph(after)
    shared = old.links.keys() & new.links.keys()
    kept = {link for link in shared if _settings(old.links[link]) == _settings(new.links[link])}
    refusals = []
    for family, groups in new.islands.items():
        if len(groups) > 1 and set(groups) != set(old.islands.get(family, ())):
            named = "; ".join(_named(group) for group in groups)
            refusals.append(f"IPv{family}: {len(groups)} groups of nodes would not hear of each other: {named}")
    return Plan(
        before=old,
        after=new,
        added=tuple(sorted(new.links.keys() - old.links.keys())),
        removed=tuple(sorted(old.links.keys() - new.links.keys())),
        changed=tuple(sorted(shared - kept)),
        kept=tuple(sorted(kept)),
        refusals=tuple(refusals),
    )


def _named(group: frozenset[str]) -> str:
    names = sorted(group)
    return f"[{', '.join(names[:20])}{f' and {len(names) - 20} more' if len(names) > 20 else ''}]"


def _settings(ends: Mapping[str, Session]) -> dict[str, Session]:
    """What makes a session another one: not its origin or type, nor filters and roles, which change while it is up."""
    return {
        name: replace(
            session, source="", type="global", filters=(), client=False, next_hop="auto", allowed_local_as=0,
            reachable_by=None,
        )
        for name, session in ends.items()
    }  # fmt: skip
