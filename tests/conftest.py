"""Fixtures that every ring of tests uses."""

from __future__ import annotations

import socket

import pytest

pytest_plugins = ["tests.support.netns", "tests.support.etcd", "tests.support.bgp", "tests.support.felix"]


@pytest.fixture
def unused_port() -> int:
    """A TCP port of localhost that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
