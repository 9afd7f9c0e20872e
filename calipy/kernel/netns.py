"""Network namespaces: create, delete, open, and run a function inside one.

A namespace belongs to a *thread*, so ``run_in`` enters it in a short-lived worker thread and never touches the one that
calls; the thread has ended when the call returns, which keeps callers free to fork. Python 3.11 has no ``os.setns``,
hence ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from calipy.errors import InvalidInputError, KernelError

P = ParamSpec("P")
R = TypeVar("R")

NAMED: Final = Path("/run/netns")
"""Where ``ip netns`` keeps its names; a namespace created here shows up in ``ip netns list``."""

_CLONE_NEWNET: Final = 0x40000000
_NS_GET_NSTYPE: Final = 0xB703
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SHARED: Final = 0x100000
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)


def create(path: str | os.PathLike[str]) -> None:
    """Create a network namespace and pin it at ``path``, as ``ip netns add`` does. Its loopback is down.

    Blocks for some milliseconds: the kernel builds a whole network stack.

    Raises:
        KernelError: ``path`` exists (EEXIST), or the kernel refused.
    """
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if target.parent == NAMED:
        _share(NAMED)
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    except OSError as error:
        raise _failed(f"create namespace {target}", error.errno or 0) from error

    def pin() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), f"create namespace {target}")
        _mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", target, _MS_BIND)

    try:
        _in_thread(pin)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def create_unnamed() -> int:
    """Create a network namespace without a name, as a descriptor that the caller closes. Its loopback is down.

    It dies with its last process, socket and descriptor: nothing is left behind, even after SIGKILL.

    Raises:
        KernelError: not root (EPERM), or the kernel refused.
    """

    def make() -> int:
        _check(_libc.unshare(_CLONE_NEWNET), "create namespace")
        return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(make)


def delete(path: str | os.PathLike[str]) -> bool:
    """Unpin the namespace at ``path``; it dies when its last process, socket and descriptor are gone.

    Returns:
        False if there was nothing.
    """
    target = Path(path)
    while _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:  # a name may have been mounted over
        pass
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOENT}:
        raise _failed(f"unmount {target}", code)
    try:
        target.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _failed(f"remove {target}", error.errno or 0) from error
    return True


def open_fd(path: str | os.PathLike[str]) -> int:
    """Open the namespace at ``path`` (``/run/netns/x``, ``/proc/123/ns/net``); the caller closes the descriptor.

    Raises:
        KernelError: nothing there (ENOENT), or not permitted.
        InvalidInputError: it is not a network namespace.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _failed(f"open namespace {os.fspath(path)}", error.errno or 0) from error
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET:
            return fd
    except OSError:
        pass
    os.close(fd)
    raise InvalidInputError(
        "not a network namespace", field="netns", value=os.fspath(path), remedy="give a path such as /run/netns/NAME"
    )


def is_current(netns_fd: int) -> bool:
    """Whether the descriptor is the namespace of the calling thread."""
    here, there = Path("/proc/thread-self/ns/net").stat(), os.fstat(netns_fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def run_in(netns_fd: int, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``function`` in a worker thread inside the namespace; blocks; its result or exception comes back.

    Sockets opened and processes started by the function stay in that namespace. Costs about 0.1 ms.
    """

    def inside() -> R:
        enter(netns_fd)
        return function(*args, **kwargs)

    return _in_thread(inside)


def enter(netns_fd: int) -> None:
    """Move the calling *thread* into the namespace for good: for a process about to exec or to begin, or in ``run_in``.

    Threads that it starts from then on begin there too.
    """
    _check(_libc.setns(netns_fd, _CLONE_NEWNET), "enter namespace")


def _in_thread(function: Callable[[], R]) -> R:
    results: list[R] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(function())
        except BaseException as error:  # the caller's thread gets it
            errors.append(error)

    thread = threading.Thread(target=target, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _share(directory: Path) -> None:
    """Make ``directory`` a shared mount, so that a name deleted here is gone in every mount namespace."""
    if _libc.mount(b"", os.fsencode(directory), b"none", _MS_SHARED | _MS_REC, None) == 0:
        return
    _mount(os.fspath(directory), directory, _MS_BIND | _MS_REC)
    _check(_libc.mount(b"", os.fsencode(directory), b"none", _MS_SHARED | _MS_REC, None), f"share {directory}")


def _mount(source: str, target: Path, flags: int) -> None:
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None), f"mount {target}")


def _check(result: int, doing: str) -> None:
    if result != 0:
        raise _failed(doing, ctypes.get_errno())


def _failed(doing: str, code: int) -> KernelError:
    remedy = "run as root" if code in {errno.EPERM, errno.EACCES} else ""
    return KernelError(f"cannot {doing}: {os.strerror(code)}", code=code, remedy=remedy)
