"""The files of a lab directory: topology-data.json, the Ansible and Nornir inventories. Writing them is an edge."""

from __future__ import annotations

import ipaddress
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from calipy.containerlab.management import Addresses
from calipy.containerlab.model import Endpoint, Link, Management, Node, Topology

TOPOLOGY_DATA = "topology-data.json"
ANSIBLE = "ansible-inventory.yml"
NORNIR = "nornir-simple-inventory.yml"


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What of a running lab goes into the files.

    Attributes:
        bridge: of the management network, "" where there is none.
        addresses: by node.
        labels: by node.
        macs: by endpoint (``node:interface``).
        parents: MACs of the host's interfaces under macvlans.
        parked: endpoints that outlived their node; containerlab shows the namespace where they waited.
    """

    bridge: str
    addresses: dict[str, Addresses]
    labels: dict[str, dict[str, str]]
    macs: dict[str, str]
    parents: dict[str, str] = {}
    parked: frozenset[str] = frozenset()


def prepare(topology: Topology) -> bool:
    """Make the lab directory and its files, still empty, so that nodes can bind them. True if the directory is new."""
    directory = Path(topology.lab_directory)
    new = not directory.exists()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in (ANSIBLE, NORNIR, TOPOLOGY_DATA):
        (directory / name).touch(mode=0o644)
    if any(bind.source == f"{directory}/.tls/ca" for node in topology.nodes.values() for bind in node.binds):
        (directory / ".tls" / "ca").mkdir(parents=True, exist_ok=True)
    return new


def write(topology: Topology, view: View) -> None:
    """Write the files, in place: nodes may have them bound."""
    directory = Path(topology.lab_directory)
    for name, text in (
        (TOPOLOGY_DATA, topology_data(topology, view)),
        (ANSIBLE, ansible(topology, view)),
        (NORNIR, nornir(topology, view)),
    ):
        (directory / name).write_text(text, encoding="utf-8")


def remove_directory(path: str) -> None:
    """Remove a lab directory, whatever is in it."""
    shutil.rmtree(path, ignore_errors=True)


# --- topology-data.json


def topology_data(topology: Topology, view: View) -> str:
    """The export in containerlab's default form (since 0.71: ``links[].endpoints``)."""
    config = {"prefix": topology.prefix, "mgmt": _management(topology.management, view.bridge)}
    data = {
        "name": topology.name,
        "type": "clab",
        "clab": {"config": config},
        "ssh-pub-keys": [],
        "nodes": {name: _node(topology, node, view) for name, node in topology.nodes.items()},
        "links": [_link(topology, link, view) for link in topology.links],
    }
    return json.dumps(data, indent=2) + "\n"


def _management(network: Management, bridge: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "network": network.network,
        "bridge": bridge,
        "ipv4-subnet": network.ipv4_subnet,
        "ipv4-gw": network.ipv4_gateway if bridge else "",
        "ipv4-range": network.ipv4_range,
        "ipv6-subnet": network.ipv6_subnet,
        "ipv6-gw": network.ipv6_gateway if bridge else "",
        "ipv6-range": network.ipv6_range,
        "mtu": network.mtu,
    }
    shown = {key: value for key, value in values.items() if value}
    shown["external-access"] = network.external_access
    if network.skip_when_unused:
        shown["skip-when-unused"] = True
    if network.driver_opts:
        shown["driver-opts"] = network.driver_opts
    return shown


def _node(topology: Topology, node: Node, view: View) -> dict[str, Any]:
    addresses = view.addresses.get(node.name, Addresses())
    network = topology.management

    def length(address: str, subnet: str) -> int:
        return ipaddress.ip_network(subnet).prefixlen if address else 0

    return {
        "index": str(node.index),
        "shortname": node.name,
        "longname": node.long_name,
        "fqdn": node.fqdn,
        "group": node.group,
        "labdir": f"{topology.lab_directory}/{node.name}",
        "kind": node.kind,
        "image": node.image,
        "mgmt-net": "",
        "mgmt-intf": "",
        "mgmt-ipv4-address": addresses.ipv4,
        "mgmt-ipv4-prefix-length": length(addresses.ipv4, network.ipv4_subnet),
        "mgmt-ipv6-address": addresses.ipv6,
        "mgmt-ipv6-prefix-length": length(addresses.ipv6, network.ipv6_subnet),
        "mac-address": "",
        "labels": dict(sorted(view.labels.get(node.name, {}).items())),
        "port-bindings": [
            {"host-ip": port.host_ip, "host-port": port.host_port, "port": port.port, "protocol": port.protocol}
            for port in node.ports
        ],
    }


def _link(topology: Topology, link: Link, view: View) -> dict[str, Any]:
    a = _end(topology, link.a, view)
    z: dict[str, Any] | None = None
    if link.type == "macvlan" and link.b:
        z = {"node": "host", "interface": link.b.interface, "mac": view.parents.get(link.b.interface, "")}
    elif link.type == "vxlan":
        z = {"node": "host", "interface": "", "mac": a["mac"]}
    elif link.type == "vxlan-stitch":
        name = f"vx-{link.a.node}_{link.a.interface}"
        a = {"node": "host", "interface": name, "mac": view.macs.get(f"host:{name}", "")}
        z = {"node": "host", "interface": "", "mac": a["mac"]}
    elif link.b is not None:
        z = _end(topology, link.b, view)
        if link.type == "mgmt-net":
            a, z = {**z, "node": view.bridge}, a
    ends = {"a": {**a, "peer": "z" if z else "dummy"}}
    if z:
        ends["z"] = {**z, "peer": "a"}
    return {"endpoints": ends, **({"vars": link.vars} if link.vars else {})}


def _end(topology: Topology, end: Endpoint, view: View) -> dict[str, Any]:
    node = topology.nodes.get(end.node)
    waited = str(end) in view.parked and node is not None
    shown: dict[str, Any] = {
        "node": f"clab-park-{node.long_name}" if waited and node else end.node,
        "interface": end.interface,
        "mac": view.macs.get(str(end), end.mac),
    }
    optional = {"ipv4": end.ipv4, "ipv6": end.ipv6, "vars": end.vars}
    return shown | {key: value for key, value in optional.items() if value}


# --- inventories


def _by_kind(topology: Topology) -> dict[str, list[Node]]:
    kinds: dict[str, list[Node]] = defaultdict(list)
    for node in topology.nodes.values():
        kinds[node.kind].append(node)
    return dict(sorted(kinds.items()))


def _of_kind(nodes: list[Node], field: str) -> str:
    """A credential that all nodes of a kind share and that does not come from the defaults."""
    values = {getattr(node, field) for node in nodes}
    uniform = values.pop() if len(values) == 1 else ""
    return uniform if all(node.credentials_at != "defaults" for node in nodes) else ""


def _own(node: Node, nodes: list[Node], field: str) -> bool:
    """Whether a credential is stated at the host."""
    return node.credentials_at in {"node", "group"} or len({getattr(other, field) for other in nodes}) > 1


def ansible(topology: Topology, view: View) -> str:
    """The Ansible inventory: nodes by kind, and by the label ``ansible-group``."""
    lines = [
        "all:",
        "  vars:",
        "    # The inventory is meant to be used from the machine that runs the lab: no proxy.",
        "    ansible_httpapi_use_proxy: false",
    ]
    if topology.defaults_username:
        lines.append(f"    ansible_user: {_scalar(topology.defaults_username)}")
    if topology.defaults_password:
        lines.append(f"    ansible_password: {_scalar(topology.defaults_password)}")
    lines.append("  children:")
    kinds = _by_kind(topology)
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in topology.nodes.values():
        if group := node.labels.get("ansible-group"):
            groups[group].append(node)
    for title, nodes in [*kinds.items(), *sorted(groups.items())]:
        lines.append(f"    {title}:")
        if title in kinds:
            user, password = _of_kind(nodes, "username"), _of_kind(nodes, "password")
            if user or password:
                lines += ["      vars:", "        # ansible_connection: set ansible_connection variable if required"]
                lines += [f"        ansible_user: {_scalar(user)}"] if user else []
                lines += [f"        ansible_password: {_scalar(password)}"] if password else []
        lines.append("      hosts:")
        for node in nodes:
            lines.append(f"        {node.long_name}:")
            if node.labels.get("ansible-no-host-var") != "true":
                lines.append(f"          ansible_host: {view.addresses.get(node.name, Addresses()).ipv4}".rstrip())
            if _own(node, kinds[node.kind], "username"):
                lines.append(f"          ansible_user: {_scalar(node.username)}")
            if _own(node, kinds[node.kind], "password"):
                lines.append(f"          ansible_password: {_scalar(node.password)}")
    return "\n".join(lines) + "\n"


def nornir(topology: Topology, view: View) -> str:
    """The inventory for Nornir's SimpleInventory."""
    lines = ["---"]
    for kind, nodes in _by_kind(topology).items():
        for node in nodes:
            username = node.username if _own(node, nodes, "username") else _of_kind(nodes, "username")
            password = node.password if _own(node, nodes, "password") else _of_kind(nodes, "password")
            address = view.addresses.get(node.name, Addresses()).ipv4
            lines.append(f"{node.name}:")  # unquoted, as containerlab has it
            for key, value in (("username", username), ("password", password), ("platform", kind)):
                lines.append(f"    {key}: {_scalar(value) if value else ''}".rstrip())
            lines.append(f"    hostname: {address}".rstrip())
            groups = sorted(value for key, value in node.labels.items() if key.startswith("nornir-group"))
            if groups:
                lines += ["    groups:", *(f"      - {_scalar(group)}" for group in groups)]
    return "\n".join(lines) + "\n"


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./|")


def _scalar(text: str) -> str:
    """A YAML scalar that reads back as this text."""
    words = {"yes", "no", "true", "false", "on", "off", "null", "y", "n"}
    safe = text and set(text) <= _PLAIN and text[0].isalpha() and text.lower() not in words
    return text if safe else json.dumps(text)
