"""Tells programs on this node which pods are set up: one file per endpoint that is ``up``, named and filled as Felix's.

Calico's CNI plugin can wait for the file of a new pod (``endpoint_status_dir``) before it lets it start, and the BGP
side learns here which pods are to have a session with the node. Files stay when the agent ends: what it programmed
stays, too.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from calipy.felix.messages import EndpointID, WorkloadEndpoint

DIRECTORY: Final = "endpoint-status"
_UNESCAPED: Final = "$&+=:@"
"""What Go's ``url.PathEscape`` leaves as it is, beside letters, digits and ``-_.~``."""


def file_name(identity: EndpointID) -> str:
    """``k8s default%2Fweb-1 eth0``: the escaped parts, joined by the character that escaping leaves in none of them."""
    return " ".join(quote(part, safe=_UNESCAPED) for part in identity)


def content(endpoint: WorkloadEndpoint) -> bytes:
    """What a file holds: interface, MAC, addresses and BGPPeer as JSON; empty members are left out."""
    members = {
        "ifaceName": endpoint.interface,
        "mac": endpoint.mac,
        "ipv4Nets": [net for net in endpoint.nets if ":" not in net],
        "ipv6Nets": [net for net in endpoint.nets if ":" in net],
        "bgpPeerName": endpoint.bgp_peer.name if endpoint.bgp_peer else "",
    }
    return msgspec.json.encode({name: value for name, value in members.items() if value})


class StatusFiles:
    """The directory ``<prefix>/endpoint-status``. Calls block for a few file operations per change."""

    def __init__(self, prefix: Path) -> None:
        """Nothing is read or written yet; ``prefix`` is made with the first file if it does not exist."""
        self._directory = prefix / DIRECTORY
        self._draft = prefix / f".{DIRECTORY}.new"
        self._told: dict[EndpointID, WorkloadEndpoint] | None = None

    def reconcile(self, endpoints: Iterable[WorkloadEndpoint]) -> None:
        """Have a file for each of these endpoints and no other file.

        Reads the directory at the first call; afterwards an endpoint that is the same object costs a look.

        Raises:
            OSError: the directory cannot be read or written. The next call begins anew.
        """
        told, self._told = self._told, None
        wanted = {endpoint.id: endpoint for endpoint in endpoints}
        if told is None:
            self._reconcile({file_name(endpoint.id): content(endpoint) for endpoint in wanted.values()})
        else:
            for identity, endpoint in wanted.items():
                if told.get(identity) is not endpoint:
                    self._write(file_name(identity), content(endpoint))
            for identity in told.keys() - wanted.keys():
                (self._directory / file_name(identity)).unlink(missing_ok=True)
        self._told = wanted

    def recheck(self) -> None:
        """Have the next ``reconcile`` read the directory again: others may have meddled with it."""
        self._told = None

    def _reconcile(self, wanted: Mapping[str, bytes]) -> None:
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        present = {path.name: _read(path) for path in self._directory.iterdir() if not path.is_dir()}
        for name, data in wanted.items():
            if present.get(name) != data:
                self._write(name, data)
        for name in present.keys() - wanted.keys():
            (self._directory / name).unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        """Whole or not at all: somebody waits for the file and reads it at once."""
        self._draft.unlink(missing_ok=True)
        with self._draft.open("xb") as file:
            self._draft.chmod(0o644)
            file.write(data)
        self._draft.replace(self._directory / name)


def _read(path: Path) -> bytes | None:
    """None for what is no file of ours at all."""
    return path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
