"""The supervisor's side of a node's first process: forking it, asking it to start programs, ending it. Edge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calipy.containerlab import linux, nodeinit, stuck
from calipy.containerlab.async_channel import AsyncChannel
from calipy.containerlab.container import Spec
from calipy.containerlab.errors import LabError

NOT_FOUND = 126
"""Exit code of a command whose program is missing, as ``docker exec`` has it."""
END_SECONDS = 30.0
"""How long a killed node may take to be gone; it takes milliseconds unless something holds it."""
QUIET_SECONDS = 1.0
"""After which its caller is told what it waits for."""
_BUFFER = 4 << 20

Report = Callable[[str, str], Awaitable[None]]
"""Told what happens: level (``info``, ``warning``, ``error``) and text."""


@dataclass(frozen=True, slots=True)
class Output:
    """A command that ended."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Running:
    """A program in a node."""

    def __init__(self, agent: Agent, number: int) -> None:
        """Made by ``Agent.spawn``."""
        self._agent = agent
        self._number = number
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()

    async def wait(self) -> int:
        """Exit code; 128 + n after signal n."""
        return await asyncio.shield(self.ended)

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal its process group."""
        await self._agent.send({"op": "kill", "id": self._number, "signal": int(number)})


class Agent:
    """The first process of a node, or the one that runs commands on the lab's host.

    Attributes:
        pid: of the first process, in this PID namespace.
    """

    def __init__(self, name: str, pid: int, channel: AsyncChannel, on_main: Callable[[dict[str, Any]], None]) -> None:
        """Made by ``start``."""
        self.name = name
        self.pid = pid
        self._channel = channel
        self._on_main = on_main
        self._numbers = 0
        self._programs: dict[int, Running] = {}
        self._pidfd = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._pidfd, self._reap)
        self._reader = loop.create_task(self._read())

    @classmethod
    async def start(
        cls,
        name: str,
        spec: Spec | None,
        *,
        log_directory: int,
        network_fd: int | None = None,
        uts_fd: int | None = None,
        on_main: Callable[[dict[str, Any]], None] = lambda _event: None,
    ) -> Agent:
        """Fork the first process of a node and wait until it has built the node around itself.

        Args:
            name: of the node.
            spec: what to build; None makes no node but a process of the host in a PID namespace of its own.
            log_directory: descriptor of the lab directory.
            network_fd: network namespace to join.
            uts_fd: UTS namespace to join.
            on_main: told about the main process: ``{"main": "running" | "exited" | "failed", …}``.

        Raises:
            LabError: the node cannot be built; nothing of it is left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        setup = nodeinit.Setup(theirs, spec, name, log_directory, network_fd, uts_fd)
        pid = _fork(setup)
        theirs.close()
        agent = cls(name, pid, AsyncChannel(ours), on_main)
        try:
            await agent._ready
        except BaseException:
            await agent.close()
            raise
        return agent

    # --- programs

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int], *, user: str = "", cwd: str = "/"
    ) -> Running:
        """Start a program with ``fds`` as its standard streams.

        Raises:
            LabError: it cannot be started.
        """
        self._numbers += 1
        number = self._numbers
        program = self._programs[number] = Running(self, number)
        request = {"op": "spawn", "id": number, "argv": list(argv), "env": dict(env), "user": user, "cwd": cwd}
        try:
            await self.send(request, fds)
            await program.started
        except BaseException:
            self._programs.pop(number, None)
            raise
        return program

    async def run(
        self, argv: Sequence[str], env: Mapping[str, str], *, cwd: str = "/", timeout: float | None = None
    ) -> Output:
        """Run a program to its end with no input and collect what it says; a missing program is exit code 126."""
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        out, err = _Pipe(), _Pipe()
        try:
            program = await self.spawn(argv, env, [null, out.write_end, err.write_end], cwd=cwd)
            try:
                code = await asyncio.wait_for(program.wait(), timeout)
            except BaseException:
                with contextlib.suppress(LabError):
                    await program.kill()
                raise
            return Output(tuple(argv), code, out.text(), err.text())
        except LabError as error:
            return Output(tuple(argv), NOT_FOUND, "", f"{error}\n")
        finally:
            os.close(null)
            out.close()
            err.close()

    async def start_main(self, argv: Sequence[str], env: Mapping[str, str], user: str, restart: str) -> None:
        """Start the main process (again); what becomes of it is told to ``on_main``."""
        await self.send({"op": "main", "argv": list(argv), "env": dict(env), "user": user, "restart": restart})

    async def stop(self) -> None:
        """End every process of the node but the first; its namespaces stay."""
        await self.send({"op": "stop"})

    async def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a request. Raises LabError when the node is gone."""
        try:
            await self._channel.send(message, fds)
        except OSError:
            raise LabError(f"node {self.name} is gone") from None

    async def close(self, report: Report | None = None, timeout: float = END_SECONDS) -> None:
        """End the node: every process, then its namespaces. Returns when all of it is gone.

        Args:
            report: told what it waits for, if it has to.
            timeout: seconds.

        Raises:
            LabError: something keeps the node; says what. It can be called again.
        """
        if not self.gone.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        quiet = min(QUIET_SECONDS, timeout)
        await asyncio.wait({self.gone}, timeout=quiet)
        if not self.gone.done() and report is not None:
            await report("warning", f"node {self.name} is still ending: {'; '.join(stuck.reasons(self.pid))}")
        await asyncio.wait({self.gone}, timeout=timeout - quiet)
        if not self.gone.done():
            raise LabError(
                f"node {self.name} has not ended in {timeout:g} s: {'; '.join(stuck.reasons(self.pid))}",
                remedy="then try again",
            )
        self._reader.cancel()
        self._channel.close()

    # --- inside

    async def _read(self) -> None:
        while (received := await self._channel.receive()) is not None:
            message, _ = received
            if "main" in message:
                self._on_main(message)
            elif "id" in message:
                self._program(message)
            elif not self._ready.done():
                if "failed" in message:
                    self._ready.set_exception(LabError(f"node {self.name}: {message['failed']}"))
                else:
                    self._ready.set_result(None)

    def _program(self, message: dict[str, Any]) -> None:
        program = self._programs.get(message["id"])
        if program is None:
            return
        if "pid" in message:
            _resolve(program.started, message["pid"])
            return
        del self._programs[message["id"]]
        if "exit" in message:
            _resolve(program.ended, message["exit"])
        elif not program.started.done():
            program.started.set_exception(LabError(f"node {self.name}: {message['failed']}"))

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        # What it said last may still be unread: its reason goes before ours. The reader ends with the connection.
        self._reader.add_done_callback(lambda _: self._never_ready())
        for program in self._programs.values():
            _resolve(program.started, 0)
            _resolve(program.ended, 128 + signal.SIGKILL)
        self._programs.clear()
        _resolve(self.gone, None)

    def _never_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_exception(LabError(f"node {self.name}: its first process died"))
            self._ready.exception()


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fork(setup: nodeinit.Setup) -> int:
    """Fork into a new PID namespace, of which the child is the first process.

    The calling process must have a single thread: it goes on in its own PID namespace right after.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWPID)
    try:
        pid = os.fork()
        if pid == 0:
            nodeinit.main(setup)
    finally:
        linux.setns(own, linux.CLONE_NEWPID)
        os.close(own)
    return pid


class _Pipe:
    """A pipe that is read as it fills."""

    def __init__(self) -> None:
        self._fd, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        self._chunks: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._fd)
        self._chunks.append(data)
        return bool(data)

    def text(self) -> str:
        """What was written so far; a process that ended has said all, and one it left behind is not waited for."""
        while self._read():
            pass
        return b"".join(self._chunks).decode("utf-8", "replace")

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        os.close(self.write_end)
