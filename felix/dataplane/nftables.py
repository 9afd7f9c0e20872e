"""What nf_tables holds, asked over netlink: the generation of the ruleset and the rules of single chains.

Every committed transaction raises the generation of its network namespace by one, so comparing two numbers (5 us) tells
whether anybody wrote; reading a chain back costs a fraction of a millisecond, however large the table. Only the hash
comments of rules are taken from the answers.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Container, Iterable
from typing import Final

from calipy.errors import KernelError
from calipy.felix.dataplane.comments import RULE_CHAIN, RULE_TABLE, lightened
from calipy.felix.dataplane.nfnetlink import HEADER_SIZE, NetfilterSocket
from calipy.kernel import netlink
from calipy.net import Family

_SUBSYSTEM: Final = 10 << 8
_GETCHAIN: Final = _SUBSYSTEM | 4
_GETRULE: Final = _SUBSYSTEM | 7
_GETGEN: Final = _SUBSYSTEM | 16
_NEWRULE: Final = _SUBSYSTEM | 6
_CHAIN_TABLE: Final = 1
_CHAIN_NAME: Final = 3
_GEN_ID: Final = 1
_HASH: Final = re.compile(rb"cali:([A-Za-z0-9_-]{16})\0")


class NftablesReader(NetfilterSocket):
    """Reads nf_tables of the calling thread's network namespace."""

    def generation(self) -> int:
        """Number of the namespace's present ruleset.

        Raises:
            KernelError: the kernel has no nf_tables.
        """
        body = self.get("read nftables", _GETGEN, socket.AF_UNSPEC, b"")
        return int(struct.unpack("!I", netlink.attributes(body, HEADER_SIZE)[_GEN_ID])[0])

    def rule_hashes(self, family: Family, table: str, chain: str) -> tuple[str | None, ...] | None:
        """Our hash of each rule in a chain, None for a rule without; None if there is no such chain.

        Raises:
            KernelError: the kernel refused.
        """
        rules = self._rules(family, table, chain)
        if not rules:
            own = _address_family(family)
            name = netlink.text(_CHAIN_TABLE, table) + netlink.text(_CHAIN_NAME, chain)
            try:
                self.get(f"read chain {chain}", _GETCHAIN, own, name)
            except KernelError as error:
                if error.code == errno.ENOENT:
                    return None
                raise
        return tuple(_hash(rule) for rule in rules)

    def lighten(self, family: Family, chains: Iterable[tuple[str, str]], hashes: Container[str | None]) -> bool:
        """Make the comments of rules weightless (``felix.dataplane.comments``).

        Args:
            family: IP version.
            chains: table and chain.
            hashes: of the rules that may be replaced.

        Returns:
            Whether there was a transaction. Somebody else's change meanwhile is no failure: the rules stay as they are.
        """
        changes = [
            change
            for table, chain in chains
            for rule in self._rules(family, table, chain)
            if _hash(rule) in hashes and (change := lightened(rule, HEADER_SIZE))
        ]
        if not changes:
            return False
        return not self.transact(_SUBSYSTEM >> 8, _NEWRULE, netlink.NLM_F_REPLACE, _address_family(family), changes)

    def _rules(self, family: Family, table: str, chain: str) -> list[bytes]:
        of_chain = netlink.text(RULE_TABLE, table) + netlink.text(RULE_CHAIN, chain)
        return self.dump(f"read chain {chain}", _GETRULE, _address_family(family), of_chain)


def _address_family(family: Family) -> int:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def _hash(rule: bytes) -> str | None:
    found = _HASH.search(rule)
    return found[1].decode() if found else None
