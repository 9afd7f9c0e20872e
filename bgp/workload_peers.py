"""Sessions with workloads of this node (BGPPeer ``localWorkloadSelector``). Pure.

As in Calico since 3.30: the agent decides which BGPPeer selects which workload, gives the host's end of its interface
the peering address (BGPConfiguration ``localWorkloadPeeringIPV4``, ``…IPV6``), and says so in the endpoint's status
file, once the endpoint is up. The workload dials that address; this side listens.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from calipy.bgp.peering_model import FAMILIES, NodeInfo, PeeringInputs, Session, WorkloadPeer
from calipy.bgp.peering_options import with_options
from calipy.datastore.resources import BGPConfigurationSpec, BGPPeerSpec
from calipy.errors import InvalidInputError
from calipy.net import Family, IPAddress

_EXAMPLE: Final[Mapping[int, str]] = {4: "e.g. 169.254.0.179", 6: "e.g. fd00:169:254::179"}


class _StatusFile(msgspec.Struct):
    """Members of an endpoint's status file that matter here (Calico ``libcalico-go/lib/epstatusfile``)."""

    bgp_peer_name: str = msgspec.field(default="", name="bgpPeerName")
    ipv4_nets: tuple[str, ...] = msgspec.field(default=(), name="ipv4Nets")
    ipv6_nets: tuple[str, ...] = msgspec.field(default=(), name="ipv6Nets")


def parse_status(content: bytes) -> WorkloadPeer | None:
    """The workload that an endpoint's status file tells of, None if it is to have no session.

    Raises:
        ValueError: no status file, or an address in it that is none.
    """
    try:
        status = msgspec.json.decode(content, type=_StatusFile)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    if not status.bgp_peer_name:
        return None
    nets = (*status.ipv4_nets[:1], *status.ipv6_nets[:1])
    return WorkloadPeer(status.bgp_peer_name, tuple(ipaddress.ip_interface(net).ip for net in nets))


def peering_address(configuration: BGPConfigurationSpec, family: Family) -> IPAddress:
    """The node's address towards its workloads, the same on every node; this node listens on it.

    Raises:
        InvalidInputError: there is none, or one that cannot be used, or the speaker does not listen on it.
    """
    field = f"BGPConfiguration(default) spec.localWorkloadPeeringIPV{family}"
    text = configuration.local_workload_peering_ipv4 if family == 4 else configuration.local_workload_peering_ipv6
    remedy = f"set it to an address that nothing else uses, {_EXAMPLE[family]}"
    if not text:
        raise InvalidInputError("no address for sessions with workloads", field=field, value=text, remedy=remedy)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != family:
        raise InvalidInputError(f"not an IPv{family} address", field=field, value=text, remedy=remedy)
    if isinstance(address, IPv6Address) and address.is_link_local:
        # To a link-local address a workload speaks from its own, by which no session is known.
        raise InvalidInputError("sessions need an address of global scope", field=field, value=text, remedy=remedy)
    if configuration.bind_mode == "NodeIP":
        raise InvalidInputError(
            "nobody listens on the addresses to which workloads connect",
            field="BGPConfiguration(default) spec.bindMode",
            value="NodeIP",
            remedy="set it to None",
        )
    return address


def workload_sessions(
    node: NodeInfo,
    inputs: PeeringInputs,
    peers: Iterable[WorkloadPeer],
    spec: BGPPeerSpec,
    *,
    source: str,
    router_id: IPv4Address,
    client: bool,
) -> tuple[list[Session], str]:
    """The sessions of one BGPPeer with workloads, one for each address, and why there are not all of them.

    Options of the BGPPeer hold as for any peer, but for ``sourceAddress`` (always the peering address) and
    ``reachableBy`` (a workload is at the other end of its own interface).

    Raises:
        InvalidInputError, ValueError: a field of the BGPPeer cannot be used.
    """
    if not spec.as_number:
        raise InvalidInputError(
            "missing", field="spec.asNumber", value=spec.as_number, remedy="give the AS of the workloads"
        )
    local: dict[Family, IPAddress] = {}
    reasons: dict[Family, str] = {}
    for family in FAMILIES:
        try:
            local[family] = peering_address(inputs.configuration, family)
        except InvalidInputError as error:
            reasons[family] = str(error)
    found: list[Session] = []
    missing: set[Family] = set() if local else {4}  # said before the first workload comes, too
    for address in (address for peer in peers for address in peer.addresses):
        family = 4 if address.version == 4 else 6
        if family not in local:
            missing.add(family)
            continue
        session = Session(
            peer=address,
            type="local workload",
            peer_as=spec.as_number,
            local_as=inputs.as_number(node),
            router_id=router_id,
            local=None,
            passive=True,
            source=source,
            client=client,
        )
        found.append(replace(with_options(session, spec), local=local[family], reachable_by=None))
    return found, "; ".join(dict.fromkeys(reasons[family] for family in FAMILIES if family in missing))
