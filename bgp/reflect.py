"""What is passed on of what was learned, and with which attributes: route reflection (RFC 4456). Pure.

A node is a reflector if its Node has a ``routeReflectorClusterID``. Other nodes pass nothing on, but for workloads of
their own that are BGP peers, unless a BGPFilter accepts it: in a mesh everybody hears of everything at first hand, and
towards the fabric each node speaks for itself only, so that no node becomes transit for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from calipy.bgp.cluster import DATASTORE
from calipy.bgp.decision import Best
from calipy.bgp.path import (
    DEFAULT_LOCAL_PREFERENCE,
    NO_ADVERTISE,
    NO_EXPORT,
    NO_EXPORT_SUBCONFED,
    Attributes,
    Path,
    Segment,
    intern,
)
from calipy.bgp.peering import Session
from calipy.net import IPAddress, Prefix


@dataclass(frozen=True, slots=True)
class Reflector:
    """How this node passes routes on.

    Attributes:
        cluster_id: ours, None if this node is no reflector: then RFC 4271's rule holds, nothing from iBGP to iBGP.
        sessions: by peer, to know from whom a path came.
        accepts: which prefixes may be passed on: those in exported pools and service ranges.
    """

    cluster_id: IPv4Address | None
    accepts: Callable[[Prefix], bool]
    sessions: Mapping[IPAddress, Session] = field(default_factory=dict)

    def exports(self, loc_rib: Mapping[Prefix, Best], to: Session, local: IPAddress) -> dict[Prefix, Attributes]:
        """What a session is told of others' routes: best paths only.

        Also told to whom a path came from: it recognises itself in ORIGINATOR_ID, and one set for all clients is
        much cheaper for the speaker than one for each. O(prefixes).

        Args:
            loc_rib: best paths.
            to: the session.
            local: our address in it.
        """
        return {
            prefix: self._attributes(best.path, to, local)
            for prefix, best in loc_rib.items()
            if prefix.version == to.family and self.accepts(prefix) and self._passes(best.path, to)
        }

    def _passes(self, path: Path, to: Session) -> bool:
        return not kept_by_community(path.attributes, to) and self._is_told(path, to)

    def _is_told(self, path: Path, to: Session) -> bool:
        """RFC 4271 9.2.1 and RFC 4456 6: from clients and eBGP to all, from non-clients to clients and eBGP."""
        if path.peer == DATASTORE:
            # As from a client, which its node would be under BGP.
            return self.cluster_id is not None or to.type == "local workload"
        source = self.sessions.get(path.peer.address)
        if source is None:
            return False
        reflected = self.cluster_id is not None and (source.client or to.client)
        return source.external or to.external or reflected

    def _attributes(self, path: Path, to: Session, local: IPAddress) -> Attributes:
        learned = path.attributes
        if to.external:
            return intern(
                Attributes(
                    next_hop=learned.next_hop if to.next_hop == "keep" else local,
                    origin=learned.origin,
                    as_path=_prepended(learned.as_path, to.local_as),
                    communities=learned.communities,
                    large_communities=learned.large_communities,
                )
            )
        if path.peer.external:
            # Into the AS as any border router does: originated here, the way out stays the one that was learned.
            hop = local if to.next_hop == "self" else learned.next_hop
            preference = DEFAULT_LOCAL_PREFERENCE if learned.local_preference is None else learned.local_preference
            return intern(replace(learned, next_hop=hop, local_preference=preference))
        return intern(
            replace(
                learned,
                local_preference=(
                    DEFAULT_LOCAL_PREFERENCE if learned.local_preference is None else learned.local_preference
                ),
                originator_id=learned.originator_id or path.peer.router_id,
                cluster_list=(*((self.cluster_id,) if self.cluster_id else ()), *learned.cluster_list),
            )
        )


def kept_by_community(attributes: Attributes, to: Session) -> str:
    """The well-known community for which what was learned is not passed on to a session, "" if for none (RFC 1997).

    As in BIRD no filter goes before it, and communities that an import filter has added count. There are no
    confederations here, so that the edge of a subconfederation is that of the AS.
    """
    kept = {NO_ADVERTISE: "no-advertise"}
    if to.external:
        kept |= {NO_EXPORT: "no-export", NO_EXPORT_SUBCONFED: "no-export-subconfed"}
    return next((kept[one] for one in attributes.communities if one in kept), "")


def _prepended(as_path: tuple[Segment, ...], number: int) -> tuple[Segment, ...]:
    if as_path and as_path[0].kind == "sequence":
        return (Segment("sequence", (number, *as_path[0].numbers)), *as_path[1:])
    return (Segment("sequence", (number,)), *as_path)
