"""Taking addresses back, and giving blocks up.

A release writes the block and lowers the handle in one transaction. A release that is decided from watched state
guards every block it looked at, also those it leaves alone: "nothing of this handle is in there" has to be true, too.

Source: libcalico-go/lib/ipam/ipam.go (ReleaseIPs, ReleaseByHandle, releaseBlockAffinity).
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from calipy.datastore.ipam import Block, Handle, network_of
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, IPAMConfigKey, Key, ResourceKey
from calipy.ipam import affinity, handle
from calipy.ipam import block as blocks
from calipy.ipam import pools as poolmath
from calipy.ipam.errors import BlockNotEmptyError, ClaimConflictError, HandleNotFoundError, IPAMError
from calipy.ipam.request import ReleaseRequest, ReleaseResult
from calipy.ipam.session import Attempts, Session
from calipy.net import Family, IPAddress

_CHUNK = 40
"""Blocks, or handles, that one transaction changes at most: etcd takes 128 operations."""

_CHUNK_ADDRESSES = 8192
"""Addresses of all blocks of one transaction at most."""


async def release_handle(session: Session, handle_id: str) -> list[str]:
    """Release every address of a handle; those released, in order of block and address.

    Raises:
        HandleNotFoundError: nobody has addresses under it.
    """
    key = HandleKey(handle_id)
    await session.need(key, IPAMConfigKey())
    found: Handle | None = session.known(key).value
    if found is None:
        raise HandleNotFoundError(handle_id)
    released: list[str] = []
    emptied: list[str] = []
    for chunk in _chunks(handle.blocks_of(found)):
        released += await _release_handle_from(session, key, chunk, emptied)
    await _keep_affinities_consistent(session, emptied)
    return released


def _chunks(cidrs: Sequence[str]) -> Iterator[list[str]]:
    """What fits into one transaction, by number and by size: etcd takes 1.5 MB."""
    chunk: list[str] = []
    addresses = 0
    for cidr in cidrs:
        size = network_of(cidr).num_addresses
        if chunk and (len(chunk) == _CHUNK or addresses + size > _CHUNK_ADDRESSES):
            yield chunk
            chunk, addresses = [], 0
        chunk.append(cidr)
        addresses += size
    if chunk:
        yield chunk


async def _release_handle_from(session: Session, key: HandleKey, cidrs: Sequence[str], emptied: list[str]) -> list[str]:
    attempts = Attempts(f"releasing handle {key.handle_id}")
    while True:
        await session.need(key, *(BlockKey(cidr) for cidr in cidrs))
        now = session.environment.now()
        changes: dict[Key, Any] = {}
        counts: dict[str, int] = {}
        addresses: list[str] = []
        for cidr in cidrs:
            block: Block | None = session.known(BlockKey(cidr)).value
            if block is None:
                continue
            outcome = blocks.release_handle(
                blocks.collect(block, now=now, cooldown=session.cooldown),
                key.handle_id,
                now=now,
                cooldown=session.cooldown,
            )
            if outcome.freed:
                changes[BlockKey(cidr)] = outcome.block
                counts[cidr] = len(outcome.freed)
                addresses += [str(block.address(ordinal)) for ordinal in outcome.freed]
        changes |= _lower(session, {key: counts})
        # Without a change there is still something to find out: whether the blocks looked at are the present ones.
        if await session.commit(changes, guards=[key, *(BlockKey(cidr) for cidr in cidrs)]):
            emptied += _emptied(changes)
            return addresses
        await attempts.lost()


def _lower(session: Session, counts: Mapping[HandleKey, Mapping[str, int]]) -> dict[Key, Any]:
    changes: dict[Key, Any] = {}
    for key, less in counts.items():
        known: Handle | None = session.known(key).value
        if known is not None and less:
            changes[key] = handle.decrement(known, less)
    return changes


def _emptied(changes: Mapping[Key, Any]) -> list[str]:
    return [value.cidr for value in changes.values() if isinstance(value, Block) and value.empty]


async def release_addresses(session: Session, requests: Sequence[ReleaseRequest]) -> ReleaseResult:
    """Release addresses, block by block, each block all or none.

    Raises:
        ReleaseConflictError: a guard did not hold in one of the blocks; the others were still worked on.
    """
    wanted: dict[ReleaseRequest, IPAddress] = {request: ipaddress.ip_address(request.address) for request in requests}
    await session.need(IPAMConfigKey())
    places = await _blocks_of(session, wanted.values())
    by_block: dict[str, list[ReleaseRequest]] = defaultdict(list)
    unallocated: list[str] = []
    for request, address in wanted.items():
        cidr = places.get(address)
        if cidr is None:
            unallocated.append(request.address)
        else:
            by_block[cidr].append(request)
    failed: set[str] = set()
    error: IPAMError | None = None
    emptied: list[str] = []
    for cidr, mine in by_block.items():
        try:
            unallocated += await _release_from(session, cidr, mine, emptied)
        except IPAMError as conflict:
            failed.add(cidr)
            error = error or conflict
    await _keep_affinities_consistent(session, emptied)
    if error is not None:
        raise error
    return ReleaseResult(tuple(r for r in requests if wanted[r] in places), tuple(dict.fromkeys(unallocated)))


async def _blocks_of(session: Session, addresses: Collection[IPAddress]) -> dict[IPAddress, str]:
    """The block that each address would be in: by its pool, or else by looking through all blocks."""
    await session.need_pools()
    expected = {
        address: pool.block_of(address)
        for address in addresses
        if (pool := poolmath.enclosing(session.view.pools, address)) is not None
    }
    await session.need(*(BlockKey(cidr) for cidr in expected.values()))
    places: dict[IPAddress, str] = {}
    for address in addresses:
        cidr = expected.get(address)
        if cidr is not None and session.known(BlockKey(cidr)).revision:
            places[address] = cidr
            continue
        family: Family = 4 if address.version == 4 else 6
        await session.need_blocks(family)
        found = [c for c, b in session.view.blocks(family).items() if b is not None and address in b.network]
        if found or cidr is not None:
            places[address] = found[0] if found else str(cidr)
    return places


async def find_block(session: Session, address: IPAddress) -> Block | None:
    """The block that an address is in, or None."""
    places = await _blocks_of(session, [address])
    block: Block | None = session.known(BlockKey(places[address])).value if address in places else None
    return block


async def _release_from(
    session: Session, cidr: str, requests: Sequence[ReleaseRequest], emptied: list[str]
) -> list[str]:
    """Release from one block; the addresses that nobody held."""
    attempts = Attempts(f"releasing {', '.join(request.address for request in requests)}")
    while True:
        await session.need(BlockKey(cidr))
        block: Block | None = session.known(BlockKey(cidr)).value
        if block is None:
            return [request.address for request in requests]
        now = session.environment.now()
        guards = {
            block.ordinal(ipaddress.ip_address(request.address)): blocks.Guard(
                request.handle_id, request.sequence_number
            )
            for request in requests
        }
        outcome = blocks.release(
            blocks.collect(block, now=now, cooldown=session.cooldown), guards, now=now, cooldown=session.cooldown
        )
        free = [str(block.address(ordinal)) for ordinal in outcome.unallocated]
        if not outcome.freed:
            return free
        keys = [HandleKey(handle_id) for handle_id in outcome.handles]
        await session.need(*keys)
        # Handles that do not fit into the transaction are lowered later: until then they count too much.
        first, later = keys[:_CHUNK], keys[_CHUNK:]
        counts = {key: {cidr: outcome.handles[key.handle_id]} for key in keys}
        changes: dict[Key, Any] = {
            BlockKey(cidr): outcome.block,
            **_lower(session, {key: counts[key] for key in first}),
        }
        if await session.commit(changes):
            for key in later:
                await _lower_alone(session, key, counts[key])
            emptied += _emptied(changes)
            return free
        await attempts.lost()


async def _lower_alone(session: Session, key: HandleKey, counts: Mapping[str, int]) -> None:
    attempts = Attempts(f"lowering handle {key.handle_id}")
    while changes := _lower(session, {key: counts}):
        if await session.commit(changes):
            return
        await attempts.lost()


async def free_cooled(session: Session) -> int:
    """Put addresses that have cooled down back into the free lists of blocks that nobody writes; how many blocks."""
    await session.need(IPAMConfigKey())
    written = 0
    families: tuple[Family, ...] = (4, 6)
    for family in families:
        await session.need_blocks(family)
        for cidr in list(session.view.blocks(family)):
            attempts = Attempts(f"freeing what has cooled down in {cidr}")
            while (changes := _without_cooled(session, cidr)) is not None:
                if await session.commit(changes):
                    written += 1
                    break
                await attempts.lost()
    return written


def _without_cooled(session: Session, cidr: str) -> dict[Key, Any] | None:
    block: Block | None = session.known(BlockKey(cidr)).value
    if block is None or not any(attribute.cooling for attribute in block.attributes):
        return None
    after = blocks.collect(block, now=session.environment.now(), cooldown=session.cooldown)
    if after is block:
        return None
    needed = after.affinity is not None or not after.empty
    return {BlockKey(cidr): blocks.rewrite(after) if needed else None}


async def _keep_affinities_consistent(session: Session, cidrs: Sequence[str]) -> None:
    """Give up blocks that became empty and lie in a pool that does not select their host any more."""
    for cidr in cidrs:
        block: Block | None = session.known(BlockKey(cidr)).value
        host = block.host() if block is not None and block.affinity is not None else None
        if host is None:
            continue
        await session.need_pools()
        node = ResourceKey("Node", host)
        await session.need(node)
        pool = poolmath.enclosing(session.view.pools, network_of(cidr))
        resource = session.known(node).value
        if pool is None or resource is None or pool.selects_node(resource.metadata.labels):
            continue
        try:
            await release_affinity(session, BlockAffinityKey(host, cidr), must_be_empty=True)
        except IPAMError:
            continue  # used again meanwhile


async def release_affinity(session: Session, key: BlockAffinityKey, *, must_be_empty: bool) -> None:
    """Give up one block: an empty one is deleted, one with addresses is left without an owner.

    Raises:
        BlockNotEmptyError: it holds addresses, and ``must_be_empty``; nothing is written.
        ClaimConflictError: it belongs to somebody else; the stale affinity is deleted.
    """
    attempts = Attempts(f"releasing the affinity of {key.host} for {key.cidr}")
    block_key = BlockKey(key.cidr)
    while True:
        await session.need(key, block_key)
        known = session.known(key)
        block: Block | None = session.known(block_key).value
        owner = f"{key.affinity_type}:{key.host}"
        state = affinity.state_of(known.value) if known.value is not None or not known.revision else "pending"
        action = affinity.RELEASE[state, affinity.relation_of(block, owner)]
        if action == "nothing":
            return
        changes: dict[Key, Any] = {key: None}
        if action == "release" and block is not None:
            if must_be_empty and not block.empty:
                held = sum(1 for index in block.allocations if index is not None)
                raise BlockNotEmptyError(block.cidr, held)
            changes[block_key] = None if block.empty else blocks.disown(block)
        if await session.commit(changes, guards=[block_key]):
            if action == "conflict":
                raise ClaimConflictError(key.cidr, block.affinity if block is not None else None)
            return
        await attempts.lost()
