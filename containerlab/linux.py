"""The few system calls that Python 3.11 lacks: mounts, namespaces, process control. Edge."""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000

_MNT_DETACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``CLONE_NEW…`` flags for fresh ones. Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that ``fd`` refers to; ``kind`` is its ``CLONE_NEW…`` flag. Raises OSError."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system or part of one. Raises OSError, which names the target."""
    encoded = (os.fsencode(source), os.fsencode(target), kind.encode() or None)
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data.encode() or None), target)


def unmount(target: str) -> None:
    """Detach a mount at once; it goes when nobody uses it any more. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def pivot_root(new: str, old: str) -> None:
    """Make ``new`` the root and put the old root at ``old``, below it. Raises OSError."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, os.fsencode(new), os.fsencode(old)), new)


def die_with_parent(signal: int) -> None:
    """Have the kernel send ``signal`` when the parent dies. Lost by a change of user: call it again after one."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl")


def set_dumpable() -> None:
    """Let ``/proc/PID`` belong to the effective user again, after a change of user took that away."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def set_process_name(name: str) -> None:
    """Name that ``ps -o comm`` shows; at most 15 bytes count."""
    _libc.prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]), 0, 0, 0)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
