"""The kernel's routes are what the Loc-RIB says, after many changes of IPv6 paths at once."""

from __future__ import annotations

import pytest

from calipy import api_client
from tests.support.bgp import BgpLab, BgpNode, eventually, eventually_is

pytestmark = pytest.mark.kernel

PREFIXES = [f"2001:db8:{number}::/48" for number in range(1, 7)]
BIRD = """
router id 10.9.9.{number};
protocol device {{ scan time 1; }}
protocol direct {{ ipv6; }}
protocol static {{ ipv6; {routes} }}
protocol bgp n1 {{
  local fd77:1::{number} as 64500; neighbor fd77:1::1 as 64512;
  ipv6 {{ import none; export where source = RTS_STATIC; next hop self; }};
}}
"""


def bird(number: int, prefixes: list[str]) -> str:
    """A router of the fabric that announces these prefixes."""
    return BIRD.format(number=number, routes=" ".join(f"route {prefix} unreachable;" for prefix in prefixes))


def loc_rib(node: BgpNode) -> dict[str, tuple[str, ...]]:
    """Next hops of the paths that are to be used, by prefix, as bgpd tells them."""
    entries = api_client.call(node.directory / "bgpd.sock", "routes", timeout=5)
    return {
        entry["prefix"]: tuple(sorted(path["next_hop"] for path in entry["paths"] if path["best"] or path["multipath"]))
        for entry in entries
    }


def test_ipv6_routes_follow_flaps_and_ecmp(bgp_lab: BgpLab) -> None:
    """Two routers announce overlapping prefixes, change them and flap: always the Loc-RIB's ways, one or several."""
    one, two = "fd77:1::101", "fd77:1::102"
    for address in (one, two):
        bgp_lab.peer(f"tor-{address[-1]}", peer_ip=address, as_number=64500)
    n1 = bgp_lab.node("n1", "10.77.1.1/24", address6="fd77:1::1/64")
    a = bgp_lab.bird(bgp_lab.namespace("tor-a", f"{one}/64"), bird(101, PREFIXES[:4]), "tor-a")
    b = bgp_lab.bird(bgp_lab.namespace("tor-b", f"{two}/64"), bird(102, PREFIXES[2:]), "tor-b")
    only_a, both, only_b = PREFIXES[:2], PREFIXES[2:4], PREFIXES[4:]
    wanted = dict.fromkeys(only_a, (one,)) | dict.fromkeys(both, (one, two)) | dict.fromkeys(only_b, (two,))

    def agrees(what: str, wanted: dict[str, tuple[str, ...]]) -> None:
        eventually_is(f"kernel, {what}", wanted, n1.gateways)
        eventually_is(f"Loc-RIB, {what}", wanted, lambda: loc_rib(n1))

    agrees("both up", wanted)
    for _ in range(3):
        for router in (a, b):
            router.ask("disable n1")
            router.ask("enable n1")
    agrees("after flaps", wanted)
    a.configure(bird(101, PREFIXES[4:]))
    b.configure(bird(102, PREFIXES[1:5]))
    agrees("other prefixes", dict.fromkeys(PREFIXES[1:4], (two,)) | {PREFIXES[4]: (one, two), PREFIXES[5]: (one,)})
    for prefix in (PREFIXES[1], PREFIXES[4]):
        n1.ns.run("ip", "-6", "route", "del", prefix)
    agrees("mended", dict.fromkeys(PREFIXES[1:4], (two,)) | {PREFIXES[4]: (one, two), PREFIXES[5]: (one,)})
    b.ask("disable n1")
    agrees("one left", dict.fromkeys(PREFIXES[4:], (one,)))
    eventually("nothing refused", lambda: not n1.status()["fib"].get("failures"))
