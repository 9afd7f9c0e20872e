"""Bits of the packet mark, allotted from the configured mask. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from calipy.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Marks:
    """What each bit means while a packet walks through the chains.

    Attributes:
        accept: accepted, skip later policy; at the tail of FORWARD also "was forwarded".
        pass_: a policy said Pass, go on to the next tier; cleared where a tier starts.
        drop: set by a deny rule before its action.
        scratch0: all match blocks of the rule pass; in raw PREROUTING "comes from a workload".
        scratch1: the current match block passes.
    """

    accept: int
    pass_: int
    drop: int
    scratch0: int
    scratch1: int

    @classmethod
    def from_mask(cls, mask: int) -> Marks:
        """Take the five lowest bits of ``mask`` in order.

        Raises:
            InvalidInputError: fewer than five bits.
        """
        bits = [1 << position for position in range(32) if mask >> position & 1]
        if len(bits) < 5:
            raise InvalidInputError(
                "too few bits for packet marks",
                field="IptablesMarkMask",
                value=f"{mask:#x}",
                remedy="give at least 5 bits that no other software uses",
            )
        return cls(*bits[:5])

    @property
    def all(self) -> int:
        """Every bit that is cleared where a packet enters; ``drop`` is not among them."""
        return self.accept | self.pass_ | self.scratch0 | self.scratch1
