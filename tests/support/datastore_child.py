"""A datastore client in a process of its own, for tests that are not asynchronous and move through namespaces.

gRPC connects from threads of its own, which stay in whichever namespace they were started in; a process that never
changes namespaces has no such trouble. Started by ``tests.support.datastore``: one request a line on stdin, one answer
a line on stdout, each the base64 of a pickled value.
"""

from __future__ import annotations

import asyncio
import base64
import pickle
import sys

from calipy.datastore.client import Client
from calipy.datastore.connect import EtcdConfig, connect


async def main() -> None:
    store = connect(EtcdConfig.from_variables({"ETCD_ENDPOINTS": sys.argv[1]}))
    targets = {"store": store, "client": Client(store)}
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        target, method, args = pickle.loads(base64.b64decode(line))
        try:
            answer = (True, await getattr(targets[target], method)(*args))
        except Exception as error:
            answer = (False, error)
        sys.stdout.write(base64.b64encode(pickle.dumps(answer)).decode() + "\n")
        sys.stdout.flush()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
