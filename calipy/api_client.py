"""The local API's protocol, and a blocking client made of nothing but the standard library.

One JSON object a line each way over a Unix socket: ``{"id": 1, "method": "workload.add", "params": {…}}`` is answered
by ``{"id": 1, "result": …}`` or ``{"id": 1, "error": {"code": 409, "message": "…", "remedy": "…"}}``. Kept apart from
the server (``calipy.api``) so that commands start without importing an event loop.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from calipy.errors import (
    AccessDeniedError,
    AgentUnavailableError,
    AlreadyExistsError,
    CalipyError,
    ConflictError,
    DatastoreError,
    InvalidInputError,
    KernelError,
    NotFoundError,
    UnavailableError,
)

MAX_REQUEST: Final = 1024 * 1024
"""Bytes of one request, line end included. Answers may be longer."""

BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
UNKNOWN_METHOD: Final = 405
CONFLICT: Final = 409
TOO_LARGE: Final = 413
KERNEL: Final = 422
INTERNAL: Final = 500
DATASTORE: Final = 502
UNAVAILABLE: Final = 503
TIMED_OUT: Final = 504

_CODES: Final[tuple[tuple[type[CalipyError], int], ...]] = (  # first match wins: subclasses before their bases
    (InvalidInputError, BAD_REQUEST),
    (NotFoundError, NOT_FOUND),
    (AlreadyExistsError, CONFLICT),
    (ConflictError, CONFLICT),
    (AccessDeniedError, FORBIDDEN),
    (UnavailableError, UNAVAILABLE),
    (AgentUnavailableError, UNAVAILABLE),
    (DatastoreError, DATASTORE),
    (KernelError, KERNEL),
)


class ApiError(CalipyError):
    """The daemon refused a request. ``code`` is one of this module's numbers, in HTTP's sense."""

    def __init__(self, message: str, *, code: int, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


def run_dir() -> Path:
    """Where the daemons' sockets are: ``CALIPY_RUN_DIR``, else ``/run/calipy``."""
    return Path(os.environ.get("CALIPY_RUN_DIR") or "/run/calipy")


def agent_socket() -> Path:
    """The node agent's socket."""
    return run_dir() / "agent.sock"


def bgpd_socket() -> Path:
    """The BGP daemon's socket."""
    return run_dir() / "bgpd.sock"


def error_object(error: BaseException) -> dict[str, Any]:
    """The error member of an answer. Only errors meant for users show their text."""
    if isinstance(error, ApiError):
        code = error.code
    elif isinstance(error, TimeoutError):
        return {"code": TIMED_OUT, "message": "the request took too long and was given up", "remedy": "try again"}
    elif isinstance(error, CalipyError):
        code = next((number for base, number in _CODES if isinstance(error, base)), INTERNAL)
    else:
        return {
            "code": INTERNAL,
            "message": f"internal error: {type(error).__name__}",
            "remedy": "see the daemon's log",
        }
    message = str(error.args[0]) if error.args else type(error).__name__
    return {"code": code, "message": message, "remedy": error.remedy}


def encode(message: dict[str, Any]) -> bytes:
    """One line of the protocol.

    Raises:
        InvalidInputError: it holds bytes of a command line that are no UTF-8.
    """
    try:
        return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            "is not UTF-8", field="request", value=error.object[error.start - 8 : error.end]
        ) from None


def result_of(line: bytes) -> Any:
    """What an answer says.

    Raises:
        ApiError: it is an error.
        AgentUnavailableError: it is no answer at all.
    """
    try:
        answer = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            raise ApiError(str(error["message"]), code=int(error["code"]), remedy=str(error.get("remedy", "")))
        return answer["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise AgentUnavailableError("the daemon sent something that is not an answer") from error


def call(path: Path, method: str, params: dict[str, Any] | None = None, *, timeout: float = 65.0) -> Any:
    """Ask a daemon and wait for the answer. Blocks up to ``timeout`` seconds.

    Raises:
        ApiError: the daemon refused.
        AgentUnavailableError: it does not run, or did not answer in time.
    """
    request = encode({"id": 1, "method": method, "params": params or {}})
    if len(request) > MAX_REQUEST:
        raise InvalidInputError(f"the request has {len(request)} bytes, the limit is {MAX_REQUEST}", field=method)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(request)
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except TimeoutError as error:
        raise AgentUnavailableError(f"no answer from {path} within {timeout:g} s", remedy="look at its log") from error
    except OSError as error:
        raise unavailable(path, error) from error
    if not line:
        raise AgentUnavailableError(f"{path} closed the connection without an answer", remedy="look at its log")
    return result_of(line)


def answers(path: Path) -> bool:
    """Whether a daemon answers at a socket. Blocks for a second at most."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def refuse_taken(path: Path) -> None:
    """Raise ``CalipyError`` where a daemon answers already. Blocks for a second at most."""
    if answers(path):
        raise CalipyError(f"another daemon already answers at {path}", remedy="stop it first")


def unavailable(path: Path, error: OSError) -> AgentUnavailableError:
    """What it means that ``path`` cannot be connected to."""
    if isinstance(error, PermissionError):
        return AgentUnavailableError(f"may not connect to {path}", remedy="run as root")
    return AgentUnavailableError(
        f"nothing answers at {path}: {error.strerror or error}", remedy="start the node with `calipy node run`"
    )
