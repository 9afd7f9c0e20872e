"""``calipy datastore``: lock the datastore for a migration, and bring names of policies to the present layout."""

from __future__ import annotations

import click
from msgspec.structs import replace

from calipy.cli.options import config_option, mismatch_option
from calipy.cli.session import current
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.keys import ResourceKey, parse, path, resource_prefix
from calipy.errors import AlreadyExistsError, NotFoundError, UndecodableError

POLICY_KINDS = ("NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy")


@click.group()
def command() -> None:
    """Care for the datastore as a whole."""


@command.group()
def migrate() -> None:
    """Lock and unlock the datastore."""


@migrate.command()
@mismatch_option(checked=False)
@config_option
def lock(config_file: str | None) -> None:
    """Make agents stop and refuse pods, until unlocked.

    \b
    Example:
      calipy datastore migrate lock
    """
    current(config_file).run(lambda client: _set_ready(client, ready=False))
    click.echo("locked")


@migrate.command()
@mismatch_option(checked=False)
@config_option
def unlock(config_file: str | None) -> None:
    """Let agents go on.

    \b
    Example:
      calipy datastore migrate unlock
    """
    current(config_file).run(lambda client: _set_ready(client, ready=True))
    click.echo("unlocked")


async def _set_ready(client: Client, *, ready: bool) -> None:
    information = await client.get("ClusterInformation", "default")
    if information is None:
        raise NotFoundError("there is no ClusterInformation(default)", remedy="start a node or apply a resource first")
    await client.update(replace(information, spec=replace(information.spec, datastore_ready=ready)))


@command.command("migrate-policy-names")
@mismatch_option(checked=False)
@config_option
def migrate_policy_names(config_file: str | None) -> None:
    """Copy policies that older releases stored as default.NAME to NAME, and delete the old ones.

    Can be repeated after an interruption: the copy is written before the old one goes.

    \b
    Example:
      calipy datastore migrate-policy-names
    """
    for line in current(config_file).run(move_policies):
        click.echo(line)


async def move_policies(client: Client) -> list[str]:
    """Move every policy whose key is not its name; what was done, a line each. O(policies)."""
    lines = []
    for kind in POLICY_KINDS:
        for found in (await client.store.list(resource_prefix(kind))).items:
            key = parse(found.key)
            if not isinstance(key, ResourceKey):
                continue
            try:
                policy = codec.decode_resource(key, found.value, found.mod_revision)
            except UndecodableError as error:
                lines.append(f"left alone: {error}")
                continue
            wanted = ResourceKey(kind, policy.metadata.name, key.namespace)
            if wanted == key:
                continue
            try:
                await client.store.create(path(wanted), codec.encode(policy))
            except AlreadyExistsError:
                # An interrupted migration leaves a copy of the same object; anything else is another policy.
                present = await client.get(kind, wanted.name, wanted.namespace)
                if present is None or present.metadata.uid != policy.metadata.uid:
                    lines.append(f"left alone: {key}, for {wanted} is another policy")
                    continue
            await client.store.delete(found.key, revision=found.mod_revision)
            lines.append(f"{key} is now {wanted}")
    return lines
