"""The ip set edge against the kernel: deltas, swaps, failures, destruction."""

from __future__ import annotations

import pytest

from calipy.felix.dataplane.ipsets import IPSets
from calipy.felix.messages import Changes, IPSet, IPSetDelta
from calipy.felix.sets import SetTable, parse_save
from tests.kernel.test_iptables_edge import inside, run
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel]


def members(name: str) -> set[str]:
    saved = run("ipset", "save")
    return parse_save(saved)[name].members


def changes(**sets: set[str]) -> Changes:
    return Changes(ip_sets={name: IPSet(name, "net", frozenset(content)) for name, content in sets.items()})


def test_kernel_follows_in_deltas(netns: Namespace) -> None:
    """Members of all kinds arrive as written and leave again; a second read finds no difference."""

    async def scenario() -> None:
        table = SetTable(1000)
        sets = IPSets(table)
        table.update(changes(x={"10.0.0.1", "10.1.0.0/16", "0.0.0.0/0", "fd00::/64", "fd01::1"}))
        table.update(
            Changes(
                ip_sets={
                    "n": IPSet("n", "ip,port", frozenset({"10.0.0.1,tcp:80", "fd00::1,udp:53", "10.0.0.1,sctp:9"}))
                }
            )
        )
        assert await sets.write() == {}
        assert members("cali40x") == {"10.0.0.1", "10.1.0.0/16", "0.0.0.0/1", "128.0.0.0/1"}
        assert members("cali60x") == {"fd00::/64", "fd01::1"}
        assert members("cali40n") == {"10.0.0.1,tcp:80", "10.0.0.1,sctp:9"}
        assert members("cali60n") == {"fd00::1,udp:53"}
        assert await sets.read() == []
        table.update(
            Changes(ip_sets={"x": IPSetDelta("x", frozenset({"10.0.0.2"}), frozenset({"10.0.0.1", "0.0.0.0/0"}))})
        )
        assert await sets.write() == {}
        assert members("cali40x") == {"10.0.0.2", "10.1.0.0/16"}

    inside(netns, scenario)


def test_what_an_earlier_run_left_is_taken_over(netns: Namespace) -> None:
    """Right members stay, wrong ones go, a set of the wrong type is replaced while rules use it, foreign sets stay."""

    async def scenario() -> None:
        for line in (
            "create cali40x hash:net family inet maxelem 1000",
            "add cali40x 10.0.0.1",
            "add cali40x 10.0.0.9",
            "create cali40y hash:ip family inet maxelem 1000",
            "create cali40z hash:net family inet maxelem 64",
            "create cali40stale hash:net family inet",
            "create theirs hash:ip",
        ):
            run("ipset", *line.split())
        for name in ("cali40stale", "cali40z"):
            run("iptables-nft", "-A", "FORWARD", "-m", "set", "--match-set", name, "src", "-j", "ACCEPT")
        table = SetTable(1000)
        sets = IPSets(table)
        table.update(changes(x={"10.0.0.1", "10.0.0.2"}, y={"10.2.0.0/16"}, z={"10.0.0.3"}))
        assert await sets.write() == {}
        assert members("cali40x") == {"10.0.0.1", "10.0.0.2"}
        assert members("cali40y") == {"10.2.0.0/16"}
        assert members("cali40z") == {"10.0.0.3"}
        assert await sets.destroy_unwanted() == ["cali40stale"]
        run("iptables-nft", "-F", "FORWARD")
        assert await sets.destroy_unwanted() == []
        names = run("ipset", "list", "-n").split()
        assert "theirs" in names
        assert "cali40stale" not in names
        assert not [name for name in names if name.startswith("cali4t")]

    inside(netns, scenario)


def test_a_set_in_trouble_does_not_hold_up_the_others(netns: Namespace) -> None:
    """A set that is too small for its members is reported; all others are complete."""

    async def scenario() -> None:
        table = SetTable(64)
        sets = IPSets(table)
        table.update(
            changes(big={f"10.{n >> 8}.{n & 255}.1" for n in range(5000)}, small={"10.0.0.1"}, tiny={"10.0.0.2"})
        )
        failed = await sets.write()
        assert set(failed) == {"cali40big"}
        assert members("cali40small") == {"10.0.0.1"}
        assert members("cali40tiny") == {"10.0.0.2"}
        table.update(changes(big={"10.0.0.3"}))
        assert await sets.write() == {}
        assert members("cali40big") == {"10.0.0.3"}

    inside(netns, scenario)


def test_drift_is_found_and_reported_by_reading(netns: Namespace) -> None:
    """Deleted sets and members, and members that were added, are named and put right."""

    async def scenario() -> None:
        table = SetTable(1000)
        sets = IPSets(table)
        table.update(changes(x={"10.0.0.1"}, y={"10.0.0.2"}, z={"10.0.0.3"}))
        await sets.write()
        run("ipset", "add", "cali40x", "192.0.2.1")
        run("ipset", "flush", "cali40y")
        run("ipset", "destroy", "cali40z")
        drift = await sets.read()
        assert {item.name: item.found for item in drift} == {
            "cali40x": "2 members",
            "cali40y": "0 members",
            "cali40z": "absent",
        }
        assert await sets.write() == {}
        assert await sets.read() == []

    inside(netns, scenario)


def test_reading_beside_writing_confuses_nothing(netns: Namespace) -> None:
    """Sets that we write while all are being read keep what we know of them; others' changes are found."""

    async def scenario() -> None:
        table = SetTable(1000)
        sets = IPSets(table)
        table.update(changes(x={"10.0.0.1"}, y={"10.0.0.2"}, z={"10.0.0.3"}))
        await sets.write()
        run("ipset", "flush", "cali40z")
        assert sets.others_wrote()
        reading = await sets.begin_reading()
        table.update(Changes(ip_sets={"x": IPSetDelta("x", frozenset({"10.0.0.9"}), frozenset()), "y": None}))
        table.update(changes(new={"10.0.0.4"}))
        assert await sets.write() == {}
        assert await sets.destroy_unwanted() == []
        assert [item.name for item in sets.adopt(reading)] == ["cali40z"]
        assert await sets.write() == {}
        assert not sets.others_wrote()
        assert not sets.unwanted
        assert await sets.read() == []

    inside(netns, scenario)
