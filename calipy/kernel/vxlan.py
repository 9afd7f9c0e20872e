"""VXLAN devices and their forwarding tables (FDB) in one network namespace.

Two tables send a packet through such a device: the neighbour table says which inner MAC a tunnel address has
(``links.Neighbour``), the FDB which outer address a MAC is behind.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from calipy.errors import KernelError
from calipy.kernel import netlink
from calipy.kernel.links import RTM_NEWLINK, decode_link, format_mac, parse_mac
from calipy.kernel.netlink import NetlinkSocket
from calipy.net import IPAddress

_RTM_GETLINK: Final = 18
_RTM_NEWNEIGH: Final = 28
_RTM_DELNEIGH: Final = 29
_RTM_GETNEIGH: Final = 30

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2

_ID: Final = 1
_LINK: Final = 3
_LOCAL: Final = 4
_LEARNING: Final = 7
_PORT: Final = 15
_LOCAL6: Final = 17

_AF_BRIDGE: Final = 7
_NUD_PERMANENT: Final = 0x80
_NTF_SELF: Final = 0x02
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_IFINDEX: Final = 8

_IFINFOMSG: Final = struct.Struct("=BxHiII")
_NDMSG: Final = struct.Struct("=BxxxiHBB")


@dataclass(frozen=True, slots=True)
class VXLAN:
    """What cannot be changed in a VXLAN device without making it anew.

    Attributes:
        vni: 24 bits.
        port: UDP, of the other ends.
        parent: index of the interface that encapsulated packets leave by, 0 to let the routes tell.
        local: their source address; None lets the kernel choose.
        mac: of the device.
        learning: whether the FDB learns from what comes in.
    """

    vni: int
    port: int
    parent: int
    local: IPAddress | None
    mac: str
    learning: bool = False


@dataclass(frozen=True, slots=True)
class FDBEntry:
    """The other end that a MAC is behind. ``permanent``: written by somebody, not learned."""

    mac: str
    address: IPAddress
    permanent: bool = True


class VXLANs:
    """Reads and writes VXLAN devices. Methods raise ``KernelError``."""

    def __init__(self, socket_: NetlinkSocket) -> None:
        """Work through ``socket_``, which the caller closes."""
        self._netlink = socket_

    def get(self, name: str) -> VXLAN | None:
        """The device of that name; None if there is none, or it is of another kind."""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.text(_IFLA_IFNAME, name)
        try:
            reply = self._netlink.get(f"read interface {name}", netlink.message(_RTM_GETLINK, 0, body))
        except KernelError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        link = decode_link(reply)
        info = netlink.attributes(netlink.attributes(reply, _IFINFOMSG.size).get(_IFLA_LINKINFO, b""))
        if link.kind != "vxlan":
            return None
        data = netlink.attributes(info.get(_IFLA_INFO_DATA, b""))
        local = data.get(_LOCAL) or data.get(_LOCAL6)
        return VXLAN(
            vni=_number(data.get(_ID)),
            port=int.from_bytes(data.get(_PORT, b"\0\0"), "big"),
            parent=_number(data.get(_LINK)),
            local=ipaddress.ip_address(local) if local else None,
            mac=link.mac,
            learning=data.get(_LEARNING, b"\0") != b"\0",
        )

    def create(self, name: str, device: VXLAN, *, mtu: int) -> None:
        """Create a device, down. EEXIST: the name, or this VNI and port, is taken; EOPNOTSUPP: no such driver."""
        data = [
            netlink.attribute_u32(_ID, device.vni),
            netlink.attribute_u32(_LINK, device.parent),
            netlink.attribute(_LEARNING, bytes([device.learning])),
            netlink.attribute(_PORT, device.port.to_bytes(2, "big")),
        ]
        if device.local is not None:
            data.append(netlink.attribute(_LOCAL if device.local.version == 4 else _LOCAL6, device.local.packed))
        info = netlink.nested(
            _IFLA_LINKINFO, netlink.text(_IFLA_INFO_KIND, "vxlan"), netlink.nested(_IFLA_INFO_DATA, *data)
        )
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.text(_IFLA_IFNAME, name)
        body += netlink.attribute(_IFLA_ADDRESS, parse_mac(device.mac)) + netlink.attribute_u32(_IFLA_MTU, mtu)
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        self._netlink.execute(f"create VXLAN device {name}", netlink.message(RTM_NEWLINK, flags, body + info))

    def list_fdb(self, name: str) -> list[FDBEntry]:
        """The entries of a device that name another end. O(entries)."""
        index = self._netlink.index_of(name)
        body = _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0) + netlink.attribute_u32(_NDA_IFINDEX, index)
        found = []
        for data in self._netlink.dump(f"list FDB of {name}", netlink.message(_RTM_GETNEIGH, 0, body)):
            _family, entry_index, state, _flags, _kind = _NDMSG.unpack_from(data)
            attributes = netlink.attributes(data, _NDMSG.size)
            if entry_index == index and _NDA_DST in attributes and _NDA_LLADDR in attributes:
                address = ipaddress.ip_address(attributes[_NDA_DST])
                mac = format_mac(attributes[_NDA_LLADDR])
                found.append(FDBEntry(mac, address, permanent=bool(state & _NUD_PERMANENT)))
        return found

    def set_fdb(self, name: str, entries: Sequence[FDBEntry]) -> list[int]:
        """Write entries in bulk, replacing those of the same MAC. For each its errno, 0 = done."""
        index = self._netlink.index_of(name)
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
        return self._netlink.request([netlink.message(_RTM_NEWNEIGH, flags, _fdb(index, entry)) for entry in entries])

    def delete_fdb(self, name: str, entries: Sequence[FDBEntry]) -> list[int]:
        """Remove entries in bulk. For each its errno; ENOENT: it was not there."""
        index = self._netlink.index_of(name)
        return self._netlink.request([netlink.message(_RTM_DELNEIGH, 0, _fdb(index, entry)) for entry in entries])


def _fdb(index: int, entry: FDBEntry) -> bytes:
    body = _NDMSG.pack(_AF_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0)
    body += netlink.attribute(_NDA_LLADDR, parse_mac(entry.mac))
    return body + netlink.attribute(_NDA_DST, entry.address.packed)


def _number(data: bytes | None) -> int:
    return int(struct.unpack("=I", data)[0]) if data else 0
