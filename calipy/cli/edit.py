"""``calipy label`` and ``calipy patch``: read an object, change a part, write it back at the revision read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from msgspec.structs import replace

from calipy.cli import manifest
from calipy.cli.kindnames import kind_of, refuse_namespace
from calipy.cli.options import datastore_options
from calipy.cli.resource import refuse_read_only, title_of
from calipy.cli.session import check_release, current
from calipy.datastore import codec, gojson
from calipy.datastore.client import ATTEMPTS, AnyResource, Client
from calipy.datastore.keys import NAMESPACED
from calipy.datastore.kinds.meta import API_VERSION, ObjectMeta
from calipy.datastore.resources import KINDS
from calipy.errors import ConflictError, InvalidInputError, NotFoundError

Change = Callable[[AnyResource], AnyResource]


def _edit(
    kind: str, name: str, namespace: str | None, change: Change, *, config_file: str | None, allow_mismatch: bool
) -> AnyResource:
    """Change one object; a lost race is tried again."""
    kind = kind_of(kind)
    refuse_read_only(kind)
    refuse_namespace(kind, namespace)
    manifest.refuse_copied(kind, name)
    where = (namespace or "default") if kind in NAMESPACED else ""

    async def work(client: Client) -> AnyResource:
        await check_release(client, allow_mismatch=allow_mismatch)
        for attempt in range(ATTEMPTS):
            resource = await client.get(kind, name, where)
            if resource is None:
                raise NotFoundError(f"{kind}({f'{where}/' if where else ''}{name}) does not exist")
            try:
                return await client.update(change(resource))
            except ConflictError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    return current(config_file).run(work)


@click.command()
@click.argument("kind")
@click.argument("name")
@click.argument("label")
@click.option("--overwrite", is_flag=True, help="Change a label that has another value.")
@click.option("--remove", is_flag=True, help="Remove the label; give its name only.")
@click.option("-n", "--namespace", default=None, help="Namespace of the object [default: default].")
@datastore_options
def label(
    kind: str,
    name: str,
    label: str,
    overwrite: bool,
    remove: bool,
    namespace: str | None,
    config_file: str | None,
    allow_version_mismatch: bool,
) -> None:
    """Set LABEL (key=value) on a resource, or remove it.

    \b
    Examples:
      calipy label node alpha rack=r1
      calipy label node alpha rack --remove
    """
    key, equals, value = label.partition("=")
    if bool(equals) == remove:
        raise InvalidInputError("give key=value, or a key and --remove", field="LABEL", value=label)

    def change(resource: AnyResource) -> AnyResource:
        labels = dict(resource.metadata.labels)
        if remove:
            if labels.pop(key, None) is None:
                raise NotFoundError(f"{title_of(resource)} has no label {key!r}")
        elif labels.get(key, value) != value and not overwrite:
            raise InvalidInputError(
                f"is {labels[key]!r} already", field=f"metadata.labels[{key}]", value=value, remedy="use --overwrite"
            )
        else:
            labels[key] = value
        return replace(resource, metadata=replace(resource.metadata, labels=labels))

    changed = _edit(kind, name, namespace, change, config_file=config_file, allow_mismatch=allow_version_mismatch)
    click.echo(f"{title_of(changed)} labelled")


@click.command()
@click.argument("kind")
@click.argument("name")
@click.option("-p", "--patch", "text", required=True, help="The change, as JSON; null removes a member.")
@click.option(
    "-t", "--type", "form", default="strategic", show_default=True, help="strategic or merge; both replace lists."
)
@click.option("-n", "--namespace", default=None, help="Namespace of the object [default: default].")
@datastore_options
def patch(
    kind: str,
    name: str,
    text: str,
    form: str,
    namespace: str | None,
    config_file: str | None,
    allow_version_mismatch: bool,
) -> None:
    """Change parts of a resource.

    \b
    Example:
      calipy patch ippool default-ipv4-ippool -p '{"spec": {"natOutgoing": true}}'
    """
    if form == "json":
        raise InvalidInputError("is not supported", field="--type", value=form, remedy="give a merge patch")
    if form not in {"strategic", "merge"}:
        click.echo(f"calipy: warning: --type = {form!r}: no such type; taken as strategic, as calicoctl does", err=True)
    try:
        wanted = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"is not JSON: {error}", field="--patch", value=text) from None
    if not isinstance(wanted, dict):
        raise InvalidInputError("must be an object", field="--patch", value=text)

    def change(resource: AnyResource) -> AnyResource:
        return patched(resource, wanted)

    changed = _edit(kind, name, namespace, change, config_file=config_file, allow_mismatch=allow_version_mismatch)
    click.echo(f"{title_of(changed)} patched")


def patched(resource: AnyResource, change: dict[str, Any]) -> AnyResource:
    """A resource changed by a merge patch (RFC 7396). What it had of unknown members stays.

    Raises:
        InvalidInputError: the patch brings a member that nobody knows or a wrong type, or renames the object.
    """
    before = set(gojson.unknown_members(resource))
    document = merged(codec.write_resource(resource), change)
    document = gojson.texts_from_scalars(KINDS[resource.kind].resource, document)
    result = codec.read_document(document, resource.kind)
    for path in gojson.unknown_members(result):
        if path not in before:
            remedy = f"check its spelling and place; {resource.kind} has none of it"
            raise InvalidInputError(f"{path}: no such field", remedy=remedy)
    for field, value, fixed_value in (
        ("kind", result.kind, resource.kind),
        ("apiVersion", result.api_version, API_VERSION),
    ):
        if value != fixed_value:
            raise InvalidInputError("cannot be patched", field=field, value=value)
    metadata: ObjectMeta = result.metadata
    fixed = ("name", "namespace", "uid", "creation_timestamp")
    for attribute in fixed:
        if getattr(metadata, attribute) != getattr(resource.metadata, attribute):
            raise InvalidInputError(
                "cannot be patched", field=f"metadata.{attribute}", value=getattr(metadata, attribute)
            )
    revision = manifest.revision_of(result) or resource.revision
    return replace(result, revision=revision, metadata=replace(metadata, resource_version=""))


def merged(target: Any, change: Any) -> Any:
    """RFC 7396: objects merge, ``null`` removes, everything else replaces."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
