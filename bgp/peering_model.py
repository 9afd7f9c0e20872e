"""Values of peering: nodes and settings as it sees them, and the sessions that come of it. Pure."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, Literal, TypeAlias

from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, NodeSpec
from calipy.errors import InvalidInputError
from calipy.net import Family, IPAddress

DEFAULT_AS: Final = 64512
DEFAULT_PORT: Final = 179
DEFAULT_HOLD_TIME: Final = 90
"""Seconds. BIRD has 240; with a Python speaker below 15 is a bad bet."""
DEFAULT_RESTART_TIME: Final = 120
MAX_RESTART_TIME: Final = 4095
"""RFC 4724 has 12 bits for it."""

SessionType: TypeAlias = Literal["node-to-node mesh", "node specific", "global", "local workload"]
FAMILIES: Final[tuple[Family, Family]] = (4, 6)


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
class WorkloadPeer:
    """A workload of this node that a BGPPeer's ``localWorkloadSelector`` selects, set up and running.

    Attributes:
        bgp_peer: name of that BGPPeer; of several the first by name.
        addresses: the workload's own, at most one of each family.
    """

    bgp_peer: str
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class PeeringInputs:
    """All that peering depends on.

    Attributes:
        nodes: by name.
        peers: BGPPeer specs by name.
        configuration: the ``default`` BGPConfiguration.
        node_configurations: those named ``node.<name>``, by node name.
        router_id: an address, ``hash``, or "" for the node's IPv4 address (``CALICO_ROUTER_ID``).
        mesh: the node-to-node mesh is to be had, unless the configuration says otherwise.
        workloads: those of the node that is planned for which are to peer with it.
    """

    nodes: Mapping[str, NodeInfo] = field(default_factory=dict)
    peers: Mapping[str, BGPPeerSpec] = field(default_factory=dict)
    configuration: BGPConfigurationSpec = field(default_factory=BGPConfigurationSpec)
    node_configurations: Mapping[str, BGPConfigurationSpec] = field(default_factory=dict)
    router_id: str = ""
    mesh: bool = True
    workloads: tuple[WorkloadPeer, ...] = ()

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
