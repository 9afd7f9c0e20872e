"""Tunnel devices, what they know of the other nodes, and the file that tells the CNI plugin the pods' MTU.

Everything is read back and put right when something happens to a link or an address, and every ten seconds where there
are tunnels. A device is made anew only if it differs in what cannot be changed (VNI, port, parent, local address, MAC,
learning), so that one of an earlier agent, or of the real Felix, is taken over as it is.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from calipy import log
from calipy.errors import KernelError
from calipy.felix import tunnels
from calipy.felix.config import FelixConfig
from calipy.felix.delta import Difference
from calipy.felix.messages import VTEP, VTEPID, Encapsulation, Host
from calipy.felix.mtu import MTUs, mtus
from calipy.felix.ownership import IPIP_DEVICE, TUNNEL_DEVICES, VXLAN_DEVICES, is_workload_interface
from calipy.kernel.links import Link, LinkAddress, Links, Neighbour
from calipy.kernel.monitor import AddressEvent, LinkEvent
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.vxlan import VXLAN, FDBEntry, VXLANs
from calipy.net import Family

_logger = log.get("felix.tunnels")

_CHECK: Final = 10.0
_SOON: Final = 1.0
_MTU_POLL: Final = 30.0
_FAMILIES: Final[tuple[Family, Family]] = (4, 6)
_IPV6_LEAST_MTU: Final = 1280
_LOOPBACK: Final = "lo"
_NUD_PERMANENT: Final = 0x80
_SCOPE_LINK: Final = 253
_NO_DRIVER: Final = frozenset({errno.EOPNOTSUPP, errno.ENODEV})


class Tunnels:
    """In the process's network namespace. Calls do not overlap; each blocks for some netlink exchanges.

    Attributes:
        nics: interfaces with this node's addresses, by family, as of the last ``write``; empty while nobody needs them.
        devices_changed: the last ``write`` has made or removed a device: the kernel has dropped its routes.
        problems: what the kernel refused; tried again with the next ``write``.
        warnings: why tunnels that the pools ask for cannot be.
    """

    def __init__(self, config: FelixConfig, mtu_file: Path | None) -> None:
        """Open a netlink socket; nothing is read or written yet.

        Args:
            config: parameters.
            mtu_file: what to write the pods' MTU into, None for nowhere.
        """
        self.nics: Mapping[Family, str] = {}
        self.devices_changed = False
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._config = config
        self._mtu_file = mtu_file
        self._socket = NetlinkSocket()
        self._links = Links(self._socket)
        self._vxlans = VXLANs(self._socket)
        self._vteps: dict[VTEPID, VTEP] = {}
        self._own: Host | None = None
        self._placed: dict[str, VXLAN] = {}
        self._entries: dict[str, tunnels.Entries] = {}
        self._due = float("-inf")

    def close(self) -> None:
        """Close the socket; nothing in the kernel changes."""
        self._socket.close()

    def reconfigure(self, config: FelixConfig) -> None:
        """Take over new parameters. Devices that are no longer wanted go at once: before the rules that guard them."""
        self._config = config
        for family, name in VXLAN_DEVICES.items():
            if name in self._placed and not self._wants_vxlan(family):
                with contextlib.suppress(KernelError):  # ``write`` tries again, and tells
                    self._links.delete_link(name)
        self.resync()

    def update(self, hosts: Mapping[str, Host | None], vteps: Mapping[VTEPID, VTEP | None]) -> None:
        """Take in what the graph says; effective with the next ``write``."""
        for host in hosts.values():
            if host is not None and host.local:
                self._own = host
                self.resync()
        for identity, vtep in vteps.items():
            if vtep is None:
                self._vteps.pop(identity, None)
            else:
                self._vteps[identity] = vtep
            self._entries.clear()
            self.resync()

    def on_event(self, event: LinkEvent | AddressEvent, now: float) -> bool:
        """Note what happened to a link or address; True if it calls for ``write``."""
        if isinstance(event, LinkEvent):
            concerns = event.name in TUNNEL_DEVICES or bool(self._config.mtu_interfaces.search(event.name))
        else:
            prefixes = self._config.interface_prefixes
            concerns = self._active and not is_workload_interface(event.address.interface, prefixes)
        if concerns:
            self._due = min(now, self._due)
        return concerns

    def resync(self) -> None:
        """Have the next ``write`` read everything."""
        self._due = float("-inf")

    def next_deadline(self) -> float:
        """When ``write`` has something to do without being told."""
        return self._due

    def write(self, now: float) -> list[Difference]:
        """Bring devices, entries and the MTU file in line if something has happened or it is time to look again.

        Returns:
            Drift: what somebody else has changed. What could not be done is in ``problems``.
        """
        self.devices_changed = False
        if self._due > now:
            return []
        warned, self.problems, self.warnings = self.warnings, [], []
        drift: list[Difference] = []
        try:
            drift = self._write()
        except KernelError as error:
            self.problems.append(str(error))
        self._due = now + (_SOON if self.problems else _CHECK if self._active else _MTU_POLL)
        for warning in self.warnings:
            if warning not in warned:
                _logger.warning(warning)
        return drift

    def _write(self) -> list[Difference]:
        links = {link.name: link for link in self._links.list_links()}
        addresses = self._links.list_addresses() if self._active else []
        sizes = mtus(self._config, links.values())
        self._tell_mtu(sizes.pod)
        self.nics = self._find_nics(addresses, links)
        drift: list[Difference] = []
        for family in _FAMILIES:
            try:
                drift += self._settle_vxlan(family, links, sizes)
            except KernelError as error:
                self.problems.append(str(error))
        try:
            self._settle_ipip(links.get(IPIP_DEVICE), sizes)
        except KernelError as error:
            self.problems.append(str(error))
        return drift

    @property
    def _active(self) -> bool:
        """Whether the node's own interfaces matter: there are tunnels, or routes of ours past them."""
        return self._config.encapsulation != Encapsulation() or "none" in self._config.cluster_routes

    def _find_nics(self, addresses: Iterable[LinkAddress], links: Mapping[str, Link]) -> Mapping[Family, str]:
        """An address that is gone for a moment (a lease renewed, a bond being made) leaves things as they were."""
        if not self._active or self._own is None:
            return {}
        own: dict[Family, str] = {4: self._own.ipv4, 6: self._own.ipv6}
        found = {family: nic for family, nic in self.nics.items() if nic in links and own[family]}
        for entry in addresses:
            family: Family = 4 if entry.address.version == 4 else 6
            if str(entry.address.ip) == own[family] and entry.interface not in TUNNEL_DEVICES:
                found[family] = entry.interface
        return found

    # --- VXLAN

    def _wants_vxlan(self, family: Family) -> bool:
        uses = self._config.encapsulation
        return uses.vxlan if family == 4 else uses.vxlan6

    def _settle_vxlan(self, family: Family, links: Mapping[str, Link], sizes: MTUs) -> list[Difference]:
        name = VXLAN_DEVICES[family]
        if not self._wants_vxlan(family):
            self._placed.pop(name, None)
            if name in links:
                self._links.delete_link(name)
                self.devices_changed = True
                _logger.info("tunnel device removed", device=name)
            return []
        own = next((vtep for (_, of), vtep in self._vteps.items() if of == family and vtep.local), None)
        if own is None:
            self.warnings.append(f"no {name}: the Node has no address, or no VXLAN tunnel address, of IPv{family} yet")
            return []
        nic = self.nics.get(family)
        if nic is None:
            self.warnings.append(f"no {name}: no interface has the node's address {own.parent}")
            return []
        mtu = sizes.vxlan if family == 4 else sizes.vxlan6
        if family == 6 and mtu < _IPV6_LEAST_MTU:
            self.warnings.append(f"no {name}: its MTU would be {mtu}, and IPv6 needs {_IPV6_LEAST_MTU}")
            return []
        local = ipaddress.ip_address(own.parent)
        # With an address of the node as a whole the routes tell where packets leave, by several links perhaps.
        parent = 0 if nic == _LOOPBACK else links[nic].index
        wanted = VXLAN(self._config.vxlan_vni, self._config.vxlan_port, parent, local, own.mac)
        drift = self._make_vxlan(name, wanted, links.get(name), mtu)
        self._give_address(name, family, own.address)
        self._links.set_up(name)
        known = self._placed.get(name) == wanted
        drift += self._write_entries(name, family, known=known and not self.devices_changed)
        self._placed[name] = wanted
        return drift

    def _make_vxlan(self, name: str, wanted: VXLAN, link: Link | None, mtu: int) -> list[Difference]:
        found = self._vxlans.get(name) if link is not None else None
        drift: list[Difference] = []
        if found != wanted:
            if self._placed.get(name) == wanted:
                drift = [Difference("interface", name, str(wanted), str(found) if found else "absent or another kind")]
            if link is not None:
                self._links.delete_link(name)
            self.devices_changed = True
            self._vxlans.create(name, wanted, mtu=mtu)
            _logger.info("tunnel device made", device=name, local=str(wanted.local), mtu=mtu)
        elif link is not None and link.mtu != mtu:
            self._links.set_mtu(name, mtu)
        if found == wanted and link is not None and not link.up and self._placed.get(name) == wanted:
            drift = [Difference("interface", name, "up", "down")]
        return drift

    def _give_address(self, name: str, family: Family, address: str) -> None:
        """Make it the only address of the device, but for the kernel's own link-local one."""
        wanted = ipaddress.ip_interface(address)
        present = self._links.list_addresses(family=family, interface=name)
        for entry in present:
            if entry.address != wanted and entry.scope != _SCOPE_LINK:
                self._links.delete_address(name, entry.address)
        if all(entry.address != wanted for entry in present):
            self._links.add_address(name, wanted, dad=False)

    def _write_entries(self, name: str, family: Family, *, known: bool) -> list[Difference]:
        """``known``: the device is what it was, so that differences not asked for are somebody else's doing."""
        desired = self._entries.get(name) or tunnels.entries(self._vteps, family, name)
        neighbours = [entry for entry in self._links.list_neighbours(interface=name) if entry.state == _NUD_PERMANENT]
        own_family = frozenset(entry for entry in neighbours if entry.address.version == family)
        fdb = frozenset(self._vxlans.list_fdb(name))
        work = tunnels.difference(desired, tunnels.Entries(own_family, fdb))
        self._note(work.set_neighbours, self._links.set_neighbours(work.set_neighbours))
        self._note(work.set_fdb, self._vxlans.set_fdb(name, work.set_fdb))
        self._note(work.delete_fdb, self._vxlans.delete_fdb(name, work.delete_fdb))
        self._note(work.delete_neighbours, self._links.delete_neighbours(work.delete_neighbours))
        asked = self._entries.get(name) is not desired
        self._entries[name] = desired
        if asked or not known:
            return []
        missing = [
            Difference("neighbour", f"{name} {e.address}", e.mac, "absent or different") for e in work.set_neighbours
        ]
        return missing + [
            Difference("fdb", f"{name} {e.mac}", str(e.address), "absent or different") for e in work.set_fdb
        ]

    def _note(self, entries: Iterable[Neighbour | FDBEntry], codes: Iterable[int]) -> None:
        for entry, code in zip(entries, codes, strict=True):
            if code not in (0, errno.ENOENT):
                self.problems.append(f"{entry}: {errno.errorcode.get(code, code)}")

    # --- IPIP

    def _settle_ipip(self, link: Link | None, sizes: MTUs) -> None:
        """The driver's own device stays when the pools no longer ask for it; its address goes."""
        if not self._config.encapsulation.ipip:
            if link is not None and link.kind == "ipip":
                for entry in self._links.list_addresses(family=4, interface=IPIP_DEVICE):
                    self._links.delete_address(IPIP_DEVICE, entry.address)
            return
        if not self._config.ipip_tunnel_address:
            self.warnings.append(f"no {IPIP_DEVICE}: the Node has no IPIP tunnel address yet")
            return
        if link is None:
            try:
                self._links.create_ipip(IPIP_DEVICE)
            except KernelError as error:
                if error.code not in _NO_DRIVER:
                    raise
                self.warnings.append(
                    "this kernel has no IPIP driver (ipip): no way to IPIP pools' nodes on other subnets"
                )
                return
            self.devices_changed = True
        if link is None or link.mtu != sizes.ipip:
            self._links.set_mtu(IPIP_DEVICE, sizes.ipip)
        self._give_address(IPIP_DEVICE, 4, self._config.ipip_tunnel_address)
        self._links.set_up(IPIP_DEVICE)

    # --- MTU

    def _tell_mtu(self, mtu: int) -> None:
        if self._mtu_file is None:
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                if self._mtu_file.read_text() == str(mtu):
                    return
            self._mtu_file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._mtu_file.with_name(f".{self._mtu_file.name}.{os.getpid()}")
            fresh.write_text(str(mtu))
            fresh.chmod(0o644)
            fresh.rename(self._mtu_file)
        except OSError as error:
            told = f"cannot tell the pods' MTU in {self._mtu_file}: {error.strerror}"
            (self.problems if self._config.require_mtu_file else self.warnings).append(told)
