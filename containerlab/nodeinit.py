"""The first process of a node: reaps, starts what it is told to, keeps the main process running. Edge.

It is forked from the supervisor, builds the node around itself (``container.build``) and then serves one socket: each
request names a program, an environment and descriptors; each answer a pid, an exit code or an error. When the socket
ends or the supervisor dies, so does it, and with it every process, mount and interface of the node.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import resource
import selectors
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from calipy.containerlab import linux
from calipy.containerlab.channel import Channel
from calipy.containerlab.container import BuildError, Spec, build

_RESTART_FIRST = 0.1
_RESTART_MAX = 60.0
_RESTART_FORGET = 10.0
"""Seconds: as Docker waits between restarts, and after which it forgets earlier ones."""
_LOG_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Setup:
    """What the supervisor hands to the new process; descriptors are inherited.

    Attributes:
        control: the socket to serve.
        spec: what to build, None for the process that runs commands on the host.
        log_directory: descriptor of the lab directory, in which ``<node>/log`` appears with the first output.
    """

    control: socket.socket
    spec: Spec | None
    name: str
    log_directory: int
    network_fd: int | None = None
    uts_fd: int | None = None


def main(setup: Setup) -> NoReturn:
    """Be the first process of a node; never returns."""
    status = 1
    try:
        linux.die_with_parent(signal.SIGKILL)
        _forget_parent(setup)
        linux.set_process_name("calipy-lab-init")
        channel = Channel(setup.control)
        try:
            if setup.spec is not None:
                build(setup.spec, network_fd=setup.network_fd, uts_fd=setup.uts_fd)
        except BuildError as error:
            channel.send({"failed": str(error)})
        else:
            channel.send({"ready": True})
            _Init(channel, setup).serve()
            status = 0
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{setup.name}: {error!r}\n".encode())
    finally:
        os._exit(status)


def _forget_parent(setup: Setup) -> None:
    """Drop what was inherited from the supervisor: its event loop's descriptors, signal handlers, standard streams."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    keep = sorted({0, 1, 2, setup.control.fileno(), setup.log_directory}
                  | {fd for fd in (setup.network_fd, setup.uts_fd) if fd is not None})  # fmt: skip
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for low, high in zip(keep, [*keep[1:], limit], strict=True):
        os.closerange(low + 1, high)
    for fd in (0, 1):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)


@dataclass(slots=True)
class _Main:
    """The main process and its restarts."""

    argv: list[str]
    env: dict[str, str]
    user: str
    restart: str
    pid: int = 0
    started: float = 0.0
    delay: float = _RESTART_FIRST
    due: float | None = None
    stopped: bool = False


@dataclass(slots=True)
class _Init:
    channel: Channel
    setup: Setup
    children: dict[int, int] = field(default_factory=dict)
    main: _Main | None = None
    user: int = 0
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    log: int = -1

    def serve(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.selector.register(self.channel.socket, selectors.EVENT_READ, "control")
        self.selector.register(wake_read, selectors.EVENT_READ, "child")
        while True:
            timeout = None if not self.main or self.main.due is None else max(0.0, self.main.due - time.monotonic())
            for key, _ in self.selector.select(timeout):
                if key.data == "control":
                    if not self.channel.read():
                        return
                    while message := self.channel.pending():
                        self.handle(*message)
                elif key.data == "child":
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                else:
                    self.copy_log(key.fd)
            self.reap()
            if self.main and self.main.due is not None and self.main.due <= time.monotonic():
                self.main.due = None
                self.start_main()

    def handle(self, message: dict[str, Any], fds: list[int]) -> None:
        operation = message["op"]
        if operation == "spawn":
            self.spawn(message, fds)
        elif operation == "main":
            self.main = _Main(message["argv"], message["env"], message["user"], message["restart"])
            self.start_main()
        elif operation == "kill":
            self.kill(message["id"], message["signal"])
        elif operation == "stop":
            self.stop()
        for fd in fds:
            os.close(fd)

    def spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        try:
            pid = self.start(message["argv"], message["env"], message.get("user", ""), message.get("cwd", "/"), fds)
        except (OSError, LookupError, ValueError) as error:
            self.channel.send({"id": message["id"], "failed": _reason(error), "errno": getattr(error, "errno", 0) or 0})
        else:
            self.children[pid] = message["id"]
            self.channel.send({"id": message["id"], "pid": pid})

    def start(self, argv: list[str], env: dict[str, str], user: str, cwd: str, fds: list[int]) -> int:
        uid, gid, groups = _identity(user)
        as_user: dict[str, Any] = {}
        if user:
            as_user = {"user": uid, "group": gid, "extra_groups": groups}
            self.become(0)  # only the main process has a user, and nobody looks yet
        elif os.geteuid() != 0:
            as_user = {"user": 0}  # the real user is root still
        try:
            # Popen reports a program that cannot be started, and closes all other descriptors.
            process = subprocess.Popen(
                argv,
                stdin=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                env=env,
                cwd=cwd,
                executable=_find(argv[0], env.get("PATH", os.defpath), cwd),
                start_new_session=True,
                **as_user,
            )
        finally:
            self.become(self.user)
        process.returncode = 0  # its end is noticed here, not by Popen
        return process.pid

    def become(self, uid: int) -> None:
        """Let this process count as ``uid``, so that /proc/1 belongs to the user of the main process, as in Docker."""
        if os.geteuid() != uid:
            os.seteuid(uid)
            linux.set_dumpable()
            linux.die_with_parent(signal.SIGKILL)

    # --- the main process

    def start_main(self) -> None:
        main = self.main
        assert main is not None
        read, write = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            main.stopped = False
            self.user = _identity(main.user)[0]
            main.pid = self.start(main.argv, main.env, main.user, "/", [null, write, write])
        except (OSError, LookupError, ValueError) as error:
            os.close(read)
            main.pid = 0
            self.channel.send({"main": "failed", "reason": _reason(error)})
        else:
            main.started = time.monotonic()
            os.set_blocking(read, False)
            self.selector.register(read, selectors.EVENT_READ, "log")
            self.channel.send({"main": "running", "pid": main.pid})
        finally:
            os.close(write)
            os.close(null)

    def main_ended(self, code: int) -> None:
        main = self.main
        assert main is not None
        main.pid = 0
        again = not main.stopped and (
            main.restart in ("always", "unless-stopped") or (main.restart == "on-failure" and code != 0)
        )
        if again:
            now = time.monotonic()
            main.delay = _RESTART_FIRST if now - main.started > _RESTART_FORGET else min(main.delay * 2, _RESTART_MAX)
            main.due = now + main.delay
        self.channel.send({"main": "exited", "code": code, "again": again})

    def stop(self) -> None:
        """End every process of the node but this one."""
        if self.main:
            self.main.stopped = True
            self.main.due = None
        self.become(0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        self.become(self.user)
        if not self.main or not self.main.pid:
            self.channel.send({"main": "exited", "code": 137, "again": False})

    def copy_log(self, fd: int) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.selector.unregister(fd)
            os.close(fd)
            return
        with contextlib.suppress(OSError):  # a full disk, or a lab directory that was removed, must not end the node
            if self.log < 0:
                self.log = self.open_log()
            os.write(self.log, data)

    def open_log(self) -> int:
        """The node's log, made with the first output, so that a silent node leaves no file."""
        self.become(0)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.setup.name, 0o755, dir_fd=self.setup.log_directory)
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            return os.open(f"{self.setup.name}/log", flags, _LOG_MODE, dir_fd=self.setup.log_directory)
        finally:
            self.become(self.user)

    # --- children

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
            if self.main and pid == self.main.pid:
                self.main_ended(code)
            elif (number := self.children.pop(pid, None)) is not None:
                self.channel.send({"id": number, "exit": code})

    def kill(self, number: int, signal_number: int) -> None:
        for pid, owner in self.children.items():
            if owner == number:
                self.become(0)
                for target in (-pid, pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(target, signal_number)
                self.become(self.user)


def _find(program: str, path: str, cwd: str) -> str:
    """The file that execvp would start."""
    if "/" in program:
        return program
    for directory in path.split(":"):
        candidate = os.path.join(directory or cwd, program)  # noqa: PTH118
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            return candidate
    raise FileNotFoundError(errno.ENOENT, f"executable {program!r} not found in PATH")


def _identity(user: str) -> tuple[int, int, list[int]]:
    """uid, gid and further groups of ``name``, ``uid``, ``uid:gid`` or ``name:group``, by the node's own files."""
    if not user:
        return 0, 0, []
    name, _, group = user.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        uid, gid, known = entry.pw_uid, entry.pw_gid, entry.pw_name
    except KeyError:
        if not name.isdigit():
            raise LookupError(f"no user {name!r} in the node") from None
        uid, gid, known = int(name), 0, ""
    if group:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise LookupError(f"no group {group!r} in the node") from None
        return uid, gid, []
    return uid, gid, (os.getgrouplist(known, gid) if known else [gid])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return str(error)
