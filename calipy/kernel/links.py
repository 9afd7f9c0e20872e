"""Links, veth pairs, bridges, addresses and neighbours of one network namespace.

Through our own netlink socket rather than pyroute2: one message creates a veth pair with both ends already in their
namespaces under their final names, and nothing here forks, starts a loop or leaks (``docs/decisions`` has figures).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from typing import Final

from calipy.errors import InvalidInputError, KernelError
from calipy.kernel import netlink
from calipy.kernel.netlink import NetlinkSocket
from calipy.net import Family, IPAddress, IPInterface

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_RTM_NEWNEIGH: Final = 28
_RTM_DELNEIGH: Final = 29
_RTM_GETNEIGH: Final = 30
_RTM_NEWLINKPROP: Final = 108

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_OPERSTATE: Final = 16
_IFLA_LINKINFO: Final = 18
_IFLA_GROUP: Final = 27
_IFLA_NET_NS_FD: Final = 28
_IFLA_EXT_MASK: Final = 29
_IFLA_LINK_NETNSID: Final = 37
_IFLA_PROP_LIST: Final = 52
_IFLA_ALT_IFNAME: Final = 53
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_VETH_INFO_PEER: Final = 1
_RTEXT_FILTER_SKIP_STATS: Final = 8

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_BROADCAST: Final = 4
_IFA_FLAGS: Final = 8
_IFA_F_NODAD: Final = 0x2
_IFA_F_NOPREFIXROUTE: Final = 0x200
_SCOPE_LINK: Final = 253

_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NUD_PERMANENT: Final = 0x80

_IFF_UP: Final = 0x1
_IFF_RUNNING: Final = 0x40

_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBi")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_U32: Final = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel shows it.

    Attributes:
        kind: driver kind (``veth``, ``bridge``, ``vlan``, …), "" for hardware and loopback.
        mac: lower case with colons, "" where there is none.
        up: set up by an administrator.
        running: up, and a carrier is there: it can pass packets.
        master: index of the bridge (or bond, VRF) it belongs to, else 0.
        peer_index: index of a veth's other end (in its own namespace) or of a VLAN's parent, else 0.
        peer_netns_id: the id of the other end's namespace when that is another one, else None.
        group: what ``ip link set group`` sets, 0 by default; does not count where links are compared.
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    running: bool = False
    master: int = 0
    peer_index: int = 0
    peer_netns_id: int | None = None
    alternative_names: tuple[str, ...] = ()
    group: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address of an interface. ``scope``: 0 global, 253 link, 254 host. ``flags``: IFA_F_ bits."""

    interface: str
    index: int
    address: IPInterface
    scope: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the ARP or ND table. ``state``: NUD_ bits, 0x80 permanent."""

    interface: str
    address: IPAddress
    mac: str
    state: int = _NUD_PERMANENT


@dataclass(frozen=True, slots=True)
class VethEnd:
    """What one end of a new veth pair is to be.

    Attributes:
        name: final name, at most 15 characters.
        netns_fd: namespace to appear in, or None for that of the socket.
        mac: "" lets the kernel choose.
        mtu: bytes, 0 for the kernel's default.
    """

    name: str
    netns_fd: int | None = None
    mac: str = ""
    mtu: int = 0


class Links:
    """Reads and changes the interfaces of the namespace of a ``NetlinkSocket``.

    All methods raise ``KernelError``: ENODEV no such interface, EEXIST the name is taken, EPERM not root.
    """

    def __init__(self, socket_: NetlinkSocket) -> None:
        """Work through ``socket_``, which the caller closes."""
        self._netlink = socket_

    # --- links

    def list_links(self) -> list[Link]:
        """All interfaces, by index. Cost: O(interfaces)."""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.attribute_u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
        bodies = self._netlink.dump("list interfaces", netlink.message(_RTM_GETLINK, 0, body))
        return sorted((decode_link(body) for body in bodies), key=lambda link: link.index)

    def get_link(self, name: str) -> Link | None:
        """The interface of that name (or alternative name), or None."""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.attribute_u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
        body += netlink.text(_IFLA_IFNAME if len(name) < 16 else _IFLA_ALT_IFNAME, name)
        try:
            reply = self._netlink.get(f"read interface {name}", netlink.message(_RTM_GETLINK, 0, body))
        except KernelError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        return decode_link(reply)

    def create_veth(self, end: VethEnd, peer: VethEnd) -> None:
        """Create a veth pair, each end in its own namespace from the start: one message, all or nothing.

        Both ends are down: the kernel cannot bring one up before the other exists. Blocks for 0.1 to some ms.
        """
        data = netlink.nested(_IFLA_INFO_DATA, netlink.attribute(_VETH_INFO_PEER, _veth_end(peer)))
        info = netlink.nested(_IFLA_LINKINFO, netlink.text(_IFLA_INFO_KIND, "veth"), data)
        self._create(f"create veth {end.name} and {peer.name}", _veth_end(end) + info)

    def create_ipip(self, name: str) -> None:
        """Create an IPIP tunnel device, which loads the driver. EOPNOTSUPP: the kernel has none.

        The first device of a namespace, ``tunl0``, comes with the driver itself: it being there is success.
        """
        info = netlink.nested(_IFLA_LINKINFO, netlink.text(_IFLA_INFO_KIND, "ipip"))
        try:
            self._create(f"create IPIP device {name}", _veth_end(VethEnd(name)) + info)
        except KernelError as error:
            if error.code != errno.EEXIST or self.get_link(name) is None:
                raise

    def create_bridge(self, name: str, *, mtu: int = 0, mac: str = "") -> None:
        """Create a bridge, down and empty."""
        info = netlink.nested(_IFLA_LINKINFO, netlink.text(_IFLA_INFO_KIND, "bridge"))
        self._create(f"create bridge {name}", _veth_end(VethEnd(name, mac=mac, mtu=mtu)) + info)

    def delete_link(self, name: str) -> bool:
        """Delete an interface; a veth takes its other end along. False if there was none."""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.text(_IFLA_IFNAME, _name(name))
        try:
            self._netlink.execute(f"delete interface {name}", netlink.message(RTM_DELLINK, 0, body))
        except KernelError as error:
            if error.code == errno.ENODEV:
                return False
            raise
        return True

    def set_up(self, name: str) -> None:
        """Bring an interface up."""
        self._change(name, "set up", flags=_IFF_UP)

    def set_down(self, name: str) -> None:
        """Take an interface down; the kernel drops its routes."""
        self._change(name, "set down", mask=_IFF_UP)

    def set_mac(self, name: str, mac: str) -> None:
        """Set the link-layer address."""
        self._change(name, f"set MAC {mac} of", netlink.attribute(_IFLA_ADDRESS, parse_mac(mac)))

    def set_mtu(self, name: str, mtu: int) -> None:
        """Set the MTU, in bytes."""
        self._change(name, f"set MTU {mtu} of", netlink.attribute_u32(_IFLA_MTU, mtu))

    def set_master(self, name: str, bridge: str | None) -> None:
        """Attach an interface to a bridge, or detach it (None)."""
        master = 0 if bridge is None else self._netlink.index_of(bridge)
        self._change(name, f"attach to {bridge}", netlink.attribute_u32(_IFLA_MASTER, master))

    def set_groups(self, groups: Mapping[int, int]) -> dict[int, int]:
        """Put interfaces, by index, into link groups, in bulk.

        Returns:
            Index → errno of those for which it failed.
        """
        messages = [
            netlink.message(
                RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0) + netlink.attribute_u32(_IFLA_GROUP, group)
            )
            for index, group in groups.items()
        ]
        codes = self._netlink.request(messages)
        return {index: code for index, code in zip(groups, codes, strict=True) if code}

    def move(self, name: str, netns_fd: int, *, new_name: str = "") -> None:
        """Move an interface into another namespace, where it is down and has no addresses."""
        attributes = netlink.attribute_u32(_IFLA_NET_NS_FD, netns_fd)
        if new_name:
            attributes += netlink.text(_IFLA_IFNAME, _name(new_name))
        self._change(name, "move to another namespace", attributes)

    def add_alternative_name(self, name: str, alternative: str) -> None:
        """Give an interface a further name, of up to 127 characters."""
        index = self._netlink.index_of(name)
        names = netlink.nested(_IFLA_PROP_LIST, netlink.text(_IFLA_ALT_IFNAME, alternative))
        body = _IFINFOMSG.pack(0, 0, index, 0, 0) + names
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        self._netlink.execute(f"name {name} also {alternative}", netlink.message(_RTM_NEWLINKPROP, flags, body))

    # --- addresses

    def list_addresses(self, *, family: Family | None = None, interface: str | None = None) -> list[LinkAddress]:
        """Addresses, in the kernel's order: by interface, the primary one of a subnet first. Cost: O(addresses)."""
        af = 0 if family is None else _family(family)
        index = 0 if interface is None else self._netlink.index_of(interface)
        body = _IFADDRMSG.pack(af, 0, 0, 0, index)
        bodies = self._netlink.dump("list addresses", netlink.message(_RTM_GETADDR, 0, body))
        names: dict[int, str] = {}
        found: list[LinkAddress] = []
        for data in bodies:
            number = address_index(data)
            if number not in names:
                names[number] = self._netlink.name_of(number)
            found.append(decode_address(data, names[number]))
        return found

    def add_address(self, interface: str, address: IPInterface, *, dad: bool = True, on_link: bool = False) -> None:
        """Give an interface an address; nothing happens if it has it.

        Args:
            interface: name.
            address: with prefix length.
            dad: for IPv6, probe for duplicates first, which takes 1-3 s until the address is usable.
            on_link: for this link only: IPv4 has scope link, so that nobody takes it for other destinations, and no
                route to its prefix is made. IPv6 knows no scope but what the address itself says.
        """
        self.add_addresses(interface, [address], dad=dad, on_link=on_link)

    def add_addresses(
        self, interface: str, addresses: Sequence[IPInterface], *, dad: bool = True, on_link: bool = False
    ) -> None:
        """As ``add_address``, for several in one system call."""
        index = self._netlink.index_of(interface)
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
        self._netlink.execute_all(
            f"add address to {interface}",
            [
                netlink.message(RTM_NEWADDR, flags, _address_body(index, address, dad=dad, on_link=on_link))
                for address in addresses
            ],
        )

    def delete_address(self, interface: str, address: IPInterface) -> bool:
        """Take an address away. False if it was not there."""
        body = _address_body(self._netlink.index_of(interface), address, dad=True)
        try:
            self._netlink.execute(f"delete address {address} of {interface}", netlink.message(RTM_DELADDR, 0, body))
        except KernelError as error:
            if error.code == errno.EADDRNOTAVAIL:
                return False
            raise
        return True

    # --- neighbours

    def list_neighbours(self, *, interface: str | None = None) -> list[Neighbour]:
        """ARP and ND entries."""
        index = 0 if interface is None else self._netlink.index_of(interface)
        body = _NDMSG.pack(0, 0, 0, 0, 0)
        if index:
            body += netlink.attribute_u32(8, index)
        bodies = self._netlink.dump("list neighbours", netlink.message(_RTM_GETNEIGH, 0, body))
        return [entry for body in bodies if (entry := self._neighbour(body))]

    def set_neighbours(self, neighbours: Sequence[Neighbour]) -> list[int]:
        """Write entries in bulk, replacing those of the same interface and address.

        Returns:
            For each its errno, 0 = done.
        """
        return self._write_neighbours(_RTM_NEWNEIGH, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE, neighbours)

    def delete_neighbours(self, neighbours: Sequence[Neighbour]) -> list[int]:
        """Remove entries in bulk. For each its errno; ENOENT: it was not there."""
        return self._write_neighbours(_RTM_DELNEIGH, 0, neighbours)

    # --- inside

    def _write_neighbours(self, kind: int, flags: int, neighbours: Sequence[Neighbour]) -> list[int]:
        codes: list[int] = []
        places: list[int] = []
        messages: list[bytes] = []
        for place, entry in enumerate(neighbours):
            codes.append(0)
            try:
                index = self._netlink.index_of(entry.interface)
            except KernelError as error:
                codes[place] = error.code
                continue
            body = _NDMSG.pack(_family(entry.address.version), index, entry.state, 0, 0)
            body += netlink.attribute(_NDA_DST, entry.address.packed)
            if entry.mac:
                body += netlink.attribute(_NDA_LLADDR, parse_mac(entry.mac))
            places.append(place)
            messages.append(netlink.message(kind, flags, body))
        for place, code in zip(places, self._netlink.request(messages), strict=True):
            codes[place] = code
        return codes

    def _create(self, doing: str, body: bytes) -> None:
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        self._netlink.execute(doing, netlink.message(RTM_NEWLINK, flags, body))

    def _change(self, name: str, doing: str, attributes: bytes = b"", *, flags: int = 0, mask: int = 0) -> None:
        index = self._netlink.index_of(name)
        body = _IFINFOMSG.pack(0, 0, index, flags, flags | mask) + attributes
        self._netlink.execute(f"{doing} interface {name}", netlink.message(RTM_NEWLINK, 0, body))

    def _neighbour(self, body: bytes) -> Neighbour | None:
        _family, index, state, _flags, _kind = _NDMSG.unpack_from(body)
        found = netlink.attributes(body, _NDMSG.size)
        if _NDA_DST not in found:
            return None
        mac = format_mac(found.get(_NDA_LLADDR, b""))
        return Neighbour(self._netlink.name_of(index), ipaddress.ip_address(found[_NDA_DST]), mac, state)


def decode_link(body: bytes) -> Link:
    """A NEWLINK or DELLINK message without its netlink header."""
    _family, _hardware, index, flags, _change = _IFINFOMSG.unpack_from(body)
    found = netlink.attributes(body, _IFINFOMSG.size)
    info = netlink.attributes(found.get(_IFLA_LINKINFO, b""))
    names = _repeated(found.get(_IFLA_PROP_LIST, b""), _IFLA_ALT_IFNAME)
    netns_id = found.get(_IFLA_LINK_NETNSID)
    return Link(
        index,
        _text(found.get(_IFLA_IFNAME, b"")),
        _text(info.get(_IFLA_INFO_KIND, b"")),
        format_mac(found.get(_IFLA_ADDRESS, b"")),
        _u32(found.get(_IFLA_MTU)),
        bool(flags & _IFF_UP),
        bool(flags & _IFF_UP and flags & _IFF_RUNNING),
        _u32(found.get(_IFLA_MASTER)),
        _u32(found.get(_IFLA_LINK)),
        None if netns_id is None else int(struct.unpack("=i", netns_id)[0]),
        tuple(_text(name) for name in names),
        _u32(found.get(_IFLA_GROUP)),
    )


def address_index(body: bytes) -> int:
    """Interface index in a NEWADDR or DELADDR message."""
    return int(_IFADDRMSG.unpack_from(body)[4])


def decode_address(body: bytes, interface: str) -> LinkAddress:
    """A NEWADDR or DELADDR message without its netlink header."""
    _family_number, bits, flags, scope, index = _IFADDRMSG.unpack_from(body)
    found = netlink.attributes(body, _IFADDRMSG.size)
    # On a point-to-point link IFA_ADDRESS is the other side; IFA_LOCAL, where present, is always ours.
    address = ipaddress.ip_address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
    full_flags = _u32(found[_IFA_FLAGS]) if _IFA_FLAGS in found else flags
    return LinkAddress(interface, index, ipaddress.ip_interface((address, bits)), scope, full_flags)


def parse_mac(mac: str) -> bytes:
    """``ee:ee:ee:ee:ee:ee`` as six bytes.

    Raises:
        InvalidInputError: something else.
    """
    parts = mac.split(":")
    try:
        packed = bytes(int(part, 16) for part in parts)
    except ValueError:
        packed = b""
    if len(packed) != 6 or any(len(part) != 2 for part in parts):
        raise InvalidInputError("not a MAC address", field="mac", value=mac, remedy="write it as aa:bb:cc:dd:ee:ff")
    return packed


def format_mac(packed: bytes) -> str:
    """The reverse of ``parse_mac``; "" for other link-layer addresses than six bytes."""
    return packed.hex(":") if len(packed) == 6 else ""


def _veth_end(end: VethEnd) -> bytes:
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + netlink.text(_IFLA_IFNAME, _name(end.name))
    if end.mtu:
        body += netlink.attribute_u32(_IFLA_MTU, end.mtu)
    if end.mac:
        body += netlink.attribute(_IFLA_ADDRESS, parse_mac(end.mac))
    if end.netns_fd is not None:
        body += netlink.attribute_u32(_IFLA_NET_NS_FD, end.netns_fd)
    return body


def _address_body(index: int, address: IPInterface, *, dad: bool, on_link: bool = False) -> bytes:
    flags = 0 if dad or address.version == 4 else _IFA_F_NODAD
    bits = address.network.prefixlen
    body = _IFADDRMSG.pack(_family(address.version), bits, flags, _SCOPE_LINK if on_link else 0, index)
    if on_link:
        body += netlink.attribute_u32(_IFA_FLAGS, flags | _IFA_F_NOPREFIXROUTE)
    body += netlink.attribute(_IFA_LOCAL, address.ip.packed) + netlink.attribute(_IFA_ADDRESS, address.ip.packed)
    if isinstance(address, IPv4Interface) and bits < 31:
        body += netlink.attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    return body


def _name(name: str) -> str:
    if not 0 < len(name.encode()) < 16 or name in {".", ".."} or any(char in "/: \t\n\0" for char in name):
        raise InvalidInputError(
            "not an interface name", field="interface", value=name, remedy="use 1 to 15 characters, no /, : or space"
        )
    return name


def _repeated(data: bytes, kind: int) -> list[bytes]:
    found: list[bytes] = []
    offset = 0
    while offset + 4 <= len(data):
        size, number = struct.unpack_from("=HH", data, offset)
        if size < 4:
            break
        if number == kind:
            found.append(data[offset + 4 : offset + size])
        offset += (size + 3) & ~3
    return found


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def _u32(data: bytes | None) -> int:
    return int(_U32.unpack(data)[0]) if data else 0
