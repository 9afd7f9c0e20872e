"""Chains of host endpoints: where each kind of policy stands, and what it can decide there."""

from __future__ import annotations

from typing import Any

from calipy.felix.config import FelixConfig
from calipy.felix.graph.graph import Graph
from calipy.felix.hosts import resolve
from calipy.felix.messages import ActivePolicy, ActiveProfile, Changes, HostEndpoint, PolicyID, Rule, TierInfo
from calipy.felix.render.names import ANY_INTERFACE
from calipy.felix.render.renderer import Renderer
from tests.support.objects import global_policy, make

CONFIG = FelixConfig()
ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED --jump"
CLEAR = "--jump MARK --set-mark 0/0x30000"
ACCEPTED = "-m mark --mark 0x10000/0x10000"
POLICED = '-m comment --comment "Host endpoint policy accepted packet."'
RETURNED = f'-m comment --comment "Return if policy accepted" {ACCEPTED} --jump RETURN'


def identity(name: str) -> PolicyID:
    return PolicyID("GlobalNetworkPolicy", "", name)


def active(name: str, **values: Any) -> ActivePolicy:
    return ActivePolicy(identity(name), "default", (Rule("allow"),), (Rule("deny"),), **values)


def tiers(*names: str, ingress: bool = True, egress: bool = True) -> tuple[TierInfo, ...]:
    ids = tuple(identity(name) for name in names)
    return (TierInfo("default", "Deny", ids if ingress else (), ids if egress else ()),)


def made(
    endpoint: HostEndpoint,
    *policies: ActivePolicy,
    interface: str = "eth0",
    config: FelixConfig = CONFIG,
    family: Any = 4,
) -> Renderer:
    renderer = Renderer(family, config)
    profile = ActiveProfile("open", (Rule("allow"),), (Rule("deny"),))
    renderer.update(Changes(policies={policy.id: policy for policy in policies}, profiles={"open": profile}))
    renderer.set_hosts({interface: endpoint})
    return renderer


def rules(renderer: Renderer, table: Any, chain: str) -> list[str] | None:
    found = renderer.tables[table].content(chain)
    return None if found is None else [rule.body for rule in found.rules]


def test_normal_policy_and_profiles() -> None:
    """Failsafes, then policy, then profiles, then nothing passes; egress is what leaves the host."""
    renderer = made(HostEndpoint("h", "eth0", tiers=tiers("p"), profiles=("open",)), active("p"))
    assert rules(renderer, "filter", "cali-fh-eth0") == [
        f"{ESTABLISHED} ACCEPT",
        "-m conntrack --ctstate INVALID --jump DROP",
        "--jump cali-failsafe-in",
        CLEAR,
        '-m comment --comment "Start of tier default" --jump MARK --set-mark 0/0x20000',
        "-m mark --mark 0/0x20000 --jump cali-pi-gnp/p",
        RETURNED,
        (
            '-m comment --comment "End of tier default. Drop if no policies passed packet"'
            " -m mark --mark 0/0x20000 --jump DROP"
        ),
        "--jump cali-pri-open",
        f'-m comment --comment "Return if profile accepted" {ACCEPTED} --jump RETURN',
        '-m comment --comment "Drop if no profiles matched" --jump DROP',
    ]
    outward = rules(renderer, "filter", "cali-th-eth0")
    assert outward is not None
    assert outward[2] == "--jump cali-failsafe-out"
    assert "-m mark --mark 0/0x20000 --jump cali-po-gnp/p" in outward
    assert rules(renderer, "filter", "cali-from-host-endpoint") == ["--in-interface eth0 --goto cali-fh-eth0"]
    assert rules(renderer, "filter", "cali-to-host-endpoint") == ["--out-interface eth0 --goto cali-th-eth0"]


def test_what_dnat_redirects_is_judged_after_it() -> None:
    """The normal chain for what leaves stands in mangle as well, returns what it allows, and has its policies there."""
    renderer = made(HostEndpoint("h", "eth0", tiers=tiers("p"), profiles=("open",)), active("p"))
    chain = rules(renderer, "mangle", "cali-th-eth0")
    assert chain is not None
    assert chain[:2] == [f"{ESTABLISHED[:-7]} --jump MARK --set-mark 0x10000/0x10000", f"{ESTABLISHED} RETURN"]
    assert rules(renderer, "mangle", "cali-po-gnp/p") == rules(renderer, "filter", "cali-po-gnp/p")
    assert rules(renderer, "mangle", "cali-pro-open") == rules(renderer, "filter", "cali-pro-open")
    assert rules(renderer, "mangle", "cali-pi-gnp/p") is None
    assert rules(renderer, "mangle", "cali-POSTROUTING") == [
        f"{ACCEPTED} --jump RETURN",
        "--jump MARK --set-mark 0/0x1b0000",
        "-m conntrack --ctstate DNAT --jump cali-to-host-endpoint",
        f"{POLICED} {ACCEPTED} --jump RETURN",
    ]
    assert "-m conntrack ! --ctstate DNAT --jump cali-to-host-endpoint" in (
        rules(renderer, "filter", "cali-OUTPUT") or ()
    )
    assert rules(renderer, "mangle", "cali-from-host-endpoint") is None
    assert rules(renderer, "raw", "cali-from-host-endpoint") is None


def test_reject_is_for_the_filter_table_only() -> None:
    """Other tables know no REJECT: a deny drops there, in policies, profiles and at the ends of chains."""
    config = FelixConfig(filter_deny_action="REJECT")
    endpoint = HostEndpoint(
        "h", "eth0", tiers=tiers("p"), untracked=tiers("u"), pre_dnat=tiers("d"), profiles=("open",)
    )
    denying = ActivePolicy(identity("d"), "default", (Rule("deny"),), (), pre_dnat=True)
    renderer = made(endpoint, active("p"), active("u", untracked=True), denying, config=config)
    assert any("REJECT" in rule for rule in rules(renderer, "filter", "cali-th-eth0") or ())
    for table in ("raw", "mangle"):
        texts = [rule.body for chain in renderer.tables[table].programmed() for rule in chain.rules]
        assert any(text.endswith("--jump DROP") for text in texts)
        assert not any("REJECT" in text for text in texts)


def test_forwarded_traffic_has_chains_of_its_own() -> None:
    """Without policy for it everything may pass; with some, no failsafes and no profiles, but the tier's end."""
    renderer = made(HostEndpoint("h", "eth0", profiles=("open",)))
    assert rules(renderer, "filter", "cali-fhfw-eth0") == [
        f"{ESTABLISHED} ACCEPT",
        "-m conntrack --ctstate INVALID --jump DROP",
        CLEAR,
        '-m comment --comment "Allow forwarded traffic by default" --jump MARK --set-mark 0x10000/0x10000',
        '-m comment --comment "Return for accepted forward traffic" --jump RETURN',
    ]
    endpoint = HostEndpoint("h", "eth0", tiers=tiers("p", egress=False), forward=tiers("p", egress=False))
    renderer = made(endpoint, active("p"))
    inward = rules(renderer, "filter", "cali-fhfw-eth0")
    assert inward is not None
    assert not any("failsafe" in rule or "profile" in rule for rule in inward)
    assert "End of tier default" in inward[-1]
    assert rules(renderer, "filter", "cali-thfw-eth0") == [
        f"{ESTABLISHED} ACCEPT",
        "-m conntrack --ctstate INVALID --jump DROP",
        CLEAR,
    ]
    assert rules(renderer, "filter", "cali-from-hep-forward") == ["--in-interface eth0 --goto cali-fhfw-eth0"]
    assert rules(renderer, "filter", "cali-to-hep-forward") == ["--out-interface eth0 --goto cali-thfw-eth0"]


def test_pre_dnat_policy_stands_in_mangle() -> None:
    """Ingress only, with failsafes, without an end; an endpoint without it costs other packets nothing."""
    endpoint = HostEndpoint("h", "eth0", pre_dnat=tiers("d", egress=False))
    renderer = made(endpoint, active("d", pre_dnat=True))
    assert rules(renderer, "mangle", "cali-fh-eth0") == [
        f"{ESTABLISHED} ACCEPT",
        "-m conntrack --ctstate INVALID --jump DROP",
        "--jump cali-failsafe-in",
        CLEAR,
        '-m comment --comment "Start of tier default" --jump MARK --set-mark 0/0x20000',
        "-m mark --mark 0/0x20000 --jump cali-pi-gnp/d",
        RETURNED,
    ]
    assert rules(renderer, "mangle", "cali-pi-gnp/d") is not None
    assert rules(renderer, "filter", "cali-pi-gnp/d") is None
    assert rules(renderer, "mangle", "cali-PREROUTING") == [
        f"{ESTABLISHED} ACCEPT",
        f"{ACCEPTED} --jump ACCEPT",
        "--jump cali-from-host-endpoint",
        f"{POLICED} {ACCEPTED} --jump ACCEPT",
    ]


def test_untracked_policy_stands_in_raw() -> None:
    """Both ways, before connection tracking; what it accepts is not tracked. Not for all interfaces at once."""
    endpoint = HostEndpoint("h", "eth0", untracked=tiers("u"))
    renderer = made(endpoint, active("u", untracked=True))
    assert rules(renderer, "raw", "cali-th-eth0") == [
        "--jump cali-failsafe-out",
        CLEAR,
        '-m comment --comment "Start of tier default" --jump MARK --set-mark 0/0x20000',
        "-m mark --mark 0/0x20000 --jump cali-po-gnp/u",
        f"{ACCEPTED} --jump NOTRACK",
        RETURNED,
    ]
    assert (rules(renderer, "raw", "cali-fh-eth0") or ())[0] == "--jump cali-failsafe-in"
    assert "-m mark --mark 0/0x80000 --jump cali-from-host-endpoint" in (
        rules(renderer, "raw", "cali-PREROUTING") or ()
    )
    everywhere = made(endpoint, active("u", untracked=True), interface=ANY_INTERFACE)
    assert rules(everywhere, "raw", "cali-from-host-endpoint") is None


def test_all_interfaces_are_the_end_of_the_dispatch() -> None:
    """What no other endpoint governs goes to the chain of all interfaces; in mangle, pods' interfaces are spared."""
    renderer = made(HostEndpoint("h", "*", pre_dnat=tiers("d")), active("d", pre_dnat=True), interface=ANY_INTERFACE)
    renderer.set_hosts({ANY_INTERFACE: HostEndpoint("h", "*", pre_dnat=tiers("d")), "eth1": HostEndpoint("i", "eth1")})
    assert rules(renderer, "filter", "cali-from-host-endpoint") == [
        "--in-interface eth1 --goto cali-fh-eth1",
        "--goto cali-fh-any-interface-at-all",
    ]
    assert rules(renderer, "filter", "cali-to-hep-forward") == [
        "--out-interface eth1 --goto cali-thfw-eth1",
        "--goto cali-thfw-_Nqh4HyA73udmyanQI",
    ]
    assert rules(renderer, "mangle", "cali-from-host-endpoint") == ["--goto cali-fh-any-interface-at-all"]
    assert rules(renderer, "mangle", "cali-to-host-endpoint") == [
        "--out-interface eth1 --goto cali-th-eth1",
        (
            '-m comment --comment "Skip egress WHEP policy for traffic to local workload"'
            " --out-interface cali+ --jump RETURN"
        ),
        "--goto cali-th-any-interface-at-all",
    ]
    renderer.set_hosts({})
    for table in ("raw", "mangle", "filter"):
        assert not rules(renderer, table, "cali-from-host-endpoint")
        assert not [chain.name for chain in renderer.tables[table].programmed() if "-fh-" in chain.name]


def test_failsafes_of_each_table_and_family() -> None:
    """Own direction by destination port; in raw also answers, by source port; networks only of the family."""
    config = FelixConfig.from_parameters(
        {"FailsafeInboundHostPorts": "tcp:22,udp:[fd00::/8]:68", "FailsafeOutboundHostPorts": "udp:10.0.0.0/8:53"}
    )
    endpoint = HostEndpoint("h", "eth0", untracked=tiers("u"))
    four, six = (made(endpoint, active("u", untracked=True), config=config, family=family) for family in (4, 6))
    assert rules(four, "filter", "cali-failsafe-in") == ["-p tcp -m multiport --destination-ports 22 --jump ACCEPT"]
    assert rules(four, "filter", "cali-failsafe-out") == [
        "-p udp -m multiport --destination-ports 53 --destination 10.0.0.0/8 --jump ACCEPT"
    ]
    assert rules(four, "raw", "cali-failsafe-in") == [
        "-p tcp -m multiport --destination-ports 22 --jump ACCEPT",
        "-p udp -m multiport --source-ports 53 --source 10.0.0.0/8 --jump ACCEPT",
    ]
    assert rules(four, "raw", "cali-failsafe-out") == [
        "-p udp -m multiport --destination-ports 53 --destination 10.0.0.0/8 --jump ACCEPT",
        "-p tcp -m multiport --source-ports 22 --jump ACCEPT",
    ]
    inward = rules(six, "raw", "cali-failsafe-in") or []
    discovery = [rule for rule in inward if "icmp6" in rule]
    assert [rule.split()[-3] for rule in discovery] == ["130", "131", "132", "133", "134", "135", "136", "143"]
    assert inward[len(discovery) :] == [
        "-p tcp -m multiport --destination-ports 22 --jump ACCEPT",
        "-p udp -m multiport --destination-ports 68 --source fd00::/8 --jump ACCEPT",
    ]


def test_groups_are_shared_and_go_with_their_last_user() -> None:
    """Policies with one selector are a group in every table; a regrouping renders the endpoint again."""
    web, db = active("web", selector="all()"), active("db", selector="all()")
    renderer = made(HostEndpoint("h", "eth0", tiers=tiers("web", "db")), web, db)

    def groups(table: str) -> set[str]:
        names = {chain.name for chain in renderer.tables[table].programmed()}  # type: ignore[index]
        return {name for name in names if name.startswith(("cali-gi-", "cali-go-"))}

    assert len(groups("filter")) == 2
    assert len(groups("mangle")) == 1
    assert groups("mangle") < groups("filter")
    other = active("db", selector="x == 'y'")
    renderer.update(Changes(policies={other.id: other}))
    assert groups("filter") == groups("mangle") == set()


def test_a_policy_that_changes_place_takes_its_chains_along() -> None:
    """From normal to untracked and back; nothing of it stays where it was."""
    renderer = made(HostEndpoint("h", "eth0", tiers=tiers("p")), active("p"))
    untracked = active("p", untracked=True)
    renderer.update(Changes(policies={untracked.id: untracked}))
    renderer.set_hosts({"eth0": HostEndpoint("h", "eth0", untracked=tiers("p"))})
    assert rules(renderer, "filter", "cali-po-gnp/p") is rules(renderer, "mangle", "cali-po-gnp/p") is None
    assert rules(renderer, "raw", "cali-po-gnp/p") is not None


RECORDED = {
    ("raw", "cali-OUTPUT"): "tTi_3jFgvxUFsObH",
    ("raw", "cali-PREROUTING"): "8A061i5zP9KV-opa",
    ("raw", "cali-failsafe-in"): "r2XbJ4DDeEDLpH9E",
    ("raw", "cali-failsafe-out"): "sjYTW34xQM8oL0Bg",
    ("raw", "cali-fh-eth0"): "FUpQQ9WMFiTCE6ct",
    ("raw", "cali-fh-eth1"): "kGBkxXbRgeT7Ouki",
    ("raw", "cali-from-host-endpoint"): "hzWbsV6AzQNCKw96",
    ("raw", "cali-th-eth0"): "5L8Tfu6P_akbMd-n",
    ("raw", "cali-th-eth1"): "6aApzxDv7FK4KeX5",
    ("raw", "cali-to-host-endpoint"): "jYGBfrIuKUCuNmm3",
    ("mangle", "cali-PREROUTING"): "Cg96MgVuoPm7UMRo",
    ("mangle", "cali-failsafe-in"): "vSprVE-4rient0wc",
    ("mangle", "cali-failsafe-out"): "EoOkKdH0fekirfk8",
    ("mangle", "cali-fh-any-interface-at-all"): "6ArCgbwu6ZAYl13a",
    ("mangle", "cali-fh-eth0"): "wf7DO1Qh82yZ6IoB",
    ("mangle", "cali-fh-eth1"): "vVq6-7egsr4UtdfZ",
    ("mangle", "cali-from-host-endpoint"): "29HLTLTFGRAtt5jv",
    ("mangle", "cali-th-any-interface-at-all"): "E5658mToSaouE-JF",
    ("mangle", "cali-th-eth0"): "SGMHS1nRdExBJogN",
    ("mangle", "cali-th-eth1"): "1XbCqKZ1Q8xzMXsH",
    ("mangle", "cali-to-host-endpoint"): "_TNDz_5H0wLrEJy5",
    ("filter", "cali-INPUT"): "pARw-KZUlQru4OX0",
    ("filter", "cali-OUTPUT"): "IL6b-f6R0sfjMo-y",
    ("filter", "cali-failsafe-in"): "vSprVE-4rient0wc",
    ("filter", "cali-failsafe-out"): "EoOkKdH0fekirfk8",
    ("filter", "cali-fh-any-interface-at-all"): "ULGCbd4k5JvgYYPq",
    ("filter", "cali-fh-eth0"): "pYu0WfJBmIeXHmQp",
    ("filter", "cali-fh-eth1"): "eHep4BQdjJLv2hGi",
    ("filter", "cali-fhfw-_Nqh4HyA73udmyanQI"): "ZBAhzoDg3n7U_0ou",
    ("filter", "cali-fhfw-eth0"): "akAqEqU_KigW8fyg",
    ("filter", "cali-fhfw-eth1"): "-9379u10KsnUKcnj",
    ("filter", "cali-from-hep-forward"): "LXI_rhCxdnEpa8nE",
    ("filter", "cali-from-host-endpoint"): "29HLTLTFGRAtt5jv",
    ("filter", "cali-th-any-interface-at-all"): "azgnakGCn_rYhZwc",
    ("filter", "cali-th-eth0"): "5D_CmOosNa6GUzb5",
    ("filter", "cali-th-eth1"): "XwWUOtDaiM8p90kE",
    ("filter", "cali-thfw-_Nqh4HyA73udmyanQI"): "2vyiBnQrCfZMHpNH",
    ("filter", "cali-thfw-eth0"): "7imClx_FgwCI3f2F",
    ("filter", "cali-thfw-eth1"): "pfG1PhMnm5K2I6dA",
    ("filter", "cali-to-hep-forward"): "cQCwS-ou6J7-qFeC",
    ("filter", "cali-to-host-endpoint"): "5yp2ZnSkiUDYne2b",
}
"""Last hash of each chain, which depends on all its rules, as the real Felix wrote them for the objects below."""


def test_chains_are_those_of_the_real_felix() -> None:
    """Each program takes the other's chains over without rewriting them: names, rules and their order are the same."""
    allow, both = [{"action": "Allow"}], ["Ingress", "Egress"]

    def rule(action: str, **ports: Any) -> list[dict[str, Any]]:
        return [{"action": action, "protocol": "TCP", **{side: {"ports": [port]} for side, port in ports.items()}}]

    every = {"selector": "has(role) || has(every)", "order": 3, "applyOnForward": True}
    graph = Graph("node1")
    for key, value in (
        make("Tier", "default", {"order": 1000000}),
        make("Profile", "open", {"ingress": allow, "egress": allow}),
        make(
            "HostEndpoint",
            "h",
            {"node": "node1", "interfaceName": "eth0", "profiles": ["open"]},
            labels={"role": "host"},
        ),
        make("HostEndpoint", "h2", {"node": "node1", "expectedIPs": ["172.17.0.1"]}, labels={"role": "host2"}),
        make(
            "HostEndpoint",
            "all",
            {"node": "node1", "interfaceName": "*", "profiles": ["open"]},
            labels={"every": "where"},
        ),
        global_policy(
            "normal",
            selector="role == 'host'",
            order=2,
            types=both,
            ingress=rule("Allow", destination=80),
            egress=[{"action": "Deny", "protocol": "UDP"}],
        ),
        global_policy(
            "aof",
            selector="role == 'host'",
            order=1,
            applyOnForward=True,
            types=["Ingress"],
            ingress=rule("Allow", destination=81),
        ),
        global_policy("early", **every, preDNAT=True, types=["Ingress"], ingress=rule("Deny", destination=82)),
        global_policy(
            "raw",
            **every,
            doNotTrack=True,
            types=both,
            ingress=rule("Allow", destination=83),
            egress=rule("Allow", source=83),
        ),
    ):
        graph.on_update(key, value)
    graph.on_in_sync()
    told = graph.flush()
    renderer = Renderer(4, CONFIG)
    renderer.update(told)
    endpoints = [endpoint for endpoint in told.host_endpoints.values() if endpoint]
    renderer.set_hosts(resolve(endpoints, {"eth1": frozenset({"172.17.0.1"})}, ("cali",)))
    written = {
        (table, chain.name): chain.hashes[-1]
        for table in ("raw", "mangle", "filter")
        for chain in renderer.tables[table].programmed()  # type: ignore[index]
        if (table, chain.name) in RECORDED
    }
    assert written == RECORDED
