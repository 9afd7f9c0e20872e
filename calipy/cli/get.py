"""``calipy get``: resources, as calicoctl shows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import click

from calipy.cli import files, render, tables
from calipy.cli.kindnames import kind_of, refuse_namespace
from calipy.cli.options import datastore_options
from calipy.cli.session import check_release, current
from calipy.datastore import codec, gojson
from calipy.datastore.client import AnyResource, Client
from calipy.datastore.keys import NAMESPACED
from calipy.datastore.kinds.meta import API_VERSION
from calipy.errors import InvalidInputError, NotFoundError

FORMATS: Final = ("table", "wide", "json", "yaml", "name")

Asked = tuple[str, str, str]
"""Kind, name and namespace of an object."""


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@files.file_options(required=False)
@click.option("-n", "--namespace", default=None, help="Namespace of the objects [default: default].")
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects of all namespaces.")
@click.option(
    "-o",
    "--output",
    default="table",
    show_default=True,
    metavar="FORMAT",
    help="table (or ps), wide, json, yaml, name or custom-columns=A,B.",
)
@click.option(
    "--export",
    is_flag=True,
    help="Of objects given by name, without what belongs to this cluster alone (uid, revision, times).",
)
@datastore_options
def get(
    kind: str | None,
    names: tuple[str, ...],
    filename: str | None,
    recursive: bool,
    skip_empty: bool,
    namespace: str | None,
    all_namespaces: bool,
    output: str,
    export: bool,
    config_file: str | None,
    allow_version_mismatch: bool,
) -> None:
    """Show resources: all of a KIND, those of given NAMES, or those of a file as they are in the datastore.

    KIND is a kind of Calico in any of its spellings: ippool, gnp, nodes …

    \b
    Examples:
      calipy get nodes -o wide
      calipy get ippool default-ipv4-ippool -o yaml
      calipy get wep -A
      calipy get -f policy.yaml -o yaml
    """
    output = {"ps": "table"}.get(output, output)
    if output not in FORMATS and not output.startswith("custom-columns="):
        remedy = "table, wide, json, yaml, name or custom-columns=…"
        raise InvalidInputError("no such format", field="--output", value=output, remedy=remedy)
    if (filename is None) == (kind is None):
        raise InvalidInputError("give a kind, or a file", remedy="calipy get KIND [NAME]..., or -f FILE")
    if (names or filename) and all_namespaces:
        raise InvalidInputError("cannot be combined with names or files", field="--all-namespaces", value=True)
    asked: list[Asked] = []
    kind, where = kind_of(kind) if kind else "", ""
    if filename is not None:
        told = files.resources(filename, namespace=namespace, recursive=recursive, skip_empty=skip_empty)
        asked = [(one.kind, one.name, one.namespace) for one in told]
        if not asked:
            click.echo(files.NOTHING)
            return
    elif kind not in NAMESPACED:
        refuse_namespace(kind, namespace or ("all" if all_namespaces else ""))
    elif not all_namespaces:
        where = namespace or "default"
    asked += [(kind, name, where) for name in names]

    async def work(client: Client) -> tuple[list[AnyResource], int, int]:
        await check_release(client, allow_mismatch=allow_version_mismatch)
        default_as = tables.DEFAULT_AS
        if output == "wide":
            configuration = await client.get("BGPConfiguration", "default")
            default_as = (configuration.spec.as_number if configuration else None) or default_as
        if asked:
            return [await _found(client, one) for one in asked], 0, default_as
        listed = await client.list(kind, where)
        for problem in listed.problems:
            click.echo(f"calipy: warning: left out {problem}", err=True)
        return list(listed.items), listed.revision, default_as

    resources, revision, default_as = current(config_file).run(work)
    if output in {"json", "yaml"}:
        documents = [document_of(resource, export=export and bool(names)) for resource in resources]
        whole: Any = documents
        if not asked:
            metadata = {"resourceVersion": str(revision)}
            whole = {"kind": f"{kind}List", "apiVersion": API_VERSION, "metadata": metadata, "items": documents}
        elif len(asked) == 1:
            whole = documents[0]
        click.echo(render.structured(whole, output))
    elif output == "name":
        for resource in resources:
            click.echo(f"{resource.namespace}/{resource.name}" if resource.namespace else resource.name)
    else:
        of_kinds = [(one, list(group)) for one, group in groupby(resources, lambda found: str(found.kind))]
        named = all_namespaces or namespace is not None
        shown = [
            _table(one, group, output, named=named, default_as=default_as) for one, group in of_kinds or [(kind, [])]
        ]
        click.echo("\n\n".join(shown))


async def _found(client: Client, asked: Asked) -> AnyResource:
    kind, name, namespace = asked
    resource = await client.get(kind, name, namespace)
    if resource is None:
        raise NotFoundError(f"{kind}({f'{namespace}/' if namespace else ''}{name}) does not exist")
    return resource


def _table(kind: str, resources: Sequence[AnyResource], output: str, *, named: bool, default_as: int) -> str:
    """A table of one kind; ``named`` adds the namespace, where the kind has one."""
    columns = tables.columns_of(kind, output)
    if named and kind in NAMESPACED and not output.startswith("custom-columns="):
        columns.insert(0, "NAMESPACE")
    return render.table(columns, tables.rows_of(kind, columns, resources, default_as=default_as))


def document_of(resource: AnyResource, *, export: bool = False) -> dict[str, Any]:
    """The JSON object to show: as Calico would write it, with the revision; unknown members are left out.

    ``export`` leaves out what another cluster could not use.
    """
    document = codec.write_resource(gojson.without_unknown(resource))
    if resource.stored_type is not None:
        document = {
            name: text for name, text in zip(("kind", "apiVersion"), resource.stored_type, strict=True) if text
        } | {name: value for name, value in document.items() if name not in {"kind", "apiVersion"}}
    metadata = document["metadata"]
    if export:
        for name in ("namespace", "uid", "creationTimestamp", "deletionTimestamp", "generation", "ownerReferences"):
            metadata.pop(name, None)
    elif resource.revision:
        metadata["resourceVersion"] = str(resource.revision)
    return document
