"""Runs the real ``Felix`` in this process's network namespace, fed with pickled ``Changes`` instead of a datastore, or
with pickled objects of the datastore, which then go through the real calculation graph.

Started once per node by ``tests.support.felix``: loads everything, then forks a Felix per descriptor that it is sent
over its standard input, so that a new one is there within milliseconds. Each speaks over its descriptor: one request a
line, one answer a line, each the base64 of a pickled value; the first answer is its pid.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import signal
import socket
import sys
from typing import Any

from calipy import log
from calipy.datastore.syncer import InSync, Update
from calipy.felix.daemon import Felix
from calipy.felix.messages import Changes


class Script:
    """Hands over the changes that the test sends."""

    def __init__(self) -> None:
        self.datastore_ready: bool | None = True
        self.warnings = ()
        self.waiting: list[Changes] = []
        self.in_sync = False

    def on_update(self, key: Any, value: Any) -> None:
        raise AssertionError((key, value))

    def on_in_sync(self) -> None:
        self.in_sync = True

    def flush(self) -> Changes:
        return self.waiting.pop(0) if self.waiting and self.in_sync else Changes(in_sync=self.in_sync)


async def main() -> None:
    reply(os.getpid())
    log.configure("info", json=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    script = Script()
    config, graph, hostname, mtu_file = pickle.loads(base64.b64decode(await reader.readline()))
    felix = Felix(config, hostname, source=None if graph else script, mtu_file=mtu_file)
    running = asyncio.create_task(felix.run())
    while line := await reader.readline():
        command, argument = pickle.loads(base64.b64decode(line))
        answer: Any = None
        if running.done():
            running.result()
        if command == "changes":
            script.waiting.append(argument)
            felix.on_events([InSync(1)] if argument.in_sync else [])
        elif command == "events":
            revision, objects = argument
            felix.on_events([*(Update(key, value, revision) for key, value in objects), InSync(revision)])
        elif command == "status":
            answer = felix.status()
        elif command == "wait":
            answer = await felix.wait_programmed(*argument)
        reply(answer)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def reply(answer: Any) -> None:
    sys.stdout.write(base64.b64encode(pickle.dumps(answer)).decode() + "\n")
    sys.stdout.flush()


def serve() -> None:
    """Fork until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(fileno=os.dup(0)) as requests:
        while (received := socket.recv_fds(requests, 1, 1))[0]:
            (descriptor,) = received[1]
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                requests.close()
                os.dup2(descriptor, 0)
                os.dup2(descriptor, 1)
                os.close(descriptor)
                asyncio.run(main())
                os._exit(0)
            os.close(descriptor)


if __name__ == "__main__":
    serve()
