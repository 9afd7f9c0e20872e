"""Go durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.datastore import durations


@pytest.mark.parametrize(
    ("given_text", "printed"),
    [
        ("90s", "1m30s"),
        ("2m", "2m0s"),
        ("1.5h", "1h30m0s"),
        ("0.5s", "500ms"),
        ("0", "0s"),
        ("-1.5s", "-1.5s"),
        ("1h2m3s4ms5us6ns", "1h2m3.004005006s"),
        ("1500us", "1.5ms"),
        ("100h", "100h0m0s"),
    ],
)
def test_print(given_text: str, printed: str) -> None:
    """Texts come out as Go prints them."""
    assert durations.canonical(given_text) == printed


@pytest.mark.parametrize("bad", ["", "90", "1d", "1 s", "s", "ten", "1s ", "1e3s", "--1s"])
def test_refused(bad: str) -> None:
    """What Go's parser refuses is refused."""
    with pytest.raises(ValueError, match="duration"):
        durations.parse(bad)


@given(st.integers(-(2**62), 2**62))
def test_round_trip(nanoseconds: int) -> None:
    """Every number of nanoseconds survives its print."""
    assert durations.parse(durations.text(nanoseconds)) == nanoseconds
