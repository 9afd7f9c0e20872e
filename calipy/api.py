"""The local API's asynchronous half: the server that daemons run, and a client for event loops.

Who may connect is decided twice: by the socket's mode 0600, and by the kernel's word on who is there (root, or the user
the daemon runs as).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from calipy import log
from calipy.api_client import (
    BAD_REQUEST,
    FORBIDDEN,
    MAX_REQUEST,
    TOO_LARGE,
    UNKNOWN_METHOD,
    ApiError,
    encode,
    error_object,
    refuse_taken,
    result_of,
    unavailable,
)
from calipy.errors import AgentUnavailableError, CalipyError

Handler: TypeAlias = Callable[[dict[str, Any]], Awaitable[Any]]
"""Takes the parameters, returns something JSON can hold; raises ``CalipyError`` for what the caller should read."""

_MAX_IN_FLIGHT: Final = 64
_CREDENTIALS: Final = struct.Struct("=iII")

_log = log.get("api")


class Server:
    """Answers requests on a Unix socket. Requests of one connection run side by side; answers carry their ids.

    A client that goes away does not stop what it asked for.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler], *, timeout: float = 60.0) -> None:
        """Prepare; ``start`` opens the socket.

        Args:
            path: of the socket.
            handlers: by method name.
            timeout: seconds that one request may take before it is cancelled.
        """
        self._path = path
        self._handlers = handlers
        self._timeout = timeout
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the socket, replacing one that a dead daemon left.

        Raises:
            CalipyError: a living daemon answers there, or the directory cannot be used.
        """
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        refuse_taken(self._path)
        # Born under another name and renamed once its mode is right: no moment in which others may connect.
        newborn = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        newborn.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.bind(os.fspath(newborn))
            newborn.chmod(0o600)
            listener.listen(128)
            self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=MAX_REQUEST)
            status = newborn.stat()
            self._inode = (status.st_dev, status.st_ino)
            newborn.rename(self._path)
        except OSError as error:
            listener.close()
            newborn.unlink(missing_ok=True)
            raise CalipyError(f"cannot listen at {self._path}: {error.strerror}") from error

    async def close(self) -> None:
        """Stop answering; requests under way are cancelled. The socket's file goes, unless a successor's is there."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            status = self._path.stat()
            if (status.st_dev, status.st_ino) == self._inode:
                self._path.unlink()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running: set[asyncio.Task[None]] = set()
        slots = asyncio.Semaphore(_MAX_IN_FLIGHT)
        try:
            if not _is_allowed(writer):
                await _send(writer, _refusal(FORBIDDEN, "only root may use this socket"))
                return
            while True:
                try:
                    line = await reader.readline()
                except ValueError:  # longer than the reader's limit
                    await _send(writer, _refusal(TOO_LARGE, f"a request may have {MAX_REQUEST} bytes"))
                    return
                if not line.endswith(b"\n"):
                    break
                await slots.acquire()
                task = asyncio.ensure_future(self._answer(line, writer))
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(lambda _: slots.release())
            await asyncio.gather(*running)
        except ConnectionError:
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        number: Any = None
        try:
            number, method, params = _parse(line)
            handler = self._handlers.get(method)
            if handler is None:
                known = ", ".join(sorted(self._handlers))
                raise ApiError(f"unknown method {method!r}", code=UNKNOWN_METHOD, remedy=f"known: {known}")
            async with asyncio.timeout(self._timeout):
                result = await handler(params)
            answer = encode({"id": number, "result": result})
        except Exception as error:
            if not isinstance(error, CalipyError):
                _log.exception("request failed", request_id=number)
            answer = encode({"id": number, "error": error_object(error)})
        await _send(writer, answer)


class Client:
    """Asks a daemon from an event loop; one connection per call, so calls may overlap."""

    def __init__(self, path: Path) -> None:
        """Remember the socket; nothing is opened yet."""
        self._path = path

    async def call(self, method: str, params: dict[str, Any] | None = None, *, timeout: float = 65.0) -> Any:
        """The answer's result.

        Raises:
            ApiError: the daemon refused.
            AgentUnavailableError: it does not run, or did not answer within ``timeout`` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=256 * MAX_REQUEST)
                try:
                    writer.write(encode({"id": 1, "method": method, "params": params or {}}))
                    await writer.drain()
                    line = await reader.readline()
                finally:
                    writer.close()
        except TimeoutError as error:
            raise AgentUnavailableError(f"no answer from {self._path} within {timeout:g} s") from error
        except OSError as error:
            raise unavailable(self._path, error) from error
        if not line:
            raise AgentUnavailableError(f"{self._path} closed the connection without an answer")
        return result_of(line)


def _parse(line: bytes) -> tuple[Any, str, dict[str, Any]]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"not JSON: {error}", code=BAD_REQUEST) from error
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        raise ApiError("a request is an object with id, method and params", code=BAD_REQUEST)
    params = request.get("params", {})
    if not isinstance(params, dict):
        raise ApiError("params must be an object", code=BAD_REQUEST)
    return request.get("id"), request["method"], params


def _refusal(code: int, message: str) -> bytes:
    return encode({"id": None, "error": {"code": code, "message": message, "remedy": ""}})


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # whoever asked has gone
        writer.write(data)
        await writer.drain()


def _is_allowed(writer: asyncio.StreamWriter) -> bool:
    connection = writer.get_extra_info("socket")
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(packed)
    return uid in {0, os.geteuid()}
