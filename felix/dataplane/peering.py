"""The node's addresses towards pods that are its BGP peers, on the host's ends of their interfaces.

As Felix has it (``felix/linkaddrs``): one address a family, /32 or /128, the same on every interface. Any other of that
form on a workload interface is ours, too (``felix.ownership``), left from an earlier configuration or agent, and goes.
"""

from __future__ import annotations

import errno
import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from calipy import log
from calipy.errors import KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.delta import Difference
from calipy.felix.messages import WorkloadEndpoint
from calipy.felix.ownership import is_workload_interface, owns_address
from calipy.kernel.links import LinkAddress, Links
from calipy.kernel.monitor import AddressEvent, LinkEvent
from calipy.kernel.netlink import NetlinkSocket
from calipy.net import IPInterface

_logger = log.get("felix.peering")

_GONE: Final = frozenset({errno.ENODEV, errno.ENETDOWN})
"""Errors of an interface that vanished meanwhile: its event is on the way."""
_FAMILIES: Final[Mapping[int, str]] = {4: "localWorkloadPeeringIPV4", 6: "localWorkloadPeeringIPV6"}


class PeeringAddresses:
    """Those of the process's network namespace. Calls do not overlap, and block for microseconds an interface.

    Attributes:
        problems: what the kernel refused, by interface.
        bared: interfaces from which an IPv4 address was taken. With the last one the kernel has dropped, without a
            word, their IPv4 routes and neighbours.
    """

    def __init__(self, config: FelixConfig) -> None:
        """Open a netlink socket; nothing is read or written yet."""
        self.problems: dict[str, str] = {}
        self.bared: set[str] = set()
        self._config = config
        self._socket = NetlinkSocket()
        self._links = Links(self._socket)
        self._wanted: dict[str, frozenset[IPInterface]] = {}
        self._lacking: dict[str, str] = {}
        self._dirty: set[str] = set()
        self._written: set[str] = set()  # interfaces that had what they should when last looked at
        self._stale = True

    def close(self) -> None:
        """Close the socket; nothing in the kernel changes."""
        self._socket.close()

    def reconfigure(self, config: FelixConfig) -> None:
        """Take over new parameters."""
        self._config = config
        self._stale = True

    def set_endpoint(self, interface: str, endpoint: WorkloadEndpoint | None) -> None:
        """The endpoint that has the interface now, None for none."""
        peer = endpoint.bgp_peer if endpoint is not None else None
        wanted = frozenset(map(ipaddress.ip_interface, peer.addresses)) if peer else frozenset()
        if self._wanted.get(interface, frozenset()) != wanted:
            self._touch(interface)
            if wanted:
                self._wanted[interface] = wanted
            else:
                del self._wanted[interface]
        self._lacking.pop(interface, None)
        if endpoint is not None and peer is not None:
            families = {6 if ":" in net else 4 for net in endpoint.nets} - {one.version for one in wanted}
            fields = " and ".join(_FAMILIES[family] for family in sorted(families))
            if fields:
                pod = endpoint.id.workload
                self._lacking[interface] = (
                    f"BGPPeer({peer.name}) selects {pod}: give BGPConfiguration(default) {fields}"
                )

    def on_event(self, event: LinkEvent | AddressEvent) -> bool:
        """Note an event; True if it calls for ``write``."""
        name = event.name if isinstance(event, LinkEvent) else event.address.interface
        if isinstance(event, LinkEvent):
            # The kernel takes the IPv6 addresses away from an interface that goes down.
            concerned = name in self._wanted and event.up and name not in self._written
            if not event.up:
                self._written.discard(name)
        else:
            known = self._wanted.get(name, frozenset())
            ours = self._owns(event.address)
            concerned = ours and (event.address.address in known) == event.gone
        if concerned:
            self._dirty.add(name)
        return concerned

    def resync(self) -> None:
        """Have the next ``write`` look at all interfaces. O(addresses)."""
        self._stale = True

    @property
    def warnings(self) -> list[str]:
        """BGPPeers that select pods for which there is no address."""
        return sorted(set(self._lacking.values()))

    def write(self) -> list[Difference]:
        """Bring addresses in line. Cost follows what is dirty.

        Returns:
            Drift: what was found different although nobody had asked for a change.

        Raises:
            KernelError: addresses cannot be read. Single refusals are in ``problems``.
        """
        self.bared = set()
        if not (self._stale or self._dirty):
            return []
        found: defaultdict[str, set[IPInterface]] = defaultdict(set)
        many = self._stale
        for name in () if many else self._dirty:
            try:
                found[name] = {one.address for one in self._ours(self._links.list_addresses(interface=name))}
            except KernelError:
                self.problems.pop(name, None)  # the interface is gone; an event tells when it comes
        if many:
            for one in self._ours(self._links.list_addresses()):
                found[one.interface].add(one.address)
            present = {link.name for link in self._links.list_links()}
            found.update({name: set() for name in self._wanted.keys() & present - found.keys()})
        self._stale, self._dirty = False, set()
        drift: list[Difference] = []
        for name, addresses in found.items():
            drift += self._bring(name, addresses)
        return drift

    def _touch(self, interface: str) -> None:
        self._dirty.add(interface)
        self._written.discard(interface)

    def _owns(self, address: LinkAddress) -> bool:
        prefixes = self._config.interface_prefixes
        return is_workload_interface(address.interface, prefixes) and owns_address(address.address, address.scope)

    def _ours(self, addresses: Iterable[LinkAddress]) -> list[LinkAddress]:
        return [one for one in addresses if self._owns(one)]

    def _bring(self, name: str, found: set[IPInterface]) -> list[Difference]:
        wanted = self._wanted.get(name, frozenset())
        settled = name in self._written
        self.problems.pop(name, None)
        try:
            for address in wanted - found:
                self._links.add_address(name, address, dad=False, on_link=True)
            for address in found - wanted:
                self._links.delete_address(name, address)
                if address.version == 4:
                    self.bared.add(name)
        except KernelError as error:
            if error.code in _GONE:
                return []
            self.problems[name] = str(error)
            self._touch(name)
            _logger.warning("cannot write an address", interface=name, error=str(error))
            return []
        if wanted:
            self._written.add(name)
        if not settled or found == wanted:
            return []
        return [Difference("address", name, _shown(wanted), _shown(found))]


def _shown(addresses: Iterable[IPInterface]) -> str:
    return ", ".join(sorted(map(str, addresses))) or "none"
