"""Long modules first: what starts last decides how long the workers wait for the last of them.

``tests/durations.txt`` has the seconds of the modules that take long; ``./run test`` with the arguments ``-n 4 --dist
loadfile --note-durations`` writes it anew. Modules that it does not name keep their order and come after those.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

NOTES = Path(__file__).resolve().parents[1] / "durations.txt"
WORTH_NOTING = 4.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--note-durations", action="store_true", help=f"note in {NOTES.name} how long modules took")


def pytest_configure(config: pytest.Config) -> None:
    """Take notes, if that is wanted, in the process that hears of all tests."""
    if config.getoption("note_durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Notes())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort them by module, the longest first."""
    noted = NOTES.read_text("utf-8").splitlines() if NOTES.exists() else []
    seconds = {module: float(took) for took, _, module in (line.partition(" ") for line in noted)}
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0.0))


class Notes:
    """Adds up the seconds of each module."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One of a test's three parts is over."""
        self._seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        lines = [f"{took:.0f} {module}\n" for module, took in self._seconds.most_common() if took >= WORTH_NOTING]
        NOTES.write_text("".join(lines), "utf-8")
