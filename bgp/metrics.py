"""BGP's metrics for Prometheus. Single peers have series outside the mesh only: a mesh has n² sessions."""

from __future__ import annotations

from collections import Counter
from typing import Final

from calipy import clock
from calipy.bgp.router import Router
from calipy.metrics import REGISTRY, Registry

MESH: Final = "node-to-node mesh"


def watch(router: Router, registry: Registry = REGISTRY) -> None:
    """Expose a router's tables from now on. O(sessions + paths) each time somebody asks."""
    peers = registry.gauges("bgp_peers", "Number of BGP sessions there should be.", "type", "ip_version", "state")
    up = registry.gauges("bgp_peer_up", "Whether a session outside the mesh is established.", "peer", "type")
    paths = registry.gauges("bgp_peer_paths", "Paths that a peer outside the mesh has told.", "peer", "type")
    flaps = registry.gauges("bgp_peer_flaps", "How often a session outside the mesh was lost.", "peer", "type")
    refused = registry.gauges("bgp_peer_paths_refused", "Paths beyond a peer's limit.", "peer", "type")
    pending = registry.gauge("bgp_end_of_rib_pending", "Established sessions that have not told everything yet.")
    owed = registry.gauge("bgp_end_of_rib_owed", "Established sessions that we have not told everything yet.")
    rib_paths = registry.gauge("bgp_rib_paths", "Paths that all peers have told.")
    stale = registry.gauge("bgp_rib_stale_paths", "Paths kept for restarting peers.")
    prefixes = registry.gauge("bgp_rib_prefixes", "Prefixes with a best path.")
    malformed = registry.gauge("bgp_malformed_events", "Lines of ExaBGP that could not be read.")
    routes = registry.gauge("bgp_fib_routes", "Routes of BGP in the kernel.")
    wanted = registry.gauge("bgp_fib_wanted_routes", "Routes of BGP that should be in the kernel.")
    held = registry.gauge("bgp_fib_stale_routes", "Routes found at start that still wait for their peers.")
    failures = registry.gauge("bgp_fib_failures", "Routes that the kernel refuses.")
    left_out = registry.gauge("bgp_sessions_refused", "Sessions whose configuration ExaBGP refuses.")

    def read() -> None:
        now = clock.monotonic()
        for table in (peers, up, paths, flaps, refused):
            table.clear()
        states = router.sessions.states()
        kinds = Counter(
            (one.session.type, str(one.session.family), "up" if one.up else "start") for one in states.values()
        )
        for labels, number in kinds.items():
            peers.labels(*labels).set(number)
        old = 0
        for peer, state in states.items():
            told, kept, over = router.rib.counts(peer)
            old += kept
            if state.session.type != MESH:
                name = (str(peer), state.session.type)
                up.labels(*name).set(state.up)
                paths.labels(*name).set(told)
                flaps.labels(*name).set(state.flaps)
                refused.labels(*name).set(over)
        pending.set(sum(state.up and not router.sessions.settled(peer, now) for peer, state in states.items()))
        owed.set(len(router.owed()))
        all_paths, best = router.rib.size()
        rib_paths.set(all_paths)
        prefixes.set(best)
        stale.set(old)
        malformed.set(router.sessions.malformed)
        kernel = router.forwarding.kernel
        routes.set(len(kernel.actual))
        wanted.set(len(kernel.desired))
        held.set(len(kernel.stale))
        failures.set(len(kernel.failures))
        left_out.set(len(router.speaker.refused()))

    registry.before_exposing(read)
