"""Single values of a node definition: ports, sizes, binds, CPU sets, durations. Pure."""

from __future__ import annotations

import ipaddress
import re

from calipy.containerlab.model import PortBinding

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_PORT = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|\d+(?:\.\d+){3}):)?(?:(?P<host>\d*(?:-\d+)?):)?(?P<port>\d+(?:-\d+)?)(?:/(?P<protocol>\w+))?"
)


def size(text: str) -> int:
    """Bytes in ``128MB``, ``1g``, ``4096``; 1024-based, as Docker counts memory.

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size like 128MB or 1g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def ports(text: str) -> tuple[PortBinding, ...]:
    """The bindings of one entry in Docker's publish syntax: ``[ip:][host:]port[/protocol]``, with ranges.

    Without an address both 0.0.0.0 and :: are bound; without a host port, any free one.

    Raises:
        ValueError: it is no such entry.
    """
    match = _PORT.fullmatch(text.strip())
    protocol = (match["protocol"] or "tcp").lower() if match else ""
    if match is None or protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{text!r} is no port like 8080:80, 127.0.0.1:8080:80 or 53:53/udp")
    inner = _range(match["port"], text)
    outer = _range(match["host"], text) if match["host"] else range(0)
    if outer and len(outer) != len(inner):
        raise ValueError(f"{text!r}: the ranges differ in length")
    address = (match["ip"] or "").strip("[]")
    if address:
        ipaddress.ip_address(address)
    return tuple(
        PortBinding(host_ip=ip, host_port=outer[n] if outer else 0, port=port, protocol=protocol)
        for n, port in enumerate(inner)
        for ip in ([address] if address else ["0.0.0.0", "::"])
    )


def _range(text: str, whole: str) -> range:
    first, _, last = text.partition("-")
    start, end = int(first), int(last or first)
    if not 0 < start <= end < 65536:
        raise ValueError(f"{whole!r}: {text} is no port or range of ports")
    return range(start, end + 1)


def cpu_set(text: str) -> frozenset[int]:
    """The CPUs in ``0-2,4``.

    Raises:
        ValueError: it is no such list.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{text!r} is no list of CPUs like 0-2,4")
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(cpus)
