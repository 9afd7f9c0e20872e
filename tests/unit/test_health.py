"""Readiness and liveness add up the reporters, and a silent reporter is neither."""

from __future__ import annotations

import asyncio

from calipy.httpd import HttpServer
from calipy.node.health import Health, pages, table


def test_a_reporter_is_live_but_not_ready_before_it_reports() -> None:
    """Starting is not dying."""
    health = Health()
    health.register("felix")
    assert health.live
    assert not health.ready


def test_a_late_reporter_is_neither_live_nor_ready() -> None:
    """A report older than its time-out counts for nothing."""
    health = Health()
    health.register("loop", timeout=10.0)
    health.report("loop", ready=True, now=100.0)
    assert [(x.live, x.ready) for x in health.lines(109.0)] == [(True, True)]
    assert [(x.live, x.ready) for x in health.lines(111.0)] == [(False, False)]


def test_table_names_the_reason() -> None:
    """People see which part is not ready and why."""
    health = Health()
    health.register("datastore")
    health.report("datastore", ready=False, detail="no endpoint answers", now=1.0)
    assert "no endpoint answers" in table(health.lines(1.0))


async def _fetch(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("localhost", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


async def test_server_answers_200_and_503(unused_port: int) -> None:
    """/readiness follows the reporters; other paths and methods are refused."""
    health = Health()
    health.register("felix")
    server = HttpServer(pages(health), host="localhost", port=unused_port, purpose="health checks", remedy="")
    await server.start()
    try:
        assert b" 503 " in await _fetch(unused_port, b"GET /readiness HTTP/1.1\r\n\r\n")
        assert b" 200 " in await _fetch(unused_port, b"GET /liveness HTTP/1.1\r\n\r\n")
        health.report("felix", ready=True, detail="in sync")
        answer = await _fetch(unused_port, b"GET /readiness HTTP/1.1\r\n\r\n")
        assert b" 200 " in answer
        assert b"in sync" in answer
        assert b" 404 " in await _fetch(unused_port, b"GET / HTTP/1.1\r\n\r\n")
        assert b" 405 " in await _fetch(unused_port, b"POST /readiness HTTP/1.1\r\n\r\n")
    finally:
        await server.stop()
