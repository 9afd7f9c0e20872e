"""Forgetting connections, against the kernel's own table."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable

import pytest

from calipy.felix.dataplane import conntrack
from calipy.kernel import process
from tests.support.netns import Namespace, connect

pytestmark = [pytest.mark.kernel]


def add(source: str, destination: str, *, answers_from: str = "", port: int = 80) -> None:
    """An established TCP connection, as if it had been seen."""
    argv = ["conntrack", "-I", "-s", source, "-d", destination, "-r", answers_from or destination]
    argv += ["-q", source, "-p", "tcp", "--sport", "1234", "--dport", str(port)]
    argv += ["--reply-port-src", str(port), "--reply-port-dst", "1234"]
    process.run([*argv, "--state", "ESTABLISHED", "-u", "SEEN_REPLY", "-t", "600"]).check()


def sources() -> set[str]:
    listed = [process.run(["conntrack", "-L", "-f", family]).check().stdout for family in ("ipv4", "ipv6")]
    return {word.removeprefix("src=") for line in "".join(listed).splitlines() for word in line.split()[4:5]}


def test_connections_from_and_answers_from_an_address_go(make_netns: Callable[..., Namespace]) -> None:
    """Of both families and any number of addresses at once; all others stay."""
    node, other = make_netns("node"), make_netns("other")
    connect(node, other, ("10.0.0.1/24", "10.0.0.2/24"))

    def scenario() -> None:
        for number in range(300):
            add(f"10.1.{number >> 8}.{number & 255}", "10.9.9.9")
        add("10.2.0.1", "192.0.2.1", answers_from="10.1.0.7", port=81)
        add("fd00::1", "fd00::9")
        add("fd00::2", "fd00::9")
        gone = [f"10.1.0.{number}" for number in range(200)] + ["fd00::1", "172.16.0.1"]
        asyncio.run(conntrack.forget(ipaddress.ip_address(address) for address in gone))
        expected = {f"10.1.{number >> 8}.{number & 255}" for number in range(200, 300)} | {"fd00::2"}
        assert sources() == expected

    node.call(scenario)
