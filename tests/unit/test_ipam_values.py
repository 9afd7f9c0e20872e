"""JSON of blocks, affinities, handles and settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from calipy.datastore import ipam
from calipy.datastore.ipam import AllocationAttribute, BlockAffinity, Handle, IPAMConfig
from calipy.errors import UndecodableError

BLOCK: dict[str, Any] = {
    "cidr": "10.20.0.4/30",
    "affinity": "host:alpha",
    "affinity_claim_time": "2026-08-01T09:00:00Z",
    "allocations": [None, 0, None, 1],
    "unallocated": [2, 0],
    "attributes": [
        {"handle_id": "net.3d2f9a", "secondary": {"node": "alpha", "pod": "web-1"}},
        {"releasedAt": "2026-08-01T09:00:00Z"},
    ],
    "sequenceNumber": 1785574800000000007,
    "sequenceNumberForAllocation": {"1": 1785574800000000003, "3": 18446744073709551615},
    "deleted": False,
}


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_block_comes_back_as_it_was() -> None:
    """Numbers beyond 2^53, order of the free list, and fields of newer releases survive."""
    document = {**BLOCK, "newer": {"a": [1]}}
    document["attributes"] = [{**BLOCK["attributes"][0], "alternateOwnerAttrs": {"x": "y"}, "more": 1}, {}]
    assert json.loads(ipam.encode_block(ipam.decode_block(text(document)))) == document


@pytest.mark.parametrize("name", ["attributes", "sequenceNumberForAllocation"])
def test_null_and_empty_are_kept_apart(name: str) -> None:
    """Go's nil comes as null; it is read as empty and written as it was."""
    for value in (None, [] if name == "attributes" else {}):
        document = {
            **BLOCK,
            "allocations": [None] * 4,
            "attributes": [],
            "sequenceNumberForAllocation": {},
            name: value,
        }
        block = ipam.decode_block(text(document))
        assert block.attributes == ()
        assert json.loads(ipam.encode_block(block)) == document


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"affinity": None},
        {"hostAffinity": "alpha", "affinity": None},
        {"attributes": [{"handle_id": None, "secondary": None, "alternateOwnerAttrs": {"x": "y"}}, {"secondary": {}}]},
        {"sequenceNumberForAllocation": {}},
        {"unallocated": None},
        {"attributes": None},
        {"newer": 1},
        {"extra": {"cidr": "10.0.0.0/30"}},
        {"nulls": ["attributes"]},
        {"deleted": None},
        {"sequenceNumber": -1},
        {"allocations": [None, 0.0, None, 1]},
    ],
)
def test_quick_decoder_decides_like_the_thorough_one(change: dict[str, Any]) -> None:
    """What the quick decoder takes the thorough one reads alike, and what is refused is refused by both."""
    value = text({**BLOCK, **change})
    quick = ipam._ordinary_block(value)
    try:
        thorough = ipam._any_block(value, "")
    except UndecodableError:
        assert quick is None
    else:
        assert quick is None or quick == thorough


def test_ownerless_block_has_a_null_affinity() -> None:
    """The key is there, without a claim time."""
    block = replace(ipam.decode_block(text(BLOCK)), affinity=None, affinity_claim_time=None)
    document = json.loads(ipam.encode_block(block))
    assert document["affinity"] is None
    assert "affinity_claim_time" not in document


def test_old_owner_is_read_and_written_in_the_new_way() -> None:
    """``hostAffinity`` names the host; a rewrite uses ``affinity``."""
    document = {**BLOCK, "hostAffinity": "beta"}
    del document["affinity"]
    block = ipam.decode_block(text(document))
    assert block.host() == "beta"
    written = json.loads(ipam.encode_block(block))
    assert written["affinity"] == "host:beta"
    assert "hostAffinity" not in written


@pytest.mark.parametrize(("affinity", "host"), [("host:a", "a"), ("virtual:load-balancer", None), (None, None)])
def test_host(affinity: str | None, host: str | None) -> None:
    """Only nodes are hosts."""
    assert ipam.decode_block(text({**BLOCK, "affinity": affinity})).host() == host


def test_assignments_leave_out_what_cools() -> None:
    """Addresses in use, with their owners, in order."""
    block = ipam.decode_block(text(BLOCK))
    assert [(str(a), x.handle_id, x.node) for a, x in block.assignments()] == [("10.20.0.5", "net.3d2f9a", "alpha")]
    assert not block.empty


def test_address_and_ordinal() -> None:
    """They are each other's inverse; an address outside is refused."""
    block = ipam.decode_block(text(BLOCK))
    assert [block.ordinal(block.address(n)) for n in range(block.size)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="not in block"):
        block.ordinal(ipam.decode_block(text({**BLOCK, "cidr": "10.20.0.0/30"})).address(0))


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({**BLOCK, "allocations": [None]}, "allocations"),
        ({**BLOCK, "allocations": [None, "x", None, None]}, "allocations"),
        ({**BLOCK, "sequenceNumber": 1.5}, "sequenceNumber"),
        ({**BLOCK, "sequenceNumber": -1}, "sequenceNumber"),
        ({**BLOCK, "cidr": "10.20.0.5/30"}, "cidr"),
        ({**BLOCK, "cidr": "10.0.0.0/8"}, "cidr"),
        ({**BLOCK, "attributes": [{"handle_id": 1}]}, "handle_id"),
        ([], ""),
    ],
)
def test_what_is_no_block(document: Any, field: str) -> None:
    """The error names the key and the field."""
    with pytest.raises(UndecodableError) as caught:
        ipam.decode_block(text(document), key="/calico/x")
    assert "/calico/x" in str(caught.value)
    assert field in str(caught.value)


def test_block_under_another_blocks_key() -> None:
    """Its addresses would be somebody else's: it is refused; an unmasked key is the same block."""
    with pytest.raises(UndecodableError, match="not the block"):
        ipam.decode_block(text(BLOCK), key="/calico/ipam/v2/assignment/ipv4/block/10.20.0.8-30")
    assert (
        ipam.decode_block(text(BLOCK), key="/calico/ipam/v2/assignment/ipv4/block/10.20.0.5-30").cidr == BLOCK["cidr"]
    )


def test_affinities() -> None:
    """An empty value or state is a confirmed claim of an old release."""
    assert ipam.decode_affinity(b"").state == "confirmed"
    assert ipam.decode_affinity(b'{"state":""}').state == "confirmed"
    assert ipam.decode_affinity(b'{"state":"pendingDeletion","deleted":false,"x":1}').extra == {"x": 1}
    assert json.loads(ipam.encode_affinity(BlockAffinity(state="pending"))) == {"state": "pending", "deleted": False}
    with pytest.raises(UndecodableError):
        ipam.decode_affinity(b"nonsense")


def test_handles() -> None:
    """The map is never null."""
    assert ipam.decode_handle(b'{"block":null}') == Handle()
    assert json.loads(ipam.encode_handle(Handle())) == {"block": {}, "deleted": False}
    document = {"block": {"10.0.0.0/26": 2}, "deleted": False, "more": True}
    assert json.loads(ipam.encode_handle(ipam.decode_handle(text(document)))) == document


def test_settings() -> None:
    """Absent means off in a stored value, and on (for automatic blocks) in a store without one."""
    assert IPAMConfig().auto_allocate_blocks
    assert not ipam.decode_config(b"{}").auto_allocate_blocks
    assert json.loads(ipam.encode_config(IPAMConfig())) == {"auto_allocate_blocks": True}
    document = {"strict_affinity": True, "maxBlocksPerHost": 3, "ipCooldownSeconds": 5, "other": "x"}
    assert json.loads(ipam.encode_config(ipam.decode_config(text(document)))) == document


def test_equal_owners_compare_equal() -> None:
    """Attribute entries are shared by equality."""
    assert AllocationAttribute(handle_id="a", secondary={"x": "y"}) == AllocationAttribute(
        handle_id="a", secondary={"x": "y"}
    )
