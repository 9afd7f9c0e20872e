"""Which other BGP daemon runs here, and how to ask it: for hosts whose BGP is not calipy's. Edge: reads /proc."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from calipy import api_client
from calipy.errors import AgentUnavailableError

PROC: Final = Path("/proc")


def _bird(argv: Sequence[str]) -> str:
    """BIRD's client needs the control socket where it is not the usual one."""
    after = dict(itertools.pairwise(argv))
    joined = next((word[2:] for word in argv if word.startswith("-s") and len(word) > 2), "")
    socket = after.get("-s", "") or joined
    return shlex.join(["birdc", *(["-s", socket] if socket else []), "show", "protocols"])


_ROUTERS: Final[dict[str, tuple[str, Callable[[Sequence[str]], str]]]] = {
    "bird": ("BIRD", _bird),
    "bird6": ("BIRD", lambda argv: _bird(argv).replace("birdc", "birdc6", 1)),
    "bgpd": ("FRR", lambda _argv: "vtysh -c 'show bgp summary'"),
    "gobgpd": ("GoBGP", lambda _argv: "gobgp neighbor"),
}
"""Name of the program's file → what people call it, and the command that shows its sessions."""


def other_router() -> str:
    """``BIRD (pid 4): birdc show protocols``, of the first one found in this network namespace; "" without any.

    Told by the program's file, not by the name of the process: calipy's own bgpd is Python's. O(processes).
    """
    here = (PROC / "self/ns/net").readlink()
    for pid in sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()):
        process = PROC / str(pid)
        try:
            known = _ROUTERS.get((process / "exe").readlink().name.removesuffix(" (deleted)"))
            if known is None or (process / "ns/net").readlink() != here:  # a lab's routers are not the machine's
                continue
            argv = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
        except OSError:
            continue  # it has ended, is a thread of the kernel, or somebody else's
        name, ask = known
        return f"{name} (pid {pid}): {ask(argv)}"
    return ""


def ask_bgpd(method: str, params: dict[str, Any] | None = None) -> Any:
    """Ask this node's bgpd; blocks.

    Raises:
        ApiError: it refused.
        AgentUnavailableError: it does not answer; where another daemon speaks BGP, it says which and how to ask it.
    """
    try:
        return api_client.call(api_client.bgpd_socket(), method, params)
    except AgentUnavailableError as error:
        if router := other_router():
            raise AgentUnavailableError(f"{error.args[0]}; BGP on this host is spoken by {router}") from error
        raise
