"""Which local workloads are to have a BGP session with this node (BGPPeer ``localWorkloadSelector``).

Of several BGPPeers that select one workload the first by name counts. Source: Calico
``felix/calc/active_bpgpeer_calculator.go``.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from calipy.datastore.keys import ResourceKey
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec, NodeSpec, Resource
from calipy.errors import InvalidInputError
from calipy.felix.messages import LocalBGPPeer
from calipy.policy import selector

_PORT: Final = 179


class LocalPeers:
    """BGPPeers on the one side, local workload endpoints on the other.

    Both are few: each BGPPeer is held against each endpoint, and there is no index that would grow with the cluster.

    Args:
        hostname: this node.
    """

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._specs: dict[str, BGPPeerSpec] = {}
        self._selectors: dict[str, selector.Selector] = {}  # of BGPPeers for this node, as far as they can be read
        self._endpoints: dict[ResourceKey, _Endpoint] = {}
        self._children: dict[str, set[ResourceKey]] = {}
        self._inherited: dict[str, Mapping[str, str]] = {}
        self._labels: Mapping[str, str] = {}
        self._addresses: tuple[str, ...] = ()
        self._ports: dict[str, int] = {}
        self._matches: dict[ResourceKey, str] = {}
        self._touched: set[ResourceKey] = set()

    def set_endpoint(self, key: ResourceKey, labels: Mapping[str, str], parents: tuple[str, ...]) -> None:
        """Add or replace a local workload endpoint. O(BGPPeers that select workloads)."""
        self.remove_endpoint(key)
        self._endpoints[key] = _Endpoint(labels, parents)
        for parent in parents:
            self._children.setdefault(parent, set()).add(key)
        self._match((key,))

    def remove_endpoint(self, key: ResourceKey) -> None:
        """Remove one; one that is not there is none removed."""
        endpoint = self._endpoints.pop(key, None)
        for parent in endpoint.parents if endpoint is not None else ():
            self._children[parent].discard(key)
            if not self._children[parent]:
                del self._children[parent]
        if self._matches.pop(key, None) is not None:
            self._touched.add(key)

    def set_parent(self, name: str, labels: Mapping[str, str]) -> None:
        """Labels that a profile hands down, empty when it is gone. O(local endpoints that name it)."""
        if labels:
            self._inherited[name] = labels
        else:
            self._inherited.pop(name, None)
        self._match(self._children.get(name, ()))

    def set_peer(self, name: str, resource: Resource[BGPPeerSpec, Any] | None) -> None:
        """Add, replace or (None) remove a BGPPeer of any kind. O(local endpoints), if it selects workloads.

        Raises:
            InvalidInputError: one of its selectors is none; it selects nobody.
        """
        before = self._specs.pop(name, None)
        if resource is not None and resource.spec.local_workload_selector:
            self._specs[name] = resource.spec
        if before != self._specs.get(name):
            self._selectors.pop(name, None)
            try:
                self._choose(name)
            finally:
                self._match(self._endpoints)
        elif name in self._specs and name not in self._selectors:
            self._choose(name)  # to say again what is wrong with it

    def set_node(self, resource: Resource[NodeSpec, Any] | None) -> None:
        """This node's labels, by which BGPPeers choose it. O(BGPPeers that select workloads x local endpoints)."""
        labels = resource.metadata.labels if resource is not None else {}
        if labels == self._labels:
            return
        self._labels = labels
        self._selectors.clear()
        for name in self._specs:
            with contextlib.suppress(InvalidInputError):  # said when the BGPPeer came
                self._choose(name)
        self._match(self._endpoints)

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
        name = self._matches.get(key)
        return LocalBGPPeer(name, self._addresses, self._port) if name is not None else None

    def take_touched(self) -> set[ResourceKey]:
        """Endpoints for which ``peer_of`` may say something else than at the last call."""
        touched, self._touched = self._touched, set()
        return touched

    @property
    def _port(self) -> int:
        return self._ports.get(f"node.{self._hostname}") or self._ports.get("default") or _PORT

    def _choose(self, name: str) -> None:
        """Have a BGPPeer count if it is for this node."""
        spec = self._specs.get(name)
        if spec is not None and self._is_ours(spec):
            self._selectors[name] = _selector("spec.localWorkloadSelector", spec.local_workload_selector)

    def _is_ours(self, spec: BGPPeerSpec) -> bool:
        if spec.node:
            return spec.node == self._hostname
        return not spec.node_selector or _selector("spec.nodeSelector", spec.node_selector).matches(self._labels)

    def _match(self, keys: Iterable[ResourceKey]) -> None:
        for key in keys:
            labels = self._effective(self._endpoints[key]) if self._selectors else {}
            name = min((name for name, one in self._selectors.items() if one.matches(labels)), default=None)
            if name == self._matches.get(key):
                continue
            self._touched.add(key)
            if name is None:
                del self._matches[key]
            else:
                self._matches[key] = name

    def _effective(self, endpoint: _Endpoint) -> Mapping[str, str]:
        """Own labels before inherited ones, earlier parents before later ones."""
        merged: dict[str, str] = {}
        for parent in reversed(endpoint.parents):
            merged.update(self._inherited.get(parent, {}))
        merged.update(endpoint.labels)
        return merged


class _Endpoint(NamedTuple):
    labels: Mapping[str, str]
    parents: tuple[str, ...]


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
