"""``calipy node``: run this host as a node, and ask how it is."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import click

from calipy import log
from calipy.cli.options import config_option
from calipy.errors import CalipyError
from calipy.node.settings import NodeSettings


@click.group()
def command() -> None:
    """Run this host as a node of the cluster, and see how it is."""


@command.command()
@click.option("--only", type=click.Choice(["agent", "bgpd"]), help="Run one daemon alone, in the foreground.")
@config_option
def run(only: str | None, config_file: str | None) -> None:
    """Run the node: the agent (policy, IPAM, pods) and bgpd (BGP), each restarted when it ends.

    Configured as calico/node is, by the environment: NODENAME, ETCD_ENDPOINTS, IP, IP_AUTODETECTION_METHOD, AS,
    CALICO_IPV4POOL_CIDR, FELIX_… and so on. Starts before etcd is reachable and before interfaces exist. SIGTERM ends
    the daemons and leaves routes, rules and pods as they are.

    \b
    Examples:
      ETCD_ENDPOINTS=http://10.0.0.2:2379 calipy node run
      calipy node run --only agent     # beside a real BIRD
      calipy node run --only bgpd      # beside a real Felix
    """
    settings = NodeSettings.from_environment(os.environ)
    if os.geteuid() != 0:
        raise CalipyError("a node needs root: it writes routes, rules and sysctls", remedy="sudo calipy node run")
    log.configure(settings.felix.get("logseverityscreen", os.environ.get("CALICO_STARTUP_LOGLEVEL", "info")))
    if only is None:
        from calipy import api_client  # noqa: PLC0415 - start-up time
        from calipy.node import supervisor  # noqa: PLC0415 - the supervisor must stay small: no grpc, no threads

        sockets = {"agent": api_client.agent_socket()}
        if settings.networking:
            sockets["bgpd"] = api_client.bgpd_socket()
        daemons = [
            supervisor.Daemon(name, supervisor.daemon_argv(name, config_file=config_file or ""), socket)
            for name, socket in sockets.items()
        ]
        sys.exit(asyncio.run(supervisor.Supervisor(daemons, os.environ).run()))
    if only == "bgpd":
        from calipy.node import bgpd  # noqa: PLC0415 - only what this process needs

        sys.exit(asyncio.run(bgpd.run(settings, config_file)))
    from calipy.node import guard  # noqa: PLC0415 - all else comes after it

    asyncio.run(guard.guard(settings.felix))
    from calipy.node import agent  # noqa: PLC0415

    sys.exit(asyncio.run(agent.run(settings, config_file)))


@command.command()
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
def status(output: str) -> None:
    """Show this node's daemons and its BGP peers.

    \b
    Examples:
      calipy node status
      calipy node status -o json
    """
    from calipy.cli import render  # noqa: PLC0415 - start-up time
    from calipy.cli.routers import other_router  # noqa: PLC0415
    from calipy.node import status as node_status  # noqa: PLC0415

    state = node_status.read()
    router = other_router() if state.bgpd is None else ""
    if router and output == "text" and state.agent is None:
        print(f"No calipy node runs here. BGP on this host is spoken by {router}")
    elif output == "text":
        print(node_status.text(state).rstrip())
        if router:
            print(f"BGP on this host is spoken by {router}")
    else:
        print(render.structured(state.document() | ({"otherRouter": router} if router else {}), output))
    if state.agent is None and state.bgpd is None:
        sys.exit(1)


@command.command()
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
def health(output: str) -> None:
    """Ask whether this node is ready; exit status 1 if it is not.

    Shows the agent's /readiness table and whether bgpd is ready.

    \b
    Example:
      calipy node health
    """
    from calipy.cli import render  # noqa: PLC0415 - start-up time
    from calipy.node import status as node_status  # noqa: PLC0415

    settings = NodeSettings.from_environment(os.environ)
    ready, table = node_status.readiness(settings.health_host, settings.health_port)
    nothing: dict[str, Any] = {"ready": True, "reasons": []}
    bgpd = node_status.read().bgpd if settings.networking else nothing
    bgp_ready = bgpd is not None and bool(bgpd["ready"])
    reasons = "no answer" if bgpd is None else "; ".join(map(str, bgpd["reasons"]))
    if output != "text":
        print(render.structured({"ready": ready and bgp_ready, "agent": table, "bgpd": reasons}, output))
    else:
        print(table, end="")
        print(f"bgpd: {'ready' if bgp_ready else f'not ready: {reasons}'}")
    sys.exit(0 if ready and bgp_ready else 1)


@command.command()
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
def drain(output: str) -> None:
    """Take this node's routes away from all BGP peers, and end its BGP until `calipy node undrain`.

    Peers keep the routes of a node that just stops, for as long as it may restart (120 s). A drained one withdraws them
    first; exit status 1 if a session was down, so that its peer may keep them all the same. Pods that are still here
    reach others as before, by routes that no longer change. Lasts over restarts of bgpd, until the host boots.

    \b
    Example:
      calipy node drain && poweroff
    """
    from calipy import api_client  # noqa: PLC0415 - start-up time
    from calipy.cli import render  # noqa: PLC0415

    farewell = api_client.call(api_client.bgpd_socket(), "drain")
    if output != "text":
        print(render.structured(farewell, output))
    else:
        print(f"Drained: routes are withdrawn from {len(farewell['told'])} peers, BGP has ended")
    if farewell["missed"]:
        missed = ", ".join(farewell["missed"])
        raise CalipyError(
            f"the sessions with these peers were down, they may keep this node's routes: {missed}",
            remedy="their restart time (120 s by default) ends that",
        )


@command.command()
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
def undrain(output: str) -> None:
    """Start BGP again on a drained node, and announce its routes.

    \b
    Example:
      calipy node undrain
    """
    from calipy import api_client  # noqa: PLC0415 - start-up time
    from calipy.cli import render  # noqa: PLC0415

    answer = api_client.call(api_client.bgpd_socket(), "undrain")
    if output != "text":
        print(render.structured(answer, output))
    else:
        print("BGP starts again" if answer["drained_before"] else "This node was not drained")


@command.command()
@config_option
def startup(config_file: str | None) -> None:
    """Write this node and the default objects into the datastore once, as `node run` does at start.

    Exit status 1, with the reason, if the node's address cannot be settled.

    \b
    Example:
      ETCD_ENDPOINTS=http://10.0.0.2:2379 IP=autodetect calipy node startup
    """
    from calipy.node import once  # noqa: PLC0415 - start-up time

    log.configure("info")
    asyncio.run(once.startup(NodeSettings.from_environment(os.environ), config_file))


@command.command("allocate-tunnel-addrs")
@click.option("--run-once", is_flag=True, required=True, help="Do it once and end.")
@config_option
def allocate_tunnel_addrs(run_once: bool, config_file: str | None) -> None:
    """Give this node the tunnel addresses that its pools ask for, and take back those that none does.

    \b
    Example:
      calipy node allocate-tunnel-addrs --run-once
    """
    from calipy.node import once  # noqa: PLC0415 - start-up time

    assert run_once
    log.configure("info")
    asyncio.run(once.allocate_tunnel_addresses(NodeSettings.from_environment(os.environ), config_file))
