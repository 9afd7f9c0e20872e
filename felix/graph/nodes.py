"""IP pools, nodes, service ranges: what NAT, the host set, loop prevention are made of.

Decisions are made at ``flush``; several objects can stand for one output (two pools with one CIDR), then the lowest
name wins, as in Calico.
"""

from __future__ import annotations

import ipaddress
from typing import Any, TypeVar

from calipy.datastore.resources import BGPConfigurationSpec, IPPoolSpec, NodeSpec, Resource
from calipy.errors import InvalidInputError
from calipy.felix.messages import Changes, Host, Pool
from calipy.net import Family, IPInterface

_ADDRESS_TYPES = ("CalicoNodeIP", "InternalIP", "ExternalIP")


def pool(resource: Resource[IPPoolSpec, Any]) -> Pool:
    """What NAT and tunnels need of a pool.

    Raises:
        InvalidInputError: its CIDR is none.
    """
    spec = resource.spec
    try:
        cidr = str(ipaddress.ip_network(spec.cidr, strict=False))
    except ValueError:
        raise InvalidInputError("not a CIDR", field="spec.cidr", value=spec.cidr, remedy="mend the pool") from None
    return Pool(
        cidr,
        spec.nat_outgoing,
        spec.ipip_mode or "Never",
        spec.vxlan_mode or "Never",
        load_balancer_only=spec.allowed_uses == ("LoadBalancer",),
    )


def addresses(spec: NodeSpec) -> dict[Family, IPInterface]:
    """A node's addresses: those of BGP, else the first listed of each family; with the subnet, where it is given."""
    found: dict[Family, IPInterface] = {}
    given = [spec.bgp.ipv4_address, spec.bgp.ipv6_address] if spec.bgp is not None else []
    for kind in _ADDRESS_TYPES:
        given += [address.address for address in spec.addresses if address.type == kind]
    for text in given:
        try:
            address = ipaddress.ip_interface(text)
        except ValueError:
            continue
        found.setdefault(address.version, address)
    return found


def host(name: str, resource: Resource[NodeSpec, Any], *, local: bool = False) -> Host:
    """A node's addresses, for what needs no more of it."""
    found = {family: str(address.ip) for family, address in addresses(resource.spec).items()}
    return Host(name, found.get(4, ""), found.get(6, ""), local)


def services(resource: Resource[BGPConfigurationSpec, Any]) -> tuple[str, ...]:
    """Ranges of services that are announced, canonical, sorted as Felix sorts them (as texts).

    Raises:
        InvalidInputError: one of them is no CIDR.
    """
    spec = resource.spec
    ranges = (*spec.service_cluster_ips, *spec.service_external_ips, *spec.service_load_balancer_ips)
    found = set()
    for text in (one.cidr for one in ranges if one.cidr):
        try:
            found.add(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise InvalidInputError("not a CIDR", field="spec.service…IPs", value=text, remedy="mend it") from None
    return tuple(sorted(found))


class Nodes:
    """Pools by CIDR, hosts by name, ranges of services."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._pools: dict[str, Pool] = {}  # by resource name
        self._hosts: dict[str, Host] = {}
        self._services: tuple[str, ...] = ()
        self._dirty_pools: set[str] = set()  # CIDRs
        self._dirty_hosts: set[str] = set()
        self._sent_pools: dict[str, Pool] = {}
        self._sent_hosts: dict[str, Host] = {}
        self._sent_services: tuple[str, ...] = ()

    def set_pool(self, name: str, found: Pool | None) -> None:
        """Add, replace or (None) remove a pool."""
        old = self._pools.pop(name, None)
        if old is not None:
            self._dirty_pools.add(old.cidr)
        if found is not None:
            self._pools[name] = found
            self._dirty_pools.add(found.cidr)

    def set_node(self, name: str, resource: Resource[NodeSpec, Any] | None) -> None:
        """Add, replace or (None) remove a node."""
        if resource is None:
            self._hosts.pop(name, None)
        else:
            self._hosts[name] = host(name, resource, local=name == self._hostname)
        self._dirty_hosts.add(name)

    def set_services(self, resource: Resource[BGPConfigurationSpec, Any] | None) -> None:
        """Replace or (None) remove the cluster's BGP configuration.

        Raises:
            InvalidInputError: it is not valid; what was known stays, as without it packets could go in circles.
        """
        self._services = services(resource) if resource is not None else ()

    @property
    def host_count(self) -> int:
        """How many nodes there are."""
        return len(self._hosts)

    def flush(self, changes: Changes) -> None:
        """Say what changed since the last flush. O(changed), and O(pools) if a pool changed."""
        if self._dirty_pools:
            by_cidr: dict[str, Pool] = {}
            for _, found in sorted(self._pools.items(), reverse=True):
                by_cidr[found.cidr] = found
            _send(self._dirty_pools, by_cidr, self._sent_pools, changes.pools)
        _send(self._dirty_hosts, self._hosts, self._sent_hosts, changes.hosts)
        if self._services != self._sent_services:
            changes.services = self._sent_services = self._services


_Value = TypeVar("_Value")


def _send(dirty: set[str], present: dict[str, _Value], sent: dict[str, _Value], out: dict[str, _Value | None]) -> None:
    """Put what differs between ``present`` and ``sent`` among the ``dirty`` keys into ``out``."""
    for key in sorted(dirty):
        new = present.get(key)
        if new == sent.get(key):
            continue
        out[key] = new
        if new is None:
            del sent[key]
        else:
            sent[key] = new
    dirty.clear()
