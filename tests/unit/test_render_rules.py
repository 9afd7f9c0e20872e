"""Names, hashes and the compilation of policies: text against text, with Felix's own values where they are known."""

from __future__ import annotations

import pytest

from calipy.errors import InvalidInputError
from calipy.felix.config import FelixConfig
from calipy.felix.messages import ICMP, ActivePolicy, ActiveProfile, Match, PolicyID, PortRange, Rule
from calipy.felix.render.marks import Marks
from calipy.felix.render.names import (
    chain_name,
    group_chain,
    policy_chain,
    profile_chain,
    set_name,
    workload_chain,
)
from calipy.felix.render.policy import PolicyContext, policy_chains, profile_chains
from calipy.felix.render.rule import Chain, Hook, Origin, escape_comment, rule_hashes
from calipy.felix.render.rule import Rule as TableRule
from calipy.felix.render.static import hooks
from calipy.net import Family

CONFIG = FelixConfig()
MARKS = Marks.from_mask(CONFIG.mark_mask)
WEB = PolicyID("NetworkPolicy", "ns1", "web")


def compiled(*rules: Rule, family: Family = 4, config: FelixConfig = CONFIG, **values: object) -> list[str]:
    """The inbound chain of a policy with these rules, without the first rule's title (which follows annotations)."""
    policy = ActivePolicy(WEB, "default", rules, (), **values)  # type: ignore[arg-type]
    chain, _ = policy_chains(PolicyContext(family, config, Marks.from_mask(config.mark_mask)), policy)
    return [
        rule.body.replace('-m comment --comment "NetworkPolicy ns1/web ingress"', "", 1).replace("  ", " ").strip()
        for rule in chain.rules
    ]


def test_long_chain_names_are_hashed() -> None:
    """Names of up to 27 characters stay, longer ones get Felix's digest; no given name can look like a hashed one."""
    assert chain_name("cali-thfw-", "any-interface-at-all") == "cali-thfw-_Nqh4HyA73udmyanQI"
    assert chain_name("cali-pi-", "a" * 20) == "cali-pi-" + "a" * 20
    assert chain_name("cali-pi-", "_" + "a" * 19) != "cali-pi-_" + "a" * 19
    assert len(chain_name("cali-pi-", "_" + "a" * 19)) == 28
    assert chain_name("cali-pi-", "") == "cali-pi-_"


def test_names_of_policies_profiles_and_sets() -> None:
    """Kinds are shortened, namespaces kept; set names are cut at 31 characters, as Felix does."""
    assert policy_chain(PolicyID("GlobalNetworkPolicy", "", "web"), "ingress") == "cali-pi-gnp/web"
    assert policy_chain(WEB, "egress") == "cali-po-np/ns1/web"
    assert profile_chain("kns.ns1", "ingress") == "cali-pri-kns.ns1"
    assert workload_chain("cali1234", "ingress") == "cali-tw-cali1234"
    assert set_name(4, "s:5y5I3VdRZfDU01O--xXAPx2hhJdeyhm4w") == "cali40s:5y5I3VdRZfDU01O--xXAPx2"
    assert set_name(6, "masq-ipam-pools") == "cali60masq-ipam-pools"
    a, b = (PolicyID("GlobalNetworkPolicy", "", name) for name in ("hep-allow", "hep-fwd"))
    assert group_chain('role == "host"', "egress", (a, b)) == "cali-go-7WClT7aww4jUHyQyrszm"
    a, b = (PolicyID("GlobalNetworkPolicy", "", name) for name in "ac")
    assert group_chain("has(app)", "ingress", (a, b)) == "cali-gi-sqQOTXON8P0LaH93h-j1"


@pytest.mark.parametrize(
    ("chain", "bodies", "hashes"),
    [
        ("PREROUTING", ("--jump cali-PREROUTING",), ("6gwbT8clXdHdC1b1",)),
        ("FORWARD", ("--jump cali-FORWARD",), ("wUHhoiAYhphO9Mso",)),
        ("POSTROUTING*appends*", ("--jump cali-POSTROUTING",), ("0i8pjzKKPyA34aQD",)),
    ],
)
def test_rule_hashes_are_felixs(chain: str, bodies: tuple[str, ...], hashes: tuple[str, ...]) -> None:
    """The values that the real Felix writes, so that each recognises the other's rules."""
    assert rule_hashes(chain, bodies) == hashes


def test_hooks_of_the_filter_table_are_felixs() -> None:
    """FORWARD has the jump at its head and the two rules at its tail, with Felix's hashes."""
    forward = {hook.chain: hook for hook in hooks("filter", CONFIG, MARKS)}["FORWARD"]
    assert forward.insert_hashes == ("wUHhoiAYhphO9Mso",)
    assert forward.append_hashes == ("S93hcgKJrXEqnTfs", "mp77cMpurHhyjLrM")


def test_append_mode_moves_the_jumps_and_nat_postrouting_is_always_appended() -> None:
    """ChainInsertMode=append puts everything at the tail."""
    appended = hooks("filter", FelixConfig(chain_insert_mode="append"), MARKS)
    assert all(not hook.inserts for hook in appended)
    nat = {hook.chain: hook for hook in hooks("nat", CONFIG, MARKS)}
    assert nat["PREROUTING"].inserts
    assert not nat["POSTROUTING"].inserts
    assert nat["POSTROUTING"].append_hashes == ("0i8pjzKKPyA34aQD",)


def test_a_changed_rule_changes_all_later_hashes() -> None:
    """Identity depends on what stands before, so order is part of it."""
    one = rule_hashes("c", ("a", "b", "c"))
    other = rule_hashes("c", ("a", "x", "c"))
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[2] != other[2]


def test_comments_are_made_harmless() -> None:
    """Quotes, newlines and what is not ASCII become underscores; length is bounded."""
    assert escape_comment('a"b\n\\é$;') == "a_b_____"
    assert escape_comment("k=v,w/x:y@z%+.-") == "k=v,w/x:y@z%+.-"
    assert len(escape_comment("x" * 999)) == 256


def test_chain_knows_where_it_leads() -> None:
    """Jump and goto targets of ours count; targets of the kernel do not."""
    chain = Chain(
        "cali-a", (TableRule("-p tcp", "--jump cali-b"), TableRule("", "--goto cali-c"), TableRule("", "--jump DROP"))
    )
    assert chain.targets == ("cali-b", "cali-c")
    assert Hook("FORWARD", (), chain.rules).targets == ("cali-b", "cali-c")


def test_marks_come_from_the_lowest_bits() -> None:
    """Default bits are Calico's; a mask with fewer than five bits is refused."""
    assert (MARKS.accept, MARKS.pass_, MARKS.drop, MARKS.scratch0, MARKS.scratch1) == (
        0x10000,
        0x20000,
        0x40000,
        0x80000,
        0x100000,
    )
    assert MARKS.all == 0x1B0000
    with pytest.raises(InvalidInputError, match="IptablesMarkMask"):
        Marks.from_mask(0xF0000000)


def test_verdicts() -> None:
    """Allow and pass set a mark and return, deny marks and drops, log goes on; a RETURN at the end is left out."""
    assert compiled(Rule("allow")) == ["--jump MARK --set-mark 0x10000/0x10000"]
    assert compiled(Rule("pass"), Rule("deny")) == [
        "--jump MARK --set-mark 0x20000/0x20000",
        "-m mark --mark 0x20000/0x20000 --jump RETURN",
        "--jump MARK --set-mark 0x40000/0x40000",
        "-m mark --mark 0x40000/0x40000 --jump DROP",
    ]
    assert compiled(Rule("log")) == ['--jump LOG --log-prefix "calico-packet: " --log-level 5']
    assert compiled(Rule("deny"), config=FelixConfig(filter_deny_action="REJECT"))[1].endswith("--jump REJECT")


def test_log_prefix_is_expanded() -> None:
    """%t, %k, %n and %p stand for tier, kind, name and full name."""
    config = FelixConfig(log_prefix="%t %k %p", log_rate_limit="10/minute")
    assert compiled(Rule("log"), config=config) == [
        '-m limit --limit 10/minute --limit-burst 5 --jump LOG --log-prefix "default np ns1/web: " --log-level 5'
    ]


def test_an_empty_policy_keeps_its_name() -> None:
    """Its chain has one rule without an action."""
    assert compiled() == [""]
    profile = ActiveProfile("p", (), (Rule("allow"),))
    chains = profile_chains(PolicyContext(4, CONFIG, MARKS), profile)
    assert [rule.comments for rule in chains[0].rules] == [("Profile p ingress",)]


def test_order_of_matches() -> None:
    """Everything in one rule, in Felix's order."""
    rule = Rule(
        "allow",
        protocol="tcp",
        src=Match(nets=("10.0.0.0/8",), ip_sets=("s:a",), ports=(PortRange(1, 2),), not_ports=(PortRange(9, 9),)),
        dst=Match(
            ip_sets=("s:b",), services=("svc:c",), named_ports=("n:d",), not_nets=("10.1.0.0/16",), not_ip_sets=("s:e",)
        ),
        annotations=("k=v",),
    )
    assert compiled(rule) == [
        (
            '-m comment --comment "k=v" -p tcp --source 10.0.0.0/8 -m set --match-set cali40s:a src'
            " -m multiport --source-ports 1:2 -m set --match-set cali40s:b dst -m set --match-set cali40svc:c dst,dst"
            " -m set --match-set cali40n:d dst,dst -m multiport ! --source-ports 9"
            " ! --destination 10.1.0.0/16 -m set ! --match-set cali40s:e dst --jump MARK --set-mark 0x10000/0x10000"
        )
    ]


def test_a_protocol_and_another_one_excluded_stand_in_no_rule_together() -> None:
    """iptables takes ``-p`` once: beside a protocol the exclusion says nothing, unless it is of the same."""
    allowed = "--jump MARK --set-mark 0x10000/0x10000"
    assert compiled(Rule("allow", not_protocol=17)) == [f"! -p 17 {allowed}"]
    assert compiled(Rule("allow", protocol="tcp", not_protocol="udp")) == [f"-p tcp {allowed}"]
    assert compiled(Rule("allow", protocol="tcp", not_protocol="tcp")) == [""]
    assert compiled(Rule("allow", icmp=ICMP(8, None), not_protocol="icmp")) == [""]


def test_rules_of_the_other_family_are_left_out_not_widened() -> None:
    """ipVersion, CIDRs of the other family only, and a negated catch-all: no rule at all."""
    for rule in (
        Rule("allow", ip_version=6),
        Rule("allow", src=Match(nets=("fd00::/8",))),
        Rule("allow", dst=Match(not_nets=("fd00::/8",))),
        Rule("allow", src=Match(not_nets=("0.0.0.0/0",))),
        Rule("allow", protocol="icmpv6", icmp=ICMP(128, None)),
    ):
        assert compiled(rule) == [""]
    both = Rule("allow", src=Match(nets=("fd00::/8", "10.0.0.0/8")))
    assert compiled(both) == ["--source 10.0.0.0/8 --jump MARK --set-mark 0x10000/0x10000"]
    assert compiled(both, family=6) == ["--source fd00::/8 --jump MARK --set-mark 0x10000/0x10000"]


def test_icmp_needs_its_protocol() -> None:
    """Type and code in each family's words."""
    assert compiled(Rule("allow", icmp=ICMP(8, 0)))[0].startswith("-p icmp -m icmp --icmp-type 8/0")
    assert compiled(Rule("allow", protocol="icmpv6", not_icmp=ICMP(128, None)), family=6)[0].startswith(
        "-p icmpv6 -m icmp6 ! --icmpv6-type 128"
    )


def test_sixteen_ports_spill_into_a_block() -> None:
    """A range takes two of multiport's fifteen slots; each piece repeats the protocol."""
    ports = (*tuple(PortRange(n, n) for n in range(1, 15)), PortRange(20, 30))
    lines = compiled(Rule("allow", protocol="tcp", dst=Match(ports=ports)))
    assert lines == [
        "--jump MARK --set-mark 0x0/0x180000",
        (
            "-p tcp -m multiport --destination-ports 1,2,3,4,5,6,7,8,9,10,11,12,13,14"
            " --jump MARK --set-mark 0x80000/0x80000"
        ),
        "-p tcp -m multiport --destination-ports 20:30 --jump MARK --set-mark 0x80000/0x80000",
        "-p tcp -m mark --mark 0x80000/0x80000 --jump MARK --set-mark 0x10000/0x10000",
    ]


def test_every_later_positive_block_starts_clean() -> None:
    """The bit of the current block is cleared before each block but the first: Felix forgets it from the third on."""
    rule = Rule(
        "allow",
        protocol="tcp",
        src=Match(nets=("10.0.0.0/8", "11.0.0.0/8"), not_nets=("10.1.0.0/16", "10.2.0.0/16")),
        dst=Match(nets=("12.0.0.0/8", "13.0.0.0/8"), ports=(PortRange(1, 1),), named_ports=("n:x",)),
    )
    clear = "--jump MARK --set-mark 0/0x100000"
    close = "-m mark --mark 0/0x100000 --jump MARK --set-mark 0/0x80000"
    pass_this = "--jump MARK --set-mark 0x100000/0x100000"
    assert compiled(rule) == [
        "--jump MARK --set-mark 0x0/0x180000",
        "-p tcp -m multiport --destination-ports 1 --jump MARK --set-mark 0x80000/0x80000",
        "-m set --match-set cali40n:x dst,dst --jump MARK --set-mark 0x80000/0x80000",
        clear,
        f"--source 10.0.0.0/8 {pass_this}",
        f"--source 11.0.0.0/8 {pass_this}",
        close,
        clear,
        f"--destination 12.0.0.0/8 {pass_this}",
        f"--destination 13.0.0.0/8 {pass_this}",
        close,
        "--source 10.1.0.0/16 --jump MARK --set-mark 0/0x80000",
        "--source 10.2.0.0/16 --jump MARK --set-mark 0/0x80000",
        "-p tcp -m mark --mark 0x80000/0x80000 --jump MARK --set-mark 0x10000/0x10000",
    ]


def test_a_negated_block_first_starts_set() -> None:
    """Without positive blocks the packet passes until an exclusion matches."""
    lines = compiled(Rule("allow", src=Match(not_nets=("10.1.0.0/16", "10.2.0.0/16"))))
    assert lines[0] == "--jump MARK --set-mark 0x80000/0x180000"
    assert len(lines) == 4


def test_rules_remember_where_they_came_from() -> None:
    """Each rule of a chain names the policy, the direction and the place of the policy rule."""
    policy = ActivePolicy(WEB, "default", (Rule("deny"), Rule("allow")), ())
    chain, _ = policy_chains(PolicyContext(4, CONFIG, MARKS), policy)
    assert [rule.origin for rule in chain.rules] == [
        Origin("policy", WEB, "ingress", 0),
        Origin("policy", WEB, "ingress", 0),
        Origin("policy", WEB, "ingress", 1),
    ]
