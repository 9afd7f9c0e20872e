"""JSON to structs and back by the rules of Go's ``encoding/json``, driven by the structs' own declarations.

What Go reads, this reads: member names in any case, ``null`` as absent, an AS number as text; what Go cannot read
(``80.0`` for an integer, a quoted number, a time without a zone) raises with the path of the field. Members nobody
knows are kept in the struct they were found in. This is the careful path, a microsecond per member; ``codec`` takes
msgspec's quick one for values that need none of it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, TypeVar, Union, cast

import msgspec

from calipy.datastore import goscalars as scalars
from calipy.datastore.goscalars import Reader
from calipy.datastore.kinds.base import Always, Bits, Form, Given, GoStruct, OmitZero
from calipy.errors import InvalidInputError

T = TypeVar("T")


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

    People write ``version: 5`` in files; calicoctl's YAML reader takes it as ``"5"``, and ``80.0`` as ``80``
    (sigs.k8s.io/yaml). Stored JSON is not treated so.
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
        return scalars.print_float(value) if isinstance(value, float) else str(value).lower()
    if isinstance(value, dict) and isinstance(_origin(base), type) and issubclass(_origin(base), GoStruct):
        return texts_from_scalars(base, value)
    if isinstance(value, list) and typing.get_origin(base) is tuple:
        item, marks, _pointer = unwrap(typing.get_args(base)[0])
        return [_texts(item, entry, plain=_is_plain(marks)) for entry in value]
    if isinstance(value, dict) and typing.get_origin(base) is dict:
        return {name: _texts(typing.get_args(base)[1], entry) for name, entry in value.items()}
    return _write_float(value) if isinstance(value, float) else value


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


def missing_members(struct: type[GoStruct], value: Any, path: str = "") -> Iterable[str]:
    """Paths of all members marked ``Given`` that parsed JSON, as written by a user, lacks."""
    if not isinstance(value, dict):
        return
    given = {str(name).casefold(): item for name, item in value.items()}
    for member in members(struct):
        item, where = given.get(member.name.casefold()), _join(path, member.name)
        if item is None and any(isinstance(mark, Given) for mark in member.marks):
            yield where
        inner = typing.get_args(member.type)[0] if typing.get_origin(member.type) is tuple else member.type
        if isinstance(_origin(inner), type) and issubclass(_origin(inner), GoStruct):
            for index, entry in enumerate(item if isinstance(item, list) else [item]):
                yield from missing_members(inner, entry, f"{where}[{index}]" if isinstance(item, list) else where)


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
        return scalars.FORMS[form.name]
    if base is str:
        return scalars.text
    if base is bool:
        return scalars.boolean
    if base is int:
        bits = next((mark for mark in marks if isinstance(mark, Bits)), scalars.INT64)
        return lambda value, path: scalars.integer(value, path, bits)
    if base is float:
        return scalars.number
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
        return scalars.integer_or_text
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


def _read_list(value: Any, path: str, item: Reader) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InvalidInputError("must be a list", field=path, value=value)
    return tuple([item(entry, f"{path}[{index}]") for index, entry in enumerate(value)])


def _read_map(value: Any, path: str, item: Reader) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError("must be an object", field=path, value=value)
    return {name: item(entry, f"{path}.{name}") for name, entry in value.items()}


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
    """Go prints a whole number without a point, in as many digits as it needs; from 1e21 on with an exponent."""
    return int(Decimal(repr(value))) if value.is_integer() and abs(value) < 1e21 else value


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
