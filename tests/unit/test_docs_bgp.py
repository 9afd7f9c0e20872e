"""The resources in the manual of BGP can be pasted: each is complete, and Calico's client would take it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from calipy.cli import manifest
from calipy.datastore import defaults, validation

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```yaml\n((?s:.*?))^```$|^((?:    .*\n)+)", re.MULTILINE)


def blocks(page: str) -> list[str]:
    """YAML blocks, fenced or indented, that hold resources."""
    found = [textwrap.dedent(fenced or indented) for fenced, indented in BLOCK.findall((DOCS / page).read_text())]
    return [one for one in found if re.search(r"^kind: ", one, re.MULTILINE)]


@pytest.mark.parametrize(("page", "kinds"), [("bgp.md", 7), ("bgp-routers.md", 4)])
def test_resources_can_be_pasted(page: str, kinds: int) -> None:
    """Each has apiVersion and name, decodes without unknown members, and is valid."""
    texts = blocks(page)
    resources = [resource for text in texts for resource in manifest.read(text)]
    assert len(resources) == kinds
    assert sum(text.count("\nkind: ") for text in texts) == kinds, "apiVersion comes before each"
    for resource in resources:
        assert resource.metadata.name
        assert not resource.spec.unknown
        validation.check(defaults.fill(resource))
