"""How large packets may be: of the links to other nodes, of the tunnels over them, and of the pods. Pure.

Source: Calico ``felix/dataplane/linux/int_dataplane.go`` (``findHostMTU``, ``determinePodMTU``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from calipy.felix.config import FelixConfig
from calipy.kernel.links import Link

FALLBACK: Final = 1460
"""Where no link's name looks like hardware: small enough for the networks of the large clouds."""
_IPIP: Final = 20
_VXLAN: Final = 50
_VXLAN6: Final = 70


@dataclass(frozen=True, slots=True)
class MTUs:
    """In bytes. ``pod``: what fits through every encapsulation in use, or the host's links without one."""

    host: int
    ipip: int
    vxlan: int
    vxlan6: int
    pod: int


def mtus(config: FelixConfig, links: Iterable[Link]) -> MTUs:
    """From the links of the node; configured values go before what follows from those. O(links)."""
    host = min(
        (link.mtu for link in links if link.running and config.mtu_interfaces.search(link.name)), default=FALLBACK
    )
    ipip = config.ipip_mtu or host - _IPIP
    vxlan, vxlan6 = config.vxlan_mtu or host - _VXLAN, config.vxlan_mtu_v6 or host - _VXLAN6
    uses = config.encapsulation
    used = [mtu for mtu, use in ((ipip, uses.ipip), (vxlan, uses.vxlan), (vxlan6, uses.vxlan6)) if use]
    return MTUs(host, ipip, vxlan, vxlan6, pod=min(used, default=host))
