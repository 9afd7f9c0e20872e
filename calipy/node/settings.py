"""What a node is told by its environment, parsed once and strictly: the variables of calico/node."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from calipy.errors import InvalidInputError
from calipy.net import Family

if TYPE_CHECKING:
    from calipy.datastore.connect import EtcdConfig

RUN_DIR = Path(os.environ.get("CALIPY_RUN_DIR", "/run/calipy"))
"""Sockets, pid files and locks of the local daemons."""
LIB_DIR = Path(os.environ.get("CALIPY_LIB_DIR", "/var/lib/calico"))
"""Where Calico keeps ``nodename`` and ``mtu``."""

DEFAULT_POOL_CIDR = "192.168.0.0/16"
DEFAULT_HEALTH_PORT = 9099

TRUE_WORDS = frozenset({"true", "1", "yes", "y", "t", "on"})
FALSE_WORDS = frozenset({"false", "0", "no", "n", "f", "off"})

Encapsulation = Literal["Never", "Always", "CrossSubnet"]


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The default pool of one family. ``cidr`` "" means: choose one; None: make none."""

    cidr: str | None = ""
    block_size: int = 26
    node_selector: str = ""
    nat_outgoing: bool = False
    disable_bgp_export: bool = False
    ipip_mode: Encapsulation = "Never"
    vxlan_mode: Encapsulation = "Never"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """A node's identity and start-up choices.

    Attributes:
        name: the node's name, as all keys spell it.
        ip, ip6: ``IP`` and ``IP6`` as given: "", ``autodetect``, ``none`` or an address.
        as_number: ``AS``, or None to inherit the cluster's.
        backend: ``bird`` (BGP) or ``none`` (policy only).
        cluster_routes: ``CALIPY_CLUSTER_ROUTES``: ``bgp``, ``datastore``, or "" for what the cluster says.
        bgp_metrics_host, bgp_metrics_port: where bgpd serves metrics (``CALIPY_BGP_METRICS_HOST``, ``…_PORT``); port 0:
            nowhere.
        leak_grace: seconds for which an address must have no endpoint before it is given back; 0 = never.
        felix: ``FELIX_…`` parameters, lower-cased names without the prefix.
    """

    name: str
    ip: str = ""
    ip6: str = ""
    ip_method: str = "first-found"
    ip6_method: str = "first-found"
    as_number: int | None = None
    backend: str = "bird"
    cluster_type: str = ""
    node_ref: str = ""
    no_default_pools: bool = False
    pool4: PoolSettings = field(default_factory=lambda: PoolSettings(block_size=26, nat_outgoing=True))
    pool6: PoolSettings = field(default_factory=lambda: PoolSettings(block_size=122))
    check_address_conflicts: bool = True
    ipv6_support: bool = True
    poll_interval: float = 60.0
    health_enabled: bool = True
    health_host: str = "localhost"
    health_port: int = DEFAULT_HEALTH_PORT
    router_id: str = ""
    cluster_routes: str = ""
    bgp_metrics_host: str = "localhost"
    bgp_metrics_port: int = 0
    leak_grace: float = 900.0
    felix: Mapping[str, str] = field(default_factory=dict)

    @property
    def networking(self) -> bool:
        """False where the node only enforces policy (``CALICO_NETWORKING_BACKEND=none``)."""
        return self.backend != "none"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, lib_dir: Path = LIB_DIR) -> NodeSettings:
        """Read calico/node's variables.

        Reads ``<lib_dir>/nodename`` and the host's name where the environment names no node; does not block otherwise.

        Raises:
            InvalidInputError: naming the variable, its value and what is allowed.
        """
        felix = {k[6:].lower(): v for k, v in environ.items() if k.upper().startswith("FELIX_") and len(k) > 6}
        name = node_name(environ, lib_dir=lib_dir)
        ipv6_support = _boolean("FELIX_IPV6SUPPORT", felix.get("ipv6support"), default=True)
        pools_unwanted = environ.get("NO_DEFAULT_POOLS", "").lower() == "true"
        for variable in ("CALICO_IPV4POOL_CIDR", "CALICO_IPV6POOL_CIDR"):
            if pools_unwanted and environ.get(variable):
                raise InvalidInputError(
                    "cannot be given together with NO_DEFAULT_POOLS=true",
                    field=variable,
                    value=environ[variable],
                    remedy="unset one of the two",
                )
        return cls(
            name=name,
            ip=_address_choice("IP", environ.get("IP", ""), 4),
            ip6=_address_choice("IP6", environ.get("IP6", ""), 6),
            ip_method=_method("IP_AUTODETECTION_METHOD", environ.get("IP_AUTODETECTION_METHOD", "")),
            ip6_method=_method("IP6_AUTODETECTION_METHOD", environ.get("IP6_AUTODETECTION_METHOD", "")),
            as_number=_as_number(environ.get("AS", "")),
            backend=_backend(environ.get("CALICO_NETWORKING_BACKEND", "")),
            cluster_type=environ.get("CLUSTER_TYPE", ""),
            node_ref=environ.get("CALICO_K8S_NODE_REF", ""),
            no_default_pools=pools_unwanted,
            pool4=_pool(environ, 4),
            pool6=_pool(environ, 6),
            check_address_conflicts=environ.get("DISABLE_NODE_IP_CHECK", "").lower() != "true",
            ipv6_support=ipv6_support,
            poll_interval=_seconds("AUTODETECT_POLL_INTERVAL", environ.get("AUTODETECT_POLL_INTERVAL", ""), 60.0),
            health_enabled=_boolean("FELIX_HEALTHENABLED", felix.get("healthenabled"), default=True),
            health_host=felix.get("healthhost", "localhost"),
            health_port=_port("FELIX_HEALTHPORT", felix.get("healthport", ""), DEFAULT_HEALTH_PORT),
            router_id=environ.get("CALICO_ROUTER_ID", ""),
            cluster_routes=_cluster_routes("CALIPY_CLUSTER_ROUTES", environ.get("CALIPY_CLUSTER_ROUTES", "")),
            bgp_metrics_host=environ.get("CALIPY_BGP_METRICS_HOST", "") or "localhost",
            bgp_metrics_port=_port("CALIPY_BGP_METRICS_PORT", environ.get("CALIPY_BGP_METRICS_PORT", ""), 0),
            leak_grace=_seconds("CALIPY_LEAK_GRACE", environ.get("CALIPY_LEAK_GRACE", ""), 900.0),
            felix=felix,
        )


def etcd_config(config_file: str | None) -> EtcdConfig:
    """Where the daemons' datastore is: a file given on the command line, else the environment alone, as calico/node.

    Raises:
        InvalidInputError: naming the variable or key that cannot be used.
    """
    from calipy.datastore.connect import EtcdConfig  # noqa: PLC0415 - loads gRPC, which the supervisor must not

    return EtcdConfig.from_file(Path(config_file)) if config_file else EtcdConfig.from_variables(os.environ)


def node_name(environ: Mapping[str, str], *, lib_dir: Path = LIB_DIR) -> str:
    """This host's name: ``NODENAME``, else ``FELIX_FELIXHOSTNAME``, the nodename file, ``HOSTNAME``, the system's own.

    Names that stem from the operating system are trimmed and lower-cased, as calico/node does; a given one is taken
    as it is.

    Raises:
        InvalidInputError: nothing names the node, or the name cannot be part of a key.
    """
    given = environ.get("NODENAME", "") or environ.get("FELIX_FELIXHOSTNAME", "")
    source = "NODENAME"
    if not given:
        try:
            given = (lib_dir / "nodename").read_text().strip()
            source = str(lib_dir / "nodename")
        except OSError:
            given = ""
    if not given:
        given, source = (environ.get("HOSTNAME", "") or socket.gethostname()).strip().lower(), "HOSTNAME"
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", given):
        raise InvalidInputError(
            "not a usable node name",
            field=source,
            value=given,
            remedy="use lower-case letters, digits, '-' and '.', at most 253 characters",
        )
    return given


def _address_choice(variable: str, value: str, family: Family) -> str:
    if value in ("", "autodetect", "none"):
        return value
    try:
        if ipaddress.ip_interface(value).version == family:
            return value
    except ValueError:
        pass
    raise InvalidInputError(
        f"neither 'autodetect', 'none' nor an IPv{family} address",
        field=variable,
        value=value,
        remedy="for instance 10.0.0.11 or 10.0.0.11/24" if family == 4 else "for instance fd00::11/64",
    )


METHODS = (
    "first-found",
    "interface=",
    "skip-interface=",
    "can-reach=",
    "cidr=",
    "kubernetes-internal-ip",
)


def _method(variable: str, value: str) -> str:
    method = value or "first-found"
    if not any(
        (method == m and not m.endswith("=")) or (m.endswith("=") and len(method) > len(m) and method.startswith(m))
        for m in METHODS
    ):
        raise InvalidInputError(
            "unknown detection method", field=variable, value=value, remedy=f"one of {', '.join(METHODS)}"
        )
    return method


def _as_number(value: str) -> int | None:
    if not value:
        return None
    match = re.fullmatch(r"(?:(\d{1,5})\.)?(\d{1,10})", value)
    number = -1
    if match:
        high, low = match.group(1), int(match.group(2))
        number = (int(high) << 16) + low if high is not None and low < 65536 else low
        if high is not None and (int(high) > 65535 or low > 65535):
            number = -1
    if not 0 <= number <= 4294967295:
        raise InvalidInputError("not an AS number", field="AS", value=value, remedy="64512, or dotted like 1.10")
    return number


def _backend(value: str) -> str:
    if value in ("", "bird", "calipy"):
        return "bird"
    if value == "none":
        return "none"
    raise InvalidInputError(
        "not a backend that calipy has",
        field="CALICO_NETWORKING_BACKEND",
        value=value,
        remedy="'bird' (BGP, done by calipy itself) or 'none' (policy only)",
    )


def _cluster_routes(variable: str, value: str) -> str:
    if value in ("", "bgp", "datastore"):
        return value
    raise InvalidInputError("unknown way", field=variable, value=value, remedy="one of bgp, datastore")


def _pool(environ: Mapping[str, str], family: Family) -> PoolSettings:
    prefix = f"CALICO_IPV{family}POOL_"
    cidr: str | None = environ.get(f"{prefix}CIDR", "")
    if cidr == "none":
        cidr = None
    elif cidr:
        try:
            network = ipaddress.ip_network(cidr, strict=False)
        except ValueError:
            network = None
        if network is None or network.version != family:
            raise InvalidInputError(f"not an IPv{family} CIDR", field=f"{prefix}CIDR", value=cidr)
        cidr = str(network)
    default_size, low, high = (26, 20, 32) if family == 4 else (122, 116, 128)
    size_text = environ.get(f"{prefix}BLOCK_SIZE", "")
    size = int(size_text) if size_text.isdecimal() else (default_size if not size_text else -1)
    if not low <= size <= high:
        raise InvalidInputError(
            f"not a prefix length from {low} to {high}", field=f"{prefix}BLOCK_SIZE", value=size_text
        )
    return PoolSettings(
        cidr=cidr,
        block_size=size,
        node_selector=environ.get(f"{prefix}NODE_SELECTOR", ""),
        nat_outgoing=_boolean(f"{prefix}NAT_OUTGOING", environ.get(f"{prefix}NAT_OUTGOING"), default=family == 4),
        disable_bgp_export=_boolean(
            f"{prefix}DISABLE_BGP_EXPORT", environ.get(f"{prefix}DISABLE_BGP_EXPORT"), default=False
        ),
        ipip_mode=_encapsulation(f"{prefix}IPIP", environ.get(f"{prefix}IPIP", "")) if family == 4 else "Never",
        vxlan_mode=_encapsulation(f"{prefix}VXLAN", environ.get(f"{prefix}VXLAN", "")),
    )


def _encapsulation(variable: str, value: str) -> Encapsulation:
    modes: dict[str, Encapsulation] = {
        "": "Never",
        "off": "Never",
        "never": "Never",
        "always": "Always",
        "crosssubnet": "CrossSubnet",
        "cross-subnet": "CrossSubnet",
    }
    mode = modes.get(value.lower())
    if mode is None:
        raise InvalidInputError("unknown mode", field=variable, value=value, remedy="one of Never, Always, CrossSubnet")
    return mode


def _boolean(variable: str, value: str | None, *, default: bool) -> bool:
    if value is None or value == "":
        return default
    if value.lower() in TRUE_WORDS:
        return True
    if value.lower() in FALSE_WORDS:
        return False
    raise InvalidInputError("neither true nor false", field=variable, value=value)


def _port(variable: str, value: str, default: int) -> int:
    if not value:
        return default
    if value.isdecimal() and 0 < int(value) < 65536:
        return int(value)
    raise InvalidInputError("not a port", field=variable, value=value, remedy="1 to 65535")


def _seconds(variable: str, value: str, default: float) -> float:
    """A Go duration such as ``60s``, ``1m30s``, ``500ms``, in seconds."""
    if not value:
        return default
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value)
    if not parts or "".join(n + u for n, u in parts) != value:
        raise InvalidInputError("not a duration", field=variable, value=value, remedy="for instance 60s or 1m30s")
    return sum(float(n) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[u] for n, u in parts)
