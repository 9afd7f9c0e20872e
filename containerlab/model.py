"""A topology as values: what a file means after inheritance, ready to be built. Pure.

Everything is frozen and survives the way through JSON, because the command line reads the file and the lab's supervisor
builds it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

NetworkModeName = Literal["bridge", "none", "host", "container"]
RestartPolicy = Literal["no", "on-failure", "always", "unless-stopped"]
StageName = Literal["create", "create-links", "configure", "healthy", "exit"]
LinkType = Literal["veth", "host", "mgmt-net", "dummy", "macvlan", "vxlan", "vxlan-stitch"]
MacvlanMode = Literal["bridge", "private", "vepa", "passthru", "source"]

DEFAULT_MTU = 9500
"""MTU of a data link that states none."""
VXLAN_PORT = 14789
"""UDP port of a VXLAN link that states none."""


class Management(msgspec.Struct, frozen=True, kw_only=True):
    """The management network.

    Attributes:
        network: its name; labs in the host's own namespace share it by name.
        bridge: the Linux bridge behind it, or "" to derive a name.
        ipv4_subnet: CIDR, or "" for none; same for ``ipv6_subnet``.
        ipv4_gateway: address of the bridge, or "".
        ipv4_range: the part of the subnet that addresses are picked from, or "".
        mtu: of eth0 and the bridge; 0 means 1500.
        external_access: as written; the embedded driver gives none.
        skip_when_unused: no network when no node is attached to it.
        driver_opts: kept, without effect.
    """

    network: str = "clab"
    bridge: str = ""
    ipv4_subnet: str = ""
    ipv4_gateway: str = ""
    ipv4_range: str = ""
    ipv6_subnet: str = ""
    ipv6_gateway: str = ""
    ipv6_range: str = ""
    mtu: int = 0
    external_access: bool = True
    skip_when_unused: bool = False
    driver_opts: dict[str, str] = {}


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """A bind mount. ``text`` is the merged, unresolved form, which decides about drift."""

    source: str
    target: str
    options: tuple[str, ...] = ()
    text: str = ""

    @property
    def read_only(self) -> bool:
        """Whether the node may not write there."""
        return "ro" in self.options


class PortBinding(msgspec.Struct, frozen=True, kw_only=True):
    """A published port. ``host_port`` 0 asks for any free one."""

    host_ip: str
    host_port: int
    port: int
    protocol: str


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How a node's health is found out; times in seconds."""

    argv: tuple[str, ...]
    interval: float = 30
    timeout: float = 30
    retries: int = 3
    start_period: float = 0


class StageCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command run when a stage is entered or left."""

    argv: tuple[str, ...]
    target: Literal["container", "host"] = "container"
    phase: Literal["on-enter", "on-exit"] = "on-enter"


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Enter a stage only after ``node`` has left ``stage``."""

    node: str
    stage: StageName


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What is attached to one stage of a node."""

    wait_for: tuple[Wait, ...] = ()
    commands: tuple[StageCommand, ...] = ()


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    """resolv.conf of a node."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One node after inheritance.

    Attributes:
        name: as in the file; ``long_name`` is the name on the machine (``clab-<lab>-<node>``).
        kind: ``linux``, ``bridge`` or ``host``.
        bridge: for kind bridge, the device's name; ``inside`` is the node whose namespace holds it ("" is the host's).
        network_mode: ``container`` joins the namespace of ``network_node``.
        argv: main process, None where the image decides; ``entrypoint`` likewise.
        execs: commands for after the links, split, with their variables replaced.
        env: variables from the file and its env-files; ``imported`` ones of the caller are in it already.
        labels: as written, without the lab's own.
        user: name or number, "" is root.
        ignored: fields that are set and have no effect here, by name.
        drift: the fields that make a running node obsolete when they change: name to text.
    """

    name: str
    long_name: str
    fqdn: str
    index: int
    kind: str
    group: str = ""
    type: str = ""
    image: str = ""
    pull_policy: str = ""
    hostname: str = ""
    argv: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    execs: tuple[tuple[str, ...], ...] = ()
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    user: str = ""
    binds: tuple[Bind, ...] = ()
    tmpfs: dict[str, str] = {}
    devices: tuple[str, ...] = ()
    sysctls: dict[str, str] = {}
    network_mode: NetworkModeName = "bridge"
    network_node: str = ""
    bridge: str = ""
    inside: str = ""
    mgmt_ipv4: str = ""
    mgmt_ipv6: str = ""
    aliases: tuple[str, ...] = ()
    dns: Dns = Dns()
    ports: tuple[PortBinding, ...] = ()
    restart: RestartPolicy = "always"
    startup_delay: int = 0
    health: HealthCheck | None = None
    stages: dict[StageName, Stage] = {}
    shm_size: int = 0
    memory: int = 0
    cpu: float = 0
    cpu_set: str = ""
    username: str = ""
    password: str = ""
    credentials_at: Literal["", "defaults", "kind", "group", "node"] = ""
    ignored: tuple[str, ...] = ()
    drift: dict[str, str] = {}

    @property
    def is_container(self) -> bool:
        """Whether it is a node with processes of its own."""
        return self.kind == "linux"

    @property
    def attached(self) -> bool:
        """Whether it has eth0 in the management network."""
        return self.is_container and self.network_mode == "bridge"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a link.

    Attributes:
        node: a node of the file, or ``host`` or ``mgmt-net`` for the namespace of the host.
        interface: the wanted name; may be too long for the kernel (see ``links.device_name``).
        mac: "" picks a random one in OUI aa:c1:ab.
        ipv4: exported only, CIDR; the interface stays unnumbered. ``ipv6`` likewise.
        vars: exported only.
    """

    node: str
    interface: str
    mac: str = ""
    ipv4: str = ""
    ipv6: str = ""
    vars: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A link.

    Attributes:
        type: ``veth`` joins ``a`` and ``b``; ``host`` and ``mgmt-net`` are veths with ``b`` on the host; ``dummy`` has
            no ``b``; for ``macvlan`` ``b`` is the parent interface on the host; ``vxlan`` and ``vxlan-stitch``
            have none.
        mtu: in bytes; 0 leaves it to the kernel (macvlan and VXLAN take it from what is below them).
        mode: of a macvlan.
    """

    type: LinkType
    a: Endpoint
    b: Endpoint | None = None
    mtu: int = DEFAULT_MTU
    vars: dict[str, Any] = {}
    labels: dict[str, str] = {}
    mode: MacvlanMode = "bridge"
    remote: str = ""
    vni: int = 0
    dst_port: int = VXLAN_PORT
    src_port: int = 0
    parent: str = ""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The ends that exist as interfaces after building; a macvlan's parent was there before."""
        return (self.a,) if self.b is None or self.type == "macvlan" else (self.a, self.b)

    def __str__(self) -> str:
        return " -- ".join(sorted(str(end) for end in self.endpoints))


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """A whole lab.

    Attributes:
        file: absolute path of the topology file; its directory is what relative paths refer to.
        lab_directory: absolute path of ``clab-<name>``.
        nodes: by name, sorted.
        warnings: what the reader should know, one line each.
    """

    name: str
    prefix: str
    file: str
    lab_directory: str
    management: Management
    nodes: dict[str, Node]
    links: tuple[Link, ...] = ()
    defaults_username: str = ""
    defaults_password: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def uses_management(self) -> bool:
        """Whether there is a management network."""
        return not self.management.skip_when_unused or any(
            node.is_container and node.network_mode != "none" for node in self.nodes.values()
        )

    def interfaces_of(self, node: str) -> list[Endpoint]:
        """The data interfaces of a node, in the order of the links. O(links)."""
        return [end for link in self.links for end in link.endpoints if end.node == node]
