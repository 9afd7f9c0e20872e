"""Names and objects derived from a pod's request."""

from __future__ import annotations

import msgspec
import pytest

from calipy.cni.request import PodRequest, build_endpoint, go_time, network_profile
from calipy.datastore import codec
from calipy.errors import InvalidInputError
from calipy.net import parse_prefix


def request(**more) -> PodRequest:
    return PodRequest(**{"container_id": "c0ffee", "netns": "/run/netns/x", "name": "web-0", **more})


def test_names_follow_calico():
    """Host end, endpoint and handle of a pod, as a real cluster has them."""
    pod = request(name="amber-1", namespace="ops")
    assert pod.interface == "calicb9db87612f"
    assert pod.endpoint_name("gw-1") == "gw--1-k8s-amber--1-eth0"
    assert pod.handle == "k8s-pod-network.c0ffee"
    assert pod.profiles == ("kns.ops", "ksa.ops.default")
    assert request(service_account="").profiles == ("kns.default",)


def test_further_interfaces_have_names_of_their_own():
    """Only eth0 is named as Calico does; others do not collide with it, and all fit the kernel's limit."""
    names = {request(ifname=ifname).interface for ifname in ("eth0", "net1", "net2")}
    names |= {request(orchestrator="cni", ifname=ifname).interface for ifname in ("eth0", "net1")}
    assert len(names) == 5
    assert all(len(name) <= 15 for name in names)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01 00:00:00 +0000 UTC"),
        (1785578400_123456789, "2026-08-01 10:00:00.123456789 +0000 UTC"),
        (1785578400_120000000, "2026-08-01 10:00:00.12 +0000 UTC"),
        (951868799_000000001, "2000-02-29 23:59:59.000000001 +0000 UTC"),
    ],
)
def test_times_are_printed_as_go_does(nanoseconds, text):
    """Nanoseconds, zeros at the end left out, zone twice."""
    assert go_time(nanoseconds) == text


def test_attributes_name_the_pod_only_where_there_is_one():
    """A container without a name has node and time alone."""
    assert set(request().attributes("node-1", 0)) == {"node", "pod", "namespace", "timestamp"}
    assert set(request(orchestrator="cni").attributes("node-1", 0)) == {"node", "timestamp"}


def test_given_addresses_decide_the_families():
    """An address asked for is the only one the pod gets, beside that of the other family if also asked for."""
    assert request().families == (4,)
    assert request(ipv6=True).families == (4, 6)
    assert request(ips=("fd00::1",)).families == (6,)
    assert request(ips=("fd00::1", "10.0.0.1"), ipv4=False).families == (4, 6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("container_id", ""),
        ("container_id", "../etc"),
        ("container_id", "a/b"),
        ("network", "a b"),
        ("ifname", ""),
        ("ifname", "sixteen-letters-"),
        ("ifname", ".."),
        ("ifname", "a/b"),
        ("namespace", "Shop"),
        ("namespace", "a.b"),
        ("namespace", "-a"),
        ("name", ""),
        ("name", "web-"),
        ("name", "a_b"),
        ("name", "web\n"),
        ("mtu", 67),
        ("mtu", 70000),
        ("ips", ("10.0.0.0/24",)),
        ("ips", ("10.0.0.1", "10.0.0.2")),
        ("ipv4", False),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, value):
    """Names become parts of paths, keys and interfaces: only what is safe in all of them passes."""
    with pytest.raises(InvalidInputError) as caught:
        request(**{field: value})
    assert caught.value.field == field


def test_an_endpoint_keeps_what_is_not_the_pods():
    """An earlier incarnation's identity, annotations and revision stay; labels, addresses and container are renewed."""
    addresses = (parse_prefix("10.65.0.9").network_address, parse_prefix("fd00::9").network_address)
    first = build_endpoint(request(labels={"old": "1"}), "node-1", "02:00:00:00:00:01", addresses[:1], None)
    metadata = msgspec.structs.replace(first.metadata, uid="u", creation_timestamp="t", annotations={"a": "b"})
    stored = msgspec.structs.replace(first, metadata=metadata, revision=7)
    again = build_endpoint(
        request(container_id="beef", labels={"new": "2"}), "node-1", "02:00:00:00:00:02", addresses, stored
    )
    assert (again.metadata.uid, again.metadata.annotations, again.revision) == ("u", {"a": "b"}, 7)
    assert "old" not in again.metadata.labels
    assert again.metadata.labels["new"] == "2"
    assert again.spec.ip_networks == ("10.65.0.9/32", "fd00::9/128")
    assert (again.spec.container_id, again.spec.mac) == ("beef", "02:00:00:00:00:02")


def test_the_networks_profile_is_calicos():
    """Byte for byte what the plugin writes for a network without Kubernetes."""
    spec = codec.write_resource(network_profile("pod-net"))["spec"]
    assert spec == {
        "ingress": [{"action": "Allow", "source": {"selector": "has(pod-net)"}}],
        "egress": [{"action": "Allow"}],
        "labelsToApply": {"pod-net": ""},
    }
