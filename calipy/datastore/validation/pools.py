"""Address pools and reservations."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from calipy.datastore.kinds.meta import Resource
from calipy.datastore.kinds.pools import IPPoolSpec
from calipy.datastore.validation.fields import fail, network, selects_without_global

BLOCK_SIZES: Final = {4: (20, 32), 6: (116, 128)}
_LINK_LOCAL: Final = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"))


def check_pool(resource: Resource[Any, Any]) -> None:
    """A pool by itself; overlap with others is the client's check."""
    spec: IPPoolSpec = resource.spec
    cidr = network(spec.cidr, "spec.cidr")
    if any(cidr.version == other.version and cidr.overlaps(other) for other in _LINK_LOCAL):
        fail("overlaps the link-local addresses", "spec.cidr", spec.cidr)
    low, high = BLOCK_SIZES[cidr.version]
    if not low <= spec.block_size <= high:
        fail(f"must be in {low}..{high} for IPv{cidr.version}", "spec.blockSize", spec.block_size)
    if cidr.prefixlen > spec.block_size and not spec.disabled:
        fail(
            f"is smaller than one block (/{spec.block_size})",
            "spec.cidr",
            spec.cidr,
            "choose a bigger pool or blockSize",
        )
    ipip, vxlan = spec.ipip_mode != "Never", spec.vxlan_mode != "Never"
    if ipip and vxlan:
        fail("cannot be combined with vxlanMode", "spec.ipipMode", spec.ipip_mode, "set one of the two to Never")
    if ipip and cidr.version == 6:
        fail("IPIP carries IPv4 only", "spec.ipipMode", spec.ipip_mode)
    selects_without_global(spec.node_selector, "spec.nodeSelector")
    if spec.namespace_selector:
        selects_without_global(spec.namespace_selector, "spec.namespaceSelector")
        if "Tunnel" in spec.allowed_uses:
            fail(
                "cannot be combined with the use Tunnel",
                "spec.namespaceSelector",
                spec.namespace_selector,
                "set allowedUses: [Workload]",
            )
    if "LoadBalancer" in spec.allowed_uses:
        _check_load_balancer(spec, encapsulated=ipip or vxlan)


def _check_load_balancer(spec: IPPoolSpec, *, encapsulated: bool) -> None:
    if set(spec.allowed_uses) != {"LoadBalancer"}:
        fail("LoadBalancer stands alone", "spec.allowedUses", list(spec.allowed_uses))
    if encapsulated:
        fail("a LoadBalancer pool has no encapsulation", "spec.allowedUses", list(spec.allowed_uses))
    if spec.node_selector != "all()":
        fail("must be all() in a LoadBalancer pool", "spec.nodeSelector", spec.node_selector)
    if spec.disable_bgp_export:
        fail("must be false in a LoadBalancer pool", "spec.disableBGPExport", value=True)


def check_reservation(resource: Resource[Any, Any]) -> None:
    """CIDRs, host bits or not."""
    for index, cidr in enumerate(resource.spec.reserved_cidrs):
        network(cidr, f"spec.reservedCIDRs[{index}]", strict=False)
