"""What only the machine can tell against a deploy, before anything is made. Edge: reads links and the registry."""

from __future__ import annotations

from collections.abc import Collection

from calipy.containerlab import linkspec, registry
from calipy.containerlab.errors import LabError
from calipy.containerlab.model import Topology
from calipy.containerlab.plan import Plan
from calipy.containerlab.registry import Entry
from calipy.containerlab.wiring import Namespace


def check(
    topology: Topology,
    work: Plan,
    entry: Entry,
    *,
    host: Namespace,
    machine: Namespace,
    own: Collection[str],
    create_bridges: bool,
) -> None:
    """Refuse names that are taken and interfaces that are missing.

    Args:
        topology: what is wanted.
        work: what a deploy of it would do.
        entry: the lab's place in the registry.
        host: the namespace that counts as the host's.
        machine: the machine's own one.
        own: interfaces on the host that are the lab's.
        create_bridges: whether missing bridges will be made.

    Raises:
        LabError: names the element.
    """
    names = {topology.nodes[name].long_name: name for name in work.added if topology.nodes[name].is_container}
    for lab, taken in registry.names_of_others(entry).items():
        for long_name in names.keys() & taken:
            raise LabError(
                f"node {names[long_name]}: the name {long_name} is taken by lab {lab}",
                remedy=f"destroy it first: calipy lab destroy --name {lab}",
            )
    for node in topology.nodes.values():
        if node.kind == "bridge" and not node.inside and not create_bridges:
            found = machine.links.get_link(node.bridge)
            if found is None or found.kind != "bridge":
                raise LabError(
                    f"node {node.name}: there is no bridge {node.bridge} on the host",
                    remedy=f"ip link add {node.bridge} type bridge, or deploy with --create-bridges",
                )
    for link in work.added_links:
        for end in link.endpoints:
            on_host = linkspec.namespace_of(end.node, topology.nodes) == linkspec.HOST
            if on_host and end.interface not in own and host.links.get_link(end.interface) is not None:
                raise LabError(f"endpoint {end}: interface {end.interface} exists on the host")
        if link.type == "macvlan" and link.b and host.links.get_link(link.b.interface) is None:
            raise LabError(f"link to {link.a}: host-interface {link.b.interface} does not exist on the host")
