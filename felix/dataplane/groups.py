"""Link groups: the kernel's own note that an interface has an endpoint, programmed and enabled.

The fast path of ``cali-FORWARD`` goes by it (``felix.render.static``). So an interface loses its group before the
chains of its endpoint change their mind, and gets it when they are in force: ``withdraw`` comes before the rules are
written, ``admit`` after everything else. A group goes with the interface, not with its name, and outlives the agent; an
interface that somebody else has put into a group stays there, and its packets take the long way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace

from calipy.errors import KernelError
from calipy.felix.messages import WorkloadEndpoint
from calipy.felix.ownership import link_group, owns_link_group
from calipy.kernel.links import Link, Links
from calipy.kernel.monitor import LinkEvent
from calipy.kernel.netlink import NetlinkSocket
from calipy.net import family_of


class LinkGroups:
    """Groups of the interfaces in the process's network namespace. Calls do not overlap.

    Netlink calls block for some microseconds an interface that changes; after ``resync`` for some an interface.
    """

    def __init__(self) -> None:
        """Open a netlink socket; nothing is read or written yet."""
        self._socket = NetlinkSocket()
        self._links = Links(self._socket)
        self._wanted: dict[str, int] = {}
        self._found: dict[int, Link] = {}
        self._indices: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._stale = True

    def close(self) -> None:
        """Close the socket; nothing in the kernel changes."""
        self._socket.close()

    def set_endpoint(self, interface: str, endpoint: WorkloadEndpoint | None) -> None:
        """The endpoint that has the interface now, None for none."""
        if endpoint is not None and endpoint.admin_up:
            self._wanted[interface] = link_group({family_of(net) for net in endpoint.nets})
        else:
            self._wanted.pop(interface, None)
        self._dirty.add(interface)

    def on_link(self, event: LinkEvent) -> bool:
        """Note an event; True if an interface has another group than it should."""
        old = self._found.pop(event.index, None)
        if old is not None:
            self._indices.pop(old.name, None)
        if event.gone:
            return False
        self._note(event.link)
        return event.name in self._dirty

    def resync(self) -> None:
        """Events were lost: have the next ``withdraw`` read all links."""
        self._stale = True

    def withdraw(self) -> None:
        """Take away what interfaces should not have of their groups. Before the rules are written.

        Raises:
            KernelError: the kernel refused; the rules must wait.
        """
        if self._stale:
            self._found.clear()
            self._indices.clear()
            for link in self._links.list_links():
                self._note(link)
            self._stale = False
        self._write({link.index: link.group & wanted for link, wanted in self._differing()})

    def admit(self) -> None:
        """Give interfaces the groups that they should have. When everything else is in force.

        Raises:
            KernelError: the kernel refused.
        """
        self._write({link.index: wanted for link, wanted in self._differing()})
        self._dirty.clear()

    def _note(self, link: Link) -> None:
        self._found[link.index] = link
        self._indices[link.name] = link.index
        if link.group != self._wanted.get(link.name, 0) and owns_link_group(link.group):
            self._dirty.add(link.name)

    def _differing(self) -> Iterator[tuple[Link, int]]:
        """Interfaces of ours among the dirty ones, and the group that each should have."""
        for name in self._dirty & self._indices.keys():
            link = self._found[self._indices[name]]
            if owns_link_group(link.group):
                yield link, self._wanted.get(name, 0)

    def _write(self, groups: dict[int, int]) -> None:
        changed = {index: group for index, group in groups.items() if group != self._found[index].group}
        failed = self._links.set_groups(changed) if changed else {}
        for index, group in changed.items():
            if index not in failed:
                self._found[index] = replace(self._found[index], group=group)
        for index, code in failed.items():
            if code != errno.ENODEV:
                raise KernelError(f"cannot set the link group of interface {index}: {os.strerror(code)}", code=code)
