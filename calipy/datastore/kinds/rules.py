"""Rules of policies and profiles. Source: Calico ``api/pkg/apis/projectcalico/v3/policy_common.go``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from calipy.datastore.kinds.base import Always, GoStruct, Length, OmitZero, Port, Protocol, Range, Unique, enum

ACTIONS = ("Allow", "Deny", "Log", "Pass")
Nets = Annotated[tuple[str, ...], Length(high=256)]
Ports = Annotated[tuple[Port, ...], Length(high=50)]
Name = Annotated[str, Length(high=253)]


class ICMPFields(GoStruct, frozen=True, kw_only=True):
    """Type 0-254, and a code that needs a type; None matches any."""

    type: Annotated[int | None, Range(0, 254)] = None
    code: Annotated[int | None, Range(0, 255)] = None


class ServiceAccountMatch(GoStruct, frozen=True, kw_only=True):
    """Endpoints by service account: any of the names, and the selector on the account's labels."""

    names: tuple[str, ...] = ()
    selector: str = ""


class ServiceMatch(GoStruct, frozen=True, kw_only=True):
    """Endpoints of a Kubernetes Service."""

    name: Name = ""
    namespace: Name = ""


class EntityRule(GoStruct, frozen=True, kw_only=True):
    """Who a rule is about. Empty matches everybody; all fields that are set must match.

    Attributes:
        nets: masked CIDRs, one family; any of them.
        not_nets: none of them.
        ports: numbers, ranges ``"a:b"`` or names; any of them.
    """

    nets: Nets = ()
    selector: Annotated[str, Length(high=1024)] = ""
    namespace_selector: Annotated[str, Length(high=1024)] = ""
    services: ServiceMatch | None = None
    ports: Ports = ()
    not_nets: Nets = ()
    not_selector: Annotated[str, Length(high=1024)] = ""
    not_ports: Ports = ()
    service_accounts: ServiceAccountMatch | None = None


class HTTPPath(GoStruct, frozen=True, kw_only=True):
    """Exactly this path, or this prefix."""

    exact: Annotated[str, Length(high=1024)] = ""
    prefix: Annotated[str, Length(high=1024)] = ""


class HTTPMatch(GoStruct, frozen=True, kw_only=True):
    """Application layer match; needs a proxy that calipy does not have."""

    methods: Annotated[tuple[str, ...], Length(high=20), Unique()] = ()
    paths: Annotated[tuple[HTTPPath, ...], Length(high=20)] = ()


class RuleMetadata(GoStruct, frozen=True, kw_only=True):
    """Free notes."""

    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class Rule(GoStruct, frozen=True, kw_only=True):
    """One rule. The first that matches decides, except ``Log``.

    Attributes:
        action: ``Allow``, ``Deny``, ``Log``, ``Pass``; profiles may hold anything.
        protocol: name as Calico spells it (``TCP``) or number 1-255.
    """

    action: Annotated[str, Always(), enum(*ACTIONS)] = ""
    ip_version: Annotated[int | None, enum("4", "6")] = None
    protocol: Protocol | None = None
    icmp: ICMPFields | None = None
    not_protocol: Protocol | None = None
    not_icmp: ICMPFields | None = msgspec.field(default=None, name="notICMP")
    source: Annotated[EntityRule, OmitZero()] = EntityRule()
    destination: Annotated[EntityRule, OmitZero()] = EntityRule()
    http: HTTPMatch | None = None
    metadata: RuleMetadata | None = None
