"""The name of a policy beside its key: an annotation on disk, ``metadata.name`` in memory.

Releases up to 3.31 put the tier in front of the name in the key; later ones write the name as given, and note it in an
annotation that readers take the name from. Source: Calico ``libcalico-go/lib/backend/model/resource.go``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from calipy.datastore.keys import ResourceKey, path
from calipy.datastore.kinds.meta import Resource
from calipy.errors import UndecodableError

NAMED_POLICIES: Final = frozenset({
    "NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy",
})  # fmt: skip
ANNOTATION: Final = "projectcalico.org/metadata"
TIER_LABEL: Final = "projectcalico.org/tier"
DEFAULT_PREFIX: Final = "default."


def show_policy_name(resource: Resource[Any, Any], key: ResourceKey) -> Resource[Any, Any]:
    """A policy as read: named by its annotation, which is taken off, or else without a leading ``default.``.

    Raises:
        UndecodableError: the annotation is not what it should be.
    """
    metadata = resource.metadata
    note = metadata.annotations.get(ANNOTATION)
    if note is None:
        if resource.spec.tier in {"", "default"} and metadata.name.startswith(DEFAULT_PREFIX):
            metadata = msgspec.structs.replace(metadata, name=metadata.name.removeprefix(DEFAULT_PREFIX))
            return msgspec.structs.replace(resource, metadata=metadata)
        return resource
    try:
        name = msgspec.json.decode(note, type=dict[str, Any]).get("name")
    except msgspec.MsgspecError:
        name = None
    if not isinstance(name, str):
        raise UndecodableError(
            "must be JSON with a name", key=path(key), field=f"metadata.annotations[{ANNOTATION}]", value=note
        )
    annotations = {name: text for name, text in metadata.annotations.items() if name != ANNOTATION}
    metadata = msgspec.structs.replace(metadata, name=name or metadata.name, annotations=annotations)
    return msgspec.structs.replace(resource, metadata=metadata)


def note_policy_name(resource: Resource[Any, Any]) -> Resource[Any, Any]:
    """A policy as stored: the annotation holds its present name."""
    metadata = resource.metadata
    note = msgspec.json.encode({"name": metadata.name}).decode()
    annotations = {**metadata.annotations, ANNOTATION: note}
    return msgspec.structs.replace(resource, metadata=msgspec.structs.replace(metadata, annotations=annotations))
