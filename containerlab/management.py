"""The management network: its defaults, its checks, and which node gets which address. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network

import msgspec

from calipy.containerlab.document import Cursor
from calipy.containerlab.errors import LabError
from calipy.containerlab.model import Management, Node
from calipy.net import Family, IPAddress, Prefix

DEFAULT_IPV4 = "172.20.20.0/24"
DEFAULT_IPV6 = "3fff:172:20:20::/64"
FAMILIES: tuple[Family, ...] = (4, 6)
AUTO_IPV4 = "172.18.0.0/16"
"""What ``auto``, or an IPv6 subnet alone, gives: the first of Docker's pools that its own bridge leaves free."""

_KEYS = frozenset(
    {
        *("network", "bridge", "mtu", "external-access", "skip-when-unused", "driver-opts"),
        *("ipv4-subnet", "ipv4-gw", "ipv4-range", "ipv4_subnet"),
        *("ipv6-subnet", "ipv6-gw", "ipv6-range", "ipv6_subnet"),
    }
)


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says about the management network; "" leaves it to the file."""

    network: str = ""
    ipv4_subnet: str = ""
    ipv6_subnet: str = ""


def read(cursor: Cursor | None, overrides: Overrides, lab: str) -> Management:
    """The network that a file's ``mgmt`` section (or None) and the command line ask for.

    Raises:
        TopologyError: an address that is none, of the wrong family, outside its subnet, or a subnet with host bits.
    """
    fields = cursor.mapping(_KEYS) if cursor else {}

    def text(name: str) -> str:
        return fields[name].text() if name in fields else ""

    wanted = {
        "ipv4-subnet": overrides.ipv4_subnet or text("ipv4-subnet") or text("ipv4_subnet"),
        "ipv6-subnet": overrides.ipv6_subnet or text("ipv6-subnet") or text("ipv6_subnet"),
    }
    if not any(wanted.values()):
        wanted = {"ipv4-subnet": DEFAULT_IPV4, "ipv6-subnet": DEFAULT_IPV6}
    if not wanted["ipv4-subnet"] or wanted["ipv4-subnet"] == "auto":
        wanted["ipv4-subnet"] = AUTO_IPV4
    if wanted["ipv6-subnet"] == "auto":
        digest = hashlib.sha256(lab.encode()).hexdigest()
        wanted["ipv6-subnet"] = f"fd{digest[:2]}:{digest[2:6]}:{digest[6:10]}::/64"

    def fail(name: str, message: str, value: str) -> None:
        place = fields.get(name, cursor)
        if place is None:
            raise LabError(f"--{name}: {message}")
        place.fail(message, value=value)

    subnets: dict[int, Prefix] = {}
    for family in (4, 6):
        name = f"ipv{family}-subnet"
        if value := wanted[name]:
            try:
                subnets[family] = (IPv4Network if family == 4 else IPv6Network)(value)
            except ValueError as error:
                fail(name, f"{value!r} is no IPv{family} subnet: {error}", value)

    for family in (4, 6):
        for part in ("gw", "range"):
            name = f"ipv{family}-{part}"
            if value := text(name):
                try:
                    inside = _inside(value, subnets.get(family), whole=part == "range")
                except ValueError:
                    inside = False
                if not inside:
                    fail(name, f"{value!r} is not inside the IPv{family} subnet", value)

    def gateway(family: int) -> str:
        return text(f"ipv{family}-gw") or (str(subnets[family].network_address + 1) if family in subnets else "")

    return Management(
        network=overrides.network or text("network") or "clab",
        bridge=text("bridge"),
        ipv4_subnet=wanted["ipv4-subnet"],
        ipv4_gateway=gateway(4),
        ipv4_range=text("ipv4-range"),
        ipv6_subnet=wanted["ipv6-subnet"],
        ipv6_gateway=gateway(6),
        ipv6_range=text("ipv6-range"),
        mtu=fields["mtu"].integer(minimum=0) if "mtu" in fields else 0,
        external_access=fields["external-access"].boolean() if "external-access" in fields else True,
        skip_when_unused=fields["skip-when-unused"].boolean() if "skip-when-unused" in fields else False,
        driver_opts=fields["driver-opts"].text_map() if "driver-opts" in fields else {},
    )


def _inside(value: str, subnet: Prefix | None, *, whole: bool) -> bool:
    if subnet is None:
        return False
    if not whole:
        return ipaddress.ip_address(value) in subnet
    network = ipaddress.ip_network(value)
    return network.version == subnet.version and network.subnet_of(subnet)  # type: ignore[arg-type]  # same version


def bridge_name(management: Management) -> str:
    """Name of the bridge behind the network, as Docker would name it: ``br-`` and 12 hex digits."""
    return management.bridge or f"br-{hashlib.sha256(management.network.encode()).hexdigest()[:12]}"


def subnet(management: Management, family: Family) -> Prefix | None:
    """The subnet of one family, or None."""
    value = management.ipv4_subnet if family == 4 else management.ipv6_subnet
    return ipaddress.ip_network(value) if value else None


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Management addresses of a node, without prefix length; "" where it has none."""

    ipv4: str = ""
    ipv6: str = ""


def assign(
    management: Management,
    nodes: Iterable[Node],
    taken: Mapping[str, Addresses],
    *,
    others: frozenset[str] = frozenset(),
) -> dict[str, Addresses]:
    """Addresses for all nodes that are attached to the network: fixed ones first, then the lowest free ones.

    Args:
        management: the network.
        nodes: in the order in which they are to be served.
        taken: what nodes of this lab hold already; they keep it while it fits their definition.
        others: addresses that are in use in the same network by somebody else.

    Raises:
        LabError: a fixed address is in use, or a subnet is exhausted.
    """
    attached = [node for node in nodes if node.attached]
    result: dict[str, dict[str, str]] = {node.name: {} for node in attached}
    for family in FAMILIES:
        network = subnet(management, family)
        if network is None:
            continue
        key = f"ipv{family}"
        gateway = management.ipv4_gateway if family == 4 else management.ipv6_gateway
        span = management.ipv4_range if family == 4 else management.ipv6_range
        fixed = {node.name: getattr(node, f"mgmt_{key}") for node in attached}
        used = {gateway, *others}
        for name, address in fixed.items():
            if address:
                if address in used:
                    raise LabError(f"node {name}: management address {address} is in use")
                used.add(address)
                result[name][key] = address
        for node in attached:
            held = getattr(taken.get(node.name), key, "")
            if held and key not in result[node.name] and held not in used:
                used.add(held)
                result[node.name][key] = held
        free = _candidates(network, ipaddress.ip_network(span) if span else network)
        for node in attached:
            if key in result[node.name]:
                continue
            address = next((text for candidate in free if (text := str(candidate)) not in used), "")
            if not address:
                raise LabError(
                    f"management subnet {span or network} is exhausted: no address left for node {node.name}",
                    remedy="use a larger mgmt.ipv4-subnet",
                )
            used.add(address)
            result[node.name][key] = address
    return {name: msgspec.convert(values, Addresses) for name, values in result.items()}


def _candidates(network: Prefix, span: Prefix) -> Iterator[IPAddress]:
    """Addresses of ``span``, lowest first, without the network's own and its broadcast address."""
    last = network.broadcast_address if network.version == 4 else None
    for number in range(int(span.network_address), int(span.broadcast_address) + 1):
        address = type(network.network_address)(number)
        if address not in (network.network_address, last):
            yield address
