"""Errors of the lab: every one names the file and the element that it is about."""

from __future__ import annotations

from calipy.errors import CalipyError, InvalidInputError


class TopologyError(InvalidInputError):
    """A topology file cannot be used as it is. Raised before anything is created.

    Attributes:
        place: ``file`` or ``file:line`` of the offending text.
        element: dotted path of the element, e.g. ``topology.nodes.n1.cpu``; "" for the file as a whole.
    """

    def __init__(
        self, message: str, *, place: str = "", element: str = "", value: object = None, remedy: str = ""
    ) -> None:
        shown = ": ".join(part for part in (place, element, message) if part)
        super().__init__(shown, value=value, remedy=remedy)
        self.place = place
        self.element = element


class LabError(CalipyError):
    """The lab cannot do what was asked of it: a node did not start, a lab does not run, a name is taken."""


class SupervisorGoneError(LabError):
    """The lab's supervisor has died, and the lab with it; what it left outside its namespaces is there."""

    def __init__(self) -> None:
        super().__init__("the lab's supervisor is gone", remedy="calipy lab destroy removes what it left")
