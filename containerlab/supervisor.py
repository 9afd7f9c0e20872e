"""The process behind a lab: holds its namespaces, serves its socket, ends with it.

It is started afresh (never forked from a program with threads), forks the nodes itself, and stays single-threaded. When
it dies, by whatever means, its children die (``PR_SET_PDEATHSIG``), and with them their namespaces and all in them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec

from calipy.containerlab import linux, registry
from calipy.containerlab.agent import END_SECONDS
from calipy.containerlab.async_channel import AsyncChannel
from calipy.containerlab.container import BuildError, write_sysctls
from calipy.containerlab.errors import LabError
from calipy.containerlab.lab import Lab
from calipy.containerlab.model import Topology
from calipy.containerlab.registry import Entry
from calipy.containerlab.wiring import Namespace
from calipy.errors import CalipyError

BUSY = 75
"""Exit status when the lab has a supervisor already (EX_TEMPFAIL)."""
_HOST_SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
}


class Supervisor:
    """Serves one lab."""

    def __init__(self, lab: Lab, listener: socket.socket) -> None:
        """``listener`` is bound and listens."""
        self.lab = lab
        self.listener = listener
        self.changing = asyncio.Lock()
        self.over = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the lab is destroyed, or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.over.set)
        accepting = loop.create_task(self._accept())
        await self.over.wait()
        accepting.cancel()
        await self.lab.destroy()
        done = [client for client in self._clients if client is not asyncio.current_task()]
        if done:
            await asyncio.wait(done, timeout=1.0)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self.listener)
            task = loop.create_task(self._serve(AsyncChannel(connection)))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, channel: AsyncChannel) -> None:
        try:
            while (received := await channel.receive()) is not None:
                message, fds = received
                try:
                    await self._answer(channel, message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except OSError:
            pass  # the client is gone
        finally:
            channel.close()

    async def _answer(self, channel: AsyncChannel, message: dict[str, Any], fds: Sequence[int]) -> None:
        method, params = message.get("method"), message.get("params") or {}
        handler = getattr(self, f"do_{method}", None)
        if handler is None:
            await channel.send({"error": {"message": f"unknown method {method!r}", "remedy": ""}})
            return
        work = asyncio.ensure_future(handler(channel, params, fds))
        # A client that goes away takes its request along: Ctrl-C in a deploy, a killed exec.
        watch = asyncio.ensure_future(channel.receive())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            try:
                answer = {"result": await work}
            except CalipyError as error:
                answer = {"error": {"message": str(error), "remedy": ""}}
            except asyncio.CancelledError:
                answer = {"error": {"message": "interrupted", "remedy": ""}}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": {"message": f"internal error: {error!r}", "remedy": f"see {self.lab.entry.log}"}}
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        over = self.lab.topology is None and method in {"deploy", "destroy"}
        if over:
            self.over.set()
        await channel.send({**answer, "over": over})

    # --- methods

    async def do_deploy(self, channel: AsyncChannel, params: dict[str, Any], _fds: Sequence[int]) -> dict[str, Any]:
        """Build the lab or bring it up to date."""
        topology = msgspec.convert(params["topology"], Topology)
        if params["host_netns"] and not self.lab.on_machine:
            raise LabError(
                f"lab {self.lab.name} runs with a host namespace of its own, not the machine's",
                remedy="deploy with --reconfigure to change that",
            )

        async def report(level: str, text: str) -> None:
            await channel.send({"log": [level, text]})

        async with self.changing:
            work, failed = await self.lab.deploy(
                topology,
                report,
                owner=params["owner"],
                cwd=params["cwd"],
                caller=params["environ"],
                git=params["git"],
                create_bridges=params["create_bridges"],
            )
        rows = work.rows() if work is not None else None
        return {"plan": rows, "failed": failed, "containers": self.lab.containers()}

    async def do_plan(
        self, _channel: AsyncChannel, params: dict[str, Any], _fds: Sequence[int]
    ) -> list[tuple[str, str]]:
        """What a deploy would do."""
        return self.lab.preview(msgspec.convert(params["topology"], Topology)).rows()

    async def do_destroy(self, channel: AsyncChannel, params: dict[str, Any], _fds: Sequence[int]) -> dict[str, Any]:
        """Take the lab, or the nodes named, away."""
        names, timeout = params.get("nodes") or [], float(params.get("timeout", END_SECONDS))

        async def report(level: str, text: str) -> None:
            await channel.send({"log": [level, text]})

        async with self.changing:
            if names:
                await self.lab.destroy_nodes(names, report, timeout)
                if self.lab.nodes:
                    return {"left": sorted(self.lab.nodes)}
            await self.lab.destroy(report, timeout)
        return {"left": []}

    async def do_inspect(self, _channel: AsyncChannel, _params: dict[str, Any], _fds: Sequence[int]) -> dict[str, Any]:
        """The nodes as they are."""
        topology = self.lab.topology
        return {
            "containers": self.lab.containers() if topology else [],
            "lab_directory": topology.lab_directory if topology else "",
            "file": topology.file if topology else "",
        }

    async def do_interfaces(self, _channel: AsyncChannel, _params: dict[str, Any], _fds: Sequence[int]) -> list[Any]:
        """The interfaces of the nodes."""
        return self.lab.interfaces()

    async def do_lifecycle(self, _channel: AsyncChannel, params: dict[str, Any], _fds: Sequence[int]) -> None:
        """Stop, start or restart nodes."""
        names = params["nodes"] or sorted(self.lab.nodes)
        nodes = [self.lab.node(name) for name in names]
        async with self.changing:
            for node in nodes:
                if params["action"] in {"stop", "restart"}:
                    await node.stop()
                if params["action"] in {"start", "restart"}:
                    await node.start(self.lab.deployed.management)

    async def do_exec(self, _channel: AsyncChannel, params: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Run a program in a node with the client's own descriptors as its standard streams."""
        running = self.lab.node(params["node"])
        if running.agent is None or not running.alive:
            raise LabError(f"node {params['node']} is not running: it has exited with {running.exit_code}")
        env = {**running.env, **(params.get("env") or {})}
        try:
            program = await running.agent.spawn(params["argv"], env, fds, cwd=params.get("cwd") or "/")
        except LabError as error:
            return {"failed": str(error)}
        try:
            return {"code": await program.wait()}
        except asyncio.CancelledError:
            with contextlib.suppress(LabError):
                await program.kill()
            raise


def _listen(entry: Entry) -> socket.socket:
    entry.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(entry.socket))
    entry.socket.chmod(0o600)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _host_namespace() -> None:
    """Give this process, and so the lab's host, a network of its own, with Docker's settings."""
    linux.unshare(linux.CLONE_NEWNET)
    write_sysctls(_HOST_SYSCTLS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a supervisor in the foreground; exit status 0 after the lab's end, 75 if it has one already."""
    parser = argparse.ArgumentParser(prog="calipy-lab-supervisor")
    parser.add_argument("lab")
    parser.add_argument("--host-netns", action="store_true")
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args(argv)
    entry = Entry(arguments.lab)
    try:
        registry.clean(entry)
        lock = entry.lock()
    except OSError as error:  # no place for the registry
        sys.stderr.write(f"{error}\n")
        return 1
    if lock is None:
        return BUSY
    linux.set_process_name("calipy-lab")
    log = os.open(entry.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        host = machine = Namespace.here()
        if not arguments.host_netns:
            _host_namespace()
            host = Namespace.here()
            host.links.set_up("lo")
        entry.record({"lab": arguments.lab})
        listener = _listen(entry)
        lab = Lab(arguments.lab, entry, host, machine)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.write(arguments.ready_fd, b"ready\n")
        os.close(arguments.ready_fd)
        asyncio.run(Supervisor(lab, listener).run())
    except (OSError, CalipyError, BuildError) as error:
        sys.stderr.write(f"{error}\n")  # the log, once it serves
        return 1
    finally:
        entry.remove()
        os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
