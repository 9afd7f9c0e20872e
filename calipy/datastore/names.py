"""Names derived from other names: workload endpoints, and the host ends of pods' interfaces.

Source: Calico ``libcalico-go/lib/names/workloadendpoint.go``, ``lib/backend/k8s/conversion``. The name of a workload
endpoint is node, orchestrator, workload and endpoint, joined by ``-``, with every ``-`` inside a part doubled.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from calipy.errors import InvalidInputError

_SEPARATOR = re.compile(r"(?<!-)-(?!-)")


class WorkloadEndpointName(NamedTuple):
    """Parts of a workload endpoint's name; parts at the end may be "" when the text is only the beginning of a name.

    Attributes:
        workload: the pod (``k8s``), the container id (``cni``), ``libnetwork`` itself, or the workload (others).
    """

    node: str
    orchestrator: str = ""
    workload: str = ""
    endpoint: str = ""


def format_workload_endpoint(node: str, orchestrator: str, workload: str, endpoint: str) -> str:
    """``node-1``, ``k8s``, ``web-1``, ``eth0`` → ``node--1-k8s-web--1-eth0``.

    Raises:
        InvalidInputError: a part is empty, or begins or ends with a dash.
    """
    for field, part in (("node", node), ("orchestrator", orchestrator), ("workload", workload), ("endpoint", endpoint)):
        if not part or part.startswith("-") or part.endswith("-"):
            raise InvalidInputError(
                "cannot be part of an endpoint's name", field=field, value=part, remedy="no dash at either end"
            )
    return "-".join(part.replace("-", "--") for part in (node, orchestrator, workload, endpoint))


def parse_workload_endpoint(name: str) -> WorkloadEndpointName:
    """The inverse; also understands the beginning of a name, down to the node alone.

    Raises:
        InvalidInputError: more than four parts, an empty one, or one with a dash at its end.
    """
    parts = _SEPARATOR.split(name)
    if len(parts) > 4 or not all(part.strip("-") == part != "" and "-" not in part.replace("--", "") for part in parts):
        raise InvalidInputError(
            "not the name of a workload endpoint",
            field="metadata.name",
            value=name,
            remedy="node-orchestrator-pod-eth0",
        )
    return WorkloadEndpointName(*(part.replace("--", "-") for part in parts))


def kubernetes_interface(namespace: str, pod: str, *, prefix: str = "cali") -> str:
    """Host end of a pod's interface: the prefix and 11 hex digits of SHA-1 of ``<namespace>.<pod>``."""
    digest = hashlib.sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()
    return prefix + digest[:11]
