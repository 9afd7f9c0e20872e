"""Properties of selectors that hold for every expression."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.errors import InvalidInputError
from calipy.policy.selector import ALL, conjunction, parse

LABELS = ["role", "team", "pcns.env"]
VALUES = ["web", "net", "", "it's", 'a"b']


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


labels = st.sampled_from(LABELS)
values = st.sampled_from(VALUES).map(_quoted)
leaves = st.one_of(
    st.builds("{} {} {}".format, labels, st.sampled_from(["==", "!=", "contains", "starts with", "ends with"]), values),
    st.builds("{} {} {{{}}}".format, labels, st.sampled_from(["in", "not in"]), st.lists(values).map(", ".join)),
    st.builds("has({})".format, labels),
    st.just("all()"),
)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("!({})".format, inner),
        st.builds("({}) && ({})".format, inner, inner),
        st.builds("({}) || ({})".format, inner, inner),
    ),
    max_leaves=12,
)
label_maps = st.dictionaries(labels, st.sampled_from(VALUES))


@given(expressions)
def test_canonical_text_is_stable(text: str) -> None:
    """The canonical text of a canonical text is itself: ids do not move when a selector is stored and read back.

    Nested negations are the one exception in Calico's own grammar: ``!(!x)`` prints ``!!x``, which reads as ``x``.
    """
    canonical = parse(text).canonical
    if "!!" not in canonical:
        assert parse(canonical).canonical == canonical


@given(expressions, label_maps)
def test_canonical_text_means_the_same(text: str, given_labels: dict[str, str]) -> None:
    """Printing never changes what a selector matches."""
    assert parse(parse(text).canonical).matches(given_labels) == parse(text).matches(given_labels)


@given(expressions, label_maps)
def test_restrictions_are_sound(text: str, given_labels: dict[str, str]) -> None:
    """Whatever matches obeys every restriction, so an index that trusts them misses nothing."""
    selector = parse(text)
    if not selector.matches(given_labels):
        return
    for label, restriction in selector.restrictions.items():
        assert not (restriction.must_be_present and label not in given_labels)
        assert not (restriction.must_be_absent and label in given_labels)
        assert restriction.one_of is None or given_labels[label] in restriction.one_of


@given(expressions, label_maps, st.sampled_from(LABELS), st.sampled_from(VALUES))
def test_only_named_labels_matter(text: str, given_labels: dict[str, str], label: str, value: str) -> None:
    """A label the selector does not name cannot change its result."""
    selector = parse(text)
    if label not in selector.labels:
        assert selector.matches(given_labels) == selector.matches({**given_labels, label: value})


@given(expressions, expressions, label_maps)
def test_conjunction_matches_both(first: str, second: str, given_labels: dict[str, str]) -> None:
    """A conjunction matches exactly what both match, and prints as the text ``(a) && (b)`` would."""
    both = conjunction(parse(first), parse(second))
    assert both.matches(given_labels) == (parse(first).matches(given_labels) and parse(second).matches(given_labels))
    assert both.canonical == parse(f"({first}) && ({second})").canonical


def test_prefixing_renames_every_label() -> None:
    """Prefixing reaches every operator and leaves values alone."""
    selector = parse("has(a) && !(b == 'b' || c in {'c'}) && d starts with 'd'").rename_labels("pcns.".__add__)
    assert selector.canonical == ('(has(pcns.a) && !(pcns.b == "b" || pcns.c in {"c"}) && pcns.d starts with "d")')


def test_replacing_all_leaves_values_alone() -> None:
    """``all()`` is replaced wherever it stands as a term, never inside a value."""
    selector = parse("all() || name == 'all()' && !all()").replace(ALL, parse("has(ns)"))
    assert selector.canonical == '(has(ns) || (name == "all()" && !has(ns)))'


def test_worked_set_id() -> None:
    """The id of ``all()`` is the one seen in Calico's kernel names."""
    assert ALL.unique_id().startswith("s:5y5I3VdRZfDU01O--xXAPx2")


def test_deep_nesting_is_refused_not_crashed() -> None:
    """Depth has a stated limit; up to it everything works, beyond it the error names the limit."""
    assert parse("(" * 240 + "has(a)" + ")" * 240).canonical == "has(a)"
    assert parse("!(" * 240 + "has(a)" + ")" * 240).matches({"a": ""})
    with pytest.raises(InvalidInputError, match="250 nested"):
        parse("(" * 300 + "has(a)" + ")" * 300)


def test_error_names_place_and_remedy() -> None:
    """A bad selector says where it went wrong and what a right one looks like."""
    with pytest.raises(InvalidInputError, match=r"at character 9.*quoted string.*for example"):
        parse("role == web")
