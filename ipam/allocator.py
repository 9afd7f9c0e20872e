"""The allocator of one owner of blocks: the front door of address management.

Any number of allocators, Calico's among them, may work on one datastore at once. There is no lock between them:
correctness rests on guarded writes alone. Within one allocator assignments queue up, since they would only race for
the same block.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from calipy import clock
from calipy.datastore.ipam import AllocationAttribute, Block, Handle, IPAMConfig
from calipy.datastore.keys import BlockAffinityKey, BlockKey, HandleKey, IPAMConfigKey, Key
from calipy.datastore.store import Store
from calipy.errors import InvalidInputError
from calipy.ipam import assigning, claiming, explicit, releasing
from calipy.ipam import pools as poolmath
from calipy.ipam.errors import HandleNotFoundError, IPAMError, NotAllocatedError, RefusedConfigError
from calipy.ipam.handle import blocks_of, sanitise
from calipy.ipam.pools import Pool, Start, Use
from calipy.ipam.request import Assignment, FamilyAssignment, ReleaseRequest, ReleaseResult, Request
from calipy.ipam.session import Attempts, Environment, Session
from calipy.ipam.view import View
from calipy.net import Family, IPAddress, Prefix

CALICO_DEFAULTS = IPAMConfig()
"""How Calico behaves in a store without settings: it borrows."""

DEFAULTS = IPAMConfig(strict_affinity=True)
"""How calipy behaves in a store without settings: it does not borrow. Stored settings are obeyed as they are."""


class Change(Protocol):
    """What ``calipy.datastore.syncer.Update`` offers."""

    @property
    def key(self) -> Key: ...
    @property
    def value(self) -> Any: ...
    @property
    def revision(self) -> int: ...
    @property
    def error(self) -> Any: ...


class Allocator:
    """Assigns and releases addresses for one node.

    Args:
        store: the datastore.
        hostname: name of the node, or of a virtual owner.
        virtual: the owner is no node (``virtual:load-balancer``): no Node is read and every nodeSelector lets it pass.
        defaults: settings for a store without any.
        start: where the search for a free block begins; by default a hash of the name.
        now: wall clock.
        nanoseconds: wall clock in nanoseconds.
    """

    def __init__(
        self,
        store: Store,
        hostname: str,
        *,
        virtual: bool = False,
        defaults: IPAMConfig = DEFAULTS,
        start: Start | None = None,
        now: Callable[[], Any] = clock.wall,
        nanoseconds: Callable[[], int] = clock.unix_nanoseconds,
    ) -> None:
        def by_hash(owner: str, pool: Pool) -> int:
            single = pool.block_size == pool.network.max_prefixlen
            return poolmath.start_index(
                owner, pool.block_count, single_addresses=single, nanoseconds=nanoseconds() if single else 0
            )

        self._store = store
        self._environment = Environment(
            owner=hostname,
            affinity_type="virtual" if virtual else "host",
            defaults=defaults,
            start=start or by_hash,
            now=now,
            nanoseconds=nanoseconds,
        )
        self._view = View(hostname, self._environment.affinity_type)
        self._observed = False
        self._lock = asyncio.Lock()

    # Watched state. Without it every operation reads what it needs.

    def observe(self, change: Change) -> None:
        """Take in one change from a watch of pools, reservations, nodes, settings, affinities and blocks. O(1)."""
        self._observed = True
        if self._view.wants(change.key):
            self._view.note(
                change.key,
                change.value,
                revision=change.revision if change.value is not None or change.error is not None else 0,
                seen=change.revision,
            )

    def in_sync(self) -> None:
        """Everything there was has been observed: from now on operations start from the watched state."""
        self._observed = True
        self._view.complete.add("everything")

    def out_of_sync(self) -> None:
        """The watch broke: operations read what they need, until ``in_sync``."""
        self._view.complete.discard("everything")

    @asynccontextmanager
    async def _session(self, *, live: bool = True, host: str | None = None) -> AsyncIterator[Session]:
        environment = self._environment
        if host is not None and host != environment.owner:
            environment = dataclasses.replace(environment, owner=host, affinity_type="host")
        session = Session(
            self._store,
            environment,
            self._view if self._observed and environment is self._environment else None,
            rely_on_it=live and self._view.has("everything"),
        )
        try:
            yield session
        finally:
            session.close()

    # Addresses

    async def auto_assign(
        self,
        *,
        num4: int = 0,
        num6: int = 0,
        handle_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        pools4: Sequence[str] | None = None,
        pools6: Sequence[str] | None = None,
        intended_use: Use = "Workload",
        namespace: str | None = None,
        namespace_labels: Mapping[str, str] | None = None,
        max_blocks: int = 0,
    ) -> Assignment:
        """Assign addresses of either family, from the owner's blocks where possible.

        Typically one round trip on watched state. Families are independent: IPv4 first, and if it fails IPv6 is not
        tried. Fewer addresses than wanted is no error; see ``Assignment.complete``.

        Args:
            num4: IPv4 addresses wanted.
            num6: IPv6 addresses wanted.
            handle_id: the owner, e.g. ``k8s-pod-network.<container id>``; without one only ``release_ips`` frees them.
            attributes: stored with each address; give ``node``, or borrowed addresses get no route.
            pools4: CIDRs or names of the IPv4 pools to use, whatever they select; None or empty = any.
            pools6: the same for IPv6.
            intended_use: what the addresses are for.
            namespace: name of the pod's namespace, for messages.
            namespace_labels: its labels, for pools with a namespaceSelector.
            max_blocks: cap on the owner's blocks for this request, 0 = none.

        Raises:
            IPAMError: ``partial`` holds what was assigned all the same; the caller has to release it.
            UnavailableError: the datastore does not answer; something may have been assigned under the handle.
        """
        if num4 < 0 or num6 < 0:
            raise InvalidInputError("must not be negative", field="num4" if num4 < 0 else "num6", value=min(num4, num6))
        if intended_use not in {"Workload", "Tunnel", "LoadBalancer"}:
            raise InvalidInputError(
                "must be Workload, Tunnel or LoadBalancer", field="intended_use", value=intended_use
            )
        request = Request(
            handle_id=sanitise(handle_id) if handle_id is not None else None,
            attributes=dict(attributes or {}),
            use=intended_use,
            pools={4: tuple(pools4 or ()), 6: tuple(pools6 or ())},
            namespace=namespace or "",
            namespace_labels=dict(namespace_labels or {}),
            max_blocks=max_blocks,
        )
        result = Assignment()
        wanted: list[tuple[Family, int]] = [(4, num4), (6, num6)]
        async with self._lock, self._session() as session:
            for family, count in wanted:
                if count == 0:
                    continue
                part = result.families.setdefault(family, FamilyAssignment(count))
                try:
                    await assigning.assign_family(session, request, family, part)
                except IPAMError as error:
                    part.messages.append(str(error))
                    error.partial = result
                    raise
        return result

    async def assign(
        self,
        address: str,
        handle_id: str | None,
        attributes: Mapping[str, str] | None = None,
        *,
        intended_use: Use | None = None,
    ) -> None:
        """Assign one given address, reserved or not; its block is claimed if nobody has it.

        Args:
            address: text; must lie in an enabled pool, whatever the pool selects.
            handle_id: the owner.
            attributes: stored with the address.
            intended_use: if given, the pool must allow it.

        Raises:
            AddressTakenError, AddressNotInPoolError, WrongUseError, ForeignBlockError: see there.
        """
        request = Request(
            handle_id=sanitise(handle_id) if handle_id is not None else None,
            attributes=dict(attributes or {}),
            use=intended_use or "Workload",
        )
        async with self._lock, self._session() as session:
            await explicit.assign_address(session, _address(address), request, check_use=intended_use is not None)

    async def release_by_handle(self, handle_id: str) -> list[str]:
        """Release all addresses of a handle; the addresses released. Two round trips on watched state.

        Raises:
            HandleNotFoundError: there are none; on removal of a pod that is success.
        """
        async with self._lock, self._session() as session:
            return await releasing.release_handle(session, sanitise(handle_id))

    async def release_ips(self, requests: Sequence[ReleaseRequest | str]) -> ReleaseResult:
        """Release addresses, each block all or none.

        Raises:
            ReleaseConflictError: an address is not held by whom the request names.
        """
        wanted = [r if isinstance(r, ReleaseRequest) else ReleaseRequest(r) for r in requests]
        for request in wanted:
            _address(request.address)
        async with self._lock, self._session(live=False) as session:
            return await releasing.release_addresses(session, wanted)

    async def free_cooled(self) -> int:
        """Free what has cooled down in blocks that nobody writes; in how many blocks. O(blocks)."""
        async with self._lock, self._session(live=False) as session:
            return await releasing.free_cooled(session)

    async def ips_by_handle(self, handle_id: str) -> list[str]:
        """The addresses a handle has. Raises ``HandleNotFoundError``."""
        async with self._session(live=False) as session:
            key = HandleKey(sanitise(handle_id))
            await session.need(key)
            handle: Handle | None = session.known(key).value
            if handle is None:
                raise HandleNotFoundError(handle_id)
            cidrs = blocks_of(handle)
            await session.need(*(BlockKey(cidr) for cidr in cidrs))
            found: list[str] = []
            for cidr in cidrs:
                block: Block | None = session.known(BlockKey(cidr)).value
                if block is not None:
                    found += [str(a) for a, attribute in block.assignments() if attribute.handle_id == key.handle_id]
            return found

    async def attributes(self, address: str) -> AllocationAttribute:
        """Who holds an address. Raises ``NotAllocatedError``."""
        wanted = _address(address)
        async with self._session(live=False) as session:
            block = await releasing.find_block(session, wanted)
            attribute = block.attribute(block.ordinal(wanted)) if block is not None else None
            if attribute is None or attribute.cooling:
                raise NotAllocatedError(address)
            return attribute

    # Blocks

    async def ensure_block(
        self, family: Family, *, pools: Sequence[str] | None = None, intended_use: Use = "Workload"
    ) -> str:
        """Make sure that the owner has a block with a free address; its CIDR. Nothing is assigned.

        Raises:
            IPAMError: as ``auto_assign``.
        """
        request = Request(use=intended_use, pools={family: tuple(pools or ())})
        async with self._lock, self._session(live=False) as session:
            return await explicit.ensure_block(session, request, family)

    async def claim_affinity(self, cidr: str) -> tuple[list[str], list[str]]:
        """Claim every block of a CIDR: those claimed (or the owner's already), and those of somebody else.

        Raises:
            AddressNotInPoolError, TooSmallError.
        """
        async with self._lock, self._session(live=False) as session:
            return await claiming.claim(session, _network(cidr))

    async def release_affinity(self, cidr: str, *, host: str | None = None, must_be_empty: bool = False) -> None:
        """Give up every block of a CIDR that a host (by default the owner) has. Goes on after an error.

        Raises:
            BlockNotEmptyError, AddressNotInPoolError, TooSmallError: the first error met.
        """
        async with self._lock, self._session(live=False, host=host) as session:
            await claiming.release(session, _network(cidr), must_be_empty=must_be_empty)

    async def release_host_affinities(self, host: str | None = None, *, must_be_empty: bool = False) -> None:
        """Give up all blocks of a host (by default the owner). Goes on after an error.

        Raises:
            BlockNotEmptyError: the first error met.
        """
        async with self._lock, self._session(live=False, host=host) as session:
            keys: list[BlockAffinityKey] = []
            families: tuple[Family, ...] = (4, 6)
            for family in families:
                await session.need_affinities(family)
                keys += [session.environment.affinity_key(cidr) for cidr in session.view.affinities(family)]
            await claiming.release_each(session, keys, must_be_empty=must_be_empty)

    async def release_pool_affinities(self, cidr: str) -> None:
        """Leave every block of a pool without an owner, deleting the empty ones; addresses stay assigned."""
        async with self._lock, self._session(live=False) as session:
            await claiming.release_pool(session, _network(cidr))

    async def remove_host(self, host: str) -> None:
        """Forget a host that is gone: its blocks and the marker of old releases. May be repeated."""
        await self.release_host_affinities(host)
        async with self._session(live=False) as session:
            await claiming.forget_host(session, host)

    # Settings

    async def config(self) -> IPAMConfig:
        """The stored settings, or the defaults; never writes."""
        async with self._session(live=False) as session:
            await session.need(IPAMConfigKey())
            return session.config

    async def set_config(self, config: IPAMConfig) -> None:
        """Store settings, whatever was there before. Existing blocks are not touched.

        Raises:
            RefusedConfigError: borrowing without automatic blocks, or a block limit together with borrowing.
        """
        if not config.strict_affinity and not config.auto_allocate_blocks:
            raise RefusedConfigError(
                "cannot be false while strict_affinity is false",
                field="auto_allocate_blocks",
                value=False,
                remedy="set strict_affinity to true, or leave automatic allocation of blocks on",
            )
        if config.max_blocks_per_host > 0 and not config.strict_affinity:
            raise RefusedConfigError(
                "needs strict_affinity",
                field="maxBlocksPerHost",
                value=config.max_blocks_per_host,
                remedy="set strict_affinity to true",
            )
        attempts = Attempts("storing the settings of address management")
        async with self._session(live=False) as session:
            await session.need(IPAMConfigKey())
            while not await session.commit({IPAMConfigKey(): config}):
                await attempts.lost()


def _address(text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidInputError("is not an IP address", field="address", value=text) from error


def _network(text: str) -> Prefix:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidInputError(f"is not a CIDR: {error}", field="cidr", value=text) from error
