"""A pod's veth pair: everything the kernel is told for one pod, in two steps, and its removal.

``prepare`` does all that needs no address, so that it can run while the datastore assigns one; ``give_addresses`` is
then a matter of microseconds. All functions block (``prepare`` some milliseconds: call them in a worker thread) and
work on the host side in the namespace of the calling thread.

Source: Calico ``cni-plugin/pkg/dataplane/linux/dataplane_linux.go``. Two things differ. The pair is born with both ends
in place and the host's MAC set, which leaves udev nothing to change. And the pod knows its gateway's MAC from the
start: the first packet waits for no ARP, and pods work on hosts without a default route, where the kernel would not
answer for 169.254.1.1.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from calipy import clock, log
from calipy.errors import KernelError
from calipy.kernel import netns, sysctl
from calipy.kernel.links import Links, Neighbour, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteFailure, RouteTable
from calipy.net import HOST_LINK_LOCAL, HOST_MAC, POD_GATEWAY, PROTO_WORKLOAD, IPAddress, NextHop, Route, host_prefix

_log = log.get("veth")

_GATEWAY4: Final = ipaddress.IPv4Address(POD_GATEWAY)
_GATEWAY6: Final = ipaddress.IPv6Address(HOST_LINK_LOCAL)
_DEFAULT: Final = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_BOOT: Final = PROTO_WORKLOAD
_MAC_SECONDS: Final = 5.0
_MAC_RETRY_SECONDS: Final = 0.1


class InterfaceExistsError(KernelError):
    """The pod has an interface of that name already; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Veth:
    """What a pod's pair is to be.

    Attributes:
        host: name of the host's end.
        container: name of the pod's end.
        netns_fd: the pod's namespace.
        mtu: of both ends, bytes.
        ipv4, ipv6: families it will carry.
        mac: of the pod's end, "" lets the kernel choose.
        forwarding: the pod may forward packets.
    """

    host: str
    container: str
    netns_fd: int
    mtu: int
    ipv4: bool
    ipv6: bool
    mac: str = ""
    forwarding: bool = False


def host_interface_exists(name: str) -> bool:
    """Whether the host has an interface of that name."""
    with NetlinkSocket() as socket:
        return Links(socket).get_link(name) is not None


def prepare(veth: Veth) -> str:
    """Create the pair, up, with sysctls, and the pod's routes to its gateway. All or nothing.

    An interface of the host that bears the name already is replaced: it belongs to an earlier incarnation of the pod.

    Returns:
        MAC of the pod's end.

    Raises:
        InterfaceExistsError: the pod has such an interface.
        KernelError: the kernel refused; nothing is left.
    """
    with NetlinkSocket() as socket, NetlinkSocket(netns_fd=veth.netns_fd) as pod_socket:
        host, pod = Links(socket), Links(pod_socket)
        if pod.get_link(veth.container) is not None:
            raise InterfaceExistsError(
                f"the pod already has an interface {veth.container}",
                code=errno.EEXIST,
                remedy="delete the pod's network first",
            )
        netns.run_in(veth.netns_fd, _set_pod_sysctls, veth)
        host.delete_link(veth.host)
        host.create_veth(
            VethEnd(veth.host, mac=HOST_MAC, mtu=veth.mtu), VethEnd(veth.container, veth.netns_fd, veth.mac, veth.mtu)
        )
        try:
            _set_host_sysctls(veth)
            host.set_up(veth.host)
            pod.set_up(veth.container)
            if veth.ipv6:
                # The same address that the kernel makes of the MAC, if it makes any: usable now, without detection.
                link_local = ipaddress.IPv6Interface(f"{HOST_LINK_LOCAL}/64")
                host.add_address(veth.host, link_local, dad=False)
            _lead_to_gateway(veth, pod, RouteTable(pod_socket))
            _insist_on_mac(host, veth.host)
            link = pod.get_link(veth.container)
            if link is None:
                raise KernelError(f"interface {veth.container} vanished from the pod", code=errno.ENODEV)
            return link.mac
        except BaseException:
            host.delete_link(veth.host)
            raise


def give_addresses(veth: Veth, addresses: Sequence[IPAddress]) -> None:
    """Put addresses on the pod's end, and the host's routes to them (metric 0, before Felix's own).

    Raises:
        KernelError: EEXIST if the host has a route to such an address through something else.
    """
    with NetlinkSocket() as socket, NetlinkSocket(netns_fd=veth.netns_fd) as pod_socket:
        interfaces = [ipaddress.ip_interface(address) for address in addresses]
        Links(pod_socket).add_addresses(veth.container, interfaces, dad=False)
        table = RouteTable(socket)
        routes = [
            Route(host_prefix(address), next_hops=(NextHop(None, veth.host),), protocol=_BOOT, scope="link")
            for address in addresses
        ]
        for failure in table.apply(add=routes):
            if failure.code != errno.EEXIST or not _leads_to(table, failure.route, veth.host):
                raise _route_refused(failure)


def remove(host: str) -> bool:
    """Remove a pair by its host end; the pod's end goes with it, wherever it is. False if there was none.

    The pod's namespace is not needed, so a path that is gone, or is another pod's by now, does no harm.
    """
    with NetlinkSocket() as socket:
        return Links(socket).delete_link(host)


def _set_pod_sysctls(veth: Veth) -> None:
    if veth.ipv4:
        sysctl.write("net/ipv4/ip_forward", int(veth.forwarding))
    if veth.ipv6:
        for scope in ("all", "default", "lo"):
            sysctl.write(f"net/ipv6/conf/{scope}/disable_ipv6", 0)
        sysctl.write("net/ipv6/conf/default/accept_dad", 0)
        sysctl.write("net/ipv6/conf/all/forwarding", int(veth.forwarding))


def _set_host_sysctls(veth: Veth) -> None:
    v4, v6 = f"net/ipv4/conf/{veth.host}", f"net/ipv6/conf/{veth.host}"
    if veth.ipv4:
        sysctl.write(f"{v4}/route_localnet", 1)
        _try_sysctl(f"net/ipv4/neigh/{veth.host}/proxy_delay", 0)
        sysctl.write(f"{v4}/proxy_arp", 1)
        sysctl.write(f"{v4}/forwarding", 1)
    if veth.ipv6:
        sysctl.write(f"{v6}/accept_dad", 0)
        sysctl.write(f"{v6}/disable_ipv6", 0)
        sysctl.write(f"{v6}/proxy_ndp", 1)
        sysctl.write(f"{v6}/forwarding", 1)
    _try_sysctl(f"{v6}/accept_ra", 0)


def _try_sysctl(key: str, value: int) -> None:
    try:
        sysctl.write(key, value)
    except KernelError as error:
        if error.code != errno.ENOENT:  # ENOENT: a kernel without IPv6
            _log.warning("sysctl not set", key=key, value=value, error=str(error))


def _lead_to_gateway(veth: Veth, pod: Links, table: RouteTable) -> None:
    gateways: list[IPAddress] = []
    if veth.ipv4:
        gateways.append(_GATEWAY4)
    if veth.ipv6:
        gateways.append(_GATEWAY6)
    failures = table.apply(
        replace=[
            route
            for gateway in gateways
            for route in (
                Route(host_prefix(gateway), next_hops=(NextHop(None, veth.container),), protocol=_BOOT, scope="link"),
                Route(_DEFAULT[gateway.version], next_hops=(NextHop(gateway, veth.container),), protocol=_BOOT),
            )
        ]
    )
    if failures:
        raise _route_refused(failures[0])
    neighbours = [Neighbour(veth.container, gateway, HOST_MAC) for gateway in gateways]
    for gateway, code in zip(gateways, pod.set_neighbours(neighbours), strict=True):
        if code:
            raise KernelError(f"cannot tell the pod the MAC of its gateway {gateway}: {os.strerror(code)}", code=code)


def _insist_on_mac(host: Links, name: str) -> None:
    """Set the host's MAC again while something (udev) changes it."""
    give_up = clock.monotonic() + _MAC_SECONDS
    while (link := host.get_link(name)) is None or link.mac != HOST_MAC:
        if link is None or clock.monotonic() > give_up:
            raise KernelError(
                f"interface {name} does not keep the MAC {HOST_MAC}", remedy="stop what changes it, e.g. a udev rule"
            )
        host.set_mac(name, HOST_MAC)
        time.sleep(_MAC_RETRY_SECONDS)


def _leads_to(table: RouteTable, route: Route, interface: str) -> bool:
    found = table.lookup(route.dst.network_address)
    return [hop.interface for hop in found.next_hops] == [interface]


def _route_refused(failure: RouteFailure) -> KernelError:
    return KernelError(
        f"cannot write the route to {failure.route.dst}: {os.strerror(failure.code)}",
        code=failure.code,
        remedy="the address has a route through another interface" if failure.code == errno.EEXIST else "",
    )
