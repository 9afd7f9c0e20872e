"""Which pool, and which block of it."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.ipam import block as blocks
from calipy.ipam import pools as poolmath
from calipy.ipam.errors import NoPoolError
from calipy.ipam.pools import Pool, Reservations
from tests.support.ipam import NOW
from tests.support.objects import make


def pool(cidr: str = "10.0.0.0/24", size: int = 26, name: str = "p", **fields: object) -> Pool:
    return Pool(name=name, network=ipaddress.ip_network(cidr), block_size=size, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cidr", "size"), [("10.0.0.0/24", 26), ("10.0.0.0/24", 32), ("10.0.0.0/26", 26), ("fd00::/116", 122)]
)
def test_i20_each_block_once(cidr: str, size: int) -> None:
    """I20: from the start index on and around, each block exactly once."""
    one = pool(cidr, size)
    for start in {0, 1, one.block_count - 1}:
        found = list(poolmath.candidates(one, start))
        assert len(found) == len(set(found)) == one.block_count
        assert found[0] == one.block_at(start % one.block_count)
        assert {str(n) for n in one.network.subnets(new_prefix=size)} == set(found)


def test_i20_same_host_same_start() -> None:
    """I20: a host always begins at one place; hosts spread over the pool; single addresses go by the clock."""
    starts = {
        f"node{n}": poolmath.start_index(f"node{n}", 1024, single_addresses=False, nanoseconds=0) for n in range(200)
    }
    assert starts["node7"] == poolmath.start_index("node7", 1024, single_addresses=False, nanoseconds=99)
    assert len(set(starts.values())) > 150
    near = sum(1 for n in range(199) if abs(starts[f"node{n}"] - starts[f"node{n + 1}"]) < 16)
    assert near < 20, "hosts of similar names begin side by side and get in each other's way"
    clock = {poolmath.start_index("n", 1024, single_addresses=True, nanoseconds=t) for t in range(200)}
    assert len(clock) > 150


def test_fnv1() -> None:
    """Published vectors of FNV-1, 32 bits."""
    assert poolmath.fnv1(b"") == 0x811C9DC5
    assert poolmath.fnv1(b"a") == 0x050C5D7E
    assert poolmath.fnv1(b"foobar") == 0x31F0B262


def test_vast_ipv6_pools() -> None:
    """A /48 has 2^74 blocks of /122: nothing is materialised."""
    vast = pool("fd00::/48", 122)
    assert vast.block_count == 2**74
    start = poolmath.start_index("n1", vast.block_count, single_addresses=False, nanoseconds=0)
    assert len(list(itertools.islice(poolmath.candidates(vast, start), 3))) == 3
    assert vast.block_at(2**74 - 1) == "fd00::ffff:ffff:ffff:ffff:ffc0/122"
    assert vast.block_of(ipaddress.ip_address("fd00::1:2:3")) == "fd00::1:2:0/122"


def test_pool_smaller_than_a_block_has_none() -> None:
    """Such a pool can exist if it is disabled."""
    assert list(poolmath.candidates(pool("10.0.0.0/28", 26), 0)) == []


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=6))
def test_reservations_are_a_union(entries: list[tuple[int, int]]) -> None:
    """Overlapping reservations count once; a block is covered when they cover it together."""
    networks = [ipaddress.ip_network((f"10.0.0.{last}", length), strict=False) for last, length in entries]
    reserved = Reservations((network, "r") for network in networks)
    whole = ipaddress.ip_network("10.0.0.0/24")
    expected = {int(a) & 255 for network in networks for a in network}
    assert reserved.ordinals(whole) == expected
    assert reserved.count(whole) == len(expected)
    assert reserved.cover(whole) == (len(expected) == 256)
    assert reserved.names(whole) == (["r"] if entries else [])


@pytest.mark.parametrize("family", [4, 6])
def test_i5_order_and_reasons(family: int) -> None:
    """I5: pools of the family in order of name; when none is left the error says of each why."""
    cidrs = {4: [f"10.{n}.0.0/16" for n in range(5)], 6: [f"fd0{n}::/64" for n in range(5)]}[family]
    size = {4: 26, 6: 122}[family]
    off = pool(cidrs[0], size, "off", unusable="is disabled")
    far = pool(cidrs[1], size, "far", node_selector="rack == 'r9'")
    manual = pool(cidrs[2], size, "manual", automatic=False)
    space = pool(cidrs[3], size, "space", namespace_selector="has(x)")
    every = [space, manual, off, far]
    with pytest.raises(NoPoolError) as caught:
        poolmath.select(every, node="n1", family=family, use="Workload", node_labels={}, namespace_labels={})  # type: ignore[arg-type]
    for words in ("is disabled", "does not select the node", "only when named", "does not select namespace"):
        assert words in str(caught.value)
    good = [pool(cidrs[4], size, "z"), *every]
    chosen = poolmath.select(
        good,
        node="n1",
        family=family,
        use="Workload",
        node_labels={"rack": "r9"},
        namespace_labels={"x": ""},  # type: ignore[arg-type]
    )
    assert [p.name for p in chosen] == ["far", "space", "z"]


def test_small_blocks_are_of_no_use_to_a_windows_host() -> None:
    """Blocks that the host's own ordinals would fill are left out."""
    small = pool("10.0.0.0/24", 30)
    with pytest.raises(NoPoolError, match="too small"):
        poolmath.select(
            [small], node="w", family=4, use="Workload", node_labels={}, namespace_labels={}, reserved_per_block=4
        )


def test_pool_of_a_resource() -> None:
    """Defaults are filled in; a condition, a deletion or the flag takes the pool out of use."""
    plain = poolmath.pool_of(make("IPPool", "p", {"cidr": "10.0.0.0/16"})[1])
    assert (plain.block_size, plain.allowed_uses, plain.automatic, plain.unusable) == (
        26,
        ("Workload", "Tunnel"),
        True,
        "",
    )
    assert poolmath.pool_of(make("IPPool", "p", {"cidr": "fd00::/64"})[1]).block_size == 122
    assert poolmath.pool_of(make("IPPool", "p", {"cidr": "10.0.0.0/16", "disabled": True})[1]).unusable == "is disabled"
    gone = make("IPPool", "p", {"cidr": "10.0.0.0/16"}, deletionTimestamp="2026-08-01T09:00:00Z")[1]
    assert poolmath.pool_of(gone).unusable == "is being deleted"


def test_enclosing() -> None:
    """A pool holds an address or a block of its family that is not larger than itself."""
    pools = [pool("10.0.0.0/24"), pool("fd00::/64", 122)]
    assert poolmath.enclosing(pools, ipaddress.ip_address("10.0.0.9")) is pools[0]
    assert poolmath.enclosing(pools, ipaddress.ip_network("fd00::40/122")) is pools[1]
    assert poolmath.enclosing(pools, ipaddress.ip_network("10.0.0.0/16")) is None
    assert poolmath.enclosing(pools, ipaddress.ip_address("::ffff:10.0.0.9")) is None


def test_reclaimable() -> None:
    """Another's empty block, a minute after it was claimed; never one's own, nobody's, or one in use."""
    block = blocks.new_block("10.0.0.0/30", "host:n1", now=NOW, sequence_number=1)
    assert poolmath.reclaimable(block, "host:n2", age_seconds=60)
    assert poolmath.reclaimable(block, "host:n2", age_seconds=None)
    assert not poolmath.reclaimable(block, "host:n2", age_seconds=59.9)
    assert not poolmath.reclaimable(block, "host:n1", age_seconds=600)
    assert not poolmath.reclaimable(blocks.disown(block), "host:n2", age_seconds=600)
