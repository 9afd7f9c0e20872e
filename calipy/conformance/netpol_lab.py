"""The machines of network-policy cases: nodes, pods and externals as network namespaces, wired up once for a whole run.

    hub (this process): bridge ─┬─ uplink0 of n1 ─ cali… ─ eth0 of a pod
                                ├─ uplink0 of n2 ─ …
                                └─ uplink0 of alpha, bravo, …

A namespace stands for an address rather than a pod: whatever pod has 10.65.2.22 lives there, and an interface without
an endpoint in the datastore is none of the cluster's. All machines reach each other on the segment, and pods through
their nodes: a host route for each. No address translation. Namespaces have no names and end with this process.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from calipy.cni import veth
from calipy.conformance.netpol_case import UPLINK, Cluster, Probe, Site
from calipy.errors import KernelError
from calipy.kernel import netns, process, sysctl
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable
from calipy.net import IPAddress, NextHop, Route, host_prefix

HUB_ADDRESS: Final = ipaddress.IPv4Address("198.18.0.1")
"""Where all machines find this process, hence etcd: of the range for benchmarks (RFC 2544)."""

_BRIDGE: Final = "segment"
_STATIC: Final = 4
_DEFAULT: Final = ipaddress.IPv4Network("0.0.0.0/0")
_MTU: Final = 1500


def enter_hub() -> None:
    """Move this process into a network namespace of its own, once, before it has threads or sockets.

    Raises:
        KernelError: not root, or the kernel lacks something.
    """
    fd = netns.create_unnamed()
    netns.enter(fd)
    os.close(fd)
    with NetlinkSocket() as socket:
        links = Links(socket)
        sysctl.write("net/ipv6/conf/default/accept_dad", 0)
        sysctl.write("net/ipv4/ip_forward", 0)
        links.set_up("lo")
        links.create_bridge(_BRIDGE)
        links.set_up(_BRIDGE)
        links.add_address(_BRIDGE, ipaddress.ip_interface(HUB_ADDRESS))


@dataclass(slots=True)
class Station:
    """A namespace and the addresses it has got so far.

    Attributes:
        interface: of the pod's node, towards the pod; "" for machines.
    """

    name: str
    netns_fd: int
    interface: str = ""
    addresses: set[IPAddress] = field(default_factory=set)


class Lab:
    """All stations. What a case needs is added to what there is; methods block for milliseconds per station."""

    def __init__(self) -> None:
        self._machines: dict[str, Station] = {}
        self._pods: dict[tuple[str, IPAddress], Station] = {}
        self._ways: dict[IPAddress, str] = {}

    def prepare(self, cluster: Cluster) -> None:
        """Make sure that every machine and pod of a cluster has its station, with its addresses and routes.

        Raises:
            KernelError: the kernel refused, or an address has moved to another machine: all cases share one plan.
        """
        for name, site in cluster.machines().items():
            station = self._machines.get(name) or self._new_machine(name)
            self._give(station, UPLINK, site.addresses.values())
            self._lead(name, site.addresses.values())
        for site in cluster.pods().values():
            station = self._pod(site)
            self._give(station, "eth0", site.addresses.values())
            self._lead(site.machine, site.addresses.values())

    def station(self, site: Site) -> Station:
        """Where a site of a prepared cluster is."""
        return self._pods[_identity(site)] if site.pod else self._machines[site.machine]

    def machine(self, name: str) -> Station:
        """A node or external."""
        return self._machines[name]

    def close(self) -> None:
        """Let go of all namespaces."""
        for station in (*self._machines.values(), *self._pods.values()):
            os.close(station.netns_fd)

    def forget_connections(self, nodes: Iterable[str], probes: Iterable[Probe]) -> None:
        """Have the nodes' connection tracking forget earlier probes from the fixed ports of these ones, and no others.

        An agent's own connection to etcd would stall without its entry until the agent happens to send something.
        """
        fixed = {
            (f"ipv{probe.family}", probe.protocol, str(probe.source_port)) for probe in probes if probe.source_port
        }
        for name in nodes:
            for family, protocol, port in fixed:
                argv = ["conntrack", "-D", "-f", family, "-p", protocol, "--orig-port-src", port]
                done = process.run(argv, netns_fd=self._machines[name].netns_fd)
                if "0 flow entries" not in done.stderr:  # which is its only failure that is none
                    done.check()

    def _new_machine(self, name: str) -> Station:
        station = self._machines[name] = Station(name, _new_namespace())
        port = f"seg{len(self._machines)}"
        with NetlinkSocket() as socket:
            hub = Links(socket)
            hub.create_veth(VethEnd(port), VethEnd(UPLINK, station.netns_fd))
            hub.set_master(port, _BRIDGE)
            hub.set_up(port)
        with NetlinkSocket(netns_fd=station.netns_fd) as socket:
            Links(socket).set_up(UPLINK)
        hub_way = Route(host_prefix(HUB_ADDRESS), next_hops=_link(), scope="link", protocol=_STATIC)
        default = Route(_DEFAULT, next_hops=(NextHop(HUB_ADDRESS, UPLINK, onlink=True),), protocol=_STATIC)
        _write(station, [hub_way, default])
        _write(station, [self._way(address, machine) for address, machine in self._ways.items()])
        return station

    def _pod(self, site: Site) -> Station:
        key = _identity(site)
        if key not in self._pods:
            interface = f"cali{int(key[1]) & 0xFFFFFFFF:08x}"
            station = self._pods[key] = Station(str(key[1]), _new_namespace(), interface)
            wire = veth.Veth(interface, "eth0", station.netns_fd, _MTU, ipv4=True, ipv6=True)
            netns.run_in(self._machines[site.machine].netns_fd, veth.prepare, wire)
        return self._pods[key]

    def _give(self, station: Station, interface: str, addresses: Iterable[IPAddress]) -> None:
        new = [address for address in addresses if address not in station.addresses]
        if new:
            with NetlinkSocket(netns_fd=station.netns_fd) as socket:
                Links(socket).add_addresses(interface, [ipaddress.ip_interface(a) for a in new], dad=False)
            station.addresses.update(new)

    def _lead(self, machine: str, addresses: Collection[IPAddress]) -> None:
        """Routes to addresses of a machine, or of pods behind it, on all others; in the families that it has itself."""
        families = {address.version for address in self._machines[machine].addresses}
        for address in addresses:
            if self._ways.get(address, machine) != machine:
                raise KernelError(
                    f"{address} was with {self._ways[address]} in an earlier case, and is with {machine} now"
                )
        new = [a for a in addresses if a not in self._ways and a.version in families]
        if not new:
            return
        self._ways.update(dict.fromkeys(new, machine))
        for name, station in self._machines.items():
            if name != machine:
                _write(station, [self._way(address, machine) for address in new])
        with NetlinkSocket() as socket:
            own = [address for address in new if address in self._machines[machine].addresses]
            _apply(RouteTable(socket), [Route(host_prefix(a), next_hops=_link(_BRIDGE), scope="link") for a in own])

    def _way(self, address: IPAddress, machine: str) -> Route:
        """From another machine: straight on the segment, or through the node."""
        station = self._machines[machine]
        if address in station.addresses:
            return Route(host_prefix(address), next_hops=_link(), scope="link", protocol=_STATIC)
        through = next(a for a in sorted(station.addresses, key=str) if a.version == address.version)
        return Route(host_prefix(address), next_hops=(NextHop(through, UPLINK, onlink=True),), protocol=_STATIC)


def _identity(site: Site) -> tuple[str, IPAddress]:
    addresses: Mapping[int, IPAddress] = site.addresses
    return site.machine, addresses[min(addresses)]


def _new_namespace() -> int:
    fd = netns.create_unnamed()
    netns.run_in(fd, _furnish)
    return fd


def _furnish() -> None:
    sysctl.write("net/ipv6/conf/default/accept_dad", 0)
    for key in ("all", "default"):
        with contextlib.suppress(KernelError):
            sysctl.write(f"net/ipv4/conf/{key}/accept_redirects", 0)
    with NetlinkSocket() as socket:
        Links(socket).set_up("lo")


def _link(interface: str = UPLINK) -> tuple[NextHop, ...]:
    return (NextHop(None, interface),)


def _write(station: Station, routes: list[Route]) -> None:
    with NetlinkSocket(netns_fd=station.netns_fd) as socket:
        _apply(RouteTable(socket), routes)


def _apply(table: RouteTable, routes: list[Route]) -> None:
    for failure in table.apply(replace=routes):
        raise KernelError(f"cannot write route to {failure.route.dst}: {failure.reason}", code=failure.code)
