"""BIRD, FRR and GoBGP as reflectors and as ToR, configured as the manual says: RIBs of both sides and kernels agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from calipy.datastore.resources import BGPPassword, SecretKeySelector
from tests.support.bgp import BgpLab, BgpNode, eventually, eventually_is
from tests.support.routers import Frr, GoBgp, need, sample

pytestmark = pytest.mark.kernel

ROUTER = "10.77.1.200"
Best = Callable[[], dict[str, tuple[str, str]]]


def start(lab: BgpLab, kind: str, title: str) -> Best:
    """A router with a sample of the manual; what it holds as best paths."""
    match kind:
        case "BIRD":
            bird = lab.bird(lab.namespace("router", f"{ROUTER}/24"), sample(f"BIRD as {title}"))
            return lambda: bird_best(bird.ask("show route all", check=False))
        case "FRR":
            need("/usr/lib/frr/bgpd", "/usr/lib/frr/zebra", "vtysh")
            return Frr(lab, lab.namespace("router", f"{ROUTER}/24"), sample(f"FRR as {title}")).best
        case _:
            need("gobgpd", "gobgp")
            return GoBgp(lab, lab.namespace("router", f"{ROUTER}/24"), sample(f"GoBGP as {title}")).best


def bird_best(text: str) -> dict[str, tuple[str, str]]:
    """Next hop and AS path of BGP's best paths, from BIRD's listing."""
    found: dict[str, tuple[str, str]] = {}
    prefix = path = ""
    for line in text.splitlines():
        if line[:1].isdigit():
            prefix = line.split()[0] if "[c" in line and " * " in line else ""
        elif "BGP.as_path:" in line:
            path = line.partition(":")[2].strip()
        elif "BGP.next_hop:" in line and prefix:
            found[prefix] = (line.split()[1], path)
    return found


def nodes(lab: BgpLab) -> tuple[BgpNode, BgpNode]:
    """Two nodes with a block each and no mesh."""
    lab.pool("10.244.0.0/16")
    lab.configuration(node_to_node_mesh_enabled=False)
    lab.block("10.244.1.0/26", "n1")
    lab.block("10.244.2.0/26", "n2")
    return lab.node("n1", "10.77.1.1/24"), lab.node("n2", "10.77.1.2/24")


@pytest.mark.parametrize("kind", ["BIRD", "FRR", "GoBGP"])
def test_as_reflector(bgp_lab: BgpLab, kind: str) -> None:
    """Two nodes that peer with it alone have each other's blocks by each other's address; withdrawals arrive too."""
    best = start(bgp_lab, kind, "reflector")
    bgp_lab.peer("rr", peer_ip=ROUTER, as_number=64512)
    n1, n2 = nodes(bgp_lab)
    eventually_is("n1's kernel", {"10.244.2.0/26": (n2.address,)}, n1.gateways, timeout=40)
    eventually_is("n2's kernel", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    eventually_is("its RIB", {"10.244.1.0/26": (n1.address, ""), "10.244.2.0/26": (n2.address, "")}, best)
    bgp_lab.unblock("10.244.2.0/26", "n2")
    bgp_lab.block("10.244.3.0/26", "n2")
    eventually_is("n1's kernel follows", {"10.244.3.0/26": (n2.address,)}, n1.gateways)
    eventually_is("its RIB too", {"10.244.1.0/26": (n1.address, ""), "10.244.3.0/26": (n2.address, "")}, best)
    assert n1.peers()[ROUTER]["flaps"] == 0


@pytest.mark.parametrize("kind", ["FRR", "GoBGP"])
def test_as_tor(bgp_lab: BgpLab, kind: str) -> None:
    """eBGP with TCP-MD5: it has the blocks by AS 64512, the nodes have its default route, its kernel reaches pods."""
    if kind == "FRR":
        need("/usr/lib/frr/bgpd", "/usr/lib/frr/zebra", "vtysh")
    else:
        need("gobgpd", "gobgp")
    router = bgp_lab.namespace("router", f"{ROUTER}/24")
    title = f"{kind} as ToR"
    frr = Frr(bgp_lab, router, sample(title)) if kind == "FRR" else None
    gobgp = GoBgp(bgp_lab, router, sample(title)) if kind == "GoBGP" else None
    secret = BGPPassword(secret_key_ref=SecretKeySelector(name="tor", key="password"))
    bgp_lab.peer("tor", peer_ip=ROUTER, as_number=65001, password=secret)
    for name in ("n1", "n2"):
        directory = bgp_lab.directory / name / "secrets" / "tor"
        directory.mkdir(parents=True)
        (directory / "password").write_text("s3cr3t\n")
    n1, n2 = nodes(bgp_lab)
    blocks = {"10.244.1.0/26": (n1.address, "64512"), "10.244.2.0/26": (n2.address, "64512")}
    if frr is not None:
        eventually_is("its RIB", blocks, frr.best, timeout=40)
        eventually_is("the nodes' default route", {"0.0.0.0/0": (ROUTER,)}, n1.gateways)
        eventually("its kernel", lambda: "10.244.2.0/26 nhid" in router.run("ip", "route", "show", "proto", "bgp"))
        n2.ns.run("ip", "addr", "add", "10.244.2.1/32", "dev", "lo")
        router.run("ping", "-c1", "-W2", "10.244.2.1")
    if gobgp is not None:
        gobgp.add("192.0.2.0/24")
        eventually_is("its RIB", blocks, lambda: {k: v for k, v in gobgp.best().items() if k in blocks}, timeout=40)
        eventually_is("the nodes' route", {"192.0.2.0/24": (ROUTER,)}, n1.gateways)
    assert n1.peers()[ROUTER]["as_number"] == 65001
