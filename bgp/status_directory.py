"""The agent's status files of endpoints that are up, as far as they ask for BGP sessions. An edge: reads files.

They are the agent's word, calipy's or Felix's, on which pods are set up and whose peers they are; they outlive it.
"""

from __future__ import annotations

import os
from pathlib import Path

from calipy import log
from calipy.bgp.peering_model import WorkloadPeer
from calipy.bgp.workload_peers import parse_status

logger = log.get("bgpd")

_Stamp = tuple[int, int, int]


class StatusDirectory:
    """``<prefix>/endpoint-status``, to be looked at again and again: Felix writes files in place."""

    def __init__(self, prefix: Path) -> None:
        """Nothing is read yet; the directory need not exist."""
        self._directory = prefix / "endpoint-status"
        self._stamps: dict[str, _Stamp] = {}
        self._peers: dict[str, WorkloadPeer | None] = {}

    def read(self) -> tuple[WorkloadPeer, ...]:
        """The workloads that are to have sessions, in order of file name.

        Reads what has changed since the last call; a file that cannot be read (it may be half-written) counts as it
        was, and is tried again. Blocks for a system call a file.
        """
        stamps: dict[str, _Stamp] = {}
        for name, stamp in self._present().items():
            if self._stamps.get(name) != stamp and not self._take(name):
                continue
            stamps[name] = stamp
        self._stamps = stamps
        return tuple(peer for _, peer in sorted(self._peers.items()) if peer is not None)

    def _present(self) -> dict[str, _Stamp]:
        found: dict[str, _Stamp] = {}
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        stat = entry.stat(follow_symlinks=False)
                        found[entry.name] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("cannot read the endpoints' status files", reason=str(error))
                return self._stamps
        for name in self._peers.keys() - found.keys():
            del self._peers[name]
        return found

    def _take(self, name: str) -> bool:
        try:
            self._peers[name] = parse_status((self._directory / name).read_bytes())
        except (OSError, ValueError) as error:
            logger.debug("status file passed over for now", file=name, reason=str(error))
            return False
        return True
