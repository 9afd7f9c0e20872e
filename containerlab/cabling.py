"""The links of a lab that exist: building them as nodes arrive, handing them over, removing them. Edge."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from calipy.containerlab import linkspec, wiring
from calipy.containerlab.errors import LabError
from calipy.containerlab.model import DEFAULT_MTU, Endpoint, Link, Node
from calipy.containerlab.wiring import End, Namespace
from calipy.errors import CalipyError, KernelError


@dataclass(slots=True)
class RunningLink:
    """A link.

    Attributes:
        link: as it was built.
        ends: its interfaces.
        waiting: name of the end that waits in the holder's namespace for its node, or "".
        parked: endpoints that outlived their node, each with the name under which it waited.
    """

    link: Link
    ends: list[End]
    waiting: str = ""
    parked: dict[str, str] = field(default_factory=dict)


class Cabling:
    """All links of a lab.

    Attributes:
        links: those that exist.
        nodes: of the topology that counts now.
        bridge: name of the management bridge.
    """

    def __init__(self, host: Namespace, machine: Namespace, find: Callable[[str], Namespace]) -> None:
        """No links yet.

        Args:
            host: the namespace that counts as the host's.
            machine: the machine's own one.
            find: the namespace of a node that exists.
        """
        self.host = host
        self.links: list[RunningLink] = []
        self.nodes: Mapping[str, Node] = {}
        self.bridge = ""
        self._machine = machine
        self._find = find
        self._bridges: set[str] = set()
        self._holder: Namespace | None = None

    @property
    def holder(self) -> Namespace:
        """A namespace for ends of veths that lead nowhere, or not yet."""
        if self._holder is None:
            self._holder = Namespace.fresh()
        return self._holder

    def end(self, endpoint: Endpoint) -> End:
        """Where an endpoint is to go; its node must exist."""
        if endpoint.node == linkspec.MGMT_NET:
            return End(endpoint, self.host, self.bridge)
        node = self.nodes.get(endpoint.node)
        if node is None or node.kind == "host":
            return End(endpoint, self.host)
        if node.kind == "bridge":
            return End(endpoint, self._of_bridge(node), node.bridge)
        return End(endpoint, self._find(node.name))

    # --- bridges that are nodes

    def _of_bridge(self, node: Node) -> Namespace:
        return self._find(node.inside) if node.inside else self.host

    def create_bridge(self, node: Node) -> None:
        """Make the bridge of a ``kind: bridge`` node, unless it is the machine's own, which exists.

        Raises:
            LabError: an interface of that name exists in the node.
        """
        namespace = self._of_bridge(node)
        exists = namespace.links.get_link(node.bridge) is not None
        if exists and (namespace is self._machine or node.name in self._bridges):
            return
        if exists:
            raise LabError(f"node {node.name}: an interface {node.bridge} exists already")
        namespace.links.create_bridge(node.bridge)
        namespace.links.set_up(node.bridge)
        self._bridges.add(node.name)

    def remove_bridge(self, node: Node) -> None:
        """Take such a bridge away again, if it was made here."""
        if node.name in self._bridges:
            self._bridges.discard(node.name)
            with contextlib.suppress(CalipyError):
                self._of_bridge(node).links.delete_link(node.bridge)

    # --- building

    def build(self, link: Link, there: Callable[[str], bool]) -> bool:
        """Build a link as far as its nodes exist: an end whose node is yet to come waits.

        Args:
            link: to build; one of its nodes exists.
            there: whether a node exists.

        Returns:
            False if something stands in for a driver that the kernel lacks.

        Raises:
            LabError: names the link.
        """
        try:
            if link.type in {"veth", "host", "mgmt-net"}:
                self._build_veth(link, there)
                return True
            return self._build_other(link)
        except KernelError as error:
            raise LabError(f"link {link}: {error}") from None

    def _build_veth(self, link: Link, there: Callable[[str], bool]) -> None:
        ends = [self.end(end) if there(end.node) else End(end, self.holder) for end in link.endpoints]
        absent = [end for end in ends if not there(end.endpoint.node)]
        if not absent:
            wiring.join(self.host, ends[0], ends[1], link.mtu)
            self.links.append(RunningLink(link, ends))
            return
        present = next(end for end in ends if end is not absent[0])
        waiting = wiring.half_join(self.host, present, absent[0], link.mtu, self.holder)
        self.links.append(RunningLink(link, ends, waiting))

    def _build_other(self, link: Link) -> bool:
        end = self.end(link.a)
        native = True
        ends = [end]
        if link.type == "dummy":
            native = wiring.dummy(self.host, end, link.mtu, self.holder)
        elif link.type == "macvlan":
            wiring.macvlan(self.host, end, link)
        elif link.type == "vxlan":
            wiring.vxlan(self.host, end, link)
        else:
            suffix = f"{link.a.node}_{link.a.interface}"
            outer, tunnel = (
                End(Endpoint(node=linkspec.HOST, interface=f"{prefix}-{suffix}"), self.host) for prefix in ("ve", "vx")
            )
            wiring.join(self.host, end, outer, link.mtu or DEFAULT_MTU)
            wiring.vxlan(self.host, tunnel, link)
            wiring.stitch(self.host, outer.name, tunnel.name)
            ends = [end, tunnel]
        self.links.append(RunningLink(link, ends))
        return native

    def complete(self, there: Callable[[str], bool]) -> None:
        """Bring ends that wait to their nodes, where those exist now."""
        for link in self.links:
            if link.waiting and all(there(end.node) for end in link.link.endpoints):
                number = next(n for n, end in enumerate(link.ends) if end.namespace is self._holder)
                final = self.end(link.ends[number].endpoint)
                final.mac = link.ends[number].mac
                wiring.complete(self.holder, link.waiting, final)
                link.ends[number] = final
                link.waiting = ""

    # --- handing over and removing

    def park(self, namespace: Namespace) -> list[tuple[RunningLink, End]]:
        """Take all data interfaces out of a node that is about to be created anew."""
        parked = []
        for link in self.links:
            for end in link.ends:
                if end.namespace is namespace:
                    name = f"p{secrets.token_hex(6)}"
                    namespace.links.move(end.name, self.holder.fd, new_name=name)
                    link.parked[str(end.endpoint)] = name
                    parked.append((link, end))
        return parked

    def unpark(self, parked: Iterable[tuple[RunningLink, End]], namespace: Namespace) -> None:
        """Give parked interfaces to the new node, up and without addresses."""
        for link, end in parked:
            self.holder.links.move(link.parked[str(end.endpoint)], namespace.fd, new_name=end.name)
            end.namespace = namespace
            namespace.links.set_up(end.name)

    def remove(self, link: RunningLink) -> None:
        """Delete a link's interfaces."""
        self.links.remove(link)
        for end in link.ends:
            with contextlib.suppress(CalipyError):  # a veth's other end goes along, and a node may be gone
                end.namespace.links.delete_link(end.name)

    def remove_of(self, node: str) -> None:
        """Delete the links of a node."""
        for link in [link for link in self.links if any(end.endpoint.node == node for end in link.ends)]:
            self.remove(link)

    def remove_endpoint(self, endpoint: str) -> None:
        """Delete the link that has this endpoint (``node:interface``)."""
        for link in [link for link in self.links if any(str(end.endpoint) == endpoint for end in link.ends)]:
            self.remove(link)

    def remove_from_host(self) -> None:
        """Delete what is in the host's namespace."""
        for link in [link for link in self.links if any(end.namespace is self.host for end in link.ends)]:
            self.remove(link)
        for node in [node for node in self.nodes.values() if not node.inside]:
            self.remove_bridge(node)

    def close(self) -> None:
        """Forget all links; they go with their namespaces."""
        self.links.clear()
        self._bridges.clear()
        if self._holder is not None:
            self._holder.close()
            self._holder = None
