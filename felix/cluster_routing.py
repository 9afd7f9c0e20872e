"""Kernel routes to the cluster's blocks and borrowed addresses, by the encapsulation of their pools. Pure.

| pool | next hop |
|---|---|
| VXLAN | the tunnel address of the node, onlink, into the VXLAN device; the tunnel address itself: the device |
| IPIP | the node, onlink, into the IPIP device |
| CrossSubnet, none: node on this node's subnet | the node, onlink, by the interface with this node's address |
| any, own block | blackhole: what no pod has must not follow the default route and come back |

Protocol 80, metric 0, which IPv6 knows as 1024, as Felix (``felix/dataplane/linux/{route,vxlan,ipip,noencap}_mgr.go``).
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from calipy.felix.messages import VTEP, VTEPID, ClusterRoute
from calipy.felix.ownership import IPIP_DEVICE, TUNNEL_DEVICES, VXLAN_DEVICES
from calipy.net import PROTO_FELIX, Family, NextHop, Prefix, Route

_METRIC: Final[Mapping[Family, int]] = {4: 0, 6: 1024}


class ClusterRouting:
    """Desired routes by destination. Setters return the destinations that may lead elsewhere now."""

    def __init__(self) -> None:
        self._routes: dict[Prefix, ClusterRoute] = {}
        self._vteps: dict[VTEPID, VTEP] = {}
        self._behind: defaultdict[VTEPID, set[Prefix]] = defaultdict(set)
        self._nics: Mapping[Family, str] = {}

    def set_route(self, dst: Prefix, route: ClusterRoute | None) -> set[Prefix]:
        """Where a destination leads to, None for nowhere."""
        old = self._routes.pop(dst, None)
        if old is not None:
            self._behind[old.node, dst.version].discard(dst)
        if route is not None:
            self._routes[dst] = route
            self._behind[route.node, dst.version].add(dst)
        return {dst}

    def set_vtep(self, identity: VTEPID, vtep: VTEP | None) -> set[Prefix]:
        """A node's end of the VXLAN network. O(the node's destinations)."""
        if vtep is None:
            self._vteps.pop(identity, None)
        else:
            self._vteps[identity] = vtep
        return set(self._behind.get(identity, ()))

    def set_nics(self, nics: Mapping[Family, str]) -> set[Prefix]:
        """The interfaces with this node's addresses. O(all destinations) if they are others."""
        if nics == self._nics:
            return set()
        self._nics = dict(nics)
        return set(self._routes)

    def leads_through(self, interface: str) -> bool:
        """Whether routes may use the interface."""
        return interface in TUNNEL_DEVICES or interface in self._nics.values()

    def destinations(self) -> Iterable[Prefix]:
        """All that have been set."""
        return self._routes.keys()

    def desired(self, dst: Prefix) -> Route | None:
        """The route to a destination, None if there is none or something about its node is not known yet."""
        route = self._routes.get(dst)
        if route is None:
            return None
        if route.local:
            single = dst.prefixlen == dst.max_prefixlen  # the pod's own route, or the CNI plugin's
            return (
                None if single else Route(dst, "blackhole", (), PROTO_FELIX, _METRIC[dst.version], origin="own block")
            )
        hop = self._hop(dst, route)
        if hop is None:
            return None
        origin = f"{route.encapsulation} pool, node {route.node}"
        scope: Literal["global", "link"] = "global" if hop.gateway else "link"
        return Route(dst, "unicast", (hop,), PROTO_FELIX, _METRIC[dst.version], scope, origin=origin)

    def _hop(self, dst: Prefix, route: ClusterRoute) -> NextHop | None:
        node = ipaddress.ip_address(route.address) if route.address else None
        nic = self._nics.get(dst.version)
        if route.same_subnet and nic and node is not None:
            return NextHop(node, nic, onlink=True)
        if route.encapsulation == "vxlan":
            device, vtep = VXLAN_DEVICES[dst.version], self._vteps.get((route.node, dst.version))
            if route.tunnel:
                return NextHop(interface=device)
            return NextHop(ipaddress.ip_address(vtep.address), device, onlink=True) if vtep is not None else None
        if route.encapsulation == "ipip" and node is not None:
            return NextHop(node, IPIP_DEVICE, onlink=True)
        return None
