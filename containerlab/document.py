"""Strict reading of YAML into typed values, with the scalar rules of containerlab's Go decoder. Pure.

Go decodes a scalar into the type of the field it is meant for, so a text stays the text that was written: ``22:22`` is
no number, ``yes`` no boolean, ``0179`` keeps its zero. A ``Cursor`` therefore keeps the parsed node and converts only
when told the type; and it knows its line and its path, which every error names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from calipy.containerlab.errors import TopologyError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_INTEGER = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0b[01_]+|0o?[0-7_]+|[1-9][0-9_]*|0)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def parse(text: str, *, place: str) -> Cursor:
    """The document in ``text`` as a cursor on its top-level mapping.

    Args:
        text: YAML, after substitution.
        place: name of the file for errors.

    Raises:
        TopologyError: it is not YAML, or not one mapping.
    """
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark else place
        problem = getattr(error, "problem", None) or str(error)
        raise TopologyError(f"not valid YAML: {problem}", place=where) from None
    if node is None:
        raise TopologyError("the file is empty: 'name' and 'topology' are required", place=place)
    cursor = Cursor(node, place, "")
    if not isinstance(node, yaml.MappingNode):
        cursor.fail(f"expected a mapping at the top, found {cursor.what}")
    return cursor


def _similar(key: str, allowed: frozenset[str]) -> str:
    if close := difflib.get_close_matches(key, sorted(allowed), n=2):
        return f"did you mean {' or '.join(close)}?"
    return f"known keys are: {', '.join(sorted(allowed))}" if len(allowed) < 20 else "see the manual for the known keys"


@dataclass(frozen=True, slots=True)
class Cursor:
    """One node of the document.

    Attributes:
        node: what the YAML parser found.
        file: name of the file for errors.
        path: dotted path of the element; "" at the top.
    """

    node: yaml.Node
    file: str
    path: str

    @property
    def place(self) -> str:
        """``file:line``, counted from 1."""
        return f"{self.file}:{self.node.start_mark.line + 1}"

    @property
    def what(self) -> str:
        """What kind of node this is, for messages."""
        if isinstance(self.node, yaml.ScalarNode):
            return f"the text {self.node.value!r}"
        return "a mapping" if isinstance(self.node, yaml.MappingNode) else "a list"

    @property
    def is_null(self) -> bool:
        """Absent body, ``~`` or ``null``, unquoted."""
        return self._plain and self.node.value in _NULLS

    @property
    def is_scalar(self) -> bool:
        """A text, number, boolean or null."""
        return isinstance(self.node, yaml.ScalarNode)

    @property
    def _plain(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and not self.node.style

    def fail(self, message: str, *, remedy: str = "", value: object = None) -> NoReturn:
        """Raise a ``TopologyError`` that names this element and its place."""
        raise TopologyError(message, place=self.place, element=self.path, remedy=remedy, value=value)

    def child(self, node: yaml.Node, name: str | int) -> Cursor:
        """The cursor of an element below this one."""
        step = f"[{name}]" if isinstance(name, int) else f".{name}" if self.path else name
        return Cursor(node, self.file, f"{self.path}{step}")

    def mapping(self, allowed: frozenset[str] | None = None) -> dict[str, Cursor]:
        """Keys and values in the order written; merge keys (``<<``) are resolved, what is written here wins.

        As Go's decoder fills fields that are there already, a field that is a mapping in both places is itself merged.

        Args:
            allowed: the only keys that may occur, which makes these fields; None allows any.

        Raises:
            TopologyError: not a mapping, a key twice, or a key that is not allowed. Null is an empty mapping.
        """
        if self.is_null:
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            self.fail(f"expected a mapping, found {self.what}")
        own: dict[str, Cursor] = {}
        merged: dict[str, Cursor] = {}
        for key_node, value_node in self.node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.child(key_node, "?").fail("a key must be a text")
            key = key_node.value
            if key == "<<" and not key_node.style:
                merged = {**self._merged(value_node), **merged}
                continue
            if key in own:
                Cursor(key_node, self.file, self.path).fail(f"key {key!r} is given twice", value=key)
            if allowed is not None and key not in allowed:
                Cursor(key_node, self.file, self.path).fail(
                    f"unknown key {key!r}", value=key, remedy=_similar(key, allowed)
                )
            own[key] = self.child(value_node, key)
        for key, value in merged.items():
            if allowed is not None and key not in allowed:
                value.fail(f"unknown key {key!r} (merged)", value=key)
        if allowed is not None:
            own = {key: value.over(merged[key]) if key in merged else value for key, value in own.items()}
        return {**merged, **own} if merged else own

    def over(self, other: Cursor) -> Cursor:
        """This element, laid over ``other`` where both are mappings."""
        if not isinstance(self.node, yaml.MappingNode) or not isinstance(other.node, yaml.MappingNode):
            return self
        merge = (yaml.ScalarNode("tag:yaml.org,2002:merge", "<<"), other.node)
        node = yaml.MappingNode(self.node.tag, [merge, *self.node.value], self.node.start_mark, self.node.end_mark)
        return Cursor(node, self.file, self.path)

    def _merged(self, node: yaml.Node) -> dict[str, Cursor]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Cursor] = {}
        for source in sources:  # earlier ones win
            result = {**self.child(source, "<<").mapping(), **result}
        return {key: Cursor(value.node, self.file, f"{self.path}.{key}") for key, value in result.items()}

    def items(self) -> Iterator[Cursor]:
        """The elements of a list; null is an empty list."""
        if self.is_null:
            return
        if not isinstance(self.node, yaml.SequenceNode):
            self.fail(f"expected a list, found {self.what}")
        for number, node in enumerate(self.node.value):
            yield self.child(node, number)

    def text(self) -> str:
        """The scalar as written; null is ""."""
        if not isinstance(self.node, yaml.ScalarNode):
            self.fail(f"expected a text, found {self.what}")
        return "" if self.is_null else str(self.node.value)

    def texts(self) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(item.text() for item in self.items())

    def text_map(self) -> dict[str, str]:
        """A mapping of texts."""
        return {key: value.text() for key, value in self.mapping().items()}

    def boolean(self) -> bool:
        """``true``/``false`` and YAML 1.1's other spellings, unquoted."""
        value = self.node.value
        if self._plain and value in _TRUE:
            return True
        if self._plain and (value in _FALSE or value in _NULLS):
            return False
        return self.fail(f"expected true or false, found {self.what}", value=value)

    def integer(self, *, minimum: int | None = None) -> int:
        """A whole number, unquoted; at least ``minimum``."""
        number = self._number()
        if not isinstance(number, int):
            self.fail(f"expected a whole number, found {self.what}", value=self.node.value)
        if minimum is not None and number < minimum:
            self.fail(f"must be {minimum} or more, found {number}", value=number)
        return number

    def number(self) -> float:
        """A number, unquoted."""
        number = self._number()
        if number is None:
            self.fail(f"expected a number, found {self.what}", value=self.node.value)
        return float(number)

    def _number(self) -> int | float | None:
        if not self._plain:
            return None
        value = self.node.value
        if value in _NULLS:
            return 0
        if _INTEGER.fullmatch(value):
            digits = value.replace("_", "")
            octal = re.fullmatch(r"([-+]?)0([0-7]+)", digits)  # 010 is eight, as in C and Go
            return int(f"{octal[1]}{octal[2]}", 8) if octal else int(digits, 0)
        if _FLOAT.fullmatch(value):
            number = float(value)
            return int(number) if number.is_integer() else number
        return None

    def any(self) -> Any:
        """A value of any shape as JSON knows it (link ``vars``)."""
        if isinstance(self.node, yaml.MappingNode):
            return {key: value.any() for key, value in self.mapping().items()}
        if isinstance(self.node, yaml.SequenceNode):
            return [item.any() for item in self.items()]
        if self.is_null:
            return None
        value = self.node.value
        if self._plain and value in _TRUE:
            return True
        if self._plain and value in _FALSE:
            return False
        number = self._number()
        return value if number is None else number
