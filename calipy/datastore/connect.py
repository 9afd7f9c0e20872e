"""Where the datastore is, by Calico's own configuration: environment variables or calicoctl's file.

Sources: ``libcalico-go/lib/apiconfig/{apiconfig,load}.go``, ``calicoctl/calicoctl/commands/clientmgr/client.go``,
``felix/config/config_params.go``. Secrets appear in no representation and in no error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from calipy.datastore.etcd import EtcdStore
from calipy.datastore.etcd_transport import Tls
from calipy.errors import InvalidInputError

CONFIG_FILE = Path("/etc/calico/calicoctl.cfg")
DEFAULT_PORT = 2379

# Setting -> its variable, Felix's name for it, its key in the file.
VARIABLES = {
    "type": ("DATASTORE_TYPE", "datastoretype", "datastoreType"),
    "endpoints": ("ETCD_ENDPOINTS", "etcdendpoints", "etcdEndpoints"),
    "discovery": ("ETCD_DISCOVERY_SRV", "", "etcdDiscoverySrv"),
    "username": ("ETCD_USERNAME", "", "etcdUsername"),
    "password": ("ETCD_PASSWORD", "", "etcdPassword"),
    "key_file": ("ETCD_KEY_FILE", "etcdkeyfile", "etcdKeyFile"),
    "cert_file": ("ETCD_CERT_FILE", "etcdcertfile", "etcdCertFile"),
    "ca_file": ("ETCD_CA_CERT_FILE", "etcdcafile", "etcdCACertFile"),
    # Only in files, "to avoid accidental exposure".
    "key": ("", "", "etcdKey"),
    "cert": ("", "", "etcdCert"),
    "ca": ("", "", "etcdCACert"),
}
KUBERNETES_KEYS = frozenset(
    (
        *("kubeconfig", "kubeconfigInline", "k8sAPIEndpoint", "k8sKeyFile", "k8sCertFile", "k8sCAFile", "k8sAPIToken"),
        *("k8sInsecureSkipTLSVerify", "k8sDisableNodePoll", "k8sClientQPS", "k8sClientBurst", "k8sCurrentContext"),
        *("usePodCIDR", "calicoAPIGroup"),
    )
)
"""Keys that a file may hold and that mean nothing here."""


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """How to reach etcd; checked, with all files read.

    Attributes:
        endpoints: ``http://`` or ``https://`` URLs, each with a port, no path.
        tls: for https endpoints; None uses the system's authorities.
        username: "" for none; then ``password`` is "" too.
    """

    endpoints: tuple[str, ...]
    tls: Tls | None = None
    username: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, config_file: Path | None = None) -> EtcdConfig:
        """As calicoctl does: from ``config_file``, which must exist, else from its default file if that
        exists, else from the variables. A file that exists shuts the variables out altogether.

        Raises:
            InvalidInputError: names the variable or key, and what to do.
        """
        if config_file is not None:
            return cls.from_file(config_file)
        return cls.from_file(CONFIG_FILE) if CONFIG_FILE.exists() else cls.from_variables(environ)

    @classmethod
    def from_variables(cls, environ: Mapping[str, str]) -> EtcdConfig:
        """As calico/node does: from the variables alone.

        ``CALICO_X`` goes before ``X``, and that before Felix's ``FELIX_…`` (any case).
        """
        felix = {name.lower().removeprefix("felix_"): name for name in environ if name.lower().startswith("felix_")}
        values: dict[str, str] = {}
        names: dict[str, str] = {}
        for setting, (variable, felix_name, _) in VARIABLES.items():
            candidates = (f"CALICO_{variable}", variable, felix.get(felix_name, ""))
            found = next((name for name in candidates if environ.get(name)), variable)
            names[setting] = found
            values[setting] = environ.get(found, "")
        if not values["endpoints"] and (address := felix.get("etcdaddr")):
            scheme = environ[felix["etcdscheme"]] if "etcdscheme" in felix else "http"
            names["endpoints"] = address
            values["endpoints"] = f"{scheme}://{environ[address]}"
        return _build(values, names.__getitem__)

    @classmethod
    def from_file(cls, path: Path) -> EtcdConfig:
        """From a file of calicoctl's format: YAML or JSON, kind ``CalicoAPIConfig``, no unknown or repeated keys."""
        spec = _read_spec(path)
        by_key = {file_key.lower(): setting for setting, (_, _, file_key) in VARIABLES.items()}
        kubernetes = {key.lower() for key in KUBERNETES_KEYS}
        values = dict.fromkeys(VARIABLES, "")
        for key, value in spec.items():
            setting = by_key.get(str(key).lower())
            if setting is None:
                if str(key).lower() in kubernetes:
                    continue
                raise _wrong(f"spec.{key}", f"is an unknown key in {path}", remedy="remove it or mend its spelling")
            if not isinstance(value, str | None):
                raise _wrong(f"spec.{key}", f"must be a text in {path}", remedy="put it in quotes")
            values[setting] = value or ""
        return _build(values, lambda setting: f"{path}: spec.{VARIABLES[setting][2]}")


def _wrong(name: str, message: str, *, remedy: str, value: str | None = None) -> InvalidInputError:
    """The error for a setting that the user calls ``name``; ``value`` only where it can hold no secret."""
    if value is not None:
        return InvalidInputError(message, field=name, value=value, remedy=remedy)
    error = InvalidInputError(f"{name} {message}", remedy=remedy)
    error.field = name
    return error


def connect(config: EtcdConfig) -> EtcdStore:
    """A store for this configuration. Does not block and does not connect; its first call does."""
    return EtcdStore(config.endpoints, tls=config.tls, username=config.username, password=config.password)


def _build(values: Mapping[str, str], name: Callable[[str], str]) -> EtcdConfig:
    """Check the settings; ``name`` tells what the user calls a setting."""
    if values["type"] not in {"", "etcdv3"}:
        raise _wrong(
            name("type"), "calipy keeps its data in etcd only", value=values["type"], remedy="set it to etcdv3"
        )
    if values["discovery"]:
        raise _wrong(
            name("discovery"),
            "discovery of etcd by DNS is not supported",
            value=values["discovery"],
            remedy=f"list the members' URLs in {name('endpoints')} instead",
        )
    endpoints = tuple(
        _endpoint(url.strip(), name("endpoints")) for url in values["endpoints"].split(",") if url.strip()
    )
    if not endpoints:
        raise _wrong(
            name("endpoints"),
            "no etcd endpoint is configured",
            value=values["endpoints"],
            remedy=f"set ETCD_ENDPOINTS, e.g. http://127.0.0.1:{DEFAULT_PORT}, or etcdEndpoints in {CONFIG_FILE}",
        )
    for one, other in (("username", "password"), ("password", "username")):
        if values[one] and not values[other]:
            raise _wrong(name(one), f"needs {name(other)} beside it", remedy="set both or neither")
    return EtcdConfig(endpoints, _tls(values, name), values["username"], values["password"])


def _endpoint(url: str, source: str) -> str:
    """One URL in the form that the client wants; IPv6 addresses in brackets."""
    remedy = f"write it as http://HOST:{DEFAULT_PORT} or https://[IPV6]:{DEFAULT_PORT}"
    if "@" in url:
        raise _wrong(source, "holds a user name in the URL", remedy="use ETCD_USERNAME and ETCD_PASSWORD")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise _wrong(source, str(error), value=url, remedy=remedy) from None
    if parts.scheme not in {"http", "https"} or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise _wrong(source, "is no URL of an etcd server", value=url, remedy=remedy)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _tls(values: Mapping[str, str], name: Callable[[str], str]) -> Tls | None:
    """Key material from the files named, or as written in the configuration file, but not from both."""
    parts = ("ca", "cert", "key")
    inline = [part for part in parts if values[part]]
    files = [part for part in parts if values[f"{part}_file"]]
    if inline and files:
        raise _wrong(
            name(f"{files[0]}_file"),
            f"cannot be combined with {name(inline[0])}",
            remedy="give key material either inline or in files",
        )
    if not inline and not files:
        return None
    material = {part: values[part].encode() for part in parts}
    for part in files:
        material[part] = _read_pem(values[f"{part}_file"], name(f"{part}_file"))
    suffix = "_file" if files else ""
    for part in inline:
        _check_pem(material[part], name(part))
    for one, other in (("cert", "key"), ("key", "cert")):
        if material[one] and not material[other]:
            raise _wrong(name(one + suffix), f"needs {name(other + suffix)} beside it", remedy="set both or neither")
    return Tls(**material)


def _read_pem(file: str, source: str) -> bytes:
    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise _wrong(
            source, f"cannot be read: {error.strerror}", value=file, remedy="name a readable PEM file"
        ) from None
    _check_pem(text, source)
    return text


def _check_pem(text: bytes, source: str) -> None:
    if b"-----BEGIN " not in text:
        raise _wrong(source, "holds no PEM", remedy="give the text from -----BEGIN to -----END")


class _StrictLoader(yaml.CSafeLoader):
    """Refuses repeated keys, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused further up, as no key of ours
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_spec(path: Path) -> dict[Any, Any]:
    """The ``spec`` of a configuration file whose frame is right."""
    try:
        document = yaml.load(path.read_text(), _StrictLoader)  # noqa: S506 - a safe loader by inheritance
    except OSError as error:
        raise _wrong(
            "--config", f"cannot be read: {error.strerror}", value=str(path), remedy="name an existing file"
        ) from None
    except (yaml.MarkedYAMLError, UnicodeDecodeError) as error:
        # The parser's own text quotes the lines around, which may hold a password.
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "is no UTF-8 text"
        raise _wrong(str(path), f"is no valid YAML{where}: {problem}", remedy="mend the file") from None
    except yaml.YAMLError:
        raise _wrong(str(path), "is no valid YAML", remedy="mend the file") from None
    if not isinstance(document, dict):
        raise _wrong(str(path), "is no mapping", remedy="see calicoctl's configuration format")
    for key, wanted in (("apiVersion", "projectcalico.org/v3"), ("kind", "CalicoAPIConfig")):
        if document.get(key) != wanted:
            raise _wrong(key, f"{path} is of another format", value=document.get(key), remedy=f"set it to {wanted}")
    if unknown := [key for key in document if key not in {"apiVersion", "kind", "metadata", "spec"}]:
        raise _wrong(str(unknown[0]), f"is an unknown key in {path}", remedy="remove it")
    spec = document.get("spec") or {}
    if not isinstance(spec, dict):
        raise _wrong("spec", f"must be a mapping in {path}", remedy="see calicoctl's format")
    return spec
