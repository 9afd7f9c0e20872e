"""Quality-of-service annotations of a pod as the limits of its endpoint.

Source: Calico ``handleQoSControlsAnnotations`` in ``libcalico-go/lib/backend/k8s/conversion``. What does not parse is
left out; what is out of range becomes the nearest bound; limits that make no sense without another one are dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from calipy.datastore.resources import QoSControls
from calipy.policy import dscp as code_points

PREFIX: Final = "qos.projectcalico.org/"
KUBERNETES_BANDWIDTH: Final = "kubernetes.io/{}-bandwidth"

_UINT32: Final = 2**32 - 1
_BOUNDS: Final = {
    "Bandwidth": (10**3, 10**15),
    "Burst": (10**3, 8 * _UINT32),
    "Peakrate": (1010, 1_010_000_000_000_000),
    "Minburst": (10**3, 10**8),
    "PacketRate": (1, 10**4),
    "PacketBurst": (1, 10**4),
    "MaxConnections": (1, _UINT32),
}
"""Annotation (after ``ingress`` or ``egress``) → least and greatest value."""
_DEFAULT_BURST: Final = 4 * 2**30
_DEFAULT_PACKET_BURST: Final = 5

_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE])([+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def quantity(text: str) -> int | None:
    """A Kubernetes quantity (``100M``, ``4Gi``, ``1e3``, ``500m``), rounded up to a whole number; None if not one."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        return None
    number, _, exponent, suffix = found.groups()
    value = Fraction(number)
    if exponent is not None:
        value *= Fraction(10) ** max(min(int(exponent), 30), -30)
    elif suffix in _BINARY:
        value *= 2 ** _BINARY[suffix]
    elif suffix:
        value *= Fraction(10) ** _DECIMAL[suffix]
    return math.ceil(value)


def qos_controls(annotations: Mapping[str, str]) -> QoSControls | None:
    """The limits that a pod's annotations ask for; None when they ask for none."""
    limits: dict[str, Any] = {}
    for direction in ("ingress", "egress"):
        limits |= _of_direction(annotations, direction)
    dscp = code_points.stored(annotations.get(code_points.ANNOTATION, ""))
    if not any(limits.values()) and dscp is None:
        return None
    return QoSControls(**limits, dscp=dscp)


def _of_direction(annotations: Mapping[str, str], direction: str) -> dict[str, int]:
    found = {}
    for name, bounds in _BOUNDS.items():
        text = annotations.get(f"{PREFIX}{direction}{name}")
        if text is None and name == "Bandwidth":
            text = annotations.get(KUBERNETES_BANDWIDTH.format(direction))
        found[name] = 0 if text is None else _in_range(text, *bounds)
    if not found["Bandwidth"]:
        found["Burst"] = 0
    if found["Peakrate"] <= found["Bandwidth"] or not found["Bandwidth"]:
        found["Peakrate"] = 0
    if not found["Peakrate"]:
        found["Minburst"] = 0
    if not found["PacketRate"]:
        found["PacketBurst"] = 0
    if found["Bandwidth"] and not found["Burst"]:
        found["Burst"] = _DEFAULT_BURST
    if found["PacketRate"] and not found["PacketBurst"]:
        found["PacketBurst"] = _DEFAULT_PACKET_BURST
    return {f"{direction}_{_snake(name)}": value for name, value in found.items()}


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _in_range(text: str, low: int, high: int) -> int:
    value = quantity(text)
    return 0 if value is None else min(max(value, low), high)
