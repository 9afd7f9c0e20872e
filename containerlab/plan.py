"""What a deploy of a changed file does to a lab that runs: the difference of two topologies. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from calipy.containerlab.model import Link, Node, Topology


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The work, names sorted.

    Attributes:
        added, deleted, started: nodes; ``started`` ones have exited and run again.
        recreated: node to why.
        added_links: to build; links between nodes that stay, or with a new one.
        deleted_endpoints: interfaces to remove from nodes that stay.
    """

    added: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    recreated: dict[str, str] = {}
    started: tuple[str, ...] = ()
    added_links: tuple[Link, ...] = ()
    deleted_endpoints: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """As containerlab tells it: action and detail, one a line; one ``no changes`` if there is nothing to do."""
        rows = [("added nodes", name) for name in self.added]
        rows += [("deleted nodes", name) for name in self.deleted]
        rows += [("recreated nodes", f"{name} ({reason})") for name, reason in self.recreated.items()]
        rows += [("started nodes", name) for name in self.started]
        rows += [("added links", str(link)) for link in self.added_links]
        rows += [("deleted endpoints", endpoint) for endpoint in self.deleted_endpoints]
        return rows or [("no changes", "-")]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return self == Plan()


def plan(nodes: Mapping[str, Node], exited: frozenset[str], links: Sequence[Link], wanted: Topology) -> Plan:
    """The difference between what runs and what is wanted.

    Args:
        nodes: nodes that exist, as they were created.
        exited: those whose main process is gone.
        links: links that exist.
        wanted: the new topology.

    A node is recreated when one of the fields changed that containerlab compares (``Node.drift``); an MTU or MAC of a
    link is not among them. Cost: O(nodes + links).
    """
    stay = nodes.keys() & wanted.nodes.keys()
    recreated = {}
    for name in sorted(stay):
        old, new = nodes[name].drift, wanted.nodes[name].drift
        changed = [field for field in new if old.get(field) != new[field]]
        if changed:
            recreated[name] = f"config drift: {', '.join(changed)}"
    existing = {_ends(link) for link in links}
    desired = {_ends(link) for link in wanted.links}
    wanted_ends = {end for link in desired for end in link}
    gone = {end for link in existing - desired for end in link if _node(end) not in nodes or _node(end) in wanted.nodes}
    return Plan(
        added=tuple(sorted(wanted.nodes.keys() - nodes.keys())),
        deleted=tuple(sorted(nodes.keys() - wanted.nodes.keys())),
        recreated=recreated,
        started=tuple(sorted(name for name in stay & exited if name not in recreated)),
        added_links=tuple(link for link in wanted.links if _ends(link) not in existing),
        deleted_endpoints=tuple(sorted(gone - wanted_ends)),
    )


def _ends(link: Link) -> frozenset[str]:
    return frozenset(str(end) for end in link.endpoints)


def _node(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]
