"""iptables' words: match and action texts in the forms that Felix uses. Pure; each function returns option text."""

from __future__ import annotations

from typing import Final

from calipy.felix.ownership import LINK_GROUP, LINK_GROUP_MASK, link_group
from calipy.net import Family

ACCEPT: Final = "--jump ACCEPT"
DROP: Final = "--jump DROP"
RETURN: Final = "--jump RETURN"
REJECT: Final = "--jump REJECT"
NOTRACK: Final = "--jump NOTRACK"

ESTABLISHED: Final = "-m conntrack --ctstate RELATED,ESTABLISHED"
INVALID: Final = "-m conntrack --ctstate INVALID"
RPF_FAILED: Final = "-m rpfilter --invert --validmark"


def jump(chain: str) -> str:
    """Call a chain: a RETURN comes back to the next rule."""
    return f"--jump {chain}"


def goto(chain: str) -> str:
    """Continue in a chain: a RETURN comes back to the caller of the present one."""
    return f"--goto {chain}"


def set_mark(bits: int) -> str:
    """Set ``bits``, leave the others."""
    return f"--jump MARK --set-mark {bits:#x}/{bits:#x}"


def set_masked(value: int, mask: int) -> str:
    """Write ``value`` under ``mask``."""
    return f"--jump MARK --set-mark {value:#x}/{mask:#x}"


def clear_mark(bits: int) -> str:
    """Clear ``bits``, leave the others."""
    return f"--jump MARK --set-mark 0/{bits:#x}"


def mark_set(bit: int) -> str:
    """The bit is set."""
    return f"-m mark --mark {bit:#x}/{bit:#x}"


def mark_clear(bits: int) -> str:
    """All of ``bits`` are clear."""
    return f"-m mark --mark 0/{bits:#x}"


def mark_not_clear(bits: int) -> str:
    """At least one of ``bits`` is set."""
    return f"-m mark ! --mark 0/{bits:#x}"


def from_interface(pattern: str) -> str:
    """Comes in by this interface; a final ``+`` stands for any ending."""
    return f"--in-interface {pattern}"


def to_interface(pattern: str) -> str:
    """Goes out by this interface."""
    return f"--out-interface {pattern}"


def from_group(family: Family) -> str:
    """Comes in by an interface that has an endpoint with an address of the family."""
    return f"-m devgroup --src-group {_group(family)}"


def to_group(family: Family) -> str:
    """Goes out by one."""
    return f"-m devgroup --dst-group {_group(family)}"


def _group(family: Family) -> str:
    wanted = link_group((family,))
    return f"{wanted:#x}/{LINK_GROUP_MASK | wanted & ~LINK_GROUP:#x}"


def in_set(name: str, directions: str) -> str:
    """Address (``src``) or address and port (``src,src``) are in the set."""
    return f"-m set --match-set {name} {directions}"


def not_in_set(name: str, directions: str) -> str:
    """The opposite."""
    return f"-m set ! --match-set {name} {directions}"


def joined(*parts: str) -> str:
    """Several matches, all of which must hold; empty ones vanish."""
    return " ".join(part for part in parts if part)
