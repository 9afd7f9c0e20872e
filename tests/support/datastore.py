"""A datastore client with blocking methods, in a process of its own (see ``datastore_child``)."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.netns import Namespace


class Datastore:
    """``client("apply", resource)`` and ``store("put", key, value)``: methods of ``Client`` and ``Store`` by name."""

    def __init__(self, url: str, place: Namespace) -> None:
        """For the etcd at ``url``, as seen from a namespace."""
        child = Path(__file__).with_name("datastore_child.py")
        argv = ["setpriv", "--pdeathsig", "KILL", "--", "nsenter", f"--net={place.path}", "--", sys.executable]
        self._process = subprocess.Popen([*argv, child, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def client(self, method: str, *args: Any) -> Any:
        """Result of a method of ``Client``; raises what it raises."""
        return self._ask("client", method, args)

    def store(self, method: str, *args: Any) -> Any:
        """Result of a method of ``Store``; raises what it raises."""
        return self._ask("store", method, args)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(base64.b64encode(pickle.dumps(request)) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the datastore's client has ended"
        worked, answer = pickle.loads(base64.b64decode(line))
        if not worked:
            raise answer
        return answer
