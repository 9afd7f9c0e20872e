"""Labs for programs: deploy, run commands in nodes, destroy. Safe in processes with threads.

Everything that touches namespaces happens in the lab's supervisor; here are only its socket and the files of a lab.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calipy.containerlab import client, registry
from calipy.containerlab.client import Report
from calipy.containerlab.commands import NOT_FOUND, CommandFailedError, Pipe, await_exit, exit_code
from calipy.containerlab.errors import LabError, SupervisorGoneError
from calipy.containerlab.registry import Entry
from calipy.kernel.process import Completed

if TYPE_CHECKING:  # loading what reads topologies takes longer than a command in a node
    from calipy.containerlab.model import Topology

__all__ = ["NOT_FOUND", "CommandFailedError", "Lab", "Report", "all_labs", "running_labs", "running_nodes"]


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
        from calipy.containerlab.reading import find_topology, read_topology  # noqa: PLC0415 -- see above

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
            "host_netns": host_netns,
            "create_bridges": create_bridges,
            "owner": owner,
            "cwd": os.getcwd(),  # noqa: PTH109 -- a text is wanted
            "environ": dict(os.environ if environ is None else environ),
            "git": git_labels(Path(wanted.file).parent),
        }
        if not self._entry.runs:
            client.start_supervisor(self._entry, host_netns=host_netns)
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

    def destroy(
        self,
        *,
        cleanup: bool = False,
        directory: str = "",
        nodes: Sequence[str] = (),
        report: Report | None = None,
        timeout: float = 30.0,
    ) -> bool:
        """Take the lab away; nothing happens if it does not run. Remains of a killed one are removed, too.

        Args:
            cleanup: remove the lab directory.
            directory: the lab directory, where a lab that does not run cannot tell it.
            nodes: only these nodes.
            report: told about nodes that do not end within a second, and what keeps them.
            timeout: how many seconds nodes may take to end.

        Returns:
            Whether it ran, or a killed one had left something.

        Raises:
            LabError: something keeps a node; names it. The rest is gone, and destroying can be tried again.
        """
        state = self._entry.read()
        directory = directory or state.get("lab_directory", "")
        ran = self._entry.runs
        if ran:
            try:
                self._call("destroy", {"nodes": list(nodes), "timeout": timeout}, report=report)
            except SupervisorGoneError:
                client.await_end(self._entry)  # killed a moment ago: what it left goes like any killed one's
        left = registry.clean(self._entry)
        if cleanup and directory:
            shutil.rmtree(directory, ignore_errors=True)
        return ran or left

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
            pipes = [Pipe(stack) for _ in range(3)]
            pipes[0].feeds(stdin)
            channel = stack.enter_context(contextlib.closing(client.connect(self._entry)))
            params = {"node": node, "argv": list(argv), "env": dict(env or {})}
            fds = [pipes[0].read_end, pipes[1].write_end, pipes[2].write_end]
            channel.send({"method": "exec", "params": params}, fds)
            for fd in fds:
                os.close(fd)
            pipes[0].read_end = pipes[1].write_end = pipes[2].write_end = -1
            code = await_exit(channel, pipes, timeout, node, argv)
            return Completed(tuple(argv), code, pipes[1].text(), pipes[2].text())

    def exec_attached(self, node: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Run a program in a node on this process's own standard streams; its exit code.

        Raises:
            CommandFailedError: there is no such program.
            LabError: there is no such node, or it has exited.
        """
        with contextlib.closing(client.connect(self._entry)) as channel:
            params = {"node": node, "argv": list(argv), "env": dict(env or {})}
            channel.send({"method": "exec", "params": params}, [0, 1, 2])
            return exit_code(client.answer(channel), node, argv)

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

    def _call(self, method: str, params: dict[str, Any], *, report: Report | None = None) -> Any:
        return client.call(self._entry, method, params, report)


def all_labs() -> list[Lab]:
    """All labs of which something is there: those that run, and remains of killed ones; by name."""
    return [Lab(entry.lab) for entry in registry.entries()]


def running_labs() -> list[Lab]:
    """All labs of this machine that run, by name."""
    return [Lab(entry.lab) for entry in registry.living()]


def running_nodes(labs: Iterable[Lab]) -> list[dict[str, Any]]:
    """The nodes of several labs, by lab and name; labs that end meanwhile are left out."""
    found: list[dict[str, Any]] = []
    for lab in labs:
        with contextlib.suppress(LabError):
            found += lab.containers()
    return sorted(found, key=lambda container: (container["lab"], container["name"]))
