"""Typed keys and Calico's etcd v3 paths; no other module knows a path.

Source: Calico ``libcalico-go/lib/backend/model`` and ``lib/backend/etcdv3``. A CIDR in a key is masked, printed in
canonical form, and its ``/`` becomes ``-``; names of v3 resources go in verbatim; the parts of status keys escape ``%``
and ``/``.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Family: TypeAlias = Literal[4, 6]

ROOT: Final = "/calico/"
RESOURCES: Final = "/calico/resources/v3/projectcalico.org/"
IPAM: Final = "/calico/ipam/v2/"
BLOCKS: Final = "/calico/ipam/v2/assignment/"
BLOCKS_V4: Final = "/calico/ipam/v2/assignment/ipv4/block/"
BLOCKS_V6: Final = "/calico/ipam/v2/assignment/ipv6/block/"
AFFINITIES: Final = "/calico/ipam/v2/host/"
VIRTUAL_AFFINITIES: Final = "/calico/ipam/v2/virtual/"
HANDLES: Final = "/calico/ipam/v2/handle/"
IPAM_CONFIG: Final = "/calico/ipam/v2/config"
STATUS_V2: Final = "/calico/felix/v2/"
STATUS_V1: Final = "/calico/felix/v1/host/"

PLURALS: Final[dict[str, str]] = {
    "BGPConfiguration": "bgpconfigurations",
    "BGPFilter": "bgpfilters",
    "BGPPeer": "bgppeers",
    "BlockAffinity": "blockaffinities",
    "CalicoNodeStatus": "caliconodestatuses",
    "ClusterInformation": "clusterinformations",
    "FelixConfiguration": "felixconfigurations",
    "GlobalNetworkPolicy": "globalnetworkpolicies",
    "GlobalNetworkSet": "globalnetworksets",
    "HostEndpoint": "hostendpoints",
    "IPAMConfiguration": "ipamconfigurations",
    "IPPool": "ippools",
    "IPReservation": "ipreservations",
    "KubeControllersConfiguration": "kubecontrollersconfigurations",
    "LiveMigration": "livemigrations",
    "NetworkPolicy": "networkpolicies",
    "NetworkSet": "networksets",
    "Node": "nodes",
    "Profile": "profiles",
    "StagedGlobalNetworkPolicy": "stagedglobalnetworkpolicies",
    "StagedKubernetesNetworkPolicy": "stagedkubernetesnetworkpolicies",
    "StagedNetworkPolicy": "stagednetworkpolicies",
    "Tier": "tiers",
    "WorkloadEndpoint": "workloadendpoints",
}
"""Kind of a v3 resource and its folder."""

KINDS_BY_PLURAL: Final = {plural: kind for kind, plural in PLURALS.items()}

NAMESPACED: Final = frozenset({
    "LiveMigration", "NetworkPolicy", "NetworkSet", "StagedKubernetesNetworkPolicy", "StagedNetworkPolicy",
    "WorkloadEndpoint",
})  # fmt: skip
"""Kinds whose objects live in a namespace."""


@dataclass(frozen=True, slots=True, order=True)
class ResourceKey:
    """A v3 resource; ``namespace`` is "" for cluster-scoped kinds."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind}({self.namespace}/{self.name})" if self.namespace else f"{self.kind}({self.name})"


@dataclass(frozen=True, slots=True, order=True)
class BlockKey:
    """An IPAM block; ``cidr`` is a text in canonical form."""

    cidr: str


@dataclass(frozen=True, slots=True, order=True)
class BlockAffinityKey:
    """That ``host`` (a node, or the name of a virtual owner) has a claim on the block ``cidr``."""

    host: str
    cidr: str
    affinity_type: str = "host"


@dataclass(frozen=True, slots=True, order=True)
class HandleKey:
    """An IPAM handle: the addresses of one owner."""

    handle_id: str


@dataclass(frozen=True, slots=True, order=True)
class IPAMConfigKey:
    """The settings IPAM obeys (not the v3 ``IPAMConfiguration``, which IPAM never reads)."""


@dataclass(frozen=True, slots=True, order=True)
class IPAMHostKey:
    """Legacy marker of a host; only ever deleted."""

    host: str


@dataclass(frozen=True, slots=True, order=True)
class FelixStatusKey:
    """Felix's own report; ``last_reported`` is the copy that does not expire."""

    host: str
    region: str = "no-region"
    last_reported: bool = False


@dataclass(frozen=True, slots=True, order=True)
class WorkloadStatusKey:
    """Status of a workload endpoint; ``workload_id`` is ``<namespace>/<pod or workload>``."""

    host: str
    orchestrator: str
    workload_id: str
    endpoint: str
    region: str = "no-region"


@dataclass(frozen=True, slots=True, order=True)
class HostEndpointStatusKey:
    """Status of a host endpoint."""

    host: str
    endpoint: str


Key: TypeAlias = (
    ResourceKey
    | BlockKey
    | BlockAffinityKey
    | HandleKey
    | IPAMConfigKey
    | IPAMHostKey
    | FelixStatusKey
    | WorkloadStatusKey
    | HostEndpointStatusKey
)


@functools.lru_cache(maxsize=65536)
def canonical_cidr(text: str) -> str:
    """Host bits cleared, printed as Calico does: ``FD00::1/64`` → ``fd00::/64``; a bare address gets its full length.

    Raises:
        ValueError: not an address or CIDR.
    """
    return str(ipaddress.ip_network(text, strict=False))


def _cidr_part(cidr: str) -> str:
    return canonical_cidr(cidr).replace("/", "-", 1)


def _family_part(cidr: str) -> str:
    return "ipv6" if ":" in cidr else "ipv4"


def _cidr_from_part(family: str, part: str) -> str | None:
    address, dash, length = part.rpartition("-")
    if not dash or (family == "ipv6") != (":" in address):
        return None
    try:
        return canonical_cidr(f"{address}/{length}")
    except ValueError:
        return None


def escape(part: str) -> str:
    """A part of a status key: ``default/web-1`` → ``default%2fweb-1``."""
    return part.replace("%", "%25").replace("/", "%2f")


def unescape(part: str) -> str:
    """The inverse of ``escape``."""
    return part.replace("%2f", "/").replace("%25", "%")


def path(key: Key) -> str:
    """The etcd key, as Calico writes it.

    Raises:
        ValueError: a part that cannot be in a path: an unknown kind, a missing namespace, a bad CIDR, a "/" in a name.
    """
    match key:
        case ResourceKey(kind, name, namespace):
            if kind in PLURALS and (kind in NAMESPACED) != bool(namespace):
                raise ValueError(f"kind {kind} {'needs a' if kind in NAMESPACED else 'has no'} namespace")
            return resource_prefix(kind, namespace) + _no_slash(name, "name")
        case BlockKey(cidr):
            return f"{BLOCKS}{_family_part(cidr)}/block/{_cidr_part(cidr)}"
        case BlockAffinityKey(host, cidr, kind):
            return f"{IPAM}{kind}/{_no_slash(host, 'host')}/{_family_part(cidr)}/block/{_cidr_part(cidr)}"
        case HandleKey(handle_id):
            return HANDLES + _no_slash(handle_id, "handle")
        case IPAMConfigKey():
            return IPAM_CONFIG
        case IPAMHostKey(host):
            return AFFINITIES + _no_slash(host, "host")
        case FelixStatusKey(host, region, last_reported):
            return f"{STATUS_V2}{region}/host/{host}/{'last_reported_status' if last_reported else 'status'}"
        case WorkloadStatusKey(host, orchestrator, workload_id, endpoint, region):
            return (
                f"{STATUS_V2}{region}/host/{host}/workload/{escape(orchestrator)}/{escape(workload_id)}"
                f"/endpoint/{escape(endpoint)}"
            )
        case HostEndpointStatusKey(host, endpoint):
            return f"{STATUS_V1}{host}/endpoint/{escape(endpoint)}"


def _no_slash(text: str, what: str) -> str:
    if not text or "/" in text:
        raise ValueError(f"{what} {text!r} must be neither empty nor hold a '/'")
    return text


def parse(text: str) -> Key | None:
    """The key behind an etcd path, or None for a path that is not one of these (other owners share ``/calico/``).

    An unmasked or upper-case CIDR is understood; ``path`` of the result is then another path.
    """
    if text.startswith(RESOURCES):
        return _parse_resource(text[len(RESOURCES) :])
    if text.startswith(IPAM):
        return _parse_ipam(text[len(IPAM) :])
    if text.startswith(STATUS_V2):
        return _parse_status(text[len(STATUS_V2) :])
    if text.startswith(STATUS_V1):
        match text[len(STATUS_V1) :].split("/"):
            case [host, "endpoint", endpoint] if host and endpoint:
                return HostEndpointStatusKey(host, unescape(endpoint))
    return None


def _parse_resource(rest: str) -> ResourceKey | None:
    plural, _, name = rest.partition("/")
    kind = KINDS_BY_PLURAL.get(plural)
    if kind is None:
        return None
    namespace = ""
    if kind in NAMESPACED:
        namespace, _, name = name.partition("/")
        if not namespace:
            return None
    return ResourceKey(kind, name, namespace) if name and "/" not in name else None


def _parse_ipam(rest: str) -> Key | None:
    match rest.split("/"):
        case ["assignment", family, "block", part]:
            cidr = _cidr_from_part(family, part)
            return BlockKey(cidr) if cidr else None
        case ["host" | "virtual" as kind, host, family, "block", part] if host:
            cidr = _cidr_from_part(family, part)
            return BlockAffinityKey(host, cidr, kind) if cidr else None
        case ["handle", handle_id] if handle_id:
            return HandleKey(handle_id.partition("\r")[0])
        case ["config"]:
            return IPAMConfigKey()
        case ["host", host] if host:
            return IPAMHostKey(host)
    return None


def _parse_status(rest: str) -> Key | None:
    match rest.split("/"):
        case [region, "host", host, "status" | "last_reported_status" as leaf]:
            return FelixStatusKey(host, region, leaf == "last_reported_status")
        case [region, "host", host, "workload", orchestrator, workload_id, "endpoint", endpoint]:
            return WorkloadStatusKey(host, unescape(orchestrator), unescape(workload_id), unescape(endpoint), region)
    return None


def resource_prefix(kind: str, namespace: str = "") -> str:
    """Where all objects of a kind (in one namespace) are, for listing and watching.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in PLURALS:
        raise ValueError(f"unknown kind {kind!r}")
    if namespace:
        return f"{RESOURCES}{PLURALS[kind]}/{_no_slash(namespace, 'namespace')}/"
    return f"{RESOURCES}{PLURALS[kind]}/"


def blocks_prefix(family: Family) -> str:
    """Where all blocks of a family are."""
    return BLOCKS_V6 if family == 6 else BLOCKS_V4


def affinity_prefix(host: str, family: Family | None = None, affinity_type: str = "host") -> str:
    """Where all block affinities of a host (of one family) are."""
    base = f"{IPAM}{affinity_type}/{_no_slash(host, 'host')}/"
    return base if family is None else f"{base}ipv{family}/block/"


def workload_status_prefix(host: str, region: str = "no-region") -> str:
    """Where the statuses of a host's workload endpoints are."""
    return f"{STATUS_V2}{region}/host/{host}/workload/"
