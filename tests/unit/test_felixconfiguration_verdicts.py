"""A FelixConfiguration is refused where calicoctl refuses it, and taken where it takes it.

``felixconfiguration_verdicts.json`` holds what calicoctl of Calico's master said of each field set alone: around the
bounds of numbers, of texts a choice. Left out are durations with a fraction, which Calico refuses by a slip.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calipy.cli import manifest
from calipy.datastore.client import Client
from calipy.datastore.memory import MemoryStore
from calipy.errors import InvalidInputError

VERDICTS: dict[str, dict[str, list[Any]]] = json.loads(
    Path(__file__).with_name("felixconfiguration_verdicts.json").read_text("ascii")
)


async def _apply(field: str, value: Any) -> MemoryStore:
    """Apply a file that sets one field; the store, before which there was nothing but what a client prepares."""
    document = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "FelixConfiguration",
        "metadata": {"name": "default"},
        "spec": {field: value},
    }
    store = MemoryStore()
    [resource] = manifest.read(json.dumps(document))
    await Client(store).apply(resource)
    return store


@pytest.mark.parametrize("field", VERDICTS)
async def test_what_calicoctl_takes_is_taken(field: str) -> None:
    """We share the cluster with it: what it writes must stay writable, also where no agent can use it."""
    for value in VERDICTS[field]["accepts"]:
        await _apply(field, value)


@pytest.mark.parametrize("field", [field for field, verdicts in VERDICTS.items() if verdicts["refuses"]])
async def test_what_calicoctl_refuses_is_refused_by_name(field: str) -> None:
    """The field is named, or what is in it, and so is the value."""
    for value in VERDICTS[field]["refuses"]:
        with pytest.raises(InvalidInputError, match=rf"spec\.{field}\b.* = "):
            await _apply(field, value)


@pytest.mark.parametrize(
    ("field", "gone"), [("iptablesLockFilePath", "/run/xtables.lock"), ("kubeMasqueradeBit", 14), ("bpfIstioDSCP", 46)]
)
async def test_fields_that_calico_has_no_more_are_unknown(field: str, gone: object) -> None:
    """As calicoctl says of them; stored ones are kept."""
    with pytest.raises(InvalidInputError, match=field):
        await _apply(field, gone)
