"""One node of a topology: its levels of definition resolved into one checked ``Node``. Pure.

What a node refers to outside of the file (bind sources, env-files) is looked up through ``Files``.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol, cast, get_args

import msgspec

from calipy.containerlab import linkspec, stages, values
from calipy.containerlab.definition import Definitions, Levels
from calipy.containerlab.document import Cursor
from calipy.containerlab.model import Bind, Dns, NetworkModeName, Node, RestartPolicy
from calipy.containerlab.words import parse_env_file, split

_LONG_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]+")
_SUPPORTED_KINDS = ("linux", "bridge", "host")
_FOREIGN_KINDS = ("ext-container", "k8s-kind", "ovs-bridge")
_PULL_POLICIES = ("ifnotpresent", "never", "always")
_LINK_APPLY = ("live", "restart", "recreate")
_WITHOUT_EFFECT = (
    *("startup-config", "license", "certificate", "extras", "components", "config", "runtime", "volumes"),
    *("pid-mode", "cgroup-parent", "cgroupns-mode", "security-opts", "ports", "memory", "cpu"),
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


class NodeReader:
    """Reads the nodes of one file."""

    def __init__(
        self, *, lab: str, prefix: str, directory: str, lab_directory: str, environ: Mapping[str, str], files: Files
    ) -> None:
        """Nothing is read yet.

        Args:
            lab: name of the lab.
            prefix: of long names.
            directory: of the topology file: what relative paths refer to.
            lab_directory: absolute path.
            environ: of the caller, for ``~``.
            files: what paths refer to.
        """
        self.lab = lab
        self.prefix = prefix
        self.directory = directory
        self.lab_directory = lab_directory
        self.environ = environ
        self.files = files

    def node(self, name: str, index: int, definitions: Definitions) -> Node:
        """The node called ``name``. Raises TopologyError, which names the element."""
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
            fail(levels, field, f"{text!r}: {error}")
        if not words:
            fail(levels, field, f"{text!r} holds no command")
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
                fail(levels, "env-files", f"env-file {name!r} cannot be read ({path})", name)
            except ValueError as error:
                fail(levels, "env-files", f"env-file {name!r}: {error}", name)
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
                fail(levels, "binds", f"bind {text!r} is not source:/target[:options]", text)
            source = self._path(self._magic(parts[0], name))
            options = tuple(option for option in parts[2].split(",") if option) if len(parts) == 3 else ()
            by_target[parts[1]] = Bind(source=source, target=parts[1], options=options, text=text)
        generated = {f"{self.lab_directory}/{file}" for file in GENERATED}
        for bind in by_target.values():
            if bind.source not in generated and not self.files.exists(bind.source):
                fail(levels, "binds", f"bind {bind.text!r}: source {bind.source} does not exist", bind.text)
        return tuple(sorted(by_target.values(), key=lambda bind: bind.text))

    def _sysctls(self, levels: Levels, mode: NetworkModeName) -> dict[str, str]:
        sysctls = levels.merged_map("sysctls")
        for key in sysctls:
            dotted = key.replace("/", ".")
            if dotted.startswith("net.") and mode == "host":
                fail(levels, "sysctls", f"{key} would change the host's network (network-mode: host)", key)
            if not dotted.startswith(_NAMESPACED):
                fail(levels, "sysctls", f"{key} is not a sysctl of a namespace: it would change the machine", key)
        return sysctls

    def _ports(self, levels: Levels) -> tuple[Any, ...]:
        try:
            return tuple(binding for text in levels.first("ports") or () for binding in values.ports(text))
        except ValueError as error:
            fail(levels, "ports", str(error))

    def _size(self, levels: Levels, field: str) -> int:
        text = levels.text(field)
        try:
            return values.size(text) if text else 0
        except ValueError as error:
            fail(levels, field, str(error), text)

    def _cpu_set(self, levels: Levels) -> str:
        text = levels.text("cpu-set")
        try:
            if text:
                values.cpu_set(text)
        except ValueError as error:
            fail(levels, "cpu-set", str(error), text)
        return text

    def _mgmt_address(self, levels: Levels, family: int) -> str:
        field = f"mgmt-ipv{family}"
        text = levels.node.values.get(field, "")
        try:
            if text and ipaddress.ip_address(text).version != family:
                raise ValueError
        except ValueError:
            fail(levels, field, f"{text!r} is no IPv{family} address", text)
        return str(ipaddress.ip_address(text)) if text else ""

    def _choice(self, levels: Levels, field: str, known: Sequence[str]) -> str:
        text = levels.text(field)
        value = text.lower() if field == "image-pull-policy" else text
        if text and value not in known:
            fail(levels, field, f"unknown value {text!r}; known are {', '.join(known)}", text)
        return value

    def _network_mode(self, name: str, levels: Levels) -> tuple[NetworkModeName, str]:
        text = levels.text("network-mode")
        if text.startswith("container:"):
            target = text.removeprefix("container:")
            if not target or target == name:
                fail(levels, "network-mode", f"{text!r} must name another node", text)
            return "container", target
        if text not in ("", "bridge", "none", "host"):
            fail(levels, "network-mode", f"unknown value {text!r}; known are none, host, container:NODE", text)
        return cast("NetworkModeName", text or "bridge"), ""

    def _credentials(self, levels: Levels) -> tuple[dict[str, str], str]:
        for label, level in zip(("node", "group", "kind", "defaults"), levels, strict=True):
            credentials = dict(level.values.get("credentials") or {})
            credentials |= {key: level.get(key) for key in ("username", "password") if level.get(key)}
            if credentials.get("username") or credentials.get("password"):
                return credentials, label
        return {}, ""


def fail(levels: Levels, field: str, message: str, value: object = None) -> NoReturn:
    """Refuse a field of a node: raise a ``TopologyError`` that names the place where it is written."""
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
