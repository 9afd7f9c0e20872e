"""Taking a node out of service: whether its speaker is to be silent, and who waits for it to have ended.

Under graceful restart an end says nothing to the peers: they would keep a node's routes for its restart time, although
it does not come back. Before it ends, a drained speaker therefore withdraws everything. That it is drained stands in a
file, so that a bgpd that was killed does not announce the node again; the run directory is emptied when the host boots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from calipy.errors import CalipyError
from calipy.net import IPAddress

PROBLEM: Final = "drained: nothing is announced until `calipy node undrain`"


@dataclass(frozen=True, slots=True)
class Farewell:
    """Who has been told that all routes are gone, and whose sessions were down (they may keep routes, as stale)."""

    told: frozenset[IPAddress] = frozenset()
    missed: frozenset[IPAddress] = frozenset()

    def as_json(self) -> dict[str, Any]:
        """For the answer to ``drain``."""
        return {"told": _texts(self.told), "missed": _texts(self.missed)}


class Drain:
    """One wish, and where it stands.

    Attributes:
        active: the speaker is to be silent.
        farewell: how it has taken leave; None if it ran no more, or could not.
    """

    def __init__(self, marker: Path, wake: Callable[[], None]) -> None:
        self._marker = marker
        self._wake = wake
        self._over = asyncio.Event()
        self.active = marker.exists()
        self.farewell: Farewell | None = None

    async def begin(self, peers: Callable[[], Collection[IPAddress]]) -> Farewell:
        """Be silent from now on, and wait until the speaker has ended; ``peers`` are all there should be.

        Raises:
            CalipyError: ``end`` was called meanwhile.
            OSError: the wish cannot be kept; nothing is changed.
        """
        if not self.active:
            self._marker.touch(mode=0o600)
            self.active, self.farewell = True, None
            self._over.clear()
            self._wake()
        await self._over.wait()
        if not self.active:
            raise CalipyError("undrained meanwhile", remedy="drain again")
        return self.farewell or Farewell(missed=frozenset(peers()))

    def end(self) -> bool:
        """Speak again; whether it was silent."""
        was, self.active = self.active, False
        self._marker.unlink(missing_ok=True)
        self._over.set()
        self._wake()
        return was

    def rest(self) -> None:
        """The speaker has ended."""
        self._over.set()


def _texts(peers: Collection[IPAddress]) -> list[str]:
    return [str(peer) for peer in sorted(peers, key=lambda peer: (peer.version, int(peer)))]
