"""Suites: each knows one format of cases by its content and runs it."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final, Protocol

from calipy.conformance.bench import Bench
from calipy.conformance.report import CaseResult


class Suite(Protocol):
    """A module that runs one format."""

    def detect(self, path: Path, document: Any) -> bool:
        """Whether the file is of this format; ``document`` is its JSON, None if it is none."""
        ...

    def run(self, name: str, document: Any, bench: Bench) -> Awaitable[list[CaseResult]]:
        """Run every case of a file; ``name`` is what reports call it."""
        ...


MODULES: Final = (
    "calipy.conformance.verdicts",
    "calipy.conformance.steps",
    "calipy.conformance.address_cases",
    "calipy.conformance.selectors",
    "calipy.conformance.conversions",
    "calipy.conformance.netpol",
    "calipy.conformance.startup",
)
"""Modules with the interface of ``Suite``; the first that recognises a file runs it."""


def suites() -> list[Any]:
    """All suites, imported."""
    return [importlib.import_module(name) for name in MODULES]
