"""``calipy create``, ``apply``, ``replace``, ``delete`` and ``validate``: resources from files, as calicoctl's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import click
from msgspec.structs import replace

from calipy.cli import files, manifest
from calipy.cli.kindnames import kind_of, refuse_namespace
from calipy.cli.options import datastore_options
from calipy.cli.session import check_release, current, wait_for_datastore
from calipy.datastore import codec, defaults, validation
from calipy.datastore.client import AnyResource, Client
from calipy.datastore.keys import NAMESPACED
from calipy.datastore.kinds.meta import ObjectMeta
from calipy.errors import AlreadyExistsError, CalipyError, InvalidInputError, NotFoundError

Verb = Callable[[Client, AnyResource], Awaitable[Any]]

READ_ONLY: Final = frozenset({"ClusterInformation"})
"""Kinds that only the nodes themselves write."""


def _file_command(name: str, text: str, done: str, verb: Verb, *, extra: Sequence[_Option] = ()) -> click.Command:
    """One of the commands that write every resource of a file and go on after one that fails."""

    def callback(
        filename: str,
        recursive: bool,
        skip_empty: bool,
        namespace: str | None,
        config_file: str | None,
        allow_version_mismatch: bool,
        wait: float,
        skip_exists: bool = False,
    ) -> None:
        resources = files.resources(filename, namespace=namespace, recursive=recursive, skip_empty=skip_empty)
        if not resources:
            click.echo(files.NOTHING)
            return

        async def work(client: Client) -> int:
            if wait:
                await wait_for_datastore(client, wait)
            await check_release(client, allow_mismatch=allow_version_mismatch)
            await client.ensure_initialised()
            return await _each(
                resources, lambda one: verb(client, one), done, ignore=AlreadyExistsError if skip_exists else ()
            )

        sys.exit(1 if current(config_file).run(work) else 0)

    function: Any = callback
    for option in reversed((files.file_options(required=True), _placed_in, datastore_options, _waiting, *extra)):
        function = option(function)
    return click.command(name, help=text)(function)


_Option = Callable[[Any], Any]
_placed_in: Final = click.option(
    "-n", "--namespace", help="Namespace of objects whose file gives none [default: default]."
)
_waiting: Final = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for a datastore that does not answer yet.",
)


async def _each(
    resources: Sequence[AnyResource],
    act: Callable[[AnyResource], Awaitable[Any]],
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
            await act(resource)
        except ignore:
            click.echo(f"{title} is left alone")
        except CalipyError as error:
            failures += 1
            told = str(error).removeprefix(f"{getattr(error, 'key', '')} ")
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
    extra=[click.option("--skip-exists", is_flag=True, help="Leave those alone that exist already.")],
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
@_placed_in
@files.file_options(required=True)
def validate(filename: str, recursive: bool, skip_empty: bool, namespace: str | None) -> None:
    """Check the resources of a file without a datastore: syntax, fields, values. Exits with 1 if one is refused.

    What depends on other objects (overlapping pools, references) is seen by apply alone.

    \b
    Examples:
      calipy validate -f policy.yaml
      calipy validate -f cluster/ --recursive
    """
    resources = files.resources(filename, namespace=namespace, recursive=recursive, skip_empty=skip_empty)
    if not resources:
        click.echo(files.NOTHING)
        return
    sys.exit(1 if asyncio.run(_each(resources, _validate, "is valid")) else 0)


async def _validate(resource: AnyResource) -> None:
    validation.check(defaults.fill(resource))


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@files.file_options(required=False)
@click.option("-n", "--namespace", default=None, help="Namespace of the objects [default: default].")
@click.option("-s", "--skip-not-exists", is_flag=True, help="Missing ones are no error.")
@datastore_options
def delete(
    kind: str | None,
    names: tuple[str, ...],
    filename: str | None,
    recursive: bool,
    skip_empty: bool,
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
        resources = files.resources(filename, namespace=namespace, recursive=recursive, skip_empty=skip_empty)
        if not resources:
            click.echo(files.NOTHING)
            return
    else:
        resources = [_named(kind_of(kind or ""), name, namespace) for name in names]

    async def work(client: Client) -> int:
        await check_release(client, allow_mismatch=allow_version_mismatch)
        ignore = NotFoundError if skip_not_exists else ()
        return await _each(resources, lambda one: _delete(client, one), "deleted", ignore=ignore)

    sys.exit(1 if current(config_file).run(work) else 0)


def title_of(resource: AnyResource) -> str:
    """``NetworkPolicy(shop/web)``."""
    return f"{resource.kind}({f'{resource.namespace}/' if resource.namespace else ''}{resource.name})"


def _named(kind: str, name: str, namespace: str | None) -> AnyResource:
    manifest.refuse_copied(kind, name)
    refuse_namespace(kind, namespace)
    return codec.new(kind, name, namespace=(namespace or "default") if kind in NAMESPACED else "")
