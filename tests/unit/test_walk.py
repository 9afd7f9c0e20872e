"""The model of netfilter: matches, targets, chains, hooks, and what it refuses to guess."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest

from calipy.felix import messages
from calipy.felix.config import FelixConfig
from calipy.felix.delta import Table
from calipy.felix.messages import (
    ActivePolicy,
    ActiveProfile,
    Changes,
    EndpointID,
    LocalBGPPeer,
    PolicyID,
    TierInfo,
    WorkloadEndpoint,
)
from calipy.felix.render.renderer import Renderer
from calipy.felix.render.rule import Chain, Hook, Origin, Rule
from calipy.felix.sets import KernelSet
from calipy.felix.walk import Before, Packet, Walk, WalkError, walk
from calipy.policy.values import ICMP

A, B = ipaddress.ip_address("10.65.1.1"), ipaddress.ip_address("10.65.2.1")
A6, B6 = ipaddress.ip_address("fd00::1"), ipaddress.ip_address("fd00::2")
TCP = Packet(
    source=A, destination=B, protocol="tcp", source_port=4000, destination_port=80, in_interface="cali1",
    out_interface="eth0",
)  # fmt: skip
PING = replace(TCP, protocol="icmp", source_port=0, destination_port=0, icmp=ICMP(8, 0))
PING6 = replace(PING, source=A6, destination=B6, protocol="icmpv6", icmp=ICMP(128, 0))
RAW_IP = replace(TCP, protocol=47, source_port=0, destination_port=0)
SETS = {
    "hosts": KernelSet("hash:net", 4, 1024, {"10.65.1.1", "192.0.2.0/24"}),
    "web": KernelSet("hash:ip,port", 4, 1024, {"10.65.2.1,tcp:80"}),
    "six": KernelSet("hash:net", 6, 1024, {"8000::/1"}),
}
MARKED = replace(TCP, mark=0x30000)
OWN = {"eth0": {A}, "lo": {ipaddress.ip_address("127.0.0.1")}}


def table(name: str, hook: str, rules: list[Rule], **chains: list[Rule]) -> dict[str, Table]:
    """One table with a hook that holds ``rules``, and chains of ours (``__`` for ``-``)."""
    made = Table(name)
    made.set_hook(Hook(hook, tuple(rules)))
    for chain, content in chains.items():
        made.put(Chain(chain.replace("__", "-"), tuple(content)))
    return {name: made}


def drop(match: str = "") -> Rule:
    return Rule(match, "--jump DROP", (), Origin("tier", "last"))


def through(packet: Packet, match: str, name: str = "filter", hook: str = "FORWARD") -> Walk:
    """The walk through one rule that drops what matches."""
    return walk(table(name, hook, [drop(match)]), SETS, packet)


@pytest.mark.parametrize(
    ("match", "packet", "hit"),
    [
        ("", TCP, True),
        ("-p tcp", TCP, True),
        ("-p 6", TCP, True),
        ("-p udp", TCP, False),
        ("! -p udp", TCP, True),
        ("! -p 6", TCP, False),
        ("-p 47", RAW_IP, True),
        ("--source 10.65.1.0/24", TCP, True),
        ("--source 10.65.2.0/24", TCP, False),
        ("! --source 10.65.2.0/24 --destination 10.65.2.1/32", TCP, True),
        ("! --destination 10.65.2.1/32", TCP, False),
        ("--in-interface cali+", TCP, True),
        ("--in-interface cali", TCP, False),
        ("--in-interface cali1 --out-interface eth0", TCP, True),
        ("! --out-interface eth0", TCP, False),
        ("-m set --match-set hosts src", TCP, True),
        ("-m set --match-set hosts dst", TCP, False),
        ("-m set --match-set hosts src", replace(TCP, source=ipaddress.ip_address("192.0.2.9")), True),
        ("-m set ! --match-set hosts dst", TCP, True),
        ("-m set --match-set web dst,dst", TCP, True),
        ("-m set --match-set web dst,dst", replace(TCP, protocol="udp"), False),
        ("-m set --match-set web dst,dst", replace(TCP, destination_port=81), False),
        ("-m set --match-set web src,src", replace(TCP, source=B, destination=A, source_port=80), True),
        ("-m set ! --match-set web dst,dst", RAW_IP, True),
        ("-m set --match-set six src", PING6, True),
        ("-p tcp -m multiport --destination-ports 1,79:80", TCP, True),
        ("-p tcp -m multiport --source-ports 80", TCP, False),
        ("-p tcp -m multiport ! --destination-ports 81:90", TCP, True),
        ("-p udp -m multiport --destination-ports 80", TCP, False),
        ("-p icmp -m icmp --icmp-type 8", PING, True),
        ("-p icmp -m icmp --icmp-type 8/1", PING, False),
        ("-p icmp -m icmp ! --icmp-type 8/1", PING, True),
        ("-p icmp -m icmp --icmp-type 255", PING, True),
        ("-p icmp -m icmp --icmp-type 8", TCP, False),
        ("-p 58 -m icmp6 --icmpv6-type 128/0", PING6, True),
        ("-p icmpv6 -m icmp6 --icmpv6-type 255", PING6, False),
        ("-m mark --mark 0x10000/0x10000", MARKED, True),
        ("-m mark --mark 0/0x10000", MARKED, False),
        ("-m mark ! --mark 0/0x90000", MARKED, True),
        ("-m mark --mark 0x30000", MARKED, True),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", TCP, False),
        ("-m conntrack --ctstate RELATED,ESTABLISHED", replace(TCP, conntrack="related"), True),
        ("-m conntrack ! --ctstate DNAT", TCP, True),
        ("-m conntrack --ctstate DNAT", replace(TCP, dnat=True), True),
        ("-m conntrack --ctstate DNAT", replace(TCP, dnat=True, conntrack="untracked"), False),
        ("-m conntrack --ctstate UNTRACKED", replace(TCP, conntrack="untracked"), True),
        ("-p tcp --dport 80", TCP, True),
        ("-p tcp ! --sport 4000:4001", TCP, False),
        ("-m devgroup --src-group 0x1/0x3", replace(TCP, groups={"cali1": 0x11}), True),
        ("-m devgroup --src-group 0x1/0x3", TCP, False),
        ("-m devgroup --dst-group 0x1/0x1", replace(TCP, groups={"cali1": 1}), False),
        ("-m limit --limit 10/minute --limit-burst 5", TCP, True),
        ("-m limit --limit 10/minute --limit-burst 5", replace(TCP, within_limits=False), False),
        ("-m addrtype --src-type LOCAL", replace(TCP, own=OWN), True),
        ("-m addrtype --dst-type LOCAL", replace(TCP, own=OWN), False),
        ("-m addrtype ! --src-type LOCAL --limit-iface-out", replace(TCP, own=OWN), False),
        ("-m addrtype ! --src-type LOCAL --limit-iface-out", replace(TCP, own=OWN, out_interface="eth1"), True),
    ],
)  # fmt: skip
def test_matches(match: str, packet: Packet, hit: bool) -> None:
    """Every match that rules of ours use says what the kernel's says."""
    assert through(packet, match).accepted is not hit


@pytest.mark.parametrize(
    ("match", "packet"),
    [
        ("-m owner --uid-owner 0", TCP),
        ("--tcp-flags SYN SYN", TCP),
        ("-m mark --nfmask 1", TCP),
        ("-m rpfilter --loose", TCP),
        ("-p nonsense", TCP),
        ("--source fd00::/8", TCP),
        ("-m set --match-set nowhere src", TCP),
        ("-m set --match-set hosts src,src", TCP),
        ("-m set --match-set web src", TCP),
        ("-m set --match-set six src", TCP),
        ("-m set --match-set web src,dst", TCP),
        ("-m multiport --destination-ports 80", TCP),
        ("-p icmp -m multiport --destination-ports 80", TCP),
        ("! -p tcp -m multiport --destination-ports 80", TCP),
        ("-p tcp -m multiport --destination-ports 1:2,3:4,5:6,7:8,9:10,11:12,13:14,15:16", TCP),
        ("-m icmp --icmp-type 8", PING),
        ("--dport 80", TCP),
        ("-p tcp --dport 80,81", TCP),
        ("-p icmp -m icmp6 --icmpv6-type 8", PING),
        ("-p tcp ! -p udp", TCP),
        ("--source 10.0.0.0/8 ! --source 10.1.0.0/16", TCP),
        ("-m conntrack --ctstate BOGUS", TCP),
        ("-m addrtype --dst-type MULTICAST", TCP),
    ],
)
def test_what_is_unknown_or_refused_is_not_guessed(match: str, packet: Packet) -> None:
    """Unmodelled words, and rules that the kernel would not take, raise and name the rule."""
    with pytest.raises(WalkError):
        through(packet, match)


@pytest.mark.parametrize(
    ("action", "name", "hook"),
    [
        ("--jump TTL --ttl-set 1", "filter", "FORWARD"),
        ("--jump MARK --or-mark 1", "filter", "FORWARD"),
        ("--jump REJECT", "raw", "PREROUTING"),
        ("--jump NOTRACK", "filter", "FORWARD"),
        ("--jump MASQUERADE --random-fully", "filter", "FORWARD"),
        ("DROP", "filter", "FORWARD"),
    ],
)
def test_targets_that_cannot_be_raise(action: str, name: str, hook: str) -> None:
    """Unmodelled targets, and those in a table that does not have them."""
    with pytest.raises(WalkError):
        walk(table(name, hook, [Rule("", action)]), SETS, TCP)


def test_interfaces_are_known_only_where_the_kernel_knows_them() -> None:
    """No way out before routing, no way in for what the node sends: a rule that asks raises."""
    with pytest.raises(WalkError, match="eth0"):
        through(TCP, "--out-interface eth0", "raw", "PREROUTING")
    with pytest.raises(WalkError, match="link group"):
        through(TCP, "-m devgroup --dst-group 1/1", "raw", "PREROUTING")
    with pytest.raises(WalkError, match="cali1"):
        through(replace(TCP, in_interface=""), "--in-interface cali1", "filter", "OUTPUT")
    with pytest.raises(WalkError, match="without interfaces"):
        through(replace(TCP, in_interface="", out_interface=""), "")


def test_reverse_path_is_a_fact_of_the_packet() -> None:
    """The inverted match hits a spoofed source, the plain one the others."""
    failed = "-m rpfilter --invert --validmark"
    assert through(TCP, failed, "raw", "PREROUTING").accepted
    assert not through(replace(TCP, spoofed=True), failed, "raw", "PREROUTING").accepted
    assert not through(TCP, "-m rpfilter", "raw", "PREROUTING").accepted


def test_jump_comes_back_and_goto_does_not() -> None:
    """RETURN, or the end of a chain, leads behind the jump; out of a goto, behind the jump before it."""
    tables = table(
        "filter",
        "FORWARD",
        [Rule("", "--jump cali-a"), drop()],
        cali__a=[Rule("", "--jump cali-b"), Rule("", "--goto cali-c"), drop()],
        cali__b=[Rule("", "--jump RETURN"), drop()],
        cali__c=[Rule("-p udp", "--jump ACCEPT"), Rule("", "", ("only a comment",))],
    )
    found = walk(tables, SETS, TCP)
    assert [(step.chain, step.position) for step in found.steps] == [
        ("FORWARD", 0),
        ("cali-a", 0),
        ("cali-b", 0),
        ("cali-a", 1),
        ("cali-c", 1),
        ("FORWARD", 1),
    ]
    assert found.verdict == "drop"
    assert found.steps[-1].origin == Origin("tier", "last")
    assert walk(tables, SETS, replace(TCP, protocol="udp")).accepted


def test_a_missing_chain_is_as_the_table_has_it() -> None:
    """What is led to and not offered drops, as the table layer programs it; in a circle nothing is walked for ever."""
    assert walk(table("filter", "FORWARD", [Rule("", "--jump cali-x")]), SETS, TCP).verdict == "drop"

    class Circle:
        @property
        def hooks(self) -> dict[str, Hook]:
            return {"FORWARD": Hook("FORWARD", (Rule("", "--jump cali-a"),))}

        def content(self, name: str) -> Chain | None:
            return Chain(name, (Rule("", f"--jump {name}"),)) if name == "cali-a" else None

    with pytest.raises(WalkError, match="circle"):
        walk({"filter": Circle()}, SETS, TCP)


def test_marks_are_written_under_their_mask_and_travel_on() -> None:
    """Set, clear and write; the mark leads from table to table and out."""
    tables = table("raw", "PREROUTING", [
        Rule("", "--jump MARK --set-mark 0x10000/0x10000"),
        Rule("", "--jump MARK --set-mark 0/0x20000"),
        Rule("", "--jump MARK --set-mark 0x80000/0x180000"),
        Rule("", '--jump LOG --log-prefix "x: " --log-level 5'),
    ])  # fmt: skip
    tables |= table("filter", "FORWARD", [drop("-m mark --mark 0x90001/0xffffffff")])
    found = walk(tables, SETS, replace(TCP, mark=0x120001))
    assert (found.verdict, found.mark) == ("drop", 0x90001)


def test_what_a_table_accepts_meets_the_next_one() -> None:
    """ACCEPT ends a table's part only; DROP ends all; REJECT says so."""
    accepted = [Rule("", "--jump ACCEPT"), drop()]
    tables = table("raw", "PREROUTING", accepted) | table("mangle", "PREROUTING", accepted)
    assert walk(tables, SETS, TCP).accepted
    assert walk(tables | table("filter", "FORWARD", [Rule("", "--jump REJECT")]), SETS, TCP).verdict == "reject"


def test_notrack_takes_the_state_away() -> None:
    """From there on the packet belongs to no connection, and NAT does not see it."""
    untracked = table("raw", "PREROUTING", [Rule("-p tcp", "--jump NOTRACK")])
    state = table("filter", "FORWARD", [drop("-m conntrack --ctstate UNTRACKED")])
    nat = table("nat", "POSTROUTING", [Rule("", "--jump MASQUERADE --random-fully")])
    found = walk(untracked | nat, SETS, replace(TCP, conntrack="established"))
    assert (found.tracked, [step.table for step in found.steps]) == (False, ["raw"])
    assert not walk(untracked | state, SETS, TCP).accepted
    assert walk(state, SETS, TCP).accepted


@pytest.mark.parametrize(
    ("packet", "way"),
    [
        (TCP, ["raw PREROUTING", "mangle PREROUTING", "nat PREROUTING", "filter FORWARD", "mangle POSTROUTING",
               "nat POSTROUTING"]),
        (replace(TCP, conntrack="established"),
         ["raw PREROUTING", "mangle PREROUTING", "filter FORWARD", "mangle POSTROUTING"]),
        (replace(TCP, out_interface=""), ["raw PREROUTING", "mangle PREROUTING", "nat PREROUTING", "filter INPUT"]),
        (replace(TCP, in_interface=""),
         ["raw OUTPUT", "nat OUTPUT", "filter OUTPUT", "mangle POSTROUTING", "nat POSTROUTING"]),
    ],
)  # fmt: skip
def test_hooks_in_the_kernels_order(packet: Packet, way: list[str]) -> None:
    """Forwarded, received and sent packets; NAT for first packets only."""
    tables: dict[str, Any] = {}
    for name, hooks in (
        ("raw", ("PREROUTING", "OUTPUT")),
        ("mangle", ("PREROUTING", "POSTROUTING")),
        ("nat", ("PREROUTING", "OUTPUT", "POSTROUTING")),
        ("filter", ("INPUT", "FORWARD", "OUTPUT")),
    ):
        tables[name] = Table(name)
        for hook in hooks:
            tables[name].set_hook(Hook(hook, (), (Rule("", ""),)))
    assert [f"{step.table} {step.hook}" for step in walk(tables, SETS, packet).steps] == way


def test_destination_nat_changes_what_later_hooks_see() -> None:
    """Raw and mangle PREROUTING see where the packet was sent to; filter OUTPUT still sees the old way out."""
    before = Before(ipaddress.ip_address("10.96.0.1"), 443, "eth9")
    packet = replace(TCP, dnat=True, before=before)
    for name, hook in (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("nat", "PREROUTING")):
        early = "-p tcp --destination 10.96.0.1/32 -m multiport --destination-ports 443"
        assert not through(packet, early, name, hook).accepted
    assert not through(packet, "-p tcp --destination 10.65.2.1/32 -m multiport --destination-ports 80").accepted
    sent = replace(packet, in_interface="")
    assert not through(sent, "--destination 10.65.2.1/32 --out-interface eth9", "filter", "OUTPUT").accepted
    assert not through(sent, "--out-interface eth0", "mangle", "POSTROUTING").accepted


def test_a_pass_in_an_earlier_tier_does_not_end_a_profile() -> None:
    """Rules of a profile behind one that passes are asked, though the last tier has left its mark."""
    everything = PolicyID("GlobalNetworkPolicy", "", "p")
    tier = TierInfo("first", "Deny", (everything,), ())
    endpoint = WorkloadEndpoint(EndpointID("k8s", "ns/p", "eth0"), "cali2", "", ("10.65.2.1/32",), (tier,), ("open",))
    renderer = Renderer(4, FelixConfig())
    renderer.update(
        Changes(
            policies={everything: ActivePolicy(everything, "first", (messages.Rule("pass"),), ())},
            profiles={
                "open": ActiveProfile("open", (messages.Rule("pass", protocol="udp"), messages.Rule("allow")), ()),
            },
            endpoints={endpoint.id: endpoint},
        )
    )
    packet = replace(TCP, in_interface="eth0", out_interface="cali2")
    assert walk(renderer.tables, SETS, packet).accepted
    assert not walk(renderer.tables, SETS, replace(packet, protocol="udp")).accepted


def test_pods_answer_their_node_where_accepting_means_return() -> None:
    """With the action DROP for what pods send to their node, what they answer to it passes all the same."""
    config = FelixConfig(filter_allow_action="RETURN", endpoint_to_host_action="DROP")
    renderer = Renderer(4, config)
    end = Chain("cali-from-wl-dispatch", (Rule("", "--jump RETURN"),))
    renderer.tables["filter"].put(end)
    answer = replace(TCP, out_interface="", conntrack="established")
    assert walk(renderer.tables, SETS, answer).accepted
    assert not walk(renderer.tables, SETS, replace(answer, conntrack="new")).accepted


def _reaches(renderer: Renderer, pod: int, to: str = "169.254.0.179", port: int = 1790, protocol: str = "tcp") -> bool:
    source, destination = ipaddress.ip_address(f"10.0.0.{pod}"), ipaddress.ip_address(to)
    packet = replace(
        TCP,
        source=source,
        destination=destination,
        protocol=protocol,
        destination_port=port,
        in_interface=f"cali{pod}",
        out_interface="",
    )
    return walk(renderer.tables, SETS, packet).accepted


def test_a_pod_that_is_a_bgp_peer_reaches_the_speaker_and_nothing_else() -> None:
    """With the action DROP: the peering address, TCP and port of the speaker, from its own interface, by its policy."""
    for action in ("DROP", "REJECT", "ACCEPT"):
        renderer = Renderer(4, FelixConfig(endpoint_to_host_action=action))  # type: ignore[arg-type]
        peer = LocalBGPPeer("red", ("169.254.0.179", "fd12::1"), 1790)
        profiles = {
            "open": ActiveProfile("open", (), (messages.Rule("allow"),)),
            "shut": ActiveProfile("shut", (), (messages.Rule("deny"),)),
        }
        pods = {1: ("open", peer), 2: ("open", None), 3: ("shut", peer)}
        endpoints = [
            WorkloadEndpoint(
                EndpointID("k8s", f"ns/p{n}", "eth0"), f"cali{n}", "", (f"10.0.0.{n}/32",), (), (profile,), bgp_peer=one
            )
            for n, (profile, one) in pods.items()
        ]
        renderer.update(Changes(profiles=dict(profiles), endpoints={one.id: one for one in endpoints}))

        assert _reaches(renderer, 1)
        assert not _reaches(renderer, 3)
        others = (
            _reaches(renderer, 2),
            _reaches(renderer, 1, port=22),
            _reaches(renderer, 1, "10.77.1.1"),
            _reaches(renderer, 1, protocol="udp"),
        )
        assert set(others) == {action == "ACCEPT"}
        renderer.update(Changes(endpoints={endpoints[0].id: replace(endpoints[0], bgp_peer=None)}))
        assert _reaches(renderer, 1) == (action == "ACCEPT")
