"""How the structs of Calico's resources are declared, and the marks that carry Go's and the schema's rules.

One declaration serves reading, writing, defaults and the schema check. By shape:

* ``T | None`` is Go's pointer: None when absent, written whenever it is set, even to ``0``, ``False`` or ``""``;
* a plain text, number, boolean, tuple or dict is Go's value with ``omitempty``: its zero means absent;
* a plain struct is always written, unless marked ``OmitZero``;
* ``Always`` writes the zero of a plain value too.

Texts that Calico restricts are plain ``str``: nobody checks on the way out of the datastore what others put in, so a
reader must expect any text there and fail closed; ``Enum`` holds what is accepted on write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec

UNKNOWN_NAME = "?unknown"


class GoStruct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A JSON object of Calico's API.

    Attributes:
        unknown: members that the stored object had and this release does not know; written back unchanged.
    """

    unknown: dict[str, Any] | None = msgspec.field(default=None, name=UNKNOWN_NAME)


@dataclass(frozen=True, slots=True)
class Always:
    """Written even when zero."""


@dataclass(frozen=True, slots=True)
class OmitZero:
    """A struct that is left out when nothing in it is set."""


@dataclass(frozen=True, slots=True)
class Form:
    """A text or number with more than one spelling; ``name`` picks how ``gojson`` reads it into the one we keep."""

    name: str


@dataclass(frozen=True, slots=True)
class Bits:
    """Range of a Go integer type: what does not fit cannot even be read."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Enum:
    """Schema: one of these texts."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Schema: the text must match (search, as in OpenAPI)."""

    regex: str


@dataclass(frozen=True, slots=True)
class Range:
    """Schema: bounds of a number."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Length:
    """Schema: bounds of the length of a text, list or map."""

    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Unique:
    """Schema: no item twice."""


@dataclass(frozen=True, slots=True)
class Required:
    """Schema: must be present in the written form."""


@dataclass(frozen=True, slots=True)
class Given:
    """A list that a file must have, if only empty: what is stored does not tell an empty one from none."""


def any_case(*values: str) -> Pattern:
    """One of these texts, in any case, or the empty text."""
    return Pattern(rf"(?i)^({'|'.join(values)})?\Z")


def enum(*values: str) -> Enum:
    """Short form of ``Enum`` for declarations."""
    return Enum(values)


# msgspec's own quick check accepts only what needs no rewriting; everything else takes ``gojson``'s careful path.
Timestamp: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
        r"|02-(0[1-9]|1[0-9]|2[0-8]))T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z\Z"
    ),
    Form("time"),
]
"""RFC 3339, UTC, whole seconds: ``2026-08-01T10:00:00Z``; sorts by time."""

Duration: TypeAlias = Annotated[
    str,
    msgspec.Meta(pattern=r"^([1-9][0-9]{0,5}h[1-5]?[0-9]m[1-5]?[0-9]s|([1-9]|[1-5][0-9])m[1-5]?[0-9]s|[1-5]?[0-9]s)\Z"),
    Form("duration"),
]
"""Go's print of a duration, ``1m30s``; ``calipy.datastore.durations`` converts."""

_Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z][a-zA-Z0-9_.-]*\Z")]

Port: TypeAlias = Annotated[Annotated[int, msgspec.Meta(ge=0, le=65535)] | _Name, Form("port")]
"""A number, a range ``"1000:2000"``, or the name of an endpoint's port."""

Protocol: TypeAlias = Annotated[Annotated[int, msgspec.Meta(ge=0, le=255)] | _Name, Form("protocol")]
"""An IP protocol number, or a name (``TCP``)."""

ASNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF), Form("as")]

Int32: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1), Bits(-(2**31), 2**31 - 1)]
UInt8: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=255), Bits(0, 255)]
UInt16: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535), Bits(0, 65535)]
UInt32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1), Bits(0, 2**32 - 1)]
