"""Calico's label selectors: grammar, canonical text, ip set ids, matching, and what an index may conclude.

``parse("role == 'web' && has(team)")`` gives a ``Selector``. Selectors are immutable, compare by canonical text and
are cached, so that the same text in a thousand rules is parsed once. Behaviour follows ``libcalico-go/lib/selector``:
a missing label makes every operator false but ``!=`` and ``not in``; whitespace is space and tab only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NoReturn

from calipy.errors import InvalidInputError
from calipy.policy.selector_nodes import (
    All,
    And,
    Compare,
    Global,
    Has,
    InSet,
    Node,
    Not,
    Operator,
    Or,
    Restriction,
)

__all__ = [
    "ALL",
    "GLOBAL",
    "Restriction",
    "Selector",
    "conjunction",
    "named_port_set_id",
    "parse",
    "service_set_id",
    "set_id",
]

MAX_DEPTH: Final = 250
"""How deep parentheses and negations may nest; keeps matching within Python's own recursion limit."""

_BLANK = re.compile(r"[ \t]*")
_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,512}")
_STRING = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_FUNCTION = re.compile(r"(all|global)\([ \t]*\)|has\([ \t]*([A-Za-z0-9_./-]{1,512})[ \t]*\)")
_SET_OPERATOR = re.compile(r"(not[ \t]*)?in\b")
_TEXT_OPERATOR = re.compile(r"(==|!=)|(contains|starts[ \t]*with|ends[ \t]*with)\b")
_TEXT_OPERATORS: Final[Mapping[str, Operator]] = {
    "==": "==",
    "!=": "!=",
    "contains": "contains",
    "startswith": "starts with",
    "endswith": "ends with",
}


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector; equal and hashed by its canonical text.

    Attributes:
        canonical: Calico's canonical text, the input of ip set ids.
        root: the syntax tree.
        matches: ``matches(labels) -> bool`` over a mapping of *effective* labels; does not block, never raises.
        labels: names of all labels the selector reads: a change of any other label cannot change its result.
        restrictions: per label, what must hold of every label map that matches (sound, not complete).
    """

    canonical: str
    root: Node = field(compare=False, repr=False)
    matches: Callable[[Mapping[str, str]], bool] = field(compare=False, repr=False)
    labels: frozenset[str] = field(compare=False, repr=False)
    restrictions: Mapping[str, Restriction] = field(compare=False, repr=False)

    def unique_id(self, prefix: str = "s") -> str:
        """The ip set id of this selector: prefix, colon, unpadded base64url of a SHA-224."""
        return set_id(prefix, self.canonical)

    def rename_labels(self, rename: Callable[[str], str]) -> Selector:
        """The same selector over renamed labels, e.g. with ``pcns.`` before each."""
        return _selector(self.root.map_leaves(lambda leaf: leaf.renamed(rename)))

    def replace(self, leaf: Selector, replacement: Selector) -> Selector:
        """The same selector with a leaf such as ``all()`` replaced wherever it stands."""
        old, new = leaf.root, replacement.root
        return _selector(self.root.map_leaves(lambda found: new if found == old else found))


def set_id(prefix: str, text: str) -> str:
    """Calico's ip set id over any text: ``<prefix>:`` + unpadded base64url(SHA-224(``<prefix>:`` + text))."""
    digest = hashlib.sha224(f"{prefix}:{text}".encode()).digest()
    return f"{prefix}:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def named_port_set_id(selector: Selector, protocol: str, port: str) -> str:
    """Id of the ``ip,port`` set of endpoints that match ``selector`` and name ``port`` for a protocol.

    Args:
        selector: of the endpoints.
        protocol: ``tcp``, ``udp``, ``sctp``, or "" for whichever the endpoint says.
        port: its name.
    """
    return set_id("n", f"{selector.unique_id()},{protocol or 'none'},{port}")


def service_set_id(namespace: str, name: str, *, with_ports: bool) -> str:
    """Id of the set of a service's endpoints, with their ports or as bare addresses."""
    return set_id("svc" if with_ports else "svcnoport", f"{namespace}/{name}")


@lru_cache(maxsize=16384)
def parse(text: str) -> Selector:
    """Parse a selector; blank text means ``all()``. Pure and cached; O(length).

    Raises:
        InvalidInputError: not a selector; says at which character and what was expected there.
    """
    return _selector(_Parser(text).parse())


@lru_cache(maxsize=16384)
def conjunction(*selectors: Selector) -> Selector:
    """All of ``selectors`` at once, as ``(a) && (b)`` would parse; of one, that one; of none, ``all()``."""
    if not selectors:
        return ALL
    roots = tuple(selector.root for selector in selectors)
    return _selector(roots[0] if len(roots) == 1 else And(roots))


def _selector(root: Node) -> Selector:
    return Selector(root.text(), root, root.compile(), frozenset(root.label_names()), root.restrictions())


class _Frame:
    """What is open inside one pair of parentheses."""

    __slots__ = ("factors", "negated", "terms")

    def __init__(self) -> None:
        self.terms: list[Node] = []  # closed operands of ||
        self.factors: list[Node] = []  # operands of && since the last ||
        self.negated = False  # parity of the ! signs before the operand being read

    def add(self, node: Node) -> None:
        self.factors.append(Not(node) if self.negated else node)
        self.negated = False

    def close_factors(self) -> None:
        self.terms.append(self.factors[0] if len(self.factors) == 1 else And(tuple(self.factors)))
        self.factors = []

    def close(self) -> Node:
        self.close_factors()
        return self.terms[0] if len(self.terms) == 1 else Or(tuple(self.terms))


class _Parser:
    """Operator-precedence parser with its own stack, so that depth is a rule of ours and not a crash."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def parse(self) -> Node:
        self._skip_blank()
        if self.at == len(self.text):
            return All()
        frames = [_Frame()]
        expecting_operand = True
        while True:
            self._skip_blank()
            if expecting_operand:
                if self._take("!"):
                    frames[-1].negated = not frames[-1].negated
                elif self._take("("):
                    if len(frames) > MAX_DEPTH:
                        self._fail(f"at most {MAX_DEPTH} nested parentheses")
                    frames.append(_Frame())
                else:
                    frames[-1].add(self._primary())
                    expecting_operand = False
            elif self._take("&&"):
                expecting_operand = True
            elif self._take("||"):
                frames[-1].close_factors()
                expecting_operand = True
            elif len(frames) > 1 and self._take(")"):
                node = frames.pop().close()
                frames[-1].add(node)
            elif self.at == len(self.text) and len(frames) == 1:
                return frames[0].close()
            else:
                self._fail("'&&', '||'" + (" or ')'" if len(frames) > 1 else " or the end"))

    def _primary(self) -> Node:
        if found := self._match(_FUNCTION):
            if found[2] is not None:
                return Has(found[2])
            return All() if found[1] == "all" else Global()
        label = self._match(_LABEL)
        if label is None:
            self._fail("a label name, 'has(', 'all()', '!' or '('")
        self._skip_blank()
        if found := self._match(_TEXT_OPERATOR):
            operator = _TEXT_OPERATORS[re.sub(r"[ \t]", "", found[0])]
            return Compare(label[0], operator, self._string())
        if found := self._match(_SET_OPERATOR):
            return InSet(label[0], self._set(), negated=found[1] is not None)
        return self._fail("an operator: ==, !=, in, not in, contains, starts with, ends with")

    def _string(self) -> str:
        self._skip_blank()
        found = self._match(_STRING)
        if found is None:
            self._fail("a quoted string")
        return found[1] if found[1] is not None else found[2]

    def _set(self) -> tuple[str, ...]:
        self._skip_blank()
        if not self._take("{"):
            self._fail("'{' and a list of quoted strings")
        values: set[str] = set()
        while True:
            self._skip_blank()
            if self._take("}"):
                return tuple(sorted(values))
            values.add(self._string())
            self._skip_blank()
            if not self._take(",") and not self.text.startswith("}", self.at):
                self._fail("',' or '}'")

    def _skip_blank(self) -> None:
        found = _BLANK.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def _take(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _fail(self, expected: str) -> NoReturn:
        raise InvalidInputError(
            f"not a selector: at character {self.at + 1}, expected {expected}",
            value=self.text,
            remedy="for example: role == 'web' && env in {'prod', 'test'} && !has(legacy)",
        )


ALL: Final = parse("all()")
"""Every endpoint."""

GLOBAL: Final = parse("global()")
"""Everything by itself; as the namespace selector of a rule, what is in no namespace."""
