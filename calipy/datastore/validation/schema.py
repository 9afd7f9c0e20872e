"""The checks that stand in the declarations of the structs (``kinds``): enumerations, patterns, bounds."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from calipy.datastore.gojson import Member, members
from calipy.datastore.kinds.base import Enum, GoStruct, Length, OmitZero, Pattern, Range, Required, Unique
from calipy.datastore.validation.fields import fail


@cache
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex)


def check(struct: GoStruct, path: str) -> None:
    """Check every member that would be written.

    Args:
        struct: the spec, or what is in it.
        path: where it stands.
    """
    for member in members(type(struct)):
        value = getattr(struct, member.attribute)
        field = f"{path}.{member.name}"
        if not _is_written(member, value):
            if any(isinstance(mark, Required) for mark in member.marks):
                fail("must be given", field, value)
            continue
        if value is None:
            continue
        _check_value(value, member.marks, field)
        if isinstance(value, GoStruct):
            check(value, field)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                _check_value(item, member.item_marks, f"{field}[{index}]")
                if isinstance(item, GoStruct):
                    check(item, f"{field}[{index}]")


def _is_written(member: Member, value: Any) -> bool:
    if value is None:
        return member.always
    if isinstance(value, GoStruct):
        return not (any(isinstance(mark, OmitZero) for mark in member.marks) and value == member.default)
    return member.pointer or member.always or bool(value)


def _check_value(value: Any, marks: tuple[Any, ...], field: str) -> None:
    for mark in marks:
        match mark:
            case Enum(values) if str(value) not in values:
                fail(f"must be one of {', '.join(values)}", field, value)
            case Pattern(regex) if not _compiled(regex).search(value):
                fail(f"must match {regex}", field, value)
            case Range(low, high) if (low is not None and value < low) or (high is not None and value > high):
                fail(f"must be in {'…' if low is None else low}..{'…' if high is None else high}", field, value)
            case Length(low, high) if len(value) < low or (high is not None and len(value) > high):
                fail(
                    f"must have {low} to {'any number of' if high is None else high} characters or items", field, value
                )
            case Unique() if len(set(value)) < len(value):
                fail("must not hold an item twice", field, value)
