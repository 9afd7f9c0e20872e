"""Differentiated services code points (RFC 2474) as Calico accepts them: 0 to 63, or a name in any case. Pure.

Source: Calico ``api/pkg/lib/numorstring/dscp.go``.
"""

from __future__ import annotations

from typing import Final

ANNOTATION: Final = "qos.projectcalico.org/dscp"
LARGEST: Final = 63

NAMES: Final = {
    "DF": 0,
    "EF": 46,
    **{f"AF{kind}{drop}": 8 * kind + 2 * drop for kind in range(1, 5) for drop in range(1, 4)},
    **{f"CS{kind}": 8 * kind for kind in range(7)},
}
"""Default and expedited forwarding (RFC 3246), assured forwarding (RFC 2597), class selectors."""


def stored(text: str) -> int | str | None:
    """What an annotation becomes in an endpoint: a number, or a name; None if it is neither."""
    found = number(text)
    if found is None:
        return None
    name = text.strip().upper()
    if name not in NAMES:
        return found
    return name if text.upper() == name else text


def number(value: int | str) -> int | None:
    """The code point; None if it is none."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdecimal()):
            return NAMES.get(value.strip().upper())
        value = int(value)
    return value if 0 <= value <= LARGEST else None
