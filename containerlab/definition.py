"""One level of a node's definition as written (defaults, kind, group or node), and how levels combine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from calipy.containerlab.document import Cursor

_TEXT = (
    *("kind", "group", "type", "hostname", "user", "image", "image-pull-policy", "entrypoint", "cmd", "restart-policy"),
    *("network-mode", "mgmt-ipv4", "mgmt-ipv6", "shm-size", "memory", "cpu-set", "username", "password"),
    *("startup-config", "license", "position", "runtime", "link-apply-mode"),
    *("cgroupns-mode", "cgroup-parent", "pid-mode"),
)
_BOOLEAN = ("enforce-startup-config", "suppress-startup-config", "auto-remove", "privileged")
_TEXTS = ("exec", "binds", "volumes", "devices", "cap-add", "security-opts", "ports", "env-files", "aliases")
_TEXT_MAP = ("tmpfs", "env", "labels", "sysctls")

_CREDENTIALS = frozenset({"username", "password", "identity-file"})
_DNS = frozenset({"servers", "options", "search"})
_CERTIFICATE = frozenset({"issue", "key-size", "validity-duration", "sans"})
_EXTRAS = frozenset({"srl-agents", "mysocket-proxy", "ceos-copy-to-flash", "k8s_kind"})
_HEALTH = frozenset({"test", "interval", "timeout", "retries", "start-period"})


def _credentials(cursor: Cursor) -> dict[str, str]:
    return {key: value.text() for key, value in cursor.mapping(_CREDENTIALS).items()}


def _dns(cursor: Cursor) -> dict[str, tuple[str, ...]]:
    return {key: value.texts() for key, value in cursor.mapping(_DNS).items()}


def _checked(allowed: frozenset[str]) -> Callable[[Cursor], Any]:
    def read(cursor: Cursor) -> Any:
        return {key: value.any() for key, value in cursor.mapping(allowed).items()}

    return read


def _health(cursor: Cursor) -> Cursor:
    cursor.mapping(_HEALTH)
    return cursor


def _config(cursor: Cursor) -> Any:
    return {key: value.any() for key, value in cursor.mapping(frozenset({"vars"})).items()}


_READERS: dict[str, Callable[[Cursor], Any]] = {
    **dict.fromkeys(_TEXT, Cursor.text),
    **dict.fromkeys(_BOOLEAN, Cursor.boolean),
    **dict.fromkeys(_TEXTS, Cursor.texts),
    **dict.fromkeys(_TEXT_MAP, Cursor.text_map),
    "startup-delay": lambda cursor: cursor.integer(minimum=0),
    "cpu": Cursor.number,
    "config": _config,
    "extras": _checked(_EXTRAS),
    "certificate": _checked(_CERTIFICATE),
    "credentials": _credentials,
    "dns": _dns,
    "components": lambda cursor: [item.any() for item in cursor.items()],
    "healthcheck": _health,
    "stages": lambda cursor: cursor,
}
FIELDS = frozenset(_READERS)


@dataclass(frozen=True, slots=True)
class Definition:
    """One level.

    Attributes:
        cursor: where it is written.
        values: the fields that are set, converted; ``stages`` and ``healthcheck`` stay cursors.
        at: cursors of the fields, for errors.
    """

    cursor: Cursor | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    at: Mapping[str, Cursor] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: Cursor, caller: Mapping[str, str]) -> Definition:
        """Read one level; ``caller`` is the environment that ``__IMPORT_ENVS`` imports."""
        at = cursor.mapping(FIELDS)
        values = {key: _READERS[key](value) for key, value in at.items()}
        if values.get("env", {}).get("__IMPORT_ENVS") == "true":
            values["env"] = {**caller, **values["env"]}
        return cls(cursor, values, at)

    def get(self, name: str) -> Any:
        """The value, or None where it is unset. Empty texts, lists and zero count as unset, as they do in Go."""
        value = self.values.get(name)
        return None if value in ("", ()) or (value == 0 and value is not False) else value


NOTHING = Definition()


@dataclass(frozen=True, slots=True)
class Levels:
    """The four levels of one node.

    The order of precedence is node, group, kind, defaults.
    """

    node: Definition
    group: Definition
    kind: Definition
    defaults: Definition

    def __iter__(self) -> Iterator[Definition]:
        """From the most specific to the least."""
        return iter((self.node, self.group, self.kind, self.defaults))

    def first(self, name: str) -> Any:
        """The value of the most specific level that sets it, else None."""
        return next((value for level in self if (value := level.get(name)) is not None), None)

    def text(self, name: str) -> str:
        """``first`` for a text field, "" where unset."""
        return self.first(name) or ""

    def merged_list(self, name: str) -> list[str]:
        """All levels' entries, defaults first, exact duplicates dropped."""
        entries = [entry for level in reversed(tuple(self)) for entry in level.values.get(name) or ()]
        return list(dict.fromkeys(entries))

    def merged_map(self, name: str) -> dict[str, str]:
        """All levels' entries; per key the most specific level wins."""
        merged: dict[str, str] = {}
        for level in reversed(tuple(self)):
            merged |= level.values.get(name) or {}
        return merged

    def where(self, name: str) -> Cursor | None:
        """Where the value that ``first`` returns, or the most specific part of a merged one, is written."""
        return next((level.at[name] for level in self if name in level.at), self.node.cursor)

    def is_set(self, name: str) -> bool:
        """Whether any level sets it."""
        return any(level.get(name) is not None for level in self)


@dataclass(frozen=True, slots=True)
class Definitions:
    """All levels of a file."""

    defaults: Definition
    kinds: Mapping[str, Definition]
    groups: Mapping[str, Definition]
    nodes: Mapping[str, Definition]

    def kind_of(self, name: str) -> str:
        """Kind of a node, as written: its own, its group's, that of the defaults' group, the defaults'."""
        node = self.nodes[name]
        candidates = (
            node,
            self.groups.get(node.get("group") or "", NOTHING),
            self.groups.get(self.defaults.get("group") or "", NOTHING),
            self.defaults,
        )
        return next((kind for level in candidates if (kind := level.get("kind"))), "")

    def group_of(self, name: str) -> str:
        """Group of a node: its own, its kind's, the defaults'; it need not be defined."""
        node = self.nodes[name]
        candidates = (node, self.kinds.get(self.kind_of(name), NOTHING), self.defaults)
        return next((group for level in candidates if (group := level.get("group"))), "")

    def levels(self, name: str) -> Levels:
        """The levels that apply to a node."""
        return Levels(
            node=self.nodes[name],
            group=self.groups.get(self.group_of(name), NOTHING),
            kind=self.kinds.get(self.kind_of(name), NOTHING),
            defaults=self.defaults,
        )
