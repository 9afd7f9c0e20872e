"""What makes a process a node: namespaces, a private file system over the machine's own, sysctls. Edge.

``build`` runs in the process that is to become the node's first one, forked from the supervisor into a new PID
namespace. Everything it makes belongs to namespaces of that process, so that nothing is left when it is gone:

* the root is an overlay: the machine's ``/`` below, a tmpfs of the node above, on any file system;
* ``/run``, ``/tmp``, ``/var/log`` and the places where people keep their own files begin empty;
* ``/proc``, ``/sys``, ``/dev`` are fresh; the Python installation and the calipy checkout are bound read-only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from calipy.containerlab import linux
from calipy.containerlab.model import Bind

HIDDEN: Final = (
    *("/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var/log", "/var/tmp"),  # noqa: S108
    *("/var/lib/calico", "/var/lib/cni", "/var/lib/etcd", "/etc/calico", "/etc/cni"),
)
"""Where a node begins empty, whatever the machine keeps there."""
_WORLD_WRITABLE: Final = frozenset({"/tmp", "/var/tmp"})  # noqa: S108 -- the node's own
_OLD_ROOT: Final = "/.machine"
_DEVICES: Final = (
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "tty",
    "kmsg",
    "fuse",
    "net/tun",
    "ppp",
    "kvm",
    "vhost-net",
)
_LINKS: Final = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the node is to look like inside.

    Attributes:
        hostname: None keeps that of the UTS namespace.
        own_network: a fresh network namespace; else the process stays in, or joins, another one.
        stage: an existing empty directory of the machine to build on; all nodes may use the same.
        files: path to text, written into the node.
        programs: directories of the machine that the node sees read-only at the same path.
        binds, tmpfs, devices: from the topology.
        data: directory of the machine mounted at a path of the node, writable.
        shm_size: bytes of /dev/shm, 0 for the default.
    """

    hostname: str | None
    own_network: bool
    stage: str
    files: dict[str, str]
    programs: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    tmpfs: dict[str, str] = {}
    devices: tuple[str, ...] = ()
    data: dict[str, str] = {}
    sysctls: dict[str, str] = {}
    shm_size: int = 0
    cpus: tuple[int, ...] = ()


class BuildError(Exception):
    """A node cannot be built; the message names the element."""


def build(spec: Spec, *, network_fd: int | None, uts_fd: int | None) -> None:
    """Turn the calling process, which is alone in a new PID namespace, into the inside of a node.

    Args:
        spec: what to build.
        network_fd: network namespace to join where ``own_network`` is false; None stays in the supervisor's.
        uts_fd: UTS namespace to join (shared hostname), or None for a new one.

    Raises:
        BuildError: names what cannot be done and why.
    """
    try:
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
        if network_fd is not None:
            linux.setns(network_fd, linux.CLONE_NEWNET)
        elif spec.own_network:
            linux.unshare(linux.CLONE_NEWNET)
        if uts_fd is not None:
            linux.setns(uts_fd, linux.CLONE_NEWUTS)
        else:
            linux.unshare(linux.CLONE_NEWUTS)
            if spec.hostname is not None:
                socket.sethostname(spec.hostname)
        if spec.cpus:
            os.sched_setaffinity(0, spec.cpus)
    except OSError as error:
        raise BuildError(f"cannot make namespaces: {error}") from None
    linux.mount("none", "/", flags=linux.MS_PRIVATE | linux.MS_REC)
    sources = {path: _open_source(path) for path in _sources(spec)}
    try:
        _root(spec.stage)
        _kernel_file_systems(spec)
        for path in HIDDEN:
            _tmpfs(path, "mode=1777" if path in _WORLD_WRITABLE else "mode=755")
        for path in spec.programs:
            _bind(sources[path], path, read_only=True)
        for path, text in spec.files.items():
            _write(path, text)
        _devices(spec.devices)
        for path, options in sorted(spec.tmpfs.items()):
            _tmpfs(path, options, what=f"tmpfs {path}")
        for target, source in spec.data.items():
            _bind(sources[source], target, read_only=False)
        for bind in sorted(spec.binds, key=lambda bind: bind.target):
            _bind(sources[bind.source], bind.target, read_only=bind.read_only, what=f"bind {bind.text}")
    finally:
        for fd in sources.values():
            os.close(fd)
    linux.unmount(_OLD_ROOT)
    os.rmdir(_OLD_ROOT)  # noqa: PTH106 -- nothing of pathlib is needed here
    write_sysctls(spec.sysctls)


def _sources(spec: Spec) -> Iterable[str]:
    return {*spec.programs, *spec.data.values(), *(bind.source for bind in spec.binds)}


def _open_source(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from None


def _root(stage: str) -> None:
    """Overlay over ``/`` and make it the root; the machine's root is at ``_OLD_ROOT`` until the end of the build."""
    try:
        linux.mount("tmpfs", stage, "tmpfs", linux.MS_NOSUID, "mode=755")
        for name in ("upper", "work", "root"):
            os.mkdir(f"{stage}/{name}", 0o755)  # noqa: PTH102 -- nothing of pathlib is needed here
        options = f"lowerdir=/,upperdir={stage}/upper,workdir={stage}/work"
        linux.mount("overlay", f"{stage}/root", "overlay", 0, options)
        os.mkdir(f"{stage}/root{_OLD_ROOT}", 0o700)  # noqa: PTH102
        linux.pivot_root(f"{stage}/root", f"{stage}/root{_OLD_ROOT}")
        os.chdir("/")
    except OSError as error:
        raise BuildError(f"cannot lay a private file system over /: {error}") from None


def _kernel_file_systems(spec: Spec) -> None:
    quiet = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    try:
        linux.mount("proc", "/proc", "proc", quiet)
        linux.mount("sysfs", "/sys", "sysfs", quiet)
        linux.mount("tmpfs", "/dev", "tmpfs", linux.MS_NOSUID, "mode=755")
        for name in ("pts", "shm", "mqueue", "net"):
            os.mkdir(f"/dev/{name}", 0o755)  # noqa: PTH102
        linux.mount(
            "devpts", "/dev/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
        )
        size = f",size={spec.shm_size}" if spec.shm_size else ""
        linux.mount("tmpfs", "/dev/shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"mode=1777{size}")  # noqa: S108
        with contextlib.suppress(OSError):  # a kernel may lack it
            linux.mount("mqueue", "/dev/mqueue", "mqueue", quiet)
        for name, target in _LINKS.items():
            os.symlink(target, f"/dev/{name}")  # noqa: PTH211
    except OSError as error:
        raise BuildError(f"cannot mount {error.filename}: {error.strerror}") from None
    for name in _DEVICES:
        _device(f"/dev/{name}", needed=False)


def _devices(paths: Iterable[str]) -> None:
    for path in paths:
        source = path.split(":")[0]
        if not os.path.exists(source):  # noqa: PTH110 -- not yet made by _DEVICES
            _device(source, needed=os.path.exists(_OLD_ROOT + source))  # noqa: PTH110


def _device(path: str, *, needed: bool) -> None:
    """A device node like the machine's."""
    try:
        there = os.stat(_OLD_ROOT + path)  # noqa: PTH116
        if not stat.S_ISCHR(there.st_mode) and not stat.S_ISBLK(there.st_mode):
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        os.mknod(path, there.st_mode, there.st_rdev)
        os.chmod(path, stat.S_IMODE(there.st_mode))  # noqa: PTH101 -- mknod honours the umask
    except FileExistsError:
        return
    except OSError as error:
        if needed:
            raise BuildError(f"device {path}: {error.strerror}") from None


def _tmpfs(path: str, options: str, *, what: str = "") -> None:
    try:
        if what or os.path.isdir(path):  # noqa: PTH112 -- hide only what is there
            os.makedirs(path, exist_ok=True)  # noqa: PTH103
            linux.mount("tmpfs", os.path.realpath(path), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
        else:
            os.makedirs(path, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        raise BuildError(f"{what or path}: {error.strerror}") from None


def _bind(source: int, target: str, *, read_only: bool, what: str = "") -> None:
    """Mount what ``source`` refers to at ``target``, which is made as needed."""
    path = f"/proc/self/fd/{source}"
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116
            os.makedirs(target, exist_ok=True)  # noqa: PTH103
        elif not os.path.lexists(target) or os.path.isdir(target):  # noqa: PTH112
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            os.close(os.open(target, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))
        linux.mount(path, target, flags=linux.MS_BIND | linux.MS_REC)
        if read_only:
            linux.mount("none", target, flags=linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY)
    except OSError as error:
        raise BuildError(f"{what or target}: {error.strerror}") from None


def _write(path: str, text: str) -> None:
    try:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # it may be a link of the machine's
        file.write_text(text, encoding="utf-8")
        file.chmod(0o644)
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from None


def write_sysctls(sysctls: Mapping[str, str]) -> None:
    """Write sysctls of the namespaces of the calling process; keys dotted or with slashes.

    Raises:
        BuildError: names the key.
    """
    for key, value in sysctls.items():
        try:
            (Path("/proc/sys") / sysctl_path(key)).write_text(value, encoding="ascii")
        except (OSError, UnicodeEncodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise BuildError(f"sysctl {key}={value}: {reason}") from None


def sysctl_path(key: str) -> str:
    """Path below /proc/sys of ``net.ipv4.ip_forward`` or ``net/ipv4/conf/eth0.1/rp_filter``, as in sysctl(8)."""
    separator = next((character for character in key if character in "./"), ".")
    return key if separator == "/" else key.translate(str.maketrans("./", "/."))
