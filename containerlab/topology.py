"""From the text of a topology file to a checked ``Topology``: substitution, YAML, inheritance, links. Pure.

What the file refers to outside of itself (bind sources, env-files) is looked up through ``Files``, so that the rest can
be tested without a disk. Every refusal names the file, the line and the element, and comes before anything is created.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol, cast, get_args

import msgspec

from calipy.containerlab import document, linkspec, management, stages, values
from calipy.containerlab.definition import NOTHING, Definition, Definitions, Levels
from calipy.containerlab.document import Cursor
from calipy.containerlab.errors import TopologyError
from calipy.containerlab.management import Overrides
from calipy.containerlab.model import Bind, Dns, Management, NetworkModeName, Node, RestartPolicy, Topology
from calipy.containerlab.substitute import substitute
from calipy.containerlab.words import parse_env_file, split

_TOP = frozenset({"name", "prefix", "mgmt", "settings", "topology", "debug"})
_TOPOLOGY = frozenset({"defaults", "kinds", "groups", "nodes", "links"})
_LAB_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_LONG_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]+")
_SUPPORTED_KINDS = ("linux", "bridge", "host")
_FOREIGN_KINDS = ("ext-container", "k8s-kind", "ovs-bridge")
_PULL_POLICIES = ("ifnotpresent", "never", "always")
_LINK_APPLY = ("live", "restart", "recreate")
_WITHOUT_EFFECT = (
    *("startup-config", "license", "certificate", "extras", "components", "config", "runtime", "volumes"),
    *("pid-mode", "cgroup-parent", "cgroupns-mode", "security-opts", "ports"),
)
GENERATED = ("ansible-inventory.yml", "nornir-simple-inventory.yml", "topology-data.json", ".tls/ca")
"""Files of the lab directory that may be bind sources before they exist."""


_NAMESPACED = ("net.", "fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm")
"""Sysctls that belong to namespaces, as in Docker; others would change the machine."""


class Files(Protocol):
    """What a topology may look at outside of its own text."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory."""

    def read(self, path: str) -> str:
        """Its text. Raises OSError."""


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
        nodes = {n: self._node(n, index, definitions) for index, n in enumerate(sorted(wanted))}
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

    # --- one node

    def _node(self, name: str, index: int, definitions: Definitions) -> Node:
        levels = definitions.levels(name)
        at = levels.node.cursor
        assert at is not None
        kind = self._kind(name, definitions.kind_of(name), at)
        long_name = self._long_name(name)
        bridge, _, inside = name.partition("|") if kind == "bridge" else ("", "", "")
        if kind == "bridge":
            if not linkspec.interface_is_usable(bridge):
                at.fail(
                    f"bridge name {bridge!r} is no interface name: at most 15 characters, no / or blank", value=name
                )
        elif not _LONG_NAME.fullmatch(long_name) or not re.match(r"[a-zA-Z0-9]", name):
            at.fail(
                f"node name {name!r}: letters, digits, '.', '_' and '-' only, beginning with a letter or digit",
                value=name,
            )
        image = levels.text("image")
        if kind == "linux" and not image:
            at.fail(f"node {name}: 'image' is required for kind linux")
        mode, target = self._network_mode(name, levels)
        if kind == "bridge" and (inside or mode == "container") and inside != target:
            at.fail(
                f"bridge {name}: the part after '|' and network-mode must name the same node",
                value=target,
                remedy=f'write "{bridge}|NODE": {{kind: bridge, network-mode: "container:NODE"}}',
            )
        credentials, credentials_at = self._credentials(levels)
        node = Node(
            name=name,
            long_name=long_name,
            fqdn=f"{name}.{self.lab}.io",
            index=index,
            kind=kind,
            group=definitions.group_of(name),
            type=levels.text("type"),
            image=image,
            pull_policy=self._choice(levels, "image-pull-policy", _PULL_POLICIES),
            hostname=levels.text("hostname"),
            argv=self._argv(levels, "cmd"),
            entrypoint=self._argv(levels, "entrypoint"),
            execs=tuple(self._words(levels, "exec", self._magic(text, name)) for text in levels.merged_list("exec")),
            env=self._env(levels),
            labels=levels.merged_map("labels"),
            user=levels.text("user"),
            binds=self._binds(name, levels),
            tmpfs=levels.merged_map("tmpfs"),
            devices=tuple(levels.merged_list("devices")),
            sysctls=self._sysctls(levels, mode),
            network_mode=mode,
            network_node=target,
            bridge=bridge,
            inside=inside,
            mgmt_ipv4=self._mgmt_address(levels, 4),
            mgmt_ipv6=self._mgmt_address(levels, 6),
            aliases=levels.node.values.get("aliases", ()),
            dns=Dns(**(levels.first("dns") or {})),
            ports=self._ports(levels),
            restart=cast("RestartPolicy", self._choice(levels, "restart-policy", get_args(RestartPolicy)) or "always"),
            startup_delay=levels.first("startup-delay") or 0,
            health=stages.health(at_health) if (at_health := levels.first("healthcheck")) else None,
            stages=stages.read(
                [level.values["stages"] for level in reversed(tuple(levels)) if "stages" in level.values],
                lambda text: self._magic(text, name),
            ),
            shm_size=self._size(levels, "shm-size"),
            memory=self._size(levels, "memory"),
            cpu=float(levels.first("cpu") or 0),
            cpu_set=self._cpu_set(levels),
            username=credentials.get("username", ""),
            password=credentials.get("password", ""),
            credentials_at=cast("Any", credentials_at),
            ignored=tuple(field for field in _WITHOUT_EFFECT if levels.is_set(field)),
        )
        self._choice(levels, "link-apply-mode", _LINK_APPLY)
        return _with_drift(node, levels)

    def _kind(self, name: str, written: str, at: Cursor) -> str:
        kind = written.lower()
        if not kind:
            at.fail(f"node {name}: no kind: neither the node nor its group or the defaults state one")
        if kind in _FOREIGN_KINDS:
            at.fail(f"node {name}: kind {written!r} needs containerlab itself", value=written)
        if kind not in _SUPPORTED_KINDS:
            at.fail(
                f"node {name}: unknown kind {written!r}",
                value=written,
                remedy=f"the embedded driver knows {', '.join(_SUPPORTED_KINDS)}",
            )
        return kind

    def _long_name(self, name: str) -> str:
        if not self.prefix:
            return name
        return f"{self.lab}-{name}" if self.prefix == "__lab-name" else f"{self.prefix}-{self.lab}-{name}"

    def _magic(self, text: str, node: str) -> str:
        for variable, value in (
            ("__clabNodeName__", node),
            ("__clabNodeDir__", f"{self.lab_directory}/{node}"),
            ("__clabDir__", self.lab_directory),
            ("__clabLabName__", f"clab-{self.lab}"),
        ):
            text = text.replace(variable, value)
        return text

    def _words(self, levels: Levels, field: str, text: str) -> tuple[str, ...]:
        try:
            words = split(text)
        except ValueError as error:
            _fail(levels, field, f"{text!r}: {error}")
        if not words:
            _fail(levels, field, f"{text!r} holds no command")
        return words

    def _argv(self, levels: Levels, field: str) -> tuple[str, ...] | None:
        text = levels.text(field)
        return self._words(levels, field, text) if text else None

    def _env(self, levels: Levels) -> dict[str, str]:
        env: dict[str, str] = {}
        for name in levels.merged_list("env-files"):
            path = self._path(name)
            try:
                env |= parse_env_file(self.files.read(path))
            except OSError:
                _fail(levels, "env-files", f"env-file {name!r} cannot be read ({path})", name)
            except ValueError as error:
                _fail(levels, "env-files", f"env-file {name!r}: {error}", name)
        return env | levels.merged_map("env")

    def _path(self, text: str) -> str:
        if text == "~" or text.startswith("~/"):
            text = self.environ.get("HOME", "/root") + text[1:]
        return posixpath.normpath(posixpath.join(self.directory, text))

    def _binds(self, name: str, levels: Levels) -> tuple[Bind, ...]:
        by_target: dict[str, Bind] = {}
        for text in levels.merged_list("binds"):
            parts = text.split(":")
            if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
                _fail(levels, "binds", f"bind {text!r} is not source:/target[:options]", text)
            source = self._path(self._magic(parts[0], name))
            options = tuple(option for option in parts[2].split(",") if option) if len(parts) == 3 else ()
            by_target[parts[1]] = Bind(source=source, target=parts[1], options=options, text=text)
        generated = {f"{self.lab_directory}/{file}" for file in GENERATED}
        for bind in by_target.values():
            if bind.source not in generated and not self.files.exists(bind.source):
                _fail(levels, "binds", f"bind {bind.text!r}: source {bind.source} does not exist", bind.text)
        return tuple(sorted(by_target.values(), key=lambda bind: bind.text))

    def _sysctls(self, levels: Levels, mode: NetworkModeName) -> dict[str, str]:
        sysctls = levels.merged_map("sysctls")
        for key in sysctls:
            dotted = key.replace("/", ".")
            if dotted.startswith("net.") and mode == "host":
                _fail(levels, "sysctls", f"{key} would change the host's network (network-mode: host)", key)
            if not dotted.startswith(_NAMESPACED):
                _fail(levels, "sysctls", f"{key} is not a sysctl of a namespace: it would change the machine", key)
        return sysctls

    def _ports(self, levels: Levels) -> tuple[Any, ...]:
        try:
            return tuple(binding for text in levels.first("ports") or () for binding in values.ports(text))
        except ValueError as error:
            _fail(levels, "ports", str(error))

    def _size(self, levels: Levels, field: str) -> int:
        text = levels.text(field)
        try:
            return values.size(text) if text else 0
        except ValueError as error:
            _fail(levels, field, str(error), text)

    def _cpu_set(self, levels: Levels) -> str:
        text = levels.text("cpu-set")
        try:
            if text:
                values.cpu_set(text)
        except ValueError as error:
            _fail(levels, "cpu-set", str(error), text)
        return text

    def _mgmt_address(self, levels: Levels, family: int) -> str:
        field = f"mgmt-ipv{family}"
        text = levels.node.values.get(field, "")
        try:
            if text and ipaddress.ip_address(text).version != family:
                raise ValueError
        except ValueError:
            _fail(levels, field, f"{text!r} is no IPv{family} address", text)
        return str(ipaddress.ip_address(text)) if text else ""

    def _choice(self, levels: Levels, field: str, known: Sequence[str]) -> str:
        text = levels.text(field)
        value = text.lower() if field == "image-pull-policy" else text
        if text and value not in known:
            _fail(levels, field, f"unknown value {text!r}; known are {', '.join(known)}", text)
        return value

    def _network_mode(self, name: str, levels: Levels) -> tuple[NetworkModeName, str]:
        text = levels.text("network-mode")
        if text.startswith("container:"):
            target = text.removeprefix("container:")
            if not target or target == name:
                _fail(levels, "network-mode", f"{text!r} must name another node", text)
            return "container", target
        if text not in ("", "bridge", "none", "host"):
            _fail(levels, "network-mode", f"unknown value {text!r}; known are none, host, container:NODE", text)
        return cast("NetworkModeName", text or "bridge"), ""

    def _credentials(self, levels: Levels) -> tuple[dict[str, str], str]:
        for label, level in zip(("node", "group", "kind", "defaults"), levels, strict=True):
            credentials = dict(level.values.get("credentials") or {})
            credentials |= {key: level.get(key) for key in ("username", "password") if level.get(key)}
            if credentials.get("username") or credentials.get("password"):
                return credentials, label
        return {}, ""

    # --- the nodes together

    def _together(self, nodes: Mapping[str, Node], definitions: Definitions, network: Management) -> None:
        addresses: dict[str, str] = {}
        for node in nodes.values():
            at = definitions.nodes[node.name]
            if node.network_mode == "container":
                target = nodes.get(node.network_node)
                if target is None or not target.is_container:
                    message = f"network-mode container:{node.network_node}: no such node in the lab"
                    _fail(definitions.levels(node.name), "network-mode", message, node.network_node)
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


def _fail(levels: Levels, field: str, message: str, value: object = None) -> NoReturn:
    place = levels.where(field)
    assert place is not None
    place.fail(message, value=value)


def _with_drift(node: Node, levels: Levels) -> Node:
    """The node with the texts that containerlab compares to tell whether a running node is obsolete."""
    fields: dict[str, Any] = {
        "Type": node.type,
        "Kind": node.kind,
        "Image": node.image,
        "Hostname": node.hostname or node.name,
        "Entrypoint": levels.text("entrypoint"),
        "Cmd": levels.text("cmd"),
        "Exec": levels.merged_list("exec"),
        "Env": sorted(levels.merged_map("env").items()),
        "Binds": [bind.text for bind in node.binds],
        "Devices": node.devices,
        "CapAdd": levels.merged_list("cap-add"),
        "Privileged": levels.first("privileged"),
        "CgroupnsMode": levels.text("cgroupns-mode"),
        "CgroupParent": levels.text("cgroup-parent"),
        "PidMode": levels.text("pid-mode"),
        "Tmpfs": sorted(node.tmpfs.items()),
        "SecurityOpts": levels.merged_list("security-opts"),
        "ShmSize": levels.text("shm-size"),
        "Ports": sorted(map(repr, node.ports)),
        "User": node.user,
        "NetworkMode": levels.text("network-mode"),
        "Runtime": levels.text("runtime"),
        "CPU": node.cpu,
        "CPUSet": node.cpu_set,
        "Memory": levels.text("memory"),
        "License": levels.text("license"),
    }
    return msgspec.structs.replace(node, drift={name: repr(value) for name, value in fields.items()})
