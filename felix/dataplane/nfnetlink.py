"""Questions to the netfilter subsystems of the kernel over netlink: nf_tables and ip sets answer in the same form."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from calipy.errors import KernelError
from calipy.kernel import netlink

_NETLINK_NETFILTER: Final = 12
_GENERIC_HEADER: Final = struct.Struct("!BBH")
_ERROR: Final = 2
_DONE: Final = 3
_RECEIVE: Final = 1 << 18
_DUMP_ATTEMPTS: Final = 8
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
HEADER_SIZE: Final = _GENERIC_HEADER.size


class NetfilterSocket:
    """A netfilter netlink socket in the calling thread's network namespace. Not for use by several threads at once."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def get(self, doing: str, kind: int, family: int, attributes: bytes) -> bytes:
        """The one answer: what follows the netlink header.

        Raises:
            KernelError: the kernel refused; the text begins with "cannot ``doing``".
        """
        return self._ask(doing, netlink.message(kind, 0, _GENERIC_HEADER.pack(family, 0, 0) + attributes), many=False)[
            0
        ]

    def dump(self, doing: str, kind: int, family: int, attributes: bytes) -> list[bytes]:
        """All answers. A listing that other writers disturbed is asked for again.

        Raises:
            KernelError: as for ``get``; EINTR if it is disturbed time after time.
        """
        request = netlink.message(kind, netlink.NLM_F_DUMP, _GENERIC_HEADER.pack(family, 0, 0) + attributes)
        return self._ask(doing, request, many=True)

    def execute(self, kind: int, family: int, attributes: bytes) -> int:
        """Have the kernel do something; its errno, 0 for done."""
        request = netlink.message(kind, netlink.NLM_F_ACK, _GENERIC_HEADER.pack(family, 0, 0) + attributes)
        self._send(request)
        while True:
            for answer, _flags, sequence, body in netlink.split(self._socket.recv(_RECEIVE)):
                if sequence == self._sequence and answer == _ERROR:
                    return -int(struct.unpack_from("=i", body)[0])

    def transact(self, subsystem: int, kind: int, flags: int, family: int, changes: Sequence[bytes]) -> int:
        """Have nf_tables execute several changes of one kind as one transaction, all or nothing.

        Returns:
            The first errno, 0 for done.
        """
        frame = _GENERIC_HEADER.pack(socket.AF_UNSPEC, 0, socket.htons(subsystem))
        first = self._sequence + 1
        parts = [netlink.message(_BATCH_BEGIN, 0, frame)]
        for change in changes:
            body = _GENERIC_HEADER.pack(family, 0, 0) + change
            parts.append(netlink.message(kind, flags | netlink.NLM_F_ACK, body))
        parts.append(netlink.message(_BATCH_END, 0, frame))
        self._sequence += len(parts)
        self._socket.send(b"".join(_numbered(part, first + position) for position, part in enumerate(parts)))
        waiting = set(range(first + 1, first + 1 + len(changes)))
        while waiting:
            for answer, _flags, sequence, body in netlink.split(self._socket.recv(_RECEIVE)):
                if answer != _ERROR or sequence < first:
                    continue
                if code := -int(struct.unpack_from("=i", body)[0]):
                    return code  # what else the kernel says of this transaction has an old number by the next question
                waiting.discard(sequence)
        return 0

    def _send(self, request: bytes) -> None:
        self._sequence += 1
        self._socket.send(_numbered(request, self._sequence))

    def _ask(self, doing: str, request: bytes, *, many: bool) -> list[bytes]:
        for _ in range(_DUMP_ATTEMPTS):
            replies, interrupted = self._exchange(doing, request, many=many)
            if not interrupted:
                return replies
        raise KernelError(f"cannot {doing}: it kept changing while it was read", code=errno.EINTR)

    def _exchange(self, doing: str, request: bytes, *, many: bool) -> tuple[list[bytes], bool]:
        self._send(request)
        replies: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, body in netlink.split(self._socket.recv(_RECEIVE)):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & netlink.NLM_F_DUMP_INTR)
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise KernelError(f"cannot {doing}: {os.strerror(code)}", code=code)
                if kind != _DONE:
                    replies.append(body)
                if kind == _DONE or not many:
                    return replies, interrupted


def _numbered(request: bytes, sequence: int) -> bytes:
    message = bytearray(request)
    struct.pack_into("=I", message, 8, sequence)
    return bytes(message)
