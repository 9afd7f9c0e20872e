"""What the kernel or its tools refuse, or make wait: the rest is applied, it is reported, and tried again."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from pathlib import Path

import pytest

from calipy.felix.messages import IPSet, Match, Rule
from tests.support.felix import (
    Node,
    ghost,
    listed,
    pings,
    policy,
    programmed,
    reaches,
    sysctl_of,
    tier,
    until,
)
from tests.support.probes import Probes

pytestmark = [pytest.mark.kernel]


def test_a_refused_rule_closes_its_own_chain_only(node: Node) -> None:
    """A rule that the kernel does not take leaves its chain dropping; all else is applied, and it is reported."""
    felix = node.felix()
    server, client = programmed(node, felix)
    other = node.pod()
    bad = policy("bad", [Rule("allow"), Rule("allow", src=Match(ip_sets=("s:never-sent",)))])
    felix.send(policies={bad.id: bad}, endpoints={server.id: server.endpoint((tier(bad),)), other.id: other.endpoint()})
    felix.wait(other)
    status = until(lambda: (s := felix.status()).endpoints[server.id].state == "error" and s)
    assert "never-sent" in status.endpoints[server.id].cause
    assert not status.ready
    assert pings(other.ns, client.address)
    assert not reaches(client.ns, server.address, 80)
    felix.send(ip_sets={"s:never-sent": IPSet("s:never-sent", "net", frozenset())})
    until(lambda: felix.status().endpoints[server.id].state == "up")
    assert reaches(client.ns, server.address, 80)


def test_endpoints_that_cannot_be_are_reported_and_touch_nothing(node: Node) -> None:
    """An interface of the node itself, an impossible name, a MAC that is none: an error each, and the others work."""
    felix = node.felix()
    server, client = programmed(node, felix)
    bad_mac = node.pod()
    thief = dataclasses.replace(ghost(1), interface="eth0")
    inject = dataclasses.replace(ghost(2), interface="cali1 -j ACCEPT")
    felix.send(endpoints={thief.id: thief, inject.id: inject, bad_mac.id: bad_mac.endpoint(mac="nonsense")})
    status = until(lambda: (s := felix.status()).endpoints.get(bad_mac.id) and s)
    states = {identity.workload: found for identity, found in status.endpoints.items()}
    assert states["ns1/ghost1"].state == states["ns1/ghost2"].state == "error"
    assert "eth0" in states["ns1/ghost1"].cause
    assert until(lambda: felix.status().endpoints[bad_mac.id].state == "error")
    assert node.ns.call(sysctl_of, "net/ipv4/conf/eth0/proxy_arp") == "0"
    assert reaches(client.ns, server.address, 80)


def test_lasting_trouble_does_not_make_it_spin(node: Node) -> None:
    """While ipset cannot be used at all Felix tries again in growing pauses, says why, and recovers by itself."""
    felix = node.felix(IpsetsRefreshInterval="1", RouteRefreshInterval="1")
    server, client = programmed(node, felix)
    taken = "cali40s:late"
    node.ns.run("ipset", "create", taken, "bitmap:port", "range", "1-10")
    node.ns.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "-m", "set", "--match-set", taken, "src", "-j", "RETURN")
    felix.send(ip_sets={"s:late": IPSet("s:late", "net", frozenset({"192.0.2.1"}))})
    until(lambda: "s:late" in " ".join(felix.status().errors))
    before = _cpu_seconds(felix.pid)
    time.sleep(4)
    assert _cpu_seconds(felix.pid) - before < 2
    assert not felix.status().ready
    assert reaches(client.ns, server.address, 80)
    node.ns.run("iptables-nft", "-F", "INPUT")
    until(lambda: felix.status().ready)
    assert "192.0.2.1" in node.ns.run("ipset", "save", taken)


def _cpu_seconds(pid: int) -> float:
    """Used by the process and those that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def test_while_the_xtables_lock_is_held_nothing_is_half_applied(node: Node, tmp_path: Path) -> None:
    """Somebody holds the legacy lock for ten seconds: what is in force stays so, the change comes once it is free."""
    lock = tmp_path / "xtables.lock"
    felix = node.felix(IptablesBackend="legacy", environment={"XTABLES_LOCKFILE": str(lock)})
    server, client = programmed(node, felix)
    before = listed(node.rules("legacy"))
    added = policy("added", [Rule("deny")])
    with (
        Probes(client.ns, client.address, server.ns, server.address) as allowed,
        lock.open("w") as held,
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        felix.send(policies={added.id: added}, endpoints={client.id: client.endpoint((tier(added),))})
        time.sleep(10)
        assert listed(node.rules("legacy")) == before
        assert reaches(client.ns, server.address, 80)
        assert not reaches(client.ns, server.address, 81)
        fcntl.flock(held, fcntl.LOCK_UN)
        until(lambda: "cali-pi-gnp/added" in node.rules("legacy"))
        until(lambda: felix.status().ready)
    assert not allowed.lost
