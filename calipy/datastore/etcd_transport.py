"""Calls to an etcd cluster: channels, failover, credentials, deadlines, and errors in our own terms.

One gRPC channel per endpoint, opened when needed. A call goes out only on a channel that is connected, so that a
failure to connect never leaves the outcome of a write in doubt; reads are repeated on another endpoint, writes are not.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message
from grpc.aio import AioRpcError, Channel, StreamStreamCall

from calipy.datastore.etcdpb import rpc_pb2
from calipy.errors import AccessDeniedError, CompactedError, DatastoreError, UnavailableError

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Metadata = tuple[tuple[str, str], ...]

CONNECT_TIMEOUT = 2.0
"""Seconds that a call waits for any endpoint to accept a connection before it gives up."""

CALL_TIMEOUT = 5.0
"""Seconds that one unary call may take on one endpoint."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A stopped server is noticed after 14 s. Without ping_timeout_ms it takes 69 s: the keepalive timeout alone does
    # not bound the acknowledgement of a ping.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # etcd calls pings on an idle connection abuse.
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Also bounds one attempt to connect.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # etcd belongs to the cluster's own network; a proxy from the environment is for the world outside.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

NOT_ENABLED = "authentication is not enabled"
STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")
REFUSED = ("permission denied", "authentication failed", *STALE_TOKEN)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM material, which never shows in a representation. Empty ``ca``: the system's authorities."""

    ca: bytes = field(default=b"", repr=False)
    cert: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """An RPC by its path, so that no generated service code is needed."""

    path: str
    request: type[Request]
    response: type[Response]


RANGE = Method("/etcdserverpb.KV/Range", rpc_pb2.RangeRequest, rpc_pb2.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest, rpc_pb2.TxnResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", rpc_pb2.AuthenticateRequest, rpc_pb2.AuthenticateResponse)
WATCH = "/etcdserverpb.Watch/Watch"


class Endpoint:
    """One member's client URL, its channel, and the methods bound on it."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        self.url = url
        parts = urlsplit(url)
        if parts.scheme == "https":
            material = tls or Tls()
            credentials = grpc.ssl_channel_credentials(
                material.ca or _system_authorities(), material.key or None, material.cert or None
            )
            self.channel: Channel = grpc.aio.secure_channel(parts.netloc, credentials, options=CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(parts.netloc, options=CHANNEL_OPTIONS)
        self._bound: dict[str, Any] = {}

    def bind(self, method: Method[Request, Response]) -> Any:
        """The callable for a unary method; made once."""
        call = self._bound.get(method.path)
        if call is None:
            call = self._bound[method.path] = self.channel.unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return call

    @property
    def connected(self) -> bool:
        """Whether a call would go out now; starts connecting if not."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY


def _system_authorities() -> bytes | None:
    """The system's bundle of authorities; gRPC would use one of its own, unknown to the administrator."""
    paths = ssl.get_default_verify_paths()
    for name in (paths.cafile, paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt"):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    return None


class Transport:
    """Unary calls and streams to whichever endpoint works.

    Args:
        endpoints: ``http://`` or ``https://`` URLs with a port; IPv6 addresses in brackets.
        tls: for https endpoints.
        username: with ``password``, sent once for a token; the token is renewed when etcd no longer knows it.
        call_timeout: seconds for one unary call on one endpoint.
        connect_timeout: seconds to wait for any endpoint to connect.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        username: str = "",
        password: str = "",
        call_timeout: float = CALL_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._urls = tuple(endpoints)
        self._tls = tls
        self._username = username
        self._password = password
        self._call_timeout = call_timeout
        self._connect_timeout = connect_timeout
        self._endpoints: list[Endpoint] = []
        self._token: str | None = None  # "" once etcd said that it asks for none
        self._token_lock = asyncio.Lock()
        self.closed = False

    async def call(self, method: Method[Request, Response], request: Request, *, repeatable: bool) -> Response:
        """One unary call, with its deadline.

        Args:
            method: what to call.
            request: its message.
            repeatable: a read, which may be sent again when its fate is unknown.

        Raises:
            UnavailableError: no endpoint answered in time.
            AccessDeniedError: wrong credentials or no permission.
            CompactedError: of a read at a past revision.
            DatastoreError: any other refusal.
        """
        renewed = False
        attempts = max(2, len(self._urls)) if repeatable else 1
        while True:
            endpoint = await self._connected()
            token = await self.token(endpoint)
            try:
                return await self._send(endpoint, method, request, token)
            except AioRpcError as error:
                if self._username and not renewed and stale(error):
                    renewed = True
                    self.forget(token)
                    continue
                attempts -= 1
                if _no_answer(error) and self._give_way(endpoint, error) and attempts > 0:
                    continue
                raise translate(error, endpoint.url, written=not repeatable) from error

    async def open_watch(self) -> tuple[Endpoint, str, StreamStreamCall[Any, Any]]:
        """A new watch stream on a working endpoint, with the token it was opened with."""
        endpoint = await self._connected()
        token = await self.token(endpoint)
        stream = endpoint.channel.stream_stream(
            WATCH,
            request_serializer=rpc_pb2.WatchRequest.SerializeToString,
            response_deserializer=rpc_pb2.WatchResponse.FromString,
        )
        return endpoint, token, stream(metadata=_metadata(token))

    def avoid(self, endpoint: Endpoint) -> None:
        """Prefer the other endpoints from now on: this one stalled."""
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
            self._endpoints.append(endpoint)

    async def token(self, endpoint: Endpoint) -> str:
        """The present token, "" where no user is configured or etcd has authentication switched off."""
        if not self._username:
            return ""
        async with self._token_lock:
            if self._token is None:
                request = rpc_pb2.AuthenticateRequest(name=self._username, password=self._password)
                try:
                    self._token = (await self._send(endpoint, AUTHENTICATE, request, "")).token
                except AioRpcError as error:
                    if NOT_ENABLED not in (error.details() or ""):
                        if _no_answer(error):
                            self.avoid(endpoint)
                        raise translate(error, endpoint.url) from error
                    self._token = ""
            return self._token

    def forget(self, token: str) -> None:
        """Drop a token that etcd refused, unless it was replaced meanwhile."""
        if token == self._token:
            self._token = None

    async def close(self) -> None:
        """Close all channels; calls under way end."""
        self.closed = True
        endpoints, self._endpoints = self._endpoints, []
        for endpoint in endpoints:
            await endpoint.channel.close()

    async def _send(
        self,
        endpoint: Endpoint,
        method: Method[Request, Response],
        request: Request,
        token: str,
        *,
        timeout: float | None = None,
    ) -> Response:
        try:
            response: Response = await endpoint.bind(method)(
                request, timeout=timeout or self._call_timeout, metadata=_metadata(token)
            )
        except asyncio.CancelledError:
            # grpc.aio cancels what is under way when its channel closes: not the same as our task being cancelled.
            if self.closed and not is_cancelled():
                self._refuse_closed()
            raise
        return response

    async def _connected(self) -> Endpoint:
        """The endpoint in use, or the first of all to connect."""
        if self.closed:
            self._refuse_closed()
        if not self._endpoints:
            self._endpoints = [Endpoint(url, self._tls) for url in self._urls]
        give_up = time.monotonic() + self._connect_timeout
        pause = 0.001
        # Asking the state is a cheap call into the library; its way of waiting for a change cannot be cancelled.
        while True:
            for endpoint in self._endpoints:
                if endpoint.connected:
                    return endpoint
            if time.monotonic() > give_up:
                reasons = await asyncio.gather(*(self._why(endpoint) for endpoint in self._endpoints))
                if all(reasons):
                    raise UnavailableError("; ".join(reasons), remedy="check the etcd endpoints and that etcd runs")
            await asyncio.sleep(pause)
            if self.closed:
                self._refuse_closed()
            pause = min(pause * 2, 0.05)

    async def _why(self, endpoint: Endpoint) -> str:
        """What keeps an endpoint from connecting, "" if nothing does any more: only a call tells it."""
        try:
            await self._send(endpoint, RANGE, rpc_pb2.RangeRequest(key=b"\0"), "", timeout=0.3)
        except AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"etcd at {endpoint.url} does not answer: no connection within {self._connect_timeout:g} s"
            if _no_answer(error):
                return f"etcd at {endpoint.url} does not answer: {_cause(error.details() or '')}"
        return ""

    def _give_way(self, endpoint: Endpoint, error: AioRpcError) -> bool:
        """Move a silent endpoint to the end of the queue; whether asking again makes sense."""
        self.avoid(endpoint)
        return len(self._urls) > 1 or error.code() is grpc.StatusCode.UNAVAILABLE

    def _refuse_closed(self) -> NoReturn:
        raise UnavailableError("the connection to etcd was closed")


def is_cancelled() -> bool:
    """Whether the running task itself is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def stale(error: AioRpcError) -> bool:
    """Whether a new token may help."""
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or any(text in details for text in STALE_TOKEN)


def refused(details: str) -> bool:
    """Whether a text of etcd's means that the credentials do not suffice."""
    return any(text in details for text in REFUSED)


def denied(url: str, details: str) -> AccessDeniedError:
    """The error for refused credentials."""
    error = AccessDeniedError(f"etcd at {url} refuses: {_plain(details)}")
    error.remedy = "check ETCD_USERNAME and ETCD_PASSWORD and what this user may read and write"
    return error


def translate(error: AioRpcError, url: str, *, written: bool = False) -> DatastoreError:
    """An RPC's failure in our terms. ``written``: it was a write, so silence leaves its outcome unknown."""
    code, details = error.code(), error.details() or ""
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED} or refused(details):
        return denied(url, details)
    if "has been compacted" in details:
        return CompactedError("the revision asked for has been compacted away")
    if _no_answer(error):
        doubt = "; whether the write was done is unknown" if written else ""
        return UnavailableError(f"etcd at {url} did not answer: {_cause(details)}{doubt}")
    if "database space exceeded" in details:
        return DatastoreError(f"etcd at {url} is full", remedy="compact and defragment it, then disarm its alarm")
    return DatastoreError(f"etcd at {url} refuses: {_plain(details)} ({code.name.lower()})")


def _no_answer(error: AioRpcError) -> bool:
    if error.code() is grpc.StatusCode.UNKNOWN:
        # The call's deadline, when the server is the first to notice it: it waits for a majority of its cluster.
        return "context deadline exceeded" in (error.details() or "")
    return error.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }


def _metadata(token: str) -> Metadata:
    # A member cut off from its cluster must refuse rather than serve what is old.
    leader = ("hasleader", "true")
    return (leader, ("token", token)) if token else (leader,)


def _plain(details: str) -> str:
    return details.removeprefix("etcdserver: ") or "no reason given"


def _cause(details: str) -> str:
    """The last error in gRPC's nested text, with a word on what TLS failures mean."""
    text = details.rpartition("last error: ")[2].strip() or "no reason given"
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return f"its certificate is not signed by the configured authority (ETCD_CA_CERT_FILE): {text}"
    if "Hostname Verification Check failed" in text or "Peer name" in text:
        return f"its certificate is for another name: {text}"
    if "handshake" in text.lower() or "SSL" in text:
        return f"the TLS handshake failed, or it speaks no TLS: {text}"
    return text
