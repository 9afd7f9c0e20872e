"""JSON to structs and back by the rules of Go's ``encoding/json``, driven by the structs' own declarations.

What Go reads, this reads: member names in any case, ``null`` as absent, an AS number as text; what Go cannot read
(``80.0`` for an integer, a quoted number, a time without a zone) raises with the path of the field. Members nobody
knows are kept in the struct they were found in. This is the careful path, a microsecond per member; ``codec`` takes
msgspec's quick one for values that need none of it.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, Union, cast

import msgspec

from calipy.datastore import durations
from calipy.datastore.kinds.base import Always, Bits, Form, GoStruct, OmitZero
from calipy.errors import InvalidInputError

T = TypeVar("T")
Reader = Callable[[Any, str], Any]

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_INT64 = Bits(-(2**63), 2**63 - 1)
_PORT_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Member:
    """One declared member of a struct, ready for reading and writing."""

    attribute: str
    name: str
    read: Reader
    pointer: bool
    always: bool
    omit_zero: bool
    default: Any
    marks: tuple[Any, ...]
    type: Any
    """The type without ``Annotated`` and ``| None``."""

    item_marks: tuple[Any, ...]
    """Marks of the items of a list."""


@cache
def members(struct: type[GoStruct]) -> tuple[Member, ...]:
    """The members of a struct in the order Calico writes them."""
    hints = typing.get_type_hints(_origin(struct), include_extras=True)
    arguments = dict(zip(getattr(_origin(struct), "__parameters__", ()), typing.get_args(struct), strict=False))
    result = []
    for info in msgspec.structs.fields(struct):
        if info.encode_name.startswith("?"):
            continue
        base, marks, pointer = unwrap(hints[info.name], arguments)
        default = None if info.required else info.default
        if info.default_factory is not msgspec.NODEFAULT:
            default = cast("Callable[[], Any]", info.default_factory)()
        result.append(
            Member(
                info.name,
                info.encode_name,
                _reader(base, marks),
                pointer,
                any(isinstance(mark, Always) for mark in marks),
                any(isinstance(mark, OmitZero) for mark in marks),
                default,
                marks,
                base,
                unwrap(typing.get_args(base)[0])[1] if typing.get_origin(base) is tuple else (),
            )
        )
    return tuple(result)


@cache
def _by_name(struct: type[GoStruct]) -> dict[str, Member]:
    return {member.name: member for member in members(struct)}


@cache
def _by_folded_name(struct: type[GoStruct]) -> dict[str, Member]:
    return {member.name.casefold(): member for member in members(struct)}


def _origin(type_: Any) -> Any:
    return typing.get_origin(type_) or type_


def unwrap(hint: Any, arguments: dict[Any, Any] | None = None) -> tuple[Any, tuple[Any, ...], bool]:
    """A type hint without ``Annotated`` and ``| None``, all its marks, and whether None is allowed."""
    marks: tuple[Any, ...] = ()
    pointer = False
    while True:
        if arguments and hint in arguments:
            hint = arguments[hint]
        if typing.get_origin(hint) is Annotated:
            marks += tuple(hint.__metadata__)
            hint = hint.__origin__
        elif typing.get_origin(hint) in {Union, types.UnionType} and type(None) in typing.get_args(hint):
            pointer = True
            rest = [argument for argument in typing.get_args(hint) if argument is not type(None)]
            hint = Union[tuple(rest)]  # noqa: UP007 - built from a list
        else:
            return hint, marks, pointer


def read(struct: type[T], value: Any, path: str = "") -> T:
    """A struct from parsed JSON.

    Args:
        struct: a ``GoStruct`` class.
        value: parsed JSON.
        path: where it stands, for messages.

    Raises:
        InvalidInputError: a value of the wrong type; ``field`` is its path.
    """
    return cast("T", _read_struct(cast("type[GoStruct]", struct), value, path))


def texts_from_scalars(struct: type[GoStruct], value: Any) -> Any:
    """Parsed YAML with numbers and booleans as texts wherever the struct wants a text.

    People write ``version: 5`` in files; calicoctl's YAML reader takes it as ``"5"`` (ghodss/yaml), stored JSON is not
    treated so.
    """
    if not isinstance(value, dict):
        return value
    folded = _by_folded_name(struct)
    return {
        name: _texts(member.type, item, plain=_is_plain(member.marks)) if member else item
        for name, item in value.items()
        for member in [folded.get(str(name).casefold())]
    }


def _is_plain(marks: tuple[Any, ...]) -> bool:
    return not any(isinstance(mark, Form) for mark in marks)


def _texts(base: Any, value: Any, *, plain: bool = True) -> Any:
    if base is str and plain and isinstance(value, bool | int | float):
        return (
            str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
        )
    if isinstance(value, dict) and isinstance(_origin(base), type) and issubclass(_origin(base), GoStruct):
        return texts_from_scalars(base, value)
    if isinstance(value, list) and typing.get_origin(base) is tuple:
        item, marks, _pointer = unwrap(typing.get_args(base)[0])
        return [_texts(item, entry, plain=_is_plain(marks)) for entry in value]
    if isinstance(value, dict) and typing.get_origin(base) is dict:
        return {name: _texts(typing.get_args(base)[1], entry) for name, entry in value.items()}
    return value


def without_unknown(value: T) -> T:
    """The same without the members that nobody knows."""
    if isinstance(value, GoStruct):
        changes = {
            member.attribute: without_unknown(getattr(value, member.attribute)) for member in members(type(value))
        }
        return cast("T", msgspec.structs.replace(value, unknown=None, **changes))
    if isinstance(value, tuple):
        return cast("T", tuple([without_unknown(item) for item in value]))
    return value


def unknown_members(value: Any, path: str = "") -> Iterable[str]:
    """Paths of all members of a struct that nobody knows."""
    if isinstance(value, GoStruct):
        for name in value.unknown or ():
            yield _join(path, name)
        for member in members(type(value)):
            yield from unknown_members(getattr(value, member.attribute), _join(path, member.name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from unknown_members(item, f"{path}[{index}]")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _read_struct(struct: type[GoStruct], value: Any, path: str) -> GoStruct:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise InvalidInputError("must be an object", field=path, value=value)
    exact, folded = _by_name(struct), _by_folded_name(struct)
    known: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for name, item in value.items():
        member = exact.get(name) or folded.get(name.casefold())
        if member is None:
            unknown[name] = item
        elif item is not None:
            known[member.attribute] = member.read(item, _join(path, member.name))
    for member in members(struct):
        if member.attribute not in known and isinstance(member.type, type) and not member.pointer:
            # A required struct that is missing or null reads as an empty one.
            if issubclass(_origin(member.type), GoStruct) and member.default is None:
                known[member.attribute] = _read_struct(member.type, {}, _join(path, member.name))
            elif member.default is None and member.type is str:
                known[member.attribute] = ""
    return struct(**known, unknown=unknown or None)


def _reader(base: Any, marks: tuple[Any, ...]) -> Reader:
    form = next((mark for mark in marks if isinstance(mark, Form)), None)
    if form is not None:
        return _FORMS[form.name]
    if base is str:
        return _read_text
    if base is bool:
        return _read_bool
    if base is int:
        bits = next((mark for mark in marks if isinstance(mark, Bits)), _INT64)
        return lambda value, path: _read_int(value, path, bits)
    if base is float:
        return _read_float
    if base is Any or isinstance(base, TypeVar):  # a type variable is met in writing only
        return lambda value, _path: value
    origin = typing.get_origin(base)
    if origin is tuple:
        item = _item_reader(typing.get_args(base)[0])
        return lambda value, path: _read_list(value, path, item)
    if origin is dict:
        item = _item_reader(typing.get_args(base)[1])
        return lambda value, path: _read_map(value, path, item)
    if origin in {Union, types.UnionType}:
        return _read_int_or_text
    if isinstance(_origin(base), type) and issubclass(_origin(base), GoStruct):
        return lambda value, path: _read_struct(base, value, path)
    raise TypeError(f"no reader for {base!r}")


def _item_reader(hint: Any) -> Reader:
    base, marks, _pointer = unwrap(hint)
    inner = _reader(base, marks)
    zero: Any = "" if base is str else 0 if base is int else None
    if isinstance(base, type) and issubclass(base, GoStruct):
        zero = {}
    return lambda value, path: inner(zero if value is None else value, path)


def _read_text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError("must be a text", field=path, value=value)
    return value


def _read_bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError("must be true or false", field=path, value=value)
    return value


def _read_int(value: Any, path: str, bits: Bits = _INT64) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidInputError("must be an integer, unquoted and without a point", field=path, value=value)
    if not bits.low <= value <= bits.high:
        raise InvalidInputError(f"must be in {bits.low}..{bits.high}", field=path, value=value)
    return value


def _read_float(value: Any, path: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidInputError("must be a number", field=path, value=value)
    try:
        return float(value)
    except OverflowError:
        raise InvalidInputError("is too big", field=path, value=value) from None


def _read_int_or_text(value: Any, path: str) -> int | str:
    if isinstance(value, str):
        return value
    return _read_int(value, path, Bits(-(2**31), 2**31 - 1))


def _read_list(value: Any, path: str, item: Reader) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InvalidInputError("must be a list", field=path, value=value)
    return tuple([item(entry, f"{path}[{index}]") for index, entry in enumerate(value)])


def _read_map(value: Any, path: str, item: Reader) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError("must be an object", field=path, value=value)
    return {name: item(entry, f"{path}.{name}") for name, entry in value.items()}


def _read_time(value: Any, path: str) -> str:
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidInputError("must be a time such as 2026-08-01T10:00:00Z", field=path, value=value)
    import datetime  # noqa: PLC0415 - only odd spellings of a time need it

    try:
        moment = datetime.datetime.fromisoformat(
            "{}-{}-{}T{}:{}:{}{}".format(*found.groups()[:6], found[7].replace("Z", "+00:00"))
        ).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise InvalidInputError("is no such moment", field=path, value=value) from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _read_duration(value: Any, path: str) -> str:
    try:
        return durations.canonical(_read_text(value, path))
    except ValueError as error:
        raise InvalidInputError(str(error), field=path, value=value) from None


def _read_as_number(value: Any, path: str) -> int:
    if not isinstance(value, str):
        return _read_int(value, path, Bits(0, 2**32 - 1))
    high, dot, low = value.rpartition(".")
    limit = 2**16 if dot else 2**32
    parts = [high, low] if dot else [low]
    if not all(part.isascii() and part.isdigit() and int(part) < limit for part in parts):
        raise InvalidInputError("must be an AS number such as 65001 or 1.10", field=path, value=value)
    return (int(high) << 16) + int(low) if dot else int(low)


def _read_protocol(value: Any, path: str) -> int | str:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and int(value) <= 255 else value
    return _read_int(value, path, Bits(0, 255))


def _read_port(value: Any, path: str) -> int | str:
    if not isinstance(value, str):
        return _read_int(value, path, Bits(0, 65535))
    if value.isascii() and value.isdigit():
        return _read_int(int(value), path, Bits(0, 65535))
    low, colon, high = value.partition(":")
    if colon and low.isascii() and high.isascii() and low.isdigit() and high.isdigit():
        first, last = _read_int(int(low), path, Bits(0, 65535)), _read_int(int(high), path, Bits(0, 65535))
        if first > last:
            raise InvalidInputError("must not begin above its end", field=path, value=value)
        return first if first == last else f"{first}:{last}"
    if not _PORT_NAME.fullmatch(value):
        raise InvalidInputError("must be a port number, a range such as 1000:2000, or a name", field=path, value=value)
    return value


_FORMS: dict[str, Reader] = {
    "time": _read_time,
    "duration": _read_duration,
    "as": _read_as_number,
    "protocol": _read_protocol,
    "port": _read_port,
}


def write(value: Any) -> Any:
    """Plain JSON values (dicts, lists, scalars) as Go marshals the struct, unknown members included."""
    if isinstance(value, GoStruct):
        return _write_struct(value)
    if isinstance(value, tuple | list):
        return [write(item) for item in value]
    if isinstance(value, dict):
        return {name: write(item) for name, item in value.items()}
    if isinstance(value, float):
        return _write_float(value)
    return value


def _write_float(value: float) -> float | int:
    """Go prints a whole number without a point, and takes the exponent form from 1e21 on."""
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


def _write_struct(struct: GoStruct) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for member in members(type(struct)):
        value = getattr(struct, member.attribute)
        if value is None:
            if member.always:
                result[member.name] = None
            continue
        if isinstance(value, GoStruct):
            if member.omit_zero and value == member.default:
                continue
        elif not (member.pointer or member.always) and not value:
            continue
        result[member.name] = write(value)
    if struct.unknown:
        for name, item in struct.unknown.items():
            result.setdefault(name, item)
    return result


__all__ = ["Member", "members", "read", "unknown_members", "unwrap", "write"]
