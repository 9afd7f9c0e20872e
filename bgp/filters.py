"""BGPFilter: the administrator's word on single routes, before the built-in policy. Pure.

Filters of a session apply in order, rules of a filter too; the first rule that matches decides, and none matching
leaves the route to the built-in policy (Calico ``api/pkg/apis/projectcalico/v3/bgpfilter.go``). A filter that is named
and does not exist rejects everything: what it would have kept back is not known.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from calipy.bgp.advertise import inside, parse_community
from calipy.bgp.path import HIGHEST_LOCAL_PREFERENCE, NORMAL_LOCAL_PREFERENCE, Attributes, Segment, intern
from calipy.bgp.peering import Session
from calipy.datastore.resources import BGPFilterRule, BGPFilterSpec
from calipy.net import Prefix

Direction: TypeAlias = Literal["import", "export"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the filters say.

    Attributes:
        action: ``""`` if no rule matched.
        attributes: the route's, changed by the operations of an accepting rule.
        rule: which one decided, for people.
    """

    action: Literal["Accept", "Reject", ""]
    attributes: Attributes
    rule: str = ""


def judge(
    filters: Mapping[str, BGPFilterSpec],
    session: Session,
    direction: Direction,
    prefix: Prefix,
    attributes: Attributes,
    *,
    learned: bool,
    interface: str = "",
) -> Verdict:
    """Apply a session's filters to one route. O(rules).

    Args:
        filters: every BGPFilter by name.
        session: whose filters apply.
        direction: from the peer, or to it.
        prefix: of the route.
        attributes: of the route; on export as it would be sent.
        learned: it came from a BGP peer (``source: RemotePeers``), always so on import.
        interface: where it leads to, "" if to no interface.
    """
    for name in session.filters:
        spec = filters.get(name)
        if spec is None:
            return Verdict("Reject", attributes, f"BGPFilter({name}) does not exist")
        for number, rule in enumerate(_rules(spec, direction, session.family)):
            try:
                if not _matches(rule, session, prefix, attributes, learned=learned, interface=interface):
                    continue
                if rule.action == "Accept":
                    changed = _operate(rule, session, direction, attributes)
                    return Verdict("Accept", changed, f"BGPFilter({name}) {direction} rule {number}")
            except ValueError as error:
                return Verdict("Reject", attributes, f"BGPFilter({name}) {direction} rule {number}: {error}")
            return Verdict("Reject", attributes, f"BGPFilter({name}) {direction} rule {number}")
    return Verdict("", attributes)


def missing(filters: Mapping[str, BGPFilterSpec], sessions: Iterable[Session]) -> dict[str, str]:
    """What sessions ask for filters that do not exist, by what asks. O(sessions x their filters)."""
    found: dict[str, str] = {}
    for session in sessions:
        for name in session.filters:
            if name not in filters:
                found[session.source] = f"BGPFilter({name}) does not exist: no route goes in or out (create it)"
    return found


def _rules(spec: BGPFilterSpec, direction: Direction, family: int) -> Sequence[BGPFilterRule]:
    if direction == "import":
        return spec.import_v4 if family == 4 else spec.import_v6
    return spec.export_v4 if family == 4 else spec.export_v6


def _matches(
    rule: BGPFilterRule, session: Session, prefix: Prefix, attributes: Attributes, *, learned: bool, interface: str
) -> bool:
    if rule.cidr and not _matches_cidr(rule, prefix):
        return False
    if rule.source == "RemotePeers" and not learned:
        return False
    if rule.interface and not fnmatch.fnmatchcase(interface, rule.interface):
        return False
    if rule.peer_type and (rule.peer_type == "eBGP") != session.external:
        return False
    if rule.communities is not None:
        carried = {*attributes.communities, *attributes.large_communities}
        if not all(parse_community(value) in carried for value in rule.communities.values):
            return False
    if rule.as_path_prefix:
        numbers = tuple(number for _, segment in attributes.as_path for number in segment)
        if numbers[: len(rule.as_path_prefix)] != rule.as_path_prefix:
            return False
    return rule.priority is None or _priority(attributes) == rule.priority


def _matches_cidr(rule: BGPFilterRule, prefix: Prefix) -> bool:
    cidr = ipaddress.ip_network(rule.cidr, strict=False)
    bounds = rule.prefix_length
    fits = bounds is None or (
        (bounds.min is None or prefix.prefixlen >= bounds.min)
        and (bounds.max is None or prefix.prefixlen <= bounds.max)
    )
    match rule.match_operator:
        case "Equal":
            return fits and prefix == cidr
        case "NotEqual":
            return fits and prefix != cidr
        case "In":
            return fits and inside(prefix, (cidr,))
        case "NotIn":
            return fits and not inside(prefix, (cidr,))
        case other:
            raise ValueError(f"matchOperator {other!r} is none of Equal, NotEqual, In, NotIn")


def _priority(attributes: Attributes) -> int:
    preference = attributes.local_preference
    return HIGHEST_LOCAL_PREFERENCE - (NORMAL_LOCAL_PREFERENCE if preference is None else preference)


def _operate(rule: BGPFilterRule, session: Session, direction: Direction, attributes: Attributes) -> Attributes:
    for operation in rule.operations:
        if operation.add_community is not None:
            added = parse_community(operation.add_community.value)
            if len(added) == 2:
                attributes = replace(attributes, communities=(*attributes.communities, added))
            else:
                attributes = replace(attributes, large_communities=(*attributes.large_communities, added))
        if operation.prepend_as_path is not None:
            attributes = _prepend(attributes, operation.prepend_as_path.prefix, session, direction)
        if operation.set_priority is not None and operation.set_priority.value is not None:
            attributes = replace(attributes, local_preference=HIGHEST_LOCAL_PREFERENCE - operation.set_priority.value)
    return intern(attributes)


def _prepend(attributes: Attributes, numbers: tuple[int, ...], session: Session, direction: Direction) -> Attributes:
    """Put ASes before the path. Our own AS, which eBGP adds last, stays the first that the peer sees."""
    path = [number for segment in attributes.as_path[:1] if segment.kind == "sequence" for number in segment.numbers]
    rest = attributes.as_path[1:] if path else attributes.as_path
    own: list[int] = []
    if direction == "export" and session.external:
        own = [session.local_as]
        path = path[1:] if path[:1] == own else path
    return replace(attributes, as_path=(Segment("sequence", (*own, *numbers, *path)), *rest))
