"""Who this node should have BGP sessions with, from Node, BGPConfiguration and BGPPeer resources. Pure.

Follows Calico's confd (``confd/pkg/backends/calico/bgp_processor.go``): the node-to-node mesh leaves out route
reflectors; BGPPeers add global and node-specific sessions; a BGPPeer that selects nodes is answered by the nodes it
selects (reverse peering). Sessions are IPv4 over IPv4 and IPv6 over IPv6, one per family that both ends have.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Final, Literal, TypeAlias

from calipy.datastore import durations
from calipy.datastore.resources import BGPConfigurationSpec, BGPPassword, BGPPeerSpec, NodeSpec
from calipy.errors import InvalidInputError
from calipy.net import Family, IPAddress
from calipy.policy import selector

DEFAULT_AS: Final = 64512
DEFAULT_PORT: Final = 179
DEFAULT_HOLD_TIME: Final = 90
"""Seconds. BIRD has 240; with a Python speaker below 15 is a bad bet."""
DEFAULT_RESTART_TIME: Final = 120
MAX_RESTART_TIME: Final = 4095
"""RFC 4724 has 12 bits for it."""

SessionType: TypeAlias = Literal["node-to-node mesh", "node specific", "global"]


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as peering sees it: its name, labels and BGP spec."""

    name: str
    labels: Mapping[str, str]
    spec: NodeSpec

    def address(self, family: Family) -> IPAddress | None:
        """Its BGP address of a family; None without one, or with one that is not an address."""
        if self.spec.bgp is None:
            return None
        return _address(self.spec.bgp.ipv4_address if family == 4 else self.spec.bgp.ipv6_address)

    @property
    def cluster_id(self) -> IPv4Address | None:
        """Its route reflector cluster ID, None for a node that is none."""
        text = self.spec.bgp.route_reflector_cluster_id if self.spec.bgp else ""
        try:
            return IPv4Address(text) if text else None
        except ValueError:
            return None


@functools.lru_cache(maxsize=16384)
def _address(text: str) -> IPAddress | None:
    """Cached: a mesh asks for each node's address once for every other node."""
    try:
        return ipaddress.ip_interface(text).ip
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class PeeringInputs:
    """All that peering depends on.

    Attributes:
        nodes: by name.
        peers: BGPPeer specs by name.
        configuration: the ``default`` BGPConfiguration.
        node_configurations: those named ``node.<name>``, by node name.
        router_id: an address, ``hash``, or "" for the node's IPv4 address (``CALICO_ROUTER_ID``).
    """

    nodes: Mapping[str, NodeInfo] = field(default_factory=dict)
    peers: Mapping[str, BGPPeerSpec] = field(default_factory=dict)
    configuration: BGPConfigurationSpec = field(default_factory=BGPConfigurationSpec)
    node_configurations: Mapping[str, BGPConfigurationSpec] = field(default_factory=dict)
    router_id: str = ""
    mesh: bool = True

    def as_number(self, node: NodeInfo) -> int:
        """A node's own AS, else the cluster's."""
        own = node.spec.bgp.as_number if node.spec.bgp else None
        return own or self.configuration.as_number or DEFAULT_AS

    def listen_port(self, name: str) -> int:
        """The port that a node's speaker listens on."""
        own = self.node_configurations.get(name)
        return (own.listen_port if own else None) or self.configuration.listen_port or DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class Session:
    """A session to have.

    Attributes:
        peer: the far end; the session is known by it.
        local: our end, None for the address that the kernel would use (``sourceAddress: None``).
        port: the peer's port, which we dial unless ``passive``.
        passive: the peer dials. Exactly one end does: the one with the lexically greater address, as in Calico.
        node: name of the peer node, "" if the peer is no node of the cluster.
        source: the resource that asks for it, for people.
        password: Secret (name, key) of the TCP-MD5 key, or None.
        restart_time, hold_time: seconds.
        ttl_security: hops to the peer, or None for no GTSM (RFC 5082).
        next_hop: how to set NEXT_HOP on routes learned elsewhere.
        allowed_local_as: how often our AS may be in a received AS_PATH.
        reachable_by: gateway of a host route to the peer, or None.
        client: the peer is our route reflection client (RFC 4456).
        filters: BGPFilters in order.
    """

    peer: IPAddress
    type: SessionType
    peer_as: int
    local_as: int
    router_id: IPv4Address
    local: IPAddress | None
    port: int = DEFAULT_PORT
    passive: bool = False
    node: str = ""
    source: str = ""
    password: tuple[str, str] | None = None
    restart_time: int = DEFAULT_RESTART_TIME
    hold_time: int = DEFAULT_HOLD_TIME
    ttl_security: int | None = None
    next_hop: Literal["auto", "self", "keep"] = "auto"
    allowed_local_as: int = 0
    reachable_by: IPAddress | None = None
    client: bool = False
    filters: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """The one address family that the session carries."""
        return 4 if self.peer.version == 4 else 6

    @property
    def external(self) -> bool:
        """Whether this is eBGP."""
        return self.peer_as != self.local_as


@dataclass(frozen=True, slots=True)
class Peering:
    """The sessions to have, by peer address, and what could not be done, by resource."""

    sessions: Mapping[IPAddress, Session]
    problems: Mapping[str, str]
    router_id: IPv4Address | None = None
    local_as: int = DEFAULT_AS
    port: int = DEFAULT_PORT


def router_id(node: NodeInfo, wanted: str = "") -> IPv4Address:
    """A node's BGP identifier: ``wanted``, its IPv4 address, or a hash of its name (also where it has no IPv4).

    Raises:
        InvalidInputError: ``wanted`` is neither ``hash`` nor an IPv4 address.
    """
    if wanted and wanted != "hash":
        try:
            return IPv4Address(wanted)
        except ValueError:
            raise InvalidInputError(
                "not an IPv4 address", field="CALICO_ROUTER_ID", value=wanted, remedy="give an IPv4 address or 'hash'"
            ) from None
    own = node.address(4)
    if isinstance(own, IPv4Address) and not wanted:
        return own
    digest = hashlib.sha256(node.name.encode()).digest()
    # Neither 0.x nor multicast and above: other speakers refuse such identifiers.
    return IPv4Address(bytes([digest[0] % 223 + 1]) + digest[1:4])


def parse_peer_ip(text: str) -> tuple[IPAddress, int | None]:
    """``10.0.0.1``, ``10.0.0.1:180``, ``fd00::1`` or ``[fd00::1]:180`` as address and port (None if not given).

    Raises:
        ValueError: none of these.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [address]:port")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is not a port")
    return ipaddress.ip_address(host), int(port) if port else None


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
    for _, session in wanted:
        kept = sessions.setdefault(session.peer, session)
        if kept.port != session.port and kept.node == "":
            problems[session.source] = f"peer {session.peer} port {session.port} is shadowed by {kept.source}"
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
            for family in _FAMILIES
            if (address := other.address(family)) is not None
        }

    def mesh(self) -> Iterator[tuple[int, Session]]:
        configuration = self.inputs.configuration
        wanted = self.inputs.mesh and configuration.node_to_node_mesh_enabled is not False
        if not wanted or self.node.cluster_id is not None:
            return
        try:
            restart_time = _seconds(configuration.node_mesh_max_restart_time, DEFAULT_RESTART_TIME)
        except ValueError as error:
            self.problems["BGPConfiguration(default)"] = f"nodeMeshMaxRestartTime: {error}"
            restart_time = DEFAULT_RESTART_TIME
        for other in self.inputs.nodes.values():
            if other.name == self.node.name or other.cluster_id is not None:
                continue
            for family in _FAMILIES:
                session = self.to_node(other, family, "node-to-node mesh", "node-to-node mesh")
                if session is not None:
                    yield (
                        _MESH,
                        replace(session, password=_secret(configuration.node_mesh_password), restart_time=restart_time),
                    )

    def explicit(self) -> Iterator[tuple[int, Session]]:
        for name, spec in self.inputs.peers.items():
            source = f"BGPPeer({name})"
            try:
                yield from self.of_peer(source, spec)
            except (ValueError, InvalidInputError) as error:
                self.problems[source] = str(error)

    def of_peer(self, source: str, spec: BGPPeerSpec) -> Iterator[tuple[int, Session]]:
        if spec.local_workload_selector:
            self.problems[source] = "localWorkloadSelector: sessions with workloads are not supported"
            return
        specific = bool(spec.node or spec.node_selector)
        kind: SessionType = "node specific" if specific else "global"
        rank = _SPECIFIC if specific else _GLOBAL
        here = self.selects(self.node, spec.node, spec.node_selector)
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
        families: tuple[Family, ...] = _FAMILIES
        if spec.peer_ip:
            families = (4,) if parse_peer_ip(spec.peer_ip)[0].version == 4 else (6,)
        for family in families:
            session = self.to_node(other, family, kind, source)
            if session is not None:
                options = self.with_options(session, spec)
                # localASNumber is the override of the end that the BGPPeer names.
                yield rank, options if rank != _REVERSE else replace(options, local_as=session.local_as)

    def selects(self, node: NodeInfo, name: str, text: str) -> bool:
        if name:
            return node.name == name
        return not text or _selector("spec.nodeSelector", text).matches(node.labels)

    def to_node(self, other: NodeInfo, family: Family, kind: SessionType, source: str) -> Session | None:
        ours, theirs = self.node.address(family), other.address(family)
        if ours is None or theirs is None or ours == theirs:
            return None
        return Session(
            peer=theirs,
            type=kind,
            peer_as=self.inputs.as_number(other),
            local_as=self.inputs.as_number(self.node),
            router_id=self.router_id,
            local=ours,
            port=self.inputs.listen_port(other.name),
            passive=str(theirs) > str(ours),
            node=other.name,
            source=source,
            client=self.is_client(other, self.inputs.as_number(other)),
        )

    def to_address(self, spec: BGPPeerSpec, kind: SessionType, source: str) -> Session | None:
        address, port = parse_peer_ip(spec.peer_ip)
        family: Family = 4 if address.version == 4 else 6
        other = self.by_address.get(address)
        if other is self.node:
            return None
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
        return self.with_options(session, spec)

    def is_client(self, other: NodeInfo | None, peer_as: int) -> bool:
        own = self.node.cluster_id
        if own is None or peer_as != self.inputs.as_number(self.node):
            return False
        return other is None or other.cluster_id != own

    def with_options(self, session: Session, spec: BGPPeerSpec) -> Session:
        hold_time = DEFAULT_HOLD_TIME
        if spec.keepalive_time is not None:
            hold_time = min(max(3 * _seconds(spec.keepalive_time, 0), 3), 65535)
        reachable_by = ipaddress.ip_address(spec.reachable_by) if spec.reachable_by else None
        mode: Literal["auto", "self", "keep"] = "auto"
        if spec.next_hop_mode == "Keep" or spec.keep_original_next_hop:
            mode = "keep"
        elif spec.next_hop_mode == "Self":
            mode = "self"
        return replace(
            session,
            local=None if spec.source_address == "None" else session.local,
            local_as=spec.local_as_number or session.local_as,
            password=_secret(spec.password),
            restart_time=_seconds(spec.max_restart_time, DEFAULT_RESTART_TIME),
            hold_time=hold_time,
            ttl_security=spec.ttl_security or None,
            next_hop=mode,
            allowed_local_as=max(spec.num_allowed_local_as_numbers or 0, 0),
            reachable_by=reachable_by,
            filters=spec.filters,
        )


_FAMILIES: Final[tuple[Family, Family]] = (4, 6)


def _selector(field: str, text: str) -> selector.Selector:
    try:
        return selector.parse(text)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=field, value=text) from error


def _secret(password: BGPPassword | None) -> tuple[str, str] | None:
    reference = password.secret_key_ref if password else None
    return (reference.name, reference.key) if reference else None


def _seconds(text: object, default: int) -> int:
    if text is None:
        return default
    return min(max(durations.parse(str(text)) // 10**9, 0), MAX_RESTART_TIME)
