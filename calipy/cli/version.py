"""``calipy version``."""

from __future__ import annotations

import importlib.metadata

import click

from calipy.cli.session import current
from calipy.datastore.client import Client
from calipy.errors import CalipyError


@click.command()
@click.option("--client", is_flag=True, help="Only this program; do not ask the datastore.")
@click.option("--config", "config_file", help="Datastore configuration file [default: /etc/calico/calicoctl.cfg].")
def command(client: bool, config_file: str | None) -> None:
    """Show the version of this program, and of the cluster if its datastore can be reached.

    \b
    Examples:
      calipy version
      calipy version --client
    """
    click.echo(f"Client Version:    {importlib.metadata.version('calipy')}")
    if client:
        return

    async def work(client: Client) -> tuple[str, str]:
        information = await client.get("ClusterInformation", "default")
        return (information.spec.calico_version, information.spec.cluster_type) if information else ("", "")

    try:
        version, kind = current(config_file).run(work)
    except CalipyError as error:
        click.echo(f"calipy: the cluster's version is unknown: {error}", err=True)
        return
    click.echo(f"Cluster Version:   {version or 'unknown'}")
    click.echo(f"Cluster Type:      {kind or 'unknown'}")
