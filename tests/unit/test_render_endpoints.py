"""Endpoint, group, dispatch and static chains, and what a change renders again."""

from __future__ import annotations

import random
from typing import Any

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.messages import (
    ActivePolicy,
    ActiveProfile,
    Changes,
    EndpointID,
    PolicyID,
    Pool,
    Rule,
    TierInfo,
    WorkloadEndpoint,
)
from calipy.felix.render import syntax
from calipy.felix.render.dispatch import Dispatch
from calipy.felix.render.names import group_chain, workload_chain
from calipy.felix.render.renderer import Renderer
from calipy.felix.render.rule import Chain
from calipy.felix.render.rule import Rule as TableRule

CONFIG = FelixConfig()


def policy_id(name: str) -> PolicyID:
    return PolicyID("GlobalNetworkPolicy", "", name)


def active(name: str, **values: Any) -> ActivePolicy:
    return ActivePolicy(policy_id(name), "default", (Rule("allow"),), (Rule("allow"),), **values)


def endpoint(number: int, *tiers: TierInfo, interface: str = "", **values: Any) -> WorkloadEndpoint:
    identity = EndpointID("k8s", f"ns1/p{number}", "eth0")
    name = interface or f"cali{number:04x}"
    values = {"mac": "", "nets": (f"10.0.0.{number}/32",), "profiles": ("kns.ns1",), **values}
    return WorkloadEndpoint(identity, name, tiers=tiers, **values)


def ingress(*names: str, action: Any = "Deny", tier: str = "default") -> TierInfo:
    return TierInfo(tier, action, tuple(policy_id(name) for name in names), ())


def changes(*endpoints: WorkloadEndpoint, policies: tuple[ActivePolicy, ...] = (), **values: Any) -> Changes:
    return Changes(
        policies={policy.id: policy for policy in policies},
        profiles={"kns.ns1": ActiveProfile("kns.ns1", (Rule("allow"),), (Rule("allow"),))},
        endpoints={item.id: item for item in endpoints},
        **values,
    )


def rendered(renderer: Renderer, chain: str, table: Any = "filter") -> list[str]:
    found = renderer.tables[table].content(chain)
    assert found is not None, chain
    return [rule.body for rule in found.rules]


def test_chain_from_a_workload_has_felixs_hashes() -> None:
    """As recorded from the real Felix: each takes the other's chains over without rewriting them."""
    renderer = Renderer(4, CONFIG)
    renderer.update(changes(endpoint(1, interface="caliq3", profiles=("k8s-pod-network",))))
    chain = renderer.tables["filter"].content("cali-fw-caliq3")
    assert chain is not None
    assert " ".join(chain.hashes) == (
        "mVl8QGqPQen489wM 4h9e6_QqvfbntG7p 21_cKgFn1whgtwVg HJ-QBs1EMu_lnqBT"
        " lZN_N9V-bDxg5wbG uaCpsRgobMkVP45j nrTy0EKYJ77ap6JL rVZivYNVRjLxJD6G"
    )


def test_comments_tell_the_action() -> None:
    """Where packets are rejected the comments do not say drop."""
    renderer = Renderer(4, FelixConfig(filter_deny_action="REJECT"))
    renderer.update(changes(endpoint(1, ingress("web"), interface="cali1"), policies=(active("web"),)))
    rules = rendered(renderer, "cali-tw-cali1") + rendered(renderer, "cali-fw-cali1")
    assert not any("Drop " in rule for rule in rules)
    assert sum("Reject " in rule for rule in rules) == 5


def test_workload_chain_as_in_the_worked_example() -> None:
    """One pod, one policy in tier default, one profile: the rules that Felix writes."""
    renderer = Renderer(4, CONFIG)
    renderer.update(changes(endpoint(0x1234, ingress("web")), policies=(active("web"),)))
    assert rendered(renderer, "cali-tw-cali1234") == [
        "-m conntrack --ctstate RELATED,ESTABLISHED --jump ACCEPT",
        "-m conntrack --ctstate INVALID --jump DROP",
        "--jump MARK --set-mark 0/0x30000",
        '-m comment --comment "Start of tier default" --jump MARK --set-mark 0/0x20000',
        "-m mark --mark 0/0x20000 --jump cali-pi-gnp/web",
        '-m comment --comment "Return if policy accepted" -m mark --mark 0x10000/0x10000 --jump RETURN',
        (
            '-m comment --comment "End of tier default. Drop if no policies passed packet"'
            " -m mark --mark 0/0x20000 --jump DROP"
        ),
        "--jump cali-pri-kns.ns1",
        '-m comment --comment "Return if profile accepted" -m mark --mark 0x10000/0x10000 --jump RETURN',
        '-m comment --comment "Drop if no profiles matched" --jump DROP',
    ]
    egress = rendered(renderer, "cali-fw-cali1234")
    assert any("--destination-ports 4789 --jump DROP" in rule for rule in egress)
    assert any("-p 4 --jump DROP" in rule for rule in egress)
    assert not any("tier" in rule for rule in egress)


def test_end_of_tier_drop_depends_on_action_and_staged_policies() -> None:
    """Pass tiers do not drop; a tier of staged policies only is not there; one enforced policy is enough to drop."""
    renderer = Renderer(4, CONFIG)
    staged, live = active("staged", staged=True), active("live")
    for tier, expected in (
        (ingress("live", action="Pass"), (True, False)),
        (ingress("staged"), (False, False)),
        (ingress("staged", "live"), (True, True)),
    ):
        renderer.update(changes(endpoint(1, tier), policies=(staged, live)))
        rules = rendered(renderer, "cali-tw-cali0001")
        assert any("Start of tier" in rule for rule in rules) is expected[0]
        assert any("End of tier" in rule for rule in rules) is expected[1]
        assert not any("staged" in rule for rule in rules)


def test_disabled_endpoint_is_a_single_drop() -> None:
    """Admin down: nothing passes, established or not."""
    renderer = Renderer(4, CONFIG)
    renderer.update(changes(endpoint(1, admin_up=False)))
    assert rendered(renderer, "cali-tw-cali0001") == ['-m comment --comment "Endpoint admin disabled" --jump DROP']


def test_policies_with_one_selector_form_a_group() -> None:
    """Consecutive ones share a chain that ends with the first verdict, checked before each jump and every fifth."""
    renderer = Renderer(4, CONFIG)
    names = [f"p{n}" for n in range(7)]
    policies = tuple(active(name, selector="all()") for name in names)
    other = active("other", selector="x == 'y'")
    renderer.update(changes(endpoint(1, ingress(*names, "other")), policies=(*policies, other)))
    group = group_chain("all()", "ingress", tuple(policy.id for policy in policies))
    endpoint_rules = rendered(renderer, "cali-tw-cali0001")
    assert sum("--jump cali-gi-" in rule for rule in endpoint_rules) == 1
    assert any("--jump cali-pi-gnp/other" in rule for rule in endpoint_rules)
    rules = rendered(renderer, group)
    assert rules[0] == "--jump cali-pi-gnp/p0"
    assert rules[1] == "-m mark --mark 0/0x30000 --jump cali-pi-gnp/p1"
    assert rules[5] == '-m comment --comment "Return on verdict" -m mark ! --mark 0/0x30000 --jump RETURN'
    assert rules[6] == "--jump cali-pi-gnp/p5"
    renderer.update(Changes(policies={policies[0].id: active("p0", selector="changed")}))
    assert renderer.tables["filter"].content(group) is None
    assert any("--jump cali-pi-gnp/p0" in rule for rule in rendered(renderer, "cali-tw-cali0001"))


def test_groups_live_as_long_as_an_endpoint_uses_them() -> None:
    """Two endpoints share a group; it goes with the last of them."""
    renderer = Renderer(4, CONFIG)
    policies = (active("a", selector="all()"), active("b", selector="all()"))
    one, two = endpoint(1, ingress("a", "b")), endpoint(2, ingress("a", "b"))
    renderer.update(changes(one, two, policies=policies))
    group = group_chain("all()", "ingress", (policies[0].id, policies[1].id))
    renderer.update(Changes(endpoints={one.id: None}))
    assert renderer.tables["filter"].content(group) is not None
    renderer.update(Changes(endpoints={two.id: None}))
    assert renderer.tables["filter"].content(group) is None
    assert renderer.tables["filter"].content("cali-pi-gnp/a") is None


def test_missing_policy_and_profile_chains_drop() -> None:
    """What an endpoint leads to but nobody has sent drops everything, and comes alive when it is sent."""
    renderer = Renderer(4, CONFIG)
    item = endpoint(1, ingress("web"), profiles=("absent",))
    renderer.update(Changes(endpoints={item.id: item}))
    for chain in ("cali-pi-gnp/web", "cali-pri-absent"):
        assert rendered(renderer, chain)[0].endswith("--jump DROP")
    renderer.update(Changes(policies={policy_id("web"): active("web")}))
    assert not rendered(renderer, "cali-pi-gnp/web")[0].endswith("--jump DROP")


def test_an_endpoint_without_addresses_of_the_family_is_unknown_there() -> None:
    """It drops in that family, and gets chains with its first address."""
    renderer = Renderer(6, CONFIG)
    renderer.update(changes(endpoint(1, ingress("web")), policies=(active("web"),)))
    assert renderer.tables["filter"].content("cali-tw-cali0001") is None
    assert len(rendered(renderer, "cali-to-wl-dispatch")) == 1
    renderer.update(changes(endpoint(1, ingress("web"), nets=("10.0.0.1/32", "fd00::1/128"))))
    assert renderer.tables["filter"].content("cali-tw-cali0001") is not None
    renderer.update(changes(endpoint(1)))
    assert renderer.tables["filter"].content("cali-tw-cali0001") is None


def test_two_endpoints_on_one_interface() -> None:
    """The first by id has it; when it goes the other takes over without a moment of nobody."""
    renderer = Renderer(4, CONFIG)
    first, second = endpoint(1, interface="calix"), endpoint(2, interface="calix", admin_up=False)
    renderer.update(changes(second))
    renderer.update(changes(first))
    assert len(rendered(renderer, "cali-tw-calix")) > 1
    renderer.update(Changes(endpoints={first.id: None}))
    assert len(rendered(renderer, "cali-tw-calix")) == 1
    renderer.update(Changes(endpoints={second.id: None}))
    assert renderer.tables["filter"].content("cali-tw-calix") is None


def new_tree() -> Dispatch:
    return Dispatch(
        "cali-from-wl-dispatch",
        match=syntax.from_interface,
        target=lambda name: workload_chain(name, "egress"),
        end=(TableRule("", syntax.DROP, ("Unknown interface",)),),
    )


def tree(*names: str) -> dict[str, list[str]]:
    changed, gone = new_tree().update(set(names), set())
    assert not gone
    return {chain.name: [rule.body for rule in chain.rules] for chain in changed}


def walk(chains: dict[str, list[str]], interface: str) -> str:
    """The endpoint chain that a packet of the interface ends in, or DROP."""
    chain = "cali-from-wl-dispatch"
    while True:
        for rule in chains[chain]:
            words = rule.split()
            if "--in-interface" not in words:
                return words[-1]
            pattern = words[words.index("--in-interface") + 1]
            if pattern == interface or (pattern.endswith("+") and interface.startswith(pattern[:-1])):
                break
        if words[-1] not in chains:
            return words[-1]
        chain = words[-1]


def test_dispatch_tree_is_felixs_for_few_interfaces() -> None:
    """Names are binned by the character behind their common beginning; a bin of one stays in the root."""
    drop = '-m comment --comment "Unknown interface" --jump DROP'
    assert tree() == {"cali-from-wl-dispatch": [drop]}
    assert tree("cali12", "cali13", "cali2") == {
        "cali-from-wl-dispatch": [
            "--in-interface cali1+ --goto cali-from-wl-dispatch-1",
            "--in-interface cali2 --goto cali-fw-cali2",
            drop,
        ],
        "cali-from-wl-dispatch-1": [
            "--in-interface cali12 --goto cali-fw-cali12",
            "--in-interface cali13 --goto cali-fw-cali13",
            drop,
        ],
    }


@pytest.mark.parametrize("count", [1, 2, 17, 300, 1500])
def test_every_interface_finds_its_chain_and_others_drop(count: int) -> None:
    """Whatever the size and depth of the tree; no chain grows beyond what one packet can afford."""
    names = [f"cali{number * 2654435761 % 2**44:011x}" for number in range(count)]
    chains = tree(*names)
    assert all(walk(chains, name) == f"cali-fw-{name}" for name in names)
    assert walk(chains, "cali-unknown") == "DROP"
    assert walk(chains, names[0][:-1]) == "DROP"
    assert max(len(rules) for rules in chains.values()) <= 18
    assert all(len(name) <= 28 for name in chains)


def test_names_that_begin_with_another_name() -> None:
    """An interface whose name is the beginning of others is found as well as they are."""
    names = ["cali", "cali1", "cali12", "cali123", "cali124", "cali2"]
    chains = tree(*names)
    assert all(walk(chains, name) == f"cali-fw-{name}" for name in names)


def test_growing_and_shrinking_trees_are_the_same_as_new_ones() -> None:
    """Whatever was there before: after each change the chains are those of a tree made from scratch."""
    generator = random.Random(7)
    growing = new_tree()
    present: dict[str, Chain] = {}
    names: set[str] = set()
    pool = [f"cali{generator.choice('01')}{generator.randrange(16 ** generator.randrange(1, 4)):x}" for _ in range(120)]
    for _ in range(150):
        added = {name for name in generator.sample(pool, generator.randrange(4)) if name not in names}
        removed = set(generator.sample(sorted(names), min(len(names), generator.randrange(4))))
        names = (names | added) - removed
        changed, gone = growing.update(added, removed)
        assert all(present.get(chain.name) != chain for chain in changed if "-dispatch-" in chain.name)
        present |= {chain.name: chain for chain in changed}
        for name in gone:
            del present[name]
        fresh, _ = new_tree().update(names, set())
        assert present == {chain.name: chain for chain in fresh}


def test_one_more_pod_touches_its_own_chains_and_its_bin() -> None:
    """Of a thousand pods' chains the two of the new one and at most a few dispatch chains become dirty."""
    renderer = Renderer(4, CONFIG)
    web = active("web")
    renderer.update(changes(*(endpoint(n * 61 % 65536, ingress("web")) for n in range(1000)), policies=(web,)))
    table = renderer.tables["filter"]
    table.dirty.clear()
    new = endpoint(0xFFFF, ingress("web"))
    renderer.update(Changes(endpoints={new.id: new}))
    assert len(table.dirty) <= 2 + 2 * 3
    table.dirty.clear()
    renderer.update(Changes(policies={web.id: active("web", selector="same")}))
    renderer.update(Changes(policies={web.id: ActivePolicy(web.id, "default", (Rule("deny"),), (), selector="same")}))
    assert table.dirty == {"cali-pi-gnp/web"}


def test_static_chains_of_each_table() -> None:
    """Paths of pods' packets, per family; nothing for what there is not."""
    four, six = Renderer(4, CONFIG), Renderer(6, CONFIG)
    assert rendered(four, "cali-FORWARD") == [
        "-m mark ! --mark 0/0x1a0000 --jump MARK --set-mark 0/0x1a0000",
        "--in-interface cali+ --jump cali-from-wl-dispatch",
        "--out-interface cali+ --jump cali-to-wl-dispatch",
    ]
    assert rendered(four, "cali-PREROUTING", "raw") == [
        "-m mark ! --mark 0/0x1b0000 --jump MARK --set-mark 0/0x1b0000",
        "--in-interface cali+ -m rpfilter --invert --validmark --jump DROP",
    ]
    assert rendered(four, "cali-PREROUTING", "mangle") == [
        "-m conntrack --ctstate RELATED,ESTABLISHED --jump ACCEPT",
        "-m mark --mark 0x10000/0x10000 --jump ACCEPT",
    ]
    assert rendered(four, "cali-POSTROUTING", "mangle") == []
    assert rendered(four, "cali-wl-to-host")[-1].endswith("--jump DROP")
    assert len(rendered(six, "cali-wl-to-host")) == len(rendered(four, "cali-wl-to-host")) + 6
    assert rendered(four, "cali-nat-outgoing", "nat") == []


def test_known_connections_of_endpoints_pass_early() -> None:
    """By link group, per family. What goes to a pod comes after what any pod's interface sends has been judged."""
    early = "-m devgroup --{}-group {} -m conntrack --ctstate RELATED,ESTABLISHED --jump ACCEPT"
    for family, group in ((4, "0xca10001/0xffff0001"), (6, "0xca10002/0xffff0002")):
        renderer = Renderer(family, FelixConfig(interface_prefixes=("cali", "tap")))  # type: ignore[arg-type]
        renderer.set_fast_path(possible=True)
        assert rendered(renderer, "cali-FORWARD") == [
            early.format("src", group),
            "-m mark ! --mark 0/0x1a0000 --jump MARK --set-mark 0/0x1a0000",
            "--in-interface cali+ --jump cali-from-wl-dispatch",
            "--in-interface tap+ --jump cali-from-wl-dispatch",
            early.format("dst", group),
            "--out-interface cali+ --jump cali-to-wl-dispatch",
            "--out-interface tap+ --jump cali-to-wl-dispatch",
        ]
        renderer.set_fast_path(possible=False)
        assert "devgroup" not in str(rendered(renderer, "cali-FORWARD"))


def test_where_accepting_means_to_return_there_is_no_early_end() -> None:
    """With IptablesFilterAllowAction=Return later rules, others' among them, want to see the packet."""
    renderer = Renderer(4, FelixConfig(filter_allow_action="RETURN"))
    renderer.set_fast_path(possible=True)
    assert "devgroup" not in str(rendered(renderer, "cali-FORWARD"))


def test_chain_to_the_host_has_felixs_hashes() -> None:
    """As recorded from the real Felix for IPv6, with its DefaultEndpointToHostAction at Return."""
    chain = Renderer(6, FelixConfig(endpoint_to_host_action="RETURN")).tables["filter"].content("cali-wl-to-host")
    assert chain is not None
    assert (chain.hashes[0], chain.hashes[-1]) == ("TYeA_BqDrPHaAt6E", "7DMVn1YB8NMntes1")


def test_services_that_nobody_answers_for_do_not_loop() -> None:
    """Announced ranges are dropped when forwarded, per family, as configured; the hash is the real Felix's."""
    ranges = Changes(services=("203.0.113.0/24", "fd00:96::/112"))
    renderer = Renderer(4, CONFIG)
    jump = "--jump cali-cidr-block"
    assert jump not in rendered(renderer, "cali-FORWARD")
    renderer.update(ranges)
    assert rendered(renderer, "cali-FORWARD")[-1] == jump
    chain = renderer.tables["filter"].content("cali-cidr-block")
    assert chain is not None
    assert [rule.body for rule in chain.rules] == ["--destination 203.0.113.0/24 --jump DROP"]
    assert chain.hashes == ("xAQVk372-inrq4TP",)
    renderer.update(Changes(services=()))
    assert jump not in rendered(renderer, "cali-FORWARD")
    renderer = Renderer(6, FelixConfig.from_parameters({"ServiceLoopPrevention": "Reject"}))
    renderer.update(ranges)
    assert rendered(renderer, "cali-cidr-block") == ["--destination fd00:96::/112 --jump REJECT"]
    renderer = Renderer(6, FelixConfig.from_parameters({"ServiceLoopPrevention": "Disabled"}))
    renderer.update(ranges)
    assert jump not in rendered(renderer, "cali-FORWARD")


def test_spoofing_is_excepted_only_where_the_node_allows_it() -> None:
    """WorkloadSourceSpoofing=Any honours an endpoint's extra prefixes, of the family; Disabled ignores them."""
    item = endpoint(1, spoof_prefixes=("192.0.2.0/24", "2001:db8::/32"))
    strict, lax = Renderer(4, CONFIG), Renderer(4, FelixConfig(spoofing_allowed=True))
    for renderer in (strict, lax):
        renderer.update(changes(item))
    assert "rpf-skip" not in str(rendered(strict, "cali-PREROUTING", "raw"))
    assert rendered(lax, "cali-PREROUTING", "raw") == [
        "--jump MARK --set-mark 0/0x1b0000",
        "--in-interface cali+ --jump MARK --set-mark 0x80000/0x80000",
        "-m mark --mark 0x80000/0x80000 --jump cali-rpf-skip",
        "-m mark --mark 0x80000/0x80000 -m rpfilter --invert --validmark --jump DROP",
        "-m mark --mark 0/0x80000 --jump cali-from-host-endpoint",
        "-m mark --mark 0x10000/0x10000 --jump ACCEPT",
    ]
    assert rendered(lax, "cali-rpf-skip", "raw") == ["--in-interface cali0001 --source 192.0.2.0/24 --jump ACCEPT"]
    lax.update(Changes(endpoints={item.id: None}))
    assert "rpf-skip" not in str(rendered(lax, "cali-PREROUTING", "raw"))


def test_nat_outgoing_exists_with_the_first_pool_that_wants_it() -> None:
    """Per family; ports and addresses as configured."""
    renderer = Renderer(4, CONFIG)
    renderer.update(Changes(pools={"fd00::/64": Pool("fd00::/64", nat_outgoing=True)}))
    assert rendered(renderer, "cali-nat-outgoing", "nat") == []
    renderer.update(Changes(pools={"10.0.0.0/16": Pool("10.0.0.0/16", nat_outgoing=True)}))
    assert rendered(renderer, "cali-nat-outgoing", "nat") == [
        (
            "-m set --match-set cali40masq-ipam-pools src -m set ! --match-set cali40network-ip-pools dst"
            " --jump MASQUERADE --random-fully"
        )
    ]
    renderer.update(Changes(pools={"10.0.0.0/16": None}))
    assert rendered(renderer, "cali-nat-outgoing", "nat") == []
    ports = Renderer(4, FelixConfig.from_parameters({"NATPortRange": "30000:40000"}))
    ports.update(Changes(pools={"10.0.0.0/16": Pool("10.0.0.0/16", nat_outgoing=True)}))
    rules = rendered(ports, "cali-nat-outgoing", "nat")
    assert len(rules) == 5
    assert "--to-ports 30000-40000" in rules[0]
    assert rules[1].endswith("--jump RETURN")


def test_rendering_again_is_the_same_whatever_the_order() -> None:
    """Output depends on present state only."""
    web, db = active("web", selector="all()"), active("db", selector="all()")
    one, two = endpoint(1, ingress("web", "db")), endpoint(2, ingress("db"))
    forward, backward = Renderer(4, CONFIG), Renderer(4, CONFIG)
    forward.update(changes(one, two, policies=(web, db)))
    backward.update(Changes(endpoints={two.id: two}))
    third = endpoint(9, ingress("web"))
    backward.update(Changes(endpoints={third.id: third}))
    backward.update(Changes(endpoints={one.id: one, third.id: None}))
    backward.update(changes(policies=(db, web)))

    def content(renderer: Renderer) -> set[Chain]:
        return set(renderer.tables["filter"].programmed())

    assert content(forward) == content(backward)
