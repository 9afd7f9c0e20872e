"""What a BGPPeer asks of its sessions besides who the peer is. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Literal

from calipy.bgp.peering_model import DEFAULT_HOLD_TIME, DEFAULT_RESTART_TIME, MAX_RESTART_TIME, Session
from calipy.datastore import durations
from calipy.datastore.resources import BGPPassword, BGPPeerSpec


def with_options(session: Session, spec: BGPPeerSpec) -> Session:
    """The session as the BGPPeer wants it.

    Raises:
        ValueError: a duration or address that is none.
    """
    hold_time = DEFAULT_HOLD_TIME
    if spec.keepalive_time is not None:
        hold_time = min(max(3 * seconds(spec.keepalive_time, 0), 3), 65535)
    reachable_by = ipaddress.ip_address(spec.reachable_by) if spec.reachable_by else None
    mode: Literal["auto", "self", "keep"] = "auto"
    if spec.next_hop_mode == "Keep" or spec.keep_original_next_hop:
        mode = "keep"
    elif spec.next_hop_mode == "Self":
        mode = "self"
    return replace(
        session,
        local=None if spec.source_address == "None" else session.local,
        local_as=spec.local_as_number or session.local_as,
        password=secret(spec.password),
        restart_time=seconds(spec.max_restart_time, DEFAULT_RESTART_TIME),
        hold_time=hold_time,
        ttl_security=spec.ttl_security or None,
        next_hop=mode,
        allowed_local_as=max(spec.num_allowed_local_as_numbers or 0, 0),
        reachable_by=reachable_by,
        filters=spec.filters,
    )


def secret(password: BGPPassword | None) -> tuple[str, str] | None:
    """Name and key of the Secret that holds a password, None without one."""
    reference = password.secret_key_ref if password else None
    return (reference.name, reference.key) if reference else None


def seconds(text: object, default: int) -> int:
    """A duration in whole seconds, from 0 to ``MAX_RESTART_TIME``.

    Raises:
        ValueError: it is none.
    """
    if text is None:
        return default
    return min(max(durations.parse(str(text)) // 10**9, 0), MAX_RESTART_TIME)
