"""What bgpd tells about itself: the answers on its socket, and the facts of CalicoNodeStatus."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from calipy import clock
from calipy.api import Handler
from calipy.bgp import explain, filters, nodestatus, status
from calipy.bgp.elsewhere import Reports, elsewhere
from calipy.bgp.explain import Origin
from calipy.bgp.kernel import KernelFib
from calipy.bgp.router import Router
from calipy.errors import InvalidInputError
from calipy.net import IPAddress, Prefix, Route, parse_prefix


class Answers:
    """Reads the parts of a router; changes nothing.

    Attributes:
        in_sync: whether the datastore has been read completely.
        datastore_problem: why it cannot be reached now, or "".
        reports: what other nodes publish; fed by the owner.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self.in_sync = False
        self.datastore_problem = ""
        self.reports = Reports()

    def handlers(self) -> Mapping[str, Handler]:
        """By method of the socket."""
        return {"status": self.status, "routes": self.routes, "explain": self.explain}

    def facts(self) -> nodestatus.Facts:
        """For CalicoNodeStatus."""
        router = self._router
        families = {address.version for address in router.view.own_addresses()}
        running = router.speaker.synchronised
        return nodestatus.Facts(
            version=f"calipy {version('calipy')}, ExaBGP {version('exabgp')}",
            router_id=router.peering.router_id,
            started=router.since,
            reconfigured=router.reconfigured,
            ready={4: running and 4 in families, 6: running and 6 in families},
            sessions=router.sessions.states(),
            rib=router.rib,
            kernel=router.forwarding.kernel.main_table(),
        )

    def reasons(self) -> list[str]:
        """Why the node is not ready; empty when it is."""
        router = self._router
        condition = status.Condition(
            age=clock.monotonic() - router.started_at,
            in_sync=self.in_sync,
            datastore=self.datastore_problem,
            speaker="" if router.speaker.synchronised else router.speaker.problem or "starting",
            restarting=bool(router.forwarding.kernel.stale),
        )
        return status.reasons(condition, router.sessions.states())

    async def status(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to ``status``."""
        router = self._router
        states, kernel = router.sessions.states(), router.forwarding.kernel
        why = self.reasons()
        paths, prefixes = router.rib.size()
        return {
            "pid": os.getpid(),
            "exabgp_pid": router.speaker.pid,
            "drained": router.speaker.drain.active,
            "since": clock.rfc3339(router.since),
            "router_id": str(router.peering.router_id or ""),
            "as_number": router.peering.local_as,
            "cluster_routes": router.cluster.mode or "",
            "peers": status.peers(states, router.rib, router.speaker.refused()),
            "rib": {"paths": paths, "prefixes": prefixes, "malformed_events": router.sessions.malformed},
            "fib": {
                "routes": len(kernel.actual),
                "wanted": len(kernel.desired),
                "stale": len(kernel.stale),
                "failures": [{"dst": str(dst), "reason": failure.reason} for dst, failure in kernel.failures.items()],
            },
            "problems": {
                **filters.missing(router.view.filters, router.peering.sessions.values()),
                **router.problems,
                **router.view.problems,
                **router.view.unreadable,
                **router.view.cluster.contested(),
            },
            "ready": not why,
            "reasons": why,
        }

    async def routes(self, params: dict[str, Any]) -> list[Any]:
        """The answer to ``routes``: RIB and kernel, of all prefixes or of those that cover ``prefix``."""
        only = _prefix(params["prefix"]) if params.get("prefix") else None
        kernel = self._router.forwarding.kernel
        failures = {dst: failure.reason for dst, failure in kernel.failures.items()}
        return status.routes(self._router.rib, kernel.actual, failures, only)

    async def explain(self, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``explain``: the chain from a prefix's origin to this kernel's route."""
        asked = _prefix(params.get("prefix"))
        router = self._router
        forwarding, policy = router.forwarding, router.export_policy
        kernel = forwarding.kernel
        origin = Origin(*(router.view.cluster.covering(asked) or ()))
        originated, loc_rib = policy.originated, router.rib.loc_rib()
        known = router.rib.prefixes() | originated.prefixes() | originated.hidden | kernel.actual.keys()
        target = explain.destination(asked, origin, known)
        states = router.sessions.states()

        def kept_back(peer: IPAddress) -> str:
            session = states[peer].session
            return policy.kept_back(session, target, loc_rib, router.local_address(session))

        failure = kernel.failures.get(target)
        facts = explain.Facts(
            asked=asked,
            target=target,
            hostname=router.view.hostname,
            from_datastore=router.cluster.mode == "datastore",
            origin=origin,
            originated=originated,
            sessions=explain.tellings(
                {peer: (state.session.node, state.up, state.info) for peer, state in states.items()},
                policy.exports(loc_rib, router.local_address),
                router.speaker.told,
                target,
                kept_back,
            ),
            paths=tuple(router.rib.paths(target)),
            best=router.rib.best(target),
            resolve=forwarding.resolver.get,
            programming=forwarding.programming,
            kernel=kernel.actual.get(target),
            others=next((route for route in kernel.main_table() if route.dst == target), None),
            failure=failure.reason if failure else "",
            around=_around(kernel, asked),
            pooled=router.view.pools().contain(asked),
        )
        # The ways of other nodes to what is not calipy's are not calipy's either.
        others = {} if explain.is_foreign(facts) else router.view.other_nodes(4 if target.version == 4 else 6)
        there = elsewhere(self.reports, target, others, explain.home(facts), clock.wall())
        return explain.explain(facts).as_json() | {"elsewhere": there}


def _around(kernel: KernelFib, asked: Prefix) -> Route | None:
    """The route that the kernel takes: for an address by all rules and tables, for a prefix by the main table."""
    if asked.prefixlen == asked.max_prefixlen:
        return kernel.lookup(asked.network_address)
    covering = [route for route in kernel.covering(asked.network_address) if route.dst.prefixlen <= asked.prefixlen]
    return max(covering, key=lambda route: (route.dst.prefixlen, -route.metric), default=None)


def _prefix(text: object) -> Prefix:
    try:
        return parse_prefix(str(text or ""))
    except ValueError as error:
        raise InvalidInputError("not a prefix", field="prefix", value=text, remedy="e.g. 10.244.0.0/26") from error
