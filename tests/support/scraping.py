"""Reads a node's metrics the way Prometheus does."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping

from calipy.kernel import netns as kernel_netns
from tests.support.matrix import Site

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^}]*\})?) (\S+)")


def get(site: Site, path: str, *, host: str = "127.0.0.1", port: int = 9091, timeout: float = 10.0) -> tuple[int, str]:
    """Status and body of a page, asked for from inside a namespace. Raises OSError if nobody listens."""

    def ask() -> tuple[int, str]:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    found: tuple[int, str] = kernel_netns.run_in(site.ns.fd, ask)
    return found


def metrics(site: Site, *, host: str = "127.0.0.1", port: int = 9091) -> Mapping[str, float]:
    """All samples by name and labels; {} if nobody listens."""
    try:
        status, text = get(site, "/metrics", host=host, port=port)
    except OSError:
        return {}
    assert status == 200
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (_SAMPLE.fullmatch(line).groups() for line in lines)}  # type: ignore[union-attr]
