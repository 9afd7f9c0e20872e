"""Automatic host endpoints of this node: which there should be, and what to write for that. Pure.

In Calico kube-controllers makes them for all nodes; here each agent does it for its own node. Both make the same
objects and compare the same parts of them, so that in a mixed cluster neither rewrites the other's.

Source: Calico ``kube-controllers/pkg/controllers/node/hostendpoints.go`` and ``pkg/config/runconfig.go``.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from calipy.datastore import codec
from calipy.datastore.keys import ResourceKey
from calipy.datastore.resources import (
    AutoHostEndpointConfig,
    HostEndpointSpec,
    KubeControllersConfigurationSpec,
    KubeControllersConfigurationStatus,
    NodeSpec,
    Resource,
    TemplateSpec,
)
from calipy.datastore.syncer import Update
from calipy.errors import InvalidInputError
from calipy.policy import selector
from calipy.policy.model import DEFAULT_ALLOW_PROFILE

CREATED_BY: Final = "projectcalico.org/created-by"
CREATOR: Final = "calico-kube-controllers"
"""Label and value that tell automatic host endpoints from those that people make."""
ALL_INTERFACES: Final = "*"

_SUFFIX: Final = "auto-hep"
_LONGEST_NAME: Final = 253
_VARIABLE: Final = "AUTO_HOST_ENDPOINTS"
_TEMPLATES: Final = "spec.controllers.node.hostEndpoint.templates"
_SETTINGS: Final = ResourceKey("KubeControllersConfiguration", "default")

NodeResource: TypeAlias = Resource[NodeSpec, Any]
HostEndpoint: TypeAlias = Resource[HostEndpointSpec, Any]
Settings: TypeAlias = Resource[KubeControllersConfigurationSpec, KubeControllersConfigurationStatus | None]


class Work(NamedTuple):
    """What brings the datastore in line. Updates and deletions hold for the revision that the resource carries."""

    create: tuple[HostEndpoint, ...] = ()
    update: tuple[HostEndpoint, ...] = ()
    delete: tuple[HostEndpoint, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.update or self.delete)


class View:
    """What the datastore says that this node's automatic host endpoints depend on. Feed it each event; O(1)."""

    def __init__(self, node: str) -> None:
        self._name = node
        self._node_key = ResourceKey("Node", node)
        self._node: NodeResource | None = None
        self._settings: Settings | None = None
        self._present: dict[str, HostEndpoint] = {}
        self._unreadable: set[ResourceKey] = set()
        self._complete = False

    def in_sync(self) -> None:
        """Everything there is has been observed once."""
        self._complete = True

    def observe(self, event: Update) -> bool:
        """Take in an event; True if ``work`` may say something else now."""
        key, value = event.key, event.value
        if not isinstance(key, ResourceKey):
            return False
        if key == self._node_key:
            self._node = value if isinstance(value, Resource) else None
        elif key == _SETTINGS:
            self._settings = value if isinstance(value, Resource) else None
        elif key.kind == "HostEndpoint":
            return self._observe_endpoint(key.name, value if isinstance(value, Resource) else None)
        else:
            return False
        (self._unreadable.add if event.error else self._unreadable.discard)(key)
        return True

    def _observe_endpoint(self, name: str, endpoint: HostEndpoint | None) -> bool:
        known = self._present.pop(name, None)
        if endpoint is not None and endpoint.spec.node == self._name and is_automatic(endpoint):
            self._present[name] = endpoint
            return True
        return known is not None

    def work(self) -> Work:
        """What to write now: nothing before ``in_sync``, nor while the node or the settings cannot be read.

        Raises:
            InvalidInputError: a template cannot be used; all endpoints stay as they are.
        """
        if not self._complete or self._unreadable:
            return Work()
        expected = wanted(self._node, automatic(self._settings))
        return difference(expected, self._present)


def is_automatic(endpoint: HostEndpoint) -> bool:
    """Whether a controller made the host endpoint, so that a controller may change and delete it."""
    return endpoint.metadata.labels.get(CREATED_BY) == CREATOR


def automatic(settings: Settings | None) -> AutoHostEndpointConfig | None:
    """How host endpoints are made automatically; None if they are not.

    The environment of a running kube-controllers (``AUTO_HOST_ENDPOINTS``), which it tells in the status, goes before
    the configuration: it does so there.
    """
    if settings is None:
        return None
    variables = settings.status.environment_vars if settings.status else {}
    if _VARIABLE in variables:
        return AutoHostEndpointConfig() if variables[_VARIABLE].lower() == "enabled" else None
    node = settings.spec.controllers.node
    config = node.host_endpoint if node else None
    return config if config is not None and config.auto_create == "Enabled" else None


def wanted(node: NodeResource | None, config: AutoHostEndpointConfig | None) -> dict[str, HostEndpoint]:
    """The automatic host endpoints that a node should have, by name.

    Raises:
        InvalidInputError: a template's node selector, CIDRs or interface pattern is none, or it lacks a name.
    """
    if node is None or config is None:
        return {}
    made = []
    if config.create_default_host_endpoint != "Disabled":
        made.append(_endpoint(node, "", ALL_INTERFACES, expected_ips(node.spec), TemplateSpec()))
    for index, template in enumerate(config.templates):
        made += _from_template(node, template, f"{_TEMPLATES}[{index}]")
    return {endpoint.name: endpoint for endpoint in made}


def difference(expected: dict[str, HostEndpoint], present: dict[str, HostEndpoint]) -> Work:
    """What turns the automatic endpoints that there are into those that there should be.

    Labels, annotations, addresses and interface count. Whatever else somebody has written there stays until one of
    these changes.
    """
    changed = []
    for name, endpoint in expected.items():
        found = present.get(name)
        if found is not None and _compared(found) != _compared(endpoint):
            metadata = replace(
                found.metadata, labels=endpoint.metadata.labels, annotations=endpoint.metadata.annotations
            )
            changed.append(replace(found, metadata=metadata, spec=endpoint.spec))
    return Work(
        create=tuple(endpoint for name, endpoint in expected.items() if name not in present),
        update=tuple(changed),
        delete=tuple(endpoint for name, endpoint in present.items() if name not in expected),
    )


def _compared(endpoint: HostEndpoint) -> tuple[object, ...]:
    metadata, spec = endpoint.metadata, endpoint.spec
    return metadata.labels, metadata.annotations, spec.expected_ips, spec.interface_name


def expected_ips(spec: NodeSpec) -> tuple[str, ...]:
    """All addresses that a Node names, in kube-controllers' order; what is no address is left out."""
    bgp, wireguard = spec.bgp, spec.wireguard
    own = [
        *((_bare(bgp.ipv4_address), _bare(bgp.ipv6_address), bgp.ipv4_ipip_tunnel_addr) if bgp else ()),
        spec.ipv4_vxlan_tunnel_addr,
        spec.ipv6_vxlan_tunnel_addr,
        *((wireguard.interface_ipv4_address, wireguard.interface_ipv6_address) if wireguard else ()),
    ]
    more = [
        *(address.address for address in spec.addresses if address.type == "InternalIP"),
        *(address for interface in spec.interfaces for address in interface.addresses),
    ]
    own += (address for address in dict.fromkeys(more) if address not in own)
    return tuple(filter(_is_address, own))


def _bare(text: str) -> str:
    """An address without the prefix length it may have, in the canonical form; "" if it is none."""
    try:
        return str(ipaddress.ip_interface(text).ip)
    except ValueError:
        return ""


def _is_address(text: str) -> bool:
    """Whether it is one that a host endpoint may expect: without prefix length or zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _from_template(node: NodeResource, template: TemplateSpec, field: str) -> Iterable[HostEndpoint]:
    """What a template makes of a node: one endpoint for addresses, or one for each interface of a pattern."""
    pattern = _pattern(template, field)
    cidrs = [_network(text, f"{field}.interfaceCIDRs") for text in template.interface_cidrs]
    if not selector.parse(template.node_selector).matches(node.metadata.labels):
        return
    if not template.generate_name:
        raise InvalidInputError("missing", field=f"{field}.generateName", value="", remedy="give the template a name")
    addresses = [ipaddress.ip_address(text) for text in expected_ips(node.spec)]
    inside = tuple(str(address) for address in addresses if any(address in cidr for cidr in cidrs))
    if pattern is None:
        if inside:
            yield _endpoint(node, template.generate_name, "", inside, template)
        return
    for interface in node.spec.interfaces:
        if pattern.search(interface.name):
            both = tuple(dict.fromkeys((*inside, *filter(_is_address, interface.addresses))))
            yield _endpoint(node, f"{template.generate_name}-{interface.name}", interface.name, both, template)


def _pattern(template: TemplateSpec, field: str) -> re.Pattern[str] | None:
    if not template.interface_pattern:
        return None
    try:
        return re.compile(template.interface_pattern)
    except re.error as error:
        raise InvalidInputError(
            f"not a regular expression: {error}", field=f"{field}.interfacePattern", value=template.interface_pattern
        ) from None


def _network(text: str, field: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidInputError("not a CIDR", field=field, value=text, remedy="mend or remove it") from None


def _endpoint(
    node: NodeResource, part: str, interface: str, addresses: tuple[str, ...], template: TemplateSpec
) -> HostEndpoint:
    spec = HostEndpointSpec(
        node=node.name, interface_name=interface, expected_ips=addresses, profiles=(DEFAULT_ALLOW_PROFILE,)
    )
    labels = {**node.metadata.labels, **template.labels, CREATED_BY: CREATOR}
    name = _within_limit("-".join(filter(None, (node.name, part, _SUFFIX))))
    return codec.new("HostEndpoint", name, spec, labels=labels, annotations=dict(template.annotations))


def _within_limit(name: str) -> str:
    """The name, or a digest instead if it is too long for one."""
    if len(name) <= _LONGEST_NAME:
        return name
    digest = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode().rstrip("=")
    return f"{re.sub('[-_.]', '', digest)}-{_SUFFIX}".lower()
