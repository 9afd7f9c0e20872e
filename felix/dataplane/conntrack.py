"""The kernel's connection table: forget addresses that have left or moved.

What the table calls ESTABLISHED is not judged again, so the next owner of an address would inherit its connections. As
``conntrack --delete --orig-src`` and ``--reply-src`` do, but for all addresses in one pass and without a process each.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable
from typing import Final

from calipy import log
from calipy.errors import KernelError
from calipy.felix.dataplane.nfnetlink import HEADER_SIZE, NetfilterSocket
from calipy.kernel import netlink
from calipy.net import IPAddress

_logger = log.get("felix.conntrack")

_ATTEMPTS: Final = 3
_GET: Final = 1 << 8 | 1
_DELETE: Final = 1 << 8 | 2
_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_TUPLE_ADDRESSES: Final = 1
_SOURCE: Final = {socket.AF_INET: 1, socket.AF_INET6: 3}
_ZONE: Final = 18


async def forget(addresses: Iterable[IPAddress]) -> None:
    """Delete the connections from each address and the answers to it; waits in a thread until they are gone.

    Cost is linear in the table. A failure is logged, not raised: the address must not stay cut off for good, and three
    attempts are Felix's rule.
    """
    wanted = frozenset(addresses)
    for attempt in range(_ATTEMPTS):
        try:
            await asyncio.to_thread(_forget, wanted)
        except KernelError as error:
            if attempt == _ATTEMPTS - 1:
                _logger.warning("cannot delete connections", addresses=len(wanted), error=str(error))
        else:
            return


def _forget(addresses: frozenset[IPAddress]) -> None:
    with NetfilterSocket() as netfilter:
        for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
            packed = frozenset(address.packed for address in addresses if address.version == version)
            if not packed:
                continue
            for body in netfilter.dump("list connections", _GET, family, b""):
                found = netlink.attributes(body, HEADER_SIZE)
                if any(_source(found[side], family) in packed for side in (_TUPLE_ORIGINAL, _TUPLE_REPLY)):
                    _delete(netfilter, family, found)


def _source(tuple_: bytes, family: int) -> bytes:
    return netlink.attributes(netlink.attributes(tuple_)[_TUPLE_ADDRESSES])[_SOURCE[socket.AddressFamily(family)]]


def _delete(netfilter: NetfilterSocket, family: int, found: dict[int, bytes]) -> None:
    which = netlink.nested(_TUPLE_ORIGINAL, found[_TUPLE_ORIGINAL])
    if _ZONE in found:
        which += netlink.attribute(_ZONE, found[_ZONE])
    code = netfilter.execute(_DELETE, family, which)
    if code not in {0, errno.ENOENT}:  # it may have ended by itself
        raise KernelError("cannot delete a connection", code=code)
