"""What in the kernel is ours, known by name or number alone, so that it still is after a restart. Pure."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Final

from calipy.net import PROTO_BGP, PROTO_FELIX, Family, IPInterface, Route

VXLAN_DEVICES: Final[Mapping[Family, str]] = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
"""Felix's names; any interface of these names is ours."""
IPIP_DEVICE: Final = "tunl0"
"""The driver's own device of the namespace; Felix uses it, and so may others."""
TUNNEL_DEVICES: Final = (*VXLAN_DEVICES.values(), IPIP_DEVICE)

_CHAIN_PREFIXES: Final = ("cali-", "califw-", "calitw-", "califh-", "calith-", "calipi-", "calipo-", "felix-")
_SET: Final = re.compile(r"(?:cali[46]|felix-[46]|felix-masq-ipam-pools$|felix-all-ipam-pools$)")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_PROTO_KERNEL: Final = 2
_PROTO_BIRD: Final = 12
_SCOPE_LINK: Final = 253
_OLD_JUMP: Final = re.compile(r"(?:-j|-g|--jump|--goto) (?:cali-|califw-|calitw-|felix-)")

LINK_GROUP: Final = 0x0CA1_0000
LINK_GROUP_MASK: Final = 0xFFFF_0000
"""The link groups that we give to interfaces of endpoints."""


def link_group(families: Iterable[Family]) -> int:
    """Group of an interface whose endpoint is programmed and enabled in these families: a bit for each.

    Rules tell by it whether an interface has an endpoint, in one comparison. A new interface has group 0.
    """
    return LINK_GROUP | sum({4: 1, 6: 2}[family] for family in families)


def owns_link_group(group: int) -> bool:
    """Whether an interface's group was given by us, or by nobody."""
    return group == 0 or group & LINK_GROUP_MASK == LINK_GROUP


def owns_chain(name: str) -> bool:
    """Whether a chain was made by us or by any Felix, however old."""
    return name.startswith(_CHAIN_PREFIXES)


def owns_set(name: str) -> bool:
    """Whether an ip set was made by us or by any Felix."""
    return _SET.match(name) is not None


def owns_unhashed_rule(text: str) -> bool:
    """Whether a rule without our hash, in a chain that is not ours, is an ancient version's: it leads to our chains."""
    return _OLD_JUMP.search(text) is not None


def owns_route(
    route: Route,
    prefixes: tuple[str, ...],
    *,
    protocol: int,
    remove_external: bool,
    ipip: bool = False,
    peers: Container[str] = (),
) -> bool:
    """Whether a route may be removed when nothing asks for it.

    Protocol 80 is ours alone, and so is what leads into a VXLAN device of ours (the real Felix writes those as
    ``boot``). Of the routes straight to a workload interface, those with our ``protocol`` are, or all if foreign ones
    are to be removed (RemoveExternalRoutes). With ``ipip`` routes into the IPIP device are the agent's to write, then
    BIRD's there are left over from an older Calico. IPv6 link-local and multicast routes belong to the kernel, those of
    bgpd to bgpd: of what pods announce that are BGP ``peers`` (interfaces) BIRD's are let alone as well.
    """
    if route.protocol == PROTO_FELIX:
        return True
    if route.protocol == PROTO_BGP:
        return False
    if len(route.next_hops) != 1 or (route.dst.version == 6 and (route.dst.is_link_local or route.dst.is_multicast)):
        return False
    interface = route.next_hops[0].interface
    if interface in VXLAN_DEVICES.values():
        return route.protocol != _PROTO_KERNEL
    if interface == IPIP_DEVICE:
        return ipip and route.protocol == _PROTO_BIRD
    if route.protocol == _PROTO_BIRD and interface in peers:
        return False
    return is_workload_interface(interface, prefixes) and (remove_external or route.protocol == protocol)


def owns_address(address: IPInterface, scope: int) -> bool:
    """Whether an address of a workload interface is one for BGP with the pod: a host address, for the link only.

    IPv6 addresses have the scope that they say themselves; the one that each link has by itself is no host address.
    """
    alone = address.network.prefixlen == address.max_prefixlen
    return alone and (address.version == 6 or scope == _SCOPE_LINK)


def is_workload_interface(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether an interface is the host end of a pod's veth, by its name; no, if it cannot be the name of one."""
    return name.startswith(prefixes) and is_interface_name(name)


def is_interface_name(name: str) -> bool:
    """Whether a text is a name that rules can speak of; the kernel allows more, iptables' wildcard among it."""
    return _INTERFACE.fullmatch(name) is not None
