"""ExaBGP's configuration file and environment, from sessions. Pure.

The ``process`` section comes first: an error above it would take the API process away and, with the next update, the
whole daemon. Neighbours are sorted, so that the text changes only when a session does. Routes are never in here:
they would make every reload slow, and belong to the API.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from calipy.bgp.peering import Session
from calipy.errors import InvalidInputError
from calipy.net import IPAddress

MAX_PASSWORD: Final = 80
"""Bytes of a TCP-MD5 key that the kernel takes (TCP_MD5SIG_MAXKEYLEN)."""
SPEED: Final = "2.5"
"""ExaBGP looks after sessions that are not established every 25 ms; what comes in wakes it (``launch.Turns``)."""
_WORD: Final = re.compile(r"[A-Za-z0-9_./:@%+=,-]+")


@dataclass(frozen=True, slots=True)
class SpeakerSession:
    """A session with everything resolved that only the node knows.

    Attributes:
        local: our address in it.
        key: TCP-MD5 key, b"" for none.
    """

    session: Session
    local: IPAddress
    key: bytes = b""

    def __repr__(self) -> str:
        """Without the key: sessions end up in logs."""
        return f"SpeakerSession({self.session.peer}, local={self.local}, key={'***' if self.key else 'none'})"


def checked_key(key: bytes, source: str) -> bytes:
    """A TCP-MD5 key without the line end that files have.

    Raises:
        InvalidInputError: empty or too long. Never shows the key.
    """
    key = key.rstrip(b"\r\n")
    if not 0 < len(key) <= MAX_PASSWORD:
        raise InvalidInputError(
            f"is {len(key)} bytes long", field="password", value=source, remedy=f"TCP-MD5 takes 1 to {MAX_PASSWORD}"
        )
    return key


def environment(*, bind: Sequence[IPAddress], port: int, log_level: str = "WARNING") -> dict[str, str]:
    """ExaBGP's settings; there is no environment file. ExaBGP must be restarted when one of them changes.

    Args:
        bind: addresses to listen on.
        port: to listen on.
        log_level: WARNING or above; INFO logs every route.
    """
    return {
        # "drop" only says when privileges are dropped; "nobody" could not read the configuration at a reload.
        "exabgp.daemon.drop": "false",
        "exabgp.daemon.user": "root",
        "exabgp.daemon.daemonize": "false",
        "exabgp.tcp.bind": " ".join(map(str, bind)),
        "exabgp.tcp.port": str(port),
        "exabgp.api.ack": "true",  # the only flow control there is
        "exabgp.api.chunk": "1000",
        "exabgp.api.show-routes-format": "v2",
        "exabgp.api.cli": "false",
        "exabgp.log.level": log_level,
        "exabgp.log.destination": "stdout",
        "exabgp.reactor.speed": SPEED,
    }


def render(sessions: Iterable[SpeakerSession], relay: Sequence[str]) -> str:
    """The configuration file. Holds keys: mode 0600.

    Args:
        sessions: one for each neighbour.
        relay: argument list of the API process.

    Raises:
        InvalidInputError: a word of ``relay``, or a key, that the file's grammar cannot hold.
    """
    for word in relay:
        if not _WORD.fullmatch(word):
            raise InvalidInputError(
                "has characters that ExaBGP's configuration cannot hold",
                field="CALIPY_RUN_DIR or installation path",
                value=word,
                remedy="use a path of letters, digits and . _ - / only",
            )
    ordered = sorted(sessions, key=lambda one: (one.session.peer.version, int(one.session.peer)))
    parts = [f"process api {{\n  run {' '.join(relay)};\n  encoder json;\n  respawn true;\n}}\n"]
    parts += [_neighbour(one) for one in ordered]
    return "\n".join(parts)


def neighbours(sessions: Iterable[SpeakerSession]) -> Mapping[IPAddress, str]:
    """Each neighbour's own section: when it changes, ExaBGP drops the session and forgets what it was told."""
    return {one.session.peer: _neighbour(one) for one in sessions}


def _neighbour(one: SpeakerSession) -> str:
    session = one.session
    lines = [
        f"router-id {session.router_id}",
        f"local-address {one.local}",
        f"local-as {session.local_as}",
        f"peer-as {session.peer_as}",
        f"hold-time {session.hold_time}",
        f"passive {'true' if session.passive else 'false'}",
        "manual-eor true",
    ]
    if not session.passive:
        lines.append(f"connect {session.port}")
    if one.key:
        lines += [f'md5-password "{base64.b64encode(one.key).decode()}"', "md5-base64 true"]
    if session.ttl_security is not None:
        lines += ["outgoing-ttl 255", f"incoming-ttl {max(256 - session.ttl_security, 1)}"]
    restart = f"graceful-restart {session.restart_time}; " if session.restart_time else ""
    body = "".join(f"  {line};\n" for line in lines)
    return (
        f"neighbor {session.peer} {{\n{body}"
        f"  capability {{ {restart}route-refresh enable; }}\n"
        f"  family {{ ipv{session.family} unicast; }}\n"
        "  api { processes [ api ]; neighbor-changes; receive { parsed; open; update; notification; refresh; } }\n"
        "}\n"
    )
