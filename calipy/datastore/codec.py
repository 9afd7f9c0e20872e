"""Stored bytes to values and back.

Two ways lead in. msgspec reads the usual value of a v3 resource in a few microseconds straight into its struct;
whatever it refuses (another case of a name, ``null`` for a list, a member nobody knows, an odd duration) is read again
by ``gojson``, which knows Go's rules, keeps unknown members and names what is wrong.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from calipy.datastore import gojson
from calipy.datastore.defaults import fill_pool
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, IPAMConfigKey, Key, ResourceKey, path
from calipy.datastore.kinds.meta import API_VERSION, ObjectMeta, Resource
from calipy.datastore.policynames import NAMED_POLICIES, note_policy_name, show_policy_name
from calipy.datastore.resources import KINDS
from calipy.errors import InvalidInputError, UndecodableError

if TYPE_CHECKING:
    from calipy.datastore.ipam import Block, BlockAffinity, Handle, IPAMConfig

    Value: TypeAlias = Resource[Any, Any] | Block | BlockAffinity | Handle | IPAMConfig


@cache
def _decoder(kind: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(KINDS[kind].resource)


def decode(key: Key, value: bytes, revision: int) -> Value:
    """The value stored under ``key``.

    Args:
        key: says what is expected; only resources and IPAM keys hold values that can be decoded.
        value: raw bytes.
        revision: mod revision, kept in the result of a resource.

    Raises:
        UndecodableError: not what the key asks for; names the key and the field.
    """
    if isinstance(key, ResourceKey):
        return decode_resource(key, value, revision)
    from calipy.datastore import ipam  # noqa: PLC0415 - IPAM values are of no use to half of the callers

    match key:
        case BlockKey():
            return ipam.decode_block(value, key=path(key))
        case BlockAffinityKey():
            return ipam.decode_affinity(value, key=path(key))
        case HandleKey():
            return ipam.decode_handle(value, key=path(key))
        case IPAMConfigKey():
            return ipam.decode_config(value, key=path(key))
    raise TypeError(f"{key} does not hold a value that can be decoded")


def decode_resource(key: ResourceKey, value: bytes, revision: int) -> Resource[Any, Any]:
    """One v3 resource; addressed by its key, whatever its metadata say. Raises ``UndecodableError``."""
    if key.kind not in KINDS:
        raise UndecodableError("unknown kind", key=path(key))
    try:
        resource: Resource[Any, Any] = _decoder(key.kind).decode(value)
    except msgspec.ValidationError:
        resource = _decode_carefully(key, value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableError(f"not JSON: {error}", key=path(key)) from None
    msgspec.structs.force_setattr(resource, "revision", revision)
    if resource.kind != key.kind or resource.api_version != API_VERSION:
        stored_type = (resource.kind, resource.api_version)
        resource = msgspec.structs.replace(resource, kind=key.kind, api_version=API_VERSION, stored_type=stored_type)
    if key.kind == "IPPool":
        return msgspec.structs.replace(resource, spec=fill_pool(resource.spec))
    return show_policy_name(resource, key) if key.kind in NAMED_POLICIES else resource


def _decode_carefully(key: ResourceKey, value: bytes) -> Resource[Any, Any]:
    try:
        document = msgspec.json.decode(value)
        resource = read_document(document, key.kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableError(f"not JSON: {error}", key=path(key)) from None
    except InvalidInputError as error:
        undecodable = UndecodableError(error.args[0], key=path(key))
        undecodable.field, undecodable.value = error.field, error.value
        raise undecodable from error
    if not any(name.casefold() == "apiversion" for name in document):
        resource = msgspec.structs.replace(resource, api_version="")
    return resource


def read_document(document: Any, kind: str) -> Resource[Any, Any]:
    """A resource of a known kind from parsed JSON.

    Raises:
        InvalidInputError: a wrong type; names the field.
    """
    if not isinstance(document, dict):
        raise InvalidInputError("must be an object", field="", value=document)
    resource: Resource[Any, Any] = gojson.read(KINDS[kind].resource, document)
    return resource


def encode(value: Value) -> bytes:
    """What to store for a value: the JSON Calico would write, and whatever unknown members it came with."""
    if isinstance(value, Resource):
        return msgspec.json.encode(write_resource(value, note_name=True))
    from calipy.datastore import ipam  # noqa: PLC0415 - as in decode

    match value:
        case ipam.Block():
            return ipam.encode_block(value)
        case ipam.BlockAffinity():
            return ipam.encode_affinity(value)
        case ipam.Handle():
            return ipam.encode_handle(value)
        case ipam.IPAMConfig():
            return ipam.encode_config(value)


def write_resource(resource: Resource[Any, Any], *, note_name: bool = False) -> dict[str, Any]:
    """The JSON object to store: without the revision, with the status where the kind always has one.

    ``note_name`` adds the annotation that policies are stored with, and that nobody is shown.
    """
    if note_name and resource.kind in NAMED_POLICIES:
        resource = note_policy_name(resource)
    document: dict[str, Any] = gojson.write(resource)
    document.pop("resourceVersion", None)
    document["metadata"].pop("resourceVersion", None)
    document["metadata"].pop("selfLink", None)
    kind = KINDS.get(resource.kind)
    if kind is not None and kind.status_always and "status" not in document:
        document["status"] = gojson.write(kind.status())
    return document


def new(kind: str, name: str, spec: Any = None, *, namespace: str = "", **metadata: Any) -> Resource[Any, Any]:
    """A resource that is not stored yet.

    Args:
        kind: ``IPPool``, …
        name: its name.
        spec: struct of the kind; None for an empty one.
        namespace: for kinds that live in one.
        metadata: more members of ``ObjectMeta``, such as ``labels``.
    """
    return Resource(
        kind=kind,
        api_version=API_VERSION,
        metadata=ObjectMeta(name=name, namespace=namespace, **metadata),
        spec=KINDS[kind].spec() if spec is None else spec,
    )
