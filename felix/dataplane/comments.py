"""Comments that cost packets nothing: from matches, which the kernel asks for each packet, to what it only keeps.

iptables writes a comment as a match of its own, and nf_tables calls it for every packet that comes so far: 40 ns, a
quarter of what a whole rule takes. As user data of the rule it reads the same in ``iptables-save`` and is found by the
same ``iptables -D``, but is never looked at. Rules cannot be written that way by iptables-restore, so that those which
every packet meets are replaced right after it.

Pure; the exchange with the kernel is in ``felix.dataplane.nftables``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from calipy.kernel import netlink

RULE_TABLE: Final = 1
RULE_CHAIN: Final = 2
_RULE_HANDLE: Final = 3
_RULE_EXPRESSIONS: Final = 4
_RULE_USERDATA: Final = 7
_ELEMENT: Final = 1
_NAME: Final = 1
_DATA: Final = 2
_INFO: Final = 3
_COMMENT: Final = 0
_LONGEST: Final = 254


def lightened(rule: bytes, offset: int) -> bytes | None:
    """Attributes of the rule that takes a listed rule's place; None where it has to stay.

    User data holds one comment. A rule with several would show them in another order, and not be found by ``-D``.

    Args:
        rule: as the kernel lists it. One whose extensions depend on a protocol must not be given: the kernel does not
            tell what iptables said about that.
        offset: where its attributes begin.
    """
    found = netlink.attributes(rule, offset)
    if _RULE_USERDATA in found:
        return None
    kept: list[bytes] = []
    comments: list[bytes] = []
    for expression in _elements(found.get(_RULE_EXPRESSIONS, b"")):
        if comment := _comment(expression):
            comments.append(comment)
        else:
            kept.append(netlink.nested(_ELEMENT, expression))
    if len(comments) != 1 or len(comments[0]) > _LONGEST:
        return None
    return b"".join(
        (
            netlink.attribute(RULE_TABLE, found[RULE_TABLE]),
            netlink.attribute(RULE_CHAIN, found[RULE_CHAIN]),
            netlink.attribute(_RULE_HANDLE, found[_RULE_HANDLE]),
            netlink.nested(_RULE_EXPRESSIONS, *kept),
            netlink.attribute(_RULE_USERDATA, bytes((_COMMENT, len(comments[0]) + 1)) + comments[0] + b"\0"),
        )
    )


def _comment(expression: bytes) -> bytes:
    """Text of an expression that is a comment, else nothing."""
    found = netlink.attributes(expression)
    if found.get(_NAME) != b"match\0":
        return b""
    match = netlink.attributes(found[_DATA])
    return match[_INFO].partition(b"\0")[0] if match.get(_NAME) == b"comment\0" else b""


def _elements(data: bytes) -> Iterator[bytes]:
    """Contents of the elements of a list, in order."""
    offset = 0
    while offset + 4 <= len(data):
        size, _kind = struct.unpack_from("=HH", data, offset)
        if size < 4:
            return
        yield data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
