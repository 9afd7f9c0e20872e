"""What a node is told about itself: labels, environment, hosts file, resolver. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from calipy.containerlab.images import Profile
from calipy.containerlab.management import Addresses
from calipy.containerlab.model import Node, Topology

_STOCK_HOSTS = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "ff00::0\tip6-mcastprefix",
    "ff02::1\tip6-allnodes",
    "ff02::2\tip6-allrouters",
)
_NO_PROXY = ("localhost", "127.0.0.1", "::1", "*.local")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def labels(topology: Topology, node: Node, *, owner: str, bridge: str, git: Mapping[str, str]) -> dict[str, str]:
    """All labels of a node: the file's and the lab's own.

    Args:
        topology: the lab.
        node: one of its nodes.
        owner: who deploys, may be "".
        bridge: the management network's; left out where there is none.
        git: ``clab-git-branch`` and ``clab-git-hash`` inside a work tree, else empty.
    """
    own = {
        "containerlab": topology.name,
        "clab-node-name": node.name,
        "clab-node-longname": node.long_name,
        "clab-node-kind": node.kind,
        "clab-node-type": node.type,
        "clab-node-group": node.group,
        "clab-node-lab-dir": f"{topology.lab_directory}/{node.name}",
        "clab-topo-file": topology.file,
        "clab-owner": owner,
        **git,
    }
    if topology.uses_management:
        own["clab-mgmt-net-bridge"] = bridge
    return {**node.labels, **own}


def variables(
    topology: Topology, node: Node, profile: Profile, node_labels: Mapping[str, str], interfaces: int
) -> dict[str, str]:
    """The environment of the node's processes, the file's variables and those of the lab.

    Args:
        topology: the lab.
        node: one of its nodes.
        profile: of its image.
        node_labels: as ``labels`` gave them.
        interfaces: how many data links it gets with its creation.
    """
    env = {"PATH": SYSTEM_PATH, "HOME": "/root", "HOSTNAME": node.hostname or node.name, **profile.env}
    env |= node.env
    for key, value in node_labels.items():
        if key != "clab-mgmt-net-bridge":
            env[f"CLAB_LABEL_{_variable(key)}"] = value
    env["CLAB_INTFS"] = str(interfaces)
    env["no_proxy"] = env["NO_PROXY"] = _no_proxy(topology, node)
    return env


def _variable(label: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]+", "", re.sub(r"[-+./]", "_", label)).upper()


def _no_proxy(topology: Topology, node: Node) -> str:
    given = node.env.get("no_proxy") or node.env.get("NO_PROXY") or ""
    entries = [given] if given else []
    entries += [entry for entry in _NO_PROXY if entry not in given]
    listed: list[str] = list(topology.nodes)
    for other in topology.nodes.values():
        listed += [address for address in (other.mgmt_ipv4, other.mgmt_ipv6) if address]
    listed += [subnet for subnet in (topology.management.ipv4_subnet, topology.management.ipv6_subnet) if subnet]
    return ",".join([*entries, *sorted(listed)])


def hosts(topology: Topology, node: Node, addresses: Addresses) -> str:
    """The hosts file: stock lines, the nodes with fixed addresses, the node itself."""
    lines = list(_STOCK_HOSTS)
    for other in topology.nodes.values():
        lines += [f"{address}\t{other.name}" for address in (other.mgmt_ipv4, other.mgmt_ipv6) if address]
    name = node.hostname or node.name
    short = name.split(".", maxsplit=1)[0]
    names = name if short == name else f"{name} {short}"
    lines += [f"{address}\t{names}" for address in (addresses.ipv4, addresses.ipv6) if address]
    return "\n".join(lines) + "\n"


def resolver(node: Node, servers: Sequence[str]) -> str:
    """resolv.conf: the file's servers, else ``servers``."""
    lines = [f"nameserver {server}" for server in node.dns.servers or servers]
    if node.dns.search:
        lines.append(f"search {' '.join(node.dns.search)}")
    if node.dns.options:
        lines.append(f"options {' '.join(node.dns.options)}")
    return "\n".join(lines) + "\n" if lines else ""


def sysctls(profile: Profile) -> dict[str, str]:
    """Network sysctls that a node begins with, whatever the machine has; those of the file come after."""
    return {
        "net.ipv6.conf.all.disable_ipv6": "0",
        "net.ipv6.conf.default.disable_ipv6": "0",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.conf.default.rp_filter": "0",
        "net.ipv4.ip_forward": "1" if profile.forwards else "0",
    }
