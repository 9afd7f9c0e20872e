"""Kernel parameters under ``/proc/sys``.

Those of the network belong to the namespace of the calling thread: combine with ``netns.run_in`` for another one.
"""

from __future__ import annotations

import os
from typing import Final

from calipy.errors import InvalidInputError, KernelError

_ROOT: Final = "/proc/sys/"


def read(key: str) -> str:
    """Value of ``key``, stripped.

    Args:
        key: ``net.ipv4.ip_forward`` or, where a part holds dots, ``net/ipv4/conf/eth0.100/forwarding``.

    Raises:
        KernelError: no such parameter (ENOENT: the interface is gone, or IPv6 is off), or not permitted.
    """
    try:
        with open(_path(key), encoding="ascii", errors="replace") as file:  # noqa: PTH123 - half the time of Path.open
            return file.read().strip()
    except OSError as error:
        raise _failed("read", key, error) from error


def write(key: str, value: str | int) -> None:
    """Set ``key`` (as for ``read``) to ``value``.

    Raises:
        KernelError: no such parameter (ENOENT), refused value (EINVAL) or not permitted.
    """
    try:
        fd = os.open(_path(key), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{value}\n".encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed(f"write {value!r} to", key, error) from error


def _path(key: str) -> str:
    parts = key.split("/") if "/" in key else key.split(".")
    if not all(parts) or ".." in parts or "." in parts or "\0" in key:
        raise InvalidInputError("not the name of a kernel parameter", field="sysctl", value=key)
    return _ROOT + "/".join(parts)


def _failed(doing: str, key: str, error: OSError) -> KernelError:
    return KernelError(f"cannot {doing} sysctl {key}: {error.strerror}", code=error.errno or 0)
