"""Network namespaces in hand, and the interfaces between them. Edge."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import ipaddress
import os
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Final

from calipy.containerlab import linkspec, linux
from calipy.containerlab.model import Endpoint, Link, Management
from calipy.errors import KernelError
from calipy.kernel import netlink, netns
from calipy.kernel.links import RTM_NEWLINK, Links, VethEnd, parse_mac
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable
from calipy.net import NextHop, Route

_OUI: Final = "aa:c1:ab"
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_STXCSUM: Final = 0x17
_PROTO_BOOT: Final = 3
_MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
_IFINFOMSG: Final = struct.Struct("=BxHiII")


class Namespace:
    """A network namespace with its sockets; keeps it alive until ``close``.

    Attributes:
        fd: descriptor of the namespace.
        links: its interfaces.
    """

    def __init__(self, fd: int) -> None:
        """Take over ``fd``. Raises KernelError."""
        self.fd = fd
        self._netlink = NetlinkSocket(netns_fd=fd)
        self._datagram = netns.run_in(fd, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.links = Links(self._netlink)
        self.routes = RouteTable(self._netlink)

    @classmethod
    def of_process(cls, pid: int) -> Namespace:
        """That of a process, by its pid here."""
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def here(cls) -> Namespace:
        """That of the calling thread."""
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def fresh(cls) -> Namespace:
        """A new one that nobody else is in."""

        def make() -> int:
            linux.unshare(linux.CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        return cls(_in_thread(make))

    def close(self) -> None:
        """Let go of it."""
        self._datagram.close()
        self._netlink.close()
        os.close(self.fd)

    def checksum_offload_off(self, name: str) -> None:
        """Switch TX checksum offload off: without it nobody computes checksums between two namespaces' raw sockets."""
        value = array.array("B", struct.pack("=II", _ETHTOOL_STXCSUM, 0))
        address, _ = value.buffer_info()
        request = struct.pack("16sP", name.encode(), address).ljust(40, b"\0")
        with contextlib.suppress(OSError):  # a driver without it needs nothing
            fcntl.ioctl(self._datagram, _SIOCETHTOOL, request)

    def create(self, doing: str, kind: str, end: VethEnd, data: bytes = b"", attributes: bytes = b"") -> None:
        """Create an interface of a kind that ``Links`` does not know, seen from this namespace."""
        info = netlink.text(1, kind) + (netlink.nested(2, data) if data else b"")
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.text(3, end.name) + attributes
        body += netlink.attribute_u32(4, end.mtu) if end.mtu else b""
        body += netlink.attribute(1, parse_mac(end.mac)) if end.mac else b""
        body += netlink.attribute_u32(28, end.netns_fd) if end.netns_fd is not None else b""
        body += netlink.nested(18, info)
        self._netlink.execute(doing, netlink.message(RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body))


def _in_thread(function: Callable[[], int]) -> int:
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return netns.run_in(here, function)
    finally:
        os.close(here)


def random_mac() -> str:
    """A MAC in containerlab's OUI."""
    return ":".join([_OUI, *(f"{byte:02x}" for byte in secrets.token_bytes(3))])


# --- the management network


def create_bridge(host: Namespace, name: str, management: Management) -> None:
    """The management bridge in the host's namespace, with the gateway addresses, up."""
    if host.links.get_link(name) is None:
        host.links.create_bridge(name, mtu=management.mtu or 1500)
        host.links.add_alternative_name(name, linkspec.ownership_name("mgmt", name))
    for gateway, subnet in _gateways(management):
        host.links.add_address(name, ipaddress.ip_interface(f"{gateway}/{subnet.prefixlen}"), dad=False)
    host.links.set_up(name)


def _gateways(management: Management) -> list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network]]:
    pairs = (
        (management.ipv4_gateway, management.ipv4_subnet),
        (management.ipv6_gateway, management.ipv6_subnet),
    )
    return [(gateway, ipaddress.ip_network(subnet)) for gateway, subnet in pairs if subnet]


def attach(
    host: Namespace, node: Namespace, bridge: str, port: str, management: Management, addresses: tuple[str, str]
) -> None:
    """eth0 of a node: a veth into the bridge, its addresses, its default routes."""
    mtu = management.mtu or 1500
    host.links.create_veth(VethEnd(port, mtu=mtu), VethEnd("eth0", netns_fd=node.fd, mtu=mtu))
    host.links.set_master(port, bridge)
    host.links.set_up(port)
    connect(node, management, addresses)


def connect(node: Namespace, management: Management, addresses: tuple[str, str]) -> None:
    """Addresses and default routes of an eth0 that is there."""
    subnets = (management.ipv4_subnet, management.ipv6_subnet)
    prefixes = [ipaddress.ip_network(subnet).prefixlen if subnet else 0 for subnet in subnets]
    interfaces = [
        ipaddress.ip_interface(f"{address}/{prefix}")
        for address, prefix in zip(addresses, prefixes, strict=True)
        if address
    ]
    node.links.add_addresses("eth0", interfaces, dad=False)
    node.links.set_up("eth0")
    gateways = (management.ipv4_gateway, management.ipv6_gateway)
    routes = [
        Route(
            ipaddress.ip_network("0.0.0.0/0" if ":" not in gateway else "::/0"),
            next_hops=(NextHop(ipaddress.ip_address(gateway), "eth0"),),
            protocol=_PROTO_BOOT,
        )
        for gateway, address in zip(gateways, addresses, strict=True)
        if gateway and address
    ]
    for failure in node.routes.apply(replace=routes):
        raise KernelError(f"default route of eth0: {failure.reason}", code=failure.code)


# --- data links


class End:
    """Where one end of a link goes.

    Attributes:
        endpoint: as written.
        namespace: that of its node.
        bridge: the bridge there that it becomes a port of, or "".
        name: of the device.
    """

    def __init__(self, endpoint: Endpoint, namespace: Namespace, bridge: str = "") -> None:
        """``endpoint.mac`` "" picks a random one."""
        self.endpoint = endpoint
        self.namespace = namespace
        self.bridge = bridge
        self.name = linkspec.device_name(endpoint.node, endpoint.interface)
        self.mac = endpoint.mac or random_mac()

    def exists(self) -> bool:
        """Whether an interface of that name is there."""
        return self.namespace.links.get_link(self.name) is not None

    def finish(self) -> None:
        """After creation: further names, offload, master, up."""
        links = self.namespace.links
        if self.name != self.endpoint.interface:
            links.add_alternative_name(self.name, linkspec.alternative_name(self.endpoint.interface))
        links.add_alternative_name(self.name, linkspec.ownership_name(self.endpoint.node, self.endpoint.interface))
        self.namespace.checksum_offload_off(self.name)
        if self.bridge:
            links.set_master(self.name, self.bridge)
        links.set_up(self.name)


def join(host: Namespace, a: End, b: End, mtu: int) -> None:
    """A veth between two ends, each in its namespace under its final name from the start."""
    host.links.create_veth(
        VethEnd(a.name, netns_fd=a.namespace.fd, mac=a.mac, mtu=mtu),
        VethEnd(b.name, netns_fd=b.namespace.fd, mac=b.mac, mtu=mtu),
    )
    a.finish()
    b.finish()


def half_join(host: Namespace, a: End, b: End, mtu: int, holder: Namespace) -> str:
    """A veth whose end ``b`` waits in ``holder`` for its node; the name it has there."""
    waiting = f"w{secrets.token_hex(6)}"
    host.links.create_veth(
        VethEnd(a.name, netns_fd=a.namespace.fd, mac=a.mac, mtu=mtu),
        VethEnd(waiting, netns_fd=holder.fd, mac=b.mac, mtu=mtu),
    )
    a.finish()
    return waiting


def complete(holder: Namespace, waiting: str, b: End) -> None:
    """Bring the waiting end to its node."""
    holder.links.move(waiting, b.namespace.fd, new_name=b.name)
    b.finish()


def dummy(host: Namespace, end: End, mtu: int, holder: Namespace) -> bool:
    """An interface that leads nowhere. False where the kernel has no ``dummy`` driver and a veth stands in."""
    target = VethEnd(end.name, netns_fd=end.namespace.fd, mac=end.mac, mtu=mtu)
    native = True
    try:
        host.create(f"create dummy {end.name}", "dummy", target)
    except KernelError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        native = False
        other = f"w{secrets.token_hex(6)}"
        host.links.create_veth(target, VethEnd(other, netns_fd=holder.fd, mtu=mtu))
        holder.links.set_up(other)
    end.finish()
    return native


def macvlan(host: Namespace, end: End, link: Link) -> None:
    """A macvlan in a node over an interface of the host; MTU as there. Raises KernelError."""
    assert link.b is not None
    parent = host.links.get_link(link.b.interface)
    if parent is None:
        raise KernelError(f"{link.b.interface}: no such interface on the host", code=errno.ENODEV)
    host.create(
        f"create macvlan {end.name} on {link.b.interface}",
        "macvlan",
        VethEnd(end.name, netns_fd=end.namespace.fd, mac=end.mac),
        data=netlink.attribute_u32(1, _MACVLAN_MODES[link.mode]),
        attributes=netlink.attribute_u32(5, parent.index),
    )
    end.finish()


def vxlan(host: Namespace, end: End, link: Link) -> None:
    """A VXLAN interface in ``end``'s namespace whose outer packets leave through the host. Raises KernelError."""
    remote = ipaddress.ip_address(link.remote)
    parent = host.links.get_link(link.parent or _way_out(host, link))
    if parent is None:
        raise KernelError(f"VXLAN to {link.remote}: no interface {link.parent!r} on the host", code=errno.ENODEV)
    data = netlink.attribute_u32(1, link.vni)
    data += netlink.attribute(2 if remote.version == 4 else 16, remote.packed)
    data += netlink.attribute_u32(3, parent.index)
    data += netlink.attribute(15, struct.pack("!H", link.dst_port))
    data += netlink.attribute(7, b"\1")
    if link.src_port:
        data += netlink.attribute(10, struct.pack("!HH", link.src_port, link.src_port))
    mtu = link.mtu or parent.mtu - (50 if remote.version == 4 else 70)
    target = VethEnd(end.name, netns_fd=end.namespace.fd, mac=end.mac, mtu=mtu)
    host.create(f"create vxlan {end.name}", "vxlan", target, data=data)
    end.finish()


def _way_out(host: Namespace, link: Link) -> str:
    route = host.routes.lookup(ipaddress.ip_address(link.remote))
    return route.next_hops[0].interface if route.next_hops else ""


def stitch(host: Namespace, left: str, right: str) -> None:
    """Join two interfaces of the host so that each frame from one leaves by the other (tc mirroring both ways)."""
    from calipy.kernel import process  # noqa: PLC0415 -- rare

    for source, target in ((left, right), (right, left)):
        match = ("protocol", "all", "u32", "match", "u32", "0", "0")
        redirect = ("action", "mirred", "egress", "redirect", "dev", target)
        process.run(("tc", "qdisc", "add", "dev", source, "ingress"), netns_fd=host.fd).check()
        process.run(
            ("tc", "filter", "add", "dev", source, "parent", "ffff:", *match, *redirect), netns_fd=host.fd
        ).check()
