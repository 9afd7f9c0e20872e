"""What nf_tables holds, asked over netlink: the generation of the ruleset and the rules of single chains.

Every committed transaction raises the generation of its network namespace by one, so comparing two numbers (5 us) tells
whether anybody wrote; reading a chain back costs a fraction of a millisecond, however large the table. Only the hash
comments of rules are taken from the answers.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from types import TracebackType
from typing import Final, Self

from calipy.errors import KernelError
from calipy.kernel import netlink
from calipy.net import Family

_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10 << 8
_GETCHAIN: Final = _SUBSYSTEM | 4
_GETRULE: Final = _SUBSYSTEM | 7
_GETGEN: Final = _SUBSYSTEM | 16
_CHAIN_TABLE: Final = 1
_CHAIN_NAME: Final = 3
_RULE_TABLE: Final = 1
_RULE_CHAIN: Final = 2
_GEN_ID: Final = 1
_GENERIC_HEADER: Final = struct.Struct("!BBH")
_ERROR: Final = 2
_DONE: Final = 3
_RECEIVE: Final = 1 << 18
_HASH: Final = re.compile(rb"cali:([A-Za-z0-9_-]{16})\0")


class NftablesReader:
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

    def generation(self) -> int:
        """Number of the namespace's present ruleset.

        Raises:
            KernelError: the kernel has no nf_tables.
        """
        body = self._ask(_GETGEN, 0, socket.AF_UNSPEC, b"")[0]
        return int(struct.unpack("!I", netlink.attributes(body, _GENERIC_HEADER.size)[_GEN_ID])[0])

    def rule_hashes(self, family: Family, table: str, chain: str) -> tuple[str | None, ...] | None:
        """Our hash of each rule in a chain, None for a rule without; None if there is no such chain.

        Raises:
            KernelError: the kernel refused.
        """
        own = socket.AF_INET if family == 4 else socket.AF_INET6
        of_chain = netlink.text(_RULE_TABLE, table) + netlink.text(_RULE_CHAIN, chain)
        rules = self._ask(_GETRULE, netlink.NLM_F_DUMP, own, of_chain)
        if not rules:
            try:
                self._ask(_GETCHAIN, 0, own, netlink.text(_CHAIN_TABLE, table) + netlink.text(_CHAIN_NAME, chain))
            except KernelError as error:
                if error.code == errno.ENOENT:
                    return None
                raise
        return tuple(found[1].decode() if (found := _HASH.search(rule)) else None for rule in rules)

    def _ask(self, kind: int, flags: int, family: int, attributes: bytes) -> list[bytes]:
        request = netlink.message(kind, flags, _GENERIC_HEADER.pack(family, 0, 0) + attributes)
        for _ in range(8):
            replies, interrupted = self._exchange(request, many=bool(flags))
            if not interrupted:
                return replies
        raise KernelError("cannot read nftables: the rules kept changing while they were read", code=errno.EINTR)

    def _exchange(self, request: bytes, *, many: bool) -> tuple[list[bytes], bool]:
        self._sequence += 1
        message = bytearray(request)
        struct.pack_into("=I", message, 8, self._sequence)
        self._socket.send(message)
        replies: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, body in netlink.split(self._socket.recv(_RECEIVE)):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & netlink.NLM_F_DUMP_INTR)
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise KernelError(f"cannot read nftables: {os.strerror(code)}", code=code)
                if kind != _DONE:
                    replies.append(body)
                if kind == _DONE or not many:
                    return replies, interrupted
