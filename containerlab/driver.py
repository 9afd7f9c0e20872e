"""Labs for programs: deploy, run commands in nodes, destroy. Safe in processes with threads.

Everything that touches namespaces happens in the lab's supervisor; here are only its socket and the files of a lab.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calipy.containerlab import registry
from calipy.containerlab.channel import Channel
from calipy.containerlab.errors import LabError, TopologyError
from calipy.containerlab.registry import Entry
from calipy.kernel.process import Completed

if TYPE_CHECKING:  # loading what reads topologies takes longer than a command in a node
    from calipy.containerlab.management import Overrides
    from calipy.containerlab.model import Topology

SUFFIXES = (".clab.yml", ".clab.yaml")
_START = 20.0
_POLL = 0.005
_BUSY = 75

Report = Callable[[str, str], None]
"""Told what happens: level (``info``, ``warning``, ``error``) and text."""


NOT_FOUND = 126
"""Exit code that stands for a program that is not there, as ``docker exec`` has it."""


class CommandFailedError(LabError):
    """A program cannot be started in a node."""


def find_topology(path: str | Path | None) -> Path:
    """The topology file meant by ``path``: itself, or the only one in a directory (None: the current one).

    Raises:
        TopologyError: there is none, or several.
    """
    place = Path(path) if path is not None else Path()
    if place.is_file():
        return place.absolute()
    if not place.is_dir():
        raise TopologyError(f"{place}: no such file", place=str(place))
    found = sorted(file for file in place.iterdir() if file.name.endswith(SUFFIXES))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise TopologyError(
            f"expected exactly one *.clab.yml in the directory {place.absolute()}, found {names}",
            remedy="name it: -t FILE",
        )
    return found[0].absolute()


def read_topology(
    path: str | Path | None = None,
    *,
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
    name: str = "",
    node_filter: Sequence[str] = (),
    loose: bool = False,
) -> Topology:
    """Read and check a topology file (or ``text``, which then counts as the file at ``path``).

    ``loose`` skips the look at other files (bind sources, env-files), for commands that only need to know the nodes.

    Raises:
        TopologyError: it cannot be deployed.
    """
    from calipy.containerlab import topology  # noqa: PLC0415 -- see above

    environ = os.environ if environ is None else environ
    file = Path(path).absolute() if text is not None and path is not None else find_topology(path)
    if text is None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TopologyError(f"cannot be read: {error}", place=str(file)) from None
    return topology.load(
        text,
        file=str(file),
        environ=environ,
        files=_NoFiles() if loose else _Disk(),
        overrides=overrides,
        name=name,
        node_filter=node_filter,
        lab_base=environ.get("CLAB_LABDIR_BASE", ""),
    )


class _Disk:
    """The files of this machine."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory."""
        return os.path.exists(path)  # noqa: PTH110 -- a path may be anything the file says

    def read(self, path: str) -> str:
        """Its text."""
        return Path(path).read_text(encoding="utf-8")


class _NoFiles:
    """``Files`` that are all there, and empty."""

    def exists(self, path: str) -> bool:  # noqa: ARG002 -- of the protocol
        return True

    def read(self, path: str) -> str:  # noqa: ARG002 -- of the protocol
        return ""


def lab_name(path: str | Path | None, environ: Mapping[str, str] | None = None) -> str:
    """The name of the lab that a topology file describes.

    Raises:
        TopologyError: there is no such file, or it cannot be read.
    """
    return read_topology(path, environ=environ, loose=True).name


def keep_standard_input(text: str) -> tuple[Path, str]:
    """Give a topology that came from standard input a file, below the registry; its path and the text."""
    folder = registry.directory() / ".stdin"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"topo-{time.time_ns()}.clab.yml"
    file.write_text(text, encoding="utf-8")
    return file, text


class Lab:
    """A lab that runs.

    Attributes:
        name: of the lab.
        plan: what the deploy changed (rows of action and detail), None after a first deploy.
        failed: how many ``exec`` commands of the deploy failed.
    """

    def __init__(self, name: str) -> None:
        """The lab called ``name``, which need not run."""
        self.name = name
        self.plan: list[tuple[str, str]] | None = None
        self.failed = 0
        self._entry = Entry(name)

    # --- life

    @classmethod
    def deploy(
        cls,
        path: str | Path,
        *,
        reconfigure: bool = False,
        report: Report | None = None,
        host_netns: bool = False,
        create_bridges: bool = False,
        environ: Mapping[str, str] | None = None,
        node_filter: Sequence[str] = (),
        strict: bool = False,
    ) -> Lab:
        """Deploy a topology file, or bring a running lab up to date with it. Blocks until every ``exec`` is done.

        Args:
            path: the file, or a directory with one.
            reconfigure: destroy a running lab and its directory first.
            report: told about progress.
            host_netns: the lab's host is the machine itself, not a namespace of the lab's own.
            create_bridges: make bridges of ``kind: bridge`` nodes that the machine does not have.
            environ: the caller's environment, os.environ by default.
            node_filter: only these nodes.
            strict: raise when an ``exec`` command failed; the lab stays up.

        Raises:
            CalipyError: the file is refused, or something cannot be built.
        """
        wanted = read_topology(find_topology(path), environ=environ, node_filter=node_filter)
        lab = cls(wanted.name)
        if reconfigure:
            lab.destroy(cleanup=True, directory=wanted.lab_directory)
        lab.apply(wanted, report=report, host_netns=host_netns, create_bridges=create_bridges, environ=environ)
        if strict and lab.failed:
            raise LabError(f"{lab.failed} exec commands failed in the deploy of lab {lab.name}")
        return lab

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._entry.runs

    def apply(
        self,
        wanted: Topology,
        *,
        report: Report | None = None,
        host_netns: bool = False,
        create_bridges: bool = False,
        owner: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """Deploy a topology that was read already; the nodes, as ``inspect`` has them.

        Raises:
            CalipyError: something cannot be built.
        """
        if os.geteuid() != 0:
            raise LabError("a lab needs root: it makes network namespaces", remedy="sudo calipy lab …")
        import msgspec  # noqa: PLC0415 -- see above

        from calipy.containerlab.git import labels as git_labels  # noqa: PLC0415

        params = {
            "topology": msgspec.to_builtins(wanted),
            "create_bridges": create_bridges,
            "owner": owner,
            "cwd": os.getcwd(),  # noqa: PTH109 -- a text is wanted
            "environ": dict(os.environ if environ is None else environ),
            "git": git_labels(Path(wanted.file).parent),
        }
        if not self._entry.runs:
            _start_supervisor(self._entry, host_netns=host_netns)
        result = self._call("deploy", params, report=report)
        self.plan = [(action, detail) for action, detail in result["plan"]] if result["plan"] is not None else None
        self.failed = result["failed"]
        containers: list[dict[str, Any]] = result["containers"]
        return containers

    def preview(self, wanted: Topology) -> list[tuple[str, str]]:
        """What ``apply`` would do to the running lab."""
        import msgspec  # noqa: PLC0415 -- see above

        rows = self._call("plan", {"topology": msgspec.to_builtins(wanted)})
        return [(action, detail) for action, detail in rows]

    def destroy(self, *, cleanup: bool = False, directory: str = "", nodes: Sequence[str] = ()) -> bool:
        """Take the lab away; nothing happens if it does not run. Remains of a killed one are removed, too.

        Args:
            cleanup: remove the lab directory.
            directory: the lab directory, where a lab that does not run cannot tell it.
            nodes: only these nodes.

        Returns:
            Whether it ran.
        """
        state = self._entry.read()
        directory = directory or state.get("lab_directory", "")
        ran = self._entry.runs
        if ran:
            self._call("destroy", {"nodes": list(nodes)})
        registry.clean(self._entry)
        if cleanup and directory:
            shutil.rmtree(directory, ignore_errors=True)
        return ran

    # --- use

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        timeout: float | None = 60.0,
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program in a node as root, with the node's environment; blocks until it ends.

        Args:
            node: name in the topology.
            argv: program, looked up in the node's PATH, and arguments; no shell.
            timeout: seconds after which it is killed, None waits for ever.
            stdin: its input.
            env: further variables.

        Raises:
            CommandFailedError: there is no such program.
            LabError: there is no such node, or it has exited.
            TimeoutError: out of time.
        """
        with contextlib.ExitStack() as stack:
            pipes = [_Pipe(stack) for _ in range(3)]
            pipes[0].feeds(stdin)
            channel = stack.enter_context(contextlib.closing(self._connect()))
            params = {"node": node, "argv": list(argv), "env": dict(env or {})}
            fds = [pipes[0].read_end, pipes[1].write_end, pipes[2].write_end]
            channel.send({"method": "exec", "params": params}, fds)
            for fd in fds:
                os.close(fd)
            pipes[0].read_end = pipes[1].write_end = pipes[2].write_end = -1
            code = _await_exit(channel, pipes, timeout, node, argv)
            return Completed(tuple(argv), code, pipes[1].text(), pipes[2].text())

    def exec_attached(self, node: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Run a program in a node on this process's own standard streams; its exit code.

        Raises:
            CommandFailedError: there is no such program.
            LabError: there is no such node, or it has exited.
        """
        with contextlib.closing(self._connect()) as channel:
            params = {"node": node, "argv": list(argv), "env": dict(env or {})}
            channel.send({"method": "exec", "params": params}, [0, 1, 2])
            return _exit_code(_answer(channel), node, argv)

    def containers(self) -> list[dict[str, Any]]:
        """The nodes: ``name``, ``node``, ``id``, ``image``, ``state``, ``ipv4``, ``labels``, ``pid``, …; by name."""
        found: list[dict[str, Any]] = self._call("inspect", {})["containers"]
        return found

    def interfaces(self) -> list[dict[str, Any]]:
        """The interfaces of all nodes that run."""
        found: list[dict[str, Any]] = self._call("interfaces", {})
        return found

    def stop(self, *nodes: str) -> None:
        """End the processes of nodes (of all, if none is named); their namespaces stay."""
        self._call("lifecycle", {"action": "stop", "nodes": list(nodes)})

    def start(self, *nodes: str) -> None:
        """Start nodes that have stopped or exited."""
        self._call("lifecycle", {"action": "start", "nodes": list(nodes)})

    def restart(self, *nodes: str) -> None:
        """Stop and start."""
        self._call("lifecycle", {"action": "restart", "nodes": list(nodes)})

    # --- inside

    def _connect(self) -> Channel:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self._entry.socket))
        except OSError:
            sock.close()
            raise LabError(f"lab {self.name} does not run", remedy="calipy lab deploy -t FILE") from None
        return Channel(sock)

    def _call(self, method: str, params: dict[str, Any], *, report: Report | None = None) -> Any:
        with contextlib.closing(self._connect()) as channel:
            channel.send({"method": method, "params": params})
            return _answer(channel, report, self._entry)


def all_labs() -> list[Lab]:
    """All labs of which something is there: those that run, and remains of killed ones; by name."""
    return [Lab(entry.lab) for entry in registry.entries()]


def running_labs() -> list[Lab]:
    """All labs of this machine that run, by name."""
    return [Lab(entry.lab) for entry in registry.living()]


def _answer(channel: Channel, report: Report | None = None, entry: Entry | None = None) -> Any:
    """The result of a request. If the supervisor ends with it, its ``entry`` is free when this returns."""
    while True:
        try:
            received = channel.receive()
        except OSError:
            received = None
        if received is None:
            raise LabError("the lab's supervisor is gone", remedy="calipy lab destroy removes what it left")
        message, _ = received
        if "log" in message:
            if report is not None:
                report(*message["log"])
            continue
        while message.get("over") and entry is not None and entry.runs:
            time.sleep(_POLL)
        if "error" in message:
            raise LabError(message["error"]["message"], remedy=message["error"]["remedy"])
        return message["result"]


def _exit_code(result: dict[str, Any], node: str, argv: Sequence[str]) -> int:
    if "failed" in result:
        raise CommandFailedError(f"{node}: {argv[0]}: {result['failed']}")
    code: int = result["code"]
    return code


def _await_exit(channel: Channel, pipes: Sequence[_Pipe], timeout: float | None, node: str, argv: Sequence[str]) -> int:
    """Move data until the program has ended; closing the channel ends one that is out of time."""
    deadline = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    poll.register(channel.socket, select.POLLIN)
    for pipe in pipes[1:]:
        poll.register(pipe.read_end, select.POLLIN)
    if pipes[0].write_end >= 0:
        poll.register(pipes[0].write_end, select.POLLOUT)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = poll.poll(None if left is None else left * 1000)
        if not ready and deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"{node}: {' '.join(argv)}: not done after {timeout:g} s")
        for fd, _events in ready:
            if fd == channel.socket.fileno():
                return _exit_code(_answer(channel), node, argv)
            pipe = next(pipe for pipe in pipes if fd in (pipe.read_end, pipe.write_end))
            if not pipe.move():
                poll.unregister(fd)
                pipe.finish()


class _Pipe:
    """A pipe of which this process keeps one end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self._chunks: list[bytes] = []
        self._left = memoryview(b"")
        self._feeds = False
        stack.callback(self.close)

    def feeds(self, data: bytes) -> None:
        """Be the one that carries input."""
        self._feeds = True
        self._left = memoryview(data)
        os.set_blocking(self.write_end, False)
        if not data:
            self.finish()

    def move(self) -> bool:
        """Move what can be moved at once; False when nothing more will come or go."""
        try:
            if self._feeds:
                self._left = self._left[os.write(self.write_end, self._left[: 1 << 16]) :]
                return bool(self._left)
            data = os.read(self.read_end, 1 << 16)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        self._chunks.append(data)
        return bool(data)

    def finish(self) -> None:
        """Close the end that this process keeps."""
        if self._feeds:
            os.close(self.write_end)
            self.write_end = -1
        else:
            os.close(self.read_end)
            self.read_end = -1

    def text(self) -> str:
        """What came out, to the last byte that the program has written before its end."""
        if self.read_end >= 0:
            os.set_blocking(self.read_end, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self.read_end, 1 << 16):
                    self._chunks.append(data)
        return b"".join(self._chunks).decode("utf-8", "surrogateescape")

    def close(self) -> None:
        for fd in (self.read_end, self.write_end):
            if fd >= 0:
                os.close(fd)
        self.read_end = self.write_end = -1


def _start_supervisor(entry: Entry, *, host_netns: bool) -> None:
    """Start a supervisor and wait until it listens; another one that was faster is as good.

    Raises:
        LabError: it does not start.
    """
    ready, ready_end = os.pipe2(os.O_CLOEXEC)
    arguments = [sys.executable, "-m", "calipy.containerlab.supervisor", entry.lab, "--ready-fd", str(ready_end)]
    arguments += ["--host-netns"] if host_netns else []
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        stack.callback(os.close, ready)
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[ready_end],
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(ready_end)
        line = _read_line(ready, _START)
        if line == "ready":
            return
        if line is None:
            process.kill()
        if process.wait() == _BUSY:
            _wait_socket(entry)
            return
        said.seek(0)
        reason = line or said.read().decode("utf-8", "replace").strip()[-2000:] or "no word from it"
        raise LabError(f"the supervisor of lab {entry.lab} does not start: {reason}")


def _read_line(fd: int, timeout: float) -> str | None:
    """A line from a pipe without its end; "" at the end, None when out of time."""
    if not select.select([fd], [], [], timeout)[0]:
        return None
    return os.read(fd, 4096).decode("utf-8", "replace").strip()


def _wait_socket(entry: Entry) -> None:
    deadline = time.monotonic() + _START
    while entry.runs and not entry.socket.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def running_nodes(labs: Iterable[Lab]) -> list[dict[str, Any]]:
    """The nodes of several labs, by lab and name; labs that end meanwhile are left out."""
    found: list[dict[str, Any]] = []
    for lab in labs:
        with contextlib.suppress(LabError):
            found += lab.containers()
    return sorted(found, key=lambda container: (container["lab"], container["name"]))
