"""The one way in which a pod's network is made and removed, for the CNI plugin and ``calipy workload`` alike.

    reads ─► addresses (IPAM) ─┐
    veth, sysctls, gateway ────┴─► addresses and host routes ─► endpoint written ─► policy in force

Calico's order; the two branches run side by side, unless an earlier incarnation of the pod has to make way: then
nothing of it is touched before the new addresses are there. Whatever fails, everything done so far is undone, after
what is under way has ended: a write that is cut off would have an unknown outcome. Removal may be repeated and succeeds
when nothing is left.

Source: Calico ``cni-plugin/pkg/k8s/k8s.go``, ``pkg/plugin/plugin.go``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from calipy import clock, log
from calipy.cni import veth as edge
from calipy.cni.request import (
    PodAddress,
    PodRequest,
    PodResult,
    WorkloadEndpoint,
    build_endpoint,
    network_profile,
)
from calipy.cni.veth import Veth
from calipy.datastore.client import Client
from calipy.datastore.resources import NoStatus, ProfileSpec, Resource
from calipy.errors import (
    AlreadyExistsError,
    CalipyError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from calipy.felix.messages import EndpointID
from calipy.ipam.allocator import Allocator
from calipy.ipam.errors import HandleNotFoundError, IPAMError
from calipy.kernel import netns
from calipy.net import IPAddress
from calipy.policy.kubernetes import convert_namespace, convert_service_account

_ENDPOINT_ATTEMPTS: Final = 6
_DEFAULT_MTU: Final = 1500
_NAMESPACE_LABEL_PREFIX: Final = "pcns."

T = TypeVar("T")

_log = log.get("pod")


class AddressShortageError(IPAMError):
    """Fewer addresses are left than the pod needs; those it got were given back."""


class Enforcer(Protocol):
    """What is asked of Felix."""

    async def wait_programmed(self, endpoint_id: EndpointID, timeout: float, *, nets: Iterable[str] = ()) -> bool:
        """Wait until chains and routes of an endpoint that has the addresses ``nets`` are in the kernel.

        False after ``timeout`` seconds.
        """
        ...


class PodNetwork:
    """Makes and removes pods' networks on this node. One request per pod at a time; different pods run side by side."""

    def __init__(
        self,
        client: Client,
        allocator: Allocator,
        felix: Enforcer | None,
        hostname: str,
        *,
        lib_dir: Path | None = None,
    ) -> None:
        """Compose it.

        Args:
            client: for endpoints and profiles.
            allocator: for addresses, on behalf of ``hostname``.
            felix: says when policy is in force; None = somebody else enforces it, do not wait.
            hostname: name of the node.
            lib_dir: where the node's ``mtu`` file is; default ``CALIPY_LIB_DIR`` or ``/var/lib/calico``.
        """
        self._client = client
        self._allocator = allocator
        self._felix = felix
        self._node = hostname
        self._lib_dir = lib_dir or Path(os.environ.get("CALIPY_LIB_DIR") or "/var/lib/calico")
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def add(self, request: PodRequest) -> PodResult:
        """Give a pod its network.

        A repeated request under a new container id gets new addresses; those of the old id are left to its own
        removal. Under ``cni``, where a container is its own name, the first result is repeated.

        Raises:
            InvalidInputError: the request, or its ``netns``.
            InterfaceExistsError: the pod has such an interface.
            IPAMError, AddressShortageError: no address.
            UnavailableError: the datastore does not answer or is not ready.
            KernelError: the kernel refused.
        """
        async with self._serial(request):
            return await self._add(request)

    async def delete(self, request: PodRequest) -> None:
        """Take a pod's network away; ``netns`` is not needed. Repeatable.

        The endpoint is kept if a newer container owns it.

        Raises:
            UnavailableError: the datastore does not answer or is not ready: nothing was touched, try again.
        """
        async with self._serial(request):
            await self._delete(request)

    async def endpoint(self, request: PodRequest) -> WorkloadEndpoint | None:
        """The pod's endpoint as it is stored."""
        name = request.endpoint_name(self._node)
        return cast("WorkloadEndpoint | None", await self._client.get("WorkloadEndpoint", name, request.namespace))

    @asynccontextmanager
    async def _serial(self, request: PodRequest) -> AsyncIterator[None]:
        key = f"{request.namespace}/{request.endpoint_name(self._node)}"
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            yield

    # --- making

    async def _add(self, request: PodRequest) -> PodResult:
        fd = netns.open_fd(request.netns)
        try:
            if netns.is_current(fd):
                raise InvalidInputError("is the node's own namespace", field="netns", value=request.netns)
            async with AsyncExitStack() as undo:
                result = await self._build(request, fd, undo)
                undo.pop_all()
        finally:
            os.close(fd)
        return result

    async def _build(self, request: PodRequest, fd: int, undo: AsyncExitStack) -> PodResult:
        watch = _Stopwatch()
        pair = Veth(
            request.interface,
            request.ifname,
            fd,
            request.mtu or self._node_mtu(),
            ipv4=4 in request.families,
            ipv6=6 in request.families,
            mac=request.mac,
            forwarding=request.forwarding,
        )
        free = not edge.host_interface_exists(pair.host)
        prepared: asyncio.Task[str] | None = None
        if free and request.orchestrator == "k8s":
            prepared = self._start_veth(pair, undo, watch)
        with watch.step("datastore"):
            existing, profiles = await self._read(request)
        if existing is not None and request.orchestrator == "cni":
            return await self._repeat(request, existing, pair.mtu, watch)
        if free and prepared is None:
            prepared = self._start_veth(pair, undo, watch)
        with watch.step("ipam"):
            addresses, _ = await _together(
                self._assign(request, existing, profiles, undo), self._ensure_profiles(profiles, request)
            )
        mac = await asyncio.shield(prepared or self._start_veth(pair, undo, watch))
        plain = tuple(entry.address for entry in addresses)
        with watch.step("addresses"):
            await _whole(asyncio.to_thread(edge.give_addresses, pair, plain))
        with watch.step("endpoint"):
            await self._write_endpoint(request, mac, plain, existing, undo)
            if request.orchestrator == "cni":
                await self._create_profile(network_profile(request.network))
        with watch.step("policy"):
            programmed = await self._wait(request, plain)
        name = request.endpoint_name(self._node)
        return PodResult(name, pair.host, mac, pair.mtu, addresses, programmed, watch.finish())

    def _start_veth(self, pair: Veth, undo: AsyncExitStack, watch: _Stopwatch) -> asyncio.Task[str]:
        def work() -> str:
            with watch.step("veth"):
                return edge.prepare(pair)

        task = asyncio.create_task(asyncio.to_thread(work))

        async def clear() -> None:
            await asyncio.wait({task})
            if task.exception() is None:
                await asyncio.to_thread(edge.remove, pair.host)

        undo.push_async_callback(clear)
        return task

    async def _read(self, request: PodRequest) -> tuple[WorkloadEndpoint | None, dict[str, Any]]:
        """The pod's endpoint and its profiles, as far as they exist. One round trip."""
        names = request.profiles if request.orchestrator == "k8s" else ()
        endpoint, _, *found = await _together(
            self.endpoint(request), self._check_ready(), *(self._client.get("Profile", name) for name in names)
        )
        return endpoint, dict(zip(names, found, strict=True))

    async def _check_ready(self) -> None:
        information = await self._client.get("ClusterInformation", "default")
        if information is None or not information.spec.datastore_ready:
            raise UnavailableError(
                "the datastore is not ready for requests (ClusterInformation.datastoreReady)",
                remedy="start a node, or end the migration that locked it",
            )

    async def _assign(
        self, request: PodRequest, existing: WorkloadEndpoint | None, profiles: Mapping[str, Any], undo: AsyncExitStack
    ) -> tuple[PodAddress, ...]:
        handle = request.handle
        attributes = request.attributes(self._node, clock.unix_nanoseconds())
        mine: list[str] = []
        again = existing is not None and existing.spec.container_id == request.container_id

        async def give_back() -> None:
            with self._best_effort("addresses not given back", request):
                if again:  # the handle also holds what the stored endpoint uses
                    await self._allocator.release_ips(mine)
                else:  # this also catches what was assigned without our hearing of it
                    await self._allocator.release_by_handle(handle)

        undo.push_async_callback(give_back)
        if request.ips:
            for address in request.ips:
                await _whole(self._allocator.assign(address, handle, attributes, intended_use="Workload"))
                mine.append(address)
            return tuple(PodAddress(ipaddress.ip_address(address)) for address in mine)
        assignment = await _whole(
            self._allocator.auto_assign(
                num4=int(4 in request.families),
                num6=int(6 in request.families),
                handle_id=handle,
                attributes=attributes,
                pools4=request.pools4,
                pools6=request.pools6,
                intended_use="Workload",
                namespace=request.namespace,
                namespace_labels=_namespace_labels(profiles.get(request.profiles[0])),
            )
        )
        addresses: list[PodAddress] = []
        for family in request.families:
            part = assignment.families[family]
            mine += part.addresses
            if part.missing:
                why = "; ".join(part.messages) or "no pool has one left"
                raise AddressShortageError(f"failed to request IPv{family} addresses: {why}")
            addresses.append(PodAddress(ipaddress.ip_address(part.addresses[0]), part.blocks[0]))
        return tuple(addresses)

    async def _ensure_profiles(self, profiles: Mapping[str, Any], request: PodRequest) -> None:
        """Write the profiles of the pod's namespace and service account that Kubernetes' controllers would write."""
        missing: list[Resource[ProfileSpec, NoStatus]] = []
        for name, found in profiles.items():
            if found is not None:
                continue
            if name == request.profiles[0]:
                labels = {"kubernetes.io/metadata.name": request.namespace}
                missing.append(convert_namespace({"metadata": {"name": request.namespace, "labels": labels}}))
            else:
                metadata = {"name": request.service_account, "namespace": request.namespace}
                missing.append(convert_service_account({"metadata": metadata}))
        await _together(*(self._create_profile(profile) for profile in missing))

    async def _create_profile(self, profile: Resource[ProfileSpec, NoStatus]) -> None:
        with contextlib.suppress(AlreadyExistsError):
            await self._client.create(profile)

    async def _write_endpoint(
        self,
        request: PodRequest,
        mac: str,
        addresses: tuple[IPAddress, ...],
        existing: WorkloadEndpoint | None,
        undo: AsyncExitStack,
    ) -> None:
        async def withdraw() -> None:
            with self._best_effort("endpoint not restored", request):
                await self._restore_endpoint(request, existing)

        undo.push_async_callback(withdraw)
        current = existing
        for attempt in range(1, _ENDPOINT_ATTEMPTS + 1):
            wanted = build_endpoint(request, self._node, mac, addresses, current)
            try:
                await _whole(self._client.create(wanted) if current is None else self._client.update(wanted))
                return
            except (ConflictError, NotFoundError):
                if attempt == _ENDPOINT_ATTEMPTS:
                    raise
                current = await self.endpoint(request)

    async def _restore_endpoint(self, request: PodRequest, previous: WorkloadEndpoint | None) -> None:
        """Put back what was there before, if what is there is ours: the write may have happened unheard."""
        current = await self.endpoint(request)
        if current is None or current.spec.container_id != request.container_id or current == previous:
            return
        if previous is None:
            await self._client.delete("WorkloadEndpoint", current.name, current.namespace, current.revision)
        else:
            await self._client.update(msgspec.structs.replace(previous, revision=current.revision))

    async def _repeat(self, request: PodRequest, existing: WorkloadEndpoint, mtu: int, watch: _Stopwatch) -> PodResult:
        """Repeat the result of a container that has its network; only make sure of the network's profile."""
        spec = existing.spec
        if request.network not in spec.profiles:
            spec = msgspec.structs.replace(spec, profiles=(*spec.profiles, request.network))
        await self._client.update(msgspec.structs.replace(existing, spec=spec))
        await self._create_profile(network_profile(request.network))
        addresses = tuple(PodAddress(ipaddress.ip_interface(network).ip) for network in spec.ip_networks)
        return PodResult(existing.name, spec.interface_name, spec.mac, mtu, addresses, True, watch.finish())

    async def _wait(self, request: PodRequest, addresses: tuple[IPAddress, ...]) -> bool:
        """Wait for policy. Its absence fails no pod: until it is there, the pod can neither send nor receive."""
        if self._felix is None or request.wait <= 0:
            return False
        workload = f"{request.namespace}/{request.workload}"
        endpoint = EndpointID(request.orchestrator, workload, request.ifname)
        nets = [f"{address}/{address.max_prefixlen}" for address in addresses]
        programmed = await self._felix.wait_programmed(endpoint, request.wait, nets=nets)
        if not programmed:
            _log.warning("policy is not in force yet", endpoint=str(endpoint), waited_seconds=request.wait)
        return programmed

    def _node_mtu(self) -> int:
        try:
            return int((self._lib_dir / "mtu").read_text().strip())
        except (OSError, ValueError):
            return _DEFAULT_MTU

    # --- removing

    async def _delete(self, request: PodRequest) -> None:
        endpoint, _ = await _together(self.endpoint(request), self._check_ready())
        late: CalipyError | None = None
        if request.orchestrator == "cni":  # Calico's order there: addresses first, their error last
            try:
                await self._release(request)
            except CalipyError as error:
                late = error
        if endpoint is None or await self._delete_endpoint(request, endpoint):
            interface = endpoint.spec.interface_name if endpoint is not None else request.interface
            await asyncio.to_thread(edge.remove, interface)
        else:
            _log.info("endpoint kept: a newer container owns it", endpoint=request.endpoint_name(self._node))
        if request.orchestrator == "k8s":
            await self._release(request)
        if late is not None:
            raise late

    async def _delete_endpoint(self, request: PodRequest, endpoint: WorkloadEndpoint) -> bool:
        """Delete the endpoint if it is ours, and as long as it is; False if a newer container owns it."""
        current: WorkloadEndpoint | None = endpoint
        for attempt in range(1, _ENDPOINT_ATTEMPTS + 1):
            if current is None:
                return True
            if current.spec.container_id != request.container_id:
                return False
            try:
                await self._client.delete("WorkloadEndpoint", current.name, current.namespace, current.revision)
                return True
            except NotFoundError:
                return True
            except ConflictError:
                if attempt == _ENDPOINT_ATTEMPTS:
                    raise
                current = await self.endpoint(request)
        return True

    async def _release(self, request: PodRequest) -> None:
        with contextlib.suppress(HandleNotFoundError):
            await self._allocator.release_by_handle(request.handle)

    @contextmanager
    def _best_effort(self, what: str, request: PodRequest) -> Iterator[None]:
        """Log what cannot be undone and go on undoing; the pod's removal finds it again by its handle."""
        try:
            yield
        except HandleNotFoundError:
            pass
        except CalipyError as error:
            _log.warning(what, pod=f"{request.namespace}/{request.workload}", handle=request.handle, error=str(error))


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Await work that must not be cut off: a caller that is cancelled meanwhile goes only when it has ended."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def _together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Results of all, side by side; the first error only after all have ended, so that nothing runs on unseen."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class _Stopwatch:
    """Time that steps took, in milliseconds; steps may overlap, also across threads."""

    def __init__(self) -> None:
        self._began = clock.monotonic()
        self._steps: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = clock.monotonic()
        try:
            yield
        finally:
            self._steps[name] = round((clock.monotonic() - began) * 1000, 3)

    def finish(self) -> dict[str, float]:
        return {**self._steps, "total": round((clock.monotonic() - self._began) * 1000, 3)}


def _namespace_labels(profile: Resource[ProfileSpec, NoStatus] | None) -> dict[str, str]:
    """Labels of the namespace, as its profile hands them down."""
    applied = {} if profile is None else profile.spec.labels_to_apply
    return {
        label.removeprefix(_NAMESPACE_LABEL_PREFIX): value
        for label, value in applied.items()
        if label.startswith(_NAMESPACE_LABEL_PREFIX)
    }
