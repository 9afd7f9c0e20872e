"""``calipy version``."""

from __future__ import annotations

import importlib.metadata

import click

from calipy.cli import render
from calipy.cli.options import config_option, mismatch_option
from calipy.cli.session import current
from calipy.datastore.client import Client
from calipy.errors import CalipyError

_SHOWN = {"clientVersion": "Client Version:", "clusterVersion": "Cluster Version:", "clusterType": "Cluster Type:"}


@click.command()
@click.option("--client", is_flag=True, help="Only this program; do not ask the datastore.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
@mismatch_option(checked=False)
@config_option
def command(client: bool, output: str, config_file: str | None) -> None:
    """Show the version of this program, and of the cluster if its datastore can be reached.

    \b
    Examples:
      calipy version
      calipy version --client
      calipy version -o json
    """
    found = {"clientVersion": importlib.metadata.version("calipy")}
    if not client:

        async def work(client: Client) -> dict[str, str]:
            information = await client.get("ClusterInformation", "default")
            version, kind = (
                (information.spec.calico_version, information.spec.cluster_type) if information else ("", "")
            )
            return {"clusterVersion": version or "unknown", "clusterType": kind or "unknown"}

        try:
            found |= current(config_file).run(work)
        except CalipyError as error:
            click.echo(f"calipy: the cluster's version is unknown: {error}", err=True)
    if output != "table":
        click.echo(render.structured(found, output))
        return
    for name, value in found.items():
        click.echo(f"{_SHOWN[name]:<19}{value}")
