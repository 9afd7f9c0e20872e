"""What a node looks like inside: its files, name, programs, mounts and limits. Edge: makes directories for data."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from calipy.containerlab import container, environment, images, registry
from calipy.containerlab.model import Topology
from calipy.containerlab.programs import program_directories
from calipy.containerlab.running import RunningNode
from calipy.containerlab.values import cpu_set


def spec(topology: Topology, running: RunningNode, other: RunningNode | None) -> container.Spec:
    """What to build around a node's first process.

    Args:
        topology: that it belongs to.
        running: the node.
        other: the node whose network it joins; it has that one's name, hosts file and resolver.
    """
    node, profile = running.node, running.profile
    named = other or running
    hostname = None if node.network_mode == "host" else named.node.hostname or named.node.name
    servers = [topology.management.ipv4_gateway] if named.node.attached and topology.management.ipv4_gateway else []
    own_network = node.network_mode in {"bridge", "none"}
    data = {}
    if profile.role == "etcd":
        directory = Path(topology.lab_directory) / node.name / "data"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        data[images.ETCD_DATA] = str(directory)
    return container.Spec(
        hostname=hostname,
        own_network=own_network,
        stage=str(registry.stage()),
        files={
            "/etc/hostname": f"{hostname or socket.gethostname()}\n",
            "/etc/hosts": environment.hosts(topology, named.node, named.addresses),
            "/etc/resolv.conf": environment.resolver(node, servers),
            **profile.files,
        },
        programs=program_directories(),
        binds=node.binds,
        tmpfs=node.tmpfs,
        devices=node.devices,
        data=data,
        sysctls={**(environment.sysctls(profile) if own_network else {}), **node.sysctls},
        shm_size=node.shm_size,
        cpus=tuple(sorted(cpu_set(node.cpu_set) & os.sched_getaffinity(0))) if node.cpu_set else (),
    )
