"""Fixtures that every ring of tests uses."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import HealthCheck, settings

from tests.support import owned

pytest_plugins = [
    "tests.support.order",
    "tests.support.netns",
    "tests.support.etcd",
    "tests.support.bgp",
    "tests.support.felix",
]


def pytest_configure() -> None:
    """Whatever the tests start goes with this process; labs are registered apart from those of the machine."""
    owned.start_reaper()
    os.environ["CALIPY_LAB_RUN_DIR"] = str(owned.lab_registry())


# On a busy machine an example may stand still for a second.
settings.register_profile("calipy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calipy")


@pytest.fixture
def unused_port() -> int:
    """A TCP port of localhost that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
