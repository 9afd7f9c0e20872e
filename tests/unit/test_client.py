"""Calico's client behaviour on a store in memory: guards, metadata, protected objects, cascades."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.keys import ResourceKey, path
from calipy.datastore.memory import MemoryStore
from calipy.datastore.resources import (
    GlobalNetworkPolicySpec,
    GlobalNetworkSetSpec,
    HostEndpointSpec,
    IPPoolSpec,
    NodeBGPSpec,
    NodeSpec,
    TierSpec,
    WorkloadEndpointSpec,
)
from calipy.errors import AlreadyExistsError, ConflictError, InvalidInputError, NotFoundError


class Addresses:
    """Records what the cascades ask of IPAM."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def release_ips(self, addresses: Sequence[str]) -> object:
        self.calls.append(("release", list(addresses)))
        return None

    async def release_pool_affinities(self, cidr: str) -> None:
        self.calls.append(("pool", cidr))

    async def remove_host(self, host: str) -> None:
        self.calls.append(("host", host))


@pytest.fixture
def addresses() -> Addresses:
    return Addresses()


@pytest.fixture
async def client(addresses: Addresses) -> Client:
    client = Client(MemoryStore(), addresses=addresses, settle=0)
    await client.ensure_initialised()
    return client


def network_set(*nets: str, **metadata: Any) -> Any:
    return codec.new("GlobalNetworkSet", "one", GlobalNetworkSetSpec(nets=nets), **metadata)


async def test_create_fills_metadata_and_is_guarded(client: Client) -> None:
    """A new object gets uid, time and revision; a second one is refused."""
    created = await client.create(network_set("10.0.0.0/8"))
    assert created.metadata.uid
    assert created.metadata.creation_timestamp
    assert await client.get("GlobalNetworkSet", "one") == created
    with pytest.raises(AlreadyExistsError):
        await client.create(network_set())


async def test_update_is_compare_and_swap(client: Client) -> None:
    """Only the present revision can be updated; uid and creation time stay."""
    first = await client.create(network_set("10.0.0.0/8"))
    second = await client.update(replace(first, spec=GlobalNetworkSetSpec(nets=("10.1.0.0/16",))))
    assert second.revision > first.revision
    assert second.metadata == first.metadata
    with pytest.raises(ConflictError):
        await client.update(first)
    with pytest.raises(InvalidInputError, match="resourceVersion"):
        await client.update(replace(second, revision=0))


async def test_apply_keeps_what_belongs_to_the_object(client: Client) -> None:
    """Applying replaces spec, labels and annotations and keeps the rest of the metadata."""
    first = await client.apply(network_set("10.0.0.0/8", labels={"a": "b"}))
    second = await client.apply(network_set("10.0.0.0/8", labels={"c": "d"}))
    assert second.metadata.uid == first.metadata.uid
    assert second.metadata.labels == {"c": "d"}


async def test_list_tells_what_it_leaves_out(client: Client) -> None:
    """An object that does not decode is a problem, not an item."""
    await client.create(network_set())
    await client.store.put(path(ResourceKey("GlobalNetworkSet", "two")), b"{")
    listed = await client.list("GlobalNetworkSet")
    assert [one.name for one in listed] == ["one"]
    assert [problem.key for problem in listed.problems] == [path(ResourceKey("GlobalNetworkSet", "two"))]


async def test_unknown_members_survive_an_update(client: Client) -> None:
    """A read-modify-write keeps what a newer release has stored."""
    stored = await client.create(network_set("10.0.0.0/8"))
    key = path(stored.key)
    document = json.loads(codec.encode(stored))
    document["spec"]["future"] = {"a": 1}
    await client.store.put(key, json.dumps(document).encode())
    read = await client.get("GlobalNetworkSet", "one")
    assert read is not None
    await client.update(replace(read, spec=replace(read.spec, nets=("10.2.0.0/16",))))
    found = await client.store.get(key)
    assert found is not None
    assert json.loads(found.value)["spec"] == {"nets": ["10.2.0.0/16"], "future": {"a": 1}}


async def test_initialising_twice_writes_nothing(client: Client) -> None:
    """Whatever is there is left alone."""
    before = (await client.store.list("/calico/")).revision
    await client.ensure_initialised()
    assert (await client.store.list("/calico/")).revision == before


async def test_default_allow_profile_is_not_stored(client: Client) -> None:
    """It is listed and read, and cannot be written or deleted."""
    listed = await client.list("Profile")
    assert [one.name for one in listed] == ["projectcalico-default-allow"]
    with pytest.raises(AlreadyExistsError):
        await client.create(codec.new("Profile", "projectcalico-default-allow"))
    with pytest.raises(InvalidInputError, match="built in"):
        await client.delete("Profile", "projectcalico-default-allow")


async def test_tiers_outlive_their_policies(client: Client) -> None:
    """A policy needs its tier, a tier with policies stays, a built-in one always."""
    policy = codec.new("GlobalNetworkPolicy", "t.p", GlobalNetworkPolicySpec(tier="t"))
    with pytest.raises(NotFoundError, match="tier 't'"):
        await client.create(policy)
    await client.create(codec.new("Tier", "t", TierSpec(order=5)))
    await client.create(policy)
    with pytest.raises(InvalidInputError, match="still holds"):
        await client.delete("Tier", "t")
    await client.delete("GlobalNetworkPolicy", "t.p")
    await client.delete("Tier", "t")
    with pytest.raises(InvalidInputError, match="built in"):
        await client.delete("Tier", "default")


async def test_the_tier_of_a_policy_must_exist_when_it_is_applied(client: Client) -> None:
    """Applying asks what creating asks; an update does not, as with Calico."""
    policy = await client.create(codec.new("GlobalNetworkPolicy", "one", GlobalNetworkPolicySpec()))
    moved = codec.new("GlobalNetworkPolicy", "one", GlobalNetworkPolicySpec(tier="nowhere"))
    with pytest.raises(NotFoundError, match="nowhere"):
        await client.apply(moved)
    assert (await client.update(replace(policy, spec=moved.spec))).spec.tier == "nowhere"


async def test_pools_do_not_overlap_and_keep_their_shape(client: Client) -> None:
    """Overlap is refused, also with a disabled pool; CIDR and block size cannot change."""
    pool = await client.create(codec.new("IPPool", "one", IPPoolSpec(cidr="10.20.0.0/16", disabled=True)))
    with pytest.raises(InvalidInputError, match="overlaps IPPool"):
        await client.create(codec.new("IPPool", "two", IPPoolSpec(cidr="10.20.4.0/24")))
    for change in ({"cidr": "10.21.0.0/16"}, {"block_size": 27}):
        with pytest.raises(InvalidInputError, match="cannot be changed"):
            await client.update(replace(pool, spec=replace(pool.spec, **change)))


async def test_deleting_a_pool_disables_it_first(client: Client, addresses: Addresses) -> None:
    """The order is: disable, give up the blocks, delete."""
    await client.create(codec.new("IPPool", "one", IPPoolSpec(cidr="10.20.0.0/16")))
    revision = (await client.store.list("/calico/")).revision
    await client.delete("IPPool", "one")
    assert addresses.calls == [("pool", "10.20.0.0/16")]
    assert (await client.store.list("/calico/")).revision == revision + 2


async def test_deleting_a_node_takes_what_belongs_to_it(client: Client, addresses: Addresses) -> None:
    """Endpoints, addresses, claims, peers and settings of the node go; others stay."""
    bgp = NodeBGPSpec(ipv4_address="10.0.0.1/24", ipv4_ipip_tunnel_addr="10.20.0.9")
    await client.create(codec.new("Node", "a", NodeSpec(bgp=bgp)))
    await client.create(codec.new("Node", "b"))
    for node in ("a", "b"):
        spec = WorkloadEndpointSpec(
            orchestrator="k8s",
            node=node,
            pod="p",
            endpoint="eth0",
            interface_name="cali1",
            ip_networks=("10.20.0.5/32",),
        )
        await client.create(codec.new("WorkloadEndpoint", "", spec, namespace="ns"))
        await client.create(codec.new("HostEndpoint", f"h{node}", HostEndpointSpec(node=node, interface_name="eth0")))
        await client.create(codec.new("FelixConfiguration", f"node.{node}"))
    await client.delete("Node", "a")
    assert addresses.calls == [("release", ["10.20.0.5", "10.20.0.9"]), ("host", "a")]
    for kind in ("WorkloadEndpoint", "HostEndpoint", "FelixConfiguration", "Node"):
        assert len(await client.list(kind)) == 1


async def test_what_belongs_to_a_node_goes_without_the_node(client: Client, addresses: Addresses) -> None:
    """Deleting a node that is not there takes what was left of it, and says that it was not there."""
    await client.create(codec.new("HostEndpoint", "h", HostEndpointSpec(node="a", interface_name="eth0")))
    with pytest.raises(NotFoundError):
        await client.delete("Node", "a")
    assert await client.get("HostEndpoint", "h") is None
    assert ("host", "a") in addresses.calls


async def test_without_ipam_a_claimed_pool_stays() -> None:
    """Nobody can give up the blocks, so deleting fails closed."""
    client = Client(MemoryStore(), settle=0)
    await client.create(codec.new("IPPool", "one", IPPoolSpec(cidr="10.20.0.0/16")))
    await client.store.put("/calico/ipam/v2/host/a/ipv4/block/10.20.0.0-26", b'{"state":"confirmed"}')
    with pytest.raises(InvalidInputError, match="claim"):
        await client.delete("IPPool", "one")
    assert await client.get("IPPool", "one") is not None


@pytest.mark.parametrize("namespace", ["a/b", ""])
async def test_a_namespace_is_one_part_of_a_key(client: Client, namespace: str) -> None:
    """A slash, or no namespace where one is needed, is refused before anything is read or written."""
    with pytest.raises(InvalidInputError, match=r"metadata\.namespace"):
        await client.create(codec.new("NetworkSet", "s", namespace=namespace))
    with pytest.raises(InvalidInputError, match=r"metadata\.namespace"):
        await client.get("NetworkSet", "s", namespace)


async def test_endpoint_names_follow_from_the_spec(client: Client) -> None:
    """A name may be left out, must agree, and the labels that policies rely on are set."""
    spec = WorkloadEndpointSpec(orchestrator="k8s", node="n-1", pod="web-1", endpoint="eth0", interface_name="cali1")
    created = await client.create(codec.new("WorkloadEndpoint", "", spec, namespace="shop"))
    assert created.name == "n--1-k8s-web--1-eth0"
    assert created.metadata.labels == {"projectcalico.org/namespace": "shop", "projectcalico.org/orchestrator": "k8s"}
    with pytest.raises(InvalidInputError, match="does not agree"):
        await client.create(codec.new("WorkloadEndpoint", "other", spec, namespace="shop"))
