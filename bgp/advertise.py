"""What this node originates: blocks, borrowed addresses and service ranges, with their communities. Pure.

Follows the order of Calico's export filter (confd ``bird_ipam`` and aggregation templates): pools with BGP export
disabled are refused; of the own blocks only those with a confirmed affinity are announced, and what lies inside them
is not; an address that this node uses out of another node's block is announced by itself and wins by length.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from calipy.bgp.path import HIGHEST_LOCAL_PREFERENCE, Attributes, Community, LargeCommunity, intern
from calipy.bgp.peering import Session
from calipy.datastore.ipam import CONFIRMED, Block, BlockAffinity
from calipy.datastore.resources import BGPConfigurationSpec, IPPoolSpec
from calipy.net import NORMAL_METRIC, IPAddress, Prefix, host_prefix, parse_prefix

EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
"""A node with this label (``true``) does not announce service ranges."""


parse_cidr: Final = functools.lru_cache(maxsize=4096)(parse_prefix)
"""Cached: the texts of pools and ranges are read again with every change of a block."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The pools, as prefixes."""

    exported: tuple[Prefix, ...] = ()
    hidden: tuple[Prefix, ...] = ()

    @classmethod
    def of(cls, specs: Iterable[IPPoolSpec]) -> Pools:
        """From the specs. A disabled pool still counts: it hands out nothing new, but its pods live on."""
        exported: list[Prefix] = []
        hidden: list[Prefix] = []
        for spec in specs:
            (hidden if spec.disable_bgp_export else exported).append(parse_cidr(spec.cidr))
        return cls(tuple(exported), tuple(hidden))

    def exports(self, prefix: Prefix) -> bool:
        """Whether a prefix lies in a pool, and in none with BGP export disabled. O(pools)."""
        return inside(prefix, self.exported) and not inside(prefix, self.hidden)

    def contain(self, prefix: Prefix) -> bool:
        """Whether a prefix lies in any pool."""
        return inside(prefix, self.exported) or inside(prefix, self.hidden)


def inside(prefix: Prefix, ranges: Iterable[Prefix]) -> bool:
    """Whether ``prefix`` equals, or is part of, one of the ranges."""
    return any(prefix.version == one.version and prefix.subnet_of(one) for one in ranges)  # type: ignore[arg-type]  # same family


def own_blocks(
    affinities: Mapping[Prefix, BlockAffinity], owners: Mapping[Prefix, str | None], hostname: str
) -> set[Prefix]:
    """Blocks that this node may announce: its affinity is confirmed, and the block, if there, is not another's.

    ``pending`` is not announced, because the claim may yet be lost; nor is ``pendingDeletion``: addresses that are
    still used out of such a block count as borrowed, and are announced one by one.

    Args:
        affinities: this node's.
        owners: who each block says that it belongs to, None for nobody.
        hostname: this node.
    """
    return {
        cidr
        for cidr, affinity in affinities.items()
        if affinity.state == CONFIRMED and owners.get(cidr, hostname) == hostname
    }


def addresses_in_use(block: Block, hostname: str) -> frozenset[IPAddress]:
    """Addresses of a block that ``hostname`` uses, by what their owners wrote. O(block size)."""
    return frozenset(address for address, attribute in block.assignments() if attribute.node == hostname)


def borrowed(in_use: Mapping[Prefix, frozenset[IPAddress]], own: set[Prefix]) -> set[Prefix]:
    """Host prefixes of the addresses this node uses out of blocks that it does not announce."""
    return {host_prefix(address) for block, used in in_use.items() if block not in own for address in used}


class ServiceRanges(NamedTuple):
    """Ranges of services' addresses.

    Attributes:
        announced: from this node.
        unprogrammed: kept out of its own routing table, announced or not: they lead to this node's service proxy.
        every: all there are, single addresses too.
    """

    announced: frozenset[Prefix]
    unprogrammed: frozenset[Prefix]
    every: frozenset[Prefix]


def service_ranges(configuration: BGPConfigurationSpec, labels: Mapping[str, str]) -> ServiceRanges:
    """Service ranges as this node handles them.

    Cluster ranges, and external and load balancer ranges unless aggregation is disabled, are announced from every
    node that does not carry ``EXCLUDE_LABEL``; single addresses are left to those who know the endpoints.
    """
    cluster = {parse_cidr(block.cidr) for block in configuration.service_cluster_ips}
    outside = (*configuration.service_external_ips, *configuration.service_load_balancer_ips)
    outer = {parse_cidr(block.cidr) for block in outside}
    aggregated = cluster if configuration.service_load_balancer_aggregation == "Disabled" else cluster | outer
    wide = frozenset(one for one in aggregated if one.prefixlen < one.max_prefixlen)
    excluded = labels.get(EXCLUDE_LABEL) == "true"
    return ServiceRanges(frozenset() if excluded else wide, wide, frozenset(cluster | outer))


@dataclass(frozen=True, slots=True)
class Communities:
    """What ``prefixAdvertisements`` adds to routes, by range."""

    standard: tuple[tuple[Prefix, tuple[Community, ...]], ...] = ()
    large: tuple[tuple[Prefix, tuple[LargeCommunity, ...]], ...] = ()

    @classmethod
    def of(cls, configuration: BGPConfigurationSpec, node: BGPConfigurationSpec | None = None) -> Communities:
        """From the configuration; the node's own ``prefixAdvertisements``, with its names, replace the cluster's.

        Raises:
            ValueError: a community that is neither a name defined there nor ``aa:nn`` nor ``aa:nn:mm``.
        """
        source = node if node is not None and node.prefix_advertisements else configuration
        names = {one.name: one.value for one in source.communities}
        standard: list[tuple[Prefix, tuple[Community, ...]]] = []
        large: list[tuple[Prefix, tuple[LargeCommunity, ...]]] = []
        for one in source.prefix_advertisements:
            values = [parse_community(names.get(text, text)) for text in one.communities]
            cidr = parse_cidr(one.cidr)
            standard.append((cidr, tuple(value for value in values if len(value) == 2)))
            large.append((cidr, tuple(value for value in values if len(value) == 3)))
        return cls(tuple(standard), tuple(large))

    def add_to(self, prefix: Prefix, attributes: Attributes) -> Attributes:
        """The attributes with what is configured for ``prefix`` added. O(ranges)."""
        standard = [value for cidr, values in self.standard if inside(prefix, (cidr,)) for value in values]
        large = [value for cidr, values in self.large if inside(prefix, (cidr,)) for value in values]
        if not standard and not large:
            return attributes
        return replace(
            attributes,
            communities=tuple(dict.fromkeys((*attributes.communities, *standard))),
            large_communities=tuple(dict.fromkeys((*attributes.large_communities, *large))),
        )


def parse_community(text: str) -> Community | LargeCommunity:
    """``aa:nn`` or ``aa:nn:mm``. Raises ``ValueError`` for anything else."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"community {text!r} is neither a name in communities nor aa:nn nor aa:nn:mm")
    numbers = [int(part) for part in parts]
    if max(numbers) > (0xFFFF if len(parts) == 2 else 0xFFFFFFFF):
        raise ValueError(f"community {text!r} has a number that does not fit")
    return (numbers[0], numbers[1]) if len(parts) == 2 else (numbers[0], numbers[1], numbers[2])


@dataclass(frozen=True, slots=True)
class Originated:
    """Everything that this node announces on its own account.

    Attributes:
        blocks: own blocks that some peer may hear of.
        borrowed: host prefixes out of others' blocks.
        services: service ranges.
        hidden: own blocks and borrowed addresses that only a BGPFilter may let out: of pools with BGP export disabled,
            or of no pool.
        metric: normal metric of routes, by family; LOCAL_PREF and it add up to 2147483647.
    """

    blocks: frozenset[Prefix] = frozenset()
    borrowed: frozenset[Prefix] = frozenset()
    services: frozenset[Prefix] = frozenset()
    hidden: frozenset[Prefix] = frozenset()
    communities: Communities = field(default_factory=Communities)
    metric: Mapping[int, int] = field(default_factory=lambda: {4: NORMAL_METRIC, 6: NORMAL_METRIC})

    def prefixes(self) -> frozenset[Prefix]:
        """All of them."""
        return self.blocks | self.borrowed | self.services

    def exports(self, session: Session, next_hop: IPAddress) -> dict[Prefix, Attributes]:
        """What a session is told by the built-in policy, its family only. O(prefixes)."""
        return self._attributes(self.prefixes(), session, next_hop)

    def hidden_exports(self, session: Session, next_hop: IPAddress) -> dict[Prefix, Attributes]:
        """What else a filter of the session may let out."""
        return self._attributes(self.hidden, session, next_hop)

    def _attributes(
        self, prefixes: Iterable[Prefix], session: Session, next_hop: IPAddress
    ) -> dict[Prefix, Attributes]:
        preference = None if session.external else HIGHEST_LOCAL_PREFERENCE - self.metric[session.family]
        base = intern(Attributes(next_hop, local_preference=preference))
        return {
            prefix: intern(self.communities.add_to(prefix, base))
            for prefix in prefixes
            if prefix.version == session.family
        }
