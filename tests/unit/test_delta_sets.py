"""Ip sets: desired against actual, in the fewest lines."""

from __future__ import annotations

import ipaddress

import pytest

from calipy.felix.messages import VTEP, Changes, Host, IPSet, IPSetDelta, Pool
from calipy.felix.sets import (
    KernelSet,
    SetTable,
    compare_sets,
    parse_save,
    plan_sets,
    record_sets,
    unwanted_sets,
)


def table(**sets: set[str]) -> SetTable:
    made = SetTable(20_000)
    made.update(Changes(ip_sets={name: IPSet(name, "net", frozenset(members)) for name, members in sets.items()}))
    return made


def settled(desired: SetTable) -> dict[str, KernelSet]:
    actual: dict[str, KernelSet] = {}
    record_sets(desired, actual)
    assert not compare_sets(desired, actual)
    return actual


def delta(desired: SetTable, name: str, added: set[str], removed: set[str]) -> None:
    desired.update(Changes(ip_sets={name: IPSetDelta(name, frozenset(added), frozenset(removed))}))


def test_a_new_set_is_created_in_both_families_and_filled() -> None:
    """Members go to the set of their family."""
    desired = table(x={"10.0.0.1", "fd00::1", "10.1.0.0/16"})
    lines = plan_sets(desired, {}).lines
    assert "create cali40x hash:net family inet maxelem 20000" in lines
    assert "create cali60x hash:net family inet6 maxelem 20000" in lines
    assert {"add cali40x 10.0.0.1", "add cali40x 10.1.0.0/16", "add cali60x fd00::1"} <= set(lines)
    assert lines.index("create cali40x hash:net family inet maxelem 20000") < lines.index("add cali40x 10.0.0.1")


def test_a_delta_costs_what_changes() -> None:
    """One member of ten thousand: one line, and additions come before removals."""
    desired = table(x={f"10.{n >> 8}.{n & 255}.1" for n in range(10_000)})
    actual = settled(desired)
    delta(desired, "x", {"192.0.2.1"}, {"10.0.0.1"})
    assert plan_sets(desired, actual).lines == ("add cali40x 192.0.2.1", "del cali40x 10.0.0.1")
    record_sets(desired, actual)
    assert not compare_sets(desired, actual)
    assert not plan_sets(desired, actual).lines


def test_added_and_removed_again_is_nothing() -> None:
    """Deltas that cancel out before they are written leave no line."""
    desired = table(x=set())
    actual = settled(desired)
    delta(desired, "x", {"10.0.0.1"}, set())
    delta(desired, "x", set(), {"10.0.0.1"})
    assert not plan_sets(desired, actual).lines


def test_a_whole_network_is_held_as_two_halves() -> None:
    """hash:net cannot hold /0; a half that is wanted for its own sake stays when the whole goes."""
    desired = table(x={"0.0.0.0/0", "0.0.0.0/1", "::/0"})
    actual = settled(desired)
    assert actual["cali40x"].members == {"0.0.0.0/1", "128.0.0.0/1"}
    assert actual["cali60x"].members == {"::/1", "8000::/1"}
    delta(desired, "x", set(), {"0.0.0.0/0"})
    assert plan_sets(desired, actual).lines == ("del cali40x 128.0.0.0/1",)


def test_wrong_type_goes_first() -> None:
    """The kernel does not swap sets of different types."""
    desired = table(x={"10.0.0.1"})
    actual = settled(desired)
    actual["cali40x"] = KernelSet("hash:ip", 4, 20_000, {"10.0.0.1"})
    desired.dirty["cali40x"] = None
    assert plan_sets(desired, actual).lines == (
        "destroy cali40x",
        "create cali40x hash:net family inet maxelem 20000",
        "add cali40x 10.0.0.1",
    )


@pytest.mark.parametrize(
    "found",
    [KernelSet("hash:net", 4, 999, {"10.9.9.9"}), KernelSet("hash:net", 4, 20_000, set(map(str, range(20_000))))],
)
def test_wrong_size_and_full_sets_are_swapped_not_emptied(found: KernelSet) -> None:
    """Rules that use the set never see it half full."""
    desired = table(x={"10.0.0.1"})
    actual = settled(desired)
    actual["cali40x"] = found
    desired.dirty["cali40x"] = None
    lines = plan_sets(desired, actual).lines
    temporary = lines[0].split()[1]
    assert temporary.startswith("cali4t")
    assert lines[-2:] == (f"swap {temporary} cali40x", f"destroy {temporary}")
    assert f"add {temporary} 10.0.0.1" in lines


def test_sets_that_nobody_wants_are_found_not_forgotten() -> None:
    """Dropped ones, those of an earlier run and temporary ones; they are destroyed after the rules."""
    desired = table(x={"10.0.0.1"})
    actual = settled(desired)
    actual["cali4t0"] = KernelSet("hash:net", 4, 1000)
    desired.update(Changes(ip_sets={"x": None}))
    assert unwanted_sets(desired, actual) == ["cali40x", "cali4t0", "cali60x"]
    assert not plan_sets(desired, actual).lines


def test_sets_in_trouble_can_be_left_out() -> None:
    """The others are written, the one stays dirty."""
    desired = table(x={"10.0.0.1"}, y={"10.0.0.2"})
    plan = plan_sets(desired, {}, frozenset({"cali40x"}))
    assert "cali40x" not in plan.owners
    assert "cali40y" in plan.owners
    actual: dict[str, KernelSet] = {}
    record_sets(desired, actual, frozenset({"cali40x"}))
    assert set(desired.dirty) == {"cali40x"}


def test_pools_and_hosts_have_sets_of_their_own() -> None:
    """Pools for load balancers only are no pod networks; an address that two hosts share stays until both are gone."""
    desired = table()
    actual = settled(desired)
    desired.update(
        Changes(
            pools={
                "10.0.0.0/16": Pool("10.0.0.0/16", nat_outgoing=True),
                "10.1.0.0/16": Pool("10.1.0.0/16", nat_outgoing=False),
                "10.2.0.0/16": Pool("10.2.0.0/16", nat_outgoing=False, load_balancer_only=True),
            },
            hosts={"a": Host("a", "172.16.0.1", "fd16::1"), "b": Host("b", "172.16.0.1")},
        )
    )
    record_sets(desired, actual)
    assert actual["cali40network-ip-pools"].members == {"10.0.0.0/16", "10.1.0.0/16"}
    assert actual["cali40masq-ipam-pools"].members == {"10.0.0.0/16"}
    assert actual["cali40all-hosts-net"].members == {"172.16.0.1"}
    desired.update(Changes(hosts={"a": None}, pools={"10.0.0.0/16": None}))
    record_sets(desired, actual)
    assert actual["cali40all-hosts-net"].members == {"172.16.0.1"}
    assert actual["cali60all-hosts-net"].members == set()
    assert actual["cali40masq-ipam-pools"].members == set()
    desired.update(Changes(hosts={"b": None}))
    record_sets(desired, actual)
    assert actual["cali40all-hosts-net"].members == set()


def test_who_may_send_into_tunnels() -> None:
    """The other nodes' VXLAN addresses, and external nodes in both sets, also where a node has the same address."""
    external = tuple(map(ipaddress.ip_network, ("172.16.9.0/24", "172.16.0.2/32", "fd16:9::/64")))
    desired = SetTable(1000, external)
    desired.update(
        Changes(
            hosts={"b": Host("b", "172.16.0.2")},
            vteps={
                ("a", 4): VTEP("66:00:00:00:00:01", "10.65.1.0", "172.16.0.1", local=True),
                ("b", 4): VTEP("66:00:00:00:00:02", "10.65.2.0", "172.16.0.2"),
                ("c", 4): VTEP("66:00:00:00:00:03", "10.65.3.0", "172.16.0.3"),
                ("c", 6): VTEP("66:00:00:00:00:03", "fd65::3", "fd16::3"),
            },
        )
    )
    for found in (desired, desired.resized(2000, external)):
        assert found.sets["cali40all-vxlan-net"].members == {"172.16.9.0/24", "172.16.0.2", "172.16.0.3"}
        assert found.sets["cali60all-vxlan-net"].members == {"fd16:9::/64", "fd16::3"}
        assert found.sets["cali40all-hosts-net"].members == {"172.16.9.0/24", "172.16.0.2"}
    desired.update(Changes(vteps={("b", 4): None, ("c", 4): None}, hosts={"b": None}))
    assert desired.sets["cali40all-vxlan-net"].members == {"172.16.9.0/24", "172.16.0.2"}
    assert desired.resized(1000, ()).sets["cali40all-vxlan-net"].members == set()


def test_save_output_shows_our_sets_only() -> None:
    """Type, family, size and members; port members as they are written."""
    text = """\
create cali40n:x hash:ip,port family inet hashsize 1024 maxelem 1000 bucketsize 12 initval 0x1
add cali40n:x 10.0.0.1,tcp:80
create theirs hash:ip family inet hashsize 1024 maxelem 65536
add theirs 10.0.0.9
create cali60s:x hash:net family inet6 hashsize 1024 maxelem 1000
add cali60s:x fd00::/64
"""
    assert parse_save(text) == {
        "cali40n:x": KernelSet("hash:ip,port", 4, 1000, {"10.0.0.1,tcp:80"}),
        "cali60s:x": KernelSet("hash:net", 6, 1000, {"fd00::/64"}),
    }


def test_a_table_of_another_size_has_the_same_members() -> None:
    """After a change of MaxIpsetSize every set is swapped for a bigger one."""
    desired = table(x={"10.0.0.1"})
    actual = settled(desired)
    bigger = desired.resized(30_000, ())
    assert compare_sets(bigger, actual) == set(actual)
    bigger.dirty = dict.fromkeys(bigger.sets)
    assert sum(line.startswith("swap") for line in plan_sets(bigger, actual).lines) == len(actual)
