"""What a message of iptables-restore is about. Pure."""

from __future__ import annotations

import re
from typing import Final

from calipy.felix.delta import Plan

_LINE: Final = re.compile(r"\bline:? (\d+)")
_CHAIN: Final = re.compile(r"rule in chain (\S+)")


def culprit(error: str, starts: list[tuple[int, Plan]]) -> tuple[str, str] | None:
    """Table and chain of ours that an error is about; "" for a chain that it does not name, None for no table either.

    Args:
        error: what the program said.
        starts: first line of each table in its input, counted from 0, and what that table's lines are.
    """
    found = _LINE.search(error)
    if not found:
        return None
    number = int(found[1])
    for start, item in reversed(starts):
        if number > start:
            name = item.owner_of_line(number - start)
            if not name and (named := _CHAIN.search(error)):
                name = named[1]
            return item.table, name if name in item.chains else ""
    return None
