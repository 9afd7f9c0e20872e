"""Adj-RIB-Out of every session: own routes, routes passed on, and the filters' word on both. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from calipy.bgp import filters
from calipy.bgp.advertise import Originated, inside
from calipy.bgp.decision import Best
from calipy.bgp.path import Attributes
from calipy.bgp.peering import Session, SessionType
from calipy.bgp.reflect import Reflector, kept_by_community
from calipy.datastore.resources import BGPFilterSpec
from calipy.net import IPAddress, Prefix

_WORKLOAD: Final[SessionType] = "local workload"

Exports = Mapping[IPAddress, Mapping[Prefix, Attributes]]


@dataclass(frozen=True, slots=True)
class ExportPolicy:
    """Everything that export depends on besides the Loc-RIB.

    Attributes:
        originated: this node's own routes.
        sessions: by peer address.
        cluster_id: ours if this node is a reflector.
        passes_on: which learned prefixes are passed on without a filter's word: by a reflector all such, by others
            those from and to workloads of this node, for which it is the only router.
        filters: BGPFilters by name.
        interface: where a learned prefix leads to, for filters.
    """

    originated: Originated = field(default_factory=Originated)
    sessions: Mapping[IPAddress, Session] = field(default_factory=dict)
    cluster_id: IPv4Address | None = None
    passes_on: Callable[[Prefix], bool] = lambda _: False
    filters: Mapping[str, BGPFilterSpec] = field(default_factory=dict)
    interface: Callable[[Prefix], str] = lambda _: ""

    @property
    def follows_loc_rib(self) -> bool:
        """Whether a change of the Loc-RIB can change what peers are told."""
        return self.cluster_id is not None or any(
            session.filters or session.type == _WORKLOAD for session in self.sessions.values()
        )

    def exports(self, loc_rib: Mapping[Prefix, Best], local: Callable[[Session], IPAddress | None]) -> Exports:
        """What each peer is to be told.

        Sessions of one kind share one mapping. O(sessions + kinds of session x prefixes).

        Args:
            loc_rib: best paths.
            local: our address in a session, None while there is none (then nothing is announced).
        """
        by_kind: dict[tuple[object, ...], Mapping[Prefix, Attributes]] = {}
        found: dict[IPAddress, Mapping[Prefix, Attributes]] = {}
        for peer, session in self.sessions.items():
            address = local(session)
            if address is None:
                found[peer] = {}
                continue
            kind = (
                session.family, session.external, session.local_as, session.client, session.next_hop,
                session.filters, address, session.type == _WORKLOAD,
            )  # fmt: skip
            if kind not in by_kind:
                by_kind[kind] = self._of(session, loc_rib, address)
            found[peer] = by_kind[kind]
        return found

    def _of(self, session: Session, loc_rib: Mapping[Prefix, Best], local: IPAddress) -> Mapping[Prefix, Attributes]:
        own = self.originated.exports(session, local)
        passed = self._passed(session, loc_rib, local)
        if not session.filters:
            return passed | own
        every = Reflector(self.cluster_id, lambda _: True, self.sessions).exports(loc_rib, session, local)
        candidates = every | self.originated.hidden_exports(session, local) | own
        accepted: dict[Prefix, Attributes] = {}
        for prefix, attributes in candidates.items():
            learned = prefix in every and prefix not in own
            interface = self.interface(prefix) if learned else ""
            verdict = filters.judge(
                self.filters, session, "export", prefix, attributes, learned=learned, interface=interface
            )
            if verdict.action == "Accept" or (not verdict.action and (prefix in own or prefix in passed)):
                accepted[prefix] = verdict.attributes
        return accepted

    def _passed(self, session: Session, loc_rib: Mapping[Prefix, Best], local: IPAddress) -> dict[Prefix, Attributes]:
        """What a session is told of others' routes without a filter's word."""
        to_workload = session.type == _WORKLOAD
        from_workloads = {peer for peer, one in self.sessions.items() if one.type == _WORKLOAD}
        if self.cluster_id is None and not from_workloads:
            return {}
        passed = {
            prefix: best
            for prefix, best in loc_rib.items()
            if (
                not inside(prefix, self.originated.blocks)  # as with pods' own addresses, the block stands for it
                if best.path.peer.address in from_workloads
                else self.cluster_id is not None or to_workload
            )
        }
        return Reflector(self.cluster_id, self.passes_on, self.sessions).exports(passed, session, local)

    def kept_back(
        self, session: Session, prefix: Prefix, loc_rib: Mapping[Prefix, Best], local: IPAddress | None
    ) -> str:
        """Why a session is not told of a prefix, for people; only for one that it is not told of."""
        if prefix.version != session.family:
            return f"an IPv{session.family} session"
        if local is None:
            return "no route to the peer"
        own = self.originated.exports(session, local) | self.originated.hidden_exports(session, local)
        best = loc_rib.get(prefix)
        every = Reflector(self.cluster_id, lambda _: True, self.sessions)
        passed = every.exports({prefix: best}, session, local) if best else {}
        attributes = own.get(prefix) or passed.get(prefix)
        if attributes is None:
            if best and (community := kept_by_community(best.path.attributes, session)):
                return f"its community {community}"
            return (
                "learned from iBGP, not passed on: this node is no reflector for it" if best else "nothing to announce"
            )
        verdict = filters.judge(
            self.filters,
            session,
            "export",
            prefix,
            attributes,
            learned=prefix not in own,
            interface="" if prefix in own else self.interface(prefix),
        )
        if verdict.action == "Reject":
            return verdict.rule
        if prefix in own:
            return "in no pool, or in one with disableBGPExport"
        return "learned, and no filter lets it pass: this node is no transit"
