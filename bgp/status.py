"""What bgpd says about itself: the answer to ``status``, and the readiness rule. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from calipy import clock
from calipy.bgp.rib import Rib
from calipy.bgp.sessions import SessionState
from calipy.net import IPAddress

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
    down = [state for state in states.values() if not state.up]
    if condition.age < EVERYONE_UP_SECONDS:
        waiting = [f"BGP not established with {state.session.peer} ({state.info})" for state in down]
        return waiting + (["graceful restart in progress"] if condition.restarting else [])
    if states and len(down) == len(states):
        return [f"BGP established with none of {len(states)} peers"]
    return []


def peers(states: Mapping[IPAddress, SessionState], rib: Rib) -> list[dict[str, Any]]:
    """One entry a session, in order of address."""
    return [_peer(state, rib) for _, state in sorted(states.items(), key=lambda item: (item[0].version, int(item[0])))]


def _peer(state: SessionState, rib: Rib) -> dict[str, Any]:
    session = state.session
    paths, stale, refused = rib.counts(session.peer)
    return {
        "address": str(session.peer),
        "type": session.type,
        "state": "up" if state.up else "start",
        "since": clock.rfc3339(state.since),
        "info": state.info,
        "as_number": session.peer_as,
        "node": session.node,
        "cause": state.cause,
        "local_address": str(session.local or ""),
        "passive": session.passive,
        "paths": paths,
        "stale_paths": stale,
        "refused_by_limit": refused,
        "flaps": state.flaps,
        "source": session.source,
    }
