"""Where labs of this machine are found: one directory each below ``/run/calipy-lab``. Edge.

It holds the lock that the supervisor keeps for life (so that a dead lab is told from a living one without trusting
pids), its socket, and a record of everything outside the supervisor's own namespaces, for cleaning up after a kill.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calipy.containerlab.errors import LabError

NETNS = Path("/run/netns")
_NAME_LIMIT = 60
PORTS_SECONDS = 3.0
"""How long the last lab waits for the ports of its ended nodes to leave a bridge."""


def directory() -> Path:
    """The directory of all labs; ``CALIPY_LAB_RUN_DIR`` moves it."""
    return Path(os.environ.get("CALIPY_LAB_RUN_DIR") or "/run/calipy-lab")


def stage() -> Path:
    """An empty directory on which nodes build their root, each in its own mount namespace."""
    path = directory() / ".stage"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Hold off the other labs: between a look at what they have and the record of what this one takes. Short."""
    path = directory() / ".lock"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Entry:
    """One lab's place. Exists whether the lab runs or not.

    Attributes:
        lab: name of the lab.
        path: its directory.
    """

    def __init__(self, lab: str) -> None:
        """The place of the lab called ``lab``.

        Raises:
            LabError: no lab can be called so; its place might be anywhere, and places are removed.
        """
        if not lab or lab.startswith(".") or "/" in lab or "\0" in lab:
            raise LabError(f"{lab!r} is no name of a lab", remedy="calipy lab inspect --all shows those that run")
        self.lab = lab
        # A socket's path is limited to 107 bytes.
        folder = lab if len(lab) <= _NAME_LIMIT else f"{lab[:20]}~{hashlib.sha256(lab.encode()).hexdigest()[:32]}"
        self.path = directory() / folder

    @property
    def socket(self) -> Path:
        """Where the supervisor listens."""
        return self.path / "socket"

    @property
    def log(self) -> Path:
        """What the supervisor has to say when nobody listens."""
        return self.path / "log"

    def lock(self) -> int | None:
        """Take the lab's lock; its descriptor, or None if a supervisor (or a clean-up) holds it."""
        while True:
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700, parents=True)
            try:
                fd = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # whoever held it is just removing the directory
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_ino == (self.path / "lock").stat().st_ino:
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except FileNotFoundError:
                pass  # it was removed meanwhile
            os.close(fd)

    @property
    def runs(self) -> bool:
        """Whether a supervisor lives."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def record(self, state: dict[str, Any]) -> None:
        """Write down what exists outside, atomically, before it is made."""
        new = self.path / "state.new"
        new.write_text(json.dumps(state), encoding="utf-8")
        new.rename(self.path / "state.json")

    def read(self) -> dict[str, Any]:
        """What was recorded last; {} if nothing."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            state: dict[str, Any] = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
            return state
        return {}

    def remove(self) -> None:
        """Forget the lab; its lock must be held."""
        # At once, so that the next one with this name does not lose new files to the removal of old ones.
        gone = self.path.with_name(f".{self.path.name}.{os.getpid()}.{threading.get_ident()}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def entries() -> list[Entry]:
    """All labs that have a place, alive or dead, by name."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in directory().iterdir():
            if path.is_dir() and not path.name.startswith("."):
                lab = path.name
                with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                    lab = json.loads((path / "state.json").read_text(encoding="utf-8"))["lab"]
                found.append(Entry(lab))
    return sorted(found, key=lambda entry: entry.lab)


def living() -> Iterator[Entry]:
    """The labs that run."""
    return (entry for entry in entries() if entry.runs)


def names_of_others(own: Entry) -> dict[str, set[str]]:
    """Names of nodes of the other labs that run, by lab."""
    return {entry.lab: set(entry.read().get("names") or ()) for entry in living() if entry.lab != own.lab}


def addresses_of_others(own: Entry, network: str) -> frozenset[str]:
    """Management addresses that other labs in the machine's own namespace hold in the same network."""
    states = [entry.read() for entry in living() if entry.lab != own.lab]
    return frozenset(
        address
        for state in states
        if state.get("host_netns") and state.get("network") == network
        for address in state.get("addresses") or ()
    )


def clean(entry: Entry) -> bool:
    """Remove what a dead lab left outside its namespaces. False if the lab lives, or left nothing.

    Only what its record names and what still is as recorded is touched.
    """
    if not entry.path.is_dir():
        return False
    lock = entry.lock()
    if lock is None:
        return False
    try:
        state = entry.read()
        for name, target in (state.get("netns") or {}).items():
            unlink_netns(name, target)
        if bridge := state.get("bridge"):
            remove_bridge(bridge, entry)
        entry.remove()
        return bool(state)
    finally:
        os.close(lock)


def link_netns(name: str, target: str) -> None:
    """Let ``ip netns exec NAME`` find a node. Raises LabError where the name is somebody else's."""
    NETNS.mkdir(mode=0o755, exist_ok=True)
    path = NETNS / name
    if path.is_symlink() and not path.exists():
        path.unlink()  # of a process that is gone
    try:
        path.symlink_to(target)
    except FileExistsError:
        raise LabError(
            f"the name {name} is taken in {NETNS}", remedy=f"look with 'ip netns', then 'ip netns delete {name}'"
        ) from None


def unlink_netns(name: str, target: str) -> None:
    """Take the name away again, if it still is ours."""
    path = NETNS / name
    with contextlib.suppress(OSError):
        if os.readlink(path) == target:  # noqa: PTH115 -- the text, not a path
            path.unlink()


def remove_bridge(name: str, own: Entry) -> None:
    """Delete a management bridge of ours in the current namespace, unless another lab uses it or is about to.

    Labs share it, so the last one takes it away, whoever made it.
    """
    from calipy.containerlab.linkspec import ownership_name  # noqa: PLC0415 -- as below
    from calipy.kernel.links import Links  # noqa: PLC0415 -- only labs in the host's own namespace need it
    from calipy.kernel.netlink import NetlinkSocket  # noqa: PLC0415

    with exclusive(), NetlinkSocket() as socket:
        if any(entry.read().get("bridge") == name for entry in living() if entry.lab != own.lab):
            return
        links = Links(socket)
        bridge = links.get_link(name)
        if bridge is None or ownership_name("mgmt", name) not in bridge.alternative_names:
            return
        # The kernel takes the ports of nodes that have just ended away a moment later.
        deadline = time.monotonic() + PORTS_SECONDS
        while any(link.master == bridge.index for link in links.list_links()):
            if time.monotonic() > deadline:
                return  # somebody else has put an interface there
            time.sleep(0.02)
        links.delete_link(name)
