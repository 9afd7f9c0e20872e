"""The other ends of the VXLAN networks as the kernel has to know them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple

from calipy.felix.messages import VTEP, VTEPID
from calipy.kernel.links import Neighbour
from calipy.kernel.vxlan import FDBEntry
from calipy.net import Family


class Entries(NamedTuple):
    """Neighbours (tunnel address → MAC) and forwarding entries (MAC → node address) of one device."""

    neighbours: frozenset[Neighbour]
    fdb: frozenset[FDBEntry]


def entries(vteps: Mapping[VTEPID, VTEP], family: Family, device: str) -> Entries:
    """Those of all other nodes. Of two with one tunnel address or MAC the first by name. O(nodes)."""
    neighbours: dict[object, Neighbour] = {}
    fdb: dict[str, FDBEntry] = {}
    for (_, of), vtep in sorted(vteps.items(), key=lambda item: item[0]):
        if of == family and not vtep.local:
            address = ipaddress.ip_address(vtep.address)
            neighbours.setdefault(address, Neighbour(device, address, vtep.mac))
            fdb.setdefault(vtep.mac, FDBEntry(vtep.mac, ipaddress.ip_address(vtep.parent)))
    return Entries(frozenset(neighbours.values()), frozenset(fdb.values()))


class Work(NamedTuple):
    """What to write, then what to remove."""

    set_neighbours: list[Neighbour]
    set_fdb: list[FDBEntry]
    delete_neighbours: list[Neighbour]
    delete_fdb: list[FDBEntry]


def difference(desired: Entries, actual: Entries) -> Work:
    """From what the kernel has to what it should have. What is replaced by a write is not removed."""
    written = {entry.address for entry in desired.neighbours}
    return Work(
        sorted(desired.neighbours - actual.neighbours, key=str),
        sorted(desired.fdb - actual.fdb, key=str),
        [entry for entry in actual.neighbours - desired.neighbours if entry.address not in written],
        sorted(actual.fdb - desired.fdb, key=str),
    )
