"""The exception tree: whose fault it is, and what to do next.

Every error a user can meet derives from ``CalipyError`` and carries a ``remedy``. The classes split by cause, because
callers act by cause: bad input is reported, a lost race is retried, an unreachable peer is waited for, and anything
else is a bug.
"""

from __future__ import annotations


class CalipyError(Exception):
    """Base of all errors that calipy raises on purpose.

    Attributes:
        remedy: what the reader can do next, one sentence, or "".
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.remedy})" if self.remedy else text


class InvalidInputError(CalipyError):
    """A value that we were given cannot be used. Names the field and the value.

    Attributes:
        field: dotted path of the field, e.g. ``spec.cidr``; "" where there is none.
        value: the offending value as given.
    """

    def __init__(self, message: str, *, field: str = "", value: object = None, remedy: str = "") -> None:
        shown = f"{field} = {value!r}: {message}" if field else message
        super().__init__(shown, remedy=remedy)
        self.field = field
        self.value = value


class UndecodableError(InvalidInputError):
    """An object in the datastore cannot be decoded. Names its key; such objects are reported, never hidden."""

    def __init__(self, message: str, *, key: str, field: str = "", value: object = None) -> None:
        super().__init__(f"{key}: {message}", field=field, value=value, remedy="mend or delete the object")
        self.key = key


class DatastoreError(CalipyError):
    """The datastore answered with an error, or not at all."""


class UnavailableError(DatastoreError):
    """No endpoint answered within the deadline. A write that meets this has an *unknown* outcome: read again."""


class CompactedError(DatastoreError):
    """The revision asked for is gone; list again. ``compact_revision`` is the oldest one left (0 = unknown)."""

    def __init__(self, message: str, *, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class ConflictError(DatastoreError):
    """Compare-and-swap lost: the object is not at the revision expected. Read it again and redo the decision.

    Attributes:
        key: the datastore path.
        current: raw bytes of the present value, or None when unknown.
        current_revision: its mod revision, 0 when absent or unknown.
    """

    def __init__(self, message: str, *, key: str, current: bytes | None = None, current_revision: int = 0) -> None:
        super().__init__(message)
        self.key = key
        self.current = current
        self.current_revision = current_revision


class AlreadyExistsError(ConflictError):
    """A create met an existing key."""


class NotFoundError(DatastoreError):
    """The key asked for does not exist."""

    def __init__(self, message: str, *, key: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.key = key


class AccessDeniedError(DatastoreError):
    """Authentication or authorisation failed; retrying with the same credentials is useless."""


class KernelError(CalipyError):
    """The kernel (netlink, iptables, ipset, sysctl) refused an operation. ``code`` is errno, 0 when there is none."""

    def __init__(self, message: str, *, code: int = 0, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class AgentUnavailableError(CalipyError):
    """The local daemon's socket does not answer: it does not run, or is not ready yet."""
