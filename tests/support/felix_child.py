"""Runs the real ``Felix`` in this process's network namespace, fed with pickled ``Changes`` instead of a datastore, or
with pickled objects of the datastore, which then go through the real calculation graph.

Started by ``tests.support.felix`` with ``ip netns exec``. One request a line on stdin, one answer a line on stdout,
each the base64 of a pickled value.
"""

from __future__ import annotations

import asyncio
import base64
import pickle
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
        self.waiting: list[Changes] = []
        self.in_sync = False

    def on_update(self, key: Any, value: Any) -> None:
        raise AssertionError((key, value))

    def on_in_sync(self) -> None:
        self.in_sync = True

    def flush(self) -> Changes:
        return self.waiting.pop(0) if self.waiting and self.in_sync else Changes(in_sync=self.in_sync)


async def main() -> None:
    log.configure("info", json=True)
    script = Script()
    config = pickle.loads(base64.b64decode(sys.argv[1]))
    felix = Felix(config, "node1", source=None if "graph" in sys.argv else script)
    running = asyncio.create_task(felix.run())
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, argument = pickle.loads(base64.b64decode(line))
        answer: Any = None
        if running.done():
            running.result()
        if command == "changes":
            script.waiting.append(argument)
            felix.on_events([InSync(1)] if argument.in_sync else [])
        elif command == "events":
            felix.on_events([*(Update(key, value, 1) for key, value in argument), InSync(1)])
        elif command == "status":
            answer = felix.status()
        elif command == "wait":
            answer = await felix.wait_programmed(*argument)
        sys.stdout.write(base64.b64encode(pickle.dumps(answer)).decode() + "\n")
        sys.stdout.flush()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
