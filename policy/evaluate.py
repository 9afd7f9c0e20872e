"""The way of a flow through the cluster: which endpoints' policies its packets meet, on which nodes, there and back.

Packets of a pod meet its egress policy, those to a pod its ingress policy; a node's host endpoint guards its uplink,
one for all interfaces also those of pods.
What a node does with a packet follows Felix's iptables chains table by table (raw, mangle, filter), without being made
of them: conntrack lets answers pass everything but untracked policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from calipy.net import IPAddress
from calipy.policy.judge import Direction, Outcome, Packet, Step, judge
from calipy.policy.snapshot import Endpoint, Layer, Snapshot
from calipy.policy.values import ICMP

Conntrack: TypeAlias = Literal["new", "established", "invalid", "untracked"]

FAILSAFE_INBOUND: Final = (
    *(("tcp", port) for port in (22, 179, 2379, 2380, 5473, 6443, 6666, 6667)),
    ("udp", 68),
)
FAILSAFE_OUTBOUND: Final = (
    *(("tcp", port) for port in (179, 2379, 2380, 5473, 6443, 6666, 6667)),
    ("udp", 53),
    ("udp", 67),
)
NEIGHBOUR_DISCOVERY: Final = frozenset({130, 131, 132, 133, 135, 136})
"""ICMPv6 types that a pod may always send to its node."""
HOST_DISCOVERY: Final = NEIGHBOUR_DISCOVERY | {134, 143}
"""ICMPv6 types that no policy on a host stops: router advertisements and version 2 of listener discovery, too."""
VXLAN_PORT: Final = 4789
IPIP: Final = 4
"""Protocol number. Pods may not send tunnel packets (Felix's defaults), whatever policy says."""
EPHEMERAL_PORT: Final = 49152

_ICMP_ANSWERS: Final = {("icmp", 8): 0, ("icmp", 13): 14, ("icmpv6", 128): 129}


@dataclass(frozen=True, slots=True)
class Place:
    """One end of a flow: a pod, a process on a node, or somewhere outside (both None).

    Attributes:
        node: where it is.
        workload: the pod's endpoint.
    """

    address: IPAddress
    node: str | None = None
    workload: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether request and answer get through, and every step that was considered, in order.

    Attributes:
        answered: ``steps`` from this index on belong to the answer.
    """

    allowed: bool
    steps: tuple[Step, ...]
    answered: int

    @property
    def reason(self) -> Step | None:
        """The last step, which decided; None when nothing was in the way."""
        return self.steps[-1] if self.steps else None


def place(snapshot: Snapshot, address: IPAddress) -> Place:
    """Who is behind an address: a pod, else a node, else somebody outside."""
    workload = snapshot.workloads.get(address)
    if workload is not None:
        return Place(address, workload.node, workload)
    return Place(address, snapshot.node_of.get(address))


def evaluate(
    snapshot: Snapshot,
    source: IPAddress,
    destination: IPAddress,
    protocol: str | int,
    *,
    source_port: int = EPHEMERAL_PORT,
    destination_port: int = 0,
    icmp: ICMP | None = None,
) -> Verdict:
    """What becomes of a new flow: its first packet, and the answer to it.

    Args:
        snapshot: the cluster.
        source: address of a pod, a node or anybody else.
        destination: likewise, of the same family.
        protocol: lower-case name or number.
        source_port: ignored for protocols without ports.
        destination_port: likewise.
        icmp: type and code, for ICMP and ICMPv6.
    """
    has_ports = protocol in {"tcp", "udp", "sctp", "udplite"}
    packet = Packet(
        source,
        destination,
        protocol,
        source_port if has_ports else 0,
        destination_port if has_ports else 0,
        icmp,
    )
    walk = _Walk(snapshot)
    here, there = place(snapshot, source), place(snapshot, destination)
    allowed = walk.travel(packet, here, there, answer=False)
    answered = len(walk.steps)
    if allowed:
        allowed = walk.travel(_answer(packet), there, here, answer=True)
    return Verdict(allowed, tuple(walk.steps), answered)


def _answer(packet: Packet) -> Packet:
    icmp = packet.icmp
    if icmp is not None:
        kind = _ICMP_ANSWERS.get((str(packet.protocol), icmp.type), icmp.type)
        icmp = ICMP(kind, icmp.code)
    return replace(
        packet,
        source=packet.destination,
        destination=packet.source,
        source_port=packet.destination_port,
        destination_port=packet.source_port,
        icmp=icmp,
    )


class _Walk:
    """One flow on its way; remembers which nodes track it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.steps: list[Step] = []
        self._snapshot = snapshot
        self._tracked: set[str] = set()

    def travel(self, packet: Packet, source: Place, destination: Place, *, answer: bool) -> bool:
        """Pass the node of the source, then that of the destination; True if the packet arrives."""
        if source.node is not None and source.node == destination.node:
            return self._pass(source.node, packet, source, destination, answer=answer)
        return (source.node is None or self._pass(source.node, packet, source, None, answer=answer)) and (
            destination.node is None or self._pass(destination.node, packet, None, destination, answer=answer)
        )

    def _pass(self, node: str, packet: Packet, origin: Place | None, target: Place | None, *, answer: bool) -> bool:
        """One node. ``origin`` and ``target`` are places on it; None means that the packet uses the uplink there."""
        from_pod = origin.workload if origin is not None else None
        to_pod = target.workload if target is not None else None
        locally_made = origin is not None and from_pod is None
        if locally_made and to_pod is not None:  # the node talks to its own pods: never policed
            self._tracked.add(node)
            return True
        # A host endpoint for all interfaces is also on those of pods and on the one by which the node talks to itself.
        uplink, elsewhere = self._snapshot.host_endpoint(node), self._snapshot.host_endpoint_elsewhere(node)
        inward, outward = uplink if origin is None else elsewhere, uplink if target is None else elsewhere

        accepted = False  # the Accept mark: later policy of the host endpoint is skipped
        if uplink is not None and uplink != elsewhere and (origin is None or (locally_made and target is None)):  # raw
            outcome = self._judge(uplink, "untracked", "ingress" if origin is None else "egress", packet, "untracked")
            if outcome == "deny":
                return False
            accepted = outcome == "allow"
        state = self._state(node, packet, answer=answer, untracked=accepted)

        if locally_made:  # filter OUTPUT
            if outward is not None and not accepted:
                accepted = self._judge(outward, "normal", "egress", packet, state) == "allow"
                if not accepted:
                    return False
            if target is None:
                return True
            accepted = False  # the node talks to itself: what it sent comes in
        # Mangle PREROUTING: one without policy there leaves the packet to the one for all interfaces, as in Calico.
        early = inward if inward is not None and inward.layers["pre-DNAT"] else elsewhere
        if early is not None and not accepted:
            outcome = self._judge(early, "pre-DNAT", "ingress", packet, state)
            if outcome == "deny":
                return False
            accepted = outcome == "allow" and state != "established"
        layers: list[tuple[Endpoint | None, Layer, Direction]] = []
        if target is not None and to_pod is None:  # filter INPUT
            if from_pod is not None:
                return self._pod_to_host(from_pod, packet, state)
            layers.append((None if accepted else inward, "normal", "ingress"))
        else:  # filter FORWARD
            layers.append((None if accepted else inward, "forward", "ingress"))
            layers.append((from_pod, "normal", "egress"))
            layers.append((to_pod, "normal", "ingress"))
            layers.append((outward, "forward", "egress"))
        return all(
            endpoint is None or self._judge(endpoint, layer, direction, packet, state) != "deny"
            for endpoint, layer, direction in layers
        )

    def _pod_to_host(self, pod: Endpoint, packet: Packet, state: Conntrack) -> bool:
        if packet.protocol == "icmpv6" and packet.icmp is not None and packet.icmp.type in NEIGHBOUR_DISCOVERY:
            return True
        if self._judge(pod, "normal", "egress", packet, state) == "deny":
            return False
        if state == "established" or self._snapshot.endpoint_to_host == "Accept":
            return True
        self.steps.append(Step(pod.node, pod.name, "normal", "egress", "endpoint to host: Drop"))
        return False

    def _state(self, node: str, packet: Packet, *, answer: bool, untracked: bool) -> Conntrack:
        if untracked:
            return "untracked"
        if not answer:
            self._tracked.add(node)
            return "new"
        if node in self._tracked:
            return "established"
        return "new" if packet.protocol == "udp" else "invalid"

    def _judge(
        self, endpoint: Endpoint, layer: Layer, direction: Direction, packet: Packet, state: Conntrack
    ) -> Outcome:
        """One chain of an endpoint: conntrack first (not in raw), failsafes of a host, then policy."""
        if endpoint.is_host and layer != "normal" and not endpoint.layers[layer]:
            return "undecided"
        if layer != "untracked":
            if state == "established":
                return "allow"
            if state == "invalid":
                self.steps.append(Step(endpoint.node, endpoint.name, layer, direction, "invalid: Deny"))
                return "deny"
        if not endpoint.is_host and direction == "egress" and _is_tunnelled(packet):
            self.steps.append(Step(endpoint.node, endpoint.name, layer, direction, "tunnel packet: Deny"))
            return "deny"
        if endpoint.is_host and layer != "forward" and _is_failsafe(packet, direction, raw=layer == "untracked"):
            self.steps.append(Step(endpoint.node, endpoint.name, layer, direction, "failsafe: Allow"))
            return "allow" if layer == "normal" else "undecided"  # elsewhere only that table is done with it
        return judge(self._snapshot, endpoint, layer, direction, packet, self.steps)


def _is_tunnelled(packet: Packet) -> bool:
    return packet.protocol == IPIP or (packet.protocol == "udp" and packet.destination_port == VXLAN_PORT)


def _is_failsafe(packet: Packet, direction: Direction, *, raw: bool) -> bool:
    """Failsafe ports by destination, and in the raw table the other direction's by source: answers to them.

    What IPv6 cannot do without counts as well.
    """
    if packet.protocol == "icmpv6" and packet.icmp is not None and packet.icmp.type in HOST_DISCOVERY:
        return True
    one, other = FAILSAFE_INBOUND, FAILSAFE_OUTBOUND
    if direction == "egress":
        one, other = other, one
    return (packet.protocol, packet.destination_port) in one or (raw and (packet.protocol, packet.source_port) in other)
