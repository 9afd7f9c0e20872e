"""Workloads without a container runtime: pods whose network namespaces we keep ourselves.

The truth is in the datastore (endpoints of this node) and in the kernel (namespaces). A record under ``/run``, written
before anything else is done, tells which namespace and container id belong to a workload: a removal finds what a killed
agent left half made, and deletes no namespace but our own. Reboots clear ``/run`` and the namespaces together.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import uuid
import weakref
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from calipy import log
from calipy.api import Handler
from calipy.cni.pod import PodNetwork
from calipy.cni.records import Record, Records
from calipy.cni.request import PodRequest
from calipy.datastore.client import Client
from calipy.datastore.resources import WorkloadEndpointPort
from calipy.errors import AlreadyExistsError, CalipyError, InvalidInputError, NotFoundError
from calipy.kernel import netns
from calipy.kernel.links import Links
from calipy.kernel.netlink import NetlinkSocket

T = TypeVar("T")

_log = log.get("workloads")

_MAX_NAMES: Final = 255 - len("cali--")
"""Namespace and name together: both stand in one file name, that of the record as that of the network namespace."""


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named port, for policies that name it."""

    name: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A workload by its name."""

    name: str
    namespace: str = "default"


class AddParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be said of a new workload.

    Attributes:
        netns: absolute path of a namespace that exists, and stays when the workload goes; "" makes one.
        others: as in ``PodRequest``.
    """

    name: str
    namespace: str = "default"
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    netns: str = ""
    ips: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    service_account: str = "default"
    ipv4: bool = True
    ipv6: bool = False
    mtu: int = 0
    wait: float = 5.0

    def request(self, container_id: str) -> PodRequest:
        """The request for the pod's network.

        Raises:
            InvalidInputError: naming the member.
        """
        if self.netns and not self.netns.startswith("/"):
            raise InvalidInputError("must be an absolute path", field="netns", value=self.netns)
        ports = tuple(WorkloadEndpointPort(name=one.name, protocol=one.protocol, port=one.port) for one in self.ports)
        return PodRequest(
            container_id=container_id,
            netns=self.netns or str(netns.NAMED / f"cali-{self.namespace}-{self.name}"),
            namespace=self.namespace,
            name=self.name,
            labels=self.labels,
            service_account=self.service_account,
            ports=ports,
            ips=self.ips,
            ipv4=self.ipv4,
            ipv6=self.ipv6,
            mtu=self.mtu,
            wait=self.wait,
        )


class Workloads:
    """Adds, deletes and lists workloads; its handlers answer the local API."""

    def __init__(self, pods: PodNetwork, client: Client, hostname: str, *, records: Records | None = None) -> None:
        """Compose it.

        Args:
            pods: makes and removes the networks.
            client: to list endpoints.
            hostname: name of the node.
            records: what is ours.
        """
        self._pods = pods
        self._client = client
        self._node = hostname
        self._records = records or Records()
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    def handlers(self) -> dict[str, Handler]:
        """Methods of the local API."""
        return {"workload.add": self.add, "workload.del": self.delete, "workload.list": self.list}

    async def recover(self) -> None:
        """Remove what an agent that died had half made. For the start of the agent, once the datastore answers."""
        for record in self._records.all():
            request = _removal(record.namespace, record.name, record.container_id)
            async with self._lock(record.namespace, record.name):
                if await self._pods.endpoint(request) is None:
                    _log.info("removing an unfinished workload", namespace=record.namespace, name=record.name)
                    await self._clear(record)

    async def add(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Make a workload.

        Args:
            params: members of ``AddParams``.

        Returns:
            ``name``, ``namespace``, ``node``, ``netns``, ``interface``, ``mac``, ``mtu``, ``addresses``, ``endpoint``,
            ``programmed``, ``milliseconds``.

        Raises:
            AlreadyExistsError: the node has a workload of that name.
            InvalidInputError: naming the parameter.
        """
        wanted = _convert(params, AddParams)
        request = wanted.request(uuid.uuid4().hex)
        if len(request.namespace) + len(request.name) > _MAX_NAMES:
            raise InvalidInputError(
                f"too long: with its namespace more than {_MAX_NAMES} characters",
                field="name",
                value=request.name,
                remedy="give a shorter one",
            )
        async with self._lock(request.namespace, request.name):
            if await self._pods.endpoint(request) is not None:
                raise AlreadyExistsError(
                    f"workload {request.namespace}/{request.name} exists already",
                    key=request.endpoint_name(self._node),
                )
            leftover = self._records.get(request.namespace, request.name)
            if leftover is not None:
                await self._clear(leftover)
            created = not wanted.netns
            if created and _is_taken(request.netns):
                raise AlreadyExistsError(
                    f"{request.netns} exists and is not ours, remove it or give another with --netns", key=request.netns
                )
            record = Record(request.namespace, request.name, request.container_id, request.netns, created)
            self._records.put(record)
            try:
                if created:
                    await asyncio.to_thread(_create_namespace, request.netns)
                result = await self._pods.add(request)
            except BaseException:
                with contextlib.suppress(CalipyError):  # then the record stays, for ``recover`` or a removal
                    await self._clear(record)
                raise
        return {
            "name": request.name,
            "namespace": request.namespace,
            "node": self._node,
            "netns": request.netns,
            "interface": result.interface,
            "mac": result.mac,
            "mtu": result.mtu,
            "addresses": [str(entry.address) for entry in result.addresses],
            "endpoint": result.endpoint,
            "programmed": result.programmed,
            "milliseconds": dict(result.milliseconds),
        }

    async def delete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Remove a workload, and whatever an interrupted attempt to make it has left.

        Args:
            params: members of ``Named``.

        Raises:
            NotFoundError: the node has no such workload.
        """
        named = _convert(params, Named)
        request = PodRequest("none", "", namespace=named.namespace, name=named.name)
        async with self._lock(named.namespace, named.name):
            record = self._records.get(named.namespace, named.name)
            endpoint = await self._pods.endpoint(request)
            if record is None and endpoint is None:
                raise NotFoundError(
                    f"no workload {named.namespace}/{named.name} on this node", remedy="see `calipy workload list`"
                )
            if endpoint is not None and (record is None or record.container_id != endpoint.spec.container_id):
                await self._pods.delete(_removal(named.namespace, named.name, endpoint.spec.container_id))
            if record is not None:
                await self._clear(record)
        return {"name": named.name, "namespace": named.namespace}

    async def _clear(self, record: Record) -> None:
        await self._pods.delete(_removal(record.namespace, record.name, record.container_id))
        if record.created:
            await asyncio.to_thread(netns.delete, record.netns)
        self._records.remove(record.namespace, record.name)

    async def list(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Workloads of this node, by namespace and name; ``namespace`` narrows it. Cost: O(endpoints of the cluster).

        Each has ``state``: ``ready``; ``lost`` where its interface is gone (a reboot: delete it and add it again); or
        ``unfinished`` where an agent died while making it.
        """
        wanted = params.get("namespace") or ""
        interfaces = await asyncio.to_thread(_host_interfaces)
        records = {(record.namespace, record.name): record for record in self._records.all()}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for endpoint in await self._client.list("WorkloadEndpoint", wanted):
            spec = endpoint.spec
            if spec.node != self._node or spec.orchestrator != "k8s":
                continue
            record = records.pop((endpoint.namespace, spec.pod), None)
            found[endpoint.namespace, spec.pod] = {
                "name": spec.pod,
                "namespace": endpoint.namespace,
                "node": self._node,
                "netns": record.netns if record else "",
                "interface": spec.interface_name,
                "addresses": [network.partition("/")[0] for network in spec.ip_networks],
                "labels": {key: value for key, value in endpoint.metadata.labels.items() if not _is_calicos(key)},
                "state": "ready" if spec.interface_name in interfaces else "lost",
            }
        for (namespace, name), record in records.items():
            if wanted in {"", namespace}:
                found[namespace, name] = {
                    "name": name,
                    "namespace": namespace,
                    "node": self._node,
                    "netns": record.netns,
                    "interface": "",
                    "addresses": [],
                    "labels": {},
                    "state": "unfinished",
                }
        return [entry for _, entry in sorted(found.items())]

    def _lock(self, namespace: str, name: str) -> asyncio.Lock:
        lock = self._locks.get((namespace, name))
        if lock is None:
            lock = self._locks[namespace, name] = asyncio.Lock()
        return lock


def _removal(namespace: str, name: str, container_id: str) -> PodRequest:
    return PodRequest(container_id, "", namespace=namespace, name=name)


def _convert(params: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(dict(params), kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        field = where.strip("`$.")
        value = params.get(re.split(r"[.\[]", field)[0], dict(params))
        raise InvalidInputError(what, field=field or "params", value=value) from error


def _is_calicos(label: str) -> bool:
    return label.startswith("projectcalico.org/")


def _is_taken(path: str) -> bool:
    return os.path.lexists(path)


def _host_interfaces() -> set[str]:
    with NetlinkSocket() as socket:
        return {link.name for link in Links(socket).list_links()}


def _create_namespace(path: str) -> None:
    netns.create(path)
    fd = netns.open_fd(path)
    try:
        with NetlinkSocket(netns_fd=fd) as socket:
            Links(socket).set_up("lo")
    finally:
        os.close(fd)
