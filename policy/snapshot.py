"""The whole of a cluster's policy at one moment, arranged for questions.

Built from resources as the datastore holds them. Who an address belongs to, which labels its owner has and which
policies apply to an endpoint is worked out here from the resources alone, on purpose without Felix's graph: each can
check the other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

from calipy.datastore.keys import ResourceKey
from calipy.datastore.names import parse_workload_endpoint
from calipy.datastore.resources import Resource
from calipy.errors import InvalidInputError
from calipy.net import IPAddress, Prefix
from calipy.policy import model
from calipy.policy.effective import NAMESPACE_LABEL, NAMESPACE_PREFIX, SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX
from calipy.policy.kubernetes import namespace_profile_name
from calipy.policy.order import arrange
from calipy.policy.selector import Selector
from calipy.policy.values import PolicyID, protocol

ANY_INTERFACE: Final = "*"

Layer: TypeAlias = Literal["normal", "forward", "untracked", "pre-DNAT"]
"""Which of an endpoint's lists of policies: pods have only ``normal``."""


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A workload or host endpoint.

    Attributes:
        name: ``<namespace>/<workload>`` or the name of the host endpoint.
        node: where it is.
        labels: effective labels, inherited ones included.
        ports: protocol and name → numbers.
        layers: tiers with their policies in order, per layer; profiles by name, in order.
    """

    name: str
    node: str
    is_host: bool
    interface: str
    addresses: tuple[IPAddress, ...]
    labels: Mapping[str, str]
    profiles: tuple[str, ...]
    ports: Mapping[tuple[str | int, str], frozenset[int]]
    layers: Mapping[Layer, tuple[tuple[model.Tier, tuple[model.Policy, ...]], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AddressSet:
    """A network set."""

    name: str
    nets: tuple[Prefix, ...]
    labels: Mapping[str, str]


class Snapshot:
    """Resources, indexed. Objects that are not valid count as absent and are listed in ``problems``.

    Args:
        objects: of all kinds that concern policy, and Nodes, with their keys; other kinds are ignored. Where key and
            metadata disagree the key counts.
        endpoint_to_host: what happens to packets of a pod to its own node that egress policy lets pass.
        uplink: name of the nodes' interface towards each other and the world; "" when it is not known, then every host
            endpoint of a node is taken to be on it.
    """

    def __init__(
        self,
        objects: Iterable[tuple[ResourceKey, Resource[Any, Any]]],
        *,
        endpoint_to_host: Literal["Accept", "Drop"] = "Accept",
        uplink: str = "",
    ) -> None:
        self.endpoint_to_host = endpoint_to_host
        self.uplink = uplink
        self.problems: dict[str, str] = {}
        self.profiles: dict[str, model.Rules] = {model.DEFAULT_ALLOW_PROFILE: model.ALLOW_ALL}
        self.rules: dict[PolicyID, model.Rules] = {}
        self.endpoints: list[Endpoint] = []
        self.address_sets: list[AddressSet] = []
        self.nodes: dict[str, tuple[IPAddress, ...]] = {}
        self._owners: dict[IPAddress, tuple[Endpoint | AddressSet, ...]] = {}
        self._tiers = dict(model.BUILT_IN_TIERS)
        self._policies: list[model.Policy] = []
        self._inherited: dict[str, Mapping[str, str]] = {}
        by_kind: dict[str, list[tuple[ResourceKey, Resource[Any, Any]]]] = {}
        for key, resource in objects:
            by_kind.setdefault(key.kind, []).append((key, resource))
        for kind, read in (
            ("Node", self._read_node),
            ("Tier", self._read_tier),
            ("Profile", self._read_profile),
            *((kind, self._read_policy) for kind in sorted(model.POLICY_KINDS)),
            ("NetworkSet", self._read_set),
            ("GlobalNetworkSet", self._read_set),
            ("WorkloadEndpoint", self._read_workload),
            ("HostEndpoint", self._read_host),
        ):
            for key, resource in by_kind.get(kind, ()):
                try:
                    read(key, resource)
                except (InvalidInputError, ValueError) as error:
                    self.problems[str(key)] = str(error)

    @cached_property
    def workloads(self) -> dict[IPAddress, Endpoint]:
        """Workload endpoints by address."""
        return {address: e for e in self.endpoints if not e.is_host for address in e.addresses}

    @cached_property
    def node_of(self) -> dict[IPAddress, str]:
        """Nodes by their own addresses."""
        return {address: name for name, addresses in self.nodes.items() for address in addresses}

    def host_endpoint(self, node: str) -> Endpoint | None:
        """The host endpoint on a node's uplink: a particular one before one for all interfaces, then by name."""
        found = [e for e in self.endpoints if e.is_host and e.node == node and self._is_on_uplink(e)]
        return min(found, key=lambda e: (e.interface == ANY_INTERFACE, e.name), default=None)

    def host_endpoint_elsewhere(self, node: str) -> Endpoint | None:
        """The host endpoint for all interfaces, which governs those of a node that no other one does."""
        found = [e for e in self.endpoints if e.is_host and e.node == node and e.interface == ANY_INTERFACE]
        return min(found, key=lambda e: e.name, default=None)

    def _is_on_uplink(self, endpoint: Endpoint) -> bool:
        if not self.uplink or endpoint.interface in {self.uplink, ANY_INTERFACE}:
            return True
        return not endpoint.interface and not set(endpoint.addresses).isdisjoint(self.nodes.get(endpoint.node, ()))

    def owners(self, address: IPAddress) -> tuple[Endpoint | AddressSet, ...]:
        """Endpoints that have an address and network sets that cover it. O(endpoints) once per address."""
        found = self._owners.get(address)
        if found is None:
            sets = (s for s in self.address_sets if any(address in net for net in s.nets))
            found = (*(e for e in self.endpoints if address in e.addresses), *sets)
            self._owners[address] = found
        return found

    def matches(self, address: IPAddress, selector: Selector) -> bool:
        """Whether the address is in the ip set of a selector."""
        return any(selector.matches(owner.labels) for owner in self.owners(address))

    def has_named_port(self, address: IPAddress, selector: Selector, proto: str | int, name: str, number: int) -> bool:
        """Whether the address and port are in the set of a named port, limited to owners that match ``selector``."""
        return any(
            isinstance(owner, Endpoint)
            and number in owner.ports.get((proto, name), ())
            and selector.matches(owner.labels)
            for owner in self.owners(address)
        )

    def _read_node(self, key: ResourceKey, resource: Resource[Any, Any]) -> None:
        spec = resource.spec
        given = [spec.bgp.ipv4_address, spec.bgp.ipv6_address] if spec.bgp is not None else []
        given += [address.address for address in spec.addresses]
        self.nodes[key.name] = tuple(ipaddress.ip_interface(text).ip for text in given if text)

    def _read_tier(self, key: ResourceKey, resource: Resource[Any, Any]) -> None:
        self._tiers[key.name] = model.tier(key.name, resource)

    def _read_profile(self, key: ResourceKey, resource: Resource[Any, Any]) -> None:
        if key.name != model.DEFAULT_ALLOW_PROFILE:
            self.profiles[key.name] = model.profile_rules(resource)
            self._inherited[key.name] = resource.spec.labels_to_apply

    def _read_policy(self, key: ResourceKey, resource: Resource[Any, Any]) -> None:
        policy = model.policy(key, resource)
        if policy is not None and not policy.staged:
            self.rules[policy.id] = model.policy_rules(key, resource)
            self._policies.append(policy)

    def _read_set(self, key: ResourceKey, resource: Resource[Any, Any]) -> None:
        nets = tuple(ipaddress.ip_network(text, strict=False) for text in resource.spec.nets)
        labels = resource.metadata.labels
        if key.namespace:
            labels = self._effective(
                {**labels, NAMESPACE_LABEL: key.namespace}, (namespace_profile_name(key.namespace),)
            )
        self.address_sets.append(AddressSet(key.name, nets, labels))

    def _read_workload(self, key: ResourceKey, resource: Resource[Any, Any]) -> None:
        spec = resource.spec
        name = parse_workload_endpoint(key.name)
        if not spec.interface_name or not spec.ip_networks:
            raise InvalidInputError("no interface or no address", field="spec", value=spec.ip_networks)
        own = {
            label: value
            for label, value in resource.metadata.labels.items()
            if not label.startswith((NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX))
        }
        if spec.service_account_name:
            own[SERVICE_ACCOUNT_LABEL] = spec.service_account_name
        full_name = f"{key.namespace}/{name.workload}"
        addresses = tuple(ipaddress.ip_interface(text).ip for text in spec.ip_networks)
        labels = self._effective(own, spec.profiles)
        ports = _ports(spec.ports)
        self._add(Endpoint(full_name, name.node, False, spec.interface_name, addresses, labels, spec.profiles, ports))

    def _read_host(self, key: ResourceKey, resource: Resource[Any, Any]) -> None:
        spec = resource.spec
        labels = self._effective(resource.metadata.labels, spec.profiles)
        addresses = tuple(ipaddress.ip_address(text) for text in spec.expected_ips)
        ports = _ports(spec.ports)
        self._add(Endpoint(key.name, spec.node, True, spec.interface_name, addresses, labels, spec.profiles, ports))

    def _effective(self, own: Mapping[str, str], profiles: tuple[str, ...]) -> dict[str, str]:
        labels = dict(own)
        for name in profiles:
            for label, value in self._inherited.get(name, {}).items():
                labels.setdefault(label, value)
        return labels

    def _add(self, endpoint: Endpoint) -> None:
        matching = [policy for policy in self._policies if policy.selector.matches(endpoint.labels)]
        normal = [p for p in matching if not (p.do_not_track or p.pre_dnat)]
        chosen: dict[Layer, list[model.Policy]] = {"normal": normal}
        if endpoint.is_host:
            chosen["forward"] = [p for p in normal if p.apply_on_forward]
            chosen["untracked"] = [p for p in matching if p.do_not_track]
            chosen["pre-DNAT"] = [p for p in matching if p.pre_dnat]
        layers = {
            layer: tuple((tier, tuple(policies)) for tier, policies in arrange(found, self._tiers))
            for layer, found in chosen.items()
        }
        self.endpoints.append(replace(endpoint, layers=layers))


def _ports(ports: Iterable[Any]) -> dict[tuple[str | int, str], frozenset[int]]:
    found: dict[tuple[str | int, str], set[int]] = {}
    for port in ports:
        found.setdefault((protocol(port.protocol, "spec.ports") or 0, port.name), set()).add(port.port)
    return {key: frozenset(numbers) for key, numbers in found.items()}
