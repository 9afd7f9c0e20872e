"""Host endpoints and the node's own interfaces: reads links and addresses, and says who governs what."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from calipy.felix import hosts
from calipy.felix.config import FelixConfig
from calipy.felix.messages import HostEndpoint
from calipy.felix.ownership import is_workload_interface
from calipy.kernel.links import Link, LinkAddress, Links
from calipy.kernel.monitor import AddressEvent, LinkEvent
from calipy.kernel.netlink import NetlinkSocket

_GRACE: Final = 0.1
"""Seconds for which a removed address still counts: renewing a lease may take it away and give it back."""


class HostEndpoints:
    """The host endpoints of this node, in the process's network namespace. Calls do not overlap.

    Attributes:
        interfaces: interface, or ``ANY_INTERFACE``, → the host endpoint that governs it, as of the last ``resolve``.
        addresses: of the node itself, bare, as of the last ``resolve``; {} unless they are asked for.
    """

    def __init__(self, config: FelixConfig) -> None:
        """Open a netlink socket; nothing is read yet."""
        self.interfaces: Mapping[str, HostEndpoint] = {}
        self.addresses: frozenset[str] = frozenset()
        self._asked = False
        self._config = config
        self._socket = NetlinkSocket()
        self._links = Links(self._socket)
        self._endpoints: dict[str, HostEndpoint] = {}
        self._addresses: dict[str, frozenset[str]] = {}
        self._up: frozenset[str] = frozenset()
        self._due: float | None = float("-inf")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def reconfigure(self, config: FelixConfig) -> None:
        """Take over new parameters."""
        self._config = config
        self.resync()

    def update(self, changes: Mapping[str, HostEndpoint | None]) -> None:
        """Take in what the graph says; effective with the next ``resolve``."""
        for name, endpoint in changes.items():
            if endpoint is None:
                self._endpoints.pop(name, None)
            else:
                self._endpoints[name] = endpoint
            self.resync()

    def ask_addresses(self, *, wanted: bool) -> None:
        """Whether ``addresses`` are to be kept up to date."""
        if wanted != self._asked:
            self._asked = wanted
            self.resync()

    @property
    def endpoints(self) -> Mapping[str, HostEndpoint]:
        """The host endpoints of this node by name; not to be changed."""
        return self._endpoints

    def on_event(self, event: LinkEvent | AddressEvent, now: float) -> bool:
        """Note what happened to a link or address; True if it calls for ``resolve``."""
        name = event.name if isinstance(event, LinkEvent) else event.address.interface
        if not (self._endpoints or self._asked) or is_workload_interface(name, self._config.interface_prefixes):
            return False
        due = now + _GRACE if isinstance(event, AddressEvent) and event.gone else now
        self._due = due if self._due is None else min(due, self._due)
        return True

    def resync(self) -> None:
        """Have the next ``resolve`` read links and addresses."""
        self._due = float("-inf")

    def next_deadline(self) -> float | None:
        """When ``resolve`` has something to do without any event."""
        return self._due

    async def resolve(self, now: float) -> bool:
        """Read what is needed and work out who governs what; True if ``interfaces`` is another one now.

        Nothing is read without a host endpoint, unless addresses are asked for.

        Raises:
            KernelError: links or addresses cannot be read.
        """
        if self._due is None or self._due > now:
            return False
        self._due = None
        if self._endpoints or self._asked:
            try:
                links, addresses = await asyncio.to_thread(self._read)
            except BaseException:
                self.resync()
                raise
            self._up = frozenset(link.name for link in links if link.running)
            self._addresses = self._by_interface(addresses)
        self.addresses = self._own_addresses() if self._asked else frozenset()
        old, self.interfaces = (
            self.interfaces,
            hosts.resolve(self._endpoints.values(), self._addresses, self._config.interface_prefixes),
        )
        return self.interfaces != old

    def names(self) -> tuple[str, ...]:
        """The host endpoints of this node."""
        return tuple(self._endpoints)

    def problem(self, name: str) -> str:
        """Why a host endpoint is not in force; "" if it is."""
        return hosts.problem(self._endpoints[name], self.interfaces, self._up, self._config.interface_prefixes)

    @property
    def warnings(self) -> list[str]:
        """What the host endpoints ask for and cannot get."""
        return hosts.warnings(self.interfaces)

    def _own_addresses(self) -> frozenset[str]:
        prefixes = self._config.interface_prefixes
        names = (name for name in self._addresses if not is_workload_interface(name, prefixes))
        return frozenset().union(*(self._addresses[name] for name in names))

    def _read(self) -> tuple[list[Link], list[LinkAddress]]:
        return self._links.list_links(), self._links.list_addresses()

    def _by_interface(self, addresses: list[LinkAddress]) -> dict[str, frozenset[str]]:
        found: defaultdict[str, set[str]] = defaultdict(set)
        for entry in addresses:
            if not any(pattern.fullmatch(entry.interface) for pattern in self._config.interface_exclude):
                found[entry.interface].add(str(entry.address.ip))
        return {interface: frozenset(own) for interface, own in found.items()}
