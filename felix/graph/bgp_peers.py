"""Which local workloads are to have a BGP session with this node (BGPPeer ``localWorkloadSelector``).

Of several BGPPeers that select one workload the first by name counts. Source: Calico
``felix/calc/active_bpgpeer_calculator.go``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

from calipy.datastore.keys import ResourceKey
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, NodeSpec, Resource
from calipy.errors import InvalidInputError
from calipy.felix.graph.labels import LabelIndex
from calipy.felix.messages import LocalBGPPeer
from calipy.policy import selector

_PORT: Final = 179


class LocalPeers:
    """BGPPeers on the one side, local workload endpoints on the other.

    Args:
        hostname: this node.
    """

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._touched: set[ResourceKey] = set()
        self._index: LabelIndex[ResourceKey, str] = LabelIndex(self._started, self._stopped, lambda *_: None)
        self._matches: dict[ResourceKey, set[str]] = {}
        self._specs: dict[str, BGPPeerSpec] = {}
        self._watched: set[str] = set()
        self._labels: Mapping[str, str] = {}
        self._addresses: tuple[str, ...] = ()
        self._ports: dict[str, int] = {}

    def set_endpoint(self, key: ResourceKey, labels: Mapping[str, str], parents: tuple[str, ...]) -> None:
        """Add or replace a local workload endpoint. O(its labels and the BGPPeers filed under them)."""
        self._index.set_item(key, key, labels, parents)

    def remove_endpoint(self, key: ResourceKey) -> None:
        """Remove one; one that is not there is none removed."""
        self._index.remove_item(key)

    def set_parent(self, name: str, labels: Mapping[str, str]) -> None:
        """Labels that a profile hands down."""
        self._index.set_parent(name, labels)

    def set_peer(self, name: str, resource: Resource[BGPPeerSpec, Any] | None) -> None:
        """Add, replace or (None) remove a BGPPeer of any kind.

        Raises:
            InvalidInputError: one of its selectors is none; it selects nobody.
        """
        if resource is not None and resource.spec.local_workload_selector:
            self._specs[name] = resource.spec
        else:
            self._specs.pop(name, None)
        self._watch(name)

    def set_node(self, resource: Resource[NodeSpec, Any] | None) -> None:
        """This node's labels, by which BGPPeers choose it. O(BGPPeers that select workloads)."""
        labels = resource.metadata.labels if resource is not None else {}
        if labels != self._labels:
            self._labels = labels
            for name in self._specs:
                try:
                    self._watch(name)
                except InvalidInputError:
                    continue  # said when the BGPPeer came

    def set_configuration(self, name: str, resource: Resource[BGPConfigurationSpec, Any] | None) -> None:
        """Take a BGPConfiguration: the addresses come from ``default``, the port from this node's own before that.

        Raises:
            InvalidInputError: an address is none; it counts as missing.
        """
        spec = resource.spec if resource is not None else BGPConfigurationSpec()
        if name not in ("default", f"node.{self._hostname}"):
            return
        before = (self._addresses, self._port)
        self._ports[name] = spec.listen_port
        problem = None
        if name == "default":
            self._addresses, problem = _addresses(spec)
        if before != (self._addresses, self._port):
            self._touched.update(self._matches)
        if problem is not None:
            raise problem

    def peer_of(self, key: ResourceKey) -> LocalBGPPeer | None:
        """What an endpoint needs for its session, None if it is to have none."""
        names = self._matches.get(key)
        return LocalBGPPeer(min(names), self._addresses, self._port) if names else None

    def take_touched(self) -> set[ResourceKey]:
        """Endpoints for which ``peer_of`` may say something else than at the last call."""
        touched, self._touched = self._touched, set()
        return touched

    @property
    def _port(self) -> int:
        return self._ports.get(f"node.{self._hostname}") or self._ports.get("default") or _PORT

    def _watch(self, name: str) -> None:
        """Have the index watch a BGPPeer's workloads if it is for this node, and as long as it can be read."""
        if name in self._watched:
            self._watched.discard(name)
            self._index.remove_watch(name)
        spec = self._specs.get(name)
        if spec is not None and self._is_ours(spec):
            wanted = _selector("spec.localWorkloadSelector", spec.local_workload_selector)
            self._index.add_watch(name, name, wanted)
            self._watched.add(name)

    def _is_ours(self, spec: BGPPeerSpec) -> bool:
        if spec.node:
            return spec.node == self._hostname
        return not spec.node_selector or _selector("spec.nodeSelector", spec.node_selector).matches(self._labels)

    def _started(self, name: str, key: ResourceKey) -> None:
        self._matches.setdefault(key, set()).add(name)
        self._touched.add(key)

    def _stopped(self, name: str, key: ResourceKey) -> None:
        self._matches[key].discard(name)
        if not self._matches[key]:
            del self._matches[key]
        self._touched.add(key)


def _selector(field: str, text: str) -> selector.Selector:
    try:
        return selector.parse(text)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=field, value=text) from error


def _addresses(spec: BGPConfigurationSpec) -> tuple[tuple[str, ...], InvalidInputError | None]:
    """The usable addresses, bare and canonical, and what is wrong with another one."""
    found: list[str] = []
    problem: InvalidInputError | None = None
    for family, text in ((4, spec.local_workload_peering_ipv4), (6, spec.local_workload_peering_ipv6)):
        if not text:
            continue
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            address = None
        if address is not None and address.version == family:
            found.append(str(address))
        else:
            field = f"spec.localWorkloadPeeringIPV{family}"
            problem = InvalidInputError(f"not an IPv{family} address", field=field, value=text, remedy="mend it")
    return tuple(found), problem
