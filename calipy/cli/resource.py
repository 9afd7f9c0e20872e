"""``calipy get``, ``create``, ``apply``, ``replace``, ``delete``: resources, as calicoctl shows and takes them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import click
from msgspec.structs import replace

from calipy.cli import manifest, render, tables
from calipy.cli.kindnames import kind_of
from calipy.cli.session import check_release, current, wait_for_datastore
from calipy.datastore import codec, gojson
from calipy.datastore.client import AnyResource, Client
from calipy.datastore.keys import NAMESPACED
from calipy.datastore.kinds.meta import API_VERSION, ObjectMeta
from calipy.errors import AlreadyExistsError, CalipyError, InvalidInputError, NotFoundError

Verb = Callable[[Client, AnyResource], Awaitable[Any]]

READ_ONLY: Final = frozenset({"ClusterInformation"})
"""Kinds that only the nodes themselves write."""


def datastore_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that talks to the datastore."""
    for option in (
        click.option(
            "--config", "config_file", help="Datastore configuration file [default: /etc/calico/calicoctl.cfg]."
        ),
        click.option("--allow-version-mismatch", is_flag=True, help="Work on a datastore of an older release too."),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("kind")
@click.argument("names", nargs=-1)
@click.option("-n", "--namespace", default=None, help="Namespace of the objects [default: default].")
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects of all namespaces.")
@click.option(
    "-o", "--output", default="table", show_default=True, help="table, wide, json, yaml, name or custom-columns=A,B."
)
@click.option("--export", is_flag=True, help="Leave out what belongs to this cluster alone (uid, revision, times).")
@datastore_options
def get(
    kind: str,
    names: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    output: str,
    export: bool,
    config_file: str | None,
    allow_version_mismatch: bool,
) -> None:
    """Show resources.

    KIND is a kind of Calico in any of its spellings: ippool, gnp, nodes …

    \b
    Examples:
      calipy get nodes -o wide
      calipy get ippool default-ipv4-ippool -o yaml
      calipy get wep -A
    """
    kind = kind_of(kind)
    output = {"ps": "table"}.get(output, output)
    if output not in {"table", "wide", "json", "yaml", "name"} and not output.startswith("custom-columns="):
        raise InvalidInputError(
            "no such format", field="--output", value=output, remedy="table, wide, json, yaml, name or custom-columns=…"
        )
    if names and all_namespaces:
        raise InvalidInputError("cannot be combined with names", field="--all-namespaces", value=True)
    where = "" if kind not in NAMESPACED or all_namespaces else namespace or "default"

    async def work(client: Client) -> tuple[list[AnyResource], int, int]:
        await check_release(client, allow_mismatch=allow_version_mismatch)
        default_as = tables.DEFAULT_AS
        if kind == "Node" and output == "wide":
            configuration = await client.get("BGPConfiguration", "default")
            default_as = (configuration.spec.as_number if configuration else None) or default_as
        if not names:
            listed = await client.list(kind, where)
            for problem in listed.problems:
                click.echo(f"calipy: warning: left out {problem}", err=True)
            return list(listed.items), listed.revision, default_as
        found = []
        for name in names:
            resource = await client.get(kind, name, where)
            if resource is None:
                raise NotFoundError(f"{kind}({f'{where}/' if where else ''}{name}) does not exist")
            found.append(resource)
        return found, 0, default_as

    resources, revision, default_as = current(config_file).run(work)
    if output in {"json", "yaml"}:
        documents = [document_of(resource, export=export) for resource in resources]
        whole: Any = documents
        if not names:
            metadata = {"resourceVersion": str(revision)}
            whole = {"kind": f"{kind}List", "apiVersion": API_VERSION, "metadata": metadata, "items": documents}
        elif len(names) == 1:
            whole = documents[0]
        click.echo(render.structured(whole, output))
    elif output == "name":
        for resource in resources:
            click.echo(f"{resource.namespace}/{resource.name}" if resource.namespace else resource.name)
    else:
        columns = tables.columns_of(kind, output)
        shows_namespace = kind in NAMESPACED and (all_namespaces or namespace is not None)
        if shows_namespace and not output.startswith("custom-columns="):
            columns.insert(0, "NAMESPACE")
        click.echo(render.table(columns, tables.rows_of(kind, columns, resources, default_as=default_as)))


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


def _file_command(name: str, text: str, done: str, verb: Verb, *, extra: Sequence[click.Option] = ()) -> click.Command:
    """One of the commands that write every resource of a file and go on after one that fails."""

    def callback(
        filename: str,
        namespace: str | None,
        config_file: str | None,
        allow_version_mismatch: bool,
        wait: float,
        skip_exists: bool = False,
    ) -> None:
        resources = manifest.read(_read_file(filename), namespace=namespace or "")

        async def work(client: Client) -> int:
            if wait:
                await wait_for_datastore(client, wait)
            await check_release(client, allow_mismatch=allow_version_mismatch)
            await client.ensure_initialised()
            return await _each(client, resources, verb, done, ignore=AlreadyExistsError if skip_exists else ())

        sys.exit(1 if current(config_file).run(work) else 0)

    return click.Command(name, callback=callback, help=text, params=[*_FILE_OPTIONS, *extra])


_FILE_OPTIONS: Final = (
    click.Option(["-f", "--filename"], required=True, help="File with resources, YAML or JSON; - for standard input."),
    click.Option(["-n", "--namespace"], help="Namespace of objects whose file gives none [default: default]."),
    click.Option(
        ["--config", "config_file"], help="Datastore configuration file [default: /etc/calico/calicoctl.cfg]."
    ),
    click.Option(["--allow-version-mismatch"], is_flag=True, help="Work on a datastore of an older release too."),
    click.Option(
        ["--wait"],
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Wait so long for a datastore that does not answer yet.",
    ),
)


def _read_file(filename: str) -> str:
    try:
        with click.open_file(filename, encoding="utf-8") as file:
            return str(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot be read: {error}", field="--filename", value=filename) from None


async def _each(
    client: Client,
    resources: Sequence[AnyResource],
    verb: Verb,
    done: str,
    *,
    ignore: type[CalipyError] | tuple[()] = (),
) -> int:
    """Do one thing to each resource; failures are told and counted."""
    failures = 0
    for resource in resources:
        title = title_of(resource)
        try:
            refuse_read_only(resource.kind)
            await verb(client, resource)
        except ignore:
            click.echo(f"{title} is left alone")
        except CalipyError as error:
            failures += 1
            told = str(error)
            click.echo(f"calipy: {told if told.startswith(title) else f'{title}: {told}'}", err=True)
        else:
            click.echo(f"{title} {done}")
    return failures


def refuse_read_only(kind: str) -> None:
    """Raise ``InvalidInputError`` for a kind that the command line does not write."""
    if kind in READ_ONLY:
        raise InvalidInputError("is written by the nodes alone", field="kind", value=kind)


async def _create(client: Client, resource: AnyResource) -> None:
    await client.create(manifest.fresh(resource))


async def _apply(client: Client, resource: AnyResource) -> None:
    revision = manifest.revision_of(resource)
    if revision:
        await client.replace(_at(resource, revision))
    else:
        await client.apply(manifest.fresh(resource))


async def _replace(client: Client, resource: AnyResource) -> None:
    await client.replace(_at(resource, manifest.revision_of(resource)))


def _at(resource: AnyResource, revision: int) -> AnyResource:
    metadata: ObjectMeta = replace(resource.metadata, resource_version="")
    return replace(resource, metadata=metadata, revision=revision)


async def _delete(client: Client, resource: AnyResource) -> None:
    await client.delete(resource.kind, resource.name, resource.namespace, manifest.revision_of(resource))


create = _file_command(
    "create",
    "Create the resources of a file; those that exist are an error.\n\n\b\nExamples:\n"
    "  calipy create -f pools.yaml\n  calipy create --skip-exists -f pools.yaml\n",
    "created",
    _create,
    extra=[click.Option(["--skip-exists"], is_flag=True, help="Leave those alone that exist already.")],
)
apply = _file_command(
    "apply",
    "Create the resources of a file, or bring existing ones to what it says.\n\n\b\nExamples:\n"
    "  calipy apply -f policy.yaml\n  calipy apply --wait 60 -f - < policy.yaml\n",
    "applied",
    _apply,
)
replace_command = _file_command(
    "replace",
    "Bring existing resources to what a file says.\n\n\b\nExample:\n  calipy replace -f policy.yaml\n",
    "replaced",
    _replace,
)


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@click.option("-f", "--filename", help="Delete the resources of this file; - for standard input.")
@click.option("-n", "--namespace", default=None, help="Namespace of the objects [default: default].")
@click.option("--skip-not-exists", is_flag=True, help="Missing ones are no error.")
@datastore_options
def delete(
    kind: str | None,
    names: tuple[str, ...],
    filename: str | None,
    namespace: str | None,
    skip_not_exists: bool,
    config_file: str | None,
    allow_version_mismatch: bool,
) -> None:
    """Delete resources, by KIND and NAMES or by file.

    A pool is disabled first and its blocks are given up; with a node go its endpoints, addresses and settings.

    \b
    Examples:
      calipy delete ippool spare
      calipy delete networkpolicy web -n shop
      calipy delete -f policy.yaml
    """
    if (filename is None) == (kind is None) or (kind is not None and not names):
        raise InvalidInputError("give a kind and names, or a file", remedy="calipy delete ippool NAME, or -f FILE")
    if filename is not None:
        resources = manifest.read(_read_file(filename), namespace=namespace or "")
    else:
        resources = [_named(kind_of(kind or ""), name, namespace) for name in names]

    async def work(client: Client) -> int:
        await check_release(client, allow_mismatch=allow_version_mismatch)
        ignore = NotFoundError if skip_not_exists else ()
        return await _each(client, resources, _delete, "deleted", ignore=ignore)

    sys.exit(1 if current(config_file).run(work) else 0)


def title_of(resource: AnyResource) -> str:
    """``NetworkPolicy(shop/web)``."""
    return f"{resource.kind}({f'{resource.namespace}/' if resource.namespace else ''}{resource.name})"


def _named(kind: str, name: str, namespace: str | None) -> AnyResource:
    manifest.refuse_copied(kind, name)
    return codec.new(kind, name, namespace=(namespace or "default") if kind in NAMESPACED else "")
