"""From the text of a topology file to a checked ``Topology``: substitution, YAML, inheritance, links. Pure.

What the file refers to outside of itself (bind sources, env-files) is looked up through ``Files``, so that the rest can
be tested without a disk. Every refusal names the file, the line and the element, and comes before anything is created.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from calipy.containerlab import document, linkspec, management, stages
from calipy.containerlab.definition import NOTHING, Definition, Definitions
from calipy.containerlab.document import Cursor
from calipy.containerlab.errors import TopologyError
from calipy.containerlab.management import Overrides
from calipy.containerlab.model import Management, Node, Topology
from calipy.containerlab.nodespec import Files, NodeReader, fail
from calipy.containerlab.substitute import substitute

_TOP = frozenset({"name", "prefix", "mgmt", "settings", "topology", "debug"})
_TOPOLOGY = frozenset({"defaults", "kinds", "groups", "nodes", "links"})
_LAB_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")


class _Nothing:
    """``Files`` of a place without files."""

    def exists(self, path: str) -> bool:  # noqa: ARG002 - of the protocol
        return False

    def read(self, path: str) -> str:
        raise FileNotFoundError(path)


def load(
    text: str,
    *,
    file: str,
    environ: Mapping[str, str],
    files: Files | None = None,
    overrides: Overrides | None = None,
    name: str = "",
    node_filter: Sequence[str] = (),
    lab_base: str = "",
) -> Topology:
    """Read a topology.

    Args:
        text: of the file.
        file: its absolute path (need not exist); its directory is what relative paths refer to.
        environ: the caller's environment, for substitution and ``__IMPORT_ENVS``.
        files: the disk; None for none, as if no file existed.
        overrides: the command line's say about the management network.
        name: replaces the file's lab name.
        node_filter: keep only these nodes, and the links whose ends are all among them.
        lab_base: parent of the lab directory (CLAB_LABDIR_BASE); "" is the directory of the file.

    Raises:
        TopologyError: the file cannot be deployed as it is.
    """
    reader = _Reader(file, environ, files or _Nothing(), lab_base)
    try:
        return reader.topology(text, overrides or Overrides(), name, node_filter)
    except RecursionError:
        raise TopologyError("the YAML refers to itself", place=reader.short) from None


class _Reader:
    def __init__(self, file: str, environ: Mapping[str, str], files: Files, lab_base: str) -> None:
        self.file = file
        self.short = posixpath.basename(file)
        self.directory = posixpath.dirname(file)
        self.environ = environ
        self.files = files
        self.lab_base = lab_base or self.directory
        self.lab = ""
        self.lab_directory = ""
        self.prefix = "clab"
        self.warnings: list[str] = []

    def topology(self, text: str, overrides: Overrides, name: str, node_filter: Sequence[str]) -> Topology:
        if "{{" in text:
            line = text[: text.index("{{")].count("\n") + 1
            raise TopologyError(
                "the file is a Go template ('{{' occurs); the embedded driver has no template engine",
                place=f"{self.short}:{line}",
                remedy="render it first: containerlab deploy --export-rendered FILE",
            )
        top = document.parse(substitute(text, self.environ, place=self.short), place=self.short)
        fields = top.mapping(_TOP)
        self._names(top, fields, name)
        if "topology" not in fields or fields["topology"].is_null:
            top.fail("'topology' is required", value="topology")
        body = fields["topology"].mapping(_TOPOLOGY)
        definitions = self._definitions(body)
        if not definitions.nodes:
            body.get("nodes", fields["topology"]).fail("'nodes' is required: a lab has at least one node")
        network = management.read(fields.get("mgmt"), overrides, self.lab)
        wanted = self._filter(definitions, node_filter)
        reader = NodeReader(
            lab=self.lab,
            prefix=self.prefix,
            directory=self.directory,
            lab_directory=self.lab_directory,
            environ=self.environ,
            files=self.files,
        )
        nodes = {n: reader.node(n, index, definitions) for index, n in enumerate(sorted(wanted))}
        self._together(nodes, definitions, network)
        links = [linkspec.read(item) for item in body["links"].items()] if "links" in body else []
        if node_filter:
            known = {*definitions.nodes, linkspec.HOST, linkspec.MGMT_NET}
            links = [
                (link, at)
                for link, at in links
                if all(
                    e.node in nodes or e.node not in known or e.node in (linkspec.HOST, linkspec.MGMT_NET)
                    for e in link.endpoints
                )
            ]
        linkspec.check(links, nodes)
        credentials = definitions.defaults.values.get("credentials") or {}
        return Topology(
            name=self.lab,
            prefix=self.prefix,
            file=self.file,
            lab_directory=self.lab_directory,
            management=network,
            nodes=nodes,
            links=tuple(link for link, _ in links),
            defaults_username=credentials.get("username", ""),
            defaults_password=credentials.get("password", ""),
            warnings=tuple(self.warnings),
        )

    def _names(self, top: Cursor, fields: Mapping[str, Cursor], name: str) -> None:
        self.lab = name or (fields["name"].text() if "name" in fields else "")
        if not self.lab:
            top.fail("'name' is required: the name of the lab")
        place = fields.get("name", top)
        for variable in ("__gitBranch__", "__gitHash__"):
            if variable in self.lab:
                place.fail(f"{variable} is not supported by the embedded driver", value=self.lab)
        if not _LAB_NAME.fullmatch(self.lab):
            place.fail(
                f"lab name {self.lab!r}: letters, digits, '.', '_' and '-' only, beginning with a letter or digit",
                value=self.lab,
            )
        self.lab_directory = posixpath.join(self.lab_base, f"clab-{self.lab}")
        if "prefix" in fields and not fields["prefix"].is_null:
            self.prefix = fields["prefix"].text()

    def _definitions(self, body: Mapping[str, Cursor]) -> Definitions:
        def table(name: str) -> dict[str, Definition]:
            entries = body[name].mapping() if name in body else {}
            return {key: Definition.read(value, self.environ) for key, value in entries.items()}

        defaults = Definition.read(body["defaults"], self.environ) if "defaults" in body else NOTHING
        return Definitions(defaults, table("kinds"), table("groups"), table("nodes"))

    def _filter(self, definitions: Definitions, node_filter: Sequence[str]) -> set[str]:
        unknown = [name for name in node_filter if name not in definitions.nodes]
        if unknown:
            raise TopologyError(f"node filter: no node {', '.join(unknown)} in the file", place=self.short)
        return set(node_filter) or set(definitions.nodes)

    # --- the nodes together

    def _together(self, nodes: Mapping[str, Node], definitions: Definitions, network: Management) -> None:
        addresses: dict[str, str] = {}
        for node in nodes.values():
            at = definitions.nodes[node.name]
            if node.network_mode == "container":
                target = nodes.get(node.network_node)
                if target is None or not target.is_container:
                    message = f"network-mode container:{node.network_node}: no such node in the lab"
                    fail(definitions.levels(node.name), "network-mode", message, node.network_node)
            for family, address in ((4, node.mgmt_ipv4), (6, node.mgmt_ipv6)):
                if address:
                    self._check_address(at.at[f"mgmt-ipv{family}"], address, family, network)
                    if address in addresses:
                        at.at[f"mgmt-ipv{family}"].fail(
                            f"management address {address} is also that of node {addresses[address]}", value=address
                        )
                    addresses[address] = node.name
            if len(node.long_name) > 60:
                self.warnings.append(f"node {node.name}: the name {node.long_name} is longer than 60 characters")
        stages.check(nodes, {name: d.cursor for name, d in definitions.nodes.items() if d.cursor})
        ignored = sorted({field for node in nodes.values() for field in node.ignored})
        if ignored:
            self.warnings.append(f"without effect in the embedded driver: {', '.join(ignored)}")

    def _check_address(self, at: Cursor, address: str, family: int, network: Management) -> None:
        subnet = management.subnet(network, cast("Any", family))
        gateway = network.ipv4_gateway if family == 4 else network.ipv6_gateway
        if subnet is None:
            at.fail(f"management address {address}: the management network has no IPv{family}", value=address)
        parsed = ipaddress.ip_address(address)
        if parsed not in subnet:
            at.fail(f"management address {address} is outside the subnet {subnet}", value=address)
        if address == str(ipaddress.ip_address(gateway)):
            at.fail(f"management address {address} is the gateway's", value=address)
        if parsed == subnet.network_address or (family == 4 and parsed == subnet.broadcast_address):
            at.fail(f"management address {address} is no host address of {subnet}", value=address)
