"""Syntax tree of selectors. Each node prints itself, compiles itself to a closure and states its restrictions.

Matching runs millions of times, so a node compiles once to nested closures over a label mapping; the tree itself is
only walked to print, rewrite or restrict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Labels: TypeAlias = Mapping[str, str]
Matcher: TypeAlias = Callable[[Labels], bool]
Operator: TypeAlias = Literal["==", "!=", "contains", "starts with", "ends with"]


@dataclass(frozen=True, slots=True)
class Restriction:
    """What holds of one label in every label map that matches.

    Attributes:
        must_be_present, must_be_absent: the label is (not) there.
        one_of: its value is one of these, in the order written; None = any value. Empty = nothing can match.
    """

    must_be_present: bool = False
    must_be_absent: bool = False
    one_of: tuple[str, ...] | None = None


def quote(value: str) -> str:
    """A value as the canonical text shows it: double quotes unless it holds one."""
    return f"'{value}'" if '"' in value else f'"{value}"'


class Node:
    """Base of all nodes; the defaults fit a leaf that reads no label."""

    __slots__ = ()

    def text(self) -> str:
        """Canonical text."""
        raise NotImplementedError

    def compile(self) -> Matcher:
        """A function over effective labels."""
        raise NotImplementedError

    def label_names(self) -> Iterator[str]:
        """Every label the node reads, repeated as written."""
        return iter(())

    def restrictions(self) -> dict[str, Restriction]:
        """What matching implies for each label; a label not listed is free."""
        return {}

    def renamed(self, rename: Callable[[str], str]) -> Node:  # noqa: ARG002 - a leaf without label has nothing to rename
        """This leaf with its label renamed."""
        return self

    def map_leaves(self, change: Callable[[Node], Node]) -> Node:
        """A copy with every leaf replaced by what ``change`` makes of it."""
        return change(self)


@dataclass(frozen=True, slots=True)
class All(Node):
    """``all()``."""

    def text(self) -> str:
        return "all()"

    def compile(self) -> Matcher:
        return lambda _labels: True


@dataclass(frozen=True, slots=True)
class Global(Node):
    """``global()``: true by itself; has meaning only as a rule's whole namespace selector."""

    def text(self) -> str:
        return "global()"

    def compile(self) -> Matcher:
        return lambda _labels: True


@dataclass(frozen=True, slots=True)
class Has(Node):
    """``has(label)``."""

    label: str

    def text(self) -> str:
        return f"has({self.label})"

    def compile(self) -> Matcher:
        label = self.label
        return lambda labels: label in labels

    def label_names(self) -> Iterator[str]:
        yield self.label

    def restrictions(self) -> dict[str, Restriction]:
        return {self.label: Restriction(must_be_present=True)}

    def renamed(self, rename: Callable[[str], str]) -> Node:
        return Has(rename(self.label))


@dataclass(frozen=True, slots=True)
class Compare(Node):
    """A label against one string. A missing label satisfies only ``!=``."""

    label: str
    operator: Operator
    value: str

    def text(self) -> str:
        return f"{self.label} {self.operator} {quote(self.value)}"

    def compile(self) -> Matcher:
        label, value = self.label, self.value
        match self.operator:
            case "==":
                return lambda labels: labels.get(label) == value
            case "!=":
                return lambda labels: labels.get(label) != value
            case "contains":
                return lambda labels: (found := labels.get(label)) is not None and value in found
            case "starts with":
                return lambda labels: (found := labels.get(label)) is not None and found.startswith(value)
            case "ends with":
                return lambda labels: (found := labels.get(label)) is not None and found.endswith(value)

    def label_names(self) -> Iterator[str]:
        yield self.label

    def restrictions(self) -> dict[str, Restriction]:
        match self.operator:
            case "==":
                return {self.label: Restriction(must_be_present=True, one_of=(self.value,))}
            case "!=":
                return {}
            case _:
                return {self.label: Restriction(must_be_present=True)}

    def renamed(self, rename: Callable[[str], str]) -> Node:
        return Compare(rename(self.label), self.operator, self.value)


@dataclass(frozen=True, slots=True)
class InSet(Node):
    """``label in {…}`` or ``label not in {…}``; values sorted, each once. A missing label satisfies only the latter."""

    label: str
    values: tuple[str, ...]
    negated: bool = False

    def text(self) -> str:
        operator = "not in" if self.negated else "in"
        return f"{self.label} {operator} {{{', '.join(map(quote, self.values))}}}"

    def compile(self) -> Matcher:
        label, values = self.label, frozenset(self.values)
        if self.negated:
            return lambda labels: labels.get(label) not in values
        return lambda labels: labels.get(label) in values

    def label_names(self) -> Iterator[str]:
        yield self.label

    def restrictions(self) -> dict[str, Restriction]:
        if self.negated:
            return {}
        return {self.label: Restriction(must_be_present=True, one_of=self.values)}

    def renamed(self, rename: Callable[[str], str]) -> Node:
        return InSet(rename(self.label), self.values, self.negated)


@dataclass(frozen=True, slots=True)
class Not(Node):
    """Negation."""

    term: Node

    def text(self) -> str:
        return f"!{self.term.text()}"

    def compile(self) -> Matcher:
        term = self.term.compile()
        return lambda labels: not term(labels)

    def label_names(self) -> Iterator[str]:
        return self.term.label_names()

    def restrictions(self) -> dict[str, Restriction]:
        if isinstance(self.term, Has):
            return {self.term.label: Restriction(must_be_absent=True)}
        return {}

    def map_leaves(self, change: Callable[[Node], Node]) -> Node:
        return Not(self.term.map_leaves(change))


@dataclass(frozen=True, slots=True)
class And(Node):
    """Conjunction of two or more."""

    terms: tuple[Node, ...]

    def text(self) -> str:
        return f"({' && '.join(term.text() for term in self.terms)})"

    def compile(self) -> Matcher:
        matchers = tuple(term.compile() for term in self._flat())
        if len(matchers) == 2:  # the most common shape by far
            first, second = matchers
            return lambda labels: first(labels) and second(labels)

        def matches(labels: Labels) -> bool:
            for matcher in matchers:  # noqa: SIM110 - a generator costs twice as much here
                if not matcher(labels):
                    return False
            return True

        return matches

    def _flat(self) -> Iterator[Node]:
        for term in self.terms:
            if isinstance(term, And):
                yield from term._flat()  # noqa: SLF001 - its own class
            else:
                yield term

    def label_names(self) -> Iterator[str]:
        for term in self.terms:
            yield from term.label_names()

    def restrictions(self) -> dict[str, Restriction]:
        result: dict[str, Restriction] = {}
        for term in self.terms:
            for label, new in term.restrictions().items():
                old = result.get(label)
                result[label] = new if old is None else _both(old, new)
        return result

    def map_leaves(self, change: Callable[[Node], Node]) -> Node:
        return And(tuple(term.map_leaves(change) for term in self.terms))


@dataclass(frozen=True, slots=True)
class Or(Node):
    """Disjunction of two or more."""

    terms: tuple[Node, ...]

    def text(self) -> str:
        return f"({' || '.join(term.text() for term in self.terms)})"

    def compile(self) -> Matcher:
        matchers = tuple(term.compile() for term in self.terms)

        def matches(labels: Labels) -> bool:
            for matcher in matchers:  # noqa: SIM110 - a generator costs twice as much here
                if matcher(labels):
                    return True
            return False

        return matches

    def label_names(self) -> Iterator[str]:
        for term in self.terms:
            yield from term.label_names()

    def restrictions(self) -> dict[str, Restriction]:
        result = self.terms[0].restrictions()
        for term in self.terms[1:]:
            other = term.restrictions()
            merged = {label: _either(result[label], other[label]) for label in result.keys() & other.keys()}
            result = {label: found for label, found in merged.items() if found != Restriction()}
        return result

    def map_leaves(self, change: Callable[[Node], Node]) -> Node:
        return Or(tuple(term.map_leaves(change) for term in self.terms))


def _both(a: Restriction, b: Restriction) -> Restriction:
    if a.one_of is None or b.one_of is None:
        one_of = b.one_of if a.one_of is None else a.one_of
    else:
        one_of = tuple(value for value in a.one_of if value in b.one_of)
    return Restriction(a.must_be_present or b.must_be_present, a.must_be_absent or b.must_be_absent, one_of)


def _either(a: Restriction, b: Restriction) -> Restriction:
    one_of = None
    if a.one_of is not None and b.one_of is not None:
        one_of = (*a.one_of, *(value for value in b.one_of if value not in a.one_of))
    return Restriction(a.must_be_present and b.must_be_present, a.must_be_absent and b.must_be_absent, one_of)
