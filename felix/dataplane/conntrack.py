"""The kernel's connection table: forget an address that has left or moved.

What the table calls ESTABLISHED is not judged again, so the next owner of an address would inherit its connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from calipy import log
from calipy.kernel import process
from calipy.net import IPAddress

_logger = log.get("felix.conntrack")

_ATTEMPTS: Final = 3
_PARALLEL: Final = 4
_TIMEOUT: Final = 30.0


async def forget(addresses: Iterable[IPAddress]) -> None:
    """Delete the connections from and to each address; waits until they are gone.

    A failure is logged, not raised: the address must not stay cut off for good, and three attempts are Felix's rule.
    """
    limit = asyncio.Semaphore(_PARALLEL)

    async def one(address: IPAddress, option: str) -> None:
        async with limit:
            await _delete(address, option)

    await asyncio.gather(
        *(one(address, option) for address in set(addresses) for option in ("--orig-src", "--reply-src"))
    )


async def _delete(address: IPAddress, option: str) -> None:
    family = "ipv4" if address.version == 4 else "ipv6"
    argv = ["conntrack", "--family", family, "--delete", option, str(address)]
    said = ""
    for _ in range(_ATTEMPTS):
        done = await process.run_async(argv, timeout=_TIMEOUT)
        said = done.stderr.strip()
        if done.returncode == 0 or "0 flow entries" in said:
            return
    _logger.error("cannot delete connections", address=str(address), error=said)
