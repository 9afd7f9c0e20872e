"""Files of resources: YAML or JSON, several documents, lists; also Kubernetes' policies, namespaces, service accounts.

A file is read as a whole before anything is written. What of an object's metadata counts depends on the verb, as in
calicoctl: a new object takes name, namespace, labels and annotations, an existing one labels and annotations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import yaml
from msgspec.structs import replace

from calipy.datastore import codec, gojson, validation
from calipy.datastore.kinds.meta import API_VERSION, ObjectMeta, Resource
from calipy.datastore.resources import KINDS
from calipy.errors import InvalidInputError

COPIED_PREFIX: Final = "knp.default."
"""Names of policies that are copies of Kubernetes' policies."""

_SEPARATOR: Final = re.compile(r"\n---[ \t]*(?:#[^\n]*)?(?:\n|\Z)")


class _Loader(yaml.CSafeLoader):
    """YAML as Go reads it: no times, no sexagesimal numbers, no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML copies it
    bool_values = {**yaml.CSafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012 - PyYAML's declaration

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise InvalidInputError("a member's name must be a text", field="", value=key)
            if key in seen:
                raise InvalidInputError(
                    f"stands twice, again in line {key_node.start_mark.line + 1}", field=str(key), value=key
                )
            seen.add(key)
        return {_member_name(key): value for key, value in super().construct_mapping(node, deep).items()}


def _member_name(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


for _tag, _pattern, _first in (
    ("bool", r"(true|True|TRUE|false|False|FALSE|y|Y|yes|Yes|YES|n|N|no|No|NO|on|On|ON|off|Off|OFF)", "tTfFyYnNoO"),
    ("null", r"(~|null|Null|NULL|)", "~nN\0"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o?[0-7_]+|0b[01_]+)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""] if _tag == "null" else list(_first)
    )


def read(text: str, *, namespace: str = "") -> list[Resource[Any, Any]]:
    """The resources of a file, in order.

    Args:
        text: YAML or JSON.
        namespace: the one given on the command line, "" for none.

    Raises:
        InvalidInputError: a document cannot be read; nothing should be written then.
    """
    try:
        return _read(text, namespace)
    except RecursionError:  # a YAML alias within its own anchor, or thousands of brackets
        raise InvalidInputError("is nested too deeply, or in itself", field="document", value=text[:40]) from None


def _read(text: str, namespace: str) -> list[Resource[Any, Any]]:
    documents = list(_flat(_parse(text)))
    resources = []
    for number, document in enumerate(documents, 1):
        try:
            resources.append(_resource(document, namespace))
        except InvalidInputError as error:
            place = ([f"document {number}"] if len(documents) > 1 else []) + _titles(document)
            if not place:
                raise
            told = InvalidInputError(f"{', '.join(place)}: {error}")
            told.field, told.value = error.field, error.value
            raise told from error
    return resources


def _titles(document: Any) -> list[str]:
    """``["IPPool(a)"]``, or nothing for a document that does not say what it is."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    kind, name = (document.get("kind"), metadata.get("name")) if isinstance(metadata, dict) else (None, None)
    return [f"{kind}({name})"] if isinstance(kind, str) and isinstance(name, str) and kind and name else []


def _parse(text: str) -> list[Any]:
    """All documents. One without content, even if only a comment, is an error, as to calicoctl; so is an empty line."""
    parts = _SEPARATOR.split(text)
    if not parts[-1]:
        parts.pop()  # what follows the last line, be that a separator
    documents = []
    for number, part in enumerate(parts, 1):
        document = _parse_one(part)
        if document is None:
            place = f"document {number} of {len(parts)}" if len(parts) > 1 else "the file"
            raise InvalidInputError(f"{place} holds nothing", remedy="remove it, or a line --- too many")
        documents.append(document)
    return documents


def _parse_one(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_members)
    except ValueError:
        pass  # YAML
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise InvalidInputError(f"not YAML: {' '.join(str(error).split())}") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError("stands twice in one object", field=twice, value=members[twice])
    return members


def _flat(documents: list[Any]) -> Iterator[Any]:
    for document in documents:
        if isinstance(document, list):
            yield from _flat(document)
        elif isinstance(document, dict) and _is_list(document):
            kind = document["kind"].removesuffix("List")
            for item in document["items"]:
                if isinstance(item, dict) and item.get("kind") != kind:
                    raise InvalidInputError(f"must be {kind} inside a {kind}List", field="kind", value=item.get("kind"))
                yield item
        else:
            yield document


def _is_list(document: dict[str, Any]) -> bool:
    kind = document.get("kind")
    known = isinstance(kind, str) and kind.removesuffix("List") in KINDS and document.get("apiVersion") == API_VERSION
    return known and isinstance(document.get("items"), list)


def _resource(document: Any, namespace: str) -> Resource[Any, Any]:
    if not isinstance(document, dict):
        raise InvalidInputError(
            "must be an object with apiVersion, kind, metadata and spec", field="document", value=document
        )
    version, kind = document.get("apiVersion"), document.get("kind")
    if version != API_VERSION:
        converted = _from_kubernetes(version, kind, document, namespace)
        if converted is not None:
            return converted
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidInputError("no such kind", field="kind", value=kind, remedy=f"one of {', '.join(sorted(KINDS))}")
    if version is None:
        raise InvalidInputError("apiVersion is missing", remedy=f"write apiVersion: {API_VERSION}")
    if version != API_VERSION:
        raise InvalidInputError(f"must be {API_VERSION}", field="apiVersion", value=version)
    wanted = KINDS[kind]
    document = gojson.texts_from_scalars(wanted.resource, document)
    resource = codec.read_document(document, kind)
    for path in gojson.unknown_members(resource):
        raise InvalidInputError(f"{path}: no such field", remedy=f"check its spelling and place; {kind} has none of it")
    validation.check_document(document, kind)
    refuse_copied(kind, resource.metadata.name)
    return replace(resource, metadata=_placed(resource.metadata, wanted.namespaced, namespace, kind))


def refuse_copied(kind: str, name: str) -> None:
    """Copies of Kubernetes' policies are changed by changing the original.

    Raises:
        InvalidInputError: this is one.
    """
    if kind == "NetworkPolicy" and name.startswith(COPIED_PREFIX):
        raise InvalidInputError(
            "belongs to a Kubernetes NetworkPolicy",
            field="metadata.name",
            value=name,
            remedy="apply or delete that one instead, from its file",
        )


def _placed(metadata: ObjectMeta, namespaced: bool, namespace: str, kind: str) -> ObjectMeta:
    given = metadata.namespace
    if not namespaced:
        if given or namespace:
            raise InvalidInputError(
                f"{kind} objects live in none", field="metadata.namespace", value=given or namespace
            )
        return metadata
    if given and namespace and given != namespace:
        raise InvalidInputError(f"is not the namespace {namespace} asked for", field="metadata.namespace", value=given)
    return replace(metadata, namespace=given or namespace or "default")


def _from_kubernetes(version: Any, kind: Any, document: dict[str, Any], namespace: str) -> Resource[Any, Any] | None:
    from calipy.policy import kubernetes  # noqa: PLC0415 - rarely needed

    if isinstance(document.get("metadata"), dict) and kind in ("NetworkPolicy", "ServiceAccount"):
        metadata = document["metadata"]
        document = {
            **document,
            "metadata": {**metadata, "namespace": metadata.get("namespace") or namespace or "default"},
        }
    if (version, kind) == ("networking.k8s.io/v1", "NetworkPolicy"):
        return kubernetes.convert_network_policy(kubernetes.admit_network_policy(document))
    if (version, kind) == ("v1", "Namespace"):
        return kubernetes.convert_namespace(document)
    if (version, kind) == ("v1", "ServiceAccount"):
        return kubernetes.convert_service_account(document)
    return None


def revision_of(resource: Resource[Any, Any]) -> int:
    """The ``resourceVersion`` of a file as a revision, 0 for none. Raises ``InvalidInputError``."""
    text = resource.metadata.resource_version
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise InvalidInputError("must be a decimal number", field="metadata.resourceVersion", value=text)
    return int(text)


def fresh(resource: Resource[Any, Any]) -> Resource[Any, Any]:
    """For creating: of the metadata only name, namespace, labels and annotations count.

    Raises:
        InvalidInputError: it has a ``resourceVersion``.
    """
    metadata = resource.metadata
    if metadata.resource_version:
        raise InvalidInputError(
            "must not be given for a new object", field="metadata.resourceVersion", value=metadata.resource_version
        )
    kept = ObjectMeta(
        name=metadata.name, namespace=metadata.namespace, labels=metadata.labels, annotations=metadata.annotations
    )
    return replace(resource, metadata=kept)
