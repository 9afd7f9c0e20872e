"""Edge: what start-up needs to know of this machine."""

from __future__ import annotations

import socket
from pathlib import Path

from calipy.kernel.links import Links
from calipy.kernel.netlink import NetlinkSocket
from calipy.net import Family
from calipy.node.autodetect import HostInterface
from calipy.node.startup import Host


def read() -> Host:
    """The host's interfaces and addresses as they are now. Blocks for about a millisecond."""
    with NetlinkSocket() as sock:
        links = Links(sock)
        addresses = links.list_addresses()
        interfaces = [
            HostInterface(
                link.name, link.index, link.up, tuple(a.address for a in addresses if a.interface == link.name)
            )
            for link in links.list_links()
        ]
    return Host(tuple(interfaces), source_towards, ipv6=Path("/proc/sys/net/ipv6").is_dir())


def source_towards(target: str, family: Family) -> str | None:
    """The local address that the kernel uses towards a host or address; sends nothing. None if there is no route."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    try:
        for _, _, _, _, address in socket.getaddrinfo(target, 80, kind, socket.SOCK_DGRAM):
            with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.connect(address)
                return str(sock.getsockname()[0])
    except OSError:
        pass
    return None
