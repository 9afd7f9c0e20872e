"""From desired tables and a read-back to restore input: as little as possible, nothing of others."""

from __future__ import annotations

import pytest

from calipy.felix.delta import Actual, KernelRule, Table, compare, parse_save, plan, trial
from calipy.felix.render.rule import Chain, Hook, Rule

JUMP = Hook("FORWARD", (Rule("", "--jump cali-FORWARD"),), (Rule("", "--jump ACCEPT", ("tail",)),))


def chain(name: str, *actions: str) -> Chain:
    return Chain(name, tuple(Rule("", action) for action in actions))


def table(*chains: Chain, name: str = "filter") -> Table:
    made = Table(name)
    made.set_hook(JUMP)
    for item in chains:
        made.put(item)
    return made


def carried_out(desired: Table, actual: Actual) -> Actual:
    """The kernel after the plan, and nothing left to do."""
    plan(desired, actual).record(actual)
    desired.dirty.clear()
    assert not compare(desired, actual)
    return actual


def test_only_what_something_leads_to_is_programmed() -> None:
    """A chain that no hook reaches costs nothing; it comes with its first reference and goes with the last."""
    desired = table(chain("cali-FORWARD", "--jump cali-a"), chain("cali-a"), chain("cali-b"))
    assert {item.name for item in desired.programmed()} == {"cali-FORWARD", "cali-a"}
    desired.put(chain("cali-FORWARD", "--jump cali-b"))
    assert {item.name for item in desired.programmed()} == {"cali-FORWARD", "cali-b"}
    desired.put(chain("cali-b", "--jump cali-c", "--goto cali-c"))
    desired.put(chain("cali-c", "--jump cali-d"))
    assert desired.content("cali-d") is not None
    desired.put(chain("cali-b"))
    assert desired.content("cali-c") is None
    assert desired.content("cali-d") is None


def test_empty_kernel_gets_everything_in_one_transaction() -> None:
    """Chains are declared before rules name them; hooks come last."""
    desired = table(chain("cali-FORWARD", "--jump cali-a"), chain("cali-a", "--jump DROP"))
    made = plan(desired, Actual())
    lines = made.restore_input()
    assert lines[0] == "*filter"
    assert lines[1:3] == [":cali-FORWARD - -", ":cali-a - -"]
    assert lines[-1] == "COMMIT"
    assert lines.count("COMMIT") == made.transactions == 1
    assert next(line for line in lines if " FORWARD " in line).startswith('-I FORWARD -m comment --comment "cali:')
    assert made.owner_of_line(2) == "cali-FORWARD"
    assert made.owner_of_line(1) == ""
    carried_out(desired, Actual())


def test_nothing_to_do_is_nothing() -> None:
    """The same state twice makes no line."""
    desired = table(chain("cali-FORWARD", "--jump DROP"))
    actual = carried_out(desired, Actual())
    desired.put(chain("cali-FORWARD", "--jump DROP"))
    assert not plan(desired, actual)


def test_a_changed_chain_is_rewritten_whole_and_alone() -> None:
    """Others keep their rules and counters."""
    desired = table(chain("cali-FORWARD", "--jump cali-a"), chain("cali-a", "--jump DROP"))
    actual = carried_out(desired, Actual())
    desired.put(chain("cali-a", "--jump RETURN", "--jump DROP"))
    made = plan(desired, actual)
    assert {line.split()[1] if line.startswith("-A") else line.split()[0] for line in made.lines} == {
        ":cali-a",
        "cali-a",
    }
    assert len(made.lines) == 3


def test_stale_chains_are_emptied_then_deleted_in_a_second_transaction() -> None:
    """nf_tables refuses to delete a chain together with its last reference."""
    desired = table(chain("cali-FORWARD", "--jump cali-a"), chain("cali-a", "--jump cali-b"), chain("cali-b"))
    actual = carried_out(desired, Actual())
    desired.put(chain("cali-FORWARD"))
    lines = plan(desired, actual).restore_input()
    second = lines.index("COMMIT") + 1
    assert {":cali-a - -", ":cali-b - -", ":cali-FORWARD - -"} <= set(lines[:second])
    assert lines[second:] == ["*filter", "-X cali-a", "-X cali-b", "COMMIT"]


def test_chains_of_an_earlier_run_are_stale_after_the_first_read() -> None:
    """Whatever carries our prefix and is not wanted goes; other chains are not even looked at."""
    desired = table(chain("cali-FORWARD"))
    actual = Actual(chains={"cali-old": (None,), "felix-FORWARD": ()})
    desired.dirty |= compare(desired, actual)
    assert plan(desired, actual).deletions == ["-X cali-old", "-X felix-FORWARD"]


@pytest.mark.parametrize(
    "found",
    [
        (),
        (KernelRule(None), KernelRule("HEAD")),
        (KernelRule("HEAD"), KernelRule("HEAD"), KernelRule(None), KernelRule("TAIL")),
        (KernelRule("TAIL"), KernelRule(None), KernelRule("HEAD")),
        (KernelRule("HEAD"), KernelRule("stale-hash", "-j cali-x"), KernelRule("TAIL")),
        (KernelRule("", "-j felix-FORWARD"),),
    ],
)
def test_a_hook_that_is_not_as_expected_is_made_anew(found: tuple[KernelRule, ...]) -> None:
    """Ours are deleted by their full text and put back at head and tail; foreign rules stay between."""
    desired = table(chain("cali-FORWARD"))
    heads, tails = JUMP.insert_hashes, JUMP.append_hashes
    names = {"HEAD": heads[0], "TAIL": tails[0]}
    given = tuple(KernelRule(names.get(r.digest or "", r.digest), r.text or str(r.digest)) for r in found)
    actual = Actual(
        hooks={"FORWARD": tuple(KernelRule(r.digest, r.text if r.digest is not None else "") for r in given)}
    )
    made = plan(desired, actual)
    deleted = [line for line in made.lines if line.startswith("-D")]
    assert deleted == [f"-D FORWARD {r.text}" for r in given if r.digest is not None]
    others = sum(r.digest is None for r in given)
    assert [rule.digest for rule in made.hooks["FORWARD"]] == [*heads, *[None] * others, *tails]


def test_our_rules_in_a_chain_that_we_no_longer_use_go() -> None:
    """A hook of an older version in another kernel chain is deleted."""
    desired = table(chain("cali-FORWARD"))
    actual = carried_out(desired, Actual())
    actual.hooks["INPUT"] = (KernelRule("xxxx", '-m comment --comment "cali:xxxx" -j cali-INPUT'), KernelRule(None))
    assert plan(desired, actual).lines == ['-D INPUT -m comment --comment "cali:xxxx" -j cali-INPUT']


def test_only_missing_leaves_what_is_in_force() -> None:
    """The guard before in-sync writes absent and emptied chains and absent hooks, and touches nothing else."""
    desired = table(chain("cali-FORWARD", "--jump cali-a"), chain("cali-a", "--jump DROP"))
    actual = Actual(
        chains={"cali-FORWARD": ("older-rule-hash-",), "cali-tw-x": ("something",)},
        hooks={"FORWARD": (KernelRule("older-hook-hash-", "-j cali-FORWARD"),)},
    )
    desired.dirty |= compare(desired, actual)
    made = plan(desired, actual, only_missing=True)
    assert set(made.chains) == {"cali-a"}
    assert not made.hooks
    assert not made.deletions
    flushed = Actual(chains={"cali-FORWARD": (), "cali-a": ()})
    desired.dirty |= compare(desired, flushed)
    assert set(plan(desired, flushed, only_missing=True).chains) == {"cali-FORWARD", "cali-a"}


def test_missing_and_refused_chains_drop_until_they_change() -> None:
    """In the nat table, which cannot drop, they are empty."""
    desired = table(chain("cali-FORWARD", "--jump cali-a"))
    stub = desired.content("cali-a")
    assert stub is not None
    assert stub.rules[0].action == "--jump DROP"
    desired.put(chain("cali-a", "--jump cali-b"))
    desired.refuse("cali-a", "no")
    assert desired.content("cali-b") is None
    assert desired.refused == {"cali-a": "no"}
    desired.forgive()
    assert desired.content("cali-b") is not None
    desired.refuse("cali-a", "no")
    desired.put(chain("cali-a", "--jump RETURN"))
    assert not desired.refused
    nat = table(chain("cali-FORWARD", "--jump cali-a"), name="nat")
    assert nat.content("cali-a") == Chain("cali-a", ())


SAVED = """\
# Generated by iptables-nft-save v1.8.9 (nf_tables)
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:cali-FORWARD - [0:0]
:cali-empty - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "cali:AAAAAAAAAAAAAAAA" -j cali-FORWARD
-A FORWARD -m comment --comment "not cali:BBBBBBBBBBBBBBBB" -j KUBE-FORWARD
-A FORWARD -j felix-FORWARD
-A cali-FORWARD -i cali+ -m comment --comment "cali:CCCCCCCCCCCCCCCC" -m comment --comment "more" -j DROP
-A cali-FORWARD -j ACCEPT
-A KUBE-FORWARD -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
COMMIT
"""


def test_a_trial_writes_some_chains_and_opens_nothing() -> None:
    """What they lead to drops until it is written; what is there stays; hooks and deletions wait."""
    desired = table(
        chain("cali-FORWARD", "--jump cali-a", "--jump cali-b", "--jump cali-c"),
        chain("cali-a", "--jump cali-d"),
        chain("cali-b"),
        chain("cali-c"),
        chain("cali-d"),
    )
    assert desired.from_hooks() == ["cali-FORWARD", "cali-a", "cali-b", "cali-c", "cali-d"]
    actual = Actual(chains={"cali-b": ("x",), "cali-old": ()})
    made = trial(desired, actual, ["cali-FORWARD", "cali-a"])
    assert made.lines[:4] == [":cali-FORWARD - -", ":cali-a - -", ":cali-c - -", ":cali-d - -"]
    assert [line.split()[1] for line in made.lines if line.endswith("--jump DROP")] == ["cali-c", "cali-d"]
    assert not made.deletions
    assert not made.hooks
    made.record(actual)
    assert compare(desired, actual) == {"cali-b", "cali-c", "cali-d", "cali-old"}
    assert not trial(desired, actual, ["cali-FORWARD"])


def test_save_output_is_read_for_hashes_and_hooks_only() -> None:
    """Foreign chains are left out unless they hold rules of ours."""
    read = parse_save(SAVED, {"filter": ("FORWARD", "INPUT")})
    assert read["filter"].chains == {"cali-FORWARD": ("CCCCCCCCCCCCCCCC", None), "cali-empty": ()}
    assert read["filter"].hooks == {
        "FORWARD": (
            KernelRule("AAAAAAAAAAAAAAAA", '-m comment --comment "cali:AAAAAAAAAAAAAAAA" -j cali-FORWARD'),
            KernelRule(None),
            KernelRule("", "-j felix-FORWARD"),
        )
    }
    assert read["nat"].chains == {}


def test_incompatible_tables_are_an_error_though_save_exits_with_success() -> None:
    """nft rules that iptables cannot show make the output worthless."""
    with pytest.raises(ValueError, match="incompatible"):
        parse_save("# Table `filter' is incompatible, use 'nft' tool.\n", {"filter": ()})
    assert parse_save("# Table `security' is incompatible, use 'nft' tool.\n", {"filter": ()}) == {}
