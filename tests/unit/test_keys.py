"""Paths of the datastore and the keys behind them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.datastore import keys
from calipy.datastore.keys import (
    BlockAffinityKey,
    BlockKey,
    FelixStatusKey,
    HandleKey,
    HostEndpointStatusKey,
    IPAMConfigKey,
    IPAMHostKey,
    Key,
    ResourceKey,
    WorkloadStatusKey,
)

names = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,10}[a-z0-9])?", fullmatch=True)
parts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=10)
cidrs = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda p: ipaddress.ip_network(p, strict=False)),
    st.tuples(st.integers(2**32, 2**128 - 1), st.integers(96, 128)).map(
        lambda p: ipaddress.ip_network((p[0], p[1]), strict=False)
    ),
).map(str)
every_key = st.one_of(
    st.builds(ResourceKey, st.sampled_from(sorted(set(keys.PLURALS) - keys.NAMESPACED)), names),
    st.builds(ResourceKey, st.sampled_from(sorted(keys.NAMESPACED)), names, names),
    st.builds(BlockKey, cidrs),
    st.builds(BlockAffinityKey, names, cidrs, st.sampled_from(["host", "virtual"])),
    st.builds(HandleKey, names),
    st.just(IPAMConfigKey()),
    st.builds(IPAMHostKey, names),
    st.builds(FelixStatusKey, names, names, st.booleans()),
    st.builds(WorkloadStatusKey, names, parts, parts, parts, names),
    st.builds(HostEndpointStatusKey, names, parts),
)


@given(every_key)
def test_round_trip(key: Key) -> None:
    """Parsing a key's path gives the key."""
    assert keys.parse(keys.path(key)) == key


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (ResourceKey("IPPool", "amber"), "/calico/resources/v3/projectcalico.org/ippools/amber"),
        (ResourceKey("NetworkPolicy", "p", "ns"), "/calico/resources/v3/projectcalico.org/networkpolicies/ns/p"),
        (BlockKey("10.20.0.0/26"), "/calico/ipam/v2/assignment/ipv4/block/10.20.0.0-26"),
        (BlockKey("FD00:10::/122"), "/calico/ipam/v2/assignment/ipv6/block/fd00:10::-122"),
        (BlockKey("10.20.0.5/26"), "/calico/ipam/v2/assignment/ipv4/block/10.20.0.0-26"),
        (BlockAffinityKey("a", "10.0.0.0/26"), "/calico/ipam/v2/host/a/ipv4/block/10.0.0.0-26"),
        (BlockAffinityKey("lb", "10.0.0.0/26", "virtual"), "/calico/ipam/v2/virtual/lb/ipv4/block/10.0.0.0-26"),
        (HandleKey("net.x"), "/calico/ipam/v2/handle/net.x"),
        (
            WorkloadStatusKey("a", "k8s", "default/web-1", "eth0"),
            "/calico/felix/v2/no-region/host/a/workload/k8s/default%2fweb-1/endpoint/eth0",
        ),
    ],
)
def test_paths_are_calicos(key: Key, path: str) -> None:
    """Paths as Calico writes them."""
    assert keys.path(key) == path


@pytest.mark.parametrize(
    "path",
    [
        "/calico/openstack/x",
        "/calico/resources/v3/projectcalico.org/unknowns/x",
        "/calico/resources/v3/projectcalico.org/networkpolicies/no-namespace",
        "/calico/resources/v3/projectcalico.org/ippools/a/b",
        "/calico/ipam/v2/assignment/ipv4/block/fd00::-122",
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-99",
        "/elsewhere",
    ],
)
def test_other_paths_are_nobodys(path: str) -> None:
    """Other owners' keys, and broken ones, are not ours."""
    assert keys.parse(path) is None


@pytest.mark.parametrize(
    "key",
    [ResourceKey("IPPool", "a/b"), ResourceKey("IPPool", "a", "ns"), ResourceKey("NetworkSet", "a"), HandleKey("a/b")],
)
def test_impossible_keys_have_no_path(key: Key) -> None:
    """A slash in a name, or a namespace where none belongs, is refused."""
    with pytest.raises(ValueError, match=r"must be|namespace"):
        keys.path(key)
