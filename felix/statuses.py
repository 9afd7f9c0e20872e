"""State of each endpoint of this node, as Calico reports it, from what is known and what the kernel took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from calipy.felix.dataplane.endpoints import Endpoints
from calipy.felix.dataplane.hosts import HostEndpoints
from calipy.felix.known import Known
from calipy.felix.messages import EndpointID, WorkloadEndpoint
from calipy.felix.render.names import Direction, host_chain, workload_chain
from calipy.felix.ruleset import Ruleset

EndpointState = Literal["up", "down", "error"]

_DIRECTIONS: Final[tuple[Direction, Direction]] = ("ingress", "egress")
_WAITING: Final = "not programmed yet"


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """State of one local endpoint, and why it is not ``up``."""

    state: EndpointState
    cause: str = ""


class Statuses:
    """Reads from those who know; keeps nothing."""

    def __init__(self, known: Known, workloads: Endpoints, hosts: HostEndpoints, rules: Ruleset) -> None:
        self._known = known
        self._workloads = workloads
        self._hosts = hosts
        self._rules = rules

    def workload(self, identity: EndpointID) -> EndpointStatus | None:
        """State of a workload endpoint, None if there is no such endpoint here."""
        if unusable := self._known.unusable.get(identity):
            return EndpointStatus("error", unusable)
        endpoint = self._known.endpoints.get(identity)
        if endpoint is None:
            return None
        interface = endpoint.interface
        holder = self._known.holder(interface)
        if holder is not None and holder != identity:
            return EndpointStatus("down", f"interface {interface} belongs to {'/'.join(holder)}")
        if problem := self._problem(endpoint):
            return EndpointStatus("error", problem)
        if identity in self._known.unapplied:
            return EndpointStatus("down", _WAITING)
        if not endpoint.admin_up:
            return EndpointStatus("down", "disabled")
        if not self._workloads.is_up(interface):
            return EndpointStatus("down", f"interface {interface} is missing or down")
        if not self._workloads.is_settled(interface):
            return EndpointStatus("down", _WAITING)
        return EndpointStatus("up")

    def workloads(self) -> dict[EndpointID, EndpointStatus]:
        """State of every workload endpoint of this node."""
        known = (*self._known.endpoints, *self._known.unusable)
        return {identity: status for identity in known if (status := self.workload(identity))}

    def hosts(self) -> dict[str, EndpointStatus]:
        """State of every host endpoint of this node."""
        return {name: self._host(name) for name in self._hosts.names()}

    def _problem(self, endpoint: WorkloadEndpoint) -> str:
        interface = endpoint.interface
        if problem := self._workloads.problem(interface):
            return problem
        return self._rules.refusal({workload_chain(interface, direction) for direction in _DIRECTIONS})

    def _host(self, name: str) -> EndpointStatus:
        chains = {
            host_chain(interface, direction, forward=forward)
            for interface, endpoint in self._hosts.interfaces.items()
            if endpoint.name == name
            for direction in _DIRECTIONS
            for forward in (False, True)
        }
        if refusal := self._rules.refusal(chains):
            return EndpointStatus("error", refusal)
        if name in self._known.unapplied_hosts:
            return EndpointStatus("down", _WAITING)
        problem = self._hosts.problem(name)
        return EndpointStatus("down", problem) if problem else EndpointStatus("up")
