"""The life of a block affinity, as tables. Pure.

A claim goes affinity ``pending`` → block → affinity ``confirmed``; a release ``pendingDeletion`` → block → affinity
gone. Calico writes these one by one; calipy joins them in one transaction, but finds what others left half done. The
tables say what to do with every combination of an affinity and its block.

Source: libcalico-go/lib/ipam/ipam_block_reader_writer.go.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from calipy.datastore.ipam import Block, BlockAffinity

State: TypeAlias = Literal["absent", "pending", "confirmed", "pendingDeletion"]
Relation: TypeAlias = Literal["missing", "mine", "nobody's", "another's"]

Claim: TypeAlias = Literal["use", "adopt", "create", "conflict", "stale"]
"""What a claimer does: use the block as it is; rewrite the block (which fences off a releaser that read it earlier) and
confirm; create the block and confirm; give up, nothing being written yet; give up and delete the own affinity."""

Release: TypeAlias = Literal["nothing", "forget", "release", "conflict"]
"""What a releaser does: nothing; delete the affinity only; delete or disown the block and delete the affinity; delete
the stale affinity and report that the block belongs to somebody else."""

CLAIM: Final[dict[tuple[State, Relation], Claim]] = {
    ("absent", "missing"): "create",
    ("absent", "mine"): "adopt",
    ("absent", "nobody's"): "conflict",
    ("absent", "another's"): "conflict",
    ("pending", "missing"): "create",
    ("pending", "mine"): "adopt",
    ("pending", "nobody's"): "stale",
    ("pending", "another's"): "stale",
    ("confirmed", "missing"): "create",
    ("confirmed", "mine"): "use",
    ("confirmed", "nobody's"): "stale",
    ("confirmed", "another's"): "stale",
    ("pendingDeletion", "missing"): "create",
    ("pendingDeletion", "mine"): "adopt",
    ("pendingDeletion", "nobody's"): "stale",
    ("pendingDeletion", "another's"): "stale",
}

RELEASE: Final[dict[tuple[State, Relation], Release]] = {
    ("absent", "missing"): "nothing",
    ("absent", "mine"): "nothing",
    ("absent", "nobody's"): "nothing",
    ("absent", "another's"): "nothing",
    ("pending", "missing"): "forget",
    ("pending", "mine"): "release",
    ("pending", "nobody's"): "release",
    ("pending", "another's"): "conflict",
    ("confirmed", "missing"): "forget",
    ("confirmed", "mine"): "release",
    ("confirmed", "nobody's"): "release",
    ("confirmed", "another's"): "conflict",
    ("pendingDeletion", "missing"): "forget",
    ("pendingDeletion", "mine"): "release",
    ("pendingDeletion", "nobody's"): "release",
    ("pendingDeletion", "another's"): "conflict",
}


def state_of(affinity: BlockAffinity | None) -> State:
    """Where an affinity is in its life; a state nobody knows counts as pending: not usable, and finished by a claim."""
    if affinity is None:
        return "absent"
    match affinity.state:
        case "confirmed" | "pendingDeletion":
            return affinity.state
        case _:
            return "pending"


def relation_of(block: Block | None, owner: str) -> Relation:
    """Whose a block is, seen from ``owner`` (as in ``Block.affinity``).

    The old spelling ``hostAffinity`` counts as nobody's here, as it does for Calico: such a block is only borrowed from
    until it is empty.
    """
    if block is None:
        return "missing"
    if block.affinity is None:
        return "nobody's"
    return "mine" if block.affinity == owner else "another's"
