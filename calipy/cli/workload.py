"""``calipy workload``: pods without Kubernetes. Talks to the node's agent; needs no datastore of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from calipy import api_client
from calipy.cli.render import structured, table
from calipy.errors import InvalidInputError, NotFoundError

_NAMESPACE = click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of the workload.")
_OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="Output format.",
)


@click.group()
def command() -> None:
    """Connect network namespaces as pods, by the way that CNI uses. The node must run on this host."""


@command.command()
@click.argument("name")
@_NAMESPACE
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label, repeatable.")
@click.option("--netns", metavar="PATH", help="Existing network namespace, path or name; else one is made.")
@click.option("--ip", "ips", multiple=True, metavar="ADDRESS", help="Address to take, at most one of each family.")
@click.option("--port", "ports", multiple=True, metavar="NAME=PROTO:PORT", help="Named port for policies, repeatable.")
@click.option("--service-account", default="default", show_default=True, help="Service account the workload runs as.")
@click.option("--ipv4/--no-ipv4", default=True, show_default=True, help="Assign an IPv4 address.")
@click.option("--ipv6/--no-ipv6", default=False, show_default=True, help="Assign an IPv6 address.")
@click.option("--mtu", default=0, metavar="BYTES", help="MTU; the node's if not given.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for policy.",
)
@_OUTPUT
def add(
    name: str,
    namespace: str,
    labels: tuple[str, ...],
    netns: str | None,
    ips: tuple[str, ...],
    ports: tuple[str, ...],
    service_account: str,
    ipv4: bool,
    ipv6: bool,
    mtu: int,
    wait: float,
    output: str,
) -> None:
    """Make the workload NAME: a network namespace with an address, routed to every node, under policy.

    \b
    Examples:
      calipy workload add web --label app=web --port http=tcp:80
      calipy workload add db --namespace shop --ip 10.65.0.9
      calipy workload add box --netns /proc/4711/ns/net -o json
    """
    result = _call(
        "workload.add",
        {
            "name": name,
            "namespace": namespace,
            "labels": _labels(labels),
            "netns": _netns_path(netns),
            "ips": list(ips),
            "ports": [_port(port) for port in ports],
            "service_account": service_account,
            "ipv4": ipv4,
            "ipv6": ipv6,
            "mtu": mtu,
            "wait": wait,
        },
    )
    if output != "table":
        click.echo(structured(result, output))
        return
    click.echo(f"workload {namespace}/{name} has {', '.join(result['addresses'])} on {result['interface']}")
    if not result["programmed"]:
        click.echo("calipy: policy is not in force yet; until it is, the workload is cut off", err=True)


@command.command("del")
@click.argument("name")
@_NAMESPACE
def delete(name: str, namespace: str) -> None:
    """Remove the workload NAME: its endpoint, its interface, its address, and its namespace if we made it.

    \b
    Example:
      calipy workload del web
    """
    _call("workload.del", {"name": name, "namespace": namespace})
    click.echo(f"workload {namespace}/{name} removed")


@command.command("list")
@click.option("-n", "--namespace", default="", help="Only those of this namespace.")
@_OUTPUT
def list_(namespace: str, output: str) -> None:
    """List the workloads of this node.

    \b
    STATE is ready; lost: the interface is gone (after a reboot; del and add it again);
    unfinished: the agent died while making it (del, or add it again).

    \b
    Examples:
      calipy workload list
      calipy workload list -n shop -o json
    """
    found = _call("workload.list", {"namespace": namespace})
    if output != "table":
        click.echo(structured(found, output))
        return
    rows = [
        [
            one["namespace"],
            one["name"],
            ",".join(one["addresses"]),
            one["interface"],
            one["state"],
            one["netns"],
            ",".join(f"{key}={value}" for key, value in sorted(one["labels"].items())),
        ]
        for one in found
    ]
    click.echo(table(["NAMESPACE", "NAME", "ADDRESSES", "INTERFACE", "STATE", "NETNS", "LABELS"], rows))


@command.command("exec")
@click.argument("name")
@_NAMESPACE
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
def exec_(name: str, namespace: str, argv: tuple[str, ...]) -> None:
    """Run COMMAND inside the workload NAME's network; its exit status is ours. The agent need not run.

    \b
    Examples:
      calipy workload exec web -- ip address
      calipy workload exec web --namespace shop -- ping -c1 10.65.0.9
    """
    from calipy.cni.records import Records  # noqa: PLC0415 - only this command needs it
    from calipy.kernel import netns  # noqa: PLC0415

    record = Records().get(namespace, name)
    if record is None:
        raise NotFoundError(f"no workload {namespace}/{name} on this node", remedy="see `calipy workload list`")
    netns.enter(netns.open_fd(record.netns))  # this process has no threads, and becomes the command
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - the point of the command
    except OSError as error:
        sys.stderr.write(f"calipy: cannot run {argv[0]}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def _call(method: str, params: dict[str, Any]) -> Any:
    return api_client.call(api_client.agent_socket(), method, params)


def _labels(texts: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        key, value = _pair(text, "--label")
        if key in labels:
            raise InvalidInputError(
                f"{key} is given twice", field="--label", value=text, remedy=f"one of {key}={labels[key]} and {text}"
            )
        labels[key] = value
    return labels


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInputError("must be KEY=VALUE", field=option, value=text)
    return key, value


def _port(text: str) -> dict[str, Any]:
    name, _, rest = text.partition("=")
    protocol, _, number = rest.partition(":")
    usable = number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65535
    if not name or not usable or protocol.upper() not in {"TCP", "UDP", "SCTP"}:
        raise InvalidInputError(
            "must be NAME=PROTO:PORT, PROTO tcp, udp or sctp, PORT from 1 to 65535",
            field="--port",
            value=text,
            remedy="e.g. http=tcp:80",
        )
    return {"name": name, "protocol": protocol.upper(), "port": int(number)}


def _netns_path(text: str | None) -> str:
    if not text:
        return ""
    return os.path.abspath(text) if "/" in text else f"/run/netns/{text}"  # noqa: PTH100 - must not follow links
