"""Rules for encapsulated packets between nodes (felix/rules/static.go). Pure; those for pods are in ``endpoint``.

Who is no node of the cluster may not put packets into its tunnels: they would come out behind all policy. The kernel
does not track them either: every flow of two nodes would be one connection from changing ports.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from calipy.felix.config import FelixConfig
from calipy.felix.ownership import IPIP_DEVICE, VXLAN_DEVICES
from calipy.felix.render import syntax
from calipy.felix.render.names import set_name
from calipy.felix.render.nat import ALL_HOSTS
from calipy.felix.render.rule import Rule
from calipy.net import Family

ALL_VXLAN: Final = "all-vxlan-net"
"""Addresses of the other nodes' VXLAN devices on the underlay, and external nodes."""

_TO_LOCAL: Final = "-m addrtype --dst-type LOCAL"
_FROM_LOCAL: Final = "-m addrtype --src-type LOCAL"
_LOWEST_PORT: Final = 1024
_HIGHEST_PORT: Final = 65535


def uses_vxlan(family: Family, config: FelixConfig) -> bool:
    """Whether there is a VXLAN network of the family."""
    return config.encapsulation.vxlan if family == 4 else config.encapsulation.vxlan6


def uses_ipip(family: Family, config: FelixConfig) -> bool:
    """Whether there are IPIP tunnels; only IPv4 has them."""
    return family == 4 and config.encapsulation.ipip


def inward(family: Family, config: FelixConfig) -> Iterator[Rule]:
    """Filter INPUT: from nodes of the cluster only."""
    allow = f"--jump {config.filter_allow_action}"
    denied = config.filter_deny_action
    if uses_ipip(family, config):
        known = syntax.joined("-p 4", syntax.in_set(set_name(family, ALL_HOSTS), "src"), _TO_LOCAL)
        yield Rule(known, allow, ("Allow IPIP packets from Calico hosts",))
        yield Rule("-p 4", f"--jump {denied}", (f"{denied.capitalize()} IPIP packets from non-Calico hosts",))
    if uses_vxlan(family, config):
        known = syntax.joined(_vxlan(config), syntax.in_set(set_name(family, ALL_VXLAN), "src"), _TO_LOCAL)
        yield Rule(known, allow, (f"Allow IPv{family} VXLAN packets from allowed hosts",))
        action = "DROP" if family == 4 else denied
        comment = f"{action.capitalize()} IPv{family} VXLAN packets from non-allowed hosts"
        yield Rule(syntax.joined(_vxlan(config), _TO_LOCAL), f"--jump {action}", (comment,))


def outward(family: Family, config: FelixConfig) -> Iterator[Rule]:
    """Filter OUTPUT: to nodes of the cluster whatever a host endpoint says; what is inside has been judged."""
    allow = f"--jump {config.filter_allow_action}"
    if uses_ipip(family, config):
        known = syntax.joined("-p 4", syntax.in_set(set_name(family, ALL_HOSTS), "dst"), _FROM_LOCAL)
        yield Rule(known, allow, ("Allow IPIP packets to other Calico hosts",))
    if uses_vxlan(family, config):
        known = syntax.joined(_vxlan(config), _FROM_LOCAL, syntax.in_set(set_name(family, ALL_VXLAN), "dst"))
        yield Rule(known, allow, (f"Allow IPv{family} VXLAN packets to other allowed hosts",))


def untracked(family: Family, config: FelixConfig) -> Iterator[Rule]:
    """Raw PREROUTING and OUTPUT."""
    if uses_vxlan(family, config):
        yield Rule(f"-p udp --dport {config.vxlan_port}", syntax.NOTRACK)


def masqueraded(family: Family, config: FelixConfig) -> Iterator[Rule]:
    """Nat POSTROUTING: what the node itself sends into a tunnel from another of its addresses gets the tunnel's.

    It may have been bound to that, or the kernel chose it before DNAT sent the packet to a pod. UDP must not be given
    the VXLAN port: the answers would be taken for encapsulated packets.
    """
    addresses = {
        IPIP_DEVICE: config.ipip_tunnel_address if uses_ipip(family, config) else "",
        VXLAN_DEVICES[family]: _vxlan_address(family, config) if uses_vxlan(family, config) else "",
    }
    for device in (name for name, address in addresses.items() if address):
        match = "-m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL"
        match = syntax.joined(syntax.to_interface(device), match)
        if uses_vxlan(family, config):
            ports = f"--to-ports {_without(config.vxlan_port)}"
            yield Rule(syntax.joined("-p 17", match), f"--jump MASQUERADE {ports} --random-fully")
        yield Rule(match, "--jump MASQUERADE --random-fully")


def _vxlan(config: FelixConfig) -> str:
    return f"-p 17 -m multiport --destination-ports {config.vxlan_port}"


def _vxlan_address(family: Family, config: FelixConfig) -> str:
    return config.vxlan_tunnel_address if family == 4 else config.vxlan_tunnel_address_v6


def _without(port: int) -> str:
    """The wider of the ranges of unprivileged ports below and above a port."""
    below, above = (_LOWEST_PORT, port - 1), (max(port + 1, _LOWEST_PORT), _HIGHEST_PORT)
    first, last = below if below[1] - below[0] > above[1] - above[0] else above
    return f"{first}-{last}"
