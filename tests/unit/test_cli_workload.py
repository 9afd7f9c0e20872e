"""What the command line of ``calipy workload`` refuses by itself."""

from __future__ import annotations

import pytest

from calipy.cli import workload
from calipy.errors import InvalidInputError


@pytest.mark.parametrize(
    "text", ["80", "http=80", "http=icmp:80", "http=tcp:0", "http=tcp:65536", "=tcp:80", "http=tcp:"]
)
def test_ports_that_are_none(text: str) -> None:
    """A port that is not NAME=PROTO:PORT is refused with the option, the value and the right form."""
    with pytest.raises(InvalidInputError, match="NAME=PROTO:PORT") as caught:
        workload._port(text)
    assert (caught.value.field, caught.value.value) == ("--port", text)


def test_ports() -> None:
    """Protocols in any case."""
    assert workload._port("http=TCP:65535") == {"name": "http", "protocol": "TCP", "port": 65535}
