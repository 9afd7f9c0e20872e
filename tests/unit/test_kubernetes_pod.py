"""Pods as endpoints: life cycle, and limits from annotations."""

from __future__ import annotations

from typing import Any

import pytest

from calipy.errors import InvalidInputError
from calipy.policy.kubernetes_pod import convert_pod, pod_state
from calipy.policy.kubernetes_qos import qos_controls, quantity


def _pod(*, annotations: dict[str, str] | None = None, deleting: bool = False, **status: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "web", "namespace": "shop", "annotations": annotations or {}}
    if deleting:
        metadata["deletionTimestamp"] = "2026-03-04T05:06:07Z"
    return {"metadata": metadata, "spec": {"nodeName": "n1"}, "status": status}


def test_addresses_go_when_the_plugin_takes_them_back() -> None:
    """A pod being deleted keeps its addresses until its annotation is emptied; a finished one has none."""
    running = _pod(podIP="10.65.1.1", deleting=True)
    taken = _pod(podIP="10.65.1.1", deleting=True, annotations={"cni.projectcalico.org/podIP": ""})
    assert convert_pod(running).spec.ip_networks == ("10.65.1.1/32",)
    assert convert_pod(taken).spec.ip_networks == ()
    assert (pod_state(running).finished, pod_state(taken).finished) == (False, True)


@pytest.mark.parametrize(
    ("pod", "field"),
    [
        (_pod(podIP="10.65.1.x"), "status.podIP"),
        (_pod(annotations={"cni.projectcalico.org/podIPs": "x"}), "metadata.annotations[cni.projectcalico.org/podIPs]"),
        (
            _pod(podIP="10.65.1.1", annotations={"cni.projectcalico.org/floatingIPs": "1.2.3.4"}),
            "metadata.annotations[cni.projectcalico.org/floatingIPs]",
        ),
        (
            _pod(annotations={"cni.projectcalico.org/allowedSourcePrefixes": '["10.0.0.1"]'}),
            "metadata.annotations[cni.projectcalico.org/allowedSourcePrefixes]",
        ),
        ({"metadata": {"name": "web", "namespace": "shop"}}, "spec.nodeName"),
    ],
)
def test_unusable_pods_name_their_field(pod: dict[str, Any], field: str) -> None:
    """What cannot be read is refused as a whole, with the field."""
    with pytest.raises(InvalidInputError) as caught:
        convert_pod(pod)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "value"),
    [("1M", 10**6), ("4Gi", 4 * 2**30), ("1e3", 1000), ("1.5k", 1500), ("100m", 1), ("0", 0), ("", None), ("1X", None)],
)
def test_quantities(text: str, value: int | None) -> None:
    """Kubernetes quantities with decimal, binary and exponent suffixes, rounded up."""
    assert quantity(text) == value


def test_limits() -> None:
    """Bounds hold, defaults follow their partners, and limits without their partner are dropped."""
    prefix = "qos.projectcalico.org/"
    found = qos_controls({
        "kubernetes.io/ingress-bandwidth": "10M",
        prefix + "ingressPeakrate": "5M",
        prefix + "ingressMinburst": "2k",
        prefix + "egressBurst": "1M",
        prefix + "egressPacketRate": "1M",
        prefix + "egressMaxConnections": "0",
        prefix + "dscp": "AF11",
    })  # fmt: skip
    assert found is not None
    assert (found.ingress_bandwidth, found.ingress_burst) == (10**7, 4 * 2**30)
    assert (found.ingress_peakrate, found.ingress_minburst, found.egress_burst) == (0, 0, 0)
    assert (found.egress_packet_rate, found.egress_packet_burst, found.egress_max_connections) == (10**4, 5, 1)
    assert found.dscp == "AF11"
    assert qos_controls({prefix + "ingressBandwidth": "much", prefix + "dscp": "64"}) is None
