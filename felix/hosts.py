"""Which host endpoint is on which of this node's own interfaces. Pure.

Source: Calico ``felix/dataplane/linux/endpoint_mgr.go`` (``resolveHostEndpoints``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from calipy.felix.messages import HostEndpoint
from calipy.felix.ownership import is_interface_name, is_workload_interface
from calipy.felix.render.names import ANY_INTERFACE

ALL_INTERFACES: Final = "*"


def resolve(
    endpoints: Iterable[HostEndpoint], addresses: Mapping[str, frozenset[str]], prefixes: tuple[str, ...]
) -> dict[str, HostEndpoint]:
    """Interface → the host endpoint that governs it; of several the first by name.

    An endpoint that names an interface has that one only, there or not: its rules wait for the interface, so that not
    a packet passes before them. One for all interfaces is listed under ``ANY_INTERFACE``. O(endpoints x interfaces).

    Args:
        endpoints: of this node.
        addresses: bare addresses of each interface of the node; those of pods may be among them, and do not count.
        prefixes: how names of pods' interfaces begin.
    """
    found: dict[str, HostEndpoint] = {}
    for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.name):
        if endpoint.interface == ALL_INTERFACES:
            found.setdefault(ANY_INTERFACE, endpoint)
            continue
        wanted = frozenset(endpoint.expected_ips)
        names = [endpoint.interface] if endpoint.interface else [n for n, own in addresses.items() if wanted & own]
        for name in names:
            if is_interface_name(name) and not is_workload_interface(name, prefixes):
                found.setdefault(name, endpoint)
    return found


def warnings(resolved: Mapping[str, HostEndpoint]) -> list[str]:
    """What the host endpoints ask for and cannot get."""
    everywhere = resolved.get(ANY_INTERFACE)
    if everywhere is None or not everywhere.untracked:
        return []
    names = sorted({policy.name for tier in everywhere.untracked for policy in (*tier.ingress, *tier.egress)})
    name = everywhere.name
    return [f"untracked policy ({', '.join(names)}) has no effect on host endpoint {name}, which is for all interfaces"]


def problem(
    endpoint: HostEndpoint, resolved: Mapping[str, HostEndpoint], up: frozenset[str], prefixes: tuple[str, ...]
) -> str:
    """Why the endpoint is not in force on an interface that can pass packets; "" if it is."""
    places = [interface for interface, winner in resolved.items() if winner.name == endpoint.name]
    if places:
        down = sorted(place for place in places if place != ANY_INTERFACE and place not in up)
        return f"interface {down[0]} is missing or down" if down else ""
    name = endpoint.interface
    if not name:
        return f"no interface has {' or '.join(endpoint.expected_ips)}"
    winner = resolved.get(ANY_INTERFACE if name == ALL_INTERFACES else name)
    if winner is not None:
        return f"interface {name} belongs to host endpoint {winner.name}"
    if is_workload_interface(name, prefixes):
        return f"interface {name} is a pod's"
    return f"{name!r} is not the name of an interface"
