"""Who this node should have BGP sessions with, from Node, BGPConfiguration and BGPPeer resources. Pure.

Follows Calico's confd (``confd/pkg/backends/calico/bgp_processor.go``): the node-to-node mesh leaves out route
reflectors; BGPPeers add global and node-specific sessions; a BGPPeer that selects nodes is answered by the nodes it
selects (reverse peering). Sessions are IPv4 over IPv4 and IPv6 over IPv6, one per family that both ends have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from calipy.bgp.peering_model import (
    DEFAULT_AS,
    DEFAULT_HOLD_TIME,
    DEFAULT_PORT,
    DEFAULT_RESTART_TIME,
    FAMILIES,
    MAX_RESTART_TIME,
    NodeInfo,
    Peering,
    PeeringInputs,
    Session,
    SessionType,
    parse_peer_ip,
    router_id,
)
from calipy.bgp.peering_options import seconds, secret, with_options
from calipy.bgp.workload_peers import workload_sessions
from calipy.datastore.resources import BGPPeerSpec
from calipy.errors import InvalidInputError
from calipy.net import Family, IPAddress
from calipy.policy import selector

__all__ = [
    "DEFAULT_AS",
    "DEFAULT_HOLD_TIME",
    "DEFAULT_PORT",
    "DEFAULT_RESTART_TIME",
    "MAX_RESTART_TIME",
    "NodeInfo",
    "Peering",
    "PeeringInputs",
    "Session",
    "SessionType",
    "parse_peer_ip",
    "plan",
    "router_id",
]


def plan(hostname: str, inputs: PeeringInputs) -> Peering:
    """The sessions of node ``hostname``.

    Where several resources ask for one peer the first of these wins: global BGPPeer, node-specific BGPPeer, the
    reverse of somebody else's BGPPeer, the mesh. O(nodes + BGPPeers), and O(nodes) more per BGPPeer with selectors.
    """
    node = inputs.nodes.get(hostname)
    if node is None or node.spec.bgp is None:
        missing = "does not exist" if node is None else "has no spec.bgp"
        return Peering({}, {f"Node({hostname})": f"the node {missing}, so it has no sessions"})
    problems: dict[str, str] = {}
    identifier = router_id(node, inputs.router_id)
    planner = _Planner(node, inputs, identifier, problems)
    wanted = sorted(
        (*planner.explicit(), *planner.mesh()),
        key=lambda ranked: (ranked[0], ranked[1].source, ranked[1].port),
    )
    sessions: dict[IPAddress, Session] = {}
    for rank, session in wanted:
        kept = sessions.setdefault(session.peer, session)
        if kept.port != session.port and kept.node == "":
            problems[session.source] = f"peer {session.peer} port {session.port} is shadowed by {kept.source}"
        elif kept.peer_as != session.peer_as and rank in {_GLOBAL, _SPECIFIC}:
            problems[session.source] = f"peer {session.peer} AS {session.peer_as} is shadowed by {kept.source}"
    return Peering(sessions, problems, identifier, inputs.as_number(node), inputs.listen_port(hostname))


_GLOBAL, _SPECIFIC, _REVERSE, _MESH = range(4)


class _Planner:
    def __init__(
        self, node: NodeInfo, inputs: PeeringInputs, identifier: IPv4Address, problems: dict[str, str]
    ) -> None:
        self.node = node
        self.inputs = inputs
        self.router_id = identifier
        self.problems = problems
        self.by_address = {
            address: other
            for other in inputs.nodes.values()
            for family in FAMILIES
            if (address := other.address(family)) is not None
        }

    def mesh(self) -> Iterator[tuple[int, Session]]:
        configuration = self.inputs.configuration
        wanted = self.inputs.mesh and configuration.node_to_node_mesh_enabled is not False
        if not wanted or self.node.cluster_id is not None:
            return
        try:
            restart_time = seconds(configuration.node_mesh_max_restart_time, DEFAULT_RESTART_TIME)
        except ValueError as error:
            self.problems["BGPConfiguration(default)"] = f"nodeMeshMaxRestartTime: {error}"
            restart_time = DEFAULT_RESTART_TIME
        for other in self.inputs.nodes.values():
            if other.name == self.node.name or other.cluster_id is not None:
                continue
            for family in FAMILIES:
                session = self.to_node(
                    other, family, "node-to-node mesh", "node-to-node mesh", self.inputs.as_number(other)
                )
                if session is not None:
                    yield (
                        _MESH,
                        replace(session, password=secret(configuration.node_mesh_password), restart_time=restart_time),
                    )

    def explicit(self) -> Iterator[tuple[int, Session]]:
        for name, spec in self.inputs.peers.items():
            source = f"BGPPeer({name})"
            try:
                yield from self.of_peer(source, name, spec)
            except (ValueError, InvalidInputError) as error:
                self.problems[source] = str(error)

    def of_peer(self, source: str, name: str, spec: BGPPeerSpec) -> Iterator[tuple[int, Session]]:
        specific = bool(spec.node or spec.node_selector)
        kind: SessionType = "node specific" if specific else "global"
        rank = _SPECIFIC if specific else _GLOBAL
        here = self.selects(self.node, spec.node, spec.node_selector)
        if spec.local_workload_selector:
            if here:
                yield from ((rank, session) for session in self.to_workloads(source, name, spec))
            return
        if not spec.peer_ip and not spec.peer_selector:
            self.problems[source] = "names no peer (give it a peerIP, a peerSelector or a localWorkloadSelector)"
        if here and spec.peer_ip:
            session = self.to_address(spec, kind, source)
            if session is not None:
                yield rank, session
        if here and spec.peer_selector:
            chosen = _selector("spec.peerSelector", spec.peer_selector)
            for other in self.inputs.nodes.values():
                if other.name != self.node.name and chosen.matches(other.labels):
                    yield from self.both_families(rank, other, kind, source, spec)
        if spec.reverse_peering != "Manual" and self.is_target(spec):
            for other in self.inputs.nodes.values():
                if other.name != self.node.name and self.selects(other, spec.node, spec.node_selector):
                    yield from self.both_families(_REVERSE, other, kind, source, spec)

    def is_target(self, spec: BGPPeerSpec) -> bool:
        """Whether this node is at the far end of the BGPPeer."""
        if spec.peer_selector:
            return _selector("spec.peerSelector", spec.peer_selector).matches(self.node.labels)
        if spec.peer_ip:
            address, port = parse_peer_ip(spec.peer_ip)
            own = self.by_address.get(address)
            return (
                own is self.node
                and (port or DEFAULT_PORT) == self.inputs.listen_port(own.name)
                and spec.as_number == self.inputs.as_number(own)
            )
        return False

    def both_families(
        self, rank: int, other: NodeInfo, kind: SessionType, source: str, spec: BGPPeerSpec
    ) -> Iterator[tuple[int, Session]]:
        families: tuple[Family, ...] = FAMILIES
        if spec.peer_ip:
            families = (4,) if parse_peer_ip(spec.peer_ip)[0].version == 4 else (6,)
        for family in families:
            session = self.to_node(other, family, kind, source, self.speaks_as(other, rank, spec))
            if session is not None:
                options = with_options(session, spec)
                # localASNumber is the override of the end that the BGPPeer names.
                yield rank, options if rank != _REVERSE else replace(options, local_as=session.local_as)

    def speaks_as(self, other: NodeInfo, rank: int, spec: BGPPeerSpec) -> int:
        """The AS with which another node speaks to this one: localASNumber where the BGPPeer names that node's end."""
        own = self.inputs.as_number(other)
        if not spec.local_as_number:
            return own
        named = rank == _REVERSE or (self.selects(other, spec.node, spec.node_selector) and self.is_target(spec))
        return spec.local_as_number if named else own

    def selects(self, node: NodeInfo, name: str, text: str) -> bool:
        if name:
            return node.name == name
        return not text or _selector("spec.nodeSelector", text).matches(node.labels)

    def to_node(self, other: NodeInfo, family: Family, kind: SessionType, source: str, peer_as: int) -> Session | None:
        ours, theirs = self.node.address(family), other.address(family)
        if ours is None or theirs is None or ours == theirs:
            return None
        return Session(
            peer=theirs,
            type=kind,
            peer_as=peer_as,
            local_as=self.inputs.as_number(self.node),
            router_id=self.router_id,
            local=ours,
            port=self.inputs.listen_port(other.name),
            passive=str(theirs) > str(ours),
            node=other.name,
            source=source,
            client=self.is_client(other, peer_as),
        )

    def to_address(self, spec: BGPPeerSpec, kind: SessionType, source: str) -> Session | None:
        address, port = parse_peer_ip(spec.peer_ip)
        family: Family = 4 if address.version == 4 else 6
        other = self.by_address.get(address)
        if other is self.node:
            return None
        if address.is_multicast or address.is_unspecified or address.is_loopback or int(address) == 0xFFFFFFFF:
            raise InvalidInputError(
                "no router has this address", field="spec.peerIP", value=spec.peer_ip, remedy="give the peer's own"
            )
        if not spec.as_number:
            raise InvalidInputError("missing", field="spec.asNumber", value=spec.as_number, remedy="give the peer's AS")
        ours = self.node.address(family)
        if ours is None and spec.source_address != "None":
            raise InvalidInputError(
                f"the node has no IPv{family} address",
                field="spec.peerIP",
                value=spec.peer_ip,
                remedy=f"give the Node an ipv{family}Address, or the BGPPeer sourceAddress None",
            )
        session = Session(
            peer=address,
            type=kind,
            peer_as=spec.as_number,
            local_as=self.inputs.as_number(self.node),
            router_id=self.router_id,
            local=ours,
            port=port or DEFAULT_PORT,
            passive=other is not None and ours is not None and str(address) > str(ours),
            node=other.name if other else "",
            source=source,
            client=self.is_client(other, spec.as_number),
        )
        return with_options(session, spec)

    def to_workloads(self, source: str, name: str, spec: BGPPeerSpec) -> Iterator[Session]:
        peers = [peer for peer in self.inputs.workloads if peer.bgp_peer == name]
        found, missing = workload_sessions(
            self.node, self.inputs, peers, spec, source=source, router_id=self.router_id,
            client=self.is_client(None, spec.as_number),
        )  # fmt: skip
        if missing:
            self.problems[source] = missing
        yield from found

    def is_client(self, other: NodeInfo | None, peer_as: int) -> bool:
        own = self.node.cluster_id
        if own is None or peer_as != self.inputs.as_number(self.node):
            return False
        return other is None or other.cluster_id != own


def _selector(field: str, text: str) -> selector.Selector:
    try:
        return selector.parse(text)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=field, value=text) from error
