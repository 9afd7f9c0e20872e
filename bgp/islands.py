"""Which nodes hear of each other's blocks over given sessions, and the groups in which everybody does. Pure.

Routes travel as they do in the network: a node tells its own; a reflector passes on the best path it has (RFC 4456 6,
and refuses what has been through its cluster, RFC 4456 8); the fabric behind external peers connects whoever peers with
it. Two paths to one block differ in their CLUSTER_LIST only, so that the best is the one with the fewest reflectors,
then the one from the lowest address: going out from the owner reflector by reflector, the first path is the best.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from calipy.bgp.peering import NodeInfo, PeeringInputs, Session
from calipy.net import Family, IPAddress


@dataclass(frozen=True, slots=True)
class _Path:
    """One node's way to have heard of a block.

    Attributes:
        sender: address of the peer that told it, None for the fabric.
        to_all: whether a reflector passes it on to everybody (own, from a client, from outside) or to clients only.
        clusters: CLUSTER_LIST, as a set.
    """

    sender: IPAddress | None
    to_all: bool
    clusters: frozenset[IPv4Address] = frozenset()


Sessions = Mapping[str, Iterable[Session]]
"""Of each node, those that both ends want."""


def islands(given: PeeringInputs, links: Iterable[Mapping[str, Session]], family: Family) -> tuple[frozenset[str], ...]:
    """Groups of nodes in which everybody hears of everybody, largest first. O(nodes x sessions).

    Args:
        given: the nodes.
        links: what each end wants of each session that can come up, by the name of the end.
        family: whose sessions count; nodes without an address of it take no part.
    """
    members = {name for name, node in given.nodes.items() if node.address(family) is not None}
    sessions: defaultdict[str, list[Session]] = defaultdict(list)
    for ends in links:
        for name, session in ends.items():
            if session.family == family:
                sessions[name].append(session)
    hears = {name: _hearers(name, given.nodes, sessions, family) for name in members}
    left, groups = set(members), []
    while left:
        # Who hears most, then by name: a hub that passes nothing on joins one of its neighbours' groups.
        first = min(left, key=lambda name: (-len(hears[name] & left), name))
        group = {first}
        for name in sorted(hears[first] & left, key=lambda name: (-len(hears[name]), name)):
            if group <= hears[name] | {name} and all(name in hears[one] for one in group):
                group.add(name)
        groups.append(frozenset(group))
        left -= group
    return tuple(sorted(groups, key=lambda group: (-len(group), sorted(group))))


def _hearers(origin: str, nodes: Mapping[str, NodeInfo], sessions: Sessions, family: Family) -> set[str]:
    """Which nodes hear of the blocks of ``origin``: breadth first, a step for each reflector on the way."""
    best: dict[str, _Path] = {origin: _Path(None, to_all=True)}
    step = [origin]
    fabric_told = False
    while step:
        offered: dict[str, _Path] = {}
        for name in step:
            for session in _passed_on(name, best[name], nodes[name], sessions, own=name == origin):
                if not session.node:
                    fabric_told = True
                    continue
                path = _received(nodes[name], best[name], session, sessions, family, own=name == origin)
                known = offered.get(session.node)
                if session.node not in best and _accepts(nodes[session.node], path) and _better(path, known):
                    offered[session.node] = path
        best |= offered
        step = list(offered)
        if not step and fabric_told:
            # What the fabric tells has the fabric's AS in its path: it is the last choice, and each border's own.
            step = [name for name in nodes if name not in best and any(not one.node for one in sessions.get(name, ()))]
            best |= {name: _Path(None, to_all=True) for name in step}
            fabric_told = False
    return best.keys() - {origin}


def _passed_on(name: str, path: _Path, node: NodeInfo, sessions: Sessions, *, own: bool) -> Iterable[Session]:
    """The sessions that a node tells of a path."""
    if not own and node.cluster_id is None:
        return ()
    return [one for one in sessions.get(name, ()) if path.to_all or one.client or one.external]


def _received(
    sender: NodeInfo, path: _Path, session: Session, sessions: Sessions, family: Family, *, own: bool
) -> _Path:
    """The path as the other end of a session has it."""
    address = sender.address(family)
    back = next((one for one in sessions.get(session.node, ()) if one.peer == address), None)
    clusters = path.clusters if own or sender.cluster_id is None else path.clusters | {sender.cluster_id}
    return _Path(address, to_all=back is not None and (back.client or back.external), clusters=clusters)


def _accepts(node: NodeInfo, path: _Path) -> bool:
    return node.cluster_id is None or node.cluster_id not in path.clusters


def _better(path: _Path, known: _Path | None) -> bool:
    if known is None:
        return True
    return path.sender is not None and (known.sender is None or int(path.sender) < int(known.sender))
