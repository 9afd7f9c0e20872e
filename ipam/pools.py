"""Which pools may serve a request, and which block to try next. Pure.

Source: libcalico-go/lib/ipam/{ipam,pools,reserved,ipam_block_reader_writer}.go.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from calipy.datastore.ipam import Block
from calipy.errors import CalipyError
from calipy.ipam.errors import BadSelectorError, NoPoolError, UnknownPoolError, WrongUseError
from calipy.net import Family, IPAddress, Prefix
from calipy.policy import selector

Use: TypeAlias = Literal["Workload", "Tunnel", "LoadBalancer"]

DEFAULT_BLOCK_SIZE: Mapping[Family, int] = {4: 26, 6: 122}
_DISABLED: Final = "is disabled"


@dataclass(frozen=True, slots=True)
class Pool:
    """An IPPool as the allocator sees it, with defaults filled in.

    Attributes:
        block_size: prefix length of its blocks.
        node_selector: "" selects every node, as ``all()``.
        namespace_selector: "" selects every namespace.
        automatic: False for pools that are used only when named.
        unusable: why nothing new may be taken from it, "" if something may.
        revision: of the IPPool.
    """

    name: str
    network: Prefix
    block_size: int
    node_selector: str = ""
    namespace_selector: str = ""
    allowed_uses: tuple[str, ...] = ("Workload", "Tunnel")
    automatic: bool = True
    unusable: str = ""
    revision: int = 0

    @property
    def active(self) -> bool:
        """Not disabled; another reason against taking addresses may pass by itself."""
        return self.unusable != _DISABLED

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if self.network.version == 4 else 6

    @property
    def block_count(self) -> int:
        """How many blocks it is cut into; 0 if it is smaller than a block."""
        bits = self.block_size - self.network.prefixlen
        return 1 << bits if bits >= 0 else 0

    def block_at(self, index: int) -> str:
        """CIDR of the block at an index (0 based)."""
        step = self.network.max_prefixlen - self.block_size
        return f"{self.network.network_address + (index << step)}/{self.block_size}"

    def block_of(self, address: IPAddress) -> str:
        """CIDR of the block that holds an address of this pool."""
        return str(ipaddress.ip_network((address, self.block_size), strict=False))

    def selects_node(self, labels: Mapping[str, str]) -> bool:
        """Whether the nodeSelector matches. Raises ``BadSelectorError``."""
        return self._matches("nodeSelector", self.node_selector, labels)

    def selects_namespace(self, labels: Mapping[str, str]) -> bool:
        """Whether the namespaceSelector matches; a caller without a namespace has no labels."""
        return self._matches("namespaceSelector", self.namespace_selector, labels)

    def _matches(self, field: str, text: str, labels: Mapping[str, str]) -> bool:
        if not text:
            return True
        try:
            return selector.parse(text).matches(labels)
        except CalipyError as error:
            raise BadSelectorError(self.name, field, text, error) from error

    def __str__(self) -> str:
        return f"{self.name} ({self.network})"


def pool_of(resource: Any) -> Pool:
    """The pool in an IPPool resource. Raises ``ValueError`` for a CIDR that is none."""
    spec = resource.spec
    network = ipaddress.ip_network(spec.cidr, strict=False)
    unusable = ""
    if spec.disabled:
        unusable = _DISABLED
    elif resource.metadata.deletion_timestamp is not None:
        unusable = "is being deleted"
    for condition in resource.status.conditions if resource.status is not None else ():
        if condition.get("type") == "Allocatable" and condition.get("status") == "False":
            unusable = unusable or f"is not allocatable ({condition.get('reason') or 'no reason given'})"
    return Pool(
        name=resource.metadata.name,
        network=network,
        block_size=spec.block_size or DEFAULT_BLOCK_SIZE[4 if network.version == 4 else 6],
        node_selector=spec.node_selector or "",
        namespace_selector=spec.namespace_selector or "",
        allowed_uses=tuple(spec.allowed_uses) or ("Workload", "Tunnel"),
        automatic=(spec.assignment_mode or "Automatic") == "Automatic",
        unusable=unusable,
        revision=resource.revision,
    )


def of_family(pools: Iterable[Pool], family: Family) -> list[Pool]:
    """The pools of a family, in order of name: the order in which they are used."""
    return sorted((pool for pool in pools if pool.family == family), key=lambda pool: pool.name)


def enclosing(pools: Iterable[Pool], network: Prefix | IPAddress) -> Pool | None:
    """The pool that holds an address or block, or None."""
    prefix = network if isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network) else host(network)
    for pool in pools:
        if pool.network.version == prefix.version and (
            pool.network.prefixlen <= prefix.prefixlen and prefix.network_address in pool.network
        ):
            return pool
    return None


def host(address: IPAddress) -> Prefix:
    """The /32 or /128 of an address."""
    return ipaddress.ip_network(address)


def select(
    pools: Sequence[Pool],
    *,
    node: str,
    family: Family,
    use: Use,
    node_labels: Mapping[str, str] | None,
    namespace_labels: Mapping[str, str],
    namespace: str = "",
    requested: Sequence[str] = (),
    reserved_per_block: int = 0,
) -> list[Pool]:
    """The pools that may serve a request, in the order in which to use them.

    Args:
        pools: all pools.
        node: for messages.
        family: 4 or 6.
        use: what the address is for.
        node_labels: labels of the Node resource; None for a virtual owner, which every nodeSelector lets pass.
        namespace_labels: labels of the pod's namespace.
        namespace: its name, for messages.
        requested: CIDRs or names of pools: only these, whatever their selectors and mode say.
        reserved_per_block: ordinals that the host keeps for itself: smaller blocks are of no use to it.

    Raises:
        UnknownPoolError: a requested pool is not there, or not enabled.
        NoPoolError: nothing is left.
        WrongUseError: nothing is left that allows this use.
        BadSelectorError: a selector cannot be parsed.
    """
    candidates = of_family(pools, family)
    tried = [f"{pool} {pool.unusable}" for pool in candidates if pool.unusable]
    enabled = [pool for pool in candidates if not pool.unusable]
    large = [pool for pool in enabled if 1 << (pool.network.max_prefixlen - pool.block_size) > reserved_per_block]
    tried += [
        f"{pool} has blocks of /{pool.block_size}, too small for this host" for pool in enabled if pool not in large
    ]
    enabled = large
    if requested:
        chosen = [_requested(candidates, enabled, text) for text in requested]
    else:
        chosen = []
        for pool in enabled:
            if not pool.automatic:
                tried.append(f"{pool} is used only when named")
            elif node_labels is not None and not pool.selects_node(node_labels):
                tried.append(f"{pool} does not select the node ({pool.node_selector})")
            elif not pool.selects_namespace(namespace_labels):
                tried.append(f"{pool} does not select namespace {namespace!r} ({pool.namespace_selector})")
            else:
                chosen.append(pool)
    if not chosen:
        raise NoPoolError(node, family, tried)
    usable = [pool for pool in chosen if use in pool.allowed_uses]
    if not usable:
        raise WrongUseError(use, [f"{pool} allows {', '.join(pool.allowed_uses)}" for pool in chosen])
    return usable


def _requested(pools: Sequence[Pool], enabled: Sequence[Pool], text: str) -> Pool:
    for pool in pools:
        if text in {pool.name, str(pool.network)} or _same_network(text, pool.network):
            if pool in enabled:
                return pool
            raise UnknownPoolError(text, [str(p) for p in enabled], why=pool.unusable or "has too small blocks")
    raise UnknownPoolError(text, [str(p) for p in enabled])


def _same_network(text: str, network: Prefix) -> bool:
    try:
        return ipaddress.ip_network(text, strict=False) == network
    except ValueError:
        return False


class Reservations:
    """Addresses that are never handed out automatically: the union of all IPReservations.

    Args:
        networks: reserved CIDRs with the name of the IPReservation.
    """

    def __init__(self, networks: Iterable[tuple[Prefix, str]] = ()) -> None:
        self._networks = tuple(networks)

    def ordinals(self, cidr: Prefix) -> frozenset[int]:
        """The reserved ordinals of a block. O(reservations + reserved addresses in the block)."""
        first = int(cidr.network_address)
        last = int(cidr.broadcast_address)
        found: set[int] = set()
        for network, _ in self._networks:
            if network.version == cidr.version:
                start = max(first, int(network.network_address))
                found.update(range(start - first, min(last, int(network.broadcast_address)) - first + 1))
        return frozenset(found)

    def cover(self, cidr: Prefix) -> bool:
        """Whether every address of a block is reserved."""
        if not any(network.version == cidr.version and network.overlaps(cidr) for network, _ in self._networks):
            return False
        return len(self.ordinals(cidr)) == cidr.num_addresses

    def count(self, cidr: Prefix) -> int:
        """How many addresses of a prefix of any size are reserved."""
        mine = [n for n, _ in self._networks if n.version == cidr.version and n.overlaps(cidr)]
        return sum(
            min(int(n.broadcast_address), int(cidr.broadcast_address))
            - max(int(n.network_address), int(cidr.network_address))
            + 1
            for n in _collapse(mine)
        )

    def names(self, cidr: Prefix) -> list[str]:
        """The IPReservations that take addresses of a prefix."""
        mine = {name for network, name in self._networks if network.version == cidr.version and network.overlaps(cidr)}
        return sorted(mine)


def _collapse(networks: Sequence[Any]) -> Iterator[Any]:
    return ipaddress.collapse_addresses(networks)


def start_index(owner: str, count: int, *, single_addresses: bool, nanoseconds: int) -> int:
    """Where an owner begins its search for a free block among ``count``.

    The same owner always begins at the same place, so that its concurrent requests settle on one block, and different
    owners are spread out: the hash alone would put ``node-1`` and ``node-2`` side by side, so it seeds a generator, as
    in Calico. (Go's is another one; which block a host takes is no part of the format.) Blocks of one address would
    collide all the time between many requests, so there the clock is the seed.
    """
    seed = nanoseconds if single_addresses else fnv1(owner.encode())
    return random.Random(seed).randrange(count)  # noqa: S311 - spreads, hides nothing


def fnv1(data: bytes) -> int:
    """FNV-1, 32 bits."""
    value = 2166136261
    for byte in data:
        value = (value * 16777619 & 0xFFFFFFFF) ^ byte
    return value


Start: TypeAlias = Callable[[str, Pool], int]
"""Owner and pool → index at which the search for a free block begins."""


def candidates(pool: Pool, start: int) -> Iterator[str]:
    """Every block of a pool once, from an index on and around. Lazy: an IPv6 pool has more blocks than memory."""
    count = pool.block_count
    for step in range(count):
        yield pool.block_at((start + step) % count)


def reclaimable(block: Block, owner: str, *, age_seconds: float | None) -> bool:
    """Whether another host's empty block may be taken over: it was claimed a minute ago or more.

    The minute keeps two hosts from stealing one block from each other for ever. A block of an older release carries no
    claim time; it is as old as that release.
    """
    return (
        block.affinity is not None
        and block.affinity != owner
        and block.empty
        and (age_seconds is None or age_seconds >= 60)
    )
