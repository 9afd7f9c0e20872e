"""What bgpd says about itself: the answer to ``status``, and the readiness rule. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from calipy import clock
from calipy.bgp.cluster import DATASTORE
from calipy.bgp.decision import Best
from calipy.bgp.path import Path
from calipy.bgp.rib import Rib
from calipy.bgp.sessions import SessionState
from calipy.net import IPAddress, Prefix, Route

EVERYONE_UP_SECONDS: Final = 30.0
"""In its first seconds a node is ready only with all its sessions; later one is enough (calico/node's rule)."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What readiness depends on.

    Attributes:
        age: seconds since start.
        in_sync: the datastore has been read completely.
        datastore: why it cannot be reached now, or "".
        speaker: why ExaBGP is not synchronised, or "".
        restarting: routes found at start still wait for their peers.
    """

    age: float
    in_sync: bool
    datastore: str = ""
    speaker: str = ""
    restarting: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)


def reasons(condition: Condition, states: Mapping[IPAddress, SessionState]) -> list[str]:
    """Why the node is not ready; empty when it is."""
    if not condition.in_sync:
        return [f"datastore not read yet{f': {condition.datastore}' if condition.datastore else ''}"]
    if condition.speaker:
        return [f"BGP speaker: {condition.speaker}"]
    # Whether a workload connects is its own affair.
    states = {peer: state for peer, state in states.items() if state.session.type != "local workload"}
    down = [state for state in states.values() if not state.up]
    if condition.age < EVERYONE_UP_SECONDS:
        waiting = [f"BGP not established with {state.session.peer} ({state.info})" for state in down]
        return waiting + (["graceful restart in progress"] if condition.restarting else [])
    if states and len(down) == len(states):
        return [f"BGP established with none of {len(states)} peers"]
    return []


def peers(
    states: Mapping[IPAddress, SessionState], rib: Rib, unusable: Mapping[IPAddress, str]
) -> list[dict[str, Any]]:
    """One entry a session, in order of address; ``unusable``: why ExaBGP does not take some of them."""
    ordered = sorted(states.items(), key=lambda item: (item[0].version, int(item[0])))
    return [_peer(state, rib, unusable.get(peer, "")) for peer, state in ordered]


def _peer(state: SessionState, rib: Rib, unusable: str) -> dict[str, Any]:
    session = state.session
    paths, stale, refused = rib.counts(session.peer)
    cause = f"left out, ExaBGP refuses it: {unusable}" if unusable else state.missing or state.cause
    return {
        "address": str(session.peer),
        "type": session.type,
        "state": "up" if state.up else "start",
        "since": clock.rfc3339(state.since),
        "info": f"Idle: {cause}" if unusable else state.info,
        "as_number": session.peer_as,
        "node": session.node,
        "cause": cause,
        "local_address": str(session.local or ""),
        "passive": session.passive,
        "paths": paths,
        "stale_paths": stale,
        "refused_by_limit": refused,
        "flaps": state.flaps,
        "source": session.source,
    }


def routes(rib: Rib, kernel: Mapping[Prefix, Route], failures: Mapping[Prefix, str], only: Prefix | None) -> list[Any]:
    """Every prefix (or those equal to or covering ``only``) with its paths, the best and why, and the kernel's route.

    O(paths).
    """
    found: list[Any] = []
    every = rib.prefixes() | kernel.keys()
    for prefix in sorted(every, key=lambda one: (one.version, int(one.network_address), one.prefixlen)):
        if only is not None and not (only.version == prefix.version and only.subnet_of(prefix)):  # type: ignore[arg-type]  # same family
            continue
        best = rib.best(prefix)
        route = kernel.get(prefix)
        found.append(
            {
                "prefix": str(prefix),
                "reason": best.reason if best else "",
                "paths": [_path(path, best) for path in rib.paths(prefix)],
                "kernel": _hops(route) if route else [],
                "refused": failures.get(prefix, ""),
            }
        )
    return found


def _path(path: Path, best: Best | None) -> dict[str, Any]:
    attributes = path.attributes
    return {
        "peer": "datastore" if path.peer == DATASTORE else str(path.peer.address),
        "next_hop": str(attributes.next_hop),
        "as_path": [number for _, numbers in attributes.as_path for number in numbers],
        "local_preference": attributes.local_preference,
        "med": attributes.med,
        "communities": [":".join(map(str, one)) for one in (*attributes.communities, *attributes.large_communities)],
        "best": best is not None and path == best.path,
        "multipath": best is not None and path in best.multipath,
        "stale": path.stale,
        "rejected": path.rejected,
    }


def _hops(route: Route) -> list[str]:
    if route.kind != "unicast":
        return [route.kind]
    return [f"via {hop.gateway} dev {hop.interface}" for hop in route.next_hops]
