"""Which tunnels the cluster's pools ask for, and where the ends of the VXLAN networks are.

Every node with an address and a tunnel address of a family has a VTEP in it. Its MAC is in the Node or follows from the
node's name, so that all nodes know it without asking. Source: Calico ``felix/calc/{vxlan,encapsulation}_resolver.go``.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from typing import Final

from calipy.datastore.resources import NodeSpec
from calipy.felix.graph.nodes import addresses
from calipy.felix.graph.routes import encapsulation
from calipy.felix.messages import VTEP, VTEPID, Changes, Encap, Encapsulation, Pool
from calipy.net import Family

_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_FAMILIES: Final[tuple[Family, Family]] = (4, 6)


def vtep_mac(node: str, family: Family) -> str:
    """The MAC of a node's VXLAN device where its Node does not say: locally administered, made from the name."""
    text = node if family == 4 else f"{node}-v6"
    return (b"\x66" + hashlib.sha1(text.encode(), usedforsecurity=False).digest()[:5]).hex(":")


class Tunnels:
    """Encapsulation from all pools, VTEPs from all nodes. An event costs O(1); turning VXLAN on or off O(nodes)."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._pools: dict[str, Pool] = {}
        self._nodes: dict[str, NodeSpec] = {}
        self._ipip: bool | None = None
        self._vxlan: bool | None = None
        self._ipv6 = True
        self._stale = True
        self._dirty: set[str] = set()
        self._sent: dict[VTEPID, VTEP] = {}
        self.encapsulation: Encapsulation | None = None

    def configure(self, *, ipip: bool | None, vxlan: bool | None, ipv6: bool) -> None:
        """Overrides of what the pools say (ipipEnabled; vxlanEnabled, which is for IPv4 only, as in Felix)."""
        self._ipip, self._vxlan, self._ipv6 = ipip, vxlan, ipv6
        self._stale = True

    def set_pool(self, name: str, pool: Pool | None) -> None:
        """Add, replace or (None) remove a pool."""
        if pool is None:
            self._pools.pop(name, None)
        else:
            self._pools[name] = pool
        self._stale = True

    def set_node(self, name: str, spec: NodeSpec | None) -> None:
        """Add, replace or (None) remove a node."""
        if spec is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = spec
        self._dirty.add(name)

    def flush(self, changes: Changes) -> Encapsulation:
        """Say what changed since the last flush; what is needed now. O(changed nodes), O(pools) if one has changed."""
        if self._stale:
            wanted, self._stale = self._wanted(), False
            if wanted != self.encapsulation:
                changes.encapsulation = self.encapsulation = wanted
                self._dirty.update(self._nodes)
        wanted = self.encapsulation or Encapsulation()
        for name in self._dirty:
            for family in _FAMILIES:
                vtep = self._vtep(name, family) if (wanted.vxlan if family == 4 else wanted.vxlan6) else None
                self._send((name, family), vtep, changes)
        self._dirty = set()
        return wanted

    def in_use(self) -> set[Encap]:
        """What pools of pods ask for. O(pools)."""
        return {encapsulation(pool) for pool in self._pools.values() if not pool.load_balancer_only}

    def _wanted(self) -> Encapsulation:
        kinds = {(encapsulation(pool), ":" in pool.cidr) for pool in self._pools.values()}
        return Encapsulation(
            ipip=("ipip", False) in kinds if self._ipip is None else self._ipip,
            vxlan=("vxlan", False) in kinds if self._vxlan is None else self._vxlan,
            vxlan6=("vxlan", True) in kinds and self._ipv6,
        )

    def _vtep(self, name: str, family: Family) -> VTEP | None:
        spec = self._nodes.get(name)
        if spec is None:
            return None
        parent = addresses(spec).get(family)
        address = spec.ipv4_vxlan_tunnel_addr if family == 4 else spec.ipv6_vxlan_tunnel_addr
        mac = spec.vxlan_tunnel_mac_addr if family == 4 else spec.vxlan_tunnel_mac_addr_v6
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            return None
        if parent is None or (mac and not _MAC.fullmatch(mac)):
            return None
        return VTEP(mac.lower() or vtep_mac(name, family), address, str(parent.ip), name == self._hostname)

    def _send(self, identity: VTEPID, vtep: VTEP | None, changes: Changes) -> None:
        if vtep == self._sent.get(identity):
            return
        changes.vteps[identity] = vtep
        if vtep is None:
            del self._sent[identity]
        else:
            self._sent[identity] = vtep
