"""Metrics count what happens, and their text is what Prometheus reads."""

from __future__ import annotations

import math

import pytest

from calipy.metrics import RECENT, Registry


def test_text_of_every_kind() -> None:
    """Names in order, with help, type, labels and plain numbers."""
    registry = Registry()
    registry.summary("waits_seconds", "Waits.").observe(0.25)
    registry.counter("calls", "Calls.").inc(2)
    registry.gauges("rules", "Rules.", "ip_version", "table").labels("4", "nat").set(1.5)
    assert registry.expose() == (
        "# HELP calls Calls.\n# TYPE calls counter\ncalls 2\n"
        '# HELP rules Rules.\n# TYPE rules gauge\nrules{ip_version="4",table="nat"} 1.5\n'
        "# HELP waits_seconds Waits.\n# TYPE waits_seconds summary\n"
        'waits_seconds{quantile="0.5"} 0.25\nwaits_seconds{quantile="0.9"} 0.25\nwaits_seconds{quantile="0.99"} 0.25\n'
        "waits_seconds_sum 0.25\nwaits_seconds_count 1\n"
    )


def test_special_characters_are_escaped() -> None:
    """A label's value may be anything, and ends where it ends."""
    registry = Registry()
    registry.counters("c", "One\\two\nthree.", "name").labels('a"b\\c\nd').inc()
    assert registry.expose() == '# HELP c One\\\\two\\nthree.\n# TYPE c counter\nc{name="a\\"b\\\\c\\nd"} 1\n'


def test_special_numbers() -> None:
    """Infinities and NaN have names of their own."""
    registry = Registry()
    gauges = registry.gauges("g", "G.", "n")
    for value in (math.inf, -math.inf, math.nan, 1e300, -3.0):
        gauges.labels(str(value)).set(value)
    assert [line.rpartition(" ")[2] for line in registry.expose().splitlines()[2:]] == [
        "+Inf", "-Inf", "NaN", "1e+300", "-3",
    ]  # fmt: skip


def test_quantiles_follow_the_recent_observations() -> None:
    """A summary forgets old observations in its quantiles, not in its count and sum."""
    summary = Registry().summary("s", "S.")
    assert math.isnan(summary.quantile(0.5))
    for value in range(1, RECENT + 1):
        summary.observe(value)
    assert [summary.quantile(share) for share in (0, 0.5, 0.99, 1)] == [1, RECENT / 2, RECENT * 0.99, RECENT]
    for _ in range(RECENT):
        summary.observe(7)
    assert summary.quantile(0.99) == 7
    assert summary.count == 2 * RECENT
    assert summary.total == RECENT * (RECENT + 1) / 2 + 7 * RECENT


def test_labelled_instruments_are_one_per_value() -> None:
    """The same labels give the same instrument, until all are forgotten; none without a sample is shown."""
    registry = Registry()
    gauges = registry.gauges("g", "G.", "kind")
    assert gauges.labels("a") is gauges.labels("a")
    gauges.labels("b").set(1)
    assert 'g{kind="b"} 1' in registry.expose()
    gauges.clear()
    assert registry.expose() == ""
    with pytest.raises(ValueError, match="kind"):
        gauges.labels("a", "b")


def test_gauges_are_prepared_when_asked() -> None:
    """What is known anyway is read only when somebody looks."""
    registry = Registry()
    gauge = registry.gauge("length", "Length.")
    things: list[int] = []
    registry.before_exposing(lambda: gauge.set(len(things)))
    things += [1, 2, 3]
    assert "\nlength 3\n" in registry.expose()


def test_names_are_checked() -> None:
    """A name that Prometheus would refuse, or that exists, is refused at once."""
    registry = Registry()
    registry.counter("felix_calls", "Calls.")
    with pytest.raises(ValueError, match="already"):
        registry.gauge("felix_calls", "Calls.")
    with pytest.raises(ValueError, match="not a name"):
        registry.gauge("felix-calls", "Calls.")
    with pytest.raises(ValueError, match="not a name"):
        registry.counters("calls", "Calls.", "ip version")
