"""Output of all commands: aligned tables, JSON, YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

_GO_ALSO_READS: Final = (
    ("bool", re.compile(r"^[yYnN]$"), "yYnN"),
    ("int", re.compile(r"^[-+]?0o[0-7_]+$"), "-+0"),
    ("float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"), "-+.0123456789"),
)
"""What Go's YAML takes for something other than a text, beyond what PyYAML does."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the left, three blanks apart, a line each; no trailing blanks."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_json(value: Any) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def as_yaml(value: Any) -> str:
    """Block-style YAML, keys sorted as calicoctl's, without a newline at the end.

    Texts that Go's YAML would take for something else are quoted: a plain ``n`` is false to calicoctl.
    """
    import yaml  # noqa: PLC0415 - slow to load, and tables do not need it

    class Dumper(yaml.CSafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's interface
            return True

    for tag, pattern, first in _GO_ALSO_READS:
        Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list(first))
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=True, allow_unicode=True, default_flow_style=False)
    return text.rstrip("\n")


def structured(value: Any, form: str) -> str:
    """``json`` or ``yaml``."""
    return as_json(value) if form == "json" else as_yaml(value)
