"""Blocks, handles and the tables of affinities."""

from __future__ import annotations

import datetime
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from calipy.datastore.ipam import AllocationAttribute, Block, BlockAffinity, Handle
from calipy.ipam import affinity, handle
from calipy.ipam import block as blocks
from calipy.ipam.errors import AddressTakenError, ReleaseConflictError
from tests.support.ipam import NOW

NONE = datetime.timedelta(0)
SECOND = datetime.timedelta(seconds=1)
A = AllocationAttribute(handle_id="a", secondary={"node": "n1"})
B = AllocationAttribute(handle_id="b", secondary={"node": "n1"})


def fresh(cidr: str = "10.0.0.0/30") -> Block:
    return blocks.new_block(cidr, "host:n1", now=NOW, sequence_number=100)


def release(block: Block, *ordinals: int, cooldown: datetime.timedelta = NONE, now: datetime.datetime = NOW) -> Block:
    done = blocks.release(block, dict.fromkeys(ordinals, blocks.Guard()), now=now, cooldown=cooldown)
    assert done.block is not None
    return done.block


def test_new_block() -> None:
    """All free in order, owned, numbered."""
    block = fresh()
    assert block.unallocated == (0, 1, 2, 3)
    assert (block.affinity, block.affinity_claim_time, block.sequence_number) == (
        "host:n1",
        "2026-08-01T09:00:00Z",
        100,
    )
    assert blocks.problems(block, now=NOW) == []
    assert block.empty


def test_i9_longest_free_first() -> None:
    """I9: a /30 wraps around: addresses come back in the order in which they were freed."""
    block, _ = blocks.assign(fresh(), 4, A)
    for ordinal in (2, 0, 3):
        block = release(block, ordinal)
    assert block.unallocated == (2, 0, 3)
    block, first = blocks.assign(block, 1, B)
    block, then = blocks.assign(block, 2, B)
    assert (first, then) == ((2,), (0, 3))


def test_i9_freed_together_in_order_of_address() -> None:
    """I9: what one release frees goes to the tail in ascending order."""
    block, _ = blocks.assign(fresh(), 4, A)
    assert release(block, 3, 1, 0).unallocated == (0, 1, 3)


def test_i9_reserved_ordinals_keep_their_place() -> None:
    """I9: passed over, not moved."""
    block = replace(fresh(), unallocated=(3, 0, 2, 1))
    after, taken = blocks.assign(block, 2, A, reserved={3, 2})
    assert taken == (0, 1)
    assert after.unallocated == (3, 2)
    assert blocks.usable(after, {3, 2}) == 0


def test_sequence_numbers() -> None:
    """Each write adds one; an allocation remembers the number before."""
    block, _ = blocks.assign(fresh(), 1, A)
    block, _ = blocks.assign(block, 2, B)
    assert block.sequence_number == 102
    assert block.sequence_number_for_allocation == {0: 100, 1: 101, 2: 101}
    block = release(block, 1)
    assert block.sequence_number == 103
    assert block.sequence_number_for_allocation == {0: 100, 2: 101}
    assert blocks.rewrite(block).sequence_number == 104


def test_attributes_are_shared_and_dropped() -> None:
    """Same owner and attributes, same entry; the last user takes the entry along and the others move up."""
    block, _ = blocks.assign(fresh(), 1, A)
    block, _ = blocks.assign(block, 1, B)
    block, _ = blocks.assign(block, 1, A)
    assert (block.allocations, len(block.attributes)) == ((0, 1, 0, None), 2)
    block = release(block, 0)
    assert block.allocations == (None, 1, 0, None)
    block = release(block, 2)
    assert (block.allocations, block.attributes) == ((None, 0, None, None), (B,))


def test_no_attributes_and_empty_ones_are_one() -> None:
    """An owner that says nothing shares one entry, however it says nothing."""
    block, _ = blocks.assign(fresh(), 1, AllocationAttribute())
    block, _ = blocks.assign(block, 1, AllocationAttribute(secondary={}))
    assert len(block.attributes) == 1


def test_given_ordinal() -> None:
    """Taken once; the error says by whom."""
    block = blocks.assign_ordinal(
        fresh(), 2, AllocationAttribute(handle_id="x", secondary={"pod": "p", "namespace": "s"})
    )
    assert block.unallocated == (0, 1, 3)
    with pytest.raises(AddressTakenError, match=r"10\.0\.0\.2 .*pod s/p"):
        blocks.assign_ordinal(block, 2, B)


def test_i10_cooldown() -> None:
    """I10: the slot waits without an owner, is not free, not empty, and comes back after its time."""
    block, _ = blocks.assign(fresh(), 2, A)
    cooling = release(block, 1, cooldown=10 * SECOND)
    assert cooling.allocations == (0, 1, None, None)
    assert cooling.attributes[1] == AllocationAttribute(released_at="2026-08-01T09:00:00Z")
    assert cooling.sequence_number_for_allocation == {0: 100, 1: 101}
    again = blocks.release(cooling, {1: blocks.Guard("a", 101)}, now=NOW, cooldown=10 * SECOND)
    assert (again.unallocated, again.freed, again.block) == ((1,), (), cooling)
    assert blocks.collect(cooling, now=NOW + 9 * SECOND, cooldown=10 * SECOND) is cooling
    back = blocks.collect(cooling, now=NOW + 10 * SECOND, cooldown=10 * SECOND)
    assert (back.unallocated, back.attributes, back.sequence_number) == ((2, 3, 1), (A,), cooling.sequence_number)
    last = release(cooling, 0, cooldown=10 * SECOND)
    assert not last.empty


def test_release_time_in_the_future_is_waited_for() -> None:
    """A clock that is ahead keeps the address from everybody until then."""
    block, _ = blocks.assign(fresh(), 1, A)
    cooling = release(block, 0, cooldown=SECOND, now=NOW + 60 * SECOND)
    assert blocks.collect(cooling, now=NOW, cooldown=NONE) is cooling
    assert "future" in blocks.problems(cooling, now=NOW)[0]


def test_i11_guards_are_all_or_none() -> None:
    """I11: one wrong guard, and nothing is released."""
    block, _ = blocks.assign(fresh(), 1, A)
    block, _ = blocks.assign(block, 1, B)
    with pytest.raises(ReleaseConflictError, match="handle b, not a"):
        blocks.release(block, {0: blocks.Guard("a"), 1: blocks.Guard("a")}, now=NOW, cooldown=NONE)
    with pytest.raises(ReleaseConflictError, match="sequence number 101, not 100"):
        blocks.release(block, {1: blocks.Guard("b", 100)}, now=NOW, cooldown=NONE)
    done = blocks.release(block, {1: blocks.Guard("b", 101)}, now=NOW, cooldown=NONE)
    assert (done.freed, done.handles) == ((1,), {"b": 1})
    with pytest.raises(ReleaseConflictError, match="sequence number 0, not 7"):
        blocks.release(block, {0: blocks.Guard("a"), 3: blocks.Guard(None, 7)}, now=NOW, cooldown=NONE)


def test_release_by_handle_counts() -> None:
    """Every address of the handle, and no other."""
    block, _ = blocks.assign(fresh(), 2, A)
    block, _ = blocks.assign(block, 1, B)
    done = blocks.release_handle(block, "a", now=NOW, cooldown=NONE)
    assert (done.freed, done.handles) == ((0, 1), {"a": 2})
    assert done.block is not None
    assert done.block.allocations == (None, None, 0, None)
    assert blocks.release_handle(done.block, "a", now=NOW, cooldown=NONE).block is done.block


def test_ownerless_block_ends_with_its_last_address() -> None:
    """Without an owner an empty block is deleted, with one it stays."""
    block, _ = blocks.assign(fresh(), 1, A)
    assert blocks.release_handle(block, "a", now=NOW, cooldown=NONE).block is not None
    assert blocks.release_handle(blocks.disown(block), "a", now=NOW, cooldown=NONE).block is None


def test_i15_windows_host() -> None:
    """I15: ordinals a Windows host keeps are held from the start, and do not make the block used."""
    block = blocks.new_block("10.0.0.0/29", "host:w", now=NOW, sequence_number=1, reserved=blocks.HostReserved())
    assert block.unallocated == (3, 4, 5, 6)
    assert block.empty
    assert blocks.problems(block, now=NOW) == []
    assert blocks.usable(block) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"allocations": (7, None, None, None), "unallocated": (1, 2, 3)}, "points to attribute 7"),
        ({"attributes": (A,)}, "used by no address"),
        ({"unallocated": (0, 1, 2, 3, 9)}, "outside the block"),
        ({"unallocated": (0, 1, 2, 2, 3)}, "2 times"),
        ({"unallocated": (0, 1, 2)}, "neither free nor allocated"),
        ({"allocations": (0, None, None, None), "attributes": (A,)}, "both free and allocated"),
    ],
)
def test_problems(change: dict[str, object], words: str) -> None:
    """Each broken rule is told in words."""
    assert words in " ".join(blocks.problems(replace(fresh(), **change), now=NOW))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("assign"), st.integers(1, 4), st.sampled_from("abc")),
            st.tuples(st.just("take"), st.integers(0, 7), st.sampled_from("abc")),
            st.tuples(st.just("release"), st.integers(0, 7), st.sampled_from("abc")),
            st.tuples(st.just("release handle"), st.just(0), st.sampled_from("abc")),
            st.tuples(st.just("wait"), st.integers(1, 5), st.just("a")),
        ),
        max_size=30,
    ),
    st.sampled_from([0, 3]),
)
def test_any_use_leaves_a_sound_block(steps: list[tuple[str, int, str]], seconds: int) -> None:
    """Whatever is done to a block, all its rules hold, and numbers only grow."""
    block, now, cooldown = fresh("10.0.0.0/29"), NOW, seconds * SECOND
    for what, number, who in steps:
        block = blocks.collect(block, now=now, cooldown=cooldown)
        before = block
        owner = AllocationAttribute(handle_id=who)
        match what:
            case "assign":
                block, taken = blocks.assign(block, number, owner)
                assert all(before.allocations[ordinal] is None for ordinal in taken)
            case "take" if block.allocations[number] is None:
                block = blocks.assign_ordinal(block, number, owner)
            case "release":
                block = release(block, number, cooldown=cooldown, now=now)
            case "release handle":
                done = blocks.release_handle(block, who, now=now, cooldown=cooldown)
                assert done.block is not None
                block = done.block
                assert all(attribute.handle_id != who for attribute in block.attributes)
            case "wait":
                now += number * SECOND
        assert blocks.problems(block, now=now) == []
        assert block.sequence_number == before.sequence_number + (block != before)
        assert set(block.sequence_number_for_allocation) == {
            ordinal for ordinal, index in enumerate(block.allocations) if index is not None
        }


def test_handles() -> None:
    """Up and down; the last takes the handle along; never below nothing."""
    one = handle.increment(handle.increment(None, "x", 2), "y", 1)
    assert one.blocks == {"x": 2, "y": 1}
    less = handle.decrement(one, {"x": 1})
    assert less is not None
    assert less.blocks == {"x": 1, "y": 1}
    assert handle.decrement(Handle(blocks={"x": 1}), {"x": 1}) is None
    assert handle.decrement(Handle(blocks={"x": 1}), {"x": 5, "z": 1}) is None


def test_tables_are_complete() -> None:
    """Every state meets every relation, in both directions of an affinity's life."""
    states = ("absent", "pending", "confirmed", "pendingDeletion")
    relations = ("missing", "mine", "nobody's", "another's")
    every = set(itertools.product(states, relations))
    assert set(affinity.CLAIM) == every
    assert set(affinity.RELEASE) == every


def test_states_and_relations() -> None:
    """Unknown states are not confirmed; the old spelling of an owner is nobody."""
    assert affinity.state_of(None) == "absent"
    assert affinity.state_of(BlockAffinity(state="odd")) == "pending"
    assert affinity.relation_of(fresh(), "host:n1") == "mine"
    assert affinity.relation_of(fresh(), "virtual:n1") == "another's"
    assert affinity.relation_of(replace(fresh(), affinity=None, legacy_host="n1"), "host:n1") == "nobody's"
