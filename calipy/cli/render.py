"""Output of all commands: aligned tables, JSON, YAML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


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
    """Block-style YAML, keys in the given order, without a newline at the end."""
    import yaml  # noqa: PLC0415 - slow to load, and tables do not need it

    class Dumper(yaml.CSafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's interface
            return True

    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text.rstrip("\n")


def structured(value: Any, form: str) -> str:
    """``json`` or ``yaml``."""
    return as_json(value) if form == "json" else as_yaml(value)
