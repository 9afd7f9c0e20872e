"""The envelope of every v3 resource."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

import msgspec

from calipy.datastore.keys import NAMESPACED, ResourceKey
from calipy.datastore.kinds.base import GoStruct, OmitZero, Timestamp

API_VERSION = "projectcalico.org/v3"

Spec = TypeVar("Spec")
Status = TypeVar("Status")


class ObjectMeta(GoStruct, frozen=True, kw_only=True):
    """Kubernetes object metadata, as far as Calico stores it. The object's revision is ``Resource.revision``."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    self_link: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Timestamp | None = None
    deletion_timestamp: Timestamp | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    owner_references: tuple[dict[str, Any], ...] = ()
    finalizers: tuple[str, ...] = ()
    managed_fields: tuple[dict[str, Any], ...] = ()


class NoStatus(GoStruct, frozen=True, kw_only=True):
    """For kinds without a status."""


class Resource(GoStruct, Generic[Spec, Status], frozen=True, kw_only=True):
    """One v3 object. Never changed in place: ``msgspec.structs.replace`` makes a new one.

    Attributes:
        kind: what its key says, whatever the stored object calls itself.
        revision: etcd's mod revision of the key when it was read; 0 for an object that was not read.
        stored_type: kind and apiVersion as stored, where they are not what they should be.
    """

    kind: str
    api_version: str = API_VERSION
    metadata: ObjectMeta
    spec: Spec
    status: Annotated[Status | None, OmitZero()] = None
    revision: int = msgspec.field(default=0, name="?revision")
    stored_type: tuple[str, str] | None = msgspec.field(default=None, name="?stored_type")

    @property
    def key(self) -> ResourceKey:
        """Where the object belongs by its own metadata."""
        return ResourceKey(self.kind, self.metadata.name, self.metadata.namespace if self.kind in NAMESPACED else "")

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace
