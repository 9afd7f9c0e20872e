"""Raw rtnetlink (rtnetlink(7), netlink(7)): messages in, error numbers and replies out.

Written on ``struct`` and ``socket`` alone because bulk matters here: many requests travel in one system call, only the
last of a chunk asks for an acknowledgement (the kernel reports failures without being asked), and dumps are filtered in
the kernel. There is no thread and no event loop behind it, so it may be used before a fork. ``docs/decisions`` has the
figures.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Final, Self

from calipy.errors import KernelError
from calipy.kernel import netns

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLMSGERR_ATTR_MSG: Final = 1

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33

_SIOCGIFNAME: Final = 0x8910
_SIOCGIFINDEX: Final = 0x8933

_HEADER: Final = struct.Struct("=IHHII")
_SEQUENCE: Final = struct.Struct("=I")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")
HEADER_SIZE: Final = _HEADER.size

_CHUNK_MESSAGES: Final = 256
_CHUNK_BYTES: Final = 64 * 1024
RECEIVE_SIZE: Final = 64 * 1024
_DUMP_ATTEMPTS: Final = 8
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + _PADDING[len(payload) & 3]


def attribute_u32(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 32-bit number."""
    return struct.pack("=HHI", 8, kind, value)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a zero-terminated name."""
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A request of type ``kind``; the socket fills in its sequence number."""
    return _HEADER.pack(HEADER_SIZE + len(body), kind, flags | NLM_F_REQUEST, 0, 0) + body


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in ``data`` from ``offset`` on, by type; of a repeated type the last one."""
    found: dict[int, bytes] = {}
    end = len(data)
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        size, kind = unpack(data, offset)
        if size < 4:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


class NetlinkSocket:
    """A route netlink socket, in the calling thread's network namespace or in a given one.

    May be shared by threads: each call is one exchange under a lock. All calls block only as long as the kernel works.
    """

    def __init__(self, *, netns_fd: int | None = None) -> None:
        """Open it.

        Args:
            netns_fd: descriptor of the namespace to work in; needed during this call only.

        Raises:
            KernelError: the namespace cannot be entered.
        """
        self._socket = open_socket() if netns_fd is None else netns.run_in(netns_fd, open_socket)
        self._sequence = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the socket; further calls fail."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, messages: Sequence[bytes]) -> list[int]:
        """Have the kernel execute ``messages`` (from ``message``) in order; a failed one does not stop the others.

        Returns:
            For each message 0 or the errno it met.
        """
        return [failure[0] for failure in self._exchange(messages)]

    def execute(self, doing: str, request: bytes) -> None:
        """Have the kernel execute one message.

        Raises:
            KernelError: it refused; the text begins with "cannot ``doing``" and has the kernel's own explanation.
        """
        self.execute_all(doing, [request])

    def execute_all(self, doing: str, messages: Sequence[bytes]) -> None:
        """As ``execute``, for several messages in one system call; all are tried, the first failure is raised."""
        for code, explanation in self._exchange(messages):
            if code:
                raise _refused(doing, code, explanation)

    def get(self, doing: str, request: bytes) -> bytes:
        """The kernel's one reply to a question, without its netlink header.

        Raises:
            KernelError: as for ``execute``.
        """
        with self._lock:
            sequence = self._next_sequence()
            self._send(_with_sequence(request, sequence))
            for kind, flags, number, body in self._receive():
                if number != sequence:
                    continue
                if kind == _NLMSG_ERROR:
                    raise _refused(doing, *_error(flags, body))
                return body
        raise AssertionError  # _receive does not end

    def dump(self, doing: str, request: bytes) -> list[bytes]:
        """All objects that match ``request``: a GET message whose header and attributes are the kernel's filter.

        A listing that other writers disturbed is asked for again.

        Returns:
            Their messages, without netlink headers.

        Raises:
            KernelError: refused (EINVAL: the kernel knows no such filter), or disturbed time after time (EINTR).
        """
        for _ in range(_DUMP_ATTEMPTS):
            bodies, interrupted = self._dump_once(doing, request)
            if not interrupted:
                return bodies
        raise _refused(doing, errno.EINTR, "the list kept changing while it was read")

    def index_of(self, interface: str) -> int:
        """Interface index in this socket's namespace.

        Raises:
            KernelError: no such interface (ENODEV).
        """
        name = interface.encode()
        if not 0 < len(name) < 16:  # the kernel would cut it, and find another one
            raise _refused(f"find interface {interface}", errno.ENODEV, "")
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, struct.pack("16s24x", name))
        except OSError as error:
            raise _refused(f"find interface {interface}", error.errno or 0, "") from error
        return int(struct.unpack_from("=i", answer, 16)[0])

    def name_of(self, index: int) -> str:
        """Interface name in this socket's namespace, ``if<index>`` when it has gone meanwhile."""
        return interface_name(self._socket, index)

    def _dump_once(self, doing: str, request: bytes) -> tuple[list[bytes], bool]:
        bodies: list[bytes] = []
        interrupted = False
        with self._lock:
            sequence = self._next_sequence()
            self._send(_with_sequence(request, sequence, NLM_F_DUMP))
            for kind, flags, number, body in self._receive():
                if number != sequence:
                    continue
                if flags & NLM_F_DUMP_INTR:
                    interrupted = True
                if kind == _NLMSG_DONE:
                    code, explanation = _error(flags, body, capped_to=0)
                    if code:
                        raise _refused(doing, code, explanation)
                    break
                if kind == _NLMSG_ERROR:
                    raise _refused(doing, *_error(flags, body))
                bodies.append(body)
        return bodies, interrupted

    def _exchange(self, messages: Sequence[bytes]) -> list[tuple[int, str]]:
        results: list[tuple[int, str]] = [(0, "")] * len(messages)
        with self._lock:
            for first, last in _chunks(messages):
                base = self._sequence + 1
                self._sequence += last - first
                chunk = bytearray()
                for offset in range(first, last):
                    start = len(chunk)
                    chunk += messages[offset]
                    _SEQUENCE.pack_into(chunk, start + 8, base + offset - first)
                struct.pack_into("=H", chunk, start + 6, _flags_of(messages[last - 1]) | NLM_F_ACK)
                self._send(chunk)
                for kind, flags, number, body in self._receive():
                    if kind != _NLMSG_ERROR or not base <= number <= self._sequence:
                        continue
                    results[first + number - base] = _error(flags, body)
                    if number == self._sequence:
                        break
        return results

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise _refused("ask the kernel", error.errno or 0, "") from error

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Messages as (type, flags, sequence, body), for as long as the caller wants more."""
        while True:
            try:
                datagram = self._socket.recv(RECEIVE_SIZE)
            except OSError as error:  # ENOBUFS: an answer is lost, so what was done is not known
                raise _refused("hear the kernel's answer", error.errno or 0, "") from error
            yield from split(datagram)


def interface_name(raw: socket.socket, index: int) -> str:
    """Name of an interface in the namespace of any socket, ``if<index>`` when it has gone meanwhile."""
    try:
        answer = fcntl.ioctl(raw, _SIOCGIFNAME, struct.pack("=16xi20x", index))
    except OSError:
        return f"if{index}"
    return answer[:16].split(b"\0", 1)[0].decode()


def open_socket(*, groups: int = 0, receive_buffer: int = 4 * 1024 * 1024) -> socket.socket:
    """A bare route netlink socket in the calling thread's namespace, listening to the multicast ``groups`` mask.

    ``receive_buffer`` is in bytes, beyond the system's limit if we may.
    """
    raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        raw.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        raw.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        raw.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        try:
            raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:  # without CAP_NET_ADMIN: reading still works
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.bind((0, groups))
    except BaseException:
        raw.close()
        raise
    return raw


def split(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of one datagram as (type, flags, sequence, body)."""
    offset = 0
    end = len(datagram)
    unpack = _HEADER.unpack_from
    while offset + HEADER_SIZE <= end:
        size, kind, flags, number, _port = unpack(datagram, offset)
        if size < HEADER_SIZE:
            break
        yield kind, flags, number, datagram[offset + HEADER_SIZE : offset + size]
        offset += (size + 3) & ~3


def _chunks(messages: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    first = 0
    size = 0
    for position, item in enumerate(messages):
        if position > first and (position - first >= _CHUNK_MESSAGES or size + len(item) > _CHUNK_BYTES):
            yield first, position
            first, size = position, 0
        size += len(item)
    if first < len(messages):
        yield first, len(messages)


def _flags_of(request: bytes) -> int:
    return int(struct.unpack_from("=H", request, 6)[0])


def _with_sequence(request: bytes, sequence: int, flags: int = 0) -> bytes:
    changed = bytearray(request)
    struct.pack_into("=HI", changed, 6, _flags_of(request) | flags, sequence)
    return bytes(changed)


def _error(flags: int, body: bytes, capped_to: int = HEADER_SIZE) -> tuple[int, str]:
    """Errno (positive, 0 for success) and the kernel's explanation.

    The body is of an ERROR, which repeats the header of the request (all of the request if the kernel did not cap it),
    or of a DONE, which repeats nothing (``capped_to=0``).
    """
    code = -_ERROR.unpack_from(body)[0] if len(body) >= 4 else 0
    if not code or not flags & _NLM_F_ACK_TLVS:
        return code, ""
    repeated = capped_to
    if capped_to and not flags & _NLM_F_CAPPED:
        repeated = (_HEADER.unpack_from(body, 4)[0] + 3) & ~3
    explanation = attributes(body, 4 + repeated).get(_NLMSGERR_ATTR_MSG, b"")
    return code, explanation.split(b"\0", 1)[0].decode("utf-8", "replace")


def _refused(doing: str, code: int, explanation: str) -> KernelError:
    why = f"{os.strerror(code)} ({explanation})" if explanation else os.strerror(code)
    remedy = "run as root" if code == errno.EPERM else ""
    return KernelError(f"cannot {doing}: {why}", code=code, remedy=remedy)
