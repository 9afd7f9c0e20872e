"""Links as written: brief and extended forms, and the checks that need no kernel. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from calipy.containerlab.document import Cursor
from calipy.containerlab.model import DEFAULT_MTU, VXLAN_PORT, Endpoint, Link, LinkType, MacvlanMode, Node

HOST = "host"
MGMT_NET = "mgmt-net"
_COMMON = frozenset({"type", "mtu", "labels", "vars", "ipv4", "ipv6"})
_KEYS: dict[str, frozenset[str]] = {
    "brief": _COMMON | {"endpoints"},
    "veth": _COMMON | {"endpoints"},
    "host": _COMMON | {"endpoint", "host-interface"},
    "mgmt-net": _COMMON | {"endpoint", "host-interface"},
    "dummy": _COMMON | {"endpoint"},
    "macvlan": _COMMON | {"endpoint", "host-interface", "mode"},
    "vxlan": _COMMON | {"endpoint", "remote", "vni", "dst-port", "udp-port", "src-port", "parent-interface"},
}
_KEYS["vxlan-stitch"] = _KEYS["vxlan"]
_ENDPOINT = frozenset({"node", "interface", "mac", "ipv4", "ipv6", "vars"})
_MAC = re.compile(r"([0-9a-f]{2}([:-]))(?:[0-9a-f]{2}\2){4}[0-9a-f]{2}|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}")
_MIN_MTU, _MAX_MTU = 68, 65535
_IFNAMSIZ = 15


def device_name(node: str, interface: str) -> str:
    """The device's name for a wanted one: itself where the kernel can take it, else ``clab-`` and 8 hex digits.

    The made-up name follows from the endpoint, so that it is the same in each deploy. The wanted name is then an
    alternative name (``alternative_name``).
    """
    if interface_is_usable(interface):
        return interface
    return f"clab-{hashlib.sha256(f'{node}:{interface}'.encode()).hexdigest()[:8]}"


def interface_is_usable(interface: str) -> bool:
    """Whether the kernel takes it as a device name."""
    return len(interface) <= _IFNAMSIZ and not re.search(r"[/\s]", interface)


def alternative_name(interface: str) -> str:
    """A wanted name that is no device name, as an alternative name."""
    return re.sub(r"[/ ]", "-", interface)


def ownership_name(node: str, interface: str) -> str:
    """The alternative name that marks an interface as ours, as containerlab forms it."""
    digest = hashlib.sha1(f"{node}\0{interface}".encode(), usedforsecurity=False).hexdigest()
    return f"clab-o-{digest[:16]}"


def read(cursor: Cursor) -> tuple[Link, Cursor]:
    """One entry of ``links``.

    Raises:
        TopologyError: unknown keys or type, a wrong count of endpoints, malformed names, addresses, MACs, MTU.
    """
    fields = cursor.mapping()
    written = fields["type"].text().strip().lower() if "type" in fields else ""
    kind = written or "brief"
    if kind not in _KEYS:
        known = ", ".join(sorted(_KEYS))
        fields["type"].fail(f"unknown link type {written!r}", value=written, remedy=f"known types are: {known}")
    fields = cursor.mapping(_KEYS[kind])
    common: dict[str, Any] = {
        "mtu": _mtu(fields["mtu"]) if "mtu" in fields else 0,
        "labels": fields["labels"].text_map() if "labels" in fields else {},
        "vars": _vars(fields.get("vars")),
    }
    if kind in ("brief", "veth"):
        return _pair(cursor, fields, common, brief=kind == "brief"), cursor
    if "endpoint" not in fields:
        cursor.fail(f"'endpoint' is required for a link of type {kind}")
    end = _endpoint(fields["endpoint"])
    link_type = cast("LinkType", kind)
    if kind in ("host", "mgmt-net", "macvlan"):
        name = fields["host-interface"].text() if "host-interface" in fields else ""
        if not name:
            cursor.fail(f"'host-interface' is required for a link of type {kind}")
        other = Endpoint(node=MGMT_NET if kind == "mgmt-net" else HOST, interface=name)
        mode = _mode(fields["mode"]) if "mode" in fields else "bridge"
        if kind == "macvlan":
            common["mtu"] = 0
        return Link(type=link_type, a=end, b=other, mode=mode, **_default_mtu(kind, common)), cursor
    if kind == "dummy":
        return Link(type="dummy", a=end, **_default_mtu(kind, common)), cursor
    return _vxlan(cursor, fields, link_type, end, common), cursor


def _default_mtu(kind: str, common: dict[str, Any]) -> dict[str, Any]:
    return common if common["mtu"] or kind == "macvlan" else {**common, "mtu": DEFAULT_MTU}


def _pair(cursor: Cursor, fields: Mapping[str, Cursor], common: dict[str, Any], *, brief: bool) -> Link:
    items = list(fields["endpoints"].items()) if "endpoints" in fields else []
    if len(items) != 2:
        place = fields.get("endpoints", cursor)
        place.fail(f"a link has exactly 2 endpoints, {len(items)} given", value=len(items))
    if not brief:
        a, b = (_endpoint(item) for item in items)
        return Link(type="veth", a=a, b=b, **_default_mtu("veth", common))
    ends = [_brief_endpoint(item) for item in items]
    special = next((n for n, (node, _) in enumerate(ends) if node.lower() in ("macvlan", MGMT_NET, HOST)), None)
    if special is not None:
        node, interface = ends[1 - special]
        kind = ends[special][0].lower()
        other = Endpoint(node=MGMT_NET if kind == MGMT_NET else HOST, interface=ends[special][1])
        if kind == "macvlan":
            common["mtu"] = 0
        end = Endpoint(node=node, interface=interface)
        return Link(type=cast("LinkType", kind), a=end, b=other, **_default_mtu(kind, common))
    ipv4 = _brief_addresses(fields.get("ipv4"), 4)
    ipv6 = _brief_addresses(fields.get("ipv6"), 6)
    a, b = (
        Endpoint(node=node, interface=interface, ipv4=ipv4[n], ipv6=ipv6[n]) for n, (node, interface) in enumerate(ends)
    )
    return Link(type="veth", a=a, b=b, **_default_mtu("veth", common))


def _brief_endpoint(cursor: Cursor) -> tuple[str, str]:
    text = cursor.text()
    node, colon, interface = text.partition(":")
    if not colon or not node or not interface or ":" in interface:
        cursor.fail(f"malformed endpoint {text!r}", value=text, remedy='write it as "node:interface"')
    return node, interface


def _brief_addresses(cursor: Cursor | None, family: int) -> tuple[str, str]:
    values = list(cursor.items()) if cursor else []
    if cursor and len(values) > 2:
        cursor.fail(f"a link has 2 endpoints, but {len(values)} ipv{family} addresses are given", value=len(values))
    texts = [_interface_address(value, family) if value.text().strip() else "" for value in values]
    padded = [*texts, "", ""]
    return padded[0], padded[1]


def _interface_address(cursor: Cursor, family: int) -> str:
    text = cursor.text().strip()
    try:
        valid = "/" in text and ipaddress.ip_interface(text).version == family
    except ValueError:
        valid = False
    if not valid:
        cursor.fail(f"{text!r} is no IPv{family} address with prefix length", value=text)
    return text


def _endpoint(cursor: Cursor) -> Endpoint:
    if cursor.is_scalar and not cursor.is_null:
        cursor.fail(f"expected a mapping with 'node' and 'interface', found {cursor.what}")
    fields = cursor.mapping(_ENDPOINT)
    values = {key: fields[key].text() if key in fields else "" for key in ("node", "interface", "mac")}
    for key in ("node", "interface"):
        if not values[key]:
            cursor.fail(f"'{key}' is required in an endpoint")
        if ":" in values[key]:
            fields[key].fail(f"{values[key]!r} must not contain a colon", value=values[key])
    addresses = {
        f"ipv{family}": _interface_address(fields[f"ipv{family}"], family)
        for family in (4, 6)
        if f"ipv{family}" in fields and fields[f"ipv{family}"].text()
    }
    mac = _mac(fields["mac"]) if values["mac"] else ""
    return Endpoint(
        node=values["node"], interface=values["interface"], mac=mac, vars=_vars(fields.get("vars")), **addresses
    )


def _mac(cursor: Cursor) -> str:
    text = cursor.text().lower()
    if not _MAC.fullmatch(text):
        cursor.fail(f"{cursor.text()!r} is no MAC address", value=cursor.text())
    digits = re.sub(r"[:.-]", "", text)
    if int(digits[:2], 16) & 1 or not int(digits, 16):
        cursor.fail(f"{cursor.text()!r} is a multicast or zero MAC address: no interface can have it", value=text)
    return ":".join(digits[n : n + 2] for n in range(0, 12, 2))


def _mtu(cursor: Cursor) -> int:
    mtu = cursor.integer()
    if mtu and not _MIN_MTU <= mtu <= _MAX_MTU:
        cursor.fail(f"MTU {mtu} is outside {_MIN_MTU} to {_MAX_MTU}", value=mtu)
    return mtu


def _mode(cursor: Cursor) -> MacvlanMode:
    mode = cursor.text() or "bridge"
    modes = get_args(MacvlanMode)
    if mode not in modes:
        cursor.fail(f"unknown macvlan mode {mode!r}", value=mode, remedy=f"modes are: {', '.join(modes)}")
    return cast("MacvlanMode", mode)


def _vxlan(
    cursor: Cursor, fields: Mapping[str, Cursor], link_type: LinkType, end: Endpoint, common: dict[str, Any]
) -> Link:
    remote = fields["remote"].text() if "remote" in fields else ""
    if not remote:
        cursor.fail(f"'remote' is required for a link of type {link_type}")
    try:
        ipaddress.ip_address(remote)
    except ValueError:
        fields["remote"].fail(f"{remote!r} is no IP address", value=remote)
    if "vni" not in fields:
        cursor.fail(f"'vni' is required for a link of type {link_type}")
    vni = fields["vni"].integer(minimum=0)
    if vni >= 1 << 24:
        fields["vni"].fail(f"VNI {vni} has more than 24 bits", value=vni)

    def port(*names: str, default: int) -> int:
        for name in names:
            if name in fields:
                number = fields[name].integer(minimum=0)
                if number > 65535:
                    fields[name].fail(f"{number} is no UDP port", value=number)
                return number or default
        return default

    return Link(
        type=link_type,
        a=end,
        remote=remote,
        vni=vni,
        dst_port=port("dst-port", "udp-port", default=VXLAN_PORT),
        src_port=port("src-port", default=0),
        parent=fields["parent-interface"].text() if "parent-interface" in fields else "",
        **common,
    )


def _vars(cursor: Cursor | None) -> dict[str, Any]:
    return {key: value.any() for key, value in cursor.mapping().items()} if cursor else {}


def check(links: Sequence[tuple[Link, Cursor]], nodes: Mapping[str, Node]) -> None:
    """Check all links together: nodes exist, reserved names are not used, no interface is there twice.

    Raises:
        TopologyError: names the endpoint.
    """
    seen: dict[tuple[str, str], Endpoint] = {}
    for link, cursor in links:
        ends = link.endpoints
        for end in ends:
            if end.node not in nodes and end.node not in (HOST, MGMT_NET):
                cursor.fail(f"endpoint {end}: unknown node {end.node!r}", value=end.node)
            node = nodes.get(end.node)
            if end.interface == "lo":
                cursor.fail(f"endpoint {end}: interface lo exists in every node", value=end.interface)
            if end.interface == "eth0" and node and node.is_container and node.network_mode != "none":
                cursor.fail(
                    f"endpoint {end}: eth0 is the management interface",
                    value=end.interface,
                    remedy="use eth1 and up, or network-mode: none",
                )
            on_host = namespace_of(end.node, nodes) == HOST
            if on_host and not interface_is_usable(end.interface):
                cursor.fail(
                    f"endpoint {end}: {end.interface!r} is no interface name: at most 15 characters, no / or blank",
                    value=end.interface,
                )
            keys = {(namespace_of(end.node, nodes), name) for name in (end.interface, alternative_name(end.interface))}
            for key in keys:
                if key in seen:
                    cursor.fail(f"endpoint {end} is used twice", value=str(end))
            seen |= dict.fromkeys(keys, end)


def namespace_of(node: str, nodes: Mapping[str, Node]) -> str:
    """The node whose network namespace ``node`` lives in: itself, another one, or ``host``."""
    visited: set[str] = set()
    while node not in visited:
        visited.add(node)
        found = nodes.get(node)
        if found is None or HOST in (found.kind, found.network_mode):
            return HOST
        if found.kind == "bridge":
            if not found.inside:
                return HOST
            node = found.inside
        elif found.network_mode == "container":
            node = found.network_node
        else:
            return node
    return node
