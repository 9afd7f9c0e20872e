"""Claiming whole blocks without taking an address, and giving many up at once.

Source: libcalico-go/lib/ipam/ipam.go (ClaimAffinity, ReleaseAffinity, ReleaseHostAffinities, EnsureBlock, …).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from calipy.datastore.ipam import Block, BlockAffinity, network_of
from calipy.datastore.keys import BlockAffinityKey, BlockKey, IPAMHostKey, Key
from calipy.ipam import affinity
from calipy.ipam import block as blocks
from calipy.ipam import pools as poolmath
from calipy.ipam.assigning import owner_key
from calipy.ipam.errors import AddressNotInPoolError, ClaimConflictError, IPAMError, TooSmallError
from calipy.ipam.pools import Pool
from calipy.ipam.releasing import release_affinity
from calipy.ipam.session import Attempts, Session
from calipy.net import Family, Prefix


async def claim(session: Session, network: Prefix) -> tuple[list[str], list[str]]:
    """Claim every block of a CIDR for the owner: those claimed, and those that belong to somebody else.

    Raises:
        AddressNotInPoolError: it lies in no enabled pool.
        TooSmallError: it is smaller than a block.
    """
    await session.need_pools()
    pool = _pool_around(network, [pool for pool in session.view.pools if not pool.unusable])
    claimed: list[str] = []
    failed: list[str] = []
    for cidr in _blocks_in(network, pool):
        (claimed if await claim_block(session, cidr) else failed).append(cidr)
    return claimed, failed


def _pool_around(network: Prefix, pools: list[Pool]) -> Pool:
    pool = poolmath.enclosing(pools, network)
    if pool is None:
        raise AddressNotInPoolError(str(network), [str(p) for p in pools])
    if network.prefixlen > pool.block_size:
        raise TooSmallError(str(network), pool.block_size)
    return pool


def _blocks_in(network: Prefix, pool: Pool) -> Iterable[str]:
    return (str(block) for block in network.subnets(new_prefix=pool.block_size))


async def claim_block(session: Session, cidr: str) -> bool:
    """Make one block the owner's; whether it is now."""
    attempts = Attempts(f"claiming {cidr} for {session.environment.owner}")
    environment = session.environment
    own = environment.affinity_key(cidr)
    while True:
        await session.need(own, BlockKey(cidr))
        known = session.known(own)
        found = session.known(BlockKey(cidr))
        block: Block | None = found.value
        if block is None and found.revision:
            return False  # exists, but cannot be decoded
        state = affinity.state_of(known.value) if known.value is not None or not known.revision else "pending"
        action = affinity.CLAIM[state, affinity.relation_of(block, environment.owner_text)]
        if action == "use":
            return True
        if action == "conflict":
            return False
        changes: dict[Key, Any] = {own: None if action == "stale" else BlockAffinity()}
        if action == "create":
            changes[BlockKey(cidr)] = blocks.new_block(
                cidr, environment.owner_text, now=environment.now(), sequence_number=environment.nanoseconds()
            )
        elif action == "adopt" and block is not None:
            changes[BlockKey(cidr)] = blocks.rewrite(block)
        if await session.commit(changes, guards=[BlockKey(cidr)]):
            return action != "stale"
        await attempts.lost()


async def release(session: Session, network: Prefix, *, must_be_empty: bool) -> None:
    """Give up every block of a CIDR that the owner has; goes on after an error and raises the first.

    Raises:
        AddressNotInPoolError, TooSmallError, BlockNotEmptyError.
    """
    await session.need_pools()
    _pool_around(network, session.view.pools)
    family: Family = 4 if network.version == 4 else 6
    await session.need_affinities(family)
    mine = [network_of(cidr) for cidr in session.view.affinities(family)]
    inside = [block for block in mine if block.prefixlen >= network.prefixlen and block.network_address in network]
    ordered = sorted(inside, key=lambda block: int(block.network_address))
    keys = [session.environment.affinity_key(str(block)) for block in ordered]
    await release_each(session, keys, must_be_empty=must_be_empty)


async def release_each(session: Session, keys: Iterable[BlockAffinityKey], *, must_be_empty: bool) -> None:
    """Give up blocks one by one; goes on after an error and raises the first.

    A claim on somebody else's block is no error: it is gone now, which is what was asked for.
    """
    first: IPAMError | None = None
    for key in keys:
        try:
            await release_affinity(session, key, must_be_empty=must_be_empty)
        except ClaimConflictError:
            continue
        except IPAMError as error:
            first = first or error
    if first is not None:
        raise first


async def release_pool(session: Session, network: Prefix) -> None:
    """Leave every block of a pool without an owner (the empty ones are deleted); addresses stay assigned."""
    family: Family = 4 if network.version == 4 else 6
    await session.need_blocks(family)
    keys = [
        owner_key(block)
        for block in session.view.blocks(family).values()
        if block is not None and block.affinity is not None and block.network.network_address in network
    ]
    await release_each(session, keys, must_be_empty=False)


async def forget_host(session: Session, host: str) -> None:
    """Delete the marker that old releases keep for a host."""
    key = IPAMHostKey(host)
    attempts = Attempts(f"deleting the marker of {host}")
    while True:
        await session.need(key)
        if not session.known(key).revision or await session.commit({key: None}):
            return
        await attempts.lost()
