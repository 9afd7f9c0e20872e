"""Checks of single values: names, addresses, CIDRs, selectors. Each raises ``InvalidInputError`` naming the field."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NoReturn

from calipy.errors import InvalidInputError
from calipy.net import IPAddress, Prefix
from calipy.policy import selector

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL: Final = re.compile(_LABEL)
_SUBDOMAIN: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_INTERFACE: Final = re.compile(r"[a-zA-Z0-9_.-]{1,15}")
_INTERFACE_PATTERN: Final = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")
_MAC: Final = re.compile(
    "|".join(
        rf"[0-9a-fA-F]{{2}}({separator}[0-9a-fA-F]{{2}}){{{octets - 1}}}"
        for separator in (":", "-", "")
        for octets in (6, 8, 20)
    )
    + "|"
    + "|".join(rf"[0-9a-fA-F]{{4}}(\.[0-9a-fA-F]{{4}}){{{octets // 2 - 1}}}" for octets in (6, 8, 20))
)
_PORT_NAME: Final = re.compile(rf"(?=.{{1,15}}\Z)(?=.*[a-z])(?!.*--){_LABEL}")
_NOT_IN_GO: Final = re.compile(r"(?<!\\)(\(\?(<?[=!]|[>#(]|P[=>])|\\[1-9])")
_GLOBAL: Final = re.compile(r"global[ \t]*\([ \t]*\)")


def fail(message: str, field: str, value: object, remedy: str = "") -> NoReturn:
    """Refuse a value."""
    raise InvalidInputError(message, field=field, value=value, remedy=remedy)


def dns_label(value: str, field: str, *, longest: int = 63) -> None:
    """One lower-case DNS label, at most ``longest`` characters."""
    if len(value) > longest or not _DNS_LABEL.fullmatch(value):
        fail(f"must be a lower-case DNS label of at most {longest} characters, without dots", field, value)


def subdomain(value: str, field: str) -> None:
    """A lower-case RFC 1123 subdomain of any length: only the names of objects have a limit."""
    if not _SUBDOMAIN.fullmatch(value):
        fail(
            "must consist of lower-case letters, digits, '-' and '.', with letters or digits at both ends", field, value
        )


def is_subdomain(value: str) -> bool:
    """Whether an object may be named so."""
    return len(value) <= 253 and _SUBDOMAIN.fullmatch(value) is not None


def interface(value: str, field: str) -> None:
    """A Linux interface name."""
    if not _INTERFACE.fullmatch(value):
        fail("must be an interface name: 1 to 15 of letters, digits, '_', '.', '-'", field, value)


def interface_pattern(value: str, field: str) -> None:
    """A Linux interface name in which ``*`` stands for anything."""
    if not _INTERFACE_PATTERN.fullmatch(value):
        fail("must be an interface name or pattern: 1 to 15 of letters, digits, '_', '.', '-', '*'", field, value)


def mac(value: str, field: str) -> None:
    """A link-layer address of 6, 8 or 20 octets in one of the usual spellings (Go ``net.ParseMAC``)."""
    if not _MAC.fullmatch(value):
        fail("must be a MAC address such as 66:0a:0b:0c:0d:0e", field, value)


def port_name(value: str, field: str) -> None:
    """The name of an endpoint's port, as Kubernetes has them (RFC 6335)."""
    if not _PORT_NAME.fullmatch(value):
        fail(
            "must be the name of a port: at most 15 lower-case letters, digits and single '-', with a letter",
            field,
            value,
        )


def address(value: str, field: str, version: int | None = None) -> IPAddress:
    """A bare address, of the given family."""
    try:
        found = unmapped(ipaddress.ip_address(value))
    except ValueError:
        fail(f"must be an IP{f'v{version}' if version else ''} address", field, value)
    if (version and found.version != version) or "%" in value:
        fail(f"must be an IP{f'v{version}' if version else ''} address", field, value)
    return found


def unmapped(found: IPAddress) -> IPAddress:
    """An IPv4-mapped address is the IPv4 address to Go, and so to Calico."""
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def network(value: str, field: str, version: int | None = None, *, strict: bool = True, bare: bool = False) -> Prefix:
    """A CIDR.

    Args:
        value: the text.
        field: where it stands.
        version: 4 or 6 when only one family will do.
        strict: refuse bits behind the prefix length.
        bare: take an address without a length too, and an IPv4-mapped one as IPv4.
    """
    family = f"IPv{version} " if version else ""
    length = value.partition("/")[2]
    if not bare and not length:
        fail(f"must be an {family or 'IP '}CIDR with a prefix length such as 10.0.0.0/24", field, value)
    try:
        found = ipaddress.ip_network(value, strict=False)
    except ValueError:
        fail(f"must be an {family or 'IP '}CIDR such as {'fd00::/64' if version == 6 else '10.0.0.0/24'}", field, value)
    if (length and not length.isdigit()) or "%" in value:
        fail(f"must be an {family or 'IP '}CIDR such as {'fd00::/64' if version == 6 else '10.0.0.0/24'}", field, value)
    mapped = found.network_address.ipv4_mapped if isinstance(found, ipaddress.IPv6Network) else None
    if bare and mapped is not None and found.prefixlen >= 96:
        found = ipaddress.ip_network((mapped, found.prefixlen - 96))
    if version and found.version != version:
        fail(f"must be an {family or 'IP '}CIDR such as {'fd00::/64' if version == 6 else '10.0.0.0/24'}", field, value)
    if strict and found.network_address not in {
        first := ipaddress.ip_address(value.partition("/")[0]),
        unmapped(first),
    }:
        fail("has bits set behind its prefix length", field, value, f"write {found}")
    return found


def is_network(value: str) -> bool:
    """Whether the text is an address or CIDR, host bits or not."""
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return True


def selects(value: str, field: str) -> None:
    """A selector."""
    try:
        selector.parse(value)
    except InvalidInputError as error:
        fail(f"is not a selector: {error.args[0]}", field, value)


def selects_without_global(value: str, field: str, *, alone: bool = False) -> None:
    """A selector without ``global()``; as Calico does, even in a quoted text.

    Args:
        value: the selector.
        field: where it stands.
        alone: ``global()`` may be the whole of it.
    """
    selects(value, field)
    if "global(" in value and not (alone and _GLOBAL.fullmatch(value.strip(" \t"))):
        fail("global() may only stand alone, in the namespaceSelector of a rule's source or destination", field, value)


def regexp(value: str, field: str) -> None:
    """A regular expression as Go has them: without lookaround and back references."""
    try:
        re.compile(value)
    except re.error as error:
        fail(f"is not a regular expression: {error}", field, value)
    if _NOT_IN_GO.search(value):
        fail("is not a regular expression of Go: no lookaround, no back references", field, value)


def code_point(value: int | str | None, field: str) -> None:
    """A differentiated services code point: any text, as what it stands for is the reader's; a number of one byte."""
    if isinstance(value, int) and not 0 <= value <= 255:
        fail("must be in 0..63, or a name such as EF", field, value)


def community(value: str, field: str) -> None:
    """A BGP community ``aa:nn`` (16 bits each) or large community ``aa:nn:mm`` (32 bits each)."""
    parts = value.split(":")
    limit = {2: 2**16, 3: 2**32}.get(len(parts), 0)
    if not all(part.isascii() and part.isdigit() and int(part) < limit for part in parts):
        fail("must be a community aa:nn (16 bits each) or a large community aa:nn:mm (32 bits each)", field, value)
