"""Comments as user data: iptables shows and deletes such rules as before, and what they match is the same."""

from __future__ import annotations

import asyncio
import socket

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.dataplane.comments import lightened
from calipy.felix.dataplane.iptables import IPTables
from calipy.felix.dataplane.nfnetlink import HEADER_SIZE
from calipy.felix.dataplane.nftables import NftablesReader
from calipy.felix.messages import Encapsulation
from calipy.felix.render.renderer import Renderer
from calipy.kernel import netlink, process
from calipy.net import Family
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel]

ENCAPSULATED = FelixConfig(encapsulation=Encapsulation(ipip=True, vxlan=True, vxlan6=True))
WEIGHTY = b"comment\0"
"""Name of the match; user data has no such word."""


def listed(table: str, chain: str) -> list[bytes]:
    """Rules of an IPv4 chain as the kernel lists them."""
    reader = NftablesReader()
    try:
        of_chain = netlink.text(1, table) + netlink.text(2, chain)
        return reader.dump("list", 10 << 8 | 7, socket.AF_INET, of_chain)
    finally:
        reader.close()


def save(family: Family, table: str) -> list[str]:
    program = "iptables-nft-save" if family == 4 else "ip6tables-nft-save"
    saved = process.run([program, "-t", table]).check().stdout
    return [line for line in saved.splitlines() if line.startswith("-A")]


def sets() -> None:
    """Those that the rules ask."""
    names = ((4, "all-hosts-net"), (4, "all-vxlan-net"), (6, "all-hosts-net"), (6, "all-vxlan-net"))
    lines = [f"create cali{n}0{name} hash:net family inet{'6' if n == 6 else ''}" for n, name in names]
    process.run(["ipset", "restore"], stdin="\n".join([*lines, ""])).check()


def write(config: FelixConfig) -> None:
    """Write the static chains, and see that what was written is what the reader expects."""

    async def scenario() -> None:
        renderers: dict[Family, Renderer] = {family: Renderer(family, config) for family in (4, 6)}
        for renderer in renderers.values():
            renderer.set_fast_path(possible=True)
        tables = IPTables("nft", {family: renderer.tables for family, renderer in renderers.items()})
        await tables.write()
        assert not tables.others_wrote()
        assert not await tables.read()
        assert bool((await tables.write()).changed) is False
        tables.close()

    asyncio.run(scenario())


def test_the_rules_that_every_packet_meets_have_no_comment_matches(netns: Namespace) -> None:
    """Hooks and what they lead to; the own transaction is known as such, and a second writing finds nothing to do."""

    def scenario() -> None:
        write(FelixConfig())
        for table, chains in (
            ("raw", ("PREROUTING", "cali-PREROUTING")),
            ("mangle", ("PREROUTING", "cali-PREROUTING", "POSTROUTING")),
            ("filter", ("cali-FORWARD",)),
        ):
            for chain in chains:
                rules = listed(table, chain)
                assert rules
                assert not [rule for rule in rules if WEIGHTY in rule], (table, chain)

    netns.call(scenario)


def test_they_read_as_they_were_written(netns: Namespace) -> None:
    """Rule by rule the text of iptables-save is the one that iptables-restore alone leaves, in both families."""

    def texts() -> dict[tuple[Family, str], list[str]]:
        families: tuple[Family, Family] = (4, 6)
        return {(family, table): save(family, table) for family in families for table in ("raw", "mangle", "filter")}

    def scenario() -> None:
        sets()
        write(ENCAPSULATED)
        ours = texts()
        for (family, table), rules in ours.items():
            chains = sorted({rule.split()[1] for rule in rules} | {r.split()[-1] for r in rules if " -j cali-" in r})
            names = [f":{chain} - -" for chain in chains if chain.startswith("cali-")]
            lines = [f"*{table}", *names, *(f"-F {c}" for c in chains), *rules, "COMMIT", ""]
            program = "iptables-nft-restore" if family == 4 else "ip6tables-nft-restore"
            process.run([program, "--noflush"], stdin="\n".join(lines)).check()
        assert texts() == ours
        assert any(WEIGHTY in rule for rule in listed("filter", "cali-FORWARD"))

    netns.call(scenario)


def test_they_can_be_deleted_by_their_text(netns: Namespace) -> None:
    """As people and other agents do it."""

    def scenario() -> None:
        write(FelixConfig())
        for table in ("raw", "mangle", "filter"):
            for rule in save(4, table):
                if "cali-FORWARD" in rule or "PREROUTING" in rule:
                    lines = [f"*{table}", rule.replace("-A", "-D", 1), "COMMIT", ""]
                    process.run(["iptables-nft-restore", "--noflush"], stdin="\n".join(lines)).check()
        assert listed("filter", "cali-FORWARD") == listed("raw", "PREROUTING") == []

    netns.call(scenario)


def test_a_rule_with_several_comments_stays_as_it_is(netns: Namespace) -> None:
    """User data holds one; and one that is light already has nothing to gain."""

    def scenario() -> None:
        write(FelixConfig())
        tail = [rule for rule in listed("filter", "FORWARD") if b"explicitly" in rule]
        assert tail
        for rule in (*tail, *listed("filter", "cali-FORWARD")):
            assert lightened(rule, HEADER_SIZE) is None
        assert all(WEIGHTY in rule for rule in tail)

    netns.call(scenario)
