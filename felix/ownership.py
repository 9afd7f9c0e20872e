"""What in the kernel is ours, known by name or number alone, so that it still is after a restart. Pure."""

from __future__ import annotations

import re
from typing import Final

from calipy.net import PROTO_FELIX, Route

_CHAIN_PREFIXES: Final = ("cali-", "califw-", "calitw-", "califh-", "calith-", "calipi-", "calipo-", "felix-")
_SET: Final = re.compile(r"(?:cali[46]|felix-[46]|felix-masq-ipam-pools$|felix-all-ipam-pools$)")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_OLD_JUMP: Final = re.compile(r"(?:-j|-g|--jump|--goto) (?:cali-|califw-|calitw-|felix-)")


def owns_chain(name: str) -> bool:
    """Whether a chain was made by us or by any Felix, however old."""
    return name.startswith(_CHAIN_PREFIXES)


def owns_set(name: str) -> bool:
    """Whether an ip set was made by us or by any Felix."""
    return _SET.match(name) is not None


def owns_unhashed_rule(text: str) -> bool:
    """Whether a rule without our hash, in a chain that is not ours, is an ancient version's: it leads to our chains."""
    return _OLD_JUMP.search(text) is not None


def owns_route(route: Route, prefixes: tuple[str, ...], *, protocol: int, remove_external: bool) -> bool:
    """Whether a route may be removed when nothing asks for it.

    Protocol 80 is ours alone. Of the routes straight to a workload interface, those with our ``protocol`` are, or all
    if foreign ones are to be removed (RemoveExternalRoutes). IPv6 link-local and multicast routes belong to the kernel.
    """
    if route.protocol == PROTO_FELIX:
        return True
    if len(route.next_hops) != 1 or not is_workload_interface(route.next_hops[0].interface, prefixes):
        return False
    if route.dst.version == 6 and (route.dst.is_link_local or route.dst.is_multicast):
        return False
    return remove_external or route.protocol == protocol


def is_workload_interface(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether an interface is the host end of a pod's veth, by its name; no, if it cannot be the name of one."""
    return name.startswith(prefixes) and is_interface_name(name)


def is_interface_name(name: str) -> bool:
    """Whether a text is a name that rules can speak of; the kernel allows more, iptables' wildcard among it."""
    return _INTERFACE.fullmatch(name) is not None
