"""Resources → what the graph keeps of endpoints and network sets: labels, parents, set members, local details.

Pure conversions. What Felix's validation would drop (no interface name, no address, a malformed name) converts to None:
invalid is the same as missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from calipy.datastore.keys import ResourceKey
from calipy.datastore.names import parse_workload_endpoint
from calipy.datastore.resources import (
    EndpointPort,
    GlobalNetworkSetSpec,
    HostEndpointSpec,
    NetworkSetSpec,
    Resource,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from calipy.errors import InvalidInputError
from calipy.felix.messages import EndpointID
from calipy.policy import dscp
from calipy.policy.effective import (
    NAMESPACE_LABEL,
    NAMESPACE_PREFIX,
    SERVICE_ACCOUNT_LABEL,
    SERVICE_ACCOUNT_PREFIX,
)
from calipy.policy.kubernetes import namespace_profile_name
from calipy.policy.values import host_address, protocol, set_members

_INHERITED: Final = (NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX)
_PART = r"[^-]+(?:(?:--)+[^-]+)*"
_FULL_NAME = re.compile(rf"{_PART}(?:-{_PART}){{3}}")


class NamedPort(NamedTuple):
    """A port that an endpoint has given a name."""

    protocol: str | int
    name: str
    port: int


class Member(NamedTuple):
    """What an endpoint or network set contributes to ip sets that select it.

    Attributes:
        nets: as they stand in a ``net`` set.
        ports: of endpoints; together with each of ``nets`` they make the members of ``ip,port`` sets.
    """

    nets: tuple[str, ...]
    ports: tuple[NamedPort, ...] = ()


class Labelled(NamedTuple):
    """A member with the labels it is selected by.

    Attributes:
        labels: own labels; shared with the resource, never changed.
        parents: names of profiles whose labels it inherits, in order of precedence.
    """

    member: Member
    labels: Mapping[str, str]
    parents: tuple[str, ...] = ()


class LocalEndpoint(NamedTuple):
    """A workload endpoint of this node, apart from policy."""

    id: EndpointID
    interface: str
    mac: str
    nets: tuple[str, ...]
    profiles: tuple[str, ...]
    spoof_prefixes: tuple[str, ...]
    dscp: int | None


class LocalHostEndpoint(NamedTuple):
    """A host endpoint of this node, apart from policy."""

    name: str
    interface: str
    expected_ips: tuple[str, ...]
    profiles: tuple[str, ...]
    dscp: int | None


def workload(key: ResourceKey, resource: Resource[WorkloadEndpointSpec, Any]) -> Labelled:
    """A workload endpoint as a selectable member.

    Raises:
        InvalidInputError: Felix ignores it: no interface, no address, a bad address, or a name that is none.
    """
    spec = resource.spec
    if not _FULL_NAME.fullmatch(key.name):
        raise InvalidInputError("not the name of a workload endpoint", field="metadata.name", value=key.name)
    if not spec.interface_name:
        raise InvalidInputError("no interface", field="spec.interfaceName", value="", remedy="name the host's end")
    labels: Mapping[str, str] = resource.metadata.labels
    if any(label.startswith(_INHERITED) for label in labels):
        labels = {label: value for label, value in labels.items() if not label.startswith(_INHERITED)}
    if spec.service_account_name:
        labels = {**labels, SERVICE_ACCOUNT_LABEL: spec.service_account_name}
    member = Member(_addresses(spec.ip_networks, "spec.ipNetworks"), _ports(spec.ports))
    return Labelled(member, labels, spec.profiles)


def local(key: ResourceKey, resource: Resource[WorkloadEndpointSpec, Any], hostname: str) -> LocalEndpoint | None:
    """The endpoint's own details if the name in its key says that it is on ``hostname``, else None. O(1).

    Raises:
        InvalidInputError: the name does not parse.
    """
    if not key.name.startswith(hostname.replace("-", "--") + "-"):
        return None
    name = parse_workload_endpoint(key.name)
    if name.node != hostname:
        return None
    spec = resource.spec
    return LocalEndpoint(
        EndpointID(name.orchestrator, f"{key.namespace}/{name.workload}", name.endpoint),
        spec.interface_name,
        spec.mac,
        tuple(
            f"{address}/128" if ":" in address else f"{address}/32"
            for address in _addresses(spec.ip_networks, "spec.ipNetworks")
        ),
        spec.profiles,
        spec.allow_spoofed_source_prefixes,
        _dscp(resource)[0],
    )


def host(resource: Resource[HostEndpointSpec, Any]) -> Labelled:
    """A host endpoint as a selectable member: its expected addresses.

    Raises:
        InvalidInputError: an expected address is none.
    """
    spec = resource.spec
    addresses = _addresses(spec.expected_ips, "spec.expectedIPs") if spec.expected_ips else ()
    return Labelled(Member(addresses, _ports(spec.ports)), resource.metadata.labels, spec.profiles)


def local_host(key: ResourceKey, resource: Resource[HostEndpointSpec, Any], hostname: str) -> LocalHostEndpoint | None:
    """The host endpoint's own details if it is one of ``hostname``, else None.

    Raises:
        InvalidInputError: it names neither an interface nor an address, or an expected address is none.
    """
    spec = resource.spec
    if spec.node != hostname:
        return None
    addresses = _addresses(spec.expected_ips, "spec.expectedIPs") if spec.expected_ips else ()
    if not spec.interface_name and not addresses:
        raise InvalidInputError(
            "no interface", field="spec.interfaceName", value="", remedy="name it, or give spec.expectedIPs"
        )
    return LocalHostEndpoint(key.name, spec.interface_name, addresses, spec.profiles, _dscp(resource)[0])


def network_set(key: ResourceKey, resource: Resource[NetworkSetSpec | GlobalNetworkSetSpec, Any]) -> Labelled:
    """A network set as a selectable member; a namespaced one also carries its namespace and that one's labels.

    Raises:
        InvalidInputError: an entry is no address or CIDR.
    """
    nets: dict[str, None] = {}
    for i, text in enumerate(resource.spec.nets):
        try:
            nets.update(dict.fromkeys(set_members(text)))
        except ValueError:
            raise InvalidInputError(
                "neither an address nor a CIDR", field=f"spec.nets[{i}]", value=text, remedy="mend or remove it"
            ) from None
    labels: Mapping[str, str] = resource.metadata.labels
    parents: tuple[str, ...] = ()
    if key.namespace:
        labels = {**labels, NAMESPACE_LABEL: key.namespace}
        parents = (namespace_profile_name(key.namespace),)
    return Labelled(Member(tuple(nets)), labels, parents)


def ignored(resource: Resource[Any, Any]) -> str:
    """What a valid endpoint asks for and does not get, because nothing can be meant by it; "" for nothing."""
    return _dscp(resource)[1]


def _dscp(resource: Resource[Any, Any]) -> tuple[int | None, str]:
    """The code point of what an endpoint sends: what its spec says, else its annotation; and what is wrong with it.

    Calico takes any text here and then leaves packets as they are. It looks at the annotation of host endpoints only;
    pods' becomes part of the spec when the endpoint is made.
    """
    controls = getattr(resource.spec, "qos_controls", None)
    value, field = (controls.dscp if controls else None), "spec.qosControls.dscp"
    if value is None:
        value, field = resource.metadata.annotations.get(dscp.ANNOTATION), f"metadata.annotations[{dscp.ANNOTATION}]"
    if value is None:
        return None, ""
    point = dscp.number(value)
    return point, "" if point is not None else (
        f"{field} = {value!r} is ignored, packets are not marked: give 0 to {dscp.LARGEST}, DF, EF, AF11 to AF43 or "
        "CS0 to CS6"
    )


def _addresses(texts: tuple[str, ...], field: str) -> tuple[str, ...]:
    if not texts:
        raise InvalidInputError("no address", field=field, value=[], remedy="give at least one")
    try:
        return tuple(host_address(text) for text in texts)
    except ValueError as error:
        raise InvalidInputError(str(error), field=field, value=list(texts), remedy="/32 or /128 each") from None


def _ports(ports: tuple[WorkloadEndpointPort | EndpointPort, ...]) -> tuple[NamedPort, ...]:
    if not ports:
        return ()
    return tuple(NamedPort(protocol(p.protocol, "spec.ports") or 0, p.name, p.port) for p in ports)
