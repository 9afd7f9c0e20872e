"""Address management. Source: Calico ``api/pkg/apis/projectcalico/v3/{ippool,ipamconfig,ipreservation}.go``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from calipy.datastore.kinds.base import Always, GoStruct, Length, Range, enum

Use = Annotated[str, enum("Workload", "Tunnel", "LoadBalancer")]


class IPPoolSpec(GoStruct, frozen=True, kw_only=True):
    """Addresses for pods.

    Attributes:
        block_size: prefix length of the blocks.
        ipip_mode: ``Never``, ``Always``, ``CrossSubnet``; so ``vxlan_mode``.
        allowed_uses: of ``Workload``, ``Tunnel``, ``LoadBalancer``.
        assignment_mode: ``Manual`` pools are used only when asked for by name or CIDR.
    """

    cidr: Annotated[str, Always()] = ""
    vxlan_mode: Annotated[str, enum("Never", "Always", "CrossSubnet")] = ""
    ipip_mode: Annotated[str, enum("Never", "Always", "CrossSubnet")] = ""
    nat_outgoing: bool = False
    disabled: bool = False
    disable_bgp_export: bool = msgspec.field(default=False, name="disableBGPExport")
    block_size: int = 0
    node_selector: Annotated[str, Length(high=1024)] = ""
    namespace_selector: Annotated[str, Length(high=1024)] = ""
    allowed_uses: Annotated[
        tuple[Annotated[str, enum("Workload", "Tunnel", "LoadBalancer")], ...], Length(high=10)
    ] = ()
    assignment_mode: Annotated[str | None, enum("Automatic", "Manual")] = None


class IPPoolStatus(GoStruct, frozen=True, kw_only=True):
    """Kubernetes conditions; type ``Allocatable`` with status ``False`` takes the pool out of use."""

    conditions: tuple[dict[str, Any], ...] = ()


class IPAMConfigurationSpec(GoStruct, frozen=True, kw_only=True):
    """Cosmetic in etcd: IPAM obeys ``keys.IPAMConfigKey``."""

    strict_affinity: Annotated[bool, Always()] = False
    max_blocks_per_host: Annotated[int, Range(0, 1_000_000)] = 0
    auto_allocate_blocks: Annotated[bool, Always()] = False
    kube_virt_vm_address_persistence: Annotated[str | None, enum("Enabled", "Disabled")] = msgspec.field(
        default=None, name="kubeVirtVMAddressPersistence"
    )
    ip_cooldown_seconds: Annotated[int, Range(0, 1200)] = 0


class IPReservationSpec(GoStruct, frozen=True, kw_only=True):
    """Addresses that are never assigned automatically."""

    reserved_cidrs: tuple[str, ...] = msgspec.field(default=(), name="reservedCIDRs")
