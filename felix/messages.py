"""Values that flow from the calculation graph (``felix.graph``) to the dataplane (``felix.render``, ``felix.apply``).

This is the border between deciding *what* a node must enforce and *how* the kernel is told. Everything is frozen and
compares by value. Names follow Felix's own messages; the rules hold ids of ip sets instead of selectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from calipy.net import Family, Prefix
from calipy.policy.values import ICMP, Action, PolicyID, PortRange

__all__ = [
    "ICMP",
    "VTEP",
    "VTEPID",
    "Action",
    "ActivePolicy",
    "ActiveProfile",
    "Changes",
    "ClusterRoute",
    "Encap",
    "Encapsulation",
    "EndpointID",
    "Host",
    "HostEndpoint",
    "IPSet",
    "IPSetDelta",
    "LocalBGPPeer",
    "Match",
    "PolicyID",
    "Pool",
    "PortRange",
    "Rule",
    "SetType",
    "TierInfo",
    "WorkloadEndpoint",
]

SetType: TypeAlias = Literal["net", "ip", "ip,port"]
Encap: TypeAlias = Literal["none", "ipip", "vxlan"]
"""How packets of a pool travel between nodes."""
VTEPID: TypeAlias = tuple[str, Family]
"""A node's end of the VXLAN network: the node's name and the family of both its addresses."""


class EndpointID(NamedTuple):
    """A workload endpoint as Felix names it: orchestrator, ``<namespace>/<workload>``, endpoint (``eth0``)."""

    orchestrator: str
    workload: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Match:
    """What a rule asks of one side of a packet; all given parts must hold. Empty = no condition.

    Attributes:
        nets: CIDRs, the side's address is in one of them. May mix families: each table uses its own and, if that
            leaves a non-empty list empty, leaves the rule out.
        ip_sets: ids of ``net`` sets; the address is in *every one* of them.
        ports: numeric ports; with ``named_ports`` the port matches if it is in either.
        named_ports: ids of ``ip,port`` sets; in one of them.
        services: ids of ``ip,port`` sets of services; in every one of them.
        not_nets, not_ip_sets, not_ports, not_named_ports: the address/port is in none of them.
    """

    nets: tuple[str, ...] = ()
    ip_sets: tuple[str, ...] = ()
    ports: tuple[PortRange, ...] = ()
    named_ports: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    not_nets: tuple[str, ...] = ()
    not_ip_sets: tuple[str, ...] = ()
    not_ports: tuple[PortRange, ...] = ()
    not_named_ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy or profile rule, ready to render.

    Attributes:
        protocol, not_protocol: lower-case name (``tcp udp icmp icmpv6 sctp udplite``) or number.
        annotations: ``k=v`` texts for rule comments.
    """

    action: Action
    ip_version: Literal[4, 6] | None = None
    protocol: str | int | None = None
    not_protocol: str | int | None = None
    src: Match = Match()
    dst: Match = Match()
    icmp: ICMP | None = None
    not_icmp: ICMP | None = None
    annotations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ActivePolicy:
    """A policy that selects at least one local endpoint. ``staged`` ones are listed but never enforced.

    ``everywhere``: it is to be ready in the kernel even while it selects none (a performance hint).
    """

    id: PolicyID
    tier: str
    inbound: tuple[Rule, ...]
    outbound: tuple[Rule, ...]
    selector: str = ""
    staged: bool = False
    untracked: bool = False
    pre_dnat: bool = False
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class ActiveProfile:
    """A profile that a local endpoint names. A missing one is emitted as deny in both directions (fail closed)."""

    name: str
    inbound: tuple[Rule, ...]
    outbound: tuple[Rule, ...]
    missing: bool = False


@dataclass(frozen=True, slots=True)
class TierInfo:
    """One tier of an endpoint: its policies in order, per direction. Present only if one of its policies matches."""

    name: str
    default_action: Literal["Deny", "Pass"]
    ingress: tuple[PolicyID, ...]
    egress: tuple[PolicyID, ...]


@dataclass(frozen=True, slots=True)
class LocalBGPPeer:
    """What a workload needs that is to have a BGP session with its node.

    Attributes:
        name: of the BGPPeer that selects it.
        addresses: the node's towards it, bare, at most one of each family; the host's end of its interface has them.
        port: on which the node's BGP speaker listens.
    """

    name: str
    addresses: tuple[str, ...] = ()
    port: int = 179


@dataclass(frozen=True, slots=True)
class WorkloadEndpoint:
    """A local pod interface and everything that applies to it.

    Attributes:
        interface: host end of the veth, e.g. ``cali0a1b2c3d4e5``.
        mac: the pod's MAC or "".
        nets: /32 and /128 texts.
        tiers: in evaluation order.
        profiles: names, in order.
        spoof_prefixes: extra source prefixes the pod may use.
        dscp: code point of what it sends out of the cluster, None: as it is.
        bgp_peer: for its BGP session with this node, None if it is to have none.
    """

    id: EndpointID
    interface: str
    mac: str
    nets: tuple[str, ...]
    tiers: tuple[TierInfo, ...]
    profiles: tuple[str, ...]
    admin_up: bool = True
    spoof_prefixes: tuple[str, ...] = ()
    dscp: int | None = None
    bgp_peer: LocalBGPPeer | None = None


@dataclass(frozen=True, slots=True)
class HostEndpoint:
    """Policy on interfaces of this node itself. Which ones that is, the dataplane finds out.

    Attributes:
        interface: its name; ``*`` for all that no other host endpoint covers; "" for those with an expected address.
        expected_ips: bare addresses; they count only if no interface is named.
        tiers: policy on traffic that begins or ends on the node, in evaluation order.
        untracked: policy before connection tracking (doNotTrack).
        pre_dnat: policy before destination NAT; ingress only.
        forward: policy on traffic that the node forwards (applyOnForward); these policies are in ``tiers`` as well.
        profiles: names, in order.
        dscp: code point of what its expected addresses send out of the cluster, None: as it is.
    """

    name: str
    interface: str
    expected_ips: tuple[str, ...] = ()
    tiers: tuple[TierInfo, ...] = ()
    untracked: tuple[TierInfo, ...] = ()
    pre_dnat: tuple[TierInfo, ...] = ()
    forward: tuple[TierInfo, ...] = ()
    profiles: tuple[str, ...] = ()
    dscp: int | None = None


@dataclass(frozen=True, slots=True)
class IPSet:
    """A whole ip set. ``members`` of type ``net``: canonical CIDR texts (bare address for a host prefix), of both
    families; of type ``ip,port``: ``10.0.0.1,tcp:80``. The dataplane splits them by family.
    """

    id: str
    type: SetType
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class IPSetDelta:
    """A change of a set that was sent before."""

    id: str
    added: frozenset[str]
    removed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pool:
    """An IP pool as NAT and the all-pools set need it."""

    cidr: str
    nat_outgoing: bool
    ipip_mode: str = "Never"
    vxlan_mode: str = "Never"
    load_balancer_only: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """A node's addresses, bare, "" when it has none of the family. ``local``: it is this node."""

    name: str
    ipv4: str = ""
    ipv6: str = ""
    local: bool = False


@dataclass(frozen=True, slots=True)
class ClusterRoute:
    """A destination inside the pools whose route is Felix's to write: a block, or an address outside of its node's own.

    Attributes:
        encapsulation: of the pool.
        node: the name of the node that it leads to.
        address: that node's, bare, "" while it is not known.
        local: a block of this node: what no pod of it has must go nowhere.
        same_subnet: the node is on this node's subnet, and the pool encapsulates between subnets only, or not at all.
        borrowed: one address out of another node's block.
        tunnel: the address of the node's VXLAN device itself.
    """

    encapsulation: Encap
    node: str
    address: str = ""
    local: bool = False
    same_subnet: bool = False
    borrowed: bool = False
    tunnel: bool = False


@dataclass(frozen=True, slots=True)
class VTEP:
    """A node's VXLAN device: its MAC and address, and the address of the node that packets for it are sent to."""

    mac: str
    address: str
    parent: str
    local: bool = False


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """Which tunnel devices the node needs."""

    ipip: bool = False
    vxlan: bool = False
    vxlan6: bool = False


@dataclass(slots=True)
class Changes:
    """What one flush of the graph says. Each map holds the new value, or None when the thing is gone.

    Apply in this order: sets created and grown, policies, profiles, endpoints, then removals, sets last. Nothing may
    be applied before ``in_sync`` was True once.

    Attributes:
        host_endpoints: those of this node, by name.
        routes: destinations in the pools whose routes Felix owns.
        vteps: nodes' ends of the VXLAN networks that there are.
        encapsulation: which tunnel devices the node needs, when that changed, else None.
        services: ranges of services that the cluster announces by BGP (BGPConfiguration ``default``), canonical CIDR
            texts in order, when they changed, else None.
        config: the effective Felix parameters (``InterfacePrefix`` -> ``cali``) when they changed, else None.
        in_sync: the first complete snapshot of the datastore is contained in what was flushed so far.
    """

    ip_sets: dict[str, IPSet | IPSetDelta | None] = field(default_factory=dict)
    policies: dict[PolicyID, ActivePolicy | None] = field(default_factory=dict)
    profiles: dict[str, ActiveProfile | None] = field(default_factory=dict)
    endpoints: dict[EndpointID, WorkloadEndpoint | None] = field(default_factory=dict)
    host_endpoints: dict[str, HostEndpoint | None] = field(default_factory=dict)
    pools: dict[str, Pool | None] = field(default_factory=dict)
    hosts: dict[str, Host | None] = field(default_factory=dict)
    routes: dict[Prefix, ClusterRoute | None] = field(default_factory=dict)
    vteps: dict[VTEPID, VTEP | None] = field(default_factory=dict)
    encapsulation: Encapsulation | None = None
    services: tuple[str, ...] | None = None
    config: dict[str, str] | None = None
    in_sync: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.ip_sets
            or self.policies
            or self.profiles
            or self.endpoints
            or self.host_endpoints
            or self.pools
            or self.hosts
            or self.routes
            or self.vteps
            or self.encapsulation is not None
            or self.services is not None
            or self.config is not None
        )
