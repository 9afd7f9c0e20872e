"""What Felix keeps right in the kernel: restarts, drift, foreign rules, unknown interfaces, spoofed sources."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from calipy.felix.dataplane.nftables import NftablesReader
from calipy.felix.messages import ClusterRoute, EndpointID, IPSet, Match, PortRange, Rule, TierInfo, WorkloadEndpoint
from calipy.kernel import sysctl
from calipy.net import PROTO_FELIX, PROTO_WORKLOAD
from tests.support.felix import ALLOW_ALL, FelixProcess, Node, Pod, pings, policy, reaches, tier, until

pytestmark = [pytest.mark.kernel]

BACKENDS = pytest.mark.parametrize("backend", ["nft", "legacy"])


def programmed(node: Node, felix: FelixProcess, count: int = 2) -> list[Pod]:
    """Pods of which the first accepts TCP 80 from a set with all others, and nothing else."""
    pods = [node.pod() for _ in range(count)]
    send(felix, pods)
    felix.wait(*pods)
    return pods


def send(felix: FelixProcess, pods: list[Pod]) -> None:
    web = policy(
        "web", [Rule("allow", protocol="tcp", src=Match(ip_sets=("s:x",)), dst=Match(ports=(PortRange(80, 80),)))]
    )
    own = [ipaddress.ip_network(block) for block in ("10.65.0.0/26", "10.65.9.9/32")]
    felix.send(
        ip_sets={"s:x": IPSet("s:x", "net", frozenset(pod.address for pod in pods[1:]))},
        profiles={"open": ALLOW_ALL},
        policies={web.id: web},
        routes=dict.fromkeys(own, ClusterRoute("vxlan", "n1", local=True)),
        endpoints={pod.id: pod.endpoint((tier(web),) if pod is pods[0] else ()) for pod in pods},
    )


@BACKENDS
def test_restart_writes_nothing_and_loses_nothing(node: Node, backend: str) -> None:
    """Killed and started again, Felix finds everything in place: no transaction, no set or route change, no gap."""
    felix = node.felix(IptablesBackend=backend)
    server, client = programmed(node, felix)
    rules, sets, routes = node.rules(backend), node.ns.run("ipset", "save"), node.ns.run("ip", "route")
    felix.kill()
    assert reaches(client.ns, server.address, 80)
    assert not reaches(client.ns, server.address, 81)
    generation = node.ns.call(_generation)
    felix = node.felix(IptablesBackend=backend)
    until(lambda: felix.status().backend)
    assert reaches(client.ns, server.address, 80)
    send(felix, [server, client])
    felix.settle()
    assert node.ns.call(_generation) == generation
    assert _rules(node.rules(backend)) == _rules(rules)
    assert sorted(node.ns.run("ipset", "save").splitlines()) == sorted(sets.splitlines())
    assert node.ns.run("ip", "route") == routes
    assert not felix.status().drift


def test_an_orderly_end_leaves_everything_in_force(node: Node) -> None:
    """Stopped as with SIGTERM: rules, sets, routes and connectivity stay."""
    felix = node.felix()
    server, client = programmed(node, felix)
    rules, routes = _rules(node.rules()), node.ns.run("ip", "route")
    felix.stop()
    assert _rules(node.rules()) == rules
    assert node.ns.run("ip", "route") == routes
    assert reaches(client.ns, server.address, 80)
    assert not reaches(client.ns, server.address, 81)


def test_restart_removes_what_went_meanwhile_only_when_in_sync(node: Node) -> None:
    """Chains, sets and routes of a pod that was deleted during the absence go, after the first snapshot."""
    felix = node.felix()
    server, client, gone = programmed(node, felix, 3)
    felix.kill()
    felix = node.felix()
    until(lambda: felix.status().backend)
    assert gone.interface in node.rules()
    assert gone.address in node.ns.run("ip", "route")
    felix.send(profiles={"open": ALLOW_ALL}, endpoints={server.id: server.endpoint(), client.id: client.endpoint()})
    felix.settle()
    assert gone.interface not in node.rules()
    assert "cali-pi-gnp/web" not in node.rules()
    until(lambda: "cali40s:x" not in node.ns.run("ipset", "list", "-n"))
    assert reaches(client.ns, server.address, 81)
    # The interface is still there, and may be about to get an endpoint: its route has ten seconds of grace.
    until(lambda: gone.address not in node.ns.run("ip", "route"), timeout=20)


@BACKENDS
def test_start_on_an_empty_kernel_drops_first(node: Node, backend: str) -> None:
    """Before anything is known of the datastore, pods that are already wired up reach nothing and nobody."""
    one, two = node.pod(), node.pod()
    for pod in (one, two):
        node.ns.run("ip", "route", "add", f"{pod.address}/32", "dev", pod.interface)
        _proxy_arp(node, pod)
    node.ns.call(_forward)
    assert pings(one.ns, two.address)
    felix = node.felix(IptablesBackend=backend)
    until(lambda: felix.status().backend)
    assert not pings(one.ns, two.address)
    assert not pings(node.world, one.address)
    assert pings(node.world, "172.16.0.1")


def test_unknown_workload_interface_drops(node: Node) -> None:
    """A pod whose endpoint is not known has no connectivity, though its route exists; with the endpoint it has."""
    felix = node.felix()
    _server, client = programmed(node, felix)
    unknown = node.pod()
    node.ns.run("ip", "route", "add", f"{unknown.address}/32", "dev", unknown.interface)
    _proxy_arp(node, unknown)
    assert not pings(unknown.ns, client.address)
    assert not pings(client.ns, unknown.address)
    felix.send(endpoints={unknown.id: unknown.endpoint()})
    felix.wait(unknown)
    assert pings(unknown.ns, client.address)
    assert pings(client.ns, unknown.address)


@BACKENDS
def test_spoofed_source_is_dropped(node: Node, backend: str) -> None:
    """A pod that uses another pod's address, or one of the world's, does not get its packet through."""
    felix = node.felix(IptablesBackend=backend)
    server, client, thief = programmed(node, felix, 3)
    del server
    seen = _Listener(client, 9)
    thief.ns.links.add_address("eth0", _interface("10.65.0.99/32"))
    thief.ns.links.add_address("eth0", _interface("172.16.0.2/32"))
    for source, arrives in ((thief.address, True), ("10.65.0.99", False), ("172.16.0.2", False)):
        seen.clear()
        thief.ns.call(_send, source, client.address, 9)
        if arrives:
            until(lambda source=source: source in seen.sources)
        else:
            thief.ns.call(_send, thief.address, client.address, 9)
            until(lambda: thief.address in seen.sources)
            assert source not in seen.sources
    seen.close()


def _flush_all(node: Node) -> None:
    node.ns.run("iptables-nft", "-F")


def _delete_hook(node: Node) -> None:
    node.ns.run("iptables-nft", "-D", "FORWARD", "1")


def _insert_before_hook(node: Node) -> None:
    node.ns.run("iptables-nft", "-I", "FORWARD", "-j", "ACCEPT")


def _insert_into_ours(node: Node) -> None:
    node.ns.run("iptables-nft", "-I", "cali-FORWARD", "-j", "ACCEPT")


def _delete_everything(node: Node) -> None:
    node.ns.run("nft", "flush", "ruleset")


@pytest.mark.parametrize(
    "damage", [_flush_all, _delete_hook, _insert_before_hook, _insert_into_ours, _delete_everything]
)
def test_damaged_rules_are_noticed_and_healed(node: Node, damage: Callable[[Node], None]) -> None:
    """Whoever flushes, deletes or inserts: within five seconds the rules are back, and the drift is reported."""
    felix = node.felix()
    server, client = programmed(node, felix)
    wanted = _rules(node.rules())
    damage(node)
    own = [rule for rule in wanted if "cali" in rule]
    until(lambda: [rule for rule in _rules(node.rules()) if "cali" in rule] == own, timeout=5)
    until(lambda: felix.status().drift)
    assert not reaches(client.ns, server.address, 81)
    assert reaches(client.ns, server.address, 80)
    assert felix.status().ready


def test_legacy_damage_is_noticed_by_the_post_write_check(node: Node) -> None:
    """The legacy backend tells nobody of changes: they are found when the tables are read again."""
    felix = node.felix(IptablesBackend="legacy", IptablesPostWriteCheckIntervalSecs="1")
    programmed(node, felix)
    wanted = _rules(node.rules("legacy"))
    node.ns.run("iptables-legacy", "-F")
    until(lambda: _rules(node.rules("legacy")) == wanted)


@BACKENDS
def test_killed_at_any_moment_it_neither_opens_nor_loses(node: Node, backend: str) -> None:
    """SIGKILL in the middle of applies: what is allowed passes, what is not does not, and in the end all is right."""
    felix = node.felix(IptablesBackend=backend)
    server, client = programmed(node, felix)
    generator = random.Random(backend)
    verdicts: list[tuple[bool, bool]] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            allowed = reaches(client.ns, server.address, 80, timeout=2)
            verdicts.append((allowed, reaches(client.ns, server.address, 81, timeout=0.02)))

    prober = threading.Thread(target=probe)
    prober.start()
    for round_ in range(6):
        felix.kill()
        felix = node.felix(IptablesBackend=backend)
        send(felix, [server, client])
        extra = policy(f"extra{round_}", [Rule("deny", src=Match(ip_sets=(f"s:{round_}",)))] * 20)
        ghosts = [ghost(number, tier(extra)) for number in range(30)]
        felix.send(
            ip_sets={f"s:{round_}": IPSet(f"s:{round_}", "net", frozenset({"192.0.2.1"}))},
            policies={extra.id: extra},
            endpoints={item.id: item for item in ghosts},
        )
        time.sleep(generator.uniform(0, 0.25))
    send(felix, [server, client])
    felix.settle()
    stop.set()
    prober.join()
    assert len(verdicts) > 20
    assert set(verdicts) == {(True, False)}
    assert "cali-pi-gnp/extra4" not in node.rules(backend)
    until(lambda: "cali40s:4" not in node.ns.run("ipset", "list", "-n"))


def ghost(number: int, *tiers: TierInfo) -> WorkloadEndpoint:
    """An endpoint whose interface is not there."""
    identity = EndpointID("k8s", f"ns1/ghost{number}", "eth0")
    return WorkloadEndpoint(identity, f"calighost{number}", "", (f"10.65.1.{number}/32",), tiers, ("open",))


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
    assert node.ns.call(_sysctl, "net/ipv4/conf/eth0/proxy_arp") == "0"
    assert reaches(client.ns, server.address, 80)


def test_flushed_and_deleted_sets_are_noticed_by_their_size(node: Node) -> None:
    """Long before the refresh, and without anybody reading all members all the time."""
    felix = node.felix()
    server, client = programmed(node, felix)
    node.ns.run("ipset", "flush", "cali40s:x")
    assert not reaches(client.ns, server.address, 80)
    until(lambda: reaches(client.ns, server.address, 80), timeout=6)
    assert [item.name for item in felix.status().drift] == ["cali40s:x"]


@pytest.mark.parametrize(
    ("parameter", "config"),
    [
        ("ipv4/conf/{}/proxy_arp", {}),
        ("ipv4/conf/{}/forwarding", {}),
        ("ipv6/conf/{}/proxy_ndp", {}),
        ("ipv4/conf/{}/route_localnet", {"RouteRefreshInterval": "1"}),
    ],
)
def test_changed_sysctls_are_put_right(node: Node, parameter: str, config: dict[str, str]) -> None:
    """Within seconds, or at the refresh where the kernel does not tell; and reported, with what was found."""
    felix = node.felix(**config)
    server, client = programmed(node, felix)
    del client
    key = "net/" + parameter.format(server.interface)
    node.ns.call(_sysctl, key, "0")
    until(lambda: node.ns.call(_sysctl, key) == "1", timeout=6)
    drift = until(lambda: felix.status().drift)
    assert [(item.place, item.name, item.found) for item in drift] == [("sysctl", key, "0")]


def test_a_node_without_a_default_route_says_so(node: Node) -> None:
    """Nobody answers for the pods' gateway then: a warning, which goes away with the cause."""
    felix = node.felix()
    node.ns.run("ip", "route", "del", "default")
    programmed(node, felix)
    assert "169.254.1.1" in " ".join(felix.status().warnings)
    node.ns.run("ip", "route", "add", "default", "via", "172.16.0.2")
    until(lambda: not felix.status().warnings)
    assert felix.status().ready


def test_deleted_set_members_come_back_at_the_refresh(node: Node) -> None:
    """A member that was deleted, and one that was smuggled in, are put right when the sets are read again."""
    felix = node.felix(IpsetsRefreshInterval="1")
    server, client = programmed(node, felix)
    node.ns.run("ipset", "del", "cali40s:x", client.address)
    node.ns.run("ipset", "add", "cali40s:x", "192.0.2.1")
    until(lambda: felix.status().drift)
    members = node.ns.run("ipset", "save", "cali40s:x")
    assert client.address in members
    assert "192.0.2.1" not in members
    assert reaches(client.ns, server.address, 80)


def test_deleted_route_comes_back_at_once(node: Node) -> None:
    """The kernel reports a deleted route, so that no refresh is needed; a foreign route to a pod's interface goes."""
    felix = node.felix()
    server, client = programmed(node, felix)
    node.ns.run("ip", "route", "del", f"{server.address}/32")
    until(lambda: server.address in node.ns.run("ip", "route"), timeout=2)
    assert reaches(client.ns, server.address, 80)
    node.ns.run("ip", "route", "add", "192.0.2.7/32", "dev", client.interface)
    until(lambda: "192.0.2.7" not in node.ns.run("ip", "route"))


def test_interface_flap_brings_routes_and_sysctls_back(node: Node) -> None:
    """The kernel drops the routes of a link that goes down; they return with it, and the status follows."""
    felix = node.felix()
    server, client = programmed(node, felix)
    node.ns.links.set_down(server.interface)
    until(lambda: felix.status().endpoints[server.id].state == "down")
    node.ns.call(_sysctl, f"net/ipv4/conf/{server.interface}/proxy_arp", "0")
    node.ns.links.set_up(server.interface)
    until(lambda: felix.status().endpoints[server.id].state == "up")
    assert reaches(client.ns, server.address, 80)
    assert node.ns.call(_sysctl, f"net/ipv4/conf/{server.interface}/proxy_arp") == "1"


@BACKENDS
def test_foreign_rules_sets_and_routes_survive(node: Node, backend: str) -> None:
    """What is not ours stays through programming, healing and removal; our hook stays in front of it."""
    name = f"iptables-{backend}"
    node.ns.run("ipset", "create", "theirs", "hash:ip")
    node.ns.run(name, "-N", "THEIRS")
    node.ns.run(name, "-A", "THEIRS", "-m", "set", "--match-set", "theirs", "src", "-j", "ACCEPT")
    node.ns.run(name, "-A", "FORWARD", "-m", "comment", "--comment", "cali is not ours", "-j", "THEIRS")
    node.ns.run("ip", "route", "add", "192.0.2.0/24", "via", "172.16.0.2")
    felix = node.felix(IptablesBackend=backend)
    server, client = programmed(node, felix)
    felix.send(endpoints={server.id: None, client.id: None})
    felix.settle()
    rules = _rules(node.rules(backend))
    assert any("-j THEIRS" in rule for rule in rules)
    assert any(rule.startswith("-A THEIRS") for rule in rules)
    forward = [rule for rule in node.rules(backend).splitlines() if rule.startswith("-A FORWARD")]
    assert "cali-FORWARD" in forward[0]
    assert "THEIRS" in forward[1]
    assert "theirs" in node.ns.run("ipset", "list", "-n")
    assert "192.0.2.0/24" in node.ns.run("ip", "route")


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
    until(lambda: felix.status().endpoints[server.id].state == "up", timeout=15)
    assert reaches(client.ns, server.address, 80)


def test_policy_replaced_back_to_back_never_opens(node: Node) -> None:
    """A policy is deleted, its successor created milliseconds later: no probe that neither allows is answered."""
    felix = node.felix()
    server, client = programmed(node, felix)
    old = policy("web")
    answered: list[bool] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            answered.append(reaches(client.ns, server.address, 81, timeout=0.02))

    prober = threading.Thread(target=probe)
    prober.start()
    for round_ in range(5):
        new = policy(f"new{round_}", [Rule("deny", protocol="udp")])
        felix.send(policies={old.id: None}, endpoints={server.id: server.endpoint()})
        felix.send(policies={new.id: new}, endpoints={server.id: server.endpoint((tier(new),))})
        felix.settle()
        old = new
    stop.set()
    prober.join()
    assert len(answered) > 10
    assert not any(answered)


def test_address_that_moves_takes_no_connection_along(node: Node) -> None:
    """An address that goes to another pod: its route follows, and the kernel forgets the connections of the old one."""
    felix = node.felix()
    server, client = programmed(node, felix)
    assert pings(server.ns, client.address)
    assert server.address in node.ns.run("conntrack", "-L", "--orig-src", server.address)
    heir = node.pod()
    moved = heir.endpoint(nets=(f"{server.address}/32",), mac="")
    felix.send(endpoints={server.id: None, heir.id: moved})
    felix.wait(heir)
    assert f"{server.address} dev {heir.interface}" in node.ns.run("ip", "route")
    assert server.address not in node.ns.run("conntrack", "-L", "--orig-src", server.address)


def test_routes_and_blackholes_look_like_calicos(node: Node) -> None:
    """Pod routes: scope link, protocol 3, metric 1024, replacing the CNI plugin's; blocks: blackhole, but no /32."""
    felix = node.felix(ProgramClusterRoutes="Enabled")
    pod = node.pod()
    node.ns.run("ip", "route", "add", f"{pod.address}/32", "dev", pod.interface)
    send(felix, [pod])
    felix.wait(pod)
    routes = {str(r.dst): r for r in node.ns.routes.dump() if r.protocol in {PROTO_WORKLOAD, PROTO_FELIX}}
    mine = [r for r in node.ns.routes.dump() if str(r.dst) == f"{pod.address}/32"]
    assert [(r.scope, r.protocol, r.metric) for r in mine] == [("link", PROTO_WORKLOAD, 1024)]
    assert routes[f"{pod.address6}/128"].metric == 1024
    assert routes["10.65.0.0/26"].kind == "blackhole"
    assert "10.65.9.9/32" not in routes
    neighbours = node.ns.run("ip", "neigh", "show", "dev", pod.interface)
    assert f"{pod.address} lladdr {pod.mac} PERMANENT" in neighbours
    felix.send(routes={ipaddress.ip_network("10.65.0.0/26"): None})
    felix.settle()
    assert "blackhole" not in node.ns.run("ip", "route")


def test_chains_left_in_the_other_backend_are_swept(node: Node) -> None:
    """After a change from legacy to nft our chains of before do not go on judging packets; foreign ones stay."""
    felix = node.felix(IptablesBackend="legacy")
    server, client = programmed(node, felix)
    node.ns.run("iptables-legacy", "-A", "FORWARD", "-d", "192.0.2.1", "-j", "DROP")
    felix.stop()
    felix = node.felix(IptablesBackend="nft")
    send(felix, [server, client])
    felix.wait(server, client)
    until(lambda: "cali-" not in node.rules("legacy"))
    assert "192.0.2.1" in node.rules("legacy")
    assert reaches(client.ns, server.address, 80)


def test_forwarding_that_somebody_turned_off_comes_back(node: Node) -> None:
    """A node that stopped being a router (``sysctl -w net.ipv4.ip_forward=0``) is one again without a restart."""
    felix = node.felix(RouteRefreshInterval="1")
    server, client = programmed(node, felix)
    node.ns.call(_sysctl, "net.ipv4.ip_forward", "0")
    until(lambda: node.ns.call(_sysctl, "net.ipv4.ip_forward") == "1")
    until(lambda: reaches(client.ns, server.address, 80))


class _Listener:
    """Collects the source addresses of UDP packets to a pod's port."""

    def __init__(self, pod: Pod, port: int) -> None:
        self.sources: set[str] = set()
        self._socket = pod.ns.call(_udp_socket, pod.address, port)
        self._thread = threading.Thread(target=self._listen)
        self._stop = False
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop:
            try:
                self.sources.add(self._socket.recvfrom(100)[1][0])
            except TimeoutError:
                continue

    def clear(self) -> None:
        self.sources.clear()

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._socket.close()


def _udp_socket(address: str, port: int):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(0.1)
    sock.bind((address, port))
    return sock


def _send(source: str, destination: str, port: int) -> None:
    with _udp_socket(source, 0) as sock:
        sock.sendto(b"x", (destination, port))


def _interface(text: str):
    return ipaddress.ip_interface(text)


def _generation() -> int:
    with NftablesReader() as reader:
        return reader.generation()


def _sysctl(key: str, value: str | None = None) -> str:
    if value is not None:
        sysctl.write(key, value)
    return sysctl.read(key)


def _forward() -> None:
    _sysctl("net.ipv4.ip_forward", "1")


def _proxy_arp(node: Node, pod: Pod) -> None:
    node.ns.call(_sysctl, f"net/ipv4/conf/{pod.interface}/proxy_arp", "1")
    node.ns.call(_sysctl, f"net/ipv4/neigh/{pod.interface}/proxy_delay", "0")


def _rules(saved: str) -> list[str]:
    """Rules and chains without counters and times; the order of chains says nothing."""
    return sorted(line.partition(" [")[0] for line in saved.splitlines() if line.startswith(("-A", ":")))


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
    until(lambda: felix.status().ready, timeout=20)
    assert "192.0.2.1" in node.ns.run("ipset", "save", taken)


def _cpu_seconds(pid: int) -> float:
    """Used by the process and those that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
