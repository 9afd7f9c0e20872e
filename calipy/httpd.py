"""A small HTTP server for what daemons tell of themselves, health and metrics: GET and HEAD of fixed paths."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from calipy import log
from calipy.errors import CalipyError

logger = log.get("httpd")

REQUEST_SECONDS = 5.0
MAX_REQUEST_LINE = 4096


@dataclass(frozen=True, slots=True)
class Page:
    """An answer. ``status`` is a number with its phrase."""

    body: str
    status: str = "200 OK"
    content_type: str = "text/plain; charset=utf-8"


class HttpServer:
    """Serves pages on one address. One request a connection; slow clients are cut off after ``REQUEST_SECONDS``."""

    def __init__(
        self,
        pages: Mapping[str, Callable[[], Page]],
        *,
        host: str,
        port: int,
        purpose: str,
        remedy: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing listens before ``start``.

        Args:
            pages: path → what to answer; called in the event loop, so it must be quick. Other paths do not exist.
            host: name or address to listen on; "" for all addresses.
            port: TCP port.
            purpose: what is served, for messages: "metrics".
            remedy: what to change if it cannot be served here.
            tls: serve HTTPS.
        """
        self._pages = pages
        self._host = host
        self._port = port
        self._purpose = purpose
        self._remedy = remedy
        self._tls = tls
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            CalipyError: the port is taken or the address is not ours.
        """
        handshake = REQUEST_SECONDS if self._tls else None
        try:
            self._server = await asyncio.start_server(
                self._serve,
                self._host or None,
                self._port,
                limit=MAX_REQUEST_LINE,
                ssl=self._tls,
                ssl_handshake_timeout=handshake,
            )
        except OSError as error:
            raise CalipyError(
                f"cannot listen for {self._purpose} on {self._host or '*'}:{self._port}: {error.strerror or error}",
                remedy=self._remedy,
            ) from error

    async def stop(self) -> None:
        """Listen no more; requests under way end by themselves."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                page, method = self._answer((await reader.readline()).decode("latin-1"))
                while (await reader.readline()).strip():
                    pass
                body = page.body.encode()
                head = (
                    f"HTTP/1.1 {page.status}\r\nContent-Type: {page.content_type}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + (b"" if method == "HEAD" else body))
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError, ssl.SSLError):
            logger.debug("request not completed", purpose=self._purpose)
        finally:
            writer.close()

    def _answer(self, request: str) -> tuple[Page, str]:
        method, _, rest = request.partition(" ")
        if method not in ("GET", "HEAD"):
            return Page("GET only\n", "405 Method Not Allowed"), method
        page = self._pages.get(rest.split(" ")[0].split("?")[0])
        if page is None:
            return Page(f"{' or '.join(self._pages)}\n", "404 Not Found"), method
        return page(), method
