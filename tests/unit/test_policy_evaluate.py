"""Verdicts and their steps."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

from calipy.policy.evaluate import Verdict, evaluate
from calipy.policy.snapshot import Snapshot
from calipy.policy.values import ICMP
from tests.support.objects import Object, global_policy, make, namespace_profile, network_policy, pod

NODES = [
    make("Node", "n1", {"bgp": {"ipv4Address": "172.20.0.11/24", "ipv6Address": "fd00:20::11/64"}}),
    make("Node", "n2", {"bgp": {"ipv4Address": "172.20.0.12/24"}}),
]
WEB, DB = pod("web", "10.65.1.1", app="web"), pod("db", "10.65.1.2", "fd00:65::2", app="db")
FAR = pod("far", "10.65.2.1", node="n2", app="far")
SHOP = namespace_profile("shop")
OUTSIDE = "192.0.2.10"
UPLINK = {"node": "n1", "interfaceName": "uplink0", "expectedIPs": ["172.20.0.11"]}
GUARD = make("HostEndpoint", "n1-uplink", UPLINK, labels={"host": "n1"})
OPEN_GUARD = make(
    "HostEndpoint", "n1-uplink", {**UPLINK, "profiles": ["projectcalico-default-allow"]}, labels={"host": "n1"}
)


def _verdict(
    objects: list[Object],
    source: str,
    destination: str,
    protocol: str | int = "tcp",
    port: int = 80,
    *,
    to_host: Literal["Accept", "Drop"] = "Accept",
    **more: Any,
) -> Verdict:
    snapshot = Snapshot([*NODES, WEB, DB, FAR, SHOP, *objects], endpoint_to_host=to_host)
    assert not snapshot.problems
    a, b = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    return evaluate(snapshot, a, b, protocol, destination_port=port, **more)


def _actions(verdict: Verdict) -> list[str]:
    return [step.action for step in verdict.steps]


def test_every_step_is_told() -> None:
    """A verdict names tier, policy, rule and default in the order they were considered."""
    first = make("Tier", "first", {"order": 1})
    look = global_policy("look", tier="first", ingress=[{"action": "Log"}, {"action": "Pass"}], selector="app == 'db'")
    empty = network_policy("empty", selector="app == 'db'", order=1)
    allow = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}
    rule = network_policy(
        "rule", selector="app == 'db'", order=2, ingress=[{"action": "Deny", "protocol": "UDP"}, allow]
    )
    verdict = _verdict([first, look, empty, rule], "10.65.1.1", "10.65.1.2")
    assert verdict.allowed
    assert [(s.tier, s.policy.name if s.policy else "", s.rule, s.action, s.direction) for s in verdict.steps] == [
        ("", "kns.shop", 0, "allow", "egress"),
        ("first", "look", 0, "log", "ingress"),
        ("first", "look", 1, "pass", "ingress"),
        ("default", "empty", None, "no match", "ingress"),
        ("default", "rule", 1, "allow", "ingress"),
    ]
    denied = _verdict([first, look, empty, rule], "10.65.1.1", "10.65.1.2", port=81)
    assert not denied.allowed
    assert denied.reason is not None
    assert denied.reason.action == "end of tier: Deny"


def test_profiles_decide_last_and_missing_ones_deny() -> None:
    """Without policy the profiles decide, in order; a missing one denies at its place."""
    allow = "projectcalico-default-allow"
    for profiles, allowed in ((("missing", allow), False), ((allow, "missing"), True), ((), False)):
        other = pod("other", "10.65.1.9", profiles=profiles)
        assert _verdict([other], "10.65.1.1", "10.65.1.9").allowed == allowed


def test_pod_to_its_own_node() -> None:
    """Egress policy first, then the action for packets to the host; answers are not asked again."""
    assert _verdict([], "10.65.1.1", "172.20.0.11").allowed
    dropped = _verdict([], "10.65.1.1", "172.20.0.11", to_host="Drop")
    assert _actions(dropped) == ["allow", "endpoint to host: Drop"]
    assert _verdict([], "10.65.1.1", "172.20.0.12", to_host="Drop").allowed, "another node is no own host"
    assert _verdict([], "172.20.0.11", "10.65.1.1", to_host="Drop").allowed, "its answer is established"
    deny_egress = network_policy("p", types=["Egress"])
    assert not _verdict([deny_egress], "10.65.1.1", "172.20.0.11").allowed


def test_node_to_its_own_pods_is_never_policed() -> None:
    """Ingress policy does not see the pod's own node, but does see other nodes."""
    deny = network_policy("p", selector="all()")
    assert _verdict([deny], "172.20.0.11", "10.65.1.1").allowed
    assert not _verdict([deny], "172.20.0.12", "10.65.1.1").allowed


def test_neighbour_discovery_passes_to_the_node() -> None:
    """A pod's neighbour discovery reaches its node whatever its egress policy says; a ping does not."""
    deny = network_policy("p", types=["Egress"])
    solicitation = _verdict([deny], "fd00:65::2", "fd00:20::11", "icmpv6", 0, icmp=ICMP(135, 0))
    ping = _verdict([deny], "fd00:65::2", "fd00:20::11", "icmpv6", 0, icmp=ICMP(128, 0))
    assert (solicitation.allowed, ping.allowed) == (True, False)


def test_host_endpoint_closes_its_node_but_failsafes() -> None:
    """A host endpoint without policy and profile blocks the machine, both ways, except failsafe ports."""
    assert not _verdict([GUARD], OUTSIDE, "172.20.0.11").allowed
    assert not _verdict([GUARD], "172.20.0.11", OUTSIDE).allowed
    assert _actions(_verdict([GUARD], OUTSIDE, "172.20.0.11", port=22)) == ["failsafe: Allow"]
    assert _verdict([GUARD], "172.20.0.11", OUTSIDE, "udp", 53).allowed
    assert _verdict([GUARD], OUTSIDE, "10.65.1.1").allowed, "routed traffic needs applyOnForward"


def test_forward_policy_has_no_failsafes() -> None:
    """Policy on forwarded traffic does not exempt failsafe ports."""
    deny = global_policy("p", selector="has(host)", applyOnForward=True, types=["Ingress"])
    assert not _verdict([OPEN_GUARD, deny], OUTSIDE, "10.65.1.1", port=22).allowed
    assert _verdict([OPEN_GUARD, deny], "10.65.1.1", OUTSIDE).allowed, "answers are established"


def test_pre_dnat_allow_spares_host_policy_only() -> None:
    """An early allow skips later policy of the host endpoint; the pod's own policy still counts."""
    early = global_policy(
        "early", selector="has(host)", preDNAT=True, applyOnForward=True, ingress=[{"action": "Allow"}]
    )
    late = global_policy("late", selector="has(host)", applyOnForward=True, types=["Ingress"])
    assert _verdict([OPEN_GUARD, early, late], OUTSIDE, "172.20.0.11").allowed
    assert _verdict([OPEN_GUARD, early, late], OUTSIDE, "10.65.1.1").allowed
    assert not _verdict([OPEN_GUARD, early, late, network_policy("p")], OUTSIDE, "10.65.1.1").allowed


def test_host_endpoint_for_all_interfaces_is_on_those_of_pods_too() -> None:
    """Forward and pre-DNAT policy see what pods send and get; the node's way to its pods stays free, to itself not."""
    everywhere = make("HostEndpoint", "all", {"node": "n1", "interfaceName": "*"}, labels={"every": "where"})
    base = {"selector": "has(every)", "applyOnForward": True, "types": ["Ingress"]}
    inside = ("10.65.1.1", "10.65.1.2")
    assert _verdict([everywhere], *inside).allowed
    assert not _verdict([everywhere, global_policy("p", **base)], *inside).allowed
    deny = {"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}}
    early = global_policy("p", **base, preDNAT=True, ingress=[deny])
    assert not _verdict([everywhere, early], *inside, port=80).allowed
    assert not _verdict([everywhere, early], inside[0], "172.20.0.11", port=80).allowed
    assert _verdict([everywhere, early], *inside, port=81).allowed
    assert _verdict([everywhere], "172.20.0.11", inside[0]).allowed
    assert not _verdict([everywhere], "172.20.0.11", "172.20.0.11").allowed
    assert _verdict([everywhere], "172.20.0.11", "172.20.0.11", port=2379).allowed
    assert _verdict([OPEN_GUARD, everywhere], OUTSIDE, "172.20.0.11").allowed, "the uplink has one of its own"
    untracked = global_policy("p", **base, doNotTrack=True)
    assert _verdict([everywhere, untracked], OUTSIDE, "10.65.1.1").allowed, "not for all interfaces"


def test_pre_dnat_policy_of_all_interfaces_is_for_those_without_their_own() -> None:
    """A host endpoint with pre-DNAT policy of its own is spared that of the one for all interfaces; others are not."""
    everywhere = make("HostEndpoint", "all", {"node": "n1", "interfaceName": "*"}, labels={"every": "where"})
    base = {"preDNAT": True, "applyOnForward": True, "types": ["Ingress"]}
    deny = global_policy("deny", **base, selector="has(every)", ingress=[{"action": "Deny"}])
    own = global_policy("own", **base, selector="has(host)", ingress=[{"action": "Allow"}])
    there = (OUTSIDE, "172.20.0.11")
    assert _verdict([OPEN_GUARD, everywhere], *there).allowed
    assert not _verdict([OPEN_GUARD, everywhere, deny], *there).allowed
    assert _verdict([OPEN_GUARD, everywhere, deny, own], *there).allowed


def test_untracked_answers_need_leave_of_their_own() -> None:
    """Without connection tracking the answer is judged too: by untracked policy, and TCP finds no other way out."""
    one_way = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}
    back = {"action": "Allow", "protocol": "TCP", "source": {"ports": [80]}}
    base = {"selector": "has(host)", "doNotTrack": True, "applyOnForward": True}
    only_in = global_policy("p", **base, types=["Ingress"], ingress=[one_way])
    both = global_policy("p", **base, types=["Ingress", "Egress"], ingress=[one_way], egress=[back])
    refused = _verdict([OPEN_GUARD, only_in], OUTSIDE, "172.20.0.11")
    assert not refused.allowed
    assert refused.steps[refused.answered].action == "no match" or refused.steps[-1].action == "invalid: Deny"
    assert _verdict([OPEN_GUARD, both], OUTSIDE, "172.20.0.11").allowed


def test_wide_cidrs_of_the_other_family_do_not_widen() -> None:
    """A rule whose CIDRs are all of the other family, or a negated catch-all, does not match: it never widens."""
    for entity in ({"nets": ["10.0.0.0/8"]}, {"notNets": ["10.0.0.0/8"]}, {"notNets": ["::/0"]}):
        policy = network_policy("p", selector="app == 'db'", ingress=[{"action": "Allow", "source": entity}])
        assert not _verdict([policy], "fd00:9::9", "fd00:65::2").allowed, entity


def test_pods_may_not_send_tunnel_packets() -> None:
    """VXLAN and IPIP from a pod would go round policy at the other end; they are dropped before policy is asked."""
    assert not _verdict([], "10.65.1.1", OUTSIDE, "udp", 4789).allowed
    assert not _verdict([], "10.65.1.1", OUTSIDE, 4, 0).allowed
    assert _verdict([], OUTSIDE, "10.65.1.1", "udp", 4789).allowed


def test_which_host_endpoint_is_on_the_uplink() -> None:
    """By interface, by expected address when no interface is named, else the one for all interfaces; not another's."""
    candidates = {
        "other": {"node": "n1", "interfaceName": "eth9", "expectedIPs": ["172.20.0.11"]},
        "address": {"node": "n1", "expectedIPs": ["172.20.0.11"]},
        "all": {"node": "n1", "interfaceName": "*"},
        "elsewhere": {"node": "n2", "interfaceName": "uplink0"},
    }
    hosts = {name: make("HostEndpoint", name, spec) for name, spec in candidates.items()}
    for given, chosen in ((["other", "elsewhere"], None), (["all", "other"], "all"), (["all", "address"], "address")):
        snapshot = Snapshot([*NODES, *(hosts[name] for name in given)], uplink="uplink0")
        found = snapshot.host_endpoint("n1")
        assert (found.name if found else None) == chosen


def test_problems_are_listed() -> None:
    """Objects that are not valid count as absent and are named."""
    bad = network_policy("bad", selector="a =")
    snapshot = Snapshot([bad])
    assert list(snapshot.problems) == ["NetworkPolicy(shop/bad)"]
