"""Requests that name what they want: one given address, or a block without any address.

Source: libcalico-go/lib/ipam/ipam.go (AssignIP, EnsureBlock).
"""

from __future__ import annotations

from typing import Any

from calipy.datastore.ipam import AllocationAttribute, Block, BlockAffinity
from calipy.datastore.keys import BlockKey, HandleKey, IPAMConfigKey, Key, ResourceKey
from calipy.ipam import block as blocks
from calipy.ipam import pools as poolmath
from calipy.ipam.assigning import Borrow, collected, fence, fresh, next_step, prepare, raise_handle, select_pools
from calipy.ipam.errors import AddressNotInPoolError, ForeignBlockError, NoBlockError, WrongUseError
from calipy.ipam.request import Request
from calipy.ipam.session import Attempts, Session
from calipy.net import Family, IPAddress


async def ensure_block(session: Session, request: Request, family: Family) -> str:
    """A block of the owner with a free address; claimed if there is none.

    Raises:
        As ``assign_family``; NoBlockError also when no block is left.
    """
    attempts = Attempts(f"getting an IPv{family} block for {session.environment.owner}")
    useless: set[str] = set()
    while True:
        await session.need_selection(family)
        chosen = select_pools(session, request, family)
        step = await next_step(session, request, family, chosen, useless)
        if step is None or isinstance(step, Borrow):
            names = [str(pool) for pool in chosen]
            raise NoBlockError(session.environment.owner, family, names, why="every block is somebody's")
        own = session.environment.affinity_key(step.cidr)
        await session.need(own, BlockKey(step.cidr))
        prepared = await prepare(session, step)
        if isinstance(prepared, str):
            useless.add(step.cidr)
            continue
        block, changes = prepared
        if not blocks.usable(block, session.view.reservations.ordinals(block.network)):
            useless.add(step.cidr)
            continue
        if not changes:
            return step.cidr
        if await session.commit({**changes, BlockKey(step.cidr): block}, guards=fence(session, step.pool)):
            return step.cidr
        await attempts.lost()


async def assign_address(session: Session, address: IPAddress, request: Request, *, check_use: bool) -> None:
    """Assign one given address, whatever is reserved, selected or capped.

    Raises:
        AddressNotInPoolError, WrongUseError, ForeignBlockError, AddressTakenError.
    """
    attempts = Attempts(f"assigning {address}")
    environment = session.environment
    owner = AllocationAttribute(handle_id=request.handle_id, secondary=dict(request.attributes) or None)
    while True:
        await session.need_pools()
        enabled = [pool for pool in session.view.pools if not pool.unusable]
        pool = poolmath.enclosing(enabled, address)
        if pool is None:
            raise AddressNotInPoolError(str(address), [str(pool) for pool in enabled])
        if check_use and request.use not in pool.allowed_uses:
            raise WrongUseError(request.use, [f"{pool} allows {', '.join(pool.allowed_uses)}"])
        cidr = pool.block_of(address)
        own = environment.affinity_key(cidr)
        handles = [HandleKey(request.handle_id)] if request.handle_id is not None else []
        await session.need(IPAMConfigKey(), BlockKey(cidr), own, *handles)
        found = session.known(BlockKey(cidr))
        block: Block | None = found.value
        changes: dict[Key, Any] = {}
        if block is None:
            if found.revision:
                raise AddressNotInPoolError(f"{address} (its block {cidr} cannot be decoded)", [str(pool)])
            block, changes = fresh(session, cidr), {own: BlockAffinity()}
        elif session.config.strict_affinity and block.affinity != environment.owner_text:
            raise ForeignBlockError(str(address), cidr, block.affinity)
        block = collected(session, block)
        changes[BlockKey(cidr)] = blocks.assign_ordinal(block, block.ordinal(address), owner)
        changes.update(raise_handle(session, request.handle_id, cidr, 1))
        guards: list[Key] = [IPAMConfigKey(), ResourceKey("IPPool", pool.name)]
        if await session.commit(changes, guards=guards, recognisable=request.unique):
            return
        await attempts.lost()
